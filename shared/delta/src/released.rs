//! Long messages that leave no memory behind.
//!
//! What encodes a stream's messages cuts each out of one buffer, and takes the buffer back for the next when nobody has the
//! message any more: so it would keep one that is as long as the longest message was, for as long as the stream lasts. Who has a message a
//! little longer makes it begin a new buffer, as long as what comes next, which is short at rest.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// Messages of fewer bytes are not held: their buffers are short.
const LONG: usize = 1024;

/// A body that keeps a long message until the next one has been encoded.
pub(crate) struct Released<B> {
    body: B,
    last: Option<Bytes>,
}

impl<B> Released<B> {
    pub(crate) fn new(body: B) -> Self {
        Released { body, last: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Released<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
        self.last = data.filter(|data| data.len() >= LONG).cloned();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use meridian_proto::codec::SmallBuffers;
    use meridian_proto::delta as wire;
    use tonic::codec::{Codec, EncodeBody};

    /// Where a long message, and then a short one, are in memory.
    async fn places(wrap: bool) -> (std::ops::Range<usize>, usize) {
        let goodbye = |length| wire::Goodbye { reason: "x".repeat(length) };
        let mut codec = SmallBuffers::<wire::Goodbye, wire::Goodbye>::default();
        let messages = futures::stream::iter([Ok(goodbye(100_000)), Ok(goodbye(1))]);
        // One after the other, as a stream's messages come.
        let messages = messages.then(|message| async {
            tokio::task::yield_now().await;
            message
        });
        let messages = Box::pin(messages);
        let body =
            Box::pin(EncodeBody::new_server(codec.encoder(), messages, None, Default::default(), None));
        if wrap { read(Released::new(body)).await } else { read(body).await }
    }

    async fn read<B: Body<Data = Bytes, Error: std::fmt::Debug> + Unpin>(
        mut body: B,
    ) -> (std::ops::Range<usize>, usize) {
        let mut next = async || {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            frame.unwrap().unwrap().into_data().unwrap()
        };
        let long = next().await;
        let start = long.as_ptr().addr();
        let range = start..start + long.len();
        drop(long);
        (range, next().await.as_ptr().addr())
    }

    #[tokio::test]
    async fn a_long_message_leaves_no_memory_behind() {
        let (long, short) = places(true).await;
        assert!(!long.contains(&short));
        // This is what it is for. Should it fail, the encoder keeps nothing by itself, and this module can go.
        let (long, short) = places(false).await;
        assert!(long.contains(&short));
    }
}
