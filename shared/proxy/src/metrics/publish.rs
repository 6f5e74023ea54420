//! Gives a sidecar's metrics to whom a policy names: keeps the ports that scrapers come to and the collectors that are
//! sent to equal to the configuration, on the control thread.
//!
//! Under capture a scraper's connection from outside is redirected to a worker like any other. The worker knows by where
//! it was going that it is none of the mesh's, and hands it over here ([`Scrapes::hand_over`]). What comes from the host itself is not
//! redirected, so the ports are listened on either way.

use super::{
    gather::{AskOwn, Gatherer, Publication},
    otlp,
};
use crate::{listener::Accepted, shared::Shared, snapshot::Snapshot};
use meridian_pki::CertificateFiles;
use meridian_proxy_config::metrics::{OpenTelemetry, ScrapeTls};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

mod security;
mod serve;

use security::Security;

/// A port that another process has is tried again after so long: nobody says when it is free.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// Out of file descriptors: how long to leave them to those who have them.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);
/// Connections of scrapers at once. A few servers scrape, each with one connection.
const MAX_CONNECTIONS: usize = 64;
/// Scrapes under way at once; others wait for them, within their time. Each holds all applications' pages.
const GATHERED_AT_ONCE: usize = 2;
/// Connections that workers have handed over and that are not taken yet.
const HANDED: usize = 16;

/// What workers and the control thread share of this.
pub struct Scrapes {
    handing: mpsc::Sender<Handed>,
    /// Until they are followed.
    handed: Mutex<Option<mpsc::Receiver<Handed>>>,
    /// What can't be done, by the port, or the collector and the interval of the one that sends to it.
    ports: Mutex<BTreeMap<SocketAddr, String>>,
    collectors: Mutex<BTreeMap<(String, u64), String>>,
    changed: watch::Sender<u64>,
}

/// A connection that was captured on its way to a port of metrics.
struct Handed {
    stream: std::net::TcpStream,
    original: SocketAddr,
}

impl Default for Scrapes {
    fn default() -> Self {
        let (handing, handed) = mpsc::channel(HANDED);
        Self {
            handing,
            handed: Mutex::new(Some(handed)),
            ports: Mutex::default(),
            collectors: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Scrapes {
    /// Takes a connection from a worker. Where too many wait, it ends.
    pub fn hand_over(&self, accepted: Accepted) {
        let Accepted { stream, original, peer } = accepted;
        match stream.into_std().map(|stream| self.handing.try_send(Handed { stream, original })) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::debug!(%peer, "too many scrapers"),
            Err(error) => tracing::debug!(%peer, %error, "a scraper's connection"),
        }
    }

    /// Ports that could not be opened, and collectors that take nothing, with the reason.
    pub fn problems(&self) -> Vec<String> {
        let ports = lock(&self.ports);
        let ports = ports.iter().map(|(address, reason)| format!("no metrics at {address}: {reason}"));
        let collectors = lock(&self.collectors);
        let collectors =
            collectors.iter().map(|((name, _), reason)| format!("no metrics to {name}: {reason}"));
        ports.chain(collectors).collect()
    }

    /// Wakes when [`Scrapes::problems`] changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn set_ports(&self, failed: BTreeMap<SocketAddr, String>) {
        let mut known = lock(&self.ports);
        if *known != failed {
            *known = failed;
            self.changed.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn set_collector(&self, key: &(String, u64), failed: Option<String>) {
        let mut known = lock(&self.collectors);
        if known.get(key) != failed.as_ref() {
            match failed {
                Some(failed) => drop(known.insert(key.clone(), failed)),
                None => drop(known.remove(key)),
            }
            self.changed.send_modify(|count| *count += 1);
        }
    }
}

/// Gives metrics as the configuration says, until dropped. `files`: the certificate of ports that are to have a provided one.
pub async fn run(shared: Arc<Shared>, own: AskOwn, files: Option<CertificateFiles>) {
    let Some(mut handed) = lock(&shared.scrapes.handed).take() else { return };
    let gatherer = Gatherer { shared: shared.clone(), own, started: std::time::Instant::now() };
    let mut changes = shared.snapshots.subscribe();
    let mut publisher = Publisher {
        publication: watch::Sender::new(None),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        gathering: Arc::new(Semaphore::new(GATHERED_AT_ONCE)),
        gatherer,
        files: files.map(Arc::new),
        ports: BTreeMap::new(),
        collectors: BTreeMap::new(),
    };
    loop {
        let failed = publisher.follow(&shared.snapshots.load());
        let again = !failed.is_empty();
        let then = tokio::time::Instant::now() + BIND_AGAIN;
        shared.scrapes.set_ports(failed);
        let is_over = loop {
            tokio::select! {
                changed = changes.changed() => break changed.is_err(),
                Some(handed) = handed.recv() => publisher.take(handed),
                () = tokio::time::sleep_until(then), if again => break false,
            }
        };
        if is_over {
            return;
        }
    }
}

struct Publisher {
    publication: watch::Sender<Option<Arc<Publication>>>,
    connections: Arc<Semaphore>,
    gathering: Arc<Semaphore>,
    gatherer: Gatherer,
    files: Option<Arc<CertificateFiles>>,
    ports: BTreeMap<SocketAddr, Port>,
    collectors: BTreeMap<OpenTelemetry, AbortOnDropHandle<()>>,
}

/// A port that scrapers may come to. Dropped, it is closed, and so are its connections.
struct Port {
    tls: ScrapeTls,
    security: Security,
    /// `None`: it could not be listened on. Captured connections reach it all the same.
    accepting: Option<AbortHandle>,
    closing: CancellationToken,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.closing.cancel();
        self.accepting.iter().for_each(AbortHandle::abort);
    }
}

impl Publisher {
    /// Opens and closes what a snapshot wants; what could not be opened is the answer.
    fn follow(&mut self, snapshot: &Snapshot) -> BTreeMap<SocketAddr, String> {
        let publication = snapshot.metrics.clone().filter(|_| snapshot.proxy.is_some());
        self.publication.send_if_modified(|now| {
            let same = match (&*now, &publication) {
                (Some(now), Some(next)) => Arc::ptr_eq(now, next),
                (None, None) => true,
                _ => false,
            };
            now.clone_from(&publication);
            !same
        });
        let (wanted, mut failed) = wanted(snapshot);
        self.ports.retain(|address, port| wanted.get(address) == Some(&port.tls));
        for (address, tls) in wanted {
            if let Err(reason) = self.keep_open(address, tls) {
                failed.insert(address, reason);
            }
        }
        let collectors = publication.iter().flat_map(|it| &it.config.open_telemetry);
        let collectors: BTreeSet<&OpenTelemetry> = collectors.collect();
        self.collectors.retain(|collector, _| collectors.contains(collector));
        for collector in collectors {
            if !self.collectors.contains_key(collector) {
                let sending =
                    otlp::send(collector.clone(), self.gatherer.clone(), self.publication.subscribe());
                let sending = AbortOnDropHandle::new(tokio::spawn(sending));
                self.collectors.insert(collector.clone(), sending);
            }
        }
        failed
    }

    fn keep_open(&mut self, address: SocketAddr, tls: ScrapeTls) -> Result<(), String> {
        let security = match Security::new(tls, &self.gatherer.shared, self.files.as_ref()) {
            Ok(security) => security,
            Err(reason) => {
                self.ports.remove(&address);
                return Err(reason);
            }
        };
        let port = self.ports.entry(address).or_insert_with(|| {
            let closing = CancellationToken::new();
            Port { tls, security, accepting: None, closing }
        });
        if port.accepting.is_some() {
            return Ok(());
        }
        let listener = bind(address).map_err(|error| error.to_string())?;
        tracing::info!(%address, ?tls, "metrics");
        let (security, closing) = (port.security.clone(), port.closing.clone());
        let scrapers = self.scrapers(address.port(), security, closing);
        let accepting = tokio::spawn(accept(listener, scrapers));
        if let Some(port) = self.ports.get_mut(&address) {
            port.accepting = Some(accepting.abort_handle());
        }
        Ok(())
    }

    fn scrapers(&self, port: u16, security: Security, closing: CancellationToken) -> serve::Scrapers {
        serve::Scrapers {
            port,
            security,
            closing,
            publication: self.publication.subscribe(),
            gatherer: self.gatherer.clone(),
            connections: self.connections.clone(),
            gathering: self.gathering.clone(),
        }
    }

    /// A captured connection, if its port is still there.
    fn take(&self, handed: Handed) {
        let Handed { stream, original } = handed;
        let mut ports = self.ports.iter();
        let Some((_, port)) = ports.find(|(address, _)| is_at(**address, original)) else { return };
        match TcpStream::from_std(stream) {
            Ok(stream) => {
                self.scrapers(original.port(), port.security.clone(), port.closing.clone()).begin(stream)
            }
            Err(error) => tracing::debug!(%error, "a scraper's connection"),
        }
    }
}

/// Whether a captured connection was going to a port of metrics, and not to an inbound.
pub fn is_scrape(snapshot: &Snapshot, original: SocketAddr) -> bool {
    wanted(snapshot).0.into_keys().any(|address| is_at(address, original))
}

fn is_at(address: SocketAddr, original: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() == original.port() && (ip.is_unspecified() || ip == original.ip().to_canonical())
}

/// Ports that scrapers are to come to; and those that they can't, since the mesh's own traffic has them, or it is not clear
/// how they are secured.
fn wanted(snapshot: &Snapshot) -> (BTreeMap<SocketAddr, ScrapeTls>, BTreeMap<SocketAddr, String>) {
    let (mut wanted, mut failed) = (BTreeMap::new(), BTreeMap::new());
    let Some(publication) = snapshot.metrics.as_ref().filter(|_| snapshot.proxy.is_some()) else {
        return (wanted, failed);
    };
    let explicit = |address: SocketAddr| {
        let mut binds = snapshot.outbounds.values().filter_map(|outbound| outbound.config.bind);
        binds.any(|bind| bind.port() == address.port())
    };
    for backend in &publication.config.prometheus {
        let address = SocketAddr::new(publication.config.address, backend.port.get());
        if let Some(inbound) = snapshot.inbounds.values().find(|it| it.config.listen.port() == address.port())
        {
            failed.insert(address, format!("the inbound {} has it", inbound.config.name));
        } else if explicit(address) {
            failed.insert(address, "an outbound has it".to_owned());
        } else if *wanted.entry(address).or_insert(backend.tls) != backend.tls {
            failed.insert(address, "its backends differ in tls.mode".to_owned());
        }
    }
    wanted.retain(|address, _| !failed.contains_key(address));
    (wanted, failed)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let kind = socket2::Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(MAX_CONNECTIONS).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, scrapers: serve::Scrapers) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => scrapers.begin(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "metrics");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
