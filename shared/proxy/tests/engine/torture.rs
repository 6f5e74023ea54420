//! Requests that one end of a connection takes for something else than the other: what comes of each, and that the
//! application never sees a request that nobody sent.
//!
//! docs/http.md has the outcomes as a table for readers.

use crate::{
    apps::{Payload, http1, request, text},
    world::{Pair, address, soon},
};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use meridian_proxy_config::Protocol;
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Each request as the application understood it: method, path, body.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

pub(crate) async fn application() -> (SocketAddr, Log) {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let log = Log::default();
    let logging = log.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let log = logging.clone();
            let handler = service_fn(move |request: Request<Incoming>| answer(request, log.clone()));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handler);
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    (at, log)
}

async fn answer(request: Request<Incoming>, log: Log) -> Result<Response<Payload>, Infallible> {
    let (head, body) = request.into_parts();
    let host = head.headers.get("host").map(|host| host.to_str().unwrap().to_owned()).unwrap_or_default();
    let entry = match body.collect().await {
        Ok(body) => {
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            format!("{} {} {host} {body}", head.method, head.uri)
        }
        Err(_) => format!("{} {} {host} cut", head.method, head.uri),
    };
    log.lock().unwrap().push(entry.trim_end().to_owned());
    Ok(Response::new(text("ok")))
}

/// Sends bytes, and gives the statuses of all answers until the proxy closes. The last request says that it is the last,
/// or the bytes end in the middle (`cut`): then the client is done writing.
async fn statuses(name: &str, to: SocketAddr, bytes: &[u8], cut: bool) -> Vec<u16> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // What is refused early may be refused before all is written, but not reset.
    stream.write_all(bytes).await.unwrap();
    if cut {
        stream.shutdown().await.unwrap();
    }
    let mut all = Vec::new();
    soon(name, stream.read_to_end(&mut all)).await.unwrap();
    let said = String::from_utf8_lossy(&all).into_owned();
    let starts = said.match_indices("HTTP/1.1 ").chain(said.match_indices("HTTP/1.0 "));
    let mut starts: Vec<usize> = starts.map(|(at, _)| at).collect();
    starts.sort_unstable();
    starts.into_iter().map(|at| said[at + 9..at + 12].parse().unwrap()).collect()
}

struct Case {
    name: &'static str,
    sent: String,
    /// The client ends its side behind it.
    cut: bool,
    statuses: &'static [u16],
    seen: &'static [&'static str],
}

fn case(
    name: &'static str,
    sent: impl Into<String>,
    statuses: &'static [u16],
    seen: &'static [&'static str],
) -> Case {
    Case { name, sent: sent.into(), cut: false, statuses, seen }
}

/// One that ends in the middle.
fn cut(case: Case) -> Case {
    Case { cut: true, ..case }
}

/// A POST with these header lines and this rest, and behind it a request of which the proxy must not make another.
fn post(headers: &str, rest: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: b\r\n{headers}\r\n{rest}")
}

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n";

async fn judge(cases: Vec<Case>) {
    let (at, log) = application().await;
    let pair = Pair::start(Protocol::Http, at).await;
    let mut wrong = Vec::new();
    for Case { name, sent, cut, statuses: expected, seen } in cases {
        let said = statuses(name, pair.outbound, sent.as_bytes(), cut).await;
        let mut logged = std::mem::take(&mut *log.lock().unwrap());
        // One that broke off may be noticed at any time, or not at all.
        logged.retain(|entry| !entry.ends_with(" cut"));
        if said != expected || logged != seen {
            wrong.push(format!(
                "{name}:\n  answers {said:?}, expected {expected:?}\n  seen {logged:?}, expected {seen:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn lengths_of_bodies_have_one_meaning() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let refused: &[u16] = &[400];
    let both_ways = |headers: &str| post(headers, &format!("3\r\nabc\r\n0\r\n\r\n{NEXT}"));
    judge(vec![
        case(
            "a length",
            post("Content-Length: 3\r\n", &format!("abc{NEXT}")),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case("chunks", both_ways(chunked), &[200, 200], &["POST /a b abc", "GET /next b"]),
        case("a length, then chunked", both_ways(&format!("Content-Length: 4\r\n{chunked}")), refused, &[]),
        case("chunked, then a length", both_ways(&format!("{chunked}Content-Length: 4\r\n")), refused, &[]),
        case("two lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"), refused, &[]),
        case(
            "the same length twice",
            post("Content-Length: 3\r\nContent-Length: 3\r\n", &format!("abc{NEXT}")),
            refused,
            &[],
        ),
        case("a list of lengths", post("Content-Length: 3, 3\r\n", "abc"), refused, &[]),
        case("a signed length", post("Content-Length: +3\r\n", "abc"), refused, &[]),
        case("a negative length", post("Content-Length: -1\r\n", "abc"), refused, &[]),
        case("a length in hex", post("Content-Length: 0x3\r\n", "abc"), refused, &[]),
        case("no length in it", post("Content-Length: \r\n", "abc"), refused, &[]),
        case(
            "a length beyond 64 bits",
            post("Content-Length: 99999999999999999999\r\n", "abc"),
            refused,
            &[],
        ),
        case(
            "an underscore, which is another name",
            post("Transfer_Encoding: chunked\r\nContent-Length: 3\r\n", &format!("abc{NEXT}")),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case("chunked, then a comma", both_ways("Transfer-Encoding: chunked,\r\n"), refused, &[]),
        case("a comma, then chunked", both_ways("Transfer-Encoding: , chunked\r\n"), refused, &[]),
        case("chunked in quotes", both_ways("Transfer-Encoding: \"chunked\"\r\n"), refused, &[]),
        case("chunked with a parameter", both_ways("Transfer-Encoding: chunked;q=1\r\n"), refused, &[]),
        case(
            "chunked between blanks, in capitals",
            both_ways("Transfer-Encoding:\t CHUNKED \t\r\n"),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case("an unknown coding", post("Transfer-Encoding: xchunked\r\n", "abc"), refused, &[]),
        case("chunked, but not last", post("Transfer-Encoding: chunked, identity\r\n", "abc"), refused, &[]),
        case("a coding before chunked", both_ways("Transfer-Encoding: gzip, chunked\r\n"), refused, &[]),
        case("chunked twice", both_ways("Transfer-Encoding: chunked, chunked\r\n"), refused, &[]),
        case(
            "codings in two lines",
            both_ways(&format!("Transfer-Encoding: identity\r\n{chunked}")),
            refused,
            &[],
        ),
        case("a control character in it", both_ways("Transfer-Encoding: \u{b}chunked\r\n"), refused, &[]),
        case("a space before the colon", both_ways("Transfer-Encoding : chunked\r\n"), refused, &[]),
        case("a folded line", both_ways("Transfer-Encoding:\r\n chunked\r\n"), refused, &[]),
        case(
            "HTTP/1.0 with chunks",
            format!("POST /a HTTP/1.0\r\nHost: b\r\n{chunked}\r\n0\r\n\r\n"),
            refused,
            &[],
        ),
    ])
    .await;
}

#[tokio::test]
async fn chunks_are_what_they_say() {
    let chunks = |rest: &str| post("Transfer-Encoding: chunked\r\n", rest);
    let big = "x".repeat(20_000);
    judge(vec![
        case(
            "an extension",
            chunks(&format!("3;a=b\r\nabc\r\n0\r\n\r\n{NEXT}")),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case("a long extension", chunks(&format!("3;a={big}\r\nabc\r\n0\r\n\r\n")), &[400], &[]),
        case("a size beyond 64 bits", chunks("fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), &[400], &[]),
        case("a signed size", chunks("+3\r\nabc\r\n0\r\n\r\n"), &[400], &[]),
        case("a size with 0x", chunks("0x3\r\nabc\r\n0\r\n\r\n"), &[400], &[]),
        case("an empty size", chunks("\r\nabc\r\n0\r\n\r\n"), &[400], &[]),
        cut(case("the largest size of 64 bits", chunks(&format!("ffffffffffffffff\r\n{NEXT}")), &[400], &[])),
        case("a bare line feed in an extension", chunks("3;a\nb\r\nabc\r\n0\r\n\r\n"), &[400], &[]),
        case("a bare line feed behind data", chunks("3\r\nabc\n0\r\n\r\n"), &[400], &[]),
        case("a bare line feed at the end", chunks("3\r\nabc\r\n0\r\n\n"), &[400], &[]),
        case("a trailer without a colon", chunks("3\r\nabc\r\n0\r\nX 1\r\n\r\n"), &[400], &[]),
        case("trailers of 20 KB", chunks(&format!("3\r\nabc\r\n0\r\nX: {big}\r\n\r\n")), &[400], &[]),
        case(
            "a trailer that frames",
            chunks(&format!("3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n{NEXT}")),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case("no end of line behind a chunk", chunks("3\r\nabcd\r\n0\r\n\r\n"), &[400], &[]),
        case("a bare line feed behind a size", chunks("3\nabc\r\n0\r\n\r\n"), &[400], &[]),
        cut(case("an end in the middle", chunks("3\r\nab"), &[400], &[])),
    ])
    .await;
}

#[tokio::test]
async fn lines_and_targets_have_one_form() {
    let many = "X-Filler: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(700);
    let lines = |lines: &str| format!("{lines}\r\n");
    judge(vec![
        case("bare line feeds", "GET /a HTTP/1.1\nHost: b\nConnection: close\n\n", &[200], &["GET /a b"]),
        case("a bare carriage return", lines("GET /a HTTP/1.1\r\nHost: b\r\nX: a\rb\r\n"), &[400], &[]),
        case("a null byte", lines("GET /a HTTP/1.1\r\nHost: b\r\nX: a\0b\r\n"), &[400], &[]),
        case("two spaces", lines("GET  /a HTTP/1.1\r\nHost: b\r\n"), &[400], &[]),
        case("no version", "GET /a\r\n\r\n", &[400], &[]),
        case("another version", lines("GET /a HTTP/3.0\r\nHost: b\r\n"), &[400], &[]),
        case("a name with a space", lines("GET /a HTTP/1.1\r\nHost: b\r\nX Y: 1\r\n"), &[400], &[]),
        case("a name that is none", lines("GET /a HTTP/1.1\r\nHost: b\r\n: 1\r\n"), &[400], &[]),
        case("a fragment", lines("GET /a#b HTTP/1.1\r\nHost: b\r\n"), &[400], &[]),
        case("a target with a space", lines("GET /a b HTTP/1.1\r\nHost: b\r\n"), &[400], &[]),
        case("no host", lines("GET /a HTTP/1.1\r\nConnection: close\r\n"), &[400], &[]),
        case(
            "two hosts",
            lines("GET /a HTTP/1.1\r\nHost: b\r\nHost: c\r\nConnection: close\r\n"),
            &[400],
            &[],
        ),
        case(
            "another host in the target",
            lines("GET http://c/a HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"),
            &[400],
            &[],
        ),
        case("CONNECT", lines("CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\nConnection: close\r\n"), &[405], &[]),
        case("too many headers", lines(&format!("GET /a HTTP/1.1\r\nHost: b\r\n{many}")), &[431], &[]),
        case(
            "Connection names what frames",
            post("Connection: close, content-length, host\r\nContent-Length: 3\r\n", "abc"),
            &[200],
            &["POST /a b abc"],
        ),
        case(
            "an upgrade that the application does not want",
            format!("GET /a HTTP/1.1\r\nHost: b\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n{NEXT}"),
            &[200, 200],
            &["GET /a b", "GET /next b"],
        ),
        case(
            "an upgrade with a body",
            post("Connection: upgrade\r\nUpgrade: chat\r\nContent-Length: 3\r\n", &format!("abc{NEXT}")),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case(
            "HTTP/1.0 that stays",
            format!(
                "POST /a HTTP/1.0\r\nHost: b\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc{NEXT}"
            ),
            &[200, 200],
            &["POST /a b abc", "GET /next b"],
        ),
        case(
            "HTTP/1.0 that does not",
            format!("GET /a HTTP/1.0\r\nHost: b\r\n\r\n{NEXT}"),
            &[200],
            &["GET /a b"],
        ),
        case(
            "requests one behind the other",
            format!("GET /a HTTP/1.1\r\nHost: b\r\n\r\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n{NEXT}"),
            &[200, 200, 200],
            &["GET /a b", "GET /b b", "GET /next b"],
        ),
    ])
    .await;
}

/// Gives each connection these bytes for its first request, whatever that is, and then ends it.
async fn answering(bytes: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut read = [0; 1024];
                if stream.read(&mut read).await.is_ok_and(|count| count > 0) {
                    drop(stream.write_all(bytes.as_bytes()).await.and(stream.shutdown().await));
                    // Until the proxy leaves, too: a reset would take bytes away that are on their way.
                    while stream.read(&mut read).await.is_ok_and(|count| count > 0) {}
                }
            });
        }
    });
    at
}

#[tokio::test]
async fn answers_have_one_meaning() {
    let whole = |status: u16, body: &str| (status, body.to_owned(), true);
    let lost = || whole(503, "the application closed the connection\n");
    // Or 503, where the break overtakes what came before it.
    let broken = || (200, "ok".to_owned(), false);
    let mut wrong = Vec::new();
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", whole(200, "ok")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", lost()),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", lost()),
        ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", lost()),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nmore", whole(200, "ok")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", whole(200, "ok")),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            lost(),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", lost()),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", lost()),
        ("HTTP/1.1 200 OK\r\n\r\nall of it", whole(200, "all of it")),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            whole(200, "ok"),
        ),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", lost()),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", lost()),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", lost()),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", whole(204, "")),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", whole(304, "")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", broken()),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", broken()),
        ("HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", lost()),
        ("HTTP/1.1 200 OK\r\nX : 1\r\n\r\n", lost()),
        ("ICY 200 OK\r\n\r\n", lost()),
        ("", lost()),
    ] {
        let pair = Pair::start(Protocol::Http, answering(answer).await).await;
        let mut client = http1(pair.outbound).await;
        let mut response =
            soon("an answer", client.send_request(request(Method::POST, "/", text("x")))).await.unwrap();
        let (mut body, mut is_whole) = (String::new(), true);
        while let Some(frame) = soon("a frame", response.body_mut().frame()).await {
            match frame {
                Ok(frame) => body.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
                Err(_) => {
                    is_whole = false;
                    break;
                }
            }
        }
        let said = (response.status().as_u16(), body, is_whole);
        let overtaken = expected == broken() && said == whole(503, "the connection was lost\n");
        if said != expected && !overtaken {
            wrong.push(format!("{answer:?}:\n  {said:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// To a request that asks for another protocol, too.
#[tokio::test]
async fn answers_to_upgrades_have_one_meaning() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 "),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "HTTP/1.1 503 "),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "HTTP/1.1 503 "),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: upgrade\r\n\r\nhi",
            "HTTP/1.1 101 ",
        ),
    ] {
        let pair = Pair::start(Protocol::Http, answering(answer).await).await;
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        let upgrade = b"GET /a HTTP/1.1\r\nHost: b\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
        stream.write_all(upgrade).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        soon("the answer", stream.read_to_string(&mut said)).await.unwrap();
        assert!(said.starts_with(expected), "{answer:?}: {said:?}");
        // What came behind the head, in one piece with it, is not lost.
        assert!(!answer.ends_with("hi") || said.ends_with("hi"), "{said:?}");
    }
}
