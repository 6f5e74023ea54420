//! Saying no in the client's own language: HTTP 403 with the reason, a TLS alert, a reset.

use crate::{
    codec::Own,
    denial::Reason,
    hello::{Opening, opening},
    io::{Reset, Stream},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, rt::Executor, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::timeout,
};

/// The header that names the reason.
pub const DENIED: header::HeaderName = header::HeaderName::from_static("x-meridian-denied");

/// How long a refused client may take to hear of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for a client's first bytes, to answer in its language (as detection of captured traffic).
const LISTEN: Duration = Duration::from_millis(300);
/// Read and thrown away so that a close does not turn into a reset that overtakes the alert.
const LEFTOVER: u64 = 64 * 1024;

/// What the client speaks, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    Http,
    Tls,
    Tcp,
    /// Nothing was read yet: to be heard from the first bytes.
    Unknown,
}

/// TLS alerts, as far as we send them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    AccessDenied = 49,
    DecodeError = 50,
    UnrecognizedName = 112,
}

/// Spawns on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}

/// Refuses a connection and ends it.
pub async fn refuse<S: Stream>(mut stream: S, reset: &Reset, speech: Speech, reason: &Reason) {
    let mut read = BytesMut::new();
    let speech = match speech {
        Speech::Unknown => hear(&mut stream, &mut read).await,
        known => known,
    };
    match speech {
        Speech::Http => forbid(crate::io::Rewind::new(read.freeze(), stream), reason).await,
        Speech::Tls => alert(stream, Alert::AccessDenied).await,
        Speech::Tcp | Speech::Unknown => reset.arm(),
    }
}

/// An alert in the clear, before any handshake: what a client shows instead of a lost connection.
pub async fn alert<S: Stream>(mut stream: S, alert: Alert) {
    let record = [21, 3, 3, 0, 2, 2, alert as u8];
    let said = async {
        stream.write_all(&record).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LEFTOVER), &mut tokio::io::sink()).await
    };
    // The client may be gone already.
    let _ = timeout(PATIENCE, said).await;
}

/// 403 to the first request, HTTP/1.1 or HTTP/2. A client that keeps connections is not to ask here again: by then it may
/// be let through.
pub async fn forbid<S: Stream>(stream: S, reason: &Reason) {
    let (reason, asked) = (reason.clone(), Notify::new());
    let service = service_fn(|_: Request<Incoming>| {
        asked.notify_one();
        let response: Response<Full<Bytes>> = forbidden(&reason);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
    builder.http1().keep_alive(false).timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let first = async {
        tokio::select! {
            _ = connection.as_mut() => true,
            () = asked.notified() => false,
        }
    };
    if timeout(PATIENCE, first).await != Ok(true) {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(PATIENCE, connection).await;
    }
}

/// The response that refuses a request.
pub fn forbidden<B: From<String>>(reason: &Reason) -> Response<B> {
    let text = format!("refused by the mesh: {reason}\n");
    answer(StatusCode::FORBIDDEN, Some(reason), text)
}

/// A response of our own. `reason` only where it is a refusal, not a failure.
pub fn answer<B: From<String>>(status: StatusCode, reason: Option<&Reason>, text: String) -> Response<B> {
    let mut response = Response::new(B::from(text.clone()));
    response.extensions_mut().insert(Own(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    if let Some(value) = reason.and_then(|reason| HeaderValue::from_str(reason.as_str()).ok()) {
        response.headers_mut().insert(DENIED, value);
    }
    response
}

/// Waits a little for first bytes, and tells by them.
async fn hear<S: Stream>(stream: &mut S, read: &mut BytesMut) -> Speech {
    let listen = async {
        loop {
            if let Some(speech) = tell(read) {
                return speech;
            }
            match stream.read_buf(read).await {
                Ok(0) | Err(_) => return Speech::Tcp,
                Ok(_) => {}
            }
        }
    };
    timeout(LISTEN, listen).await.unwrap_or(Speech::Tcp)
}

/// By a few first bytes; `None` while they are too few.
fn tell(read: &[u8]) -> Option<Speech> {
    match opening(read) {
        Opening::Tls => return Some(Speech::Tls),
        Opening::Undecided if read.len() < 2 => return None,
        _ => {}
    }
    // A request line begins with a method: capital letters and a space.
    let method = read.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match read.get(method) {
        Some(b' ') if method >= 3 => Some(Speech::Http),
        None if method < 20 => None,
        _ => Some(Speech::Tcp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        assert_eq!(tell(b"GET / HTTP/1.1"), Some(Speech::Http));
        assert_eq!(tell(b"PRI * HTTP/2.0"), Some(Speech::Http));
        assert_eq!(tell(b"GE"), None);
        assert_eq!(tell(b""), None);
        assert_eq!(tell(&[22, 3, 1, 2, 0, 1]), Some(Speech::Tls));
        assert_eq!(tell(b"SSH-2.0"), Some(Speech::Tcp));
        assert_eq!(tell(&[0, 0, 0, 8]), Some(Speech::Tcp));
    }

    #[tokio::test]
    async fn tls_clients_get_an_alert() {
        let (mut client, server) = tokio::io::duplex(256);
        client.write_all(&crate::hello::samples::Sample::named("a.example").bytes()).await.unwrap();
        let heard = tokio::spawn(async move {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.map(|_| got)
        });
        refuse(server, &Reset::default(), Speech::Unknown, &Reason::NOT_LISTED).await;
        assert_eq!(heard.await.unwrap().unwrap(), [21, 3, 3, 0, 2, 2, 49]);
    }

    #[tokio::test]
    async fn http_clients_get_403_with_the_reason() {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        let heard = tokio::spawn(async move {
            let mut got = String::new();
            client.read_to_string(&mut got).await.map(|_| got)
        });
        refuse(server, &Reset::default(), Speech::Unknown, &Reason::NOT_LISTED).await;
        let got = heard.await.unwrap().unwrap();
        assert!(
            got.starts_with("HTTP/1.1 403 ") && got.contains("x-meridian-denied: not-listed\r\n"),
            "{got}"
        );
    }
}
