use crate::Protocol;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A place where the application's own connections enter the mesh: an explicit listener, or VIPs behind capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Outbound {
    /// An explicit outbound of the Dataplane: listen here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<SocketAddr>,
    /// Virtual addresses whose captured connections (to `port`) mean this outbound.
    pub vips: Vec<IpAddr>,
    pub port: u16,
    /// Names that the resolver answers with `vips`, lower case, without a trailing dot.
    pub hostnames: Vec<String>,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Name of a [`Destination`].
    Destination(String),
    /// Name of an `External`.
    External(String),
}

/// A service inside the mesh, one port of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Destination {
    /// For metrics and logs: the service's display name.
    pub service: String,
    pub protocol: Protocol,
    pub tls: DestinationTls,
    /// Names of [`EndpointSet`]s in order of preference: the next is used when no endpoint of the one before
    /// is usable (local zone first, then the others).
    pub tiers: Vec<Vec<String>>,
    /// Whether it is a service of all zones, so that policies decide which zones are used; else it is one zone's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spans_zones: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "mode")]
pub enum DestinationTls {
    Off,
    /// Mutual TLS; the answering leaf must come from the endpoint's zone, carry one of the `identities` of that zone (a
    /// zone that is not there refuses), and chain to the bundle of `mesh`. By zone, because each zone says itself who its
    /// services are: what one says holds at no other's endpoints.
    Mutual {
        mesh: String,
        identities: BTreeMap<String, Vec<String>>,
    },
}

/// Endpoints that are sent and changed together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EndpointSet {
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
    /// The zone whose intermediate must have signed the leaf that answers.
    pub zone: String,
    /// Server name of the session; what an ingress routes by. Unused without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Instances behind this address (an ingress): the proxy keeps so many virtual endpoints of it. 1..=32.
    pub replicas: u32,
    /// Of the proxy or service, for logs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Of the instance: those that policies of the mesh ask for ([`crate::HostSelection`], [`crate::Affinity`],
    /// [`crate::BackendTarget::Subset`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// An address, or a DNS name (an ingress's advertised address may be one) that the dialling proxy resolves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Host {
    Ip(IpAddr),
    Name(String),
}
