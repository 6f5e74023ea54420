//! Applications and their clients: what stands at both ends.

use crate::world::{address, soon};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
};

/// What finds room in a queue on this host is there sooner; a first segment that finds none is sent again after a second.
const QUEUED: Duration = Duration::from_millis(300);

pub(crate) type Payload = BoxBody<Bytes, Infallible>;

pub(crate) fn text(text: impl Into<Bytes>) -> Payload {
    Full::new(text.into()).boxed()
}

/// A body fed by a channel; back-pressure is the channel's.
pub(crate) fn streaming() -> (mpsc::Sender<Frame<Bytes>>, Payload) {
    let (sender, mut receiver) = mpsc::channel::<Frame<Bytes>>(1);
    let stream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
    (sender, BodyExt::boxed(StreamBody::new(stream)))
}

/// What an application has seen.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Seen {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// An HTTP application: `/echo` gives the body back with its trailers, `/headers` what it was sent, `/status/N` that
/// status, `/hang` never answers, `/flood` sends for ever.
pub(crate) async fn http_app(http2: bool) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let seen = Seen::default();
    let counting = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counting.connections.fetch_add(1, Ordering::Relaxed);
            let seen = counting.clone();
            let handler = service_fn(move |request| {
                seen.requests.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, Infallible>(answer(request).await) }
            });
            tokio::spawn(serve(stream, http2, handler));
        }
    });
    (at, seen)
}

async fn answer(mut request: Request<Incoming>) -> Response<Payload> {
    let path = request.uri().path().to_owned();
    if let Some(status) = path.strip_prefix("/status/") {
        let status: StatusCode = status.parse().unwrap();
        return Response::builder()
            .status(status)
            .body(text(if status == 204 { "" } else { "body" }))
            .unwrap();
    }
    match path.as_str() {
        "/echo" => {
            let mut response = Response::new(());
            if request.headers().contains_key("trailer") {
                response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
            }
            let (sender, body) = streaming();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = request.frame().await {
                    if sender.send(frame).await.is_err() {
                        return;
                    }
                }
            });
            response.map(|()| body)
        }
        "/headers" => {
            let lines: Vec<_> = request
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .chain([format!("uri {}", request.uri()), format!("method {}", request.method())])
                .collect();
            let mut response = Response::new(text(lines.join("\n")));
            response.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
            response.headers_mut().insert("x-app", "yes".parse().unwrap());
            response
        }
        "/hang" => std::future::pending().await,
        "/flood" => {
            let (sender, body) = streaming();
            tokio::spawn(async move {
                while sender.send(Frame::data(Bytes::from_static(&[7; 16_384]))).await.is_ok() {}
            });
            Response::new(body)
        }
        "/upgrade" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let mut buf = [0; 1024];
                while let Ok(n @ 1..) = io.read(&mut buf).await {
                    io.write_all(&buf[..n]).await.unwrap();
                }
            });
            let mut response = Response::new(text(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", "upgrade".parse().unwrap());
            response.headers_mut().insert("upgrade", "chat".parse().unwrap());
            response
        }
        _ => Response::builder().status(404).body(text("no such path")).unwrap(),
    }
}

/// An HTTP application that gives bodies back, but answers its first requests with `failure`. All are read to their end.
pub(crate) async fn failing_app(
    http2: bool,
    times: usize,
    failure: fn() -> Response<Payload>,
) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let seen = Seen::default();
    let counting = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counting.connections.fetch_add(1, Ordering::Relaxed);
            let seen = counting.clone();
            let handler = service_fn(move |request: Request<Incoming>| {
                let number = seen.requests.fetch_add(1, Ordering::Relaxed);
                async move {
                    let body = request.into_body().collect().await;
                    let echo = || Response::new(text(body.map(|body| body.to_bytes()).unwrap_or_default()));
                    Ok::<_, Infallible>(if number < times { failure() } else { echo() })
                }
            });
            tokio::spawn(serve(stream, http2, handler));
        }
    });
    (at, seen)
}

/// Serves one connection, to its end.
pub(crate) async fn serve<S, B>(stream: TcpStream, http2: bool, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Send
        + 'static,
    B: hyper::body::Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let io = TokioIo::new(stream);
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(builder.serve_connection(io, service).await);
    } else {
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        drop(connection.with_upgrades().await);
    }
}

/// A TCP application.
pub(crate) async fn tcp_app<F, Fut>(serve: F) -> (SocketAddr, Seen)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let seen = Seen::default();
    let counting = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counting.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream));
        }
    });
    (at, seen)
}

pub(crate) async fn echo_app() -> (SocketAddr, Seen) {
    tcp_app(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        drop(tokio::io::copy(&mut read, &mut write).await);
        drop(write.shutdown().await);
    })
    .await
}

/// An application that takes no connection: those that are kept fill its queue.
pub(crate) async fn full_app() -> (SocketAddr, impl Sized) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address()).unwrap();
    let listener = socket.listen(1).unwrap();
    let at = listener.local_addr().unwrap();
    let (mut waiting, mut left_out) = (Vec::new(), 0);
    // Twice in a row: once may be this host's slowness.
    while left_out < 2 {
        let queued = tokio::time::timeout(QUEUED, TcpStream::connect(at)).await.ok();
        left_out = if queued.is_some() { 0 } else { left_out + 1 };
        waiting.extend(queued.map(Result::unwrap));
    }
    (at, (listener, waiting))
}

pub(crate) type H1 = hyper::client::conn::http1::SendRequest<Payload>;
pub(crate) type H2 = hyper::client::conn::http2::SendRequest<Payload>;

pub(crate) async fn http1(to: SocketAddr) -> H1 {
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    sender
}

pub(crate) async fn http2(to: SocketAddr) -> H2 {
    let stream = TcpStream::connect(to).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

pub(crate) fn get(path: &str) -> Request<Payload> {
    request(Method::GET, path, text(""))
}

pub(crate) fn request(method: Method, path: &str, body: Payload) -> Request<Payload> {
    Request::builder().method(method).uri(path).header("host", "backend.mesh").body(body).unwrap()
}

/// For HTTP/2: the target carries the host.
pub(crate) fn absolute(method: Method, path: &str, body: Payload) -> Request<Payload> {
    Request::builder().method(method).uri(format!("http://backend.mesh{path}")).body(body).unwrap()
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn denied(&self) -> Option<&str> {
        self.headers.get("x-meridian-denied").map(|value| value.to_str().unwrap())
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let body = soon("the whole body", body.collect()).await.unwrap();
    let trailers = body.trailers().cloned();
    Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes(), trailers }
}

/// One request over a connection of its own.
pub(crate) async fn call(to: SocketAddr, path: &str) -> Answer {
    let response = soon("an answer", http1(to).await.send_request(get(path))).await.unwrap();
    whole(response).await
}

/// Sends bytes as they are and reads until the other side closes or is silent.
pub(crate) async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    drop(tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await);
    String::from_utf8_lossy(&answer).into_owned()
}
