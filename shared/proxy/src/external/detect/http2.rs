//! The name in the first request of an HTTP/2 connection that is only listened to.
//!
//! It is compressed, and may come in several frames. hyper reads it from a copy of what was heard, over a stream that
//! has nothing behind it: what it would answer goes nowhere, and the client's bytes stay as they are.

use crate::host::Asked;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `None`: not all of it is there. `Some(None)`: it names no host.
pub(super) fn first_request(heard: &[u8]) -> Option<Option<Asked>> {
    let found = RefCell::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        found.borrow_mut().get_or_insert_with(|| named(&request));
        std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new())))
    });
    let mut builder = http2::Builder::new(Nobody);
    builder.max_header_list_size(super::MAX_HEARD as u32);
    let connection = builder.serve_connection(TokioIo::new(Copy(heard)), service);
    let ended = pin!(connection).poll(&mut Context::from_waker(Waker::noop())).is_ready();
    let found = found.take();
    if ended { found.or(Some(None)) } else { found }
}

/// `:authority`, else Host; where there are two, they must agree.
fn named<B>(request: &Request<B>) -> Option<Asked> {
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    let host = hosts.next().map(|value| value.to_str().ok().and_then(host_of));
    let authority = request.uri().authority().map(|authority| host_of(authority.as_str()));
    match (authority, host) {
        _ if hosts.next().is_some() => None,
        (Some(authority), Some(host)) if authority != host => None,
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => None,
    }
}

fn host_of(text: &str) -> Option<Asked> {
    Asked::from_authority(text).ok().map(|(asked, _)| asked)
}

/// The requests' tasks: nothing is ever answered.
#[derive(Clone)]
struct Nobody;

impl<F: Future> Executor<F> for Nobody {
    fn execute(&self, _: F) {}
}

/// Reads what was heard and then waits; writes into nowhere.
struct Copy<'a>(&'a [u8]);

impl AsyncRead for Copy<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (now, rest) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Copy<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// The first bytes of a client that asks for `uri` without waiting for the server.
    pub(crate) async fn request(uri: &str) -> Vec<u8> {
        let (client, mut server) = tokio::io::duplex(64 * 1024);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(client)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::builder().uri(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
        let asking = tokio::spawn(sender.send_request(request));
        let mut sent = Vec::new();
        while first_request(&sent).is_none() {
            server.read_buf(&mut sent).await.unwrap();
        }
        asking.abort();
        driver.abort();
        sent
    }

    #[tokio::test]
    async fn a_beginning_is_not_decided_and_garbage_names_nobody() {
        let bytes = request("http://api.example/").await;
        assert_eq!(first_request(&bytes), Some("api.example".parse().ok()));
        assert_eq!(first_request(&bytes[..bytes.len() - 1]), None);
        assert_eq!(first_request(b"PRI * HTTP/1.0\r\n\r\nSM\r\n\r\n"), Some(None));
    }
}
