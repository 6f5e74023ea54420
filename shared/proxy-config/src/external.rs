use crate::policies::unset;
use crate::{FaultRule, Permission, Protocol, RateLimits};
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
    /// What policies that name its server name say of calls to it, whoever calls; executed by egresses.
    #[serde(default, skip_serializing_if = "unset")]
    pub policies: EntryPolicies,
}

/// For connections and requests to an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EntryPolicies {
    /// Before the rate limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRule>,
    #[serde(skip_serializing_if = "unset")]
    pub rate_limits: RateLimits,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostMatch {
    /// A DNS name, lower case, without a trailing dot.
    Exact(String),
    /// Every DNS name below this one, at any depth, and not the name itself. Empty: every name.
    Wildcard(String),
    Ip(IpAddr),
    /// The addresses of a range.
    Net(IpNet),
}

impl HostMatch {
    /// Whether a name (lower case, no trailing dot) is listed.
    pub fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Exact(listed) => listed.trim_end_matches('.').eq_ignore_ascii_case(name),
            Self::Wildcard(parent) if parent.is_empty() => true,
            Self::Wildcard(parent) => {
                let below = name.strip_suffix(parent.as_str()).and_then(|rest| rest.strip_suffix('.'));
                below.is_some_and(|labels| !labels.is_empty())
            }
            Self::Ip(_) | Self::Net(_) => false,
        }
    }

    /// Whether an address (IPv4-mapped IPv6 as IPv4) is listed.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        match self {
            Self::Ip(listed) => listed.to_canonical() == ip,
            Self::Net(net) => net.contains(&ip),
            Self::Exact(_) | Self::Wildcard(_) => false,
        }
    }
}

/// A range in the one form that addresses are compared in: without host bits, IPv4-mapped IPv6 as IPv4.
pub fn canonical_net(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.network().to_ipv4_mapped(),
        _ => None,
    };
    let as_v4 = mapped.and_then(|v4| IpNet::new(v4.into(), net.prefix_len().saturating_sub(96)).ok());
    as_v4.unwrap_or(net).trunc()
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// Which [`crate::DestinationPolicies`] hold for its calls: see [`crate::policies_of_callers`]. Empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policies: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CallerMode {
    None,
    Matched,
    /// Any public address; preface entry `*`.
    All,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(parent: &str, name: &str) -> bool {
        HostMatch::Wildcard(parent.into()).has_name(name)
    }

    #[test]
    fn a_wildcard_ends_at_a_label_and_is_not_its_own_parent() {
        for name in ["x.example.com", "y.x.example.com", "xn--bcher-kva.example.com", "_dmarc.example.com"] {
            assert!(below("example.com", name), "{name}");
        }
        for name in [
            "example.com",
            ".example.com",
            "evilexample.com",
            "example.com.evil",
            "x.example.com.evil",
            "x.example.community",
            "com",
            "",
        ] {
            assert!(!below("example.com", name), "{name}");
        }
        assert!(below("", "anything") && below("", "a.b"));
    }

    #[test]
    fn ranges_have_one_form() {
        let form = |text: &str| canonical_net(text.parse().unwrap()).to_string();
        assert_eq!(form("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(form("::ffff:10.1.2.3/104"), "10.0.0.0/8");
        assert_eq!(form("::ffff:10.1.2.3/128"), "10.1.2.3/32");
        assert_eq!(form("::ffff:0:0/96"), "0.0.0.0/0");
        assert_eq!(form("2001:DB8::7/32"), "2001:db8::/32");
        // Wider than the mapped range: IPv6 alone.
        assert_eq!(form("::ffff:0:0/95"), "::fffe:0:0/95");
        assert!(!HostMatch::Net("::/0".parse().unwrap()).has_address("10.0.0.1".parse().unwrap()));
    }
}
