//! The one body type: what comes in goes out, and what hangs on it (a pooled connection, a counter) goes with it.

use super::{
    filtered::{Filtered, Guard},
    h1,
    incoming::Incoming,
    kept::{Kept, Room},
    mirrored::{CopyFrom, CopyTo},
    pace::Paced,
    replay::{Reader, Tape},
    scripted::Scripted,
    serve::Busy,
};
use crate::{
    exchange::{Cause, Flags, Watch},
    metrics::Traffic,
    policy::{
        at_once::Active,
        filter::BodyExaminer,
        timeouts::{Clock, Late},
    },
    timer::Sleep,
    upstream::Sending,
};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    num::NonZeroU64,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

/// A request's or response's body.
pub struct Body {
    kind: Kind,
    counted: Option<Counted>,
    /// What ends with the body: the place in an upstream connection.
    sending: Option<Sending>,
    timed: Timed,
    /// Who gets a copy of what passes.
    copies: Option<Box<[CopyTo]>>,
    watch: Option<Watch>,
    /// Of an answer of the proxy's own.
    cause: Option<&'static Cause>,
    /// Its connection is in use as long as there is a body on it.
    _busy: Option<Busy>,
    /// Counted as under way as long as there is a body.
    active: Option<Active>,
}

/// Which part of a stream with a clock a body is.
enum Timed {
    Not,
    Request(Rc<Clock>),
    Response(Rc<Clock>, Option<Sleep>),
}

pub(super) enum Kind {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    /// Read through a tape, which can be read again.
    Taped(Reader),
    /// Goes no faster than it may.
    Paced(Box<Paced<Source>>),
    /// Read by a script, which may have put another one in its place.
    Kept(Box<Kept>),
    /// A script sees it pass.
    Scripted(Box<Scripted>),
    /// Examined on its way.
    Filtered(Box<Filtered>),
    /// A copy of another request's.
    Copy(CopyFrom),
}

/// A body without what hangs on it: what others are made of.
pub(crate) struct Source(Kind);

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
    #[error("the other side ended the body early")]
    Http2(#[from] ::h2::Error),
    #[error("the body can't be read")]
    Http1(#[source] h1::Error),
    #[error("the stream exceeded its limit: {0:?}")]
    Late(Late),
    #[error("the request is blocked")]
    Blocked,
    #[error("the request is sent anew")]
    Replaced,
    #[error("the copy is not whole")]
    GivenUp,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Body {
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::of(Kind::Full(bytes.into()))
    }

    pub fn incoming(incoming: impl Into<Incoming>) -> Self {
        Self::of(Kind::Incoming(incoming.into()))
    }

    /// Without its bytes; what hangs on it stays.
    pub fn emptied(mut self) -> Self {
        self.kind = Kind::Empty;
        self
    }

    /// What passes of another body.
    pub fn copy_of(copy: CopyFrom) -> Self {
        Self::of(Kind::Copy(copy))
    }

    /// From now on what passes is copied to these, as long as they keep up.
    pub fn copied(&mut self, to: Vec<CopyTo>) {
        self.copies = (!to.is_empty()).then(|| to.into());
    }

    /// A body that was sent before, once more.
    pub fn again(reader: Reader) -> Self {
        Self::of(Kind::Taped(reader))
    }

    /// From now on what is read is kept, so that it can be read again. `None`: there is nothing to read, or it is held
    /// back for the server's word.
    pub fn tape(&mut self) -> Option<Tape> {
        match std::mem::replace(&mut self.kind, Kind::Empty) {
            kind @ (Kind::Full(_) | Kind::Incoming(_) | Kind::Kept(_) | Kind::Scripted(_))
                if !kind.is_end_stream() =>
            {
                let tape = Tape::new(Source(kind));
                self.kind = tape.read().map_or(Kind::Empty, Kind::Taped);
                Some(tape)
            }
            other => {
                self.kind = other;
                None
            }
        }
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            counted: None,
            sending: None,
            timed: Timed::Not,
            copies: None,
            watch: None,
            cause: None,
            _busy: None,
            active: None,
        }
    }

    /// The request of a stream that has a clock.
    #[must_use]
    pub fn request(mut self, clock: Option<Rc<Clock>>) -> Self {
        self.timed = clock.map_or(Timed::Not, Timed::Request);
        self
    }

    /// The answer of a stream that has a clock: it ends with an error when the stream is late.
    pub fn response(&mut self, clock: Option<Rc<Clock>>) {
        self.timed = clock.map_or(Timed::Not, |clock| Timed::Response(clock, None));
    }

    /// Tells an exchange of what passes.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Says why the proxy gives this answer.
    pub fn because(&mut self, cause: &'static Cause) {
        self.cause = Some(cause);
    }

    pub fn cause(&self) -> Option<&'static Cause> {
        self.cause
    }

    /// From now on no more bytes a second go: of a body that comes from elsewhere.
    pub fn pace(&mut self, bytes_per_second: NonZeroU64) {
        self.kind = match std::mem::replace(&mut self.kind, Kind::Empty) {
            kind @ (Kind::Incoming(_) | Kind::Kept(_) | Kind::Scripted(_)) if !kind.is_end_stream() => {
                Kind::Paced(Box::new(Paced::new(Source(kind), bytes_per_second)))
            }
            other => other,
        };
    }

    pub(super) fn busy(&mut self, busy: Busy) {
        self._busy = Some(busy);
    }

    /// Counts as under way until the body has ended, beside what is counted already.
    pub fn active(&mut self, active: Option<Active>) {
        self.active = match (self.active.take(), active) {
            (Some(own), Some(active)) => Some(own.and(active)),
            (own, active) => own.or(active),
        };
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

    /// Examines what is read from now on; `examiner` unset: trailers only.
    #[must_use]
    pub fn filtered(mut self, guard: Rc<Guard>, examiner: Option<BodyExaminer>) -> Self {
        self.kind = match std::mem::replace(&mut self.kind, Kind::Empty) {
            Kind::Incoming(incoming) => Kind::Filtered(Box::new(Filtered::new(incoming, guard, examiner))),
            other => other,
        };
        self
    }

    /// From now on it is what was read of it, or what a script has put in its place: its bytes are counted already.
    pub(crate) fn keep(&mut self, kept: Kept) {
        self.kind = Kind::Kept(Box::new(kept));
        self.counted = None;
        self.watch = None;
    }

    /// Other bytes in place of its own; its trailers stay, if they were read.
    pub(crate) fn replace(&mut self, bytes: Bytes, room: Room) {
        let trailers = match &mut self.kind {
            Kind::Kept(kept) => kept.take_trailers(),
            _ => None,
        };
        self.keep(Kept::new(bytes, trailers, room));
    }

    /// From now on a script sees it pass.
    pub(crate) fn scripted(&mut self, wrap: impl FnOnce(Source) -> Scripted) {
        let kind = std::mem::replace(&mut self.kind, Kind::Empty);
        self.kind = Kind::Scripted(Box::new(wrap(Source(kind))));
    }

    /// Whether its time is over, while nobody takes what it has.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self.tick(cx, &Poll::Pending) {
            Some(late) => Poll::Ready(self.late(late)),
            None => Poll::Pending,
        }
    }

    fn late(&self, late: Late) -> BodyError {
        if let Some(counted) = &self.counted {
            counted.traffic.cell(counted.worker).timeouts.inc();
        }
        if let Some(watch) = &self.watch {
            watch.broken(Flags::TIMEOUT);
        }
        BodyError::Late(late)
    }

    fn tick(&mut self, cx: &mut Context<'_>, polled: &Polled) -> Option<Late> {
        let moved = matches!(polled, Poll::Ready(Some(Ok(_))));
        match &mut self.timed {
            Timed::Not => {}
            Timed::Request(clock) if moved => clock.moved(),
            Timed::Response(clock, _) if moved => clock.moved(),
            Timed::Response(clock, alarm) if polled.is_pending() => match clock.poll_late(cx, alarm) {
                Poll::Ready(late) => return Some(late),
                Poll::Pending => {}
            },
            Timed::Request(_) | Timed::Response(..) => {}
        }
        None
    }

    fn finished(&mut self) {
        if let Timed::Request(clock) = &self.timed {
            clock.sent();
        }
        self.copies.take().into_iter().flatten().for_each(CopyTo::end);
        if let Some(sending) = self.sending.take() {
            sending.complete();
        }
        if let Some(watch) = &self.watch {
            watch.ended();
        }
    }

    /// `fresh`: what is read was not read before.
    fn tell(&self, polled: &Polled, fresh: bool) {
        let Some(watch) = &self.watch else { return };
        match polled {
            Poll::Ready(Some(Ok(frame))) if fresh => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => watch.data(data.len()),
                (None, Some(trailers)) => watch.trailers(trailers),
                (None, None) => {}
            },
            Poll::Ready(Some(Err(_))) => watch.broken(Flags::UPSTREAM_ENDED),
            Poll::Ready(Some(Ok(_)) | None) | Poll::Pending => {}
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::full(text)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        let (polled, fresh) = this.kind.poll(cx);
        if let Some(late) = this.tick(cx, &polled) {
            return Poll::Ready(Some(Err(this.late(late))));
        }
        this.tell(&polled, fresh);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(counted), true) = (frame.data_ref(), &this.counted, fresh) {
                    counted.add(data.len());
                }
                this.copies.iter().flatten().for_each(|copy| copy.push(frame));
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
        self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.kind.size_hint()
    }
}

impl Kind {
    /// The next frame, and whether it is read for the first time.
    fn poll(&mut self, cx: &mut Context<'_>) -> (Polled, bool) {
        let mut fresh = true;
        let polled = match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Paced(paced) => paced.poll(cx),
            Self::Kept(kept) => Poll::Ready(kept.next().map(Ok)),
            Self::Scripted(scripted) => scripted.poll(cx),
            Self::Filtered(filtered) => filtered.poll(cx),
            Self::Copy(copy) => copy.poll(cx),
            Self::Taped(reader) => reader.poll(cx).map(|read| {
                read.map(|result| {
                    result.map(|(frame, first)| {
                        fresh = first;
                        frame
                    })
                })
            }),
        };
        (polled, fresh)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Paced(paced) => paced.is_end_stream(),
            Self::Kept(kept) => kept.is_end_stream(),
            Self::Scripted(scripted) => scripted.is_end_stream(),
            Self::Filtered(filtered) => filtered.is_end_stream(),
            Self::Copy(copy) => copy.is_end_stream(),
            Self::Taped(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Paced(paced) => paced.size_hint(),
            Self::Kept(kept) => kept.size_hint(),
            Self::Scripted(scripted) => scripted.size_hint(),
            Self::Filtered(filtered) => filtered.size_hint(),
            Self::Copy(_) => SizeHint::default(),
            Self::Taped(reader) => reader.size_hint(),
        }
    }
}

impl HttpBody for Source {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        self.0.poll(cx).0
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that is known to be over need not be polled again (HEAD, 204, 304, an empty one).
        if self.is_end_stream() {
            self.finished();
        } else if let Some(watch) = self.watch.as_ref().filter(|_| self.size_hint().exact() == Some(0)) {
            // All of its length has passed: HTTP/1.1 does not read on for the end of the stream.
            watch.ended();
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
