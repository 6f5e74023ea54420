//! A body that goes no faster than it may.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    num::NonZeroU64,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A second's bytes go in so many portions: even enough for who reads, and rare enough for who sends.
const PORTIONS: u64 = 20;

pub(super) struct Paced<B> {
    inner: B,
    bytes_per_second: NonZeroU64,
    /// Read, and not sent yet.
    held: Bytes,
    /// Until when nothing goes.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<B: Body<Data = Bytes> + Unpin> Paced<B> {
    pub(super) fn new(inner: B, bytes_per_second: NonZeroU64) -> Self {
        Self { inner, bytes_per_second, held: Bytes::new(), pause: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        while self.held.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let portion = self.held.split_to(portion(self.bytes_per_second).min(self.held.len()));
        let end = Instant::now() + span(portion.len(), self.bytes_per_second);
        self.pause = Some(Box::pin(tokio::time::sleep_until(end)));
        Poll::Ready(Some(Ok(Frame::data(portion))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.inner.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let (inner, held) = (self.inner.size_hint(), self.held.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(held));
        if let Some(upper) = inner.upper().and_then(|upper| upper.checked_add(held)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// What goes at once.
fn portion(bytes_per_second: NonZeroU64) -> usize {
    usize::try_from((bytes_per_second.get() / PORTIONS).max(1)).unwrap_or(usize::MAX)
}

/// How long so many bytes take.
fn span(bytes: usize, bytes_per_second: NonZeroU64) -> Duration {
    let nanos = (bytes as u128) * 1_000_000_000 / u128::from(bytes_per_second.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use http_body_util::{BodyExt, Full};
    use std::future::poll_fn;

    fn rate(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_takes_as_long_as_it_must_and_loses_nothing() {
        let sent = Bytes::from_iter((0..=255u8).cycle().take(2_050));
        let mut trailers = HeaderMap::new();
        trailers.insert("x", "y".parse().unwrap());
        let body = Full::new(sent.clone()).with_trailers(std::future::ready(Some(Ok(trailers))));
        let mut paced = Paced::new(Box::pin(body), rate(1_000));
        let start = Instant::now();
        let (mut received, mut ended) = (Vec::new(), false);
        while let Some(frame) = poll_fn(|cx| paced.poll(cx)).await {
            match frame.unwrap().into_data() {
                Ok(data) => {
                    assert!(data.len() <= 50, "{}", data.len());
                    received.extend_from_slice(&data);
                    assert_eq!(paced.size_hint().lower(), (2_050 - received.len()) as u64);
                }
                Err(frame) => ended = frame.is_trailers(),
            }
        }
        assert!(ended && received == sent);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(2_050) && took < Duration::from_millis(2_200), "{took:?}");
    }

    #[test]
    fn portions_and_their_time() {
        assert_eq!(
            (portion(rate(1)), portion(rate(1_024)), portion(rate(u64::MAX))),
            (1, 51, usize::MAX / 20)
        );
        assert_eq!(span(51, rate(1_020)), Duration::from_millis(50));
        assert_eq!(span(1, rate(u64::MAX)), Duration::ZERO);
    }
}
