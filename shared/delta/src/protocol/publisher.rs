//! The publisher's end of a stream: a cursor into the index of a view, and at most one update in flight.
//!
//! A new stream starts at the beginning of the order with what the subscriber says it holds, and skips what is equal;
//! what the subscriber holds beyond that is absent here. Of what is equal, which is nearly all, only its place is kept. From then on the order alone says what to send. So nothing is
//! kept a stream but the cursor, the resources of the step that is not acknowledged yet, and what was rejected.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use meridian_proto::delta as wire;
use wire::publisher_message::Message as Out;
use wire::subscriber_message::Message as In;

use super::parts::Filling;
use super::refusals::Refusals;
use super::{HEARTBEAT, MAX_HELD, SILENCE, Violation, on_beat};
use crate::contents::{At, Contents};
use crate::data::{Id, Position, Revision, Version};
use crate::index::{Deletions, Order};
use crate::peer::{Behind, Counters, Node, PeerState};
use crate::stream::{Hello, Message};

/// Revisions that changed nothing for a subscriber are announced at most this often.
const ADVANCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Entries looked at in one call, so that the view's lock is held for a fraction of a millisecond.
const SCAN: usize = 2048;

pub(crate) struct PublisherSession {
    beat: Option<Instant>,
    nudged: bool,
    part: usize,
    types: BTreeSet<Arc<str>>,
    node: Node,
    greeted: Greeted,
    stage: Stage,
    /// The subscriber's hello.
    peer: Hello,
    /// What it holds that is not equal here, or was not when it said so, and was not compared yet.
    have: BTreeMap<Id, Version>,
    /// The places of what was equal, and was not passed yet.
    equal: HashSet<Order>,
    held: usize,
    cursor: Order,
    /// The order's end when it began to say what it holds: names that changed after may have been sent on this stream, or have been
    /// equal before.
    since: Order,
    in_flight: Option<InFlight>,
    /// The last update said that more follows.
    mid_step: bool,
    /// Sent in this step, not rejected so far.
    step: BTreeMap<Id, Version>,
    nonce: u64,
    refusals: Refusals,
    announced: Option<(Revision, bool)>,
    /// Where the subscriber equals the view, as far as it was told.
    synced: Option<Revision>,
    heard: Instant,
    said: Instant,
    advanced: Option<Instant>,
    leaving: Leaving,
    goodbye: Option<String>,
    seen: Seen,
}

/// What is to be done next.
pub(crate) enum Next {
    Send(wire::PublisherMessage),
    /// Nothing to send yet; ask again, without holding the view meanwhile.
    Again,
    Idle,
}

/// The subscriber is too far behind what the view remembers of deletions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooOld;

#[derive(PartialEq, Eq)]
enum Greeted {
    No,
    /// Without a position: the view has no contents yet.
    Pending,
    Yes,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Hello,
    Listing,
    Comparing,
    Live,
}

struct InFlight {
    nonce: u64,
    revision: Revision,
    more: bool,
}

enum Leaving {
    No,
    Asked(String),
    Done,
}

/// What the application is shown.
#[derive(Default)]
struct Seen {
    changed: bool,
    revision: Option<Revision>,
    behind: Option<Behind>,
    withheld: u32,
    refused: Option<String>,
    counters: Counters,
}

impl PublisherSession {
    /// `beat`: heartbeats are due a multiple of [`HEARTBEAT`] after that, so that many streams of a process wake it once. `part`:
    /// updates are cut at so many bytes.
    pub(crate) fn new(
        types: &[Arc<str>],
        node: Node,
        part: usize,
        beat: Option<Instant>,
        now: Instant,
    ) -> PublisherSession {
        PublisherSession {
            beat,
            nudged: false,
            part,
            types: types.iter().cloned().collect(),
            node,
            greeted: Greeted::No,
            stage: Stage::Hello,
            peer: Hello::default(),
            have: BTreeMap::new(),
            equal: HashSet::new(),
            held: 0,
            cursor: Order::default(),
            since: Order::default(),
            in_flight: None,
            mid_step: false,
            step: BTreeMap::new(),
            nonce: 0,
            refusals: Refusals::default(),
            announced: None,
            synced: None,
            heard: now,
            said: now,
            advanced: None,
            leaving: Leaving::No,
            goodbye: None,
            seen: Seen {
                changed: true,
                counters: Counters { streams: 1, ..Counters::default() },
                ..Seen::default()
            },
        }
    }

    pub(crate) fn on_message(
        &mut self,
        message: wire::SubscriberMessage,
        contents: &Contents<'_>,
        now: Instant,
    ) -> Result<(), Violation> {
        self.heard = now;
        if self.stage == Stage::Hello {
            self.peer = message.hello()?;
            self.stage = Stage::Listing;
            self.seen.changed = true;
            return Ok(());
        }
        match message.message {
            Some(In::Have(have)) => self.on_have(have, contents),
            Some(In::Ack(ack)) => self.on_ack(ack, now),
            Some(In::Status(status)) => {
                self.on_status(status, now);
                Ok(())
            }
            Some(In::Goodbye(goodbye)) => {
                self.goodbye = Some(goodbye.reason);
                Ok(())
            }
            Some(In::Hello(_)) => Err(Violation::Unexpected("a second hello")),
            None => Err(Violation::Unexpected("a message of an unknown kind")),
        }
    }

    /// What to send now, if anything. Called when the transport can take a message.
    pub(crate) fn poll(&mut self, contents: &Contents<'_>, now: Instant) -> Result<Next, TooOld> {
        if matches!(self.leaving, Leaving::Done) {
            return Ok(Next::Idle);
        }
        if let Some(hello) = self.hello(contents) {
            return Ok(self.send(hello, now));
        }
        if let Leaving::Asked(reason) = &mut self.leaving {
            let reason = std::mem::take(reason);
            self.leaving = Leaving::Done;
            return Ok(self.send(Out::Goodbye(wire::Goodbye { reason }), now));
        }
        if contents.is_changing {
            // Half of a step is not to be seen; the view is woken when it is whole.
            return Ok(Next::Idle);
        }
        if self.in_flight.is_none()
            && contents.is_ready()
            && matches!(self.stage, Stage::Comparing | Stage::Live)
        {
            match self.step(contents, now)? {
                Next::Idle => {}
                next => return Ok(next),
            }
        }
        if self.heartbeat_at(contents).is_some_and(|at| at <= now) {
            return Ok(self.heartbeat(contents, now));
        }
        Ok(Next::Idle)
    }

    /// When to poll again although nothing happened, after it answered that it is idle.
    pub(crate) fn wake_at(&self, contents: &Contents<'_>) -> Instant {
        if contents.is_changing {
            return self.dead_at();
        }
        let retry = match self.in_flight {
            Some(_) => None,
            None => self.refusals.next_retry(),
        };
        [self.heartbeat_at(contents), retry].into_iter().flatten().fold(self.dead_at(), Instant::min)
    }

    /// The other direction has just woken both ends: a heartbeat that is due soon costs less now.
    pub(crate) fn nudge(&mut self, now: Instant) {
        self.nudged = now >= self.said + HEARTBEAT / 2;
    }

    /// When the subscriber counts as dead, unless it speaks.
    pub(crate) fn dead_at(&self) -> Instant {
        self.heard + SILENCE
    }

    pub(crate) fn is_dead(&self, now: Instant) -> bool {
        now >= self.dead_at()
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

    pub(crate) fn peer_left(&mut self) -> Option<String> {
        self.goodbye.take()
    }

    /// Whether there is something new to show.
    pub(crate) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.seen.changed)
    }

    pub(crate) fn show(&mut self, state: &mut PeerState) {
        state.counters.add(std::mem::take(&mut self.seen.counters));
        if self.stage == Stage::Hello {
            return;
        }
        state.node = Some(self.peer.node.clone());
        state.revision = self.seen.revision.or(state.revision);
        state.announced = self.announced.map(|(revision, _)| revision).or(state.announced);
        state.behind = self.seen.behind.unwrap_or(state.behind);
        state.withheld = self.seen.withheld;
        state.refused.clone_from(&self.seen.refused);
        state.rejected = self.refusals.shown();
    }

    fn on_have(&mut self, have: wire::Have, contents: &Contents<'_>) -> Result<(), Violation> {
        if self.stage != Stage::Listing {
            return Err(Violation::Unexpected("more of what it holds after the last of it"));
        }
        if self.greeted != Greeted::Yes {
            return Err(Violation::Unexpected("what it holds before it could know the publisher's position"));
        }
        if self.held == 0 {
            self.since = contents.now();
        }
        self.held = self.held.saturating_add(have.held.len());
        if self.held > MAX_HELD {
            return Err(Violation::TooMany(MAX_HELD));
        }
        for held in have.held {
            let version = Version::from_wire(&held.version)?;
            match contents.placed(&held.r#type, &held.name) {
                Some((order, here)) if here == version && self.wants(&held.r#type) => {
                    self.equal.insert(order);
                }
                _ => {
                    let id = Id::from_wire(held.r#type, held.name)?;
                    if self.wants(&id.type_) {
                        self.have.insert(id, version);
                    }
                }
            }
        }
        if have.last {
            self.stage = Stage::Comparing;
        }
        Ok(())
    }

    fn on_ack(&mut self, ack: wire::Ack, now: Instant) -> Result<(), Violation> {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.nonce == ack.nonce) else {
            return Err(Violation::Unexpected("an acknowledgement of what is not in flight"));
        };
        for rejection in ack.rejected {
            let id = Id::from_wire(rejection.r#type, rejection.name)?;
            let version = Version::from_wire(&rejection.version)?;
            // What this step did not send can't be refused: that bounds what is remembered.
            if self.step.get(&id) == Some(&version) {
                self.step.remove(&id);
                self.refusals.refuse(id, version, rejection.reason, now);
            }
        }
        if ack.more {
            self.in_flight = Some(in_flight);
            return Ok(());
        }
        self.seen.changed = true;
        if in_flight.more {
            return Ok(());
        }
        for id in std::mem::take(&mut self.step).into_keys() {
            self.refusals.clear(&id);
        }
        self.synced = Some(in_flight.revision);
        self.seen.revision = Some(in_flight.revision);
        self.seen.behind = Some(Behind::Current);
        Ok(())
    }

    fn on_status(&mut self, status: wire::Status, now: Instant) {
        let refused = (!status.refused.is_empty()).then_some(status.refused);
        let behind = match status.behind_millis {
            None => Behind::Never,
            Some(0) => Behind::Current,
            Some(millis) => match now.checked_sub(std::time::Duration::from_millis(millis)) {
                Some(then) => Behind::Since(then),
                None => Behind::Never,
            },
        };
        let revision = status.revision.map(Revision).or(self.seen.revision);
        let current = self.seen.behind == Some(Behind::Current) && behind == Behind::Current;
        self.seen.changed |= !current
            || self.seen.revision != revision
            || self.seen.withheld != status.withheld
            || self.seen.refused != refused;
        self.seen.revision = revision;
        self.seen.behind = Some(behind);
        self.seen.withheld = status.withheld;
        self.seen.refused = refused;
    }

    /// The hello that is due, if one is.
    fn hello(&mut self, contents: &Contents<'_>) -> Option<Out> {
        let due = match self.greeted {
            Greeted::No => true,
            Greeted::Pending => contents.is_ready(),
            Greeted::Yes => false,
        };
        if !due {
            return None;
        }
        self.greeted = if contents.is_ready() { Greeted::Yes } else { Greeted::Pending };
        if contents.is_ready() {
            self.announced = Some((contents.revision(), contents.is_known()));
        }
        Some(Out::Hello(wire::PublisherHello {
            protocol: crate::PROTOCOL,
            position: contents
                .is_ready()
                .then(|| Position::new(contents.store(), contents.revision()).to_wire()),
            floor: contents.floor().0,
            types: self.types.iter().map(|name| name.to_string()).collect(),
            node: Some(self.node.to_wire()),
        }))
    }

    /// The next update, if the subscriber lacks something.
    fn step(&mut self, contents: &Contents<'_>, now: Instant) -> Result<Next, TooOld> {
        if !contents.reaches(self.cursor, self.since) {
            return Err(TooOld);
        }
        let mut filling = Filling::new(self.part);
        self.fill_retries(contents, now, &mut filling);
        let whole = self.fill_changes(contents, &mut filling) && self.fill_absent(contents, &mut filling);
        if filling.is_empty() && !(whole && self.mid_step) {
            return Ok(if whole { Next::Idle } else { Next::Again });
        }
        Ok(self.update(filling, whole, contents, now))
    }

    fn fill_retries(&mut self, contents: &Contents<'_>, now: Instant, filling: &mut Filling) {
        for (id, version) in self.refusals.due(now) {
            let same = contents.get(&id.type_, &id.name).filter(|resource| resource.version == version);
            let Some(resource) = same else {
                // The order says what it is now. Should it become what it was, that is news.
                self.refusals.clear(&id);
                continue;
            };
            if !filling.fits(resource.cost()) {
                return;
            }
            filling.upsert(resource);
            self.refusals.retried(&id);
        }
    }

    /// Takes in what changed above the cursor. Answers whether that was all of it.
    fn fill_changes(&mut self, contents: &Contents<'_>, filling: &mut Filling) -> bool {
        for (seen, (order, at)) in contents.after(self.cursor, self.since).enumerate() {
            if seen == SCAN {
                return false;
            }
            match at {
                At::Present(resource) if self.wants(&resource.type_) => {
                    let id = resource.id();
                    let held = self.equal.remove(&order) || self.have.get(&id) == Some(&resource.version);
                    let refused = self.refusals.holds(&id, resource);
                    if !held && !refused {
                        if !filling.fits(resource.cost()) {
                            return false;
                        }
                        filling.upsert(resource);
                        // Of another version, which may come back before this step is acknowledged.
                        self.refusals.clear(&id);
                    }
                    self.have.remove(&id);
                }
                At::Removed(id) if self.wants(&id.type_) => {
                    if order > self.since || self.have.contains_key(id) {
                        if !filling.fits(id.cost()) {
                            return false;
                        }
                        filling.remove(id.clone(), wire::Cause::Known);
                    }
                    self.have.remove(id);
                    self.refusals.clear(id);
                }
                _ => {}
            }
            self.cursor = order;
        }
        self.cursor = self.cursor.max(contents.now());
        true
    }

    /// After all that is here was compared: what the subscriber holds beyond it. Answers whether that was all.
    fn fill_absent(&mut self, contents: &Contents<'_>, filling: &mut Filling) -> bool {
        if self.stage == Stage::Live {
            return true;
        }
        // What else was equal has another place by now, and was met there.
        self.equal = HashSet::new();
        let cause = self.cause_of_absence(contents);
        while let Some(entry) = self.have.first_entry() {
            if !filling.fits(entry.key().cost()) {
                return false;
            }
            let (id, _) = entry.remove_entry();
            filling.remove(id, cause);
        }
        self.stage = Stage::Live;
        true
    }

    fn cause_of_absence(&self, contents: &Contents<'_>) -> wire::Cause {
        let reaches_back = self.peer.position.is_some_and(|position| {
            position.store == contents.store()
                && position.revision >= contents.floor()
                && position.revision <= contents.revision()
        });
        match (reaches_back, contents.deletions()) {
            (false, _) => wire::Cause::Inferred,
            (true, Deletions::Derived) => wire::Cause::Known,
            (true, Deletions::Recorded) => wire::Cause::Unrecorded,
        }
    }

    fn update(&mut self, filling: Filling, whole: bool, contents: &Contents<'_>, now: Instant) -> Next {
        self.nonce += 1;
        self.in_flight = Some(InFlight { nonce: self.nonce, revision: contents.revision(), more: !whole });
        self.mid_step = !whole;
        for resource in &filling.upserts {
            self.step.insert(resource.id(), resource.version);
        }
        for (id, _) in &filling.removals {
            self.step.remove(id);
        }
        if whole {
            self.announced = Some((contents.revision(), self.announced.is_none_or(|(_, known)| known)));
        }
        self.count(&filling, now);
        self.send(Out::Update(filling.into_update(self.nonce, contents.revision().0, !whole)), now)
    }

    fn count(&mut self, filling: &Filling, now: Instant) {
        let counters = &mut self.seen.counters;
        counters.updates += 1;
        counters.resources += filling.upserts.len() as u64;
        counters.removals += filling.removals.len() as u64;
        counters.bytes += filling.upserts.iter().map(|resource| resource.body.len() as u64).sum::<u64>();
        if self.seen.behind == Some(Behind::Current) {
            self.seen.behind = Some(Behind::Since(now));
        }
        self.seen.changed = true;
    }

    fn in_sync(&self) -> bool {
        self.stage == Stage::Live && self.in_flight.is_none() && !self.mid_step
    }

    /// When the next heartbeat is due.
    fn heartbeat_at(&self, contents: &Contents<'_>) -> Option<Instant> {
        if self.greeted == Greeted::No || matches!(self.leaving, Leaving::Done) {
            return None;
        }
        let latest = self.said + HEARTBEAT;
        let regular = match self.beat {
            _ if self.nudged => self.said + HEARTBEAT / 2,
            Some(beat) => on_beat(beat, latest),
            None => latest,
        };
        if self.greeted == Greeted::Pending {
            return Some(regular);
        }
        let untold_sync = self.in_sync() && self.synced != Some(contents.revision());
        let moved = self.announced.is_none_or(|(revision, _)| revision != contents.revision());
        let lost_sight = self.announced.is_none_or(|(_, known)| known != contents.is_known());
        let at_once = lost_sight || (untold_sync && self.synced.is_none());
        match (at_once, untold_sync || moved) {
            (true, _) => Some(self.said),
            (false, true) => Some(regular.min(self.advanced.map_or(self.said, |last| last + ADVANCE))),
            (false, false) => Some(regular),
        }
    }

    fn heartbeat(&mut self, contents: &Contents<'_>, now: Instant) -> Next {
        let in_sync = self.in_sync() && self.greeted == Greeted::Yes;
        if in_sync {
            self.synced = Some(contents.revision());
        }
        if self.greeted == Greeted::Yes {
            let announced = Some((contents.revision(), contents.is_known()));
            // At rest it says the same every time, and whoever watches sleeps.
            self.seen.changed |= self.announced != announced;
            self.announced = announced;
        }
        self.advanced = Some(now);
        self.nudged = false;
        let unknown = !(contents.is_known() && contents.is_ready());
        self.send(Out::Heartbeat(wire::Heartbeat { revision: contents.revision().0, unknown, in_sync }), now)
    }

    fn send(&mut self, message: Out, now: Instant) -> Next {
        self.said = now;
        Next::Send(wire::PublisherMessage { message: Some(message) })
    }

    fn wants(&self, type_: &str) -> bool {
        let offered = self.types.is_empty() || self.types.contains(type_);
        let asked = self.peer.types.is_empty() || self.peer.types.iter().any(|asked| **asked == *type_);
        offered && asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn heartbeats_of_many_streams_fall_on_one_beat() {
        let beat = Instant::now();
        for (said, due) in [(0, 5000), (1, 5000), (4999, 5000), (5000, 10_000), (7300, 10_000)] {
            let latest = beat + Duration::from_millis(said) + HEARTBEAT;
            assert_eq!(on_beat(beat, latest), beat + Duration::from_millis(due), "said at {said}");
        }
    }

    #[test]
    fn a_nudge_brings_a_heartbeat_forward_that_is_due_soon() {
        let began = Instant::now();
        let view = crate::View::new(crate::StoreId([1; 16]), Revision(1));
        let mut session = PublisherSession::new(&[], Node::default(), crate::PART, None, began);
        session.greeted = Greeted::Yes;
        session.announced = Some((Revision(1), true));
        let due = |session: &PublisherSession| view.read(|contents| session.heartbeat_at(contents)).unwrap();
        assert_eq!(due(&session), began + HEARTBEAT);
        session.nudge(began + HEARTBEAT / 3);
        assert_eq!(due(&session), began + HEARTBEAT);
        session.nudge(began + HEARTBEAT / 2);
        assert_eq!(due(&session), began + HEARTBEAT / 2);
    }
}
