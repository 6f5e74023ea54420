//! Two processes and a network, step by step: every interleaving that a test asks for, at a time of its choosing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::delta as wire;
use prost::Message as _;
use wire::publisher_message::Message as FromPublisher;
use wire::subscriber_message::Message as FromSubscriber;

use super::{Next, PART, PublisherSession, SubscriberSession, TooOld};
use crate::data::{Encoded, Id, MAX_MESSAGE, Position, Revision, StoreId, Version};
use crate::index::Deletions;
use crate::peer::{Node, PeerState, Rejected};
use crate::subscribe::{Batch, Resume};
use crate::view::{Shared, View, ViewChange};

/// A resource whose body says that a strict subscriber does not accept it.
pub(super) fn is_bad(resource: &Encoded) -> bool {
    resource.body.first().is_some_and(|value| value.is_multiple_of(7))
}

/// `value` says whether it is bad, and whether it is large enough to make updates of several parts.
pub(super) fn resource(type_: &str, name: &str, value: u8) -> Arc<Encoded> {
    let size = if value.is_multiple_of(5) { 120 * 1024 } else { 16 };
    Encoded::new(type_, name, vec![value; size]).expect("below the limit")
}

/// Groups that a view may show.
pub(super) const GROUPS: usize = 3;

pub(super) struct Simulation {
    pub(super) now: Instant,
    pub(super) publisher: Process,
    pub(super) subscriber: Holder,
    /// The subscriber speaks on this beat, as a server's does.
    pub(super) beat: Option<Instant>,
    /// Updates are cut at so many bytes.
    pub(super) part: usize,
    pub(super) link: Option<Link>,
    pub(super) shown_at_publisher: PeerState,
    pub(super) shown_at_subscriber: PeerState,
}

/// A publisher with its database.
pub(super) struct Process {
    pub(super) view: Arc<View>,
    pub(super) truth: BTreeMap<Id, Arc<Encoded>>,
    /// Where its view shows what others show too.
    groups: Option<Groups>,
    deleted: BTreeSet<Id>,
    mode: Deletions,
    store: StoreId,
    revision: Revision,
    floor: Revision,
}

/// What each group shares, what is the view's own, and what of the first it shows now.
#[derive(Default)]
struct Groups {
    shared: [BTreeMap<Id, Arc<Encoded>>; GROUPS],
    layers: Option<[Arc<Shared>; GROUPS]>,
    own: BTreeMap<Id, Arc<Encoded>>,
    current: usize,
}

/// A subscriber with its disk.
#[derive(Default)]
pub(super) struct Holder {
    pub(super) held: BTreeMap<Id, Version>,
    pub(super) position: Option<Position>,
    pub(super) tolerant: bool,
    /// Applies a step only once it is complete.
    pub(super) whole_steps: bool,
    parts: Vec<Batch>,
}

pub(super) struct Link {
    publisher: PublisherSession,
    subscriber: SubscriberSession,
    down: VecDeque<wire::PublisherMessage>,
    up: VecDeque<wire::SubscriberMessage>,
    applying: Option<Batch>,
    unacknowledged: usize,
}

impl Simulation {
    pub(super) fn new(mode: Deletions) -> Simulation {
        Simulation {
            now: Instant::now(),
            publisher: Process::new(mode),
            subscriber: Holder::default(),
            beat: None,
            part: PART,
            link: None,
            shown_at_publisher: PeerState::default(),
            shown_at_subscriber: PeerState::default(),
        }
    }

    /// The publisher's view shares some of what it shows.
    pub(super) fn sharing() -> Simulation {
        let mut simulation = Simulation::new(Deletions::Derived);
        simulation.publisher.groups = Some(Groups::default());
        simulation.publisher.start();
        simulation
    }

    pub(super) fn connect(&mut self) {
        self.disconnect();
        let have = self.subscriber.held.iter().map(|(id, version)| (id.clone(), *version)).collect();
        let resume = Resume { position: self.subscriber.position, have };
        let equal = self.shown_at_subscriber.behind.then(self.now);
        self.link = Some(Link {
            publisher: PublisherSession::new(&[], Node::default(), self.part, None, self.now),
            subscriber: SubscriberSession::new(&[], Node::default(), resume, equal, self.beat, self.now),
            down: VecDeque::new(),
            up: VecDeque::new(),
            applying: None,
            unacknowledged: 0,
        });
    }

    /// All that is under way is lost.
    pub(super) fn disconnect(&mut self) {
        self.link = None;
        self.subscriber.parts.clear();
    }

    pub(super) fn restart_publisher(&mut self) {
        self.disconnect();
        self.publisher.start();
    }

    /// Changes what is shared, and what is the view's own, as one step: in the middle of it nothing is sent.
    pub(super) fn change(&mut self, group: usize, shared: Vec<ViewChange>, own: Vec<ViewChange>) {
        let (link, now) = (&mut self.link, self.now);
        self.publisher.change(group, shared, own, |view, is_shown| {
            let Some(link) = link else { return };
            let before = link.down.len();
            if let Err(TooOld) = link.publisher_sends(view, now) {
                assert!(!is_shown, "it is not looked at while it changes");
            }
            let updates =
                |message: &wire::PublisherMessage| matches!(message.message, Some(FromPublisher::Update(_)));
            assert!(!is_shown || !link.down.iter().skip(before).any(updates), "half of a step was sent");
        });
    }

    /// One step of one of the actors: 0 publisher sends, 1 it arrives, 2 subscriber sends, 3 it arrives, 4 the sink
    /// takes a batch, 5 the sink is done. Answers whether anything happened.
    pub(super) fn step(&mut self, actor: u8) -> bool {
        let Some(link) = &mut self.link else { return false };
        let happened = match actor % 6 {
            0 => match link.publisher_sends(&self.publisher.view, self.now) {
                Ok(happened) => happened,
                Err(TooOld) => {
                    // The stream ends; the subscriber comes back with what it holds.
                    self.connect();
                    return true;
                }
            },
            1 => link.publisher_message_arrives(self.now),
            2 => link.subscriber_sends(self.now),
            3 => link.subscriber_message_arrives(&self.publisher.view, self.now),
            4 => link.sink_begins(),
            _ => link.sink_ends(&mut self.subscriber, self.now),
        };
        link.publisher.show(&mut self.shown_at_publisher);
        link.subscriber.has_news(self.now);
        link.subscriber.show(&mut self.shown_at_subscriber);
        happened
    }

    /// Runs everything until nothing is left to do at this time.
    pub(super) fn settle(&mut self) {
        if self.link.is_none() {
            self.connect();
        }
        for _ in 0..100_000 {
            let happened = (0..6).fold(false, |any, actor| self.step(actor) | any);
            if !happened {
                return;
            }
        }
        panic!("it never becomes quiet");
    }

    /// Lets time pass, each second with whatever is due in it.
    pub(super) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.settle();
        }
    }

    pub(super) fn accept(&mut self) {
        let store = self.shown_at_subscriber.offered.expect("a publisher that was met").store;
        self.link.as_mut().expect("connected").subscriber.accept(store);
    }

    pub(super) fn confirm(&mut self) {
        self.link.as_mut().expect("connected").subscriber.confirm();
    }

    pub(super) fn sent(&self) -> u64 {
        self.shown_at_publisher.counters.resources
    }

    /// What the publisher has and the subscriber should hold.
    pub(super) fn expected(&self) -> BTreeMap<Id, Version> {
        let acceptable = |resource: &&Arc<Encoded>| self.subscriber.tolerant || !is_bad(resource);
        let truth = self.publisher.truth.values().filter(acceptable);
        truth.map(|resource| (resource.id(), resource.version)).collect()
    }

    /// What it holds, but for names whose newest value it refuses.
    pub(super) fn actual(&self) -> BTreeMap<Id, Version> {
        let mut held = self.subscriber.held.clone();
        if !self.subscriber.tolerant {
            held.retain(|id, _| self.publisher.truth.get(id).is_none_or(|resource| !is_bad(resource)));
        }
        held
    }
}

impl Process {
    fn new(mode: Deletions) -> Process {
        let store = StoreId([1; 16]);
        let mut process = Process {
            view: View::new(store, Revision(0)),
            truth: BTreeMap::new(),
            groups: None,
            deleted: BTreeSet::new(),
            mode,
            store,
            revision: Revision(0),
            floor: Revision(0),
        };
        process.start();
        process
    }

    /// Reads the database and serves it.
    pub(super) fn start(&mut self) {
        self.view = match self.mode {
            Deletions::Derived => View::new(self.store, self.floor),
            Deletions::Recorded => View::recorded(
                self.store,
                self.floor,
                self.revision,
                self.deleted.iter().cloned().collect::<Vec<_>>(),
            ),
        };
        let Some(groups) = &mut self.groups else {
            return self.view.replace(self.revision, self.truth.values().cloned().collect::<Vec<_>>());
        };
        let layers = groups.shared.each_ref().map(|resources| {
            let layer = Shared::new(self.store);
            layer.change().apply(self.revision, resources.values().cloned().map(ViewChange::Upsert));
            layer
        });
        groups.layers = Some(layers);
        self.show();
    }

    /// Shows what is shared by the present group, and what is its own.
    fn show(&mut self) {
        let Some(groups) = &self.groups else { return };
        let Some(layers) = &groups.layers else { return };
        let Some(layer) = layers.get(groups.current) else { return };
        self.view.share(self.revision, layer.clone(), groups.own.values().cloned().collect::<Vec<_>>());
        self.merge();
    }

    fn merge(&mut self) {
        let Some(groups) = &self.groups else { return };
        let shared = groups.shared.get(groups.current).into_iter().flatten();
        self.truth = shared.chain(&groups.own).map(|(id, it)| (id.clone(), it.clone())).collect();
    }

    /// The view shows what another group shares.
    pub(super) fn switch(&mut self, group: usize) {
        self.revision.0 += 1;
        if let Some(groups) = &mut self.groups {
            groups.current = group;
        }
        self.show();
    }

    /// Changes what is shared, and what is the view's own, as one step; `between` happens in the middle.
    pub(super) fn change(
        &mut self,
        group: usize,
        shared: Vec<ViewChange>,
        own: Vec<ViewChange>,
        between: impl FnOnce(&View, bool),
    ) {
        self.revision.0 += 1;
        let Some(groups) = &mut self.groups else { return };
        let layers = groups.layers.as_ref();
        let (Some(layer), Some(truth)) =
            (layers.and_then(|layers| layers.get(group)), groups.shared.get_mut(group))
        else {
            return;
        };
        let is_shown = groups.current == group;
        enter(truth, &shared);
        enter(&mut groups.own, &own);
        let changing = layer.change();
        changing.apply(self.revision, shared);
        self.view.wake();
        between(&self.view, is_shown);
        self.view.apply(self.revision, own);
        drop(changing);
        self.view.wake();
        self.merge();
    }

    pub(super) fn put(&mut self, resource: Arc<Encoded>) {
        self.revision.0 += 1;
        if let Some(groups) = &mut self.groups {
            groups.own.insert(resource.id(), resource.clone());
        }
        self.deleted.remove(&resource.id());
        self.truth.insert(resource.id(), resource.clone());
        self.view.apply(self.revision, [ViewChange::Upsert(resource)]);
    }

    pub(super) fn delete(&mut self, id: Id) {
        self.revision.0 += 1;
        if self.truth.remove(&id).is_some() {
            self.deleted.insert(id.clone());
        }
        if let Some(groups) = &mut self.groups {
            groups.own.remove(&id);
        }
        self.view.apply(self.revision, [ViewChange::Remove(id)]);
        self.merge();
    }

    pub(super) fn pass_revision(&mut self) {
        self.revision.0 += 1;
        self.view.advance(self.revision);
    }

    /// The database keeps no history before now.
    pub(super) fn forget_history(&mut self) {
        self.floor = self.revision;
        self.deleted.clear();
        self.view.raise_floor(self.floor);
    }

    /// Everything in the tables is gone, but not the row that says which store this is.
    pub(super) fn empty(&mut self) {
        self.truth.clear();
        self.deleted.clear();
    }

    pub(super) fn other_store(&mut self, revision: u64) {
        self.store = StoreId([2; 16]);
        self.revision = Revision(revision);
        self.floor = Revision(0);
        self.deleted.clear();
    }

    pub(super) fn backup(&self) -> (BTreeMap<Id, Arc<Encoded>>, Revision) {
        (self.truth.clone(), self.revision)
    }

    pub(super) fn restore(&mut self, (truth, revision): (BTreeMap<Id, Arc<Encoded>>, Revision)) {
        self.deleted.retain(|id| !truth.contains_key(id));
        self.truth = truth;
        self.revision = revision;
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }
}

fn enter(resources: &mut BTreeMap<Id, Arc<Encoded>>, changes: &[ViewChange]) {
    for change in changes {
        match change {
            ViewChange::Upsert(resource) => drop(resources.insert(resource.id(), resource.clone())),
            ViewChange::Remove(id) => drop(resources.remove(id)),
        }
    }
}

impl Holder {
    fn take(&mut self, batch: Batch) -> Vec<Rejected> {
        if self.whole_steps && !batch.complete {
            self.parts.push(batch);
            return Vec::new();
        }
        let mut rejected = Vec::new();
        let mut parts = std::mem::take(&mut self.parts);
        parts.push(batch);
        for part in parts {
            for resource in part.upserts {
                if is_bad(&resource) && !self.tolerant {
                    let reason = "it is bad".to_owned();
                    rejected.push(Rejected { id: resource.id(), version: resource.version, reason });
                } else {
                    self.held.insert(resource.id(), resource.version);
                }
            }
            for id in part.removals {
                self.held.remove(&id);
            }
            self.position = part.position.or(self.position);
        }
        rejected
    }
}

impl Link {
    fn publisher_sends(&mut self, view: &View, now: Instant) -> Result<bool, TooOld> {
        let message = loop {
            match view.read(|contents| self.publisher.poll(contents, now))? {
                Next::Again => {}
                Next::Idle => return Ok(false),
                Next::Send(message) => break message,
            }
        };
        assert!(message.encoded_len() <= MAX_MESSAGE);
        if let Some(FromPublisher::Update(_)) = &message.message {
            self.unacknowledged += 1;
            assert_eq!(self.unacknowledged, 1, "more than one update is in flight");
        }
        self.down.push_back(message);
        Ok(true)
    }

    fn publisher_message_arrives(&mut self, now: Instant) -> bool {
        let Some(message) = self.down.pop_front() else { return false };
        self.subscriber.on_message(message, now).expect("the publisher keeps to the protocol");
        true
    }

    fn subscriber_sends(&mut self, now: Instant) -> bool {
        let Some(message) = self.subscriber.poll(now) else { return false };
        assert!(message.encoded_len() <= MAX_MESSAGE);
        self.up.push_back(message);
        true
    }

    fn subscriber_message_arrives(&mut self, view: &View, now: Instant) -> bool {
        let Some(message) = self.up.pop_front() else { return false };
        if matches!(&message.message, Some(FromSubscriber::Ack(ack)) if !ack.more) {
            self.unacknowledged -= 1;
        }
        view.read(|contents| self.publisher.on_message(message, contents, now))
            .expect("the subscriber keeps to the protocol");
        true
    }

    /// Whether either end takes the other for dead.
    pub(super) fn is_dead(&self, now: Instant) -> bool {
        self.publisher.is_dead(now) || self.subscriber.is_dead(now)
    }

    fn sink_begins(&mut self) -> bool {
        if self.applying.is_some() {
            return false;
        }
        self.applying = self.subscriber.next_batch();
        self.applying.is_some()
    }

    fn sink_ends(&mut self, holder: &mut Holder, now: Instant) -> bool {
        let Some(batch) = self.applying.take() else { return false };
        self.subscriber.done(holder.take(batch), now);
        true
    }
}
