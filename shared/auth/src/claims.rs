use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, fmt};

/// What a token is for; each has its own keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// A sidecar at its zone control plane.
    Dataplane,
    /// A zone control plane at global, an ingress or egress at its zone.
    Zone,
    /// A person or program at the REST API.
    User,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dataplane => "dataplane",
            Self::Zone => "zone",
            Self::User => "user",
        })
    }
}

/// Claims of one kind of token.
pub trait Claims: Serialize + DeserializeOwned {
    const PURPOSE: Purpose;

    /// The mesh whose keys sign it; only dataplane tokens have one.
    fn mesh(&self) -> Option<&str> {
        None
    }
}

/// Which proxy the bearer may be. Empty fields bind nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct DataplaneClaims {
    pub name: String,
    pub mesh: String,
    /// For each tag, the values it may have.
    #[serde(deserialize_with = "null_is_empty")]
    pub tags: BTreeMap<String, Vec<String>>,
    /// `dataplane`, or empty for the same.
    #[serde(rename = "Type")]
    pub kind: String,
    pub workload: String,
}

/// Which zone the bearer speaks for, and as what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct ZoneClaims {
    pub zone: String,
    /// `cp`, `ingress`, `egress`
    #[serde(deserialize_with = "null_is_empty")]
    pub scope: Vec<String>,
}

/// Who the bearer is at the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct UserClaims {
    pub name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub groups: Vec<String>,
}

/// What a zone token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneScope {
    ControlPlane,
    Ingress,
    Egress,
}

impl ZoneScope {
    pub const ALL: [Self; 3] = [Self::ControlPlane, Self::Ingress, Self::Egress];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "cp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

impl DataplaneClaims {
    /// Whether the token says which proxy or service it is for; one that binds neither fits every proxy of the mesh.
    pub fn is_bound(&self) -> bool {
        !self.name.is_empty() || self.tags.get("kuma.io/service").is_some_and(|values| !values.is_empty())
    }
}

impl ZoneClaims {
    pub fn has(&self, scope: ZoneScope) -> bool {
        self.scope.iter().any(|held| held == scope.as_str())
    }
}

impl UserClaims {
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|held| held == group)
    }
}

impl Claims for DataplaneClaims {
    const PURPOSE: Purpose = Purpose::Dataplane;

    fn mesh(&self) -> Option<&str> {
        Some(&self.mesh)
    }
}

impl Claims for ZoneClaims {
    const PURPOSE: Purpose = Purpose::Zone;
}

impl Claims for UserClaims {
    const PURPOSE: Purpose = Purpose::User;
}

/// Kuma writes `null` for an empty list or map.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
