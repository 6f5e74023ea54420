//! HTTP and HTTPS with bounds: a client that is slow, big or many is answered or cut, and never holds what others need.
//!
//! hyper's own header timer also runs while a kept-alive connection idles, and ends it without an answer; the version
//! detection of hyper-util has no timer at all. So the clock is in the stream below hyper: see [`guard`].

mod guard;

use guard::{Activity, Guarded};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// An HTTP/2 connection without a frame for so long is asked for a sign of life...
const PING: Duration = Duration::from_secs(30);
/// ...which must come within this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way at once on one HTTP/2 connection.
const STREAMS: u32 = 64;
/// Out of file descriptors: how long to leave them to those who have them.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
/// How long a client over the limit of connections may take to be told.
const REFUSAL: Duration = Duration::from_millis(100);

/// What one server grants its clients.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the first byte of a request to the end of its head (Kuma's `readHeaderTimeout`).
    pub header: Duration,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// From the head to the end of the body (Kuma's `readTimeout`).
    pub read: Duration,
    /// Without any progress of an answer that the client does not read (Kuma's `writeTimeout`).
    pub write: Duration,
    /// Between two requests on one connection (Kuma's `idleTimeout`).
    pub idle: Duration,
    /// Bytes of a body.
    pub body: usize,
    /// Bytes of a head.
    pub head: usize,
    /// Connections at once.
    pub connections: usize,
    /// For requests under way when the server stops.
    pub drain: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(1),
            handshake: Duration::from_secs(5),
            read: Duration::from_secs(10),
            write: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            body: 1 << 20,
            head: 32 << 10,
            connections: 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// A rustls configuration that may be replaced while the server runs: asked at each connection.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Who connected: in each request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Serves until `shutdown`, then lets requests end for [`Bounds::drain`].
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsSource>,
    router: axum::Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(bounds.connections));
    let tasks = TaskTracker::new();
    let router = router.layer(axum::Extension(bounds));
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                    continue;
                }
            },
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(%peer, limit = bounds.connections, "too many connections: refused one");
            tasks.spawn(refuse(stream, tls.is_some()));
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        tasks.spawn(async move {
            connection(stream, peer, tls, router, bounds, shutdown).await;
            drop(slot);
        });
    }
    tasks.close();
    // What is still there after that dies with the runtime.
    let _ = tokio::time::timeout(bounds.drain, tasks.wait()).await;
}

/// Over the limit: plaintext clients are told, at most for a moment; TLS ones see a closed connection.
async fn refuse(mut stream: TcpStream, encrypted: bool) {
    if !encrypted {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let _ = tokio::time::timeout(REFUSAL, stream.write_all(answer)).await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsSource>,
    router: axum::Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let Some(tls) = tls else {
        return requests(stream, peer, router, bounds, shutdown).await;
    };
    let handshake = TlsAcceptor::from(tls()).accept(stream);
    match tokio::time::timeout(bounds.handshake, handshake).await {
        Ok(Ok(stream)) => requests(stream, peer, router, bounds, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

async fn requests<S>(
    stream: S,
    peer: SocketAddr,
    router: axum::Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::default();
    let io = TokioIo::new(Guarded::new(stream, activity.clone(), bounds));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let busy = activity.begin();
        request.extensions_mut().insert(Peer(peer));
        let router = router.clone();
        async move {
            let response = match router.oneshot(request.map(axum::body::Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            Ok::<_, Infallible>(Response::map(response, |body| busy.until_sent(body)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(bounds.head.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(bounds.head).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT);
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
