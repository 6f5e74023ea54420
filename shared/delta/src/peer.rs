//! What is known of the other end of a stream, for status pages, overviews and metrics.

use std::sync::Arc;
use std::time::Instant;

use meridian_proto::delta as wire;
use meridian_telemetry::chain;
use tokio::sync::watch;

use crate::data::{Id, Position, Revision, Version};
use crate::stream::{End, Lost, now};

/// What a process says of itself in its hello. Never trusted, only compared with its credentials.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    pub name: String,
    /// A UUID of the process.
    pub instance: String,
    pub version: String,
    /// Start of the process, milliseconds since 1970.
    pub epoch: u64,
    /// The operator asked to replace a live process of this name.
    pub take_over: bool,
}

/// The observable state of one direction between this process and a peer. It outlives streams: counters go on over
/// reconnects. Clones are the same peer.
#[derive(Debug, Clone)]
pub struct Peer(Arc<watch::Sender<PeerState>>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerState {
    pub connected: bool,
    /// The other end's hello, of the present or the last stream.
    pub node: Option<Node>,
    /// When the present stream began, or the last one ended.
    pub since: Option<Instant>,
    /// The newest revision that the subscriber has applied whole (rejected and withheld resources excepted).
    pub revision: Option<Revision>,
    /// The newest revision that the publisher has announced.
    pub announced: Option<Revision>,
    pub behind: Behind,
    /// What the subscriber does not accept, and why. At most [`MAX_REJECTED`] are kept.
    pub rejected: Vec<Rejected>,
    /// Inferred deletions that wait for an operator.
    pub withheld: u32,
    /// The store and revision that the publisher speaks for.
    pub offered: Option<Position>,
    /// The subscriber refuses this publisher whole, and why.
    pub refused: Option<String>,
    /// Why the last stream ended or the last attempt failed; none after a goodbye and while connected.
    pub error: Option<String>,
    /// What was sent (at a publisher) or received (at a subscriber).
    pub counters: Counters,
}

/// How far the subscriber is behind, by the subscriber's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behind {
    /// It never equalled the publisher.
    #[default]
    Never,
    Current,
    /// It last equalled the publisher then.
    Since(Instant),
}

/// A resource that the subscriber does not accept. The rest of its update was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub id: Id,
    pub version: Version,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub streams: u64,
    pub updates: u64,
    pub resources: u64,
    pub removals: u64,
    /// Of bodies.
    pub bytes: u64,
}

/// How many rejected resources a peer's state names.
pub const MAX_REJECTED: usize = 1000;

impl Peer {
    pub fn new() -> Peer {
        Peer(Arc::new(watch::Sender::new(PeerState::default())))
    }

    pub fn state(&self) -> PeerState {
        self.0.borrow().clone()
    }

    /// To wait for a change of the state. The state holds no ticking value, so it changes only when something happens.
    pub fn watch(&self) -> watch::Receiver<PeerState> {
        self.0.subscribe()
    }

    /// A stream begins: what an earlier one still has to say no longer counts.
    pub(crate) fn begin(&self) -> PeerStream {
        let mut number = 0;
        self.0.send_modify(|state| {
            state.counters.streams += 1;
            number = state.counters.streams;
            state.connected = true;
            state.since = Some(now());
            state.error = None;
        });
        PeerStream { peer: self.clone(), number }
    }

    /// No stream could begin.
    pub(crate) fn failed(&self, lost: &Lost) {
        self.0.send_modify(|state| state.error = Some(chain(lost)));
    }
}

/// One stream's hand on the state: only the newest stream of a peer changes it, since one that was cut may die after
/// its successor has begun.
pub(crate) struct PeerStream {
    peer: Peer,
    number: u64,
}

impl PeerStream {
    pub(crate) fn update(&self, change: impl FnOnce(&mut PeerState)) {
        self.peer.0.send_if_modified(|state| {
            let newest = state.counters.streams == self.number;
            if newest {
                change(state);
            }
            newest
        });
    }

    /// What the subscriber holds stays what it is; it only ages, from `equal` on.
    pub(crate) fn end(&self, end: &End, equal: Option<Instant>) {
        self.update(|state| {
            state.since = Some(now());
            state.connected = false;
            if state.behind == Behind::Current {
                state.behind = Behind::Since(equal.unwrap_or_else(now));
            }
            state.error = match end {
                End::Lost(lost) => Some(chain(lost)),
                End::Goodbye(_) | End::Closed => None,
            };
        });
    }
}

impl Default for Peer {
    fn default() -> Self {
        Peer::new()
    }
}

impl PeerState {
    /// Milliseconds since the subscriber last equalled what the publisher announced; none if it never did.
    pub fn behind_millis(&self, now: Instant) -> Option<u64> {
        match self.behind {
            Behind::Never => None,
            Behind::Current => Some(0),
            Behind::Since(then) => {
                Some(u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(u64::MAX))
            }
        }
    }
}

impl Behind {
    /// When the subscriber last equalled the publisher.
    pub(crate) fn then(self, now: Instant) -> Option<Instant> {
        match self {
            Behind::Never => None,
            Behind::Current => Some(now),
            Behind::Since(then) => Some(then),
        }
    }
}

impl Counters {
    pub(crate) fn add(&mut self, more: Counters) {
        self.updates += more.updates;
        self.resources += more.resources;
        self.removals += more.removals;
        self.bytes += more.bytes;
    }
}

impl Node {
    pub(crate) fn from_wire(node: Option<wire::Node>) -> Node {
        let node = node.unwrap_or_default();
        Node {
            name: node.name,
            instance: node.instance,
            version: node.version,
            epoch: node.epoch,
            take_over: node.take_over,
        }
    }

    pub(crate) fn to_wire(&self) -> wire::Node {
        wire::Node {
            name: self.name.clone(),
            instance: self.instance.clone(),
            version: self.version.clone(),
            epoch: self.epoch,
            take_over: self.take_over,
        }
    }
}
