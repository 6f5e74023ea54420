use crate::Revision;
use meridian_core::{Key, Resource};
use std::fmt;

/// Who wrote, for the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// The authenticated name: a user, `zone:east`, or the control plane itself.
    pub name: String,
    /// By which way: `api`, `sync`, `proxy`, `system`.
    pub via: String,
}

impl Author {
    pub fn new(name: impl Into<String>, via: impl Into<String>) -> Self {
        Self { name: name.into(), via: via.into() }
    }

    /// The control plane's own housekeeping.
    pub fn system() -> Self {
        Self::new("meridian", "system")
    }
}

/// What must be true of the present resource for the write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing. Deleting what is absent is then no change.
    Any,
    /// There is none of that key.
    Absent,
    /// There is one, at whatever revision; else [`crate::WriteError::NotFound`].
    Present,
    /// There is one, last changed at this revision.
    Revision(Revision),
}

/// One part of a write. A key may occur once in a write.
#[derive(Clone)]
pub enum Change {
    /// Creates or replaces. One that equals the present (labels, spec and status) is no change and uses no revision.
    Put {
        resource: Resource,
        expect: Expect,
    },
    Delete {
        key: Key,
        expect: Expect,
    },
    /// Private values are sealed, have no revision and no history: a write of nothing else leaves the revision as it is.
    PutPrivate {
        bucket: String,
        key: String,
        value: Vec<u8>,
    },
    /// Replaces only if the present value equals `from` (None: if there is none), else
    /// [`crate::WriteError::PrivateConflict`]. So any replica may do a job, and one of them does it.
    SwapPrivate {
        bucket: String,
        key: String,
        from: Option<Vec<u8>>,
        to: Vec<u8>,
    },
    DeletePrivate {
        bucket: String,
        key: String,
    },
}

/// Says what is to change, and not to what: it may be secret, and this ends up in logs.
impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { resource, expect } => write!(f, "put {} ({expect:?})", resource.key),
            Self::Delete { key, expect } => write!(f, "delete {key} ({expect:?})"),
            Self::PutPrivate { bucket, key, .. } => write!(f, "put private {bucket}/{key}"),
            Self::SwapPrivate { bucket, key, .. } => write!(f, "swap private {bucket}/{key}"),
            Self::DeletePrivate { bucket, key } => write!(f, "delete private {bucket}/{key}"),
        }
    }
}
