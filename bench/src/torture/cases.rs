//! Requests and answers that one end of a connection may take for something else than the other.

use std::borrow::Cow;

/// What a client sends.
pub(super) struct Case {
    pub(super) name: String,
    /// In parts, with a pause between them.
    pub(super) sent: Vec<Cow<'static, str>>,
    /// It ends its side behind it.
    pub(super) ends: bool,
}

/// What the application says to a plain GET.
pub(super) struct Answer {
    name: &'static str,
    pub(super) sent: &'static str,
    /// It ends the connection behind it.
    pub(super) ends: bool,
}

impl Answer {
    /// The request that has it answered so.
    pub(super) fn case(&self, index: usize) -> Case {
        let method = if self.name.contains("to HEAD") { "HEAD" } else { "GET" };
        let sent = format!("{method} /answer/{index} HTTP/1.1\r\nHost: b\r\n\r\n");
        Case { name: format!("answer: {}", self.name), sent: vec![sent.into()], ends: false }
    }
}

pub(super) const NEXT: &str = "GET /next HTTP/1.1\r\nHost: b\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// A POST, and behind it a request of which nobody may make another.
fn post(fields: &str, rest: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: b\r\n{fields}\r\n{rest}{NEXT}")
}

fn get(fields: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: b\r\n{fields}\r\n{NEXT}")
}

pub(super) fn requests() -> Vec<Case> {
    let body = "3\r\nabc\r\n0\r\n\r\n";
    let coded = |fields: &str| post(fields, body);
    let chunks = |rest: &str| post(CHUNKED, rest);
    let large = "x".repeat(20_000);
    let upgrade = "Connection: upgrade\r\nUpgrade: chat\r\n";
    let whole = [
        // Lengths.
        ("a length", post("Content-Length: 3\r\n", "abc")),
        ("chunks", coded(CHUNKED)),
        ("a length, then chunked", coded(&format!("Content-Length: 4\r\n{CHUNKED}"))),
        ("chunked, then a length", coded(&format!("{CHUNKED}Content-Length: 4\r\n"))),
        ("two lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc")),
        ("the same length twice", post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc")),
        ("the same length, written otherwise", post("Content-Length: 3\r\nContent-Length: 03\r\n", "abc")),
        ("a length with a zero before it", post("Content-Length: 03\r\n", "abc")),
        ("a list of one length", post("Content-Length: 3, 3\r\n", "abc")),
        ("a signed length", post("Content-Length: +3\r\n", "abc")),
        ("a negative length", post("Content-Length: -3\r\n", "abc")),
        ("a length in hex", post("Content-Length: 0x3\r\n", "abc")),
        ("an empty length", post("Content-Length: \r\n", "abc")),
        ("a length beyond 64 bits", post("Content-Length: 99999999999999999999\r\n", "abc")),
        ("a length with an underscore", post("Content_Length: 3\r\n", "")),
        ("GET with a body", get("Content-Length: 3\r\n").replace("\r\n\r\nGET", "\r\n\r\nabcGET")),
        // Codings.
        ("CHUNKED", coded("Transfer-Encoding: CHUNKED\r\n")),
        ("an unknown coding", coded("Transfer-Encoding: xchunked\r\n")),
        ("chunked, not last", coded("Transfer-Encoding: chunked, identity\r\n")),
        ("a coding before chunked", coded("Transfer-Encoding: gzip, chunked\r\n")),
        ("identity", coded("Transfer-Encoding: identity\r\n")),
        ("identity beside a length", post("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", "abc")),
        ("chunked twice", coded("Transfer-Encoding: chunked, chunked\r\n")),
        ("codings in two lines", coded(&format!("Transfer-Encoding: identity\r\n{CHUNKED}"))),
        ("chunked in two lines", coded(&format!("{CHUNKED}{CHUNKED}"))),
        ("an empty coding before chunked", coded("Transfer-Encoding: , chunked\r\n")),
        ("chunked, then a comma", coded("Transfer-Encoding: chunked,\r\n")),
        ("chunked in quotes", coded("Transfer-Encoding: \"chunked\"\r\n")),
        ("chunked with a parameter", coded("Transfer-Encoding: chunked;q=1\r\n")),
        ("a tab before chunked", coded("Transfer-Encoding:\tchunked\r\n")),
        ("blanks behind chunked", coded("Transfer-Encoding: chunked \t\r\n")),
        ("a vertical tab before chunked", coded("Transfer-Encoding: \u{b}chunked\r\n")),
        ("a space before the colon", coded("Transfer-Encoding : chunked\r\n")),
        ("a folded line", coded("Transfer-Encoding:\r\n chunked\r\n")),
        ("a line that begins with a space", coded(" Transfer-Encoding: chunked\r\n")),
        (
            "a coding with an underscore, and a length",
            post("Transfer_Encoding: chunked\r\nContent-Length: 3\r\n", "abc"),
        ),
        ("HTTP/1.0 with chunks", coded(CHUNKED).replacen("HTTP/1.1", "HTTP/1.0", 1)),
        (
            "HTTP/1.0 with a length",
            post("Content-Length: 3\r\nConnection: keep-alive\r\n", "abc")
                .replacen("HTTP/1.1", "HTTP/1.0", 1),
        ),
        // Chunks.
        ("a chunk extension", chunks("3;a=b\r\nabc\r\n0\r\n\r\n")),
        ("a quoted chunk extension", chunks("3;a=\"b;c\"\r\nabc\r\n0\r\n\r\n")),
        ("a chunk extension of 20 KB", chunks(&format!("3;a={large}\r\nabc\r\n0\r\n\r\n"))),
        ("a bare line feed in an extension", chunks("3;a\nbc\r\nabc\r\n0\r\n\r\n")),
        ("a bare carriage return in an extension", chunks("3;a\rb\r\nabc\r\n0\r\n\r\n")),
        ("a space behind a size", chunks("3 \r\nabc\r\n0\r\n\r\n")),
        ("a size beyond 64 bits", chunks("fffffffffffffffff\r\nabc\r\n0\r\n\r\n")),
        ("zeros before a size", chunks("00000000000000003\r\nabc\r\n0\r\n\r\n")),
        ("a signed size", chunks("+3\r\nabc\r\n0\r\n\r\n")),
        ("a size with 0x", chunks("0x3\r\nabc\r\n0\r\n\r\n")),
        ("an empty size", chunks("\r\nabc\r\n0\r\n\r\n")),
        ("data longer than its chunk", chunks("3\r\nabcd\r\n0\r\n\r\n")),
        ("a bare line feed behind a size", chunks("3\nabc\r\n0\r\n\r\n")),
        ("a bare line feed behind data", chunks("3\r\nabc\n0\r\n\r\n")),
        ("a bare line feed at the end", chunks("3\r\nabc\r\n0\r\n\n")),
        ("a trailer without a colon", chunks("3\r\nabc\r\n0\r\nX 1\r\n\r\n")),
        ("a bare line feed behind a trailer", chunks("3\r\nabc\r\n0\r\nX: 1\n\r\n")),
        ("trailers of 20 KB", chunks(&format!("3\r\nabc\r\n0\r\nX: {large}\r\n\r\n"))),
        ("trailers", chunks("3\r\nabc\r\n0\r\nX: 1\r\n\r\n")),
        (
            "a length and a coding as trailers",
            chunks("3\r\nabc\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ),
        // Lines.
        ("bare line feeds", "GET /a HTTP/1.1\nHost: b\n\n".to_owned() + NEXT),
        ("a bare line feed within a head", get("X: 1\nTransfer-Encoding: chunked\r\n")),
        ("a bare carriage return", get("X: a\rb\r\n")),
        ("a null byte", get("X: a\0b\r\n")),
        ("empty lines before a request", format!("\r\n\r\n{NEXT}")),
        ("two spaces", "GET  /a HTTP/1.1\r\nHost: b\r\n\r\n".to_owned()),
        ("no version", "GET /a\r\n\r\n".to_owned()),
        ("HTTP/1.2", "GET /a HTTP/1.2\r\nHost: b\r\n\r\n".to_owned()),
        ("HTTP/2.0 in HTTP/1.1's form", "GET /a HTTP/2.0\r\nHost: b\r\n\r\n".to_owned()),
        ("a target with a space", "GET /a b HTTP/1.1\r\nHost: b\r\n\r\n".to_owned()),
        ("a target with a fragment", "GET /a#b HTTP/1.1\r\nHost: b\r\n\r\n".to_owned()),
        ("a target that is no path", "GET a HTTP/1.1\r\nHost: b\r\n\r\n".to_owned()),
        ("Connection says close and keep-alive", get("Connection: keep-alive, close\r\n")),
        ("a method in lower case", "get /a HTTP/1.1\r\nHost: b\r\n\r\n".to_owned()),
        ("a name with a space", get("X Y: 1\r\n")),
        ("no name", get(": 1\r\n")),
        ("no host", "GET /a HTTP/1.1\r\n\r\n".to_owned()),
        ("two hosts", get("Host: c\r\n")),
        ("another host in the target", "GET http://c/a HTTP/1.1\r\nHost: b\r\n\r\n".to_owned()),
        ("CONNECT", "CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n".to_owned()),
        ("101 fields", get(&"X: 1\r\n".repeat(100))),
        ("a head of 70 KB", get(&format!("X: {}\r\n", "x".repeat(70_000)))),
        (
            "Connection names what frames",
            post("Connection: content-length, host\r\nContent-Length: 3\r\n", "abc"),
        ),
        // Upgrades.
        ("an upgrade that is declined", get(upgrade)),
        (
            "an upgrade to h2c",
            get("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        ),
        ("an upgrade with a body", post(&format!("{upgrade}Content-Length: 3\r\n"), "abc")),
        ("requests one behind the other", format!("{NEXT}{NEXT}{NEXT}")),
    ];
    let mut cases: Vec<Case> = whole
        .into_iter()
        .map(|(name, sent)| Case { name: name.to_owned(), sent: vec![sent.into()], ends: false })
        .collect();
    cases.extend([
        Case {
            name: "a body that waits for a word".to_owned(),
            sent: vec![
                "POST /a HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n".into(),
                "abc".into(),
            ],
            ends: false,
        },
        Case {
            name: "another expectation".to_owned(),
            sent: vec![post("Expect: more\r\nContent-Length: 3\r\n", "abc").into()],
            ends: false,
        },
        Case {
            name: "a body that ends early".to_owned(),
            sent: vec!["POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc".into()],
            ends: true,
        },
        Case {
            name: "chunks that end early".to_owned(),
            sent: vec![format!("POST /a HTTP/1.1\r\nHost: b\r\n{CHUNKED}\r\n3\r\nab").into()],
            ends: true,
        },
        Case { name: "a client that ends its side".to_owned(), sent: vec![NEXT.into()], ends: true },
    ]);
    cases
}

pub(super) const ANSWERS: &[Answer] = &[
    answer("a length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ending("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
    answer("the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    ending("a signed length", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
    answer("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    answer(
        "chunked and a length",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    ending(
        "a coding before chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    ending("another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok"),
    ending("no length", "HTTP/1.1 200 OK\r\n\r\nall of it"),
    answer(
        "103 before it",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    answer(
        "100 that nobody asked for",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    ending(
        "101 that nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ),
    answer("204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n"),
    answer("204 with a length of 0", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
    answer("204 with a body", "HTTP/1.1 204 No Content\r\n\r\nok"),
    answer(
        "204 in chunks",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    answer("304 with a body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"),
    answer("to HEAD, with a body", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    answer("304 with a length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"),
    answer("to HEAD, with a length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
    answer("to HEAD, in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ending("its end before its length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok"),
    ending(
        "its end in the midst of chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    ),
    answer("bytes behind it", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nmore"),
    ending("a null byte", "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n"),
    ending("a space before a colon", "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n"),
    ending("a folded line", "HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok"),
    ending("bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    ending("no HTTP", "ICY 200 OK\r\n\r\n"),
    ending(
        "HTTP/1.0 with chunks",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    ending("nothing", ""),
];

const fn answer(name: &'static str, sent: &'static str) -> Answer {
    Answer { name, sent, ends: false }
}

const fn ending(name: &'static str, sent: &'static str) -> Answer {
    Answer { name, sent, ends: true }
}
