//! A body that a script sees pass, piece by piece, and what follows it. What the script asks for that is not at hand ends
//! it: the body does not wait.

use super::{BodyError, body::Source};
use crate::scripts::Passage;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use meridian_lua::{Answer, Run, Step};
use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

pub(crate) struct Scripted {
    source: Source,
    /// `None`: the script has ended.
    script: Option<Script>,
}

struct Script {
    run: Run,
    waits: Wait,
    /// Where in the chain it stands.
    position: usize,
    passage: Rc<Passage>,
}

/// For what a script waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Piece,
    Trailers,
}

impl Scripted {
    pub(crate) fn new(source: Source, run: Run, waits: Wait, position: usize, passage: Rc<Passage>) -> Self {
        Self { source, script: Some(Script { run, waits, position, passage }) }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.script = None;
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                self.end(None);
                return Poll::Ready(None);
            }
        };
        let frame = match frame.into_data() {
            Ok(data) => {
                self.piece(&data);
                // One of which all has come need not be polled again.
                if self.source.is_end_stream() {
                    self.end(None);
                }
                Frame::data(data)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Frame::trailers(self.end(Some(trailers)).unwrap_or_default()),
                Err(frame) => frame,
            },
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn piece(&mut self, data: &Bytes) {
        if self.script.as_ref().is_some_and(|script| script.waits == Wait::Piece) {
            self.resume(Answer::Chunk(Some(data.clone())));
        }
    }

    /// The end of the body, with the trailers if there are some; gives them back as the script leaves them.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Option<HeaderMap> {
        if self.script.as_ref().is_some_and(|script| script.waits == Wait::Piece) {
            self.resume(Answer::Chunk(None));
        }
        let mut left = trailers;
        if self.script.as_ref().is_some_and(|script| script.waits == Wait::Trailers) {
            let copy = left.clone();
            let run = self.resume(Answer::Trailers(copy));
            left = run.and_then(|script| script.run.take_trailers()).or(left);
        }
        self.script = None;
        left
    }

    /// Goes on with the script; gives it back as it is then, also if it has ended.
    fn resume(&mut self, answer: Answer) -> Option<Script> {
        let mut script = self.script.take()?;
        let step = script.run.resume(answer);
        script.passage.post(&script.run);
        script.waits = match step {
            Ok(Step::Chunk) => Wait::Piece,
            Ok(Step::Trailers) => Wait::Trailers,
            Ok(Step::Done | Step::Respond(_)) => return Some(script),
            Ok(Step::Body | Step::Call(_)) => {
                script.passage.failed(script.position, &"it can't wait while a body passes");
                return Some(script);
            }
            Err(failure) => {
                script.passage.failed(script.position, &failure);
                return Some(script);
            }
        };
        self.script = Some(script);
        None
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}
