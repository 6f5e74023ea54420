use crate::{InboundPolicies, Permission, policies::unset};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// One port on which a sidecar takes traffic for its application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Inbound {
    pub name: String,
    /// Where peers connect: the Dataplane's address and the inbound's port.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub application: SocketAddr,
    /// Declared, never sniffed: it decides which codec may speak here.
    pub protocol: Protocol,
    /// `kuma.io/service` of this inbound.
    pub service: String,
    pub tls: InboundTls,
    /// The mesh whose bundle verifies callers. Unused with TLS off.
    pub mesh: String,
    /// Who may call. Not asked when TLS is off, or for plaintext under PERMISSIVE (as in Kuma).
    pub permission: Permission,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    #[serde(default, skip_serializing_if = "unset")]
    pub policies: InboundPolicies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    Tcp,
    /// The client's own TLS, passed through: bytes that begin with a ClientHello. Outside of the mesh only.
    Tls,
    Http,
    Http2,
    Grpc,
}

impl Protocol {
    /// Whether requests are seen one by one.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// Whether the application speaks HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InboundTls {
    Off,
    Permissive,
    Strict,
}

/// A TCP connect probe of the application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    pub interval_millis: u64,
    pub timeout_millis: u64,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
}
