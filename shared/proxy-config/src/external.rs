use crate::{Permission, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A destination outside the mesh, as a sidecar sees it.
///
/// To an egress the sidecar opens mTLS with ALPN [`crate::alpn::EXTERNAL`] and sends a preface naming the entry, the
/// host and the port: never an identity, which the egress takes from the certificate. Preface: one line of JSON,
/// `{"entry":..., "host":..., "port":...}`, preceded by its length as a big-endian u16 (at most 1,024).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct External {
    /// Key of the [`Entry`].
    pub entry: String,
    pub kind: EntryKind,
    pub protocol: Protocol,
    /// Names and addresses by which a captured connection means this entry.
    pub hosts: Vec<HostMatch>,
    /// Ports of captured connections (to the real address or to a VIP). Empty: any port.
    pub ports: Vec<u16>,
    /// The proxy that leaves the mesh originates TLS; a ClientHello is refused.
    pub originates_tls: bool,
    pub via: Via,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    ExternalService,
    MeshExternalService,
    MeshPassthrough,
}

/// How a sidecar reaches an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// Through an egress of `zone`; `endpoints` names the set to dial (the local egress in every case).
    #[serde(rename_all = "camelCase")]
    Egress { mesh: String, zone: String, sni: String, endpoints: String },
    /// Dialled by the sidecar itself, under the same checks.
    Sidecar(Box<Entry>),
    /// Refused with this reason (`no-egress`, say).
    Refused(String),
}

/// One allowlist entry, as the proxy that leaves the mesh enforces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    pub key: String,
    pub mesh: String,
    pub kind: EntryKind,
    pub protocol: Protocol,
    /// What the caller may ask for: Host, :authority and SNI are held to it.
    pub hosts: Vec<HostMatch>,
    /// Ports the caller may name. Empty: any.
    pub ports: Vec<u16>,
    /// Where it leads; empty: to the host and port that the caller named.
    pub endpoints: Vec<ExternalEndpoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Origination>,
    pub addresses: AddressPolicy,
    /// Who may use it (ExternalService, MeshExternalService). MeshPassthrough entries are allowed by [`Caller`].
    pub permission: Permission,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostMatch {
    /// A DNS name, lower case, without a trailing dot.
    Exact(String),
    Ip(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ExternalEndpoint {
    pub host: crate::Host,
    pub port: u16,
    /// 0 is tried first.
    pub priority: u32,
}

/// Which addresses an entry may lead to, beyond global unicast ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AddressPolicy {
    pub allowed: Vec<IpNet>,
}

/// TLS from the egress to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Origination {
    pub verification: Verification,
    pub ca: CaSource,
    /// PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    /// SNI and name to verify. Unset: the endpoint's name; none for addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Besides the server name, one of these must be in the certificate, if there are any: they narrow.
    pub subject_alt_names: Vec<SanMatch>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verification {
    Secured,
    SkipSan,
    SkipCa,
    SkipAll,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaSource {
    /// The host's roots; where there are none, every connection is refused.
    System,
    Pem(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SanMatch {
    Exact(String),
    Prefix(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

/// What one Dataplane may reach by MeshPassthrough; resource name `<mesh>/<dataplane>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Caller {
    pub mesh: String,
    pub dataplane: String,
    pub mode: CallerMode,
    /// Keys of MeshPassthrough [`Entry`]s. Only read under `Matched`.
    pub entries: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CallerMode {
    None,
    Matched,
    /// Any public address; preface entry `*`.
    All,
}
