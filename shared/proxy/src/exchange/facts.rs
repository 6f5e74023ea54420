use super::flags::Flags;
use crate::{
    host::Asked,
    snapshot::{Cluster, Endpoint, Inbound},
    tls::Peer,
    worker::Direction,
};
use http::{Method, Request, Version};
use meridian_proxy_config::{Host, Proxy};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// What is the same for all requests of a connection.
#[derive(Debug)]
pub struct Scene {
    pub direction: Direction,
    /// Who connected, and to where.
    pub remote: SocketAddr,
    pub local: SocketAddr,
    /// The caller, if it has proven who it is.
    pub peer: Option<Peer>,
    pub proxy: Arc<Proxy>,
    /// The proxy's address, where it has one that others may dial.
    pub own_address: Option<IpAddr>,
    /// Of this process, beginning at 1.
    pub connection: u64,
}

/// What a request or connection is for.
#[derive(Clone)]
pub enum Subject {
    Cluster(Arc<Cluster>),
    Inbound(Arc<Inbound>),
    /// Outside of the mesh, by the name of its entry; what no entry lists is `external`.
    External(Arc<str>),
}

/// What is known of one request or connection.
pub struct Facts {
    pub scene: std::rc::Rc<Scene>,
    pub subject: Subject,
    pub at: OffsetDateTime,
    pub begun: Instant,
    pub request: Option<Head>,
    pub status: Option<u16>,
    pub flags: Flags,
    pub details: &'static str,
    pub received: u64,
    pub sent: u64,
    /// All after `begun`: the request's end, the answer's head, and the end.
    pub request_end: Option<Duration>,
    pub answered: Option<Duration>,
    pub end: Option<Duration>,
    /// When the last attempt began.
    pub attempted: Option<Duration>,
    pub attempts: u32,
    pub upstream: Option<Upstream>,
    pub grpc_status: Option<u32>,
    pub trace_id: Option<u128>,
}

/// Who was asked.
#[derive(Clone)]
pub enum Upstream {
    Endpoint(Arc<Endpoint>),
    Application(SocketAddr),
    /// A name or address outside of the mesh, which an egress may dial for us.
    Outside(Asked, u16),
}

/// A request's line, as it came.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: Method,
    pub path: http::Uri,
    pub authority: Option<String>,
    pub version: Version,
}

impl Head {
    pub fn of<B>(request: &Request<B>) -> Self {
        let named = request.uri().authority().map(ToString::to_string);
        let host = || Some(request.headers().get(http::header::HOST)?.to_str().ok()?.to_owned());
        Self {
            method: request.method().clone(),
            path: request.uri().clone(),
            authority: named.or_else(host),
            version: request.version(),
        }
    }

    pub fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }
    }

    pub fn path(&self) -> &str {
        self.path.path_and_query().map_or("/", |path| path.as_str())
    }
}

impl Upstream {
    /// `None` where only a name is known.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Application(address) => Some(*address),
            Self::Outside(Asked::Ip(ip), port) => Some(SocketAddr::new(*ip, *port)),
            Self::Outside(Asked::Name(_), _) => None,
            Self::Endpoint(endpoint) => match &endpoint.host {
                Host::Ip(ip) => Some(SocketAddr::new(*ip, endpoint.port)),
                Host::Name(_) => None,
            },
        }
    }

    /// Name and port, where only these are known.
    pub fn named(&self) -> Option<(&str, u16)> {
        match self {
            Self::Endpoint(endpoint) => match &endpoint.host {
                Host::Name(name) => Some((name, endpoint.port)),
                Host::Ip(_) => None,
            },
            Self::Outside(Asked::Name(name), port) => Some((name.as_str(), *port)),
            Self::Application(_) | Self::Outside(Asked::Ip(_), _) => None,
        }
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Endpoint(endpoint) => &endpoint.name,
            Self::Application(_) | Self::Outside(..) => "",
        }
    }
}

/// The name of a caller that has not proven who it is, in Kuma's words.
const UNKNOWN: &str = "unknown";

impl Facts {
    /// The service that calls.
    pub fn source(&self) -> &str {
        match self.scene.direction {
            Direction::Inbound => {
                // spiffe://MESH/SERVICE
                let id = self.scene.peer.as_ref().map(Peer::name);
                id.and_then(|id| Some(id.strip_prefix("spiffe://")?.split_once('/')?.1)).unwrap_or(UNKNOWN)
            }
            _ => &self.scene.proxy.service,
        }
    }

    /// The service that is called.
    pub fn destination(&self) -> &str {
        match &self.subject {
            Subject::Cluster(cluster) => &cluster.service,
            Subject::Inbound(inbound) => &inbound.config.service,
            Subject::External(name) => name,
        }
    }

    /// The name of where it goes: a destination, or an inbound.
    pub fn cluster(&self) -> &str {
        match &self.subject {
            Subject::Cluster(cluster) => &cluster.name,
            Subject::Inbound(inbound) => &inbound.config.name,
            Subject::External(name) => name,
        }
    }

    /// The address of who calls.
    pub fn source_address(&self) -> SocketAddr {
        match (self.scene.direction, self.scene.own_address) {
            (Direction::Inbound, _) | (_, None) => self.scene.remote,
            (_, Some(own)) => SocketAddr::new(own, self.scene.remote.port()),
        }
    }
}
