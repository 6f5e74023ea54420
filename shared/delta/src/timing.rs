//! How streams behave in time: both ends over channels, with a paused clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use meridian_proto::delta as wire;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::publish::{Pace, publish};
use crate::stream::{End, Inbound, Lost, Sender, outbound};
use crate::subscribe::subscribe;
use crate::{
    Batch, Behind, Control, Encoded, Node, Peer, Publisher, Rejected, Resume, Revision, Sink, SinkError,
    StoreId, Subscriber, View, ViewChange,
};

/// A sink that counts, and hangs while it is shut.
struct Gate {
    open: watch::Receiver<bool>,
    applied: Arc<Mutex<Vec<Batch>>>,
}

impl Sink for Gate {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        Ok(Resume::default())
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        self.open.wait_for(|open| *open).await?;
        self.applied.lock().unwrap().push(batch);
        Ok(Vec::new())
    }
}

type Pipe<M> = (Sender<M>, Inbound<M>);

fn pipe<M: Send + 'static>() -> Pipe<M> {
    let (sender, receiver) = outbound();
    (sender, receiver.boxed())
}

fn publisher(view: &Arc<View>) -> Publisher {
    Publisher {
        view: view.clone(),
        types: Vec::new(),
        part: crate::PART,
        node: Node::default(),
        peer: Peer::new(),
    }
}

fn subscriber(gate: Gate) -> Subscriber<Gate> {
    let control = Control::new();
    Subscriber { sink: gate, types: Vec::new(), node: Node::default(), peer: Peer::new(), control }
}

fn view() -> Arc<View> {
    let view = View::new(StoreId([1; 16]), Revision(0));
    let one = Encoded::new("Thing", "one", "body").unwrap();
    view.apply(Revision(1), [ViewChange::Upsert(one)]);
    view
}

/// A view and its subscriber, joined.
struct Pair {
    view: Arc<View>,
    published: Peer,
    subscribed: Peer,
    open: watch::Sender<bool>,
    applied: Arc<Mutex<Vec<Batch>>>,
    closing: CancellationToken,
    publishing: tokio::task::JoinHandle<End>,
    subscribing: tokio::task::JoinHandle<End>,
}

impl Pair {
    fn new() -> Pair {
        let (view, open, applied) = (view(), watch::Sender::new(true), Arc::new(Mutex::new(Vec::new())));
        let publisher = publisher(&view);
        let mut subscriber = subscriber(Gate { open: open.subscribe(), applied: applied.clone() });
        let (published, subscribed) = (publisher.peer.clone(), subscriber.peer.clone());
        let (down, from_publisher) = pipe::<wire::PublisherMessage>();
        let (up, from_subscriber) = pipe::<wire::SubscriberMessage>();
        let closing = CancellationToken::new();
        let close = closing.clone();
        Pair {
            publishing: tokio::spawn(async move {
                publish(&publisher, from_subscriber, down, CancellationToken::new(), Pace::Beat).await
            }),
            subscribing: tokio::spawn(async move {
                subscribe(&mut subscriber, from_publisher, up, close, None).await
            }),
            view,
            published,
            subscribed,
            open,
            applied,
            closing,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_pair_stays_connected_and_current() {
    let pair = Pair::new();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!pair.publishing.is_finished() && !pair.subscribing.is_finished());
    assert_eq!(pair.subscribed.state().behind, Behind::Current);
    assert_eq!(pair.published.state().behind, Behind::Current);
    // Heartbeats wake nobody who watches.
    let (published, subscribed) = (pair.published.watch(), pair.subscribed.watch());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!published.has_changed().unwrap() && !subscribed.has_changed().unwrap());
    assert_eq!(pair.applied.lock().unwrap().len(), 1);
    assert!(pair.applied.lock().unwrap()[0].complete);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_takes_minutes_keeps_its_stream() {
    let pair = Pair::new();
    pair.subscribed.watch().wait_for(|state| state.behind == Behind::Current).await.unwrap();
    pair.open.send_replace(false);
    pair.view.apply(Revision(2), [ViewChange::Upsert(Encoded::new("Thing", "one", "new").unwrap())]);
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!pair.publishing.is_finished() && !pair.subscribing.is_finished());
    // Both ends say how old it is.
    for peer in [&pair.published, &pair.subscribed] {
        let behind = peer.state().behind_millis(Instant::now().into_std()).unwrap();
        let age = u64::try_from(began.elapsed().as_millis()).unwrap();
        assert!(behind >= age - 5000 && behind <= age + 5000, "{behind} of {age}");
    }
    pair.open.send_replace(true);
    let mut published = pair.published.watch();
    published.wait_for(|state| state.revision == Some(Revision(2))).await.unwrap();
    published.wait_for(|state| state.behind == Behind::Current).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_changes_nothing_arrives_without_an_update() {
    let pair = Pair::new();
    pair.subscribed.watch().wait_for(|state| state.behind == Behind::Current).await.unwrap();
    let updates = pair.published.state().counters.updates;
    for revision in 2..1000 {
        pair.view.advance(Revision(revision));
        tokio::task::yield_now().await;
    }
    pair.subscribed.watch().wait_for(|state| state.revision == Some(Revision(999))).await.unwrap();
    assert_eq!(pair.published.state().counters.updates, updates);
    assert!(pair.applied.lock().unwrap().len() < 10, "they are gathered");
    let applied = pair.applied.lock().unwrap();
    assert_eq!(applied.last().unwrap().position.map(|position| position.revision), Some(Revision(999)));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_says_nothing_is_dead_after_fifteen_seconds() {
    let view = view();
    let (down, _from_publisher) = pipe();
    let (_up, from_subscriber) = pipe();
    let publisher = publisher(&view);
    let began = Instant::now();
    let end = publish(&publisher, from_subscriber, down, CancellationToken::new(), Pace::Beat).await;
    assert!(matches!(end, End::Lost(Lost::Silent)), "{end:?}");
    assert_eq!(began.elapsed().as_secs(), 15);
    assert!(!publisher.peer.state().connected);
    assert!(publisher.peer.state().error.unwrap().contains("silent"));
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_says_nothing_is_dead_after_fifteen_seconds() {
    let (_down, from_publisher) = pipe();
    let (up, mut from_subscriber) = pipe();
    let gate = Gate { open: watch::Sender::new(true).subscribe(), applied: Arc::default() };
    let mut subscriber = subscriber(gate);
    tokio::spawn(async move { while from_subscriber.next().await.is_some() {} });
    let began = Instant::now();
    let end = subscribe(&mut subscriber, from_publisher, up, CancellationToken::new(), None).await;
    assert!(matches!(end, End::Lost(Lost::Silent)), "{end:?}");
    assert_eq!(began.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_says_goodbye() {
    let pair = Pair::new();
    pair.subscribed.watch().wait_for(|state| state.behind == Behind::Current).await.unwrap();
    pair.closing.cancel();
    assert!(matches!(pair.subscribing.await.unwrap(), End::Closed));
    assert!(matches!(pair.publishing.await.unwrap(), End::Goodbye(_)));
    assert_eq!(pair.published.state().error, None);
    assert!(!pair.published.state().connected);
}

/// A view that nobody changes any more must not be taken for one that does not change.
#[tokio::test(start_paused = true)]
async fn streams_of_a_retired_view_end() {
    let pair = Pair::new();
    pair.subscribed.watch().wait_for(|state| state.behind == Behind::Current).await.unwrap();
    pair.view.retire();
    assert!(matches!(pair.publishing.await.unwrap(), End::Closed));
    assert!(matches!(pair.subscribing.await.unwrap(), End::Goodbye(_)));
    // Nor may one begin.
    let late = publisher(&pair.view);
    let (down, from_publisher) = pipe::<wire::PublisherMessage>();
    let _reading = tokio::spawn(from_publisher.for_each(|_| async {}));
    let (_up, from_subscriber) = pipe::<wire::SubscriberMessage>();
    let end = publish(&late, from_subscriber, down, CancellationToken::new(), Pace::Beat).await;
    assert!(matches!(end, End::Closed), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_dies_late_does_not_hide_its_successor() {
    let peer = Peer::new();
    let (first, second) = (peer.begin(), peer.begin());
    second.update(|state| state.revision = Some(Revision(2)));
    first.update(|state| state.revision = Some(Revision(1)));
    first.end(&End::Lost(Lost::Silent), None);
    let state = peer.state();
    assert!(state.connected && state.error.is_none());
    assert_eq!(state.revision, Some(Revision(2)));
    second.end(&End::Closed, None);
    assert!(!peer.state().connected);
}
