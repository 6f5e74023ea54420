//! A body that comes over HTTP/2.

use crate::codec::BodyError;
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Frame, SizeHint};
use std::{
    convert::Infallible,
    task::{Context, Poll, ready},
};
use tokio::sync::oneshot;

pub struct Received {
    stream: RecvStream,
    /// What is left of it, if its head said so. That it is so is checked by the `h2` crate.
    length: Option<u64>,
    /// Trailers may follow, no data.
    data_ended: bool,
    /// It may end early without an error.
    is_answer: bool,
    /// Of who still sends the request: dropped with the answer.
    _taken: Option<oneshot::Sender<Infallible>>,
}

impl Received {
    pub(super) fn answer(stream: RecvStream, headers: &HeaderMap) -> Self {
        Self { is_answer: true, ..Self::request(stream, headers) }
    }

    pub(super) fn request(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length = match stream.is_end_stream() {
            true => Some(0),
            false => headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()),
        };
        Self { stream, length, data_ended: false, is_answer: false, _taken: None }
    }

    /// `taken` is dropped when nobody reads the answer any more.
    pub(super) fn tell_when_taken(&mut self, taken: oneshot::Sender<Infallible>) {
        self._taken = Some(taken);
    }

    pub(in crate::codec) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Err(error)) if self.is_whole(&error) => return Poll::Ready(None),
                Some(data) => {
                    let data = data?;
                    // The window opens as fast as who reads takes what came.
                    self.stream.flow_control().release_capacity(data.len())?;
                    if let Some(length) = &mut self.length {
                        *length = length.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Err(error) if self.is_whole(&error) => Poll::Ready(None),
            trailers => Poll::Ready(trailers?.map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    /// A server may end a stream without an error once its answer is complete, when it wants no more of the request (RFC
    /// 9113 8.1). Short of its length, an answer is not.
    fn is_whole(&self, error: &h2::Error) -> bool {
        self.is_answer
            && error.is_reset()
            && error.reason() == Some(h2::Reason::NO_ERROR)
            && self.length.unwrap_or(0) == 0
    }

    pub(in crate::codec) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(in crate::codec) fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
