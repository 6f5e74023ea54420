//! A subscriber's stream over tonic: the same for a client's `Pull` and a server's `Push`.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use meridian_proto::delta as wire;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Response;

use crate::data::{Encoded, Id, Position, Revision, StoreId, Version};
use crate::peer::{Node, Peer, PeerStream, Rejected};
use crate::protocol::SubscriberSession;
use crate::stream::{self, End, Inbound, Lost, Opened, Outbound, Sender, now};

/// Where a subscriber's resources go.
///
/// One sink is used by one stream at a time. A server that takes a peer's new stream while the old one still ends keeps
/// them apart itself: it awaits the old stream's task first.
pub trait Sink: Send {
    /// What is held now: asked at the beginning of each stream.
    fn resume(&mut self) -> impl Future<Output = Result<Resume, SinkError>> + Send;

    /// Takes a batch in. What is not acceptable is answered with the reason, and the rest is applied; the old value of a
    /// rejected name stays. An error means that nothing was applied: the stream ends and begins anew later.
    fn apply(&mut self, batch: Batch) -> impl Future<Output = Result<Vec<Rejected>, SinkError>> + Send;
}

/// Why a sink could not take a batch at all (its store is out of reach, say).
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// What a subscriber holds when a stream begins.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// The last [`Batch::position`]. None: it never had one.
    pub position: Option<Position>,
    /// Each resource of the publisher that is held, with its version.
    pub have: Vec<(Id, Version)>,
}

/// A part of what a publisher says. Removals have passed the guard against mass deletions.
#[derive(Debug, Clone)]
pub struct Batch {
    /// To be kept for [`Resume::position`], together with the contents. None: keep the old one (the step is not
    /// complete, or deletions are withheld).
    pub position: Option<Position>,
    /// The publisher's revision when it sent this.
    pub revision: Revision,
    /// Whether the subscriber equals the publisher at that revision once this is applied (rejected and withheld
    /// resources excepted). A batch that is not complete may be applied at once or kept until the one that is.
    pub complete: bool,
    pub upserts: Vec<Arc<Encoded>>,
    pub removals: Vec<Id>,
}

/// An operator's hand on a subscriber. Clones are the same; it outlives streams.
#[derive(Debug, Clone)]
pub struct Control(Arc<watch::Sender<Wishes>>);

#[derive(Debug, Clone, Default)]
struct Wishes {
    accepted: Option<StoreId>,
    confirmed: u64,
}

impl Control {
    pub fn new() -> Control {
        Control(Arc::new(watch::Sender::new(Wishes::default())))
    }

    /// Takes the publisher that is refused now, or will be, as the truth: `store` names it
    /// ([`crate::PeerState::offered`]), so that an operator accepts what was shown and not what came since. Deletions
    /// that follow are still only inferred, and many wait for [`Control::confirm`].
    pub fn accept(&self, store: StoreId) {
        self.0.send_modify(|wishes| wishes.accepted = Some(store));
    }

    /// Applies the deletions that are withheld now.
    pub fn confirm(&self) {
        self.0.send_modify(|wishes| wishes.confirmed = wishes.confirmed.wrapping_add(1));
    }

    /// The store's position was taken over: the next time it is older, an operator is asked again.
    fn used(&self, store: StoreId) {
        self.0.send_if_modified(|wishes| wishes.accepted.take_if(|accepted| *accepted == store).is_some());
    }

    fn watch(&self) -> watch::Receiver<Wishes> {
        self.0.subscribe()
    }
}

impl Default for Control {
    fn default() -> Self {
        Control::new()
    }
}

/// One end that subscribes to a peer.
pub struct Subscriber<S> {
    pub sink: S,
    /// The types it understands. Empty: all.
    pub types: Vec<Arc<str>>,
    /// This process.
    pub node: Node,
    /// Where the state of this direction is shown.
    pub peer: Peer,
    pub control: Control,
}

impl<S: Sink + 'static> Subscriber<S> {
    /// Answers a `Push` that the application has let in. The stream runs in a task of its own until either end leaves or
    /// `closing` is cancelled ([`crate::server::Connection::closing`], or a child of it).
    pub fn answer(
        mut self,
        opened: Opened<wire::PublisherMessage>,
        closing: CancellationToken,
    ) -> (Response<Outbound<wire::SubscriberMessage>>, JoinHandle<End>) {
        let (sender, receiver) = stream::outbound();
        let task = tokio::spawn(async move {
            Box::pin(subscribe(&mut self, opened.inbound, sender, closing, None)).await
        });
        (Response::new(receiver), task)
    }
}

/// Runs one stream to its end. A batch that the sink is taking in when the stream ends is waited for.
pub(crate) async fn subscribe<S: Sink>(
    subscriber: &mut Subscriber<S>,
    inbound: Inbound<wire::PublisherMessage>,
    outbound: Sender<wire::SubscriberMessage>,
    closing: CancellationToken,
    pulse: Option<&watch::Sender<()>>,
) -> End {
    let Subscriber { sink, types, node, peer, control } = subscriber;
    let equal = peer.state().behind.then(now());
    // Whoever dials answers what it hears; at a server many subscribers speak together.
    let beat = pulse.is_none().then(stream::beat);
    let peer = peer.begin();
    let resume = match Box::pin(sink.resume()).await {
        Ok(resume) => resume,
        Err(error) => {
            let end = End::Lost(Lost::Sink(error));
            peer.end(&end, equal);
            return end;
        }
    };
    let session = SubscriberSession::new(types, node.clone(), resume, equal, beat, now());
    let mut stream = Stream {
        session,
        inbound,
        outbound,
        closing,
        wishes: control.watch(),
        confirmed: None,
        peer,
        control,
        pulse,
        idle: false,
    };
    let lost = stream.run(sink).await;
    let end = stream.end(lost);
    stream::finish(&end, &mut stream.outbound, &mut stream.inbound).await;
    stream.show();
    stream.peer.end(&end, stream.session.equal());
    end
}

struct Stream<'a> {
    session: SubscriberSession,
    inbound: Inbound<wire::PublisherMessage>,
    outbound: Sender<wire::SubscriberMessage>,
    closing: CancellationToken,
    wishes: watch::Receiver<Wishes>,
    confirmed: Option<u64>,
    peer: PeerStream,
    control: &'a Control,
    /// Told of each message.
    pulse: Option<&'a watch::Sender<()>>,
    /// The session had nothing to send, and nothing happened since.
    idle: bool,
}

impl Stream<'_> {
    /// Until one end leaves (`None`: on purpose).
    async fn run<S: Sink>(&mut self, sink: &mut S) -> Option<Lost> {
        self.wish();
        loop {
            let Some(batch) = self.session.next_batch() else {
                match self.turn().await {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(lost) => return Some(lost),
                }
            };
            // Boxed: a stream that rests would keep room for all that a sink does.
            let mut applying = Box::pin(sink.apply(batch));
            let (end, applied) = loop {
                tokio::select! {
                    biased;
                    applied = &mut applying => break (None, applied),
                    turn = self.turn() => match turn {
                        Ok(true) => {}
                        Ok(false) => break (Some(None), applying.await),
                        Err(lost) => break (Some(Some(lost)), applying.await),
                    }
                }
            };
            match applied {
                Ok(rejected) => self.session.done(rejected, now()),
                Err(error) => return Some(Lost::Sink(error)),
            }
            self.idle = false;
            if let Some(store) = self.session.settled() {
                self.control.used(store);
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// One event. Answers whether the stream goes on. May be cancelled at any point.
    async fn turn(&mut self) -> Result<bool, Lost> {
        self.show();
        let busy = !self.idle;
        // While the transport takes nothing, what is due to be sent can only wait.
        let wake = if busy { self.session.turn_at() } else { self.session.wake_at() };
        let mut wished = false;
        tokio::select! {
            biased;
            () = self.closing.cancelled(), if !self.session.is_closing() => self.session.close("closing"),
            message = self.inbound.next() => {
                let message = message.ok_or(Lost::Ended)?.map_err(|status| Lost::Status(Box::new(status)))?;
                self.session.on_message(message, now())?;
                if let Some(pulse) = self.pulse {
                    pulse.send_replace(());
                }
            }
            ready = self.outbound.ready(), if busy => {
                ready?;
                match self.session.poll(now()) {
                    Some(message) => self.outbound.send(Ok(message)),
                    None => {
                        self.idle = true;
                        return Ok(true);
                    }
                }
            }
            Ok(()) = self.wishes.changed() => wished = true,
            () = tokio::time::sleep_until(wake.into()) => {
                if self.session.is_dead(now()) {
                    return Err(Lost::Silent);
                }
            }
        }
        self.idle = false;
        if wished {
            self.wish();
        }
        Ok(!self.session.is_closed() && !self.session.has_peer_left())
    }

    fn wish(&mut self) {
        let Wishes { accepted, confirmed } = self.wishes.borrow_and_update().clone();
        if let Some(store) = accepted {
            self.session.accept(store);
        }
        if self.confirmed.replace(confirmed).is_some_and(|before| before != confirmed) {
            self.session.confirm();
        }
    }

    fn end(&mut self, lost: Option<Lost>) -> End {
        match (lost, self.session.peer_left()) {
            (Some(lost), _) => End::Lost(lost),
            (None, Some(reason)) => End::Goodbye(reason),
            (None, None) => End::Closed,
        }
    }

    fn show(&mut self) {
        if self.session.has_news(now()) {
            self.peer.update(|state| self.session.show(state));
        }
    }
}
