//! The subscriber's end of a stream: what it holds, whom it takes it from, and what it answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::delta as wire;
use wire::publisher_message::Message as In;
use wire::subscriber_message::Message as Out;

use super::guard::Guard;
use super::parts::{Listing, Verdict};
use super::staleness::Staleness;
use super::{HEARTBEAT, QUIET, Violation, on_beat, shorten};
use crate::data::{Encoded, Id, Position, Revision, StoreId, Version};
use crate::peer::{Behind, Counters, MAX_REJECTED, Node, PeerState, Rejected};
use crate::stream::{Hello, Message};
use crate::subscribe::{Batch, Resume};

/// A replica that has not read the newest commits yet announces an older revision for a moment. If it catches up within
/// this time it was that, and no restored backup.
const CATCH_UP: Duration = Duration::from_secs(30);

/// Whoever answers heartbeats speaks without one after this: they are late, or were lost on the way.
const SPEAK: Duration = QUIET.saturating_add(Duration::from_secs(1));

pub(crate) struct SubscriberSession {
    types: BTreeSet<Arc<str>>,
    node: Node,
    greeted: bool,
    stage: Stage,
    /// The publisher's hello.
    peer: Option<Hello>,
    offered: Option<Position>,
    /// Where it was settled last: nothing incomplete, nothing withheld.
    position: Option<Position>,
    have: Listing,
    accepted: Option<StoreId>,
    guard: Guard,
    /// The update that was not acknowledged yet.
    in_flight: Option<u64>,
    work: VecDeque<Job>,
    doing: Option<Doing>,
    ack: Option<Verdict>,
    rejected: BTreeMap<Id, Rejected>,
    age: Staleness,
    /// When it speaks if nothing is new: on this beat, or else with the heartbeats that it hears.
    beat: Option<Instant>,
    said: Instant,
    /// The last status that was sent.
    answered: Option<wire::Status>,
    /// Something changed that the publisher is told at once.
    status_due: bool,
    /// A heartbeat came.
    asked: bool,
    leaving: Leaving,
    goodbye: Option<String>,
    settled: Option<StoreId>,
    /// The sink was told that it is whole, on this stream.
    told: bool,
    shown: Behind,
    news: bool,
    counters: Counters,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for a hello with a position.
    Hello,
    Refusing {
        why: Refused,
        since: Instant,
    },
    Listing,
    Live,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Refused {
    OtherStore,
    Older,
}

struct Job {
    nonce: Option<u64>,
    batch: Batch,
    /// Rejected before the sink sees them.
    rejected: Vec<Rejected>,
}

struct Doing {
    nonce: Option<u64>,
    revision: Revision,
    complete: bool,
    position: Option<Position>,
    rejected: Vec<Rejected>,
    /// Names that were rejected before and are in this batch: accepted now, unless rejected again.
    renewed: Vec<Id>,
}

enum Leaving {
    No,
    Asked(String),
    Done,
}

impl SubscriberSession {
    /// `equal` is when an earlier stream last equalled the publisher, by this process's clock. `beat`: what is said only
    /// to be heard is due a multiple of [`HEARTBEAT`] after that, together with what the process's other streams say.
    pub(crate) fn new(
        types: &[Arc<str>],
        node: Node,
        resume: Resume,
        equal: Option<Instant>,
        beat: Option<Instant>,
        now: Instant,
    ) -> SubscriberSession {
        SubscriberSession {
            types: types.iter().cloned().collect(),
            node,
            greeted: false,
            stage: Stage::Hello,
            peer: None,
            offered: None,
            position: resume.position,
            guard: Guard::new(resume.have.iter().map(|(id, _)| id)),
            have: Listing(resume.have.into()),
            accepted: None,
            in_flight: None,
            work: VecDeque::new(),
            doing: None,
            ack: None,
            rejected: BTreeMap::new(),
            age: Staleness::new(resume.position.map(|position| position.revision), equal, now),
            beat,
            said: now,
            answered: None,
            status_due: false,
            asked: false,
            leaving: Leaving::No,
            goodbye: None,
            settled: None,
            told: false,
            shown: Behind::Never,
            news: true,
            counters: Counters::default(),
        }
    }

    pub(crate) fn on_message(
        &mut self,
        message: wire::PublisherMessage,
        now: Instant,
    ) -> Result<(), Violation> {
        self.age.hear(now);
        if self.peer.is_none() || matches!(message.message, Some(In::Hello(_))) {
            let hello = message.hello()?;
            return self.on_hello(hello, now);
        }
        match message.message {
            Some(In::Update(update)) => self.on_update(update),
            Some(In::Heartbeat(heartbeat)) => self.on_heartbeat(&heartbeat, now),
            Some(In::Goodbye(goodbye)) => {
                self.goodbye = Some(goodbye.reason);
                Ok(())
            }
            Some(In::Hello(_)) | None => Err(Violation::Unexpected("a message of an unknown kind")),
        }
    }

    /// Takes the publisher of this store as the truth, now or when it is met.
    pub(crate) fn accept(&mut self, store: StoreId) {
        self.accepted = Some(store);
        if matches!(self.stage, Stage::Refusing { .. })
            && self.offered.is_some_and(|offered| offered.store == store)
        {
            self.admit();
        }
    }

    /// Applies what is withheld.
    pub(crate) fn confirm(&mut self) {
        let removals = self.guard.release();
        let (Some(offered), Some(revision)) = (self.offered, self.age.revision) else { return };
        if removals.is_empty() {
            return;
        }
        let complete = !self.age.lagging;
        let position = complete.then_some(Position::new(offered.store, revision));
        self.enqueue(Batch { position, revision, complete, upserts: Vec::new(), removals }, None, Vec::new());
        self.status_due = true;
        self.news = true;
    }

    /// The next batch for the sink, one at a time; [`SubscriberSession::done`] follows.
    pub(crate) fn next_batch(&mut self) -> Option<Batch> {
        if self.doing.is_some() {
            return None;
        }
        let Job { nonce, batch, rejected } = self.work.pop_front()?;
        let names = batch.upserts.iter().map(|resource| resource.id()).chain(batch.removals.iter().cloned());
        let renewed = match self.rejected.is_empty() {
            true => Vec::new(),
            false => names.filter(|id| self.rejected.contains_key(id)).collect(),
        };
        self.doing = Some(Doing {
            nonce,
            revision: batch.revision,
            complete: batch.complete,
            position: batch.position,
            rejected,
            renewed,
        });
        Some(batch)
    }

    /// The sink has taken the batch in.
    pub(crate) fn done(&mut self, rejected: Vec<Rejected>, now: Instant) {
        let Some(mut doing) = self.doing.take() else { return };
        doing.rejected.extend(rejected);
        for id in doing.renewed {
            self.rejected.remove(&id);
        }
        for rejected in &mut doing.rejected {
            shorten(&mut rejected.reason);
            if self.rejected.len() < MAX_REJECTED || self.rejected.contains_key(&rejected.id) {
                self.rejected.insert(rejected.id.clone(), rejected.clone());
            }
        }
        if let Some(nonce) = doing.nonce {
            self.ack = Some(Verdict { nonce, rejected: doing.rejected.into() });
        }
        if let Some(position) = doing.position {
            self.position = Some(position);
            self.settled = Some(position.store);
        }
        if doing.complete {
            self.age.revision = Some(doing.revision);
            self.told = true;
            self.age.lagging = self.in_flight.is_some_and(|nonce| Some(nonce) != doing.nonce);
            self.age.compare(now);
        }
        self.news = true;
    }

    /// What to send now, if anything. Called when the transport can take a message.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<wire::SubscriberMessage> {
        if matches!(self.leaving, Leaving::Done) {
            return None;
        }
        let message = self.next_message(now)?;
        self.said = now;
        Some(wire::SubscriberMessage { message: Some(message) })
    }

    /// When to poll again although nothing happened, after it answered that it is idle.
    pub(crate) fn wake_at(&self) -> Instant {
        match self.is_closed() {
            true => self.turn_at(),
            false => self.turn_at().min(self.speak_at()),
        }
    }

    /// When what is shown changes by itself: the publisher's silence makes it old, then dead.
    pub(crate) fn turn_at(&self) -> Instant {
        if self.shown == Behind::Current { self.age.late_at() } else { self.age.dead_at() }
    }

    pub(crate) fn is_dead(&self, now: Instant) -> bool {
        now >= self.age.dead_at()
    }

    /// Leaves on purpose: the next message is the goodbye.
    pub(crate) fn close(&mut self, reason: &str) {
        if matches!(self.leaving, Leaving::No) {
            self.leaving = Leaving::Asked(reason.to_owned());
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        !matches!(self.leaving, Leaving::No)
    }

    /// The goodbye is said.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.leaving, Leaving::Done)
    }

    pub(crate) fn has_peer_left(&self) -> bool {
        self.goodbye.is_some()
    }

    pub(crate) fn peer_left(&mut self) -> Option<String> {
        self.goodbye.take()
    }

    /// When this end last equalled the publisher.
    pub(crate) fn equal(&self) -> Option<Instant> {
        self.age.equal()
    }

    /// The store whose position was taken over last: an acceptance of it is used up.
    pub(crate) fn settled(&mut self) -> Option<StoreId> {
        self.settled.take()
    }

    /// Whether there is something new to show.
    pub(crate) fn has_news(&mut self, now: Instant) -> bool {
        let behind = self.age.behind(now);
        self.news |= behind != self.shown;
        self.shown = behind;
        std::mem::take(&mut self.news)
    }

    pub(crate) fn show(&mut self, state: &mut PeerState) {
        state.counters.add(std::mem::take(&mut self.counters));
        if let Some(peer) = &self.peer {
            state.node = Some(peer.node.clone());
        }
        state.revision = self.age.revision.or(state.revision);
        state.announced = self.age.announced.or(state.announced);
        state.offered = self.offered.or(state.offered);
        state.behind = self.shown;
        state.rejected = self.rejected.values().cloned().collect();
        state.withheld = u32::try_from(self.guard.withheld()).unwrap_or(u32::MAX);
        state.refused = self.refused();
    }

    fn on_hello(&mut self, hello: Hello, now: Instant) -> Result<(), Violation> {
        if self.offered.is_some() {
            return Err(Violation::Unexpected("a second hello"));
        }
        self.offered = hello.position;
        self.peer = Some(hello);
        self.news = true;
        let Some(offered) = self.offered else { return Ok(()) };
        self.age.announce(offered.revision);
        match self.position {
            Some(mine) if self.accepted != Some(offered.store) => {
                if mine.store != offered.store {
                    self.refuse(Refused::OtherStore, now);
                } else if mine.revision > offered.revision {
                    self.refuse(Refused::Older, now);
                } else {
                    self.admit();
                }
            }
            _ => self.admit(),
        }
        Ok(())
    }

    fn refuse(&mut self, why: Refused, now: Instant) {
        self.stage = Stage::Refusing { why, since: now };
        self.status_due = true;
        self.news = true;
    }

    fn admit(&mut self) {
        self.status_due |= matches!(self.stage, Stage::Refusing { .. });
        self.stage = Stage::Listing;
        self.news = true;
    }

    fn refused(&self) -> Option<String> {
        let Stage::Refusing { why, .. } = self.stage else { return None };
        let (mine, offered) = (self.position?, self.offered?);
        Some(match why {
            Refused::OtherStore => format!("it offers {offered}, what is held here is of {mine}"),
            Refused::Older => format!("it offers {offered}, older than what is held here, {mine}"),
        })
    }

    fn on_update(&mut self, update: wire::Update) -> Result<(), Violation> {
        if self.stage != Stage::Live {
            return Err(Violation::Unexpected("an update before it was asked for"));
        }
        if self.in_flight.is_some() {
            return Err(Violation::Unexpected("an update while another is in flight"));
        }
        let Some(offered) = self.offered else {
            return Err(Violation::Unexpected("an update before its hello"));
        };
        let mut rejected = Vec::new();
        let mut upserts = Vec::with_capacity(update.upserts.len());
        for resource in update.upserts {
            match self.examine(resource)? {
                Ok(resource) => upserts.push(resource),
                Err(refused) => rejected.push(refused),
            }
        }
        let withheld = self.guard.withheld();
        let mut removals = self.removals(update.removals)?;
        let (complete, revision) = (!update.more, Revision(update.revision));
        if complete {
            removals.extend(self.guard.judge());
        }
        self.status_due |= withheld != self.guard.withheld();
        let settled = complete && self.guard.withheld() == 0;
        let position = settled.then_some(Position::new(offered.store, revision));
        self.in_flight = Some(update.nonce);
        self.age.lagging = true;
        self.age.announce(revision);
        self.counters.updates += 1;
        self.counters.resources += upserts.len() as u64;
        self.counters.removals += removals.len() as u64;
        self.counters.bytes += upserts.iter().map(|resource| resource.body.len() as u64).sum::<u64>();
        self.enqueue(Batch { position, revision, complete, upserts, removals }, Some(update.nonce), rejected);
        Ok(())
    }

    /// Checks one resource; the outer error ends the stream, the inner one rejects the resource.
    fn examine(&mut self, resource: wire::Resource) -> Result<Result<Arc<Encoded>, Rejected>, Violation> {
        let id = Id::from_wire(resource.r#type, resource.name)?;
        let version = Version::from_wire(&resource.version)?;
        self.guard.settle(&id);
        let reject = |reason: String| Ok(Err(Rejected { id: id.clone(), version, reason }));
        if !(self.types.is_empty() || self.types.contains(&id.type_)) {
            return reject(format!("this subscriber does not know the type {}", id.type_));
        }
        match Encoded::new(id.type_.clone(), id.name.clone(), resource.body) {
            Ok(encoded) if encoded.version == version => Ok(Ok(encoded)),
            Ok(encoded) => reject(format!("its body has the version {}", encoded.version)),
            Err(too_large) => reject(too_large.to_string()),
        }
    }

    /// Those that are certain; the others go to the guard.
    fn removals(&mut self, removals: Vec<wire::Removal>) -> Result<Vec<Id>, Violation> {
        let mut certain = Vec::with_capacity(removals.len());
        for removal in removals {
            let cause = removal.cause();
            let id = Id::from_wire(removal.r#type, removal.name)?;
            match cause {
                wire::Cause::Known => {
                    self.guard.settle(&id);
                    certain.push(id);
                }
                doubtful => self.guard.doubt(id, doubtful)?,
            }
        }
        Ok(certain)
    }

    fn on_heartbeat(&mut self, heartbeat: &wire::Heartbeat, now: Instant) -> Result<(), Violation> {
        self.asked = true;
        let revision = Revision(heartbeat.revision);
        let Some(offered) = self.offered else { return Ok(()) };
        self.news |= self.age.announce(revision);
        self.age.known = !heartbeat.unknown;
        self.catch_up(revision, now);
        if heartbeat.in_sync {
            if self.stage != Stage::Live || self.in_flight.is_some() {
                return Err(Violation::Unexpected("that it is in sync while an update is in flight"));
            }
            self.advance(offered.store, revision);
        } else if self.age.revision.is_some_and(|mine| mine < revision) {
            self.age.lagging = true;
        }
        self.age.compare(now);
        Ok(())
    }

    /// An older publisher that soon is no longer older was only late.
    fn catch_up(&mut self, revision: Revision, now: Instant) {
        let Stage::Refusing { why: Refused::Older, since } = self.stage else { return };
        if now < since + CATCH_UP && self.position.is_some_and(|mine| revision >= mine.revision) {
            self.admit();
        }
    }

    /// The publisher has nothing that is not here.
    fn advance(&mut self, store: StoreId, revision: Revision) {
        let removals = self.guard.judge();
        let position = (self.guard.withheld() == 0).then_some(Position::new(store, revision));
        let idle = self.work.is_empty() && self.doing.is_none() && removals.is_empty();
        let kept = position.is_none() || self.position == position;
        if idle && kept && self.told && self.age.revision == Some(revision) {
            self.age.lagging = false;
            return;
        }
        // Of several that wait, the last says all.
        self.work.retain(|job| job.nonce.is_some() || !job.batch.removals.is_empty());
        self.enqueue(
            Batch { position, revision, complete: true, upserts: Vec::new(), removals },
            None,
            Vec::new(),
        );
    }

    fn enqueue(&mut self, batch: Batch, nonce: Option<u64>, rejected: Vec<Rejected>) {
        self.work.push_back(Job { nonce, batch, rejected });
        self.news = true;
    }

    fn next_message(&mut self, now: Instant) -> Option<Out> {
        if !self.greeted {
            self.greeted = true;
            return Some(Out::Hello(wire::SubscriberHello {
                protocol: crate::PROTOCOL,
                position: self.position.map(Position::to_wire),
                types: self.types.iter().map(|name| name.to_string()).collect(),
                node: Some(self.node.to_wire()),
            }));
        }
        if let Leaving::Asked(reason) = &mut self.leaving {
            let reason = std::mem::take(reason);
            self.leaving = Leaving::Done;
            return Some(Out::Goodbye(wire::Goodbye { reason }));
        }
        if let Some(ack) = &mut self.ack {
            let message = ack.next_part();
            if !message.more {
                self.ack = None;
                self.in_flight = None;
            }
            return Some(Out::Ack(message));
        }
        if self.stage == Stage::Listing {
            let have = self.have.next_part();
            if have.last {
                self.stage = Stage::Live;
            }
            return Some(Out::Have(have));
        }
        self.due_status(now).map(Out::Status)
    }

    /// What it says of itself, if that is due. An answer that says nothing new waits for the next heartbeat.
    fn due_status(&mut self, now: Instant) -> Option<wire::Status> {
        let asked = std::mem::take(&mut self.asked);
        let waited = self.beat.is_none() && now >= self.said + QUIET - HEARTBEAT / 2;
        let due = std::mem::take(&mut self.status_due) || now >= self.speak_at() || (asked && waited);
        if !(due || asked) {
            return None;
        }
        let status = self.status(now);
        if !due && self.answered.as_ref() == Some(&status) {
            return None;
        }
        self.answered = Some(status.clone());
        Some(status)
    }

    /// When it speaks although nothing is new and no heartbeat came.
    fn speak_at(&self) -> Instant {
        match self.beat {
            Some(beat) => on_beat(beat, self.said + QUIET),
            None => self.said + SPEAK,
        }
    }

    fn status(&self, now: Instant) -> wire::Status {
        let behind_millis = match self.age.behind(now) {
            Behind::Never => None,
            Behind::Current => Some(0),
            Behind::Since(then) => {
                let millis = now.saturating_duration_since(then).as_millis();
                Some(u64::try_from(millis).unwrap_or(u64::MAX).max(1))
            }
        };
        wire::Status {
            revision: self.age.revision.map(|revision| revision.0),
            behind_millis,
            withheld: u32::try_from(self.guard.withheld()).unwrap_or(u32::MAX),
            refused: self.refused().unwrap_or_default(),
        }
    }
}
