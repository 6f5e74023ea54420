//! What an application says first, if it is the first to speak.

mod http2;

use crate::{
    hello::{ClientHello, HELLO_TIMEOUT, Opening, Parsed, opening, read},
    host::Asked,
    refuse::Speech,
};
use bytes::BytesMut;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

/// Most that is read before a connection counts as TCP.
pub const MAX_HEARD: usize = 16 * 1024;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_HEADERS: usize = 96;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A request, with its Host if it has exactly one that is valid.
    Http(Option<Asked>),
    /// HTTP/2 without TLS, with the `:authority` of its first request if that came in time and is valid.
    Http2(Option<Asked>),
    /// A ClientHello; `None`: one that can't be read.
    Tls(Option<ClientHello>),
    /// Something else.
    Other,
    /// Nothing, in time, or nothing was listened for.
    Nothing,
}

impl Heard {
    /// The name that was asked for.
    pub fn asked(&self) -> Option<Asked> {
        match self {
            Self::Http(asked) | Self::Http2(asked) => asked.clone(),
            Self::Tls(Some(hello)) => hello.server_name.clone().map(Asked::Name),
            _ => None,
        }
    }

    pub fn speech(&self) -> Speech {
        match self {
            Self::Http(_) | Self::Http2(_) => Speech::Http,
            Self::Tls(_) => Speech::Tls,
            Self::Other => Speech::Tcp,
            Self::Nothing => Speech::Unknown,
        }
    }
}

/// Reads into `buffer` until it is clear what is spoken, for at most `limit`; a ClientHello that has begun by then is
/// waited for longer, since nothing but TLS begins like one.
pub(super) async fn listen<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    limit: Duration,
) -> Heard {
    let began = Instant::now();
    match timeout_at(began + limit, hear(stream, buffer)).await {
        Ok(heard) => heard,
        Err(_) if buffer.is_empty() => Heard::Nothing,
        // A client that waits for the server's settings before its first request.
        Err(_) if buffer.starts_with(HTTP2_PREFACE) => Heard::Http2(None),
        Err(_) if opening(buffer) == Opening::Tls => {
            timeout_at(began + HELLO_TIMEOUT, hear(stream, buffer)).await.unwrap_or(Heard::Other)
        }
        Err(_) => Heard::Other,
    }
}

/// Reads on until it is clear what is spoken. May be cancelled: what was read is in `buffer`.
async fn hear<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Heard {
    let mut wanted = 1;
    loop {
        if buffer.len() >= wanted {
            match tell(buffer) {
                Telling::Heard(heard) => return heard,
                Telling::More(count) => wanted = buffer.len() + count,
            }
        }
        if buffer.len() >= MAX_HEARD {
            return Heard::Other;
        }
        buffer.reserve(2048);
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Heard::Other,
            Ok(_) => {}
        }
    }
}

enum Telling {
    Heard(Heard),
    More(usize),
}

fn tell(bytes: &[u8]) -> Telling {
    match opening(bytes) {
        Opening::Tls => return tls(bytes),
        Opening::Undecided => return Telling::More(1),
        Opening::Other => {}
    }
    let seen = bytes.len().min(HTTP2_PREFACE.len());
    if bytes.get(..seen) == HTTP2_PREFACE.get(..seen) {
        return if bytes.len() < HTTP2_PREFACE.len() {
            Telling::More(1)
        } else {
            http2::first_request(bytes).map_or(Telling::More(1), |asked| Telling::Heard(Heard::Http2(asked)))
        };
    }
    http1(bytes)
}

fn tls(bytes: &[u8]) -> Telling {
    match read(bytes) {
        Ok(Parsed::Hello(hello)) => Telling::Heard(Heard::Tls(Some(hello))),
        Ok(Parsed::Missing(count)) => Telling::More(count),
        Err(_) => Telling::Heard(Heard::Tls(None)),
    }
}

fn http1(bytes: &[u8]) -> Telling {
    // A method is capital letters, then a space; anything else is not worth waiting for.
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match bytes.get(method) {
        Some(b' ') if method >= 3 => {}
        None if method < 20 => return Telling::More(1),
        _ => return Telling::Heard(Heard::Other),
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => Telling::Heard(Heard::Http(host(&request))),
        Ok(httparse::Status::Partial) => Telling::More(1),
        Err(httparse::Error::TooManyHeaders) => Telling::Heard(Heard::Http(None)),
        Err(_) => Telling::Heard(Heard::Other),
    }
}

/// The one Host. Two, or one that is no host, name nothing.
fn host(request: &httparse::Request<'_, '_>) -> Option<Asked> {
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let host = hosts.next()?;
    if hosts.next().is_some() {
        return None;
    }
    let text = std::str::from_utf8(host.value).ok()?;
    Asked::from_authority(text.trim()).ok().map(|(asked, _)| asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::samples::Sample;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    async fn heard(bytes: &[u8], piece: usize) -> (Heard, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(64 * 1024);
        let bytes = bytes.to_vec();
        let writer = tokio::spawn(async move {
            for part in bytes.chunks(piece) {
                if client.write_all(part).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            client
        });
        let mut buffer = BytesMut::new();
        let heard = listen(&mut server, &mut buffer, Duration::from_millis(300)).await;
        drop(writer.await);
        (heard, buffer.to_vec())
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_heard_and_nothing_is_lost() {
        let request = b"GET / HTTP/1.1\r\nAccept: */*\r\nHOST: API.example:8080\r\n\r\nbody";
        for piece in [1, 5, 4096] {
            let (what, read) = heard(request, piece).await;
            assert_eq!(what, Heard::Http(Some("api.example".parse().unwrap())));
            assert!(request.starts_with(&read));
            let hello = Sample::named("api.example").bytes();
            let (what, read) = heard(&hello, piece).await;
            assert_eq!(what.asked(), Some("api.example".parse().unwrap()));
            assert_eq!(read, hello);
        }
        assert_eq!(
            heard(b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", 99).await.0,
            Heard::Http(None)
        );
        let waits = [HTTP2_PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        assert_eq!(heard(&waits, 4).await.0, Heard::Http2(None));
        assert_eq!(heard(b"SSH-2.0-x\r\n", 99).await.0, Heard::Other);
        assert_eq!(heard(&[0, 0, 0, 8, 4, 210, 22, 47], 99).await.0, Heard::Other);
    }

    #[tokio::test(start_paused = true)]
    async fn the_name_of_a_first_http2_request_is_heard() {
        for (uri, name) in [("http://API.example:8080/x", Some("api.example")), ("http://127.1/", None)] {
            let bytes = http2::tests::request(uri).await;
            for piece in [1, 7, 4096] {
                let (what, read) = heard(&bytes, piece).await;
                assert_eq!(what, Heard::Http2(name.map(|name| name.parse().unwrap())), "{uri}");
                assert!(bytes.starts_with(&read));
            }
        }
        let garbage = [HTTP2_PREFACE, &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0xff]].concat();
        assert_eq!(heard(&garbage, 99).await.0, Heard::Http2(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hello_that_has_begun_is_waited_for() {
        let hello = Sample::named("api.example").bytes();
        let (mut client, mut server) = tokio::io::duplex(64 * 1024);
        let bytes = hello.clone();
        tokio::spawn(async move {
            for part in bytes.chunks(bytes.len() / 8) {
                client.write_all(part).await.unwrap();
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        let mut buffer = BytesMut::new();
        let heard = listen(&mut server, &mut buffer, Duration::from_millis(300)).await;
        assert_eq!(heard.asked(), Some("api.example".parse().unwrap()));
        assert_eq!(buffer, hello);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_half_sentences_end_the_wait() {
        assert_eq!(heard(b"", 1).await.0, Heard::Nothing);
        assert_eq!(heard(b"GET / HT", 99).await.0, Heard::Other);
        assert_eq!(heard(&Sample::named("a.example").bytes()[..40], 99).await.0, Heard::Other);
        let long = [b"GET /".to_vec(), vec![b'a'; MAX_HEARD * 2]].concat();
        assert_eq!(heard(&long, 4096).await.0, Heard::Other);
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Telling::More(count) = tell(&bytes) { prop_assert!(count > 0); }
        }
    }
}
