use serde::{Deserialize, Serialize};

/// Whom to believe in one mesh; resource name: the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Bundle {
    pub mesh: String,
    /// Root certificates, PEM.
    pub roots: Vec<String>,
    /// Intermediates that are no longer believed: lower-case hex of SHA-256 over SubjectPublicKeyInfo.
    pub revoked: Vec<String>,
}
