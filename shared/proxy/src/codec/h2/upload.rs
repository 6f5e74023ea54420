//! A body on its way.

use crate::codec::{Body, BodyError, Error};
use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;
use std::{
    error::Error as StdError,
    pin::Pin,
    task::{Context, Poll, ready},
};

pub(super) struct Upload {
    body: Body,
    stream: SendStream<Bytes>,
    /// What was read and waits for room in the window, and whether it is the last.
    next: Option<(Bytes, bool)>,
    is_answer: bool,
}

impl Upload {
    pub(super) fn request(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, next: None, is_answer: false }
    }

    pub(super) fn answer(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, next: None, is_answer: true }
    }

    pub(super) fn cancel(&mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if let Poll::Ready(reason) = self.stream.poll_reset(cx)? {
                return Poll::Ready(Err(h2::Error::from(reason).into()));
            }
            if self.next.is_some() {
                ready!(self.poll_room(cx))?;
            }
            if let Some((data, last)) = self.next.take() {
                self.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        // Asked for once there is something to send, and no more than shows that some of it may go: what is
                        // reserved is taken from all streams.
                        if !data.is_empty() {
                            self.stream.reserve_capacity(1);
                            self.next = Some((data, self.body.is_end_stream()));
                        } else if self.body.is_end_stream() {
                            return self.end();
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.reserve_capacity(0);
                            self.stream.send_trailers(trailers)?;
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                None => return self.end(),
            }
        }
    }

    /// Until some of what was read may go, or the body's time is over: nobody looks at it while nobody reads.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(more)) => more?,
                Poll::Ready(None) => return Poll::Ready(Err(h2::Error::from(Reason::STREAM_CLOSED).into())),
                Poll::Pending => {
                    let late = ready!(self.body.poll_late(cx));
                    return Poll::Ready(Err(self.broken(late)));
                }
            };
        }
        Poll::Ready(Ok(()))
    }

    /// A request that does not come whole is taken back; an answer ends as that of which it is made.
    fn broken(&mut self, error: BodyError) -> Error {
        let reason = if self.is_answer { reason(&error) } else { Reason::CANCEL };
        self.stream.send_reset(reason);
        Error::Sending(Box::new(error))
    }

    fn end(&mut self) -> Poll<Result<(), Error>> {
        Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(Error::from))
    }
}

/// What HTTP/2 said when it broke, if it was HTTP/2.
fn reason(error: &BodyError) -> Reason {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        let said = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        if let Some(reason) = said.filter(|reason| *reason != Reason::NO_ERROR) {
            return reason;
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}
