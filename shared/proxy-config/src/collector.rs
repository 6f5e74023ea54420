use serde::{Deserialize, Serialize};

/// A collector of OpenTelemetry data, which is spoken to by OTLP in plaintext.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Collector {
    /// `HOST:PORT`
    pub endpoint: String,
    /// Over HTTP, with this before `/v1/logs` and the like: empty, or from `/` on. Unset: over gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_path: Option<String>,
}
