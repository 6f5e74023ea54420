//! Which proxies are there: streams come and go, and what they registered goes with them, but not at once.
//!
//! A clean goodbye ends a registration at once, a cut stream after [`GRACE`], and after the control plane's own restart
//! everything stored stays for [`RESTART_GRACE`]. No I/O and no clock of its own: the caller tells the time.

use crate::claims::Subject;
use meridian_core::Key;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// A cut stream may come back within this.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// After its own restart the zone control plane waits so long for the proxies it knew.
pub(crate) const RESTART_GRACE: Duration = Duration::from_mins(1);

/// Names one stream of one proxy; never given twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u64);

/// Why a registration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{name} has a live stream of another subject ({holder}); it must end first")]
    LiveElsewhere { name: String, holder: String },
    #[error("{name} has a live stream of a process that started later")]
    Fenced { name: String },
}

/// One proxy's place.
#[derive(Clone, Debug)]
struct Seat {
    /// Unset for what was stored before a restart, until the proxy is back.
    subject: Option<Subject>,
    stream: Option<StreamId>,
    /// Start of the process that holds the stream; an older process of the same name is refused.
    epoch: u64,
    /// When the registration ends, while no stream holds it.
    leaves: Option<Instant>,
}

/// All proxies of the zone.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    seats: HashMap<Key, Seat>,
    deadlines: BTreeMap<(Instant, Key), ()>,
}

/// What a registration did to a stream that held the place before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seated {
    /// The stream to end: the same subject has come back on another one.
    pub(crate) replaced: Option<StreamId>,
}

impl Presence {
    /// What the store holds at start: expected back within [`RESTART_GRACE`].
    pub(crate) fn expect(&mut self, keys: impl IntoIterator<Item = Key>, now: Instant) {
        self.expect_back(keys, now + RESTART_GRACE);
    }

    /// Registered by nobody who is there; ends at that time.
    pub(crate) fn expect_back(&mut self, keys: impl IntoIterator<Item = Key>, leaves: Instant) {
        for key in keys {
            self.deadlines.insert((leaves, key.clone()), ());
            self.seats.insert(key, Seat { subject: None, stream: None, epoch: 0, leaves: Some(leaves) });
        }
    }

    /// A proxy has pushed its resource over `stream`.
    pub(crate) fn register(
        &mut self,
        key: &Key,
        subject: &Subject,
        stream: StreamId,
        epoch: u64,
    ) -> Result<Seated, Refused> {
        let mut replaced = None;
        if let Some(seat) = self.seats.get(key)
            && let (Some(holder), Some(live)) = (&seat.subject, seat.stream)
            && live != stream
        {
            if holder != subject {
                return Err(Refused::LiveElsewhere { name: key.name.clone(), holder: holder.to_string() });
            }
            if epoch < seat.epoch {
                return Err(Refused::Fenced { name: key.name.clone() });
            }
            replaced = Some(live);
        }
        self.forget_deadline(key);
        let seat = Seat { subject: Some(subject.clone()), stream: Some(stream), epoch, leaves: None };
        self.seats.insert(key.clone(), seat);
        Ok(Seated { replaced })
    }

    /// The stream is gone. True if the registration ends at once: a clean goodbye.
    pub(crate) fn stream_ended(&mut self, key: &Key, stream: StreamId, goodbye: bool, now: Instant) -> bool {
        let Some(seat) = self.seats.get_mut(key) else { return false };
        if seat.stream != Some(stream) {
            return false;
        }
        seat.stream = None;
        if goodbye {
            self.seats.remove(key);
            return true;
        }
        let leaves = now + GRACE;
        seat.leaves = Some(leaves);
        self.deadlines.insert((leaves, key.clone()), ());
        false
    }

    /// The resource is gone for another reason: deleted by a user, say.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.forget_deadline(key);
        self.seats.remove(key);
    }

    /// Registrations whose time is up.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Key> {
        let mut out = Vec::new();
        while let Some(((at, key), ())) = self.deadlines.pop_first() {
            if at > now {
                self.deadlines.insert((at, key), ());
                break;
            }
            if self.seats.get(&key).is_some_and(|seat| seat.leaves == Some(at)) {
                self.seats.remove(&key);
                out.push(key);
            }
        }
        out
    }

    /// When [`Presence::expired`] next has something to say.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), ())| *at)
    }

    /// It has a live stream, and this is its subject.
    pub(crate) fn holder(&self, key: &Key) -> Option<&Subject> {
        self.seats.get(key).filter(|seat| seat.stream.is_some()).and_then(|seat| seat.subject.as_ref())
    }

    /// It is registered, whether it has a live stream or not.
    pub(crate) fn is_known(&self, key: &Key) -> bool {
        self.seats.contains_key(key)
    }

    /// The registration came over this stream.
    pub(crate) fn is_held_by(&self, key: &Key, stream: StreamId) -> bool {
        self.seats.get(key).is_some_and(|seat| seat.stream == Some(stream))
    }

    fn forget_deadline(&mut self, key: &Key) {
        if let Some(leaves) = self.seats.get(key).and_then(|seat| seat.leaves) {
            self.deadlines.remove(&(leaves, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_auth::{DataplaneClaims, Verified};
    use meridian_core::kinds::dataplane::Dataplane;
    use time::OffsetDateTime;

    fn key() -> Key {
        Key::new(Dataplane::KIND, "default", "east", "web-1")
    }

    fn subject(name: &str) -> Subject {
        let claims = DataplaneClaims { name: name.into(), mesh: "default".into(), ..Default::default() };
        let expires = OffsetDateTime::UNIX_EPOCH;
        Subject::Dataplane(Verified { claims, id: "1".into(), kid: "1".into(), expires })
    }

    #[test]
    fn a_goodbye_ends_it_at_once_a_cut_after_ten_seconds() {
        let now = Instant::now();
        let mut presence = Presence::default();
        presence.register(&key(), &subject("web-1"), StreamId(1), 1).unwrap();
        assert!(presence.stream_ended(&key(), StreamId(1), true, now));
        presence.register(&key(), &subject("web-1"), StreamId(2), 1).unwrap();
        assert!(!presence.stream_ended(&key(), StreamId(2), false, now));
        assert_eq!(presence.holder(&key()), None);
        assert_eq!(presence.next_deadline(), Some(now + GRACE));
        assert!(presence.expired(now + GRACE - Duration::from_millis(1)).is_empty());
        assert_eq!(presence.expired(now + GRACE), [key()]);
        assert_eq!(presence.next_deadline(), None);
    }

    #[test]
    fn a_proxy_that_comes_back_in_time_stays() {
        let now = Instant::now();
        let mut presence = Presence::default();
        presence.expect([key()], now);
        assert_eq!(presence.next_deadline(), Some(now + RESTART_GRACE));
        presence.register(&key(), &subject("web-1"), StreamId(1), 1).unwrap();
        assert!(presence.expired(now + RESTART_GRACE).is_empty());
        assert!(presence.holder(&key()).is_some());
    }

    #[test]
    fn a_live_proxy_is_replaced_by_nobody_else() {
        let mut presence = Presence::default();
        presence.register(&key(), &subject("web-1"), StreamId(1), 5).unwrap();
        let thief = presence.register(&key(), &subject(""), StreamId(2), 9);
        assert!(matches!(thief, Err(Refused::LiveElsewhere { .. })), "{thief:?}");
        let older = presence.register(&key(), &subject("web-1"), StreamId(3), 4);
        assert!(matches!(older, Err(Refused::Fenced { .. })), "{older:?}");
        let again = presence.register(&key(), &subject("web-1"), StreamId(4), 5).unwrap();
        assert_eq!(again.replaced, Some(StreamId(1)));
        // The end of the replaced stream changes nothing.
        assert!(!presence.stream_ended(&key(), StreamId(1), true, Instant::now()));
        assert!(presence.is_held_by(&key(), StreamId(4)));
    }
}
