//! How far a subscriber is behind, by its own monotonic clock: the time since it last equalled what the publisher
//! announced. "Connected" says nothing; a publisher that lost its own source must not pass for a current one.

use std::time::{Duration, Instant};

use super::SILENCE;
use crate::data::Revision;
use crate::peer::Behind;

/// A heartbeat is late after this: the publisher's newest revision is no longer known.
const LATE: Duration = Duration::from_secs(10);

pub(super) struct Staleness {
    /// The newest revision that is applied whole.
    pub(super) revision: Option<Revision>,
    pub(super) announced: Option<Revision>,
    /// The publisher has said something that is not applied yet.
    pub(super) lagging: bool,
    /// The publisher knows that it has the newest.
    pub(super) known: bool,
    equal: Option<Instant>,
    heard: Instant,
}

impl Staleness {
    /// `equal` is when an earlier stream last equalled the publisher.
    pub(super) fn new(revision: Option<Revision>, equal: Option<Instant>, now: Instant) -> Staleness {
        Staleness { revision, announced: None, lagging: true, known: false, equal, heard: now }
    }

    /// The publisher speaks: until now it was as it was.
    pub(super) fn hear(&mut self, now: Instant) {
        if self.behind(now) == Behind::Current {
            self.equal = Some(now);
        }
        self.heard = now;
    }

    /// Answers whether that is new.
    pub(super) fn announce(&mut self, revision: Revision) -> bool {
        let new = self.announced < Some(revision);
        self.announced = self.announced.max(Some(revision));
        new
    }

    /// Notes the time if this end equals the publisher.
    pub(super) fn compare(&mut self, now: Instant) {
        if self.is_equal() {
            self.equal = Some(now);
        }
    }

    pub(super) fn behind(&self, now: Instant) -> Behind {
        match self.equal {
            None => Behind::Never,
            Some(_) if self.is_equal() && now < self.heard + LATE => Behind::Current,
            Some(then) => Behind::Since(then),
        }
    }

    pub(super) fn equal(&self) -> Option<Instant> {
        self.equal
    }

    /// When the publisher's silence makes a current end old.
    pub(super) fn late_at(&self) -> Instant {
        self.heard + LATE
    }

    pub(super) fn dead_at(&self) -> Instant {
        self.heard + SILENCE
    }

    fn is_equal(&self) -> bool {
        self.known && !self.lagging && self.revision.is_some() && self.revision >= self.announced
    }
}
