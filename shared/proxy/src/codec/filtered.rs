//! A request's body that is examined on its way: what is not decided yet is held back, and what is blocked ends it.

use super::{BodyError, incoming::Incoming};
use crate::policy::filter::{BodyExaminer, Finding, Place, RequestFilter, What};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use meridian_proxy_config::{FilterAction, RequestPart};
use std::{
    cell::Cell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Told of what is found, and what becomes of it.
type Report = Box<dyn Fn(&Finding, FilterAction)>;

/// The examination of one request: by whom it is held, and whether it was blocked.
pub struct Guard {
    pub filter: Arc<RequestFilter>,
    report: Report,
    blocked: Cell<bool>,
}

impl Guard {
    pub fn new(filter: Arc<RequestFilter>, report: impl Fn(&Finding, FilterAction) + 'static) -> Self {
        Self { filter, report: Box::new(report), blocked: Cell::new(false) }
    }

    pub fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Reports what was found, and says what becomes of the request.
    pub fn judge(&self, finding: &Finding) -> FilterAction {
        let action = self.filter.action(&finding.what);
        (self.report)(finding, action);
        if action == FilterAction::Block {
            self.blocked.set(true);
        }
        action
    }
}

pub(super) struct Filtered {
    source: Incoming,
    guard: Rc<Guard>,
    /// `None`: the rest passes as it comes.
    examiner: Option<BodyExaminer>,
    /// What it found and may only observe is reported.
    reported: bool,
    held: VecDeque<Bytes>,
    passed: u64,
    end: End,
}

enum End {
    NotYet,
    Trailers(HeaderMap),
    Reached,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Filtered {
    pub(super) fn new(source: Incoming, guard: Rc<Guard>, examiner: Option<BodyExaminer>) -> Self {
        Self { source, guard, examiner, reported: false, held: VecDeque::new(), passed: 0, end: End::NotYet }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        loop {
            if self.guard.is_blocked() {
                return Poll::Ready(Some(Err(BodyError::Blocked)));
            }
            if let Some(bytes) = self.release() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            match std::mem::replace(&mut self.end, End::Reached) {
                End::Reached => return Poll::Ready(None),
                End::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                End::NotYet => self.end = End::NotYet,
            }
            match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
                Some(Ok(frame)) => self.take(frame),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.ended(None),
            }
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                let fed = self.examiner.as_mut().map_or(Ok(()), |examiner| examiner.feed(&data));
                self.held.push_back(data);
                self.judge(fed);
                // A body of which all has come need not be polled again.
                if self.source.is_end_stream() || self.source.size_hint().exact() == Some(0) {
                    self.finish();
                }
            }
            Err(frame) => self.ended(frame.into_trailers().ok()),
        }
    }

    fn ended(&mut self, trailers: Option<HeaderMap>) {
        self.finish();
        if let Some(finding) = trailers.as_ref().and_then(|trailers| self.guard.filter.trailers(trailers)) {
            self.guard.judge(&finding);
        }
        self.end = trailers.map_or(End::Reached, End::Trailers);
    }

    fn finish(&mut self) {
        let finished = self.examiner.as_mut().map_or(Ok(()), BodyExaminer::finish);
        self.judge(finished);
        self.examiner = None;
    }

    fn judge(&mut self, examined: Result<(), What>) {
        let observed = self.examiner.as_ref().and_then(BodyExaminer::observed);
        if let Some(what) = observed.filter(|_| !self.reported).cloned() {
            self.reported = true;
            self.guard.judge(&Finding { what, place: Place::Part(RequestPart::Body) });
            // The limits may be what it is blocked for.
            if self.guard.filter.on_limit == FilterAction::Observe {
                self.examiner = None;
                return;
            }
        }
        if let Err(what) = examined {
            self.guard.judge(&Finding { what, place: Place::Part(RequestPart::Body) });
            self.examiner = None;
        }
    }

    /// The next bytes that may go.
    fn release(&mut self) -> Option<Bytes> {
        let holds = self.guard.filter.action == FilterAction::Block;
        let decided = match &mut self.examiner {
            Some(examiner) if holds => examiner.decided(),
            _ => u64::MAX,
        };
        let free = usize::try_from(decided.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        let first = self.held.front_mut()?;
        let bytes = if first.len() <= free {
            self.held.pop_front()?
        } else if free > 0 {
            first.split_to(free)
        } else {
            return None;
        };
        self.passed += bytes.len() as u64;
        Some(bytes)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let ended = match self.end {
            End::NotYet => self.source.is_end_stream(),
            End::Trailers(_) => false,
            End::Reached => true,
        };
        ended && self.held.is_empty() && !self.guard.is_blocked()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held.iter().map(|bytes| bytes.len() as u64).sum();
        let rest = self.source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
