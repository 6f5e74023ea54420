use crate::{CallerMatch, Collector, policies::unset};
use serde::{Deserialize, Serialize};

/// One backend that is told of each request or connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessLog {
    /// Of an inbound: whose calls. Plaintext, which proves nothing, matches what has no conditions.
    #[serde(default, skip_serializing_if = "unset")]
    pub caller: CallerMatch,
    pub backend: LogBackend,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum LogBackend {
    File {
        /// On the proxy's host, absolute.
        path: String,
        #[serde(default, skip_serializing_if = "unset")]
        line: LogLine,
    },
    Tcp {
        /// `HOST:PORT`
        address: String,
        #[serde(default, skip_serializing_if = "unset")]
        line: LogLine,
    },
    OpenTelemetry {
        collector: Collector,
        /// Name, and a text with placeholders.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attributes: Vec<(String, String)>,
        /// Its texts may have placeholders. Unset: the line of [`LogLine`]'s default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<serde_json::Value>,
    },
}

/// How a line looks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LogLine {
    /// Unset: Kuma's line for HTTP, or for TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<LogForm>,
    /// What has no value is left out, instead of being `-` or null.
    #[serde(skip_serializing_if = "unset")]
    pub omit_empty: bool,
}

/// Texts have the placeholders of `meridian_core::log_format`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogForm {
    Plain(String),
    /// An object with these fields.
    Json(Vec<(String, String)>),
}
