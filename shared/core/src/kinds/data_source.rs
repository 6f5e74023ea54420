//! Where bytes come from (certificates, keys).

use crate::Violations;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why `file` is refused.
pub(crate) const NO_FILE: &str =
    "a path on the control plane's host, which writers of policies must not read; use secret or inline";

/// One of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DataSource {
    /// Name of a Secret of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A path on the control plane's host: refused, since it would let a writer of policies read that host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline_string: Option<String>,
}

impl DataSource {
    /// The Secret it names, if it names one.
    pub fn secret_name(&self) -> Option<&str> {
        self.secret.as_deref().filter(|name| !name.is_empty())
    }

    /// The bytes that stand in the resource itself.
    pub fn inline_bytes(&self) -> Option<Vec<u8>> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        match (&self.inline_string, &self.inline) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(encoded)) => STANDARD.decode(encoded).ok(),
            (None, None) => None,
        }
    }

    pub(crate) fn check(&self, path: &str, out: &mut Violations) {
        let given = [&self.secret, &self.file, &self.inline, &self.inline_string];
        let given =
            given.into_iter().filter(|source| source.as_ref().is_some_and(|text| !text.is_empty())).count();
        if given != 1 {
            out.push(path, "must have exactly one of: secret, inline, inlineString");
        }
        if self.inline.is_some() && self.inline_string.is_none() && self.inline_bytes().is_none() {
            out.push(format!("{path}.inline"), "must be base64");
        }
    }
}
