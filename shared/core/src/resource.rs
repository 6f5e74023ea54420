use crate::{Key, Spec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A resource of any kind. `spec` is normalised: what [`crate::KindInfo::check`] gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub key: Key,
    pub labels: BTreeMap<String, String>,
    pub spec: Value,
    /// Written by control planes only.
    pub status: Option<Value>,
}

#[derive(Debug, thiserror::Error)]
#[error("{key}: not a valid {} at {path:?}", key.kind)]
pub struct ParseError {
    pub key: Key,
    /// Where in the spec.
    pub path: String,
    pub source: serde_json::Error,
}

/// What travels between control planes besides the key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    labels: BTreeMap<String, String>,
    spec: Value,
    #[serde(default)]
    status: Option<Value>,
}

#[derive(Serialize)]
struct BodyRef<'a> {
    labels: &'a BTreeMap<String, String>,
    spec: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a Value>,
}

impl Resource {
    /// A resource made by a control plane itself; what users write comes through [`crate::document`].
    ///
    /// # Panics
    /// Never for the kinds of this crate: all of them serialise.
    pub fn of<T: Spec>(key: Key, labels: BTreeMap<String, String>, spec: &T) -> Self {
        let spec = serde_json::to_value(spec).unwrap_or_default();
        Self { key, labels, spec, status: None }
    }

    /// The typed spec.
    pub fn parse<T: Spec>(&self) -> Result<T, ParseError> {
        serde_path_to_error::deserialize(&self.spec).map_err(|error| ParseError {
            key: self.key.clone(),
            path: error.path().to_string(),
            source: error.into_inner(),
        })
    }

    /// The canonical JSON body (labels, spec, status; keys sorted) that versions are hashes of.
    pub fn canonical(&self) -> Vec<u8> {
        // serde_json's maps are sorted unless `preserve_order` is on; a test holds it off.
        let body = BodyRef { labels: &self.labels, spec: &self.spec, status: self.status.as_ref() };
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The inverse of [`Resource::canonical`]. The spec is not checked: see [`Resource::parse`].
    pub fn from_canonical(key: Key, body: &[u8]) -> Result<Self, ParseError> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        match serde_path_to_error::deserialize::<_, Body>(&mut deserializer) {
            Ok(Body { labels, spec, status }) => Ok(Self { key, labels, spec, status }),
            Err(error) => Err(ParseError { key, path: error.path().to_string(), source: error.into_inner() }),
        }
    }
}
