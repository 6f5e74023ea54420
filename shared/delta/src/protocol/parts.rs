//! What may be larger than a message, cut into messages.

use std::collections::VecDeque;
use std::sync::Arc;

use meridian_proto::delta as wire;

use crate::data::{Encoded, Id, Version};
use crate::peer::Rejected;

/// Updates are cut at this many bytes, well below what is allowed: on a slow link a message must come through before
/// the peer counts as silent (256 KiB in 15 s is 140 kbit/s), and a heartbeat waits behind it. Each is acknowledged before the next
/// is sent, which takes the link's round trip.
pub const PART: usize = 256 * 1024;

/// The same for a publisher with thousands of peers that are near. Each update on its way is a buffer of its own, and the receiving end
/// of a stream keeps one as long as the longest was. What fits is seen whole, though, which not all of a step in several parts is.
pub const SMALL_PART: usize = 64 * 1024;

/// What is not acknowledged is cut at this many bytes: nothing waits for it, and the receiving end keeps a buffer as long.
const UNACKNOWLEDGED_PART: usize = 12 * 1024;

/// An update that is being filled.
pub(super) struct Filling {
    limit: usize,
    size: usize,
    pub(super) upserts: Vec<Arc<Encoded>>,
    pub(super) removals: Vec<(Id, wire::Cause)>,
}

impl Filling {
    pub(super) fn new(limit: usize) -> Filling {
        Filling { limit, size: 0, upserts: Vec::new(), removals: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }

    /// Whether `cost` bytes more go into this update. An empty one takes anything: a resource alone fits a message.
    pub(super) fn fits(&self, cost: usize) -> bool {
        self.is_empty() || self.size + cost <= self.limit
    }

    pub(super) fn upsert(&mut self, resource: &Arc<Encoded>) {
        self.size += resource.cost();
        self.upserts.push(resource.clone());
    }

    pub(super) fn remove(&mut self, id: Id, cause: wire::Cause) {
        self.size += id.cost();
        self.removals.push((id, cause));
    }

    pub(super) fn into_update(self, nonce: u64, revision: u64, more: bool) -> wire::Update {
        let removal = |(id, cause): (Id, wire::Cause)| wire::Removal {
            r#type: id.type_.to_string(),
            name: id.name.to_string(),
            cause: cause.into(),
        };
        wire::Update {
            nonce,
            revision,
            more,
            upserts: self.upserts.iter().map(|resource| resource.to_wire()).collect(),
            removals: self.removals.into_iter().map(removal).collect(),
        }
    }
}

/// What a subscriber holds, to be said.
pub(super) struct Listing(pub(super) VecDeque<(Id, Version)>);

impl Listing {
    pub(super) fn next_part(&mut self) -> wire::Have {
        let mut held = Vec::new();
        let mut size = 0;
        while size < UNACKNOWLEDGED_PART {
            let Some((id, version)) = self.0.pop_front() else { break };
            size += id.cost() + version.0.len();
            held.push(wire::Held {
                r#type: id.type_.to_string(),
                name: id.name.to_string(),
                version: version.0.to_vec(),
            });
        }
        wire::Have { held, last: self.0.is_empty() }
    }
}

/// The acknowledgement of an update, with what was rejected.
pub(super) struct Verdict {
    pub(super) nonce: u64,
    pub(super) rejected: VecDeque<Rejected>,
}

impl Verdict {
    pub(super) fn next_part(&mut self) -> wire::Ack {
        let mut rejected = Vec::new();
        let mut size = 0;
        while size < UNACKNOWLEDGED_PART {
            let Some(next) = self.rejected.pop_front() else { break };
            size += next.id.cost() + next.reason.len() + next.version.0.len();
            rejected.push(wire::Rejection {
                r#type: next.id.type_.to_string(),
                name: next.id.name.to_string(),
                version: next.version.0.to_vec(),
                reason: next.reason,
            });
        }
        wire::Ack { nonce: self.nonce, rejected, more: !self.rejected.is_empty() }
    }
}
