//! The one body type: what comes in goes out, and what hangs on it (a pooled connection, a counter) goes with it.

use crate::{metrics::Traffic, upstream::Sending};
use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

/// A request's or response's body.
pub struct Body {
    kind: Kind,
    counted: Option<Counted>,
    /// What ends with the body: the place in an upstream connection.
    sending: Option<Sending>,
}

enum Kind {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    /// Not read before the gate opens (100-continue).
    Held(Incoming, Arc<Gate>),
}

/// Where a body's bytes are counted.
pub struct Counted {
    pub traffic: Arc<Traffic>,
    pub worker: usize,
    /// Towards downstream.
    pub response: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the other side ended the body early")]
    Incoming(#[from] hyper::Error),
}

/// Opens once; a body behind it then flows.
#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Body {
    pub fn empty() -> Self {
        Self { kind: Kind::Empty, counted: None, sending: None }
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Full(bytes.into()), counted: None, sending: None }
    }

    pub fn incoming(incoming: Incoming) -> Self {
        Self { kind: Kind::Incoming(incoming), counted: None, sending: None }
    }

    #[must_use]
    pub fn counted(mut self, counted: Counted) -> Self {
        self.counted = Some(counted);
        self
    }

    #[must_use]
    pub fn with(mut self, sending: Sending) -> Self {
        self.sending = Some(sending);
        self
    }

    /// Holds the body back until the gate opens.
    #[must_use]
    pub fn held(mut self, gate: Arc<Gate>) -> Self {
        self.kind = match std::mem::replace(&mut self.kind, Kind::Empty) {
            Kind::Incoming(incoming) => Kind::Held(incoming, gate),
            other => other,
        };
        self
    }

    fn finished(&mut self) {
        if let Some(sending) = self.sending.take() {
            sending.complete();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Kind::Held(_, gate) = &this.kind {
            gate.waker.register(cx.waker());
            if !gate.open.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            this.kind = match std::mem::replace(&mut this.kind, Kind::Empty) {
                Kind::Held(incoming, _) => Kind::Incoming(incoming),
                other => other,
            };
        }
        let polled = match &mut this.kind {
            Kind::Empty | Kind::Held(..) => Poll::Ready(None),
            Kind::Full(_) => match std::mem::replace(&mut this.kind, Kind::Empty) {
                Kind::Full(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Kind::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::from),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(counted)) = (frame.data_ref(), &this.counted) {
                    counted.add(data.len());
                }
                if this.is_end_stream() {
                    this.finished();
                }
            }
            Poll::Ready(None) => this.finished(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Incoming(incoming) | Kind::Held(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) | Kind::Held(incoming, _) => incoming.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that is known to be over need not be polled again (HEAD, 204, 304, an empty one).
        if self.is_end_stream() {
            self.finished();
        }
    }
}

impl Counted {
    fn add(&self, n: usize) {
        let cell = self.traffic.cell(self.worker);
        let counter = if self.response { &cell.bytes_out } else { &cell.bytes_in };
        counter.add(n as u64);
    }
}
