//! What a proxy tells its zone control plane.

use serde::{Deserialize, Serialize};

/// How a proxy is. Sent when it changes, at most once a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ProxyStatus {
    pub role: crate::Role,
    pub version: String,
    /// UUID of the process.
    pub instance: String,
    /// `strict`, `kuma` or `none`: what leaves the host beside the proxy.
    pub outbound_enforcement: String,
    pub inbounds: Vec<InboundStatus>,
    pub certificates: Vec<CertificateStatus>,
    /// What it was told and can't do, though it serves: a port for metrics that another process has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundStatus {
    pub name: String,
    /// By the service probe; true without one.
    pub ready: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CertificateStatus {
    pub mesh: String,
    /// RFC 3339.
    pub expires: String,
    /// Lower-case hex of SHA-256 over the SPKI of the root it chains to (root rotation waits for it).
    pub root: String,
}

/// Refusals, aggregated: at most [`DenialReport::MAX_ROWS`] rows, the rest counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DenialReport {
    pub denials: Vec<Denial>,
    /// Refusals beyond the rows.
    pub overflow: u64,
}

impl DenialReport {
    /// Rows of denials kept a zone.
    pub const MAX_ROWS: usize = 1_000;
    /// Names are cut at so many bytes.
    pub const MAX_NAME: usize = 253;
}

/// One aggregated refusal: (mesh, caller, name, port, reason).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Denial {
    pub mesh: String,
    /// SPIFFE ID, `none`, or the sidecar's own service for what it refused its application.
    pub caller: String,
    /// Name or address asked for, or the service; cut and escaped.
    pub destination: String,
    pub port: u16,
    /// `no-permission`, `not-listed`, `no-egress`, `address-refused`, ... (docs/denials.md)
    pub reason: String,
    /// The nearest rule: the policy that decided, or the entry that came closest; may be empty.
    pub rule: String,
    pub count: u64,
    /// RFC 3339, of the last one.
    pub last: String,
    /// Who refused: role and name.
    pub by: String,
}
