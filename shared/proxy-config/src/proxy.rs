use crate::SessionTerms;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What one proxy is and how it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    pub role: Role,
    /// Empty for an ingress and an egress, which serve all meshes.
    pub mesh: String,
    pub name: String,
    pub zone: String,
    /// The main `kuma.io/service` of a sidecar (its first inbound's), for logs and metrics; else empty.
    pub service: String,
    /// The address that an ingress or egress listens on. Sidecars listen where their inbounds say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<std::net::SocketAddr>,
    /// Meshes in which the proxy needs a certificate. Empty without mTLS, and for every ingress.
    pub identities: Vec<String>,
    /// By mesh: what its sessions are like, where that is not the default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sessions: BTreeMap<String, SessionTerms>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    pub dns: DnsSettings,
    /// What happens to captured traffic for a destination that nothing lists.
    pub unlisted: Unlisted,
    /// How long an unknown captured connection is read before it counts as TCP (rules: 300 ms).
    pub detect_timeout_millis: u64,
    /// An egress that has heard nothing from its control plane for so long refuses. Unset: it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_config_age_seconds: Option<u64>,
    /// Addresses that no allowlist entry may lead to: the zone's own proxies and control planes.
    pub protected: Vec<IpAddr>,
    /// Of a sidecar's inbounds: those that policies of the mesh ask for ([`crate::Affinity`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Sidecar,
    Ingress,
    Egress,
}

/// Ports of transparent capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Capture {
    /// Outbound connections are redirected here (15001).
    pub outbound_port: u16,
    /// Inbound connections are redirected here (15006).
    pub inbound_port: u16,
}

/// The sidecar's resolver, on 15053 (UDP and TCP) when capture is on, or where `listen_port` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DnsSettings {
    /// Unset: no resolver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Zones (`cluster.local`) whose names go to the host's own servers.
    pub forward_zones: Vec<String>,
    /// Passthrough is on: every name that the mesh does not own goes to the host's own servers.
    pub forward_all: bool,
    /// Answer AAAA with the IPv4-mapped form of a VIP.
    pub ipv6: bool,
}

/// Captured traffic to a destination that no resource lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "mode")]
pub enum Unlisted {
    /// Passthrough off.
    Refuse,
    /// Passthrough on without an egress to enforce it: dialled by the sidecar, public addresses only.
    Direct,
    /// Passthrough on, through the zone's egress, public addresses only.
    #[serde(rename_all = "camelCase")]
    Egress {
        /// The endpoint set of the zone's egresses.
        endpoints: String,
        /// The SNI that the sidecar sends to it.
        sni: String,
    },
}
