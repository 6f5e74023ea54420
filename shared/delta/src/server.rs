//! The called end: gRPC over TLS with certificates that change while it runs, and bounds on everything.
//!
//! hyper is driven at connection level: tonic's own server reads its certificates once, and its connections have no
//! age that a stream hears of.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::ServiceExt;

use crate::released::Released;

/// Asked at each connection, so that renewed certificates and trust are used without a restart. ALPN is set here.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Bounds of a server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time, those that have not finished their handshake included.
    pub connections: usize,
    /// Calls at a time on one connection.
    pub streams: u32,
    /// A connection is closed after this, +-20 %, so that clients spread over replicas again.
    pub max_age: Duration,
    /// How long a drain may take; closes are spread over the first half.
    pub drain: Duration,
}

/// In the extensions of each request: the connection it came over.
#[derive(Debug, Clone)]
pub struct Connection {
    pub peer: SocketAddr,
    /// The peer's certificate chain, leaf first, as verified by the TLS configuration. Empty: it sent none.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Cancelled when the connection is to end (its age, a drain): streams say goodbye.
    pub closing: CancellationToken,
}

/// For the TLS handshake, and again for the first request: a connection that does nothing holds no place.
const OPENING: Duration = Duration::from_secs(10);

/// Streams have this long to say goodbye when their connection has reached its age.
const AGED: Duration = Duration::from_secs(10);

/// A ping after this much time without a frame...
const KEEPALIVE: Duration = Duration::from_secs(30);
/// ...which must be answered within this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What one caller may make this end hold unread, a stream and in all.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;

/// What is kept of a stream whose caller does not read.
const SEND_BUFFER: usize = 64 * 1024;

/// A token and the chain of a client certificate fit many times over.
const HEADERS: u32 = 32 * 1024;

/// Streams that were reset before they were served, at a time: more is an attack (CVE-2023-44487).
const PENDING_RESETS: usize = 20;

impl Connection {
    /// None only for requests that did not come through [`serve`].
    pub fn of<T>(request: &tonic::Request<T>) -> Option<&Connection> {
        request.extensions().get()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // 10,000 peers, each of which may be back before its old connection is known to be dead.
            connections: 20_000,
            streams: 32,
            max_age: Duration::from_mins(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves until `shutdown` is cancelled, then drains: no new connection, a goodbye on each stream, and after
/// [`Limits::drain`] the end.
pub async fn serve(
    listener: TcpListener,
    tls: TlsSource,
    routes: Routes,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server { tls, routes: routes.prepare(), limits, shutdown });
    let places = Arc::new(Semaphore::new(server.limits.connections));
    let connections = TaskTracker::new();
    while let Some((tcp, peer, place)) = server.accept(&listener, &places).await {
        connections.spawn(server.clone().connection(tcp, peer, place));
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(server.limits.drain, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "connections were cut at the end of the drain");
    }
}

struct Server {
    tls: TlsSource,
    routes: Routes,
    limits: Limits,
    shutdown: CancellationToken,
}

impl Server {
    /// The next connection, once there is a place for it. None: it is time to drain.
    async fn accept(
        &self,
        listener: &TcpListener,
        places: &Arc<Semaphore>,
    ) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok((tcp, peer)) => return Some((tcp, peer, place)),
                    Err(error) => {
                        // Out of descriptors, or a connection that was gone before it was accepted.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        self.shutdown.run_until_cancelled(next).await.flatten()
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        // Boxed, as is the session: what rests has no room for a handshake, and no second one for what was moved.
        let served = match Box::pin(self.handshake(tcp)).await {
            Ok(tls) => Box::pin(self.http2(Box::new(tls), peer)).await,
            Err(failure) => Err(failure),
        };
        if let Err(error) = served {
            tracing::debug!(%peer, error = meridian_telemetry::chain(&*error), "a connection has ended");
        }
        drop(place);
    }

    async fn handshake(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        // Updates are small and wait for each other's acknowledgement.
        let _ = tcp.set_nodelay(true);
        let mut config = ServerConfig::clone(&(self.tls)());
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.max_early_data_size = 0;
        // A resumed session keeps the client's certificate of its first handshake: it would outlive a revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let accept = TlsAcceptor::from(Arc::new(config)).accept(tcp).into_fallible();
        let accept = tokio::time::timeout(OPENING, accept);
        match self.shutdown.run_until_cancelled(accept).await {
            Some(Ok(Ok(tls))) => Ok(tls),
            Some(Ok(Err((error, tcp)))) => {
                linger(tcp).await;
                Err(error.into())
            }
            Some(Err(_)) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            None => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        }
    }

    async fn http2(&self, tls: Box<TlsStream<TcpStream>>, peer: SocketAddr) -> Result<(), Failure> {
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default().into();
        let connection = Connection { peer, certificates, closing: CancellationToken::new() };
        let closing = connection.closing.clone().drop_guard();
        let used = Arc::new(AtomicBool::new(false));
        let service = {
            let (routes, used) = (self.routes.clone(), used.clone());
            tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                used.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(connection.clone());
                let response = routes.clone().oneshot(request);
                async move { Ok::<_, Infallible>(response.await?.map(Released::new)) }
            })
        };
        let serving =
            builder(&self.limits).serve_connection(TokioIo::new(tls), TowerToHyperService::new(service));
        let mut serving = std::pin::pin!(serving);
        let first = async {
            tokio::time::sleep(OPENING).await;
            if used.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let (drained, wait) = tokio::select! {
            served = serving.as_mut() => return Ok(served?),
            () = first => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            () = tokio::time::sleep(jittered(self.limits.max_age)) => (AGED, Duration::ZERO),
            () = self.shutdown.cancelled() => {
                let drain = self.limits.drain;
                (drain, drain.mul_f64(rand::random_range(0.0..0.5)))
            }
        };
        // Until its turn comes it is served as before.
        if let Ok(served) = tokio::time::timeout(wait, serving.as_mut()).await {
            return Ok(served?);
        }
        drop(closing);
        serving.as_mut().graceful_shutdown();
        match tokio::time::timeout(drained, serving).await {
            Ok(served) => Ok(served?),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Closing with something unread resets the connection, and the peer never sees the alert that says why it was refused.
async fn linger(mut tcp: TcpStream) {
    let mut unread = [0; 1024];
    let read_on = async {
        tcp.shutdown().await?;
        for _ in 0..64 {
            if tcp.read(&mut unread).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), read_on).await;
}

fn builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(HEADERS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.8..1.2))
}
