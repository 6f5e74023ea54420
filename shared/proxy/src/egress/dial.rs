//! From an entry to a connection: names resolved here, addresses judged here, the address dialled is the one judged.

use super::{
    authorise::Denied,
    carry::Errand,
    originate::{Application, OriginateError},
    outward::Outward,
};
use crate::{
    address::{Scope, judge, literals, ranges},
    denial::Reason,
    host::Asked,
    io::{Socket, Transport, tune},
    snapshot::Entry,
    worker::Worker,
};
use meridian_proxy_config::Host;
use meridian_telemetry::chain;
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// Addresses tried for one connection: each may cost the connect timeout.
const MAX_TRIES: usize = 4;

/// A connection to the outside.
pub(super) struct Way {
    pub transport: Transport,
    pub address: SocketAddr,
    /// The endpoint as the entry or the caller names it.
    pub host: Host,
    pub port: u16,
    /// The server chose HTTP/2 by ALPN.
    pub http2: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("refused: {}", .0.reason)]
    Denied(Denied),
    #[error("{0}")]
    Failed(String),
}

impl From<Denied> for DialError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

/// Connects to where the errand's entry leads, trying its endpoints in their order; as often as a policy says, all of
/// them anew.
pub(super) async fn dial(
    worker: &Rc<Worker>,
    errand: &Errand,
    application: Application,
    outward: &Outward,
) -> Result<Way, DialError> {
    let most = outward.connect_attempts.unwrap_or(MAX_TRIES);
    let mut tries = 0;
    loop {
        let before = tries;
        let result = dial_once(worker, errand, application, outward, &mut tries, most).await;
        let again = matches!(result, Err(DialError::Failed(_))) && outward.connect_attempts.is_some();
        if !again || tries >= most || tries == before {
            return result;
        }
    }
}

/// Each endpoint once.
async fn dial_once(
    worker: &Rc<Worker>,
    errand: &Errand,
    application: Application,
    outward: &Outward,
    tries: &mut usize,
    most: usize,
) -> Result<Way, DialError> {
    let mut refused = None;
    let mut failed = None;
    let before = *tries;
    for (host, port) in targets(errand) {
        let addresses = match addresses(worker, &host).await {
            Ok(addresses) => addresses,
            Err(message) => {
                failed = Some(message);
                continue;
            }
        };
        for ip in addresses {
            let snapshot = worker.snapshot();
            let protected =
                snapshot.proxy.as_ref().map(|proxy| proxy.protected.as_slice()).unwrap_or_default();
            if let Err(why) = allowed(ip, errand.entry.as_deref(), protected) {
                refused = Some(Denied::new(Reason::ADDRESS_REFUSED, why));
                continue;
            }
            if *tries >= most {
                break;
            }
            *tries += 1;
            let address = SocketAddr::new(ip, port);
            match connect(address, outward.connections.connect).await {
                Ok(socket) => return originate(errand, socket, address, host, application).await,
                Err(error) => failed = Some(format!("connecting to {address}: {error}")),
            }
        }
    }
    // Addresses that may not be used are left out; if nothing else was there, that is why.
    match (refused, failed) {
        (Some(denied), _) if *tries == before => Err(denied.into()),
        (_, Some(message)) => Err(DialError::Failed(message)),
        (Some(denied), None) => Err(denied.into()),
        (None, None) => {
            Err(DialError::Failed("the entry has no endpoint, or its name no address".to_owned()))
        }
    }
}

/// Whether this address may be dialled for this entry (`None`: any public one).
pub(super) fn allowed(ip: IpAddr, entry: Option<&Entry>, protected: &[IpAddr]) -> Result<(), String> {
    let own = entry.map(|entry| literals(&entry.config)).unwrap_or_default();
    let allowed = entry.map(|entry| entry.config.addresses.allowed.as_slice()).unwrap_or_default();
    let ranges = entry.map(|entry| ranges(&entry.config)).unwrap_or_default();
    judge(ip, Scope { literals: &own, allowed, ranges: &ranges, protected })
        .map_err(|refused| refused.to_string())
}

/// Lowest priority first; equal ones from a random one on, so that load spreads.
fn targets(errand: &Errand) -> Vec<(Host, u16)> {
    let endpoints = errand.entry.as_ref().map(|entry| entry.config.endpoints.as_slice()).unwrap_or_default();
    if endpoints.is_empty() {
        let host = match &errand.asked {
            Asked::Name(name) => Host::Name(name.to_string()),
            Asked::Ip(ip) => Host::Ip(*ip),
        };
        return vec![(host, errand.port)];
    }
    let mut ordered: Vec<_> = endpoints.iter().collect();
    let turn = rand::random_range(0..ordered.len());
    ordered.rotate_left(turn);
    ordered.sort_by_key(|endpoint| endpoint.priority);
    ordered.into_iter().map(|endpoint| (endpoint.host.clone(), endpoint.port)).collect()
}

async fn addresses(worker: &Rc<Worker>, host: &Host) -> Result<Vec<IpAddr>, String> {
    match host {
        Host::Ip(ip) => Ok(vec![ip.to_canonical()]),
        Host::Name(name) => {
            let found = worker
                .shared
                .resolver
                .lookup(name)
                .await
                .map_err(|error| format!("resolving {name}: {error}"))?;
            Ok(found.into_iter().map(|ip| ip.to_canonical()).collect())
        }
    }
}

async fn connect(address: SocketAddr, limit: Duration) -> std::io::Result<Socket> {
    let stream = timeout(limit, TcpStream::connect(address)).await??;
    tune(&stream);
    Ok(Socket::new(stream))
}

async fn originate(
    errand: &Errand,
    socket: Socket,
    address: SocketAddr,
    host: Host,
    application: Application,
) -> Result<Way, DialError> {
    let port = address.port();
    let originator = match &errand.entry {
        Some(entry) if entry.config.tls.is_some() => Some(
            // An entry whose terms did not compile is not in a snapshot; were it, plaintext would not be the answer.
            entry
                .originator
                .as_ref()
                .ok_or_else(|| Denied::new(Reason::SERVER_CERTIFICATE, &entry.config.key))?,
        ),
        _ => None,
    };
    let Some(originator) = originator else {
        return Ok(Way { transport: Transport::Plain(socket), address, host, port, http2: false });
    };
    match originator.connect(socket, &host, application).await {
        Ok(stream) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(Way { transport: Transport::Tls(Box::new(stream)), address, host, port, http2 })
        }
        Err(OriginateError::NoRoots) => Err(Denied::new(Reason::NO_ROOTS, errand.key()).into()),
        Err(OriginateError::Certificate(why)) => {
            Err(Denied::new(Reason::SERVER_CERTIFICATE, format!("{}: {why}", errand.key())).into())
        }
        Err(error) => Err(DialError::Failed(format!("{address}: {}", chain(&error)))),
    }
}
