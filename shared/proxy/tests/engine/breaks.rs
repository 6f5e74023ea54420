//! Who leaves in the middle: clients and applications, at each stage of an exchange and in each protocol. The other side is
//! told in the same second, and never that what came was all.

use crate::{
    apps::{H2, Payload, absolute, call, http_app, http2, serve, streaming, tcp_app, text},
    world::{Pair, soon, until},
};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use meridian_proxy_config::Protocol;
use std::{convert::Infallible, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// What each application speaks, and what its port is declared as.
const PROTOCOLS: [(Protocol, bool); 3] =
    [(Protocol::Http, false), (Protocol::Http2, true), (Protocol::Grpc, true)];
/// Events that wait to be looked at.
const EVENTS: usize = 16;

/// What an application tells of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Begun,
    /// Nobody waits for it any more.
    GivenUp,
    /// Its request broke off.
    Cut,
}

struct UnderWay(mpsc::Sender<Event>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let _ = self.0.try_send(Event::GivenUp);
    }
}

/// An application that ends nothing: `/hang` gives no answer, `/download` a part of one and no more until `breaks` is set,
/// when it breaks off; `/upload` reads.
async fn unending(http2: bool, breaks: watch::Receiver<bool>) -> (SocketAddr, mpsc::Receiver<Event>) {
    let listener = TcpListener::bind(crate::world::address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let (events, told) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (events, breaks) = (events.clone(), breaks.clone());
            let handler =
                service_fn(move |request: Request<Incoming>| begun(request, events.clone(), breaks.clone()));
            tokio::spawn(serve(stream, http2, handler));
        }
    });
    (at, told)
}

async fn begun(
    request: Request<Incoming>,
    events: mpsc::Sender<Event>,
    mut breaks: watch::Receiver<bool>,
) -> Result<Response<BoxBody<Bytes, io::Error>>, Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/upload" {
        let mut body = request.into_body();
        assert!(body.frame().await.unwrap().unwrap().is_data());
        events.send(Event::Begun).await.unwrap();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                events.send(Event::Cut).await.unwrap();
            }
        }
        return std::future::pending().await;
    }
    let under_way = UnderWay(events.clone());
    events.send(Event::Begun).await.unwrap();
    if path == "/hang" {
        let _under_way = under_way;
        return std::future::pending().await;
    }
    let part = Ok(Frame::data(Bytes::from_static(b"part")));
    let broken = async move {
        let _under_way = under_way;
        breaks.wait_for(|now| *now).await.unwrap();
        Err(io::Error::other("broken"))
    };
    let frames = futures::stream::iter([part]).chain(futures::stream::once(broken));
    Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))))
}

/// A client that can leave.
enum Client {
    Http1(TcpStream),
    Http2(H2),
}

/// How it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    /// With a reset: over HTTP/2 of the stream alone.
    Reset,
    /// With the end of its connection.
    End,
}

impl Client {
    async fn connect(to: SocketAddr, is_http2: bool) -> Self {
        match is_http2 {
            true => Self::Http2(http2(to).await),
            false => Self::Http1(TcpStream::connect(to).await.unwrap()),
        }
    }

    /// Begins an exchange, waits until `reached`, and leaves.
    async fn leave_once(self, path: &str, parting: Parting, reached: impl Future<Output = ()>) {
        match self {
            Self::Http1(mut stream) => {
                let head = format!("POST {path} HTTP/1.1\r\nHost: backend.mesh\r\n");
                let rest = if path == "/upload" { "Content-Length: 9\r\n\r\npart" } else { "\r\n" };
                stream.write_all((head + rest).as_bytes()).await.unwrap();
                reached.await;
                if path == "/download" {
                    let mut part = Vec::new();
                    while !part.ends_with(b"part\r\n") {
                        soon("a part", stream.read_buf(&mut part)).await.unwrap();
                    }
                }
                if parting == Parting::Reset {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
            Self::Http2(mut sender) => {
                let (body, payload) = streaming();
                let payload = if path == "/upload" { payload } else { text("") };
                let mut answer = Box::pin(sender.send_request(absolute(Method::POST, path, payload)));
                if path == "/upload" {
                    body.send(Frame::data(Bytes::from_static(b"part"))).await.unwrap();
                }
                if path == "/download" {
                    let mut response = soon("a head", answer).await.unwrap();
                    reached.await;
                    assert!(soon("a part", response.frame()).await.unwrap().unwrap().is_data());
                } else {
                    tokio::select! {
                        _ = &mut answer => panic!("there is no answer"),
                        () = reached => {}
                    }
                }
                // The stream is reset by what is dropped here; the connection lasts as long as there is a sender of it.
                if parting == Parting::Reset {
                    drop(body);
                    tokio::spawn(async move {
                        let _sender = sender;
                        std::future::pending::<()>().await;
                    });
                }
            }
        }
    }
}

#[tokio::test]
async fn what_a_client_leaves_is_given_up_at_the_application() {
    for (protocol, is_http2) in PROTOCOLS {
        for path in ["/hang", "/download", "/upload"] {
            for parting in [Parting::Reset, Parting::End] {
                let (_never, breaks) = watch::channel(false);
                let (at, mut told) = unending(is_http2, breaks).await;
                let pair = Pair::start(protocol, at).await;
                let client = Client::connect(pair.outbound, is_http2).await;
                let what = format!("{protocol:?} {path} {parting:?}");
                let reached = async { assert_eq!(soon(&what, told.recv()).await, Some(Event::Begun)) };
                client.leave_once(path, parting, reached).await;
                let expected = if path == "/upload" { Event::Cut } else { Event::GivenUp };
                assert_eq!(soon(&what, told.recv()).await, Some(expected), "{what}");
            }
        }
    }
}

/// By a reset of the stream in HTTP/2 and gRPC, by the end of the connection in HTTP/1.1.
#[tokio::test]
async fn an_answer_that_breaks_off_is_no_whole_one() {
    for (protocol, is_http2) in PROTOCOLS {
        let (break_off, breaks) = watch::channel(false);
        let (at, _told) = unending(is_http2, breaks).await;
        let pair = Pair::start(protocol, at).await;
        let mut client = http2(pair.outbound).await;
        let mut response =
            soon("a head", client.send_request(absolute(Method::GET, "/download", text("")))).await.unwrap();
        let part = soon("a part", response.frame()).await.unwrap().unwrap();
        assert_eq!(part.into_data().unwrap(), "part");
        break_off.send_replace(true);
        assert!(soon("the break", response.collect()).await.is_err(), "{protocol:?}");
        // The client's connection has others on it.
        break_off.send_replace(false);
        let hung = client.send_request(absolute(Method::GET, "/download", text("")));
        assert_eq!(soon("another", hung).await.unwrap().status(), 200, "{protocol:?}");
    }
}

/// The same for a client that speaks HTTP/1.1: the last chunk is missing.
#[tokio::test]
async fn an_answer_in_chunks_that_is_reset_has_no_last_chunk() {
    let (reset, resets) = watch::channel(false);
    let (at, _) = tcp_app(move |mut stream| {
        let mut resets = resets.clone();
        async move {
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
                .await
                .unwrap();
            resets.wait_for(|now| *now).await.unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    })
    .await;
    let pair = Pair::start(Protocol::Http, at).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: backend.mesh\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"part\r\n") {
        assert!(soon("a part", stream.read_buf(&mut all)).await.unwrap() > 0);
    }
    reset.send_replace(true);
    let ended = soon("the end", stream.read_to_end(&mut all)).await;
    assert!(ended.is_err() || all.ends_with(b"part\r\n"), "{}", String::from_utf8_lossy(&all));
}

/// An application that goes before it has answered, with the request half read.
#[tokio::test]
async fn an_application_that_resets_a_request_is_lost_and_no_more() {
    let (at, _) = tcp_app(|mut stream| async move {
        let mut head = [0; 64];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let pair = Pair::start(Protocol::Http, at).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: backend.mesh\r\nContent-Length: 999999\r\n\r\npart")
        .await
        .unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(soon("an answer", stream.read_u8()).await.unwrap());
    }
    assert!(said.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&said));
    assert_eq!(call(pair.outbound, "/").await.status, 503, "it is served on, and told the same");
}

/// The client may have no other way to look at its answer than behind what it sends.
#[tokio::test]
async fn a_refusal_is_read_by_who_still_sends() {
    const LARGE: usize = 4 << 20;
    let (at, _) = tcp_app(|mut stream| async move {
        let mut seen = Vec::new();
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
        let refusal =
            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge";
        stream.write_all(refusal).await.unwrap();
        std::future::pending().await
    })
    .await;
    let pair = Pair::start(Protocol::Http, at).await;
    let head = format!("POST / HTTP/1.1\r\nHost: backend.mesh\r\nContent-Length: {LARGE}\r\n\r\n");
    let long = format!("GET / HTTP/1.1\r\nHost: backend.mesh\r\nX: {}", "y".repeat(LARGE));
    for (sent, status) in [(head + &"x".repeat(LARGE), "413"), (long, "431")] {
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        soon("all of it", stream.write_all(sent.as_bytes())).await.unwrap();
        let mut said = String::new();
        soon("the answer", stream.read_to_string(&mut said)).await.unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    }
}

/// In the midst of what flows, either way round.
#[tokio::test]
async fn tcp_is_reset_in_the_middle_too() {
    for client_leaves in [true, false] {
        let (ended, ends) = watch::channel(false);
        let ended = std::sync::Arc::new(ended);
        let (at, _) = tcp_app(move |mut stream| {
            let ended = ended.clone();
            async move {
                let mut some = [0; 4096];
                stream.read_exact(&mut some).await.unwrap();
                stream.write_all(&some).await.unwrap();
                if !client_leaves {
                    return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
                while stream.read(&mut some).await.is_ok_and(|count| count > 0) {}
                // No end of data, but a reset.
                ended.send_replace(stream.write_all(&some).await.is_err());
            }
        })
        .await;
        let pair = Pair::start(Protocol::Tcp, at).await;
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        stream.write_all(&[1; 4096]).await.unwrap();
        if client_leaves {
            stream.read_exact(&mut [0; 4096]).await.unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
            until("the application is told", async || ends.borrow().then_some(())).await;
        } else {
            let mut all = Vec::new();
            let read = soon("the reset", stream.read_to_end(&mut all)).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

/// What an application of HTTP/1.1 puts behind a body reaches a client of HTTP/2, and the other way round.
#[tokio::test]
async fn trailers_pass_from_one_http_to_the_other() {
    let (at, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, at).await;
    let mut client = http2(pair.outbound).await;
    let (sender, body): (_, Payload) = streaming();
    let mut request = absolute(Method::POST, "/echo", body);
    request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let answer = client.send_request(request);
    sender.send(Frame::data(Bytes::from_static(b"data"))).await.unwrap();
    let sum = [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
    sender.send(Frame::trailers(sum)).await.unwrap();
    drop(sender);
    let body = soon("all of it", soon("the answer", answer).await.unwrap().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "7");

    let (at, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, at).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    let sent = "POST /echo HTTP/1.1\r\nHost: b\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\
                Connection: close\r\n\r\n4\r\ndata\r\n0\r\nx-sum: 7\r\n\r\n";
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut said = String::new();
    soon("the answer", stream.read_to_string(&mut said)).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{said}");
}
