//! Sockets that a worker accepts on, kept equal to what the snapshot asks for.

use crate::{capture, dispatch, io::tune, snapshot::Snapshot, worker::Worker};
use meridian_proxy_config::Role;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Connections that the kernel keeps for us (cut to net.core.somaxconn).
const BACKLOG: i32 = 4_096;
/// Out of file descriptors: how long to leave them to those who have them.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// What a listener is for; decides everything about what is accepted there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// One inbound, by name.
    Inbound(String),
    /// Captured inbound connections: the original destination names the inbound.
    CapturedInbound,
    /// One explicit outbound, by name.
    Outbound(String),
    /// Captured outbound connections.
    CapturedOutbound,
    /// The mesh port of an ingress or egress.
    Mesh,
}

/// A connection, fresh from its listener.
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// Where the client dialled: the original destination of a captured connection, else the local address.
    pub original: SocketAddr,
}

impl Purpose {
    /// Whether it serves peers (drained first) rather than the proxy's own application.
    pub fn serves_peers(&self) -> bool {
        matches!(self, Self::Inbound(_) | Self::CapturedInbound | Self::Mesh)
    }
}

/// Where a snapshot wants connections taken.
pub fn wanted(snapshot: &Snapshot) -> Vec<(Purpose, SocketAddr)> {
    let Some(proxy) = &snapshot.proxy else { return Vec::new() };
    let mut wanted = Vec::new();
    if proxy.role != Role::Sidecar {
        wanted.extend(proxy.listen.map(|address| (Purpose::Mesh, address)));
        return wanted;
    }
    match &proxy.capture {
        Some(capture) => {
            let any = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
            wanted.push((Purpose::CapturedInbound, any(capture.inbound_port)));
            wanted.push((Purpose::CapturedOutbound, any(capture.outbound_port)));
        }
        None => {
            let inbounds = snapshot.inbounds.values();
            wanted.extend(inbounds.map(|i| (Purpose::Inbound(i.config.name.clone()), i.config.listen)));
        }
    }
    let explicit = snapshot.outbounds.values();
    wanted.extend(explicit.filter_map(|o| Some((Purpose::Outbound(o.name.to_string()), o.config.bind?))));
    wanted
}

/// What the workers listen on, for readiness and the admin socket.
pub struct Listening {
    workers: Mutex<Vec<WorkerListening>>,
    changed: watch::Sender<u64>,
}

#[derive(Clone, Debug, Default)]
struct WorkerListening {
    generation: u64,
    failed: BTreeMap<SocketAddr, String>,
}

impl Listening {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers: Mutex::new(vec![WorkerListening::default(); workers]),
            changed: watch::Sender::new(0),
        }
    }

    /// The generation that every worker has taken in.
    pub fn generation(&self) -> u64 {
        self.lock().iter().map(|worker| worker.generation).min().unwrap_or_default()
    }

    /// Addresses that could not be listened on, with the reason.
    pub fn failed(&self) -> BTreeMap<SocketAddr, String> {
        self.lock().iter().flat_map(|worker| worker.failed.clone()).collect()
    }

    /// Wakes when any of it changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn set(&self, worker: usize, generation: u64, failed: BTreeMap<SocketAddr, String>) {
        if let Some(slot) = self.lock().get_mut(worker) {
            *slot = WorkerListening { generation, failed };
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<WorkerListening>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The listeners of one worker.
#[derive(Default)]
pub struct Listeners {
    open: BTreeMap<(Purpose, SocketAddr), Accepting>,
    failed: BTreeMap<SocketAddr, String>,
}

struct Accepting(JoinHandle<()>);

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Listeners {
    /// Opens what is wanted and closes what is not. What can't be opened is tried again by the next call; whether
    /// that is needed is the answer.
    pub fn reconcile(&mut self, worker: &Rc<Worker>, snapshot: &Snapshot, peers: bool) -> bool {
        let mut wanted = wanted(snapshot);
        wanted.retain(|(purpose, _)| peers || !purpose.serves_peers());
        self.open.retain(|key, _| wanted.contains(key));
        self.failed.clear();
        for key in wanted {
            if !self.open.contains_key(&key) {
                self.open(worker, key);
            }
        }
        worker.shared.listening.set(worker.index, snapshot.generation, self.failed.clone());
        !self.failed.is_empty()
    }

    fn open(&mut self, worker: &Rc<Worker>, key: (Purpose, SocketAddr)) {
        let (purpose, address) = &key;
        match bind(*address, worker.shared.workers > 1) {
            Ok(listener) => {
                tracing::info!(?purpose, %address, "listening");
                let task = accept(worker.clone(), purpose.clone(), listener);
                self.open.insert(key, Accepting(tokio::task::spawn_local(task)));
            }
            Err(error) => {
                tracing::error!(?purpose, %address, %error, "can't listen; trying again every second");
                self.failed.insert(*address, error.to_string());
            }
        }
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    match bind_as(address, shared) {
        // A host without IPv6: any address means any IPv4 address.
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            bind_as(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), shared)
        }
        result => result,
    }
}

fn bind_as(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM.nonblocking().cloexec(),
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(worker: Rc<Worker>, purpose: Purpose, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                worker.metrics.accepted.inc();
                tune(&stream);
                match original(&purpose, &stream) {
                    Ok(original) => {
                        let accepted = Accepted { stream, peer, original };
                        worker.spawn(dispatch::serve(worker.clone(), purpose.clone(), accepted));
                    }
                    Err(error) => tracing::debug!(%error, %peer, "no original destination"),
                }
            }
            // The client gave up before we came: nothing is wrong with the listener.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                worker.metrics.accept_errors.inc();
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
}

fn original(purpose: &Purpose, stream: &TcpStream) -> io::Result<SocketAddr> {
    let address = match purpose {
        Purpose::CapturedInbound | Purpose::CapturedOutbound => capture::original_destination(stream)?,
        Purpose::Inbound(_) | Purpose::Outbound(_) | Purpose::Mesh => stream.local_addr()?,
    };
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
