//! HTTP entries: every request is held to the entry, not only the first.
//!
//! One caller's connection has connections to the outside of its own, so that no two callers ever share one, and the
//! end of a grant is the end of both. Their address is judged once for each of them.

use super::{
    authorise::Denied,
    carry::{Errand, Standing},
    dial::{DialError, Way, chain, dial},
    originate::Application,
};
use crate::{
    codec::{LastAnswer, idle_ending, in_grpc, is_grpc},
    copy,
    denial::Reason,
    host::{Asked, HostError},
    io::{Reset, Stream},
    metrics::TrafficCell,
    refuse::{LocalExecutor, answer, forbidden},
    worker::{Ending, Worker},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body_util::{Either, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use meridian_proxy_config::Host;
use std::{cell::RefCell, convert::Infallible, net::IpAddr, rc::Rc, time::Duration};
use tokio_util::sync::CancellationToken;

type Body = Either<Incoming, Full<Bytes>>;

/// A request's head must be here within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// A response's head must be here within this (Kuma's request time-out).
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// Request heads beyond this are answered 431.
const MAX_HEADERS: usize = 64 * 1024;
/// Streams of one caller at a time.
const MAX_STREAMS: u32 = 100;
/// Idle HTTP/1.1 connections kept for one caller's connection.
const MAX_IDLE: usize = 4;

/// Serves a granted caller's requests.
pub(super) async fn serve<S: Stream + Send>(
    worker: &Rc<Worker>,
    client: S,
    reset: Reset,
    errand: Errand,
    standing: Standing,
) {
    let ended = CancellationToken::new();
    let site = Rc::new(Site {
        worker: worker.clone(),
        errand,
        standing: Rc::new(standing),
        upstreams: RefCell::default(),
        resets: RefCell::default(),
        ended: ended.clone(),
    });
    site.cell(|cell| cell.connections_opened.inc());
    let _end = ended.drop_guard();
    let last = LastAnswer::default();
    let service = service_fn(|request: Request<Incoming>| {
        let site = site.clone();
        let version = request.version();
        last.mark(version, async move { Ok::<_, Infallible>(site.answer(request).await) })
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADERS)
        .half_close(true)
        .auto_date_header(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .auto_date_header(false);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(client), service);
    tokio::pin!(connection);
    let ending = tokio::select! {
        biased;
        ending = site.standing.tracked.ending() => Some(ending),
        _ = connection.as_mut() => None,
    };
    if ending == Some(Ending::Drain) {
        last.begin();
        let finish = async {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = idle_ending(&site.standing.tracked) => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = connection.as_mut().await;
        };
        tokio::select! {
            biased;
            _ = site.standing.tracked.reset() => {}
            () = finish => {}
        }
    }
    if let Some(reason) = site.standing.tracked.must_reset() {
        site.errand.report(worker, &Denied::new(reason, site.errand.key()));
        reset.arm();
        site.resets.borrow().iter().for_each(Reset::arm);
    }
    site.cell(|cell| cell.connections_closed.inc());
}

/// What one caller's connection has.
struct Site {
    worker: Rc<Worker>,
    errand: Errand,
    standing: Rc<Standing>,
    upstreams: RefCell<Upstreams>,
    resets: RefCell<Vec<Reset>>,
    /// Ends the tasks of its upstream connections.
    ended: CancellationToken,
}

#[derive(Default)]
struct Upstreams {
    idle: Vec<(http1::SendRequest<Body>, Place)>,
    multiplexed: Option<(http2::SendRequest<Body>, Place)>,
}

/// Where an upstream connection leads.
#[derive(Clone)]
struct Place {
    host: Host,
    port: u16,
    tls: bool,
}

enum Sender {
    Http1(http1::SendRequest<Body>, Place),
    Http2(http2::SendRequest<Body>, Place),
}

/// Why a request got no answer from the outside.
enum Failure {
    Denied(Denied),
    /// Malformed: the client's fault.
    Bad(String),
    Upstream(String),
    Timeout,
}

impl Site {
    fn cell(&self, count: impl FnOnce(&TrafficCell)) {
        if let Some(entry) = &self.errand.entry {
            count(entry.traffic.cell(self.worker.index));
        }
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<Body> {
        let asked = request_host(&request).map_or_else(|_| String::new(), |(asked, _)| asked.to_string());
        let grpc = is_grpc(request.headers());
        let failure = match self.clone().forward(request).await {
            Ok(response) => return response,
            Err(failure) => failure,
        };
        let response = match failure {
            Failure::Denied(denied) => {
                self.errand.report_as(&self.worker, &asked, &denied);
                forbidden(&denied.reason)
            }
            Failure::Bad(message) => answer(StatusCode::BAD_REQUEST, None, message),
            Failure::Timeout => {
                answer(StatusCode::GATEWAY_TIMEOUT, None, "the destination did not answer\n".into())
            }
            Failure::Upstream(message) => {
                tracing::info!(entry = self.errand.key(), message, "the way out failed");
                self.cell(|cell| cell.connect_failures.inc());
                answer(StatusCode::SERVICE_UNAVAILABLE, None, "the destination can't be reached\n".into())
            }
        };
        let response = if grpc { in_grpc(response, |_| Full::default()) } else { response };
        response.map(Either::Right)
    }

    async fn forward(self: Rc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        if request.method() == Method::CONNECT {
            return Err(Failure::Denied(Denied::new(Reason::WRONG_PROTOCOL, self.errand.key())));
        }
        let (asked, port) =
            request_host(&request).map_err(|error| Failure::Bad(format!("Host: {error}\n")))?;
        if !self.errand.holds(&asked) || port.is_some_and(|port| port != self.errand.port) {
            return Err(Failure::Denied(Denied::new(Reason::NAME_MISMATCH, self.errand.key())));
        }
        let upgrade = wants_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let sender = self.sender(upgrade.is_some()).await?;
        let request = rewrite(request, &asked, port, &sender, upgrade.is_some())
            .map_err(|error| Failure::Bad(format!("{error}\n")))?;
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, self.clone().send(sender, request));
        let mut response = response.await.map_err(|_| Failure::Timeout)??;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade else {
                return Err(Failure::Upstream("an upgrade that nobody asked for".to_owned()));
            };
            let server = hyper::upgrade::on(&mut response);
            self.relay(client, server);
        } else {
            strip_hop_by_hop(response.headers_mut(), false);
        }
        Ok(response.map(Either::Left))
    }

    async fn send(
        self: Rc<Self>,
        sender: Sender,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failure> {
        let failed = |error: hyper::Error| Failure::Upstream(chain(&error));
        match sender {
            Sender::Http2(mut sender, _) => sender.send_request(request).await.map_err(failed),
            Sender::Http1(mut sender, place) => {
                let response = sender.send_request(request).await.map_err(failed)?;
                // Ready again when the response's body has gone through.
                let site = Rc::downgrade(&self);
                let ended = self.ended.clone();
                self.worker.spawn(async move {
                    let ready = tokio::select! {
                        ready = sender.ready() => ready.is_ok(),
                        () = ended.cancelled() => false,
                    };
                    if let (true, Some(site)) = (ready, site.upgrade()) {
                        let mut upstreams = site.upstreams.borrow_mut();
                        if upstreams.idle.len() < MAX_IDLE {
                            upstreams.idle.push((sender, place));
                        }
                    }
                });
                Ok(response)
            }
        }
    }

    /// A connection that can take a request: an idle one, or a new one.
    async fn sender(self: &Rc<Self>, upgrade: bool) -> Result<Sender, Failure> {
        {
            let mut upstreams = self.upstreams.borrow_mut();
            if let Some((sender, place)) =
                upstreams.multiplexed.as_ref().filter(|(s, _)| !upgrade && !s.is_closed())
            {
                return Ok(Sender::Http2(sender.clone(), place.clone()));
            }
            while let Some((sender, place)) = upstreams.idle.pop() {
                if sender.is_ready() {
                    return Ok(Sender::Http1(sender, place));
                }
            }
        }
        let http2 =
            !upgrade && self.errand.entry.as_ref().is_some_and(|entry| entry.config.protocol.is_http2());
        let application = if http2 { Application::Http2 } else { Application::Http1 };
        let way = tokio::select! {
            way = dial(&self.worker, &self.errand, application) => way.map_err(|error| match error {
                DialError::Denied(denied) => Failure::Denied(denied),
                DialError::Failed(message) => Failure::Upstream(message),
            })?,
            reason = self.standing.tracked.reset() => {
                return Err(Failure::Denied(Denied::new(reason, self.errand.key())));
            }
        };
        self.open(way, http2).await
    }

    async fn open(self: &Rc<Self>, way: Way, http2: bool) -> Result<Sender, Failure> {
        self.standing.pin(way.address.ip());
        self.remember(way.transport.reset());
        let failed = |error: hyper::Error| Failure::Upstream(chain(&error));
        let tls = matches!(way.transport, crate::io::Transport::Tls(_));
        let place = Place { host: way.host, port: way.port, tls };
        let io = TokioIo::new(way.transport);
        let ended = self.ended.clone();
        // Without TLS there is nobody to ask: what the entry declares is spoken.
        if way.http2 || (http2 && !tls) {
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(30))
                .handshake(io)
                .await
                .map_err(failed)?;
            self.worker.spawn(async move {
                tokio::select! { _ = connection => {}, () = ended.cancelled() => {} }
            });
            self.upstreams.borrow_mut().multiplexed = Some((sender.clone(), place.clone()));
            return Ok(Sender::Http2(sender, place));
        }
        let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(failed)?;
        self.worker.spawn(async move {
            let connection = connection.with_upgrades();
            tokio::select! { _ = connection => {}, () = ended.cancelled() => {} }
        });
        Ok(Sender::Http1(sender, place))
    }

    /// For the end of the grant. Those that ended by themselves are forgotten: a caller may need many.
    fn remember(&self, upstream: Reset) {
        let mut resets = self.resets.borrow_mut();
        resets.retain(Reset::is_of_open_socket);
        resets.push(upstream);
    }

    /// Bytes both ways after an upgrade, for as long as the grant stands.
    fn relay(self: Rc<Self>, client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade) {
        let worker = self.worker.clone();
        worker.spawn(async move {
            let Ok((client, server)) = tokio::try_join!(client, server) else { return };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            let idle = TrafficCell::default();
            let entry = self.errand.entry.as_ref();
            let cell = entry.map_or(&idle, |entry| entry.traffic.cell(self.worker.index));
            tokio::select! {
                biased;
                _ = self.standing.tracked.reset() => self.resets.borrow().iter().for_each(Reset::arm),
                _ = copy::bidirectional(&mut client, &mut server, cell) => {}
            }
        });
    }
}

/// What the request names: the one Host, or `:authority`; where there are two, they must agree.
fn request_host<B>(request: &Request<B>) -> Result<(Asked, Option<u16>), HostError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(HostError::Invalid);
    }
    let header = header.map(|value| value.to_str().map_err(|_| HostError::Invalid)).transpose()?;
    let authority = request.uri().authority().map(uri::Authority::as_str);
    match (header.map(Asked::from_authority).transpose()?, authority.map(Asked::from_authority).transpose()?)
    {
        (Some(header), Some(authority)) if header != authority => Err(HostError::Invalid),
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => Err(HostError::Empty),
    }
}

fn wants_upgrade<B>(request: &Request<B>) -> bool {
    let named = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade")))
    };
    request.version() == Version::HTTP_11
        && crate::codec::upgrades_out_of_http(request.headers())
        && request.headers().get_all(header::CONNECTION).iter().any(named)
}

/// The request as the outside is to see it.
fn rewrite(
    request: Request<Incoming>,
    asked: &Asked,
    port: Option<u16>,
    sender: &Sender,
    upgrade: bool,
) -> Result<Request<Body>, ::http::Error> {
    let (mut parts, body) = request.into_parts();
    strip_hop_by_hop(&mut parts.headers, upgrade);
    let place = match sender {
        Sender::Http1(_, place) | Sender::Http2(_, place) => place,
    };
    let authority = authority(asked, port, place);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    match sender {
        Sender::Http1(..) => {
            parts.version = Version::HTTP_11;
            parts.uri = Uri::builder().path_and_query(path).build()?;
            parts.headers.insert(header::HOST, HeaderValue::from_str(&authority)?);
        }
        Sender::Http2(..) => {
            parts.version = Version::HTTP_2;
            parts.headers.remove(header::HOST);
            let scheme = if place.tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
            parts.uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()?;
        }
    }
    Ok(Request::from_parts(parts, Either::Left(body)))
}

/// What the client asked for; where that is another name than the endpoint's (a name of the mesh, say, that the
/// outside has never heard of), the endpoint's, as Kuma does.
fn authority(asked: &Asked, port: Option<u16>, place: &Place) -> String {
    let (name, port) = match (&place.host, asked) {
        (Host::Name(host), Asked::Name(name)) if !host.eq_ignore_ascii_case(name.as_str()) => {
            let default = if place.tls { 443 } else { 80 };
            (host.clone(), (place.port != default).then_some(place.port))
        }
        (_, Asked::Ip(IpAddr::V6(ip))) => (format!("[{ip}]"), port),
        (_, asked) => (asked.to_string(), port),
    };
    port.map_or(name.clone(), |port| format!("{name}:{port}"))
}

/// Headers that mean this connection only (RFC 9110, 7.6.1), and those that Connection names.
fn strip_hop_by_hop(headers: &mut ::http::HeaderMap, upgrade: bool) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| name != "upgrade" && !name.is_empty())
        .collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in ["keep-alive", "proxy-connection", "transfer-encoding"] {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|value| value != "trailers") {
        headers.remove(header::TE);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(uri: &str, hosts: &[&str]) -> Result<(String, Option<u16>), HostError> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request_host(&request.body(()).unwrap()).map(|(asked, port)| (asked.to_string(), port))
    }

    #[test]
    fn one_host_and_no_other() {
        assert_eq!(host("/", &["A.Example:8080"]), Ok(("a.example".into(), Some(8080))));
        assert_eq!(host("http://a.example/x", &[]), Ok(("a.example".into(), None)));
        assert_eq!(host("http://a.example/x", &["a.example"]), Ok(("a.example".into(), None)));
        assert!(host("http://a.example/x", &["b.example"]).is_err());
        assert!(host("/", &["a.example", "a.example"]).is_err());
        assert!(host("/", &[]).is_err());
        assert!(host("/", &["a.example, b.example"]).is_err());
    }

    #[test]
    fn hop_by_hop_headers_stay_here() {
        let mut headers = ::http::HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("keep-alive", "5"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers, false);
        assert_eq!(headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn the_outside_hears_its_own_name() {
        let place = |host: Host, port, tls| Place { host, port, tls };
        let asked: Asked = "api.extsvc.mesh.local".parse().unwrap();
        let named = Host::Name("api.example.com".into());
        assert_eq!(authority(&asked, Some(80), &place(named.clone(), 443, true)), "api.example.com");
        assert_eq!(authority(&asked, None, &place(named.clone(), 8443, true)), "api.example.com:8443");
        let same: Asked = "api.example.com".parse().unwrap();
        assert_eq!(authority(&same, Some(8443), &place(named, 8443, true)), "api.example.com:8443");
        let ip = Host::Ip("192.0.2.1".parse().unwrap());
        assert_eq!(authority(&same, None, &place(ip, 80, false)), "api.example.com");
    }
}
