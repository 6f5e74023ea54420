//! The body of the fuzz target `http1`: what the codec takes from one connection and writes to the next is the same to a
//! reader who is stricter than any server, with the same number of messages and the same bodies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a fuzz target fails by panicking"
)]

use super::{
    Error,
    decode::{Decoder, Piece},
    encode::{self, Asked, Encoder},
    out::Out,
    parse::{self, Framing, Partial},
};
use crate::codec::head::{authority, prepare, receive, strip_response};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, uri::Authority};
use http_body::SizeHint;
use std::task::{Context, Waker};

/// Bytes that come at once: all that there are, or few.
const STEPS: [usize; 3] = [usize::MAX, 1, 7];

/// A message as it came.
#[derive(Debug)]
struct Came<T> {
    head: T,
    framing: Framing,
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
}

impl<T> Came<T> {
    fn body(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    fn fields_behind(&self) -> usize {
        self.trailers.as_ref().map_or(0, HeaderMap::len)
    }

    /// What its encoder is told of its length.
    fn size(&self) -> SizeHint {
        match self.framing {
            Framing::Length(length) => SizeHint::with_exact(length),
            Framing::Chunked | Framing::End => SizeHint::default(),
        }
    }

    fn write(&self, out: &mut Out, mut encoder: Encoder) {
        for piece in &self.pieces {
            encoder.data(out, piece.clone()).unwrap();
        }
        encoder.end(out, self.trailers.as_ref()).unwrap();
    }
}

/// All messages of a connection, up to its end, to what is none, or to the one that says that it is the last.
fn messages<T>(
    bytes: &[u8],
    step: usize,
    mut head: impl FnMut(&mut BytesMut, &mut Partial) -> Result<Option<(T, Framing, bool)>, Error>,
) -> Vec<Came<T>> {
    let (mut buffer, mut rest, mut all) = (BytesMut::new(), bytes, Vec::new());
    let more = |buffer: &mut BytesMut, rest: &mut &[u8]| {
        let (now, later) = rest.split_at(step.min(rest.len()));
        buffer.extend_from_slice(now);
        *rest = later;
        !now.is_empty()
    };
    loop {
        let mut partial = Partial::default();
        let (head, framing, keep) = loop {
            match head(&mut buffer, &mut partial) {
                Ok(Some(head)) => break head,
                Ok(None) if more(&mut buffer, &mut rest) => {}
                Ok(None) | Err(_) => return all,
            }
        };
        let mut decoder = Decoder::from(framing);
        let mut came = Came { head, framing, pieces: Vec::new(), trailers: None };
        while !decoder.is_done() {
            match decoder.next(&mut buffer) {
                Ok(Piece::Data(data)) => came.pieces.push(data),
                Ok(Piece::Trailers(fields)) => came.trailers = Some(fields),
                Ok(Piece::End) => {}
                Ok(Piece::More) if more(&mut buffer, &mut rest) || decoder.ended() => {}
                Ok(Piece::More) => return all,
                Err(_) => {
                    assert!(decoder.next(&mut buffer).is_err(), "nothing follows what is no body");
                    return all;
                }
            }
        }
        all.push(came);
        if !keep {
            return all;
        }
    }
}

/// Connections of any bytes: as a client's, and as a server's. How many messages went on to the next hop.
pub fn run(bytes: &[u8]) -> usize {
    requests(bytes) + [Method::GET, Method::HEAD].iter().map(|method| answers(bytes, method)).sum::<usize>()
}

fn requests(bytes: &[u8]) -> usize {
    let [whole, ones, some] = STEPS.map(|step| {
        messages(bytes, step, |buffer, partial| {
            let head = parse::request(buffer, partial)?;
            Ok(head.map(|head| (head.request, head.framing, head.keep)))
        })
    });
    let mut out = Out::default();
    let mut passed = Vec::new();
    for came in &whole {
        let mut request = came.head.clone();
        receive(&mut request);
        // Else it is answered here.
        let Ok(to) = authority(&request) else { continue };
        let to = to.unwrap_or(Authority::from_static("a"));
        prepare(&mut request, &to, false, false);
        let (head, ()) = request.into_parts();
        let encoder = encode::request(&mut out, &head, &came.size());
        came.write(&mut out, encoder);
        passed.push(came);
    }
    let written = written(&mut out);
    let mut reader = Strict(&written);
    for came in &passed {
        let first = reader.line();
        let words: Vec<_> = first.split(' ').collect();
        assert!(words.len() == 3 && !words[1].is_empty() && words[2] == "HTTP/1.1", "{first}");
        assert_eq!(words[0], came.head.method().as_str());
        let (body, behind) = reader.rest_of_message(false);
        assert_eq!((body, behind), (came.body(), came.fields_behind()));
    }
    assert_eq!(reader.0, b"", "a request that nobody sent");
    alike(&whole, &ones, told);
    alike(&whole, &some, told);
    passed.len()
}

fn answers(bytes: &[u8], method: &Method) -> usize {
    let [whole, ones, some] = STEPS.map(|step| {
        messages(bytes, step, |buffer, partial| {
            let head = parse::response(buffer, partial, method)?;
            Ok(head.map(|head| (head.response, head.framing, head.keep)))
        })
    });
    let mut out = Out::default();
    let mut passed = Vec::new();
    for came in whole.iter().filter(|came| !came.head.status().is_informational()) {
        let mut response = came.head.clone();
        strip_response(&mut response);
        let (mut head, ()) = response.into_parts();
        let asked =
            Asked { head: *method == Method::HEAD, version: Version::HTTP_11, trailers: true, keep: true };
        let (encoder, _) = encode::response(&mut out, &mut head, &came.size(), &asked);
        if !is_bodiless(came.head.status(), method) {
            came.write(&mut out, encoder);
        }
        passed.push(came);
    }
    let written = written(&mut out);
    let mut reader = Strict(&written);
    for came in &passed {
        let first = reader.line();
        let status = came.head.status();
        assert!(first.starts_with(&format!("HTTP/1.1 {} ", status.as_str())), "{first}");
        let (body, behind) = reader.rest_of_message(is_bodiless(status, method));
        assert_eq!((body, behind), (came.body(), came.fields_behind()));
    }
    assert_eq!(reader.0, b"", "an answer that nobody gave");
    alike(&whole, &ones, answered);
    alike(&whole, &some, answered);
    passed.len()
}

fn is_bodiless(status: StatusCode, method: &Method) -> bool {
    *method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn told(request: &Request<()>) -> String {
    format!("{} {} {:?}", request.method(), request.uri(), request.headers())
}

fn answered(response: &Response<()>) -> String {
    format!("{} {:?}", response.status(), response.headers())
}

/// In how many pieces the bytes came makes no difference.
fn alike<T>(some: &[Came<T>], others: &[Came<T>], head: impl Fn(&T) -> String) {
    assert_eq!(some.len(), others.len());
    for (one, other) in some.iter().zip(others) {
        assert_eq!(head(&one.head), head(&other.head));
        assert_eq!((one.framing, one.body(), &one.trailers), (other.framing, other.body(), &other.trailers));
    }
}

fn written(out: &mut Out) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert!(out.poll_write(&mut bytes, &mut Context::from_waker(Waker::noop())).is_ready());
    bytes
}

/// A reader that knows the grammar of RFC 9112 without any of what it lets a recipient tolerate, and takes nothing from the
/// codec.
struct Strict<'a>(&'a [u8]);

impl Strict<'_> {
    fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken.to_vec()
    }

    /// A line, without its end: no other control characters than tabs.
    fn line(&mut self) -> String {
        let end = self.0.windows(2).position(|two| two == b"\r\n").expect("a line has an end");
        let line = self.take(end);
        self.take(2);
        assert!(line.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 127)), "{line:?}");
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Fields up to the empty line, with names in lower case.
    fn fields(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return all;
            }
            let (name, value) = line.split_once(':').expect("a field has a colon");
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert!(!name.is_empty() && name.bytes().all(is_token), "{line:?}");
            all.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// Fields and body; the body, and how many fields are behind it.
    fn rest_of_message(&mut self, bodiless: bool) -> (Vec<u8>, usize) {
        let fields = self.fields();
        let of = |name: &str| fields.iter().filter(|field| field.0 == name).map(|field| &field.1).collect();
        let (lengths, codings): (Vec<_>, Vec<_>) = (of("content-length"), of("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "its length is said once: {fields:?}");
        assert!(codings.iter().all(|coding| *coding == "chunked"));
        assert!(lengths.iter().all(|length| length.bytes().all(|byte| byte.is_ascii_digit())));
        match (lengths.first(), codings.first()) {
            _ if bodiless => (Vec::new(), 0),
            (Some(length), _) => (self.take(length.parse().unwrap()), 0),
            (None, None) => (Vec::new(), 0),
            (None, Some(_)) => self.chunks(),
        }
    }

    fn chunks(&mut self) -> (Vec<u8>, usize) {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line(), 16).unwrap();
            if size == 0 {
                return (body, self.fields().len());
            }
            body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use proptest::{collection::vec, prelude::*, sample::select};

    /// What heads and bodies are made of, and what is taken for it.
    const PARTS: &[&str] = &[
        "GET / HTTP/1.1\r\n",
        "POST /a HTTP/1.1\r\n",
        "POST /a HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "GET http://a?b HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200\r\n",
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 304 Not Modified\r\n",
        "HTTP/1.1 103 Early Hints\r\n",
        "Host: a\r\n",
        "Content-Length: 3\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 03\r\n",
        "Content-Length : 3\r\n",
        "Content-Length: 3, 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked \t\r\n",
        "Transfer-Encoding: , chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: content-length, transfer-encoding, x\r\n",
        "TE: trailers\r\n",
        "Trailer: x\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: x\r\nConnection: upgrade\r\n",
        "X: 1\r\n",
        "X: 1\n",
        "X: a\u{e4}\r\n",
        " folded\r\n",
        "\r\n",
        "\n",
        "\r",
        "abc",
        "3\r\nabc\r\n",
        "3;x=y\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "+3\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\nX: 1\r\nHost: b\r\n\r\n",
        "ffffffffffffffff\r\n",
        "0",
    ];

    #[test]
    fn what_is_plain_passes() {
        for (bytes, passed) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
                2,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX: 1\r\n\r\n",
                1,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", 0),
            // As an answer to GET, and to HEAD.
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 2),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", 2),
        ] {
            assert_eq!(run(bytes.as_bytes()), passed, "{bytes:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn what_passes_has_one_meaning(parts in vec(select(PARTS), 0..16), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..2)) {
            let mut bytes = parts.concat().into_bytes();
            run(&bytes);
            for (at, byte) in changes.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            run(&bytes);
        }

        /// Heads that are likelier to be taken.
        #[test]
        fn whole_messages_have_one_meaning(messages in vec((select(&PARTS[..10]), vec(select(&PARTS[11..32]), 0..4), select(&PARTS[32..])), 1..4)) {
            let text: String = messages.iter().map(|(first, fields, body)| format!("{first}Host: a\r\n{}\r\n{body}", fields.concat())).collect();
            run(text.as_bytes());
        }

        #[test]
        fn any_bytes_come_to_something(bytes in vec(any::<u8>(), 0..200)) {
            run(&bytes);
        }
    }
}
