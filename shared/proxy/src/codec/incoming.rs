//! A body as it comes from a connection: of our own HTTP/1.1, of an answer over HTTP/2, or of a request that hyper read.

use super::{BodyError, h1, h2};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming as Hypers;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// What comes over a connection.
pub enum Incoming {
    Http1(h1::Incoming),
    Http2(h2::Received),
    Hyper(Hypers),
}

impl From<Hypers> for Incoming {
    fn from(body: Hypers) -> Self {
        Self::Hyper(body)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Http1(body) => body.poll(cx).map_err(BodyError::Http1),
            Self::Http2(body) => body.poll(cx),
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Incoming),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Hyper(body) => body.size_hint(),
        }
    }
}
