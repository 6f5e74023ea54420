//! What both halves share: how a stream opens, and how it ends.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use meridian_proto::delta as wire;
use meridian_telemetry::chain;
use tonic::Status;

use crate::data::Position;
use crate::peer::Node;
use crate::protocol::Violation;
use crate::subscribe::SinkError;

/// How long a caller may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// How long a goodbye may take to be read.
const FLUSH: Duration = Duration::from_secs(1);

/// What a tonic service answers a `Pull` or a `Push` with.
pub type Outbound<M> = mpsc::Receiver<Result<M, Status>>;

/// The way of a stream's messages to the transport: the next one goes in when the last was taken out, so that none waits
/// that a newer one makes needless. No channel of tokio's: those keep room for 32 messages, 5 KiB a stream.
pub(crate) struct Sender<M>(mpsc::Sender<Result<M, Status>>);

pub(crate) fn outbound<M>() -> (Sender<M>, Outbound<M>) {
    // One message for each sender beside the buffer's, and there is one sender.
    let (sender, receiver) = mpsc::channel(0);
    (Sender(sender), receiver)
}

impl<M> Sender<M> {
    /// Waits until the transport has taken all there was. Safe to cancel.
    pub(crate) async fn ready(&mut self) -> Result<(), Lost> {
        std::future::poll_fn(|cx| self.0.poll_ready(cx)).await.map_err(|_| Lost::Ended)
    }

    /// Only once it is ready; else the message is lost.
    pub(crate) fn send(&mut self, message: Result<M, Status>) {
        // Who does not listen any more is noticed at the next turn.
        let _ = self.0.try_send(message);
    }
}

/// A peer's first message, checked for form. What it says of itself is not trusted.
#[derive(Debug, Clone, Default)]
pub struct Hello {
    pub node: Node,
    /// None: it holds nothing, or does not know its contents yet.
    pub position: Option<Position>,
    /// Empty: all.
    pub types: Vec<Arc<str>>,
}

/// A stream that a peer has opened, with its hello: to decide on before it is answered.
pub struct Opened<M> {
    pub hello: Hello,
    pub(crate) inbound: Inbound<M>,
}

/// The messages of a peer.
pub(crate) type Inbound<M> = BoxStream<'static, Result<M, Status>>;

/// Why a stream ended.
#[derive(Debug)]
pub enum End {
    /// The peer left on purpose; what it registered may go at once.
    Goodbye(String),
    /// This end closed it.
    Closed,
    Lost(Lost),
}

#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("the peer ended the stream without a goodbye")]
    Ended,
    #[error("the peer was silent for 15 s")]
    Silent,
    #[error("{}", describe(.0))]
    Status(Box<Status>),
    #[error("the peer broke the protocol")]
    Violation(#[from] Violation),
    #[error("the update could not be taken in")]
    Sink(#[source] SinkError),
    #[error("the subscriber lags behind what is remembered of deletions; it starts with a new listing")]
    TooOld,
    #[error(transparent)]
    Connect(#[from] crate::client::ConnectError),
}

/// A message whose first one is a hello.
pub trait Message: Send + Sized + 'static {
    fn hello(&self) -> Result<Hello, Violation>;
}

/// Lets the last message out: dropping the inbound half at once would reset the stream under it.
pub(crate) async fn finish<I, O>(end: &End, outbound: &mut Sender<O>, inbound: &mut Inbound<I>) {
    match end {
        End::Lost(lost) => {
            let status = match lost {
                Lost::Violation(_) => Status::invalid_argument(chain(lost)),
                Lost::TooOld => Status::aborted(lost.to_string()),
                _ => Status::unavailable(chain(lost)),
            };
            // Only if there is room: the peer that is lost may not read.
            outbound.send(Err(status));
        }
        End::Goodbye(_) => {}
        End::Closed => {
            let flushed = async {
                // The transport took the goodbye out of the channel, then the peer ends its half.
                let _ = outbound.ready().await;
                while let Some(Ok(_)) = inbound.next().await {}
            };
            let _ = tokio::time::timeout(FLUSH, flushed).await;
        }
    }
}

/// The transport's own errors are only in a status's sources.
fn describe(status: &Status) -> String {
    use std::error::Error;
    let mut text = format!("{}: {}", status.code(), status.message());
    if let Some(source) = status.source() {
        text.push_str(": ");
        text.push_str(&chain(source));
    }
    text
}

/// What many streams say only to be heard, they say together: waking costs more than sending.
pub(crate) fn beat() -> Instant {
    static BEAT: OnceLock<Instant> = OnceLock::new();
    *BEAT.get_or_init(now)
}

/// The monotonic clock, which tests can pause.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl<M: Message> Opened<M> {
    /// Waits for the peer's hello, at most 10 s.
    pub async fn read<S>(stream: S) -> Result<Opened<M>, Status>
    where
        S: Stream<Item = Result<M, Status>> + Send + 'static,
    {
        let mut stream = stream.boxed();
        let first = tokio::time::timeout(HELLO, stream.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came within 10 s"))?
            .ok_or_else(|| Status::invalid_argument("the stream ended before its hello"))??;
        let hello = first.hello().map_err(|violation| Status::invalid_argument(violation.to_string()))?;
        let inbound = futures::stream::once(std::future::ready(Ok(first))).chain(stream).boxed();
        Ok(Opened { hello, inbound })
    }
}

impl Message for wire::SubscriberMessage {
    fn hello(&self) -> Result<Hello, Violation> {
        match &self.message {
            Some(wire::subscriber_message::Message::Hello(hello)) => {
                parts(hello.protocol, &hello.node, &hello.position, &hello.types)
            }
            _ => Err(Violation::Unexpected("something else before its hello")),
        }
    }
}

impl Message for wire::PublisherMessage {
    fn hello(&self) -> Result<Hello, Violation> {
        match &self.message {
            Some(wire::publisher_message::Message::Hello(hello)) => {
                parts(hello.protocol, &hello.node, &hello.position, &hello.types)
            }
            _ => Err(Violation::Unexpected("something else before its hello")),
        }
    }
}

fn parts(
    protocol: u32,
    node: &Option<wire::Node>,
    position: &Option<wire::Position>,
    types: &[String],
) -> Result<Hello, Violation> {
    if protocol != crate::PROTOCOL {
        return Err(Violation::Protocol { found: protocol });
    }
    Ok(Hello {
        node: Node::from_wire(node.clone()),
        position: position.as_ref().map(Position::from_wire).transpose()?,
        types: types.iter().map(|name| name.as_str().into()).collect(),
    })
}
