//! The dialling end: one connection for both directions, made anew with back-off when it is lost.
//!
//! TLS is our own and not tonic's, which reads PEM once: certificates and trust change while this runs. A connection is
//! dialled and verified before tonic sees it, so nothing (no token) is written to a server that is not verified, and
//! tonic never reconnects by itself.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use meridian_proto::delta::sync_client::SyncClient;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::data::MAX_MESSAGE;
use crate::monitor::{Failure, Monitored};
use crate::peer::Peer;
use crate::protocol::SILENCE;
use crate::publish::{Pace, Publisher, publish};
use crate::stream::{End, Inbound, Outbound, outbound};
use crate::subscribe::{Sink, Subscriber, subscribe};

/// Asked at each connection, so that renewed certificates are used without a restart. ALPN is set here.
pub type TlsSource = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// Asked at each call. None: no token is sent (the client certificate says who this is).
pub type TokenSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// The first reconnect comes within this, each further one within twice the time before...
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// ...up to this: clients of a control plane that comes back spread over half a minute at most.
const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// For TCP, TLS and HTTP/2 together.
const CONNECT: Duration = Duration::from_secs(10);

/// For TCP to one address of the name, so that one that swallows packets leaves time for the others.
const REACH: Duration = Duration::from_secs(3);

/// A ping after this much time without a frame...
const KEEPALIVE: Duration = Duration::from_secs(30);
/// ...which must be answered within this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Two of the messages that publishers cut, so that one is on its way while the other is read.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;

/// Where and how to connect. Clones share the connection.
#[derive(Clone)]
pub struct Connector {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    tls: TlsSource,
    token: TokenSource,
    link: tokio::sync::Mutex<Option<Link>>,
    links: AtomicU64,
    /// The pulling direction has heard something.
    pulse: watch::Sender<()>,
}

/// `https://HOST:PORT` or `HOST:PORT`. The host is what the server's certificate must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub server_name: ServerName<'static>,
}

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no address of a control plane: {reason}; write https://HOST:PORT")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{address} could not be resolved")]
    Resolve { address: Address, source: io::Error },
    #[error("{address} could not be reached")]
    Reach { address: Address, source: io::Error },
    #[error("the server at {address} could not be verified")]
    Tls { address: Address, source: io::Error },
    #[error("no connection to {address} within 10 s")]
    Timeout { address: Address },
    #[error("the connection to {address} failed")]
    Http { address: Address, source: tonic::transport::Error },
}

/// A verified connection whose calls carry the token: for the services beside the streams (identity).
pub type Authenticated = tonic::service::interceptor::InterceptedService<Channel, Bearer>;

/// Puts the token into each call.
#[derive(Clone)]
pub struct Bearer {
    token: TokenSource,
}

/// One connection. It ends when nothing uses it any more.
#[derive(Clone)]
struct Link {
    number: u64,
    channel: Channel,
    /// Cancelled when the transport is gone.
    gone: CancellationToken,
}

/// A stream that stays up for this long starts the back-off anew.
const STEADY: Duration = SILENCE;

/// What runs over a connection.
trait Direction: Send {
    fn name(&self) -> &'static str;
    fn peer(&self) -> &Peer;
    fn stream(
        &mut self,
        service: Authenticated,
        closing: CancellationToken,
        pulse: &watch::Sender<()>,
    ) -> impl Future<Output = End> + Send;
}

impl<S: Sink> Direction for Subscriber<S> {
    fn name(&self) -> &'static str {
        "pull"
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    async fn stream(
        &mut self,
        service: Authenticated,
        closing: CancellationToken,
        pulse: &watch::Sender<()>,
    ) -> End {
        let (sender, receiver) = outbound();
        let inbound = responses(async move { client(service).pull(requests(receiver)).await });
        subscribe(self, inbound, sender, closing, Some(pulse)).await
    }
}

impl Direction for Publisher {
    fn name(&self) -> &'static str {
        "push"
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    async fn stream(
        &mut self,
        service: Authenticated,
        closing: CancellationToken,
        pulse: &watch::Sender<()>,
    ) -> End {
        let (sender, receiver) = outbound();
        let inbound = responses(async move { client(service).push(requests(receiver)).await });
        publish(self, inbound, sender, closing, Pace::With(pulse.subscribe())).await
    }
}

impl Connector {
    pub fn new(address: Address, tls: TlsSource, token: TokenSource) -> Connector {
        Connector {
            inner: Arc::new(Inner {
                address,
                tls,
                token,
                link: tokio::sync::Mutex::new(None),
                links: AtomicU64::new(0),
                pulse: watch::Sender::new(()),
            }),
        }
    }

    pub fn address(&self) -> &Address {
        &self.inner.address
    }

    /// The present connection, or a new one. One attempt, no back-off.
    pub async fn channel(&self) -> Result<Authenticated, ConnectError> {
        self.link().await.map(|link| self.authenticated(&link))
    }

    /// Makes the next call dial anew (with a renewed certificate, say). Streams that run go on where they are.
    pub async fn renew(&self) {
        self.inner.link.lock().await.take();
    }

    /// Subscribes, over as many connections as it takes, until `closing` is cancelled; then says goodbye.
    pub async fn pull<S: Sink>(&self, subscriber: &mut Subscriber<S>, closing: CancellationToken) {
        self.keep(subscriber, closing).await;
    }

    /// Publishes, over as many connections as it takes, until `closing` is cancelled; then says goodbye.
    pub async fn push(&self, publisher: &Publisher, closing: CancellationToken) {
        self.keep(&mut publisher.clone(), closing).await;
    }

    /// One stream after another.
    async fn keep(&self, direction: &mut impl Direction, closing: CancellationToken) {
        let mut backoff = Backoff::default();
        while !closing.is_cancelled() {
            let began = tokio::time::Instant::now();
            let end = match closing.run_until_cancelled(self.link()).await {
                None => return,
                Some(Ok(link)) => {
                    let end =
                        direction.stream(self.authenticated(&link), closing.clone(), &self.inner.pulse).await;
                    self.retire(&link).await;
                    end
                }
                Some(Err(error)) => {
                    let lost = error.into();
                    direction.peer().failed(&lost);
                    End::Lost(lost)
                }
            };
            self.log(&end, direction.name());
            backoff.wait(&end, began.elapsed(), &closing).await;
        }
    }

    /// The connection of a stream that has ended serves no further stream: whether it is lost, drains or was refused, a
    /// new one is as cheap and always right. What else runs on it goes on.
    async fn retire(&self, used: &Link) {
        self.inner.link.lock().await.take_if(|link| link.number == used.number);
    }

    fn log(&self, end: &End, direction: &str) {
        let server = &self.inner.address;
        match end {
            End::Closed => {}
            End::Goodbye(reason) => {
                tracing::info!(%server, direction, reason, "the server closed the stream")
            }
            End::Lost(lost) => {
                let reason = meridian_telemetry::chain(lost);
                tracing::warn!(%server, direction, reason, "the stream to the server is down");
            }
        }
    }

    fn authenticated(&self, link: &Link) -> Authenticated {
        let bearer = Bearer { token: self.inner.token.clone() };
        tonic::service::interceptor::InterceptedService::new(link.channel.clone(), bearer)
    }

    async fn link(&self) -> Result<Link, ConnectError> {
        // Held while dialling: whoever else wants a connection waits for this one instead of making another.
        let mut present = self.inner.link.lock().await;
        if let Some(link) = present.as_ref().filter(|link| !link.gone.is_cancelled()) {
            return Ok(link.clone());
        }
        *present = None;
        let address = &self.inner.address;
        // Boxed: the handshake's state would be carried by each stream for as long as it lives.
        let link = tokio::time::timeout(CONNECT, Box::pin(self.dial()))
            .await
            .map_err(|_| ConnectError::Timeout { address: address.clone() })??;
        *present = Some(link.clone());
        Ok(link)
    }

    async fn dial(&self) -> Result<Link, ConnectError> {
        let address = &self.inner.address;
        let tcp = reach(address).await?;
        let mut config = ClientConfig::clone(&(self.inner.tls)());
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Early data could carry a token before the server has proved who it is.
        config.enable_early_data = false;
        // A resumed session would prove nothing of today's certificates.
        config.resumption = Resumption::disabled();
        let tls = TlsConnector::from(Arc::new(config))
            .connect(address.server_name.clone(), tcp)
            .await
            .map_err(|source| ConnectError::Tls { address: address.clone(), source })?;
        let gone = CancellationToken::new();
        let channel = http2(address, tls, gone.clone().drop_guard())
            .await
            .map_err(|source| ConnectError::Http { address: address.clone(), source })?;
        Ok(Link { number: self.inner.links.fetch_add(1, Ordering::Relaxed), channel, gone })
    }
}

fn client(service: Authenticated) -> SyncClient<Authenticated> {
    SyncClient::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

fn requests<M: Send + 'static>(receiver: Outbound<M>) -> impl Stream<Item = M> + Send + 'static {
    // A caller has no way to say why it stops: it just does.
    tokio_stream::StreamExt::map_while(receiver, Result::ok)
}

/// The answers of a call that is only being made: the stream begins at once, and a call that fails is its first item.
fn responses<M: Send + 'static>(
    call: impl Future<Output = Result<tonic::Response<tonic::Streaming<M>>, tonic::Status>> + Send + 'static,
) -> Inbound<M> {
    futures::stream::once(async move { call.await.map(tonic::Response::into_inner) })
        .flat_map(|answer| match answer {
            Ok(stream) => stream.boxed(),
            Err(status) => futures::stream::once(std::future::ready(Err(status))).boxed(),
        })
        .boxed()
}

/// Tries each address of the name in turn, at most [`REACH`] each.
async fn reach(address: &Address) -> Result<TcpStream, ConnectError> {
    let resolved = tokio::net::lookup_host((address.host.as_str(), address.port))
        .await
        .map_err(|source| ConnectError::Resolve { address: address.clone(), source })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for socket in resolved {
        match tokio::time::timeout(REACH, TcpStream::connect(socket)).await {
            Ok(Ok(stream)) => {
                // Updates are small and wait for each other's acknowledgement.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(ConnectError::Reach { address: address.clone(), source: last })
}

/// HTTP/2 over a connection that exists: tonic's connector hands it out once.
async fn http2(
    address: &Address,
    tls: TlsStream<TcpStream>,
    guard: DropGuard,
) -> Result<Channel, tonic::transport::Error> {
    let authority = address.authority();
    // The origin is what the server sees. The other one is only a name to tonic, which would insist on its own TLS.
    let origin = format!("https://{authority}").parse().unwrap_or_default();
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .origin(origin)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let failure = Failure::default();
    let mut once = Some(TokioIo::new(Monitored::new(tls, failure.clone(), guard)));
    let connector = tower::service_fn(move |_| {
        // Asked a second time, when the first is gone.
        std::future::ready(once.take().ok_or_else(|| failure.to_error()))
    });
    endpoint.connect_with_connector(connector).await
}

#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    async fn wait(&mut self, end: &End, lived: Duration, closing: &CancellationToken) {
        let asked = matches!(end, End::Goodbye(_)) && lived >= Duration::from_secs(1);
        if asked || lived >= STEADY {
            self.failures = 0;
        }
        let most = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_LAST);
        self.failures = self.failures.saturating_add(1);
        let wait = most.mul_f64(rand::random_range(0.0..1.0));
        closing.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(token) = (self.token)() {
            let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| tonic::Status::unauthenticated("the token is no valid header value"))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

impl Address {
    /// As in a URL: IPv6 addresses in brackets.
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| AddressError { text: text.to_owned(), reason };
        let rest = match text.split_once("://") {
            None => text,
            Some(("https", rest)) => rest,
            Some(_) => return Err(error("only https is spoken")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| error("the port is missing"))?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| error("the port is no number"))?;
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').ok_or_else(|| error("the bracket is not closed"))?,
            None if host.contains(':') => return Err(error("an IPv6 address needs brackets")),
            None => host,
        };
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| error("the host is neither a DNS name nor an IP address"))?;
        Ok(Address { host: host.to_owned(), port, server_name })
    }
}
