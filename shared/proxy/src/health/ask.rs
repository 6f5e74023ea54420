//! One check: a connection to the endpoint itself, as the cluster demands it, and a question on it.
//!
//! It is made beside the connections that carry traffic: it counts as none of them, is held to no limit of theirs, and
//! finds out whether a new one could be made. Who answers must be who should, as for any other connection.

use super::{Task, events::Events};
use crate::{
    codec::{self, Body, client_h1, client_h2},
    io::{Socket, Transport, tune},
    policy::health::{Ask, Finding, HealthPlan, contains_in_order, grpc_finding},
    snapshot::{Cluster, Endpoint},
    tls::{Peer, Trust},
    upstream::{cluster_check, label},
    worker::{ConnectionInfo, Direction, Tracked, Worker},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, uri::Authority};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use meridian_proxy_config::{Host, alpn};
use meridian_telemetry::chain;
use std::{
    cell::RefCell,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Of an answer, bytes that are looked at: twice what a policy may ask for. A longer body of HTTP is not read to its end,
/// which costs its connection.
const MAX_ANSWER: usize = 32 << 10;
const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";

/// Asks one endpoint.
pub(super) struct Asker {
    pub(super) worker: Rc<Worker>,
    pub(super) cluster: Rc<RefCell<Arc<Cluster>>>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) plan: Arc<HealthPlan>,
    session: Option<Session>,
    pub(super) events: Events,
}

/// A connection that a question can be asked on.
struct Session {
    speaking: Speaking,
    tracked: Tracked,
    /// Of our own certificates: an older one is not used on.
    renewed: u64,
    peer: Option<Peer>,
    /// What drives HTTP.
    _driver: Option<Task>,
}

enum Speaking {
    Bytes(Box<Transport>),
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// Nothing was asked, or nothing answered.
type Silence = Box<dyn Error>;

impl Asker {
    pub(super) fn new(
        worker: Rc<Worker>,
        cluster: Rc<RefCell<Arc<Cluster>>>,
        endpoint: Arc<Endpoint>,
        plan: Arc<HealthPlan>,
    ) -> Self {
        Self { worker, cluster, endpoint, plan, session: None, events: Events::default() }
    }

    /// One check. What is dropped in its midst leaves no connection behind.
    pub(super) async fn check(&mut self) -> Finding {
        if let Some(session) = self.session.take().filter(|session| session.is_usable(&self.worker))
            && let Ok(finding) = self.question(session).await
        {
            return finding;
        }
        // The other side may have closed what was kept.
        let asked = match self.open().await {
            Ok(session) => self.question(session).await,
            Err(error) => Err(error),
        };
        asked.unwrap_or_else(|error| Finding::Silent(chain(&*error)))
    }

    pub(super) fn hang_up(&mut self) {
        self.session = None;
    }

    /// Resolves when a kept connection must end.
    pub(super) async fn revoked(&self) {
        match &self.session {
            Some(session) => drop(session.tracked.ending().await),
            None => std::future::pending().await,
        }
    }

    async fn question(&mut self, mut session: Session) -> Result<Finding, Silence> {
        let plan = self.plan.clone();
        let (finding, reusable) = match (&plan.ask, &mut session.speaking) {
            (Ask::Tcp { send, receive }, Speaking::Bytes(stream)) => exchange(stream, send, receive).await?,
            (Ask::Http { path, headers, authority, statuses }, speaking) => {
                let mut request = Request::new(Body::empty());
                *request.uri_mut() = path.clone().into();
                *request.headers_mut() = headers.clone();
                let response = send(speaking, request, &self.authority(authority.as_ref())).await?;
                let status = response.status().as_u16();
                let whole = drain(response.into_body()).await;
                let finding = if statuses.contains(&status) {
                    Finding::Well
                } else {
                    Finding::Unwell(format!("status {status}"))
                };
                (finding, whole)
            }
            (Ask::Grpc { message, authority }, speaking) => {
                let request = grpc_request(message.clone());
                let response = send(speaking, request, &self.authority(authority.as_ref())).await?;
                (grpc(response).await?, true)
            }
            (Ask::Tcp { .. }, _) => return Err("the connection is one of HTTP".into()),
        };
        self.session = Some(session).filter(|_| reusable);
        Ok(finding)
    }

    fn authority(&self, given: Option<&Authority>) -> Authority {
        let service = || Authority::try_from(self.cluster.borrow().service.as_str());
        given.cloned().or_else(|| service().ok()).unwrap_or(Authority::from_static("unknown.mesh"))
    }

    async fn open(&self) -> Result<Session, Silence> {
        let cluster = self.cluster.borrow().clone();
        let (worker, endpoint) = (&self.worker, &self.endpoint);
        let tls = &worker.shared.tls;
        let renewed = tls.renewed();
        let socket = Socket::new(self.dial().await?);
        let http = !matches!(self.plan.ask, Ask::Tcp { .. });
        let (transport, peer) = match &cluster.tls {
            None => (Transport::Plain(socket), None),
            Some(rule) => {
                let sni = endpoint.sni.as_deref().unwrap_or_default();
                let alpn = if cluster.protocol.is_http() { alpn::HTTP2 } else { alpn::TCP };
                let (stream, peer) = Box::pin(tls.connect(rule, &endpoint.zone, sni, alpn, socket)).await?;
                (Transport::Tls(Box::new(stream)), Some(peer))
            }
        };
        let info = ConnectionInfo {
            direction: Direction::Upstream,
            name: format!("{} {} health check", cluster.service, endpoint.name),
            peer: peer.as_ref().map_or("plaintext", Peer::name).to_owned(),
        };
        let check = cluster_check(&cluster, peer.as_ref());
        let tracked = match &peer {
            Some(peer) => worker.track_session(info, peer.clone(), check),
            None => worker.track(info, check),
        };
        let multiplexed = peer.is_some() || cluster.protocol.is_http2();
        let (speaking, driver) = match (http, multiplexed) {
            (false, _) => (Speaking::Bytes(Box::new(transport)), None),
            (true, true) => {
                let (sender, connection) = client_h2(transport).await?;
                (Speaking::Http2(sender), Some(drive(connection)))
            }
            (true, false) => {
                let (sender, connection) = client_h1(transport).await?;
                (Speaking::Http1(sender), Some(drive(connection)))
            }
        };
        Ok(Session { speaking, tracked, renewed, peer, _driver: driver })
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let addresses: Vec<IpAddr> = match &self.endpoint.host {
            Host::Ip(address) => vec![*address],
            Host::Name(name) => self.worker.shared.resolver.lookup(name).await?,
        };
        let to: Vec<_> =
            addresses.into_iter().map(|address| SocketAddr::new(address, self.endpoint.port)).collect();
        let stream = TcpStream::connect(to.as_slice()).await.map_err(|error| {
            io::Error::new(error.kind(), format!("connecting to {}: {error}", label(&self.endpoint)))
        })?;
        tune(&stream);
        Ok(stream)
    }
}

impl Session {
    fn is_usable(&self, worker: &Worker) -> bool {
        let tls = &worker.shared.tls;
        let believed = self.peer.as_ref().is_none_or(|peer| tls.trust(peer) == Trust::Believed);
        let open = match &self.speaking {
            Speaking::Bytes(_) => true,
            Speaking::Http1(sender) => !sender.is_closed(),
            Speaking::Http2(sender) => !sender.is_closed(),
        };
        open && believed && self.renewed == tls.renewed() && self.tracked.must_reset().is_none()
    }
}

fn drive<E: Error + 'static>(connection: impl Future<Output = Result<(), E>> + 'static) -> Task {
    Task(tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection of a health check");
        }
    }))
}

/// Bytes out, and in until all that is waited for has come. Whether the connection can be used once more.
async fn exchange(
    stream: &mut Transport,
    send: &[u8],
    receive: &[Vec<u8>],
) -> Result<(Finding, bool), Silence> {
    stream.write_all(send).await?;
    stream.flush().await?;
    if receive.is_empty() {
        // A connection is the answer, so the next check makes one.
        return Ok((Finding::Well, false));
    }
    let mut answer = BytesMut::new();
    while !contains_in_order(&answer, receive) {
        if answer.len() >= MAX_ANSWER {
            return Ok((Finding::Unwell("another answer".to_owned()), false));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("the connection was closed before the answer".into());
        }
    }
    Ok((Finding::Well, true))
}

async fn send(
    speaking: &mut Speaking,
    mut request: Request<Body>,
    authority: &Authority,
) -> Result<Response<Incoming>, Silence> {
    codec::prepare(&mut request, authority, matches!(speaking, Speaking::Http2(_)), false);
    match speaking {
        Speaking::Http1(sender) => {
            sender.ready().await?;
            Ok(sender.send_request(request).await?)
        }
        Speaking::Http2(sender) => {
            sender.ready().await?;
            Ok(sender.send_request(request).await?)
        }
        Speaking::Bytes(_) => Err("the connection is not one of HTTP".into()),
    }
}

/// Reads a body to its end; false if that is too far, or does not come.
async fn drain(mut body: Incoming) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MAX_ANSWER {
            return false;
        }
    }
    true
}

fn grpc_request(message: Bytes) -> Request<Body> {
    let mut request = Request::new(Body::full(message));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(GRPC_CHECK);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("meridian-health-check"));
    request
}

async fn grpc(response: Response<Incoming>) -> Result<Finding, Silence> {
    let (head, mut body) = response.into_parts();
    if head.status != http::StatusCode::OK {
        return Ok(Finding::Unwell(format!("status {}", head.status.as_u16())));
    }
    let mut status = grpc_status(&head.headers);
    let mut answer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            if answer.len() + data.len() > MAX_ANSWER {
                return Ok(Finding::Unwell("another answer".to_owned()));
            }
            answer.extend_from_slice(data);
        }
        status = frame.trailers_ref().and_then(grpc_status).or(status);
    }
    Ok(match status.as_deref() {
        Some("0") => grpc_finding(&answer),
        Some(status) => Finding::Unwell(format!("grpc-status {status}")),
        None => Finding::Unwell("no grpc-status".to_owned()),
    })
}

fn grpc_status(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}
