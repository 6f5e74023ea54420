use crate::{KeyError, Revision};
use meridian_core::Key;
use std::path::PathBuf;

/// What the driver said. Kept opaque, so that callers do not depend on the driver.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL itself is not repeated: it may hold a password.
    #[error("the store's URL must be postgres://… or sqlite:/path/to/file.db: {reason}")]
    Url { reason: String },
    #[error(
        "{path:?} is in use by another process ({holder}); one process at a time may hold an SQLite store"
    )]
    InUse { path: PathBuf, holder: String },
    #[error(
        "the store is sealed with key {wanted}, the key file holds {held}: start with the key file that belongs to it"
    )]
    OtherKey { wanted: String, held: String },
    #[error("the store's schema is version {found}, this program knows up to {known}: start a newer program")]
    NewerSchema { found: i64, known: i64 },
    #[error("the store's keys cannot be used")]
    Keys(#[from] KeyError),
    #[error("the store's database is damaged: {what}")]
    Damaged { what: String },
    #[error("the store's database cannot be opened")]
    Unavailable(#[source] Source),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Out of reach, or too slow. Asking again may help.
    #[error("the store's database is unavailable")]
    Unavailable(#[source] Source),
    /// A sealed value does not open, or a row is not what this program writes. Asking again does not help.
    #[error("the store's data is damaged: {what}")]
    Damaged { what: String },
}

#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// History does not reach back to the cursor, or the cursor is of another history: read a snapshot.
    #[error("history above revision {cursor} is not kept (kept: above {floor}, newest: {newest})")]
    TooOld { cursor: Revision, floor: Revision, newest: Revision },
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Nothing of a failed write is in the store, but for [`WriteError::Uncertain`].
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// `found`: the present revision; None if absent.
    #[error("{key} is not what the write expects it to be")]
    Conflict { key: Key, found: Option<Revision> },
    #[error("{key} does not exist")]
    NotFound { key: Key },
    #[error("{key} takes {size} bytes; a resource may take {limit}")]
    TooLarge { key: Key, size: usize, limit: usize },
    /// The character NUL in a name, a mesh, a zone or a label.
    #[error("{key:?} or its labels hold a character that cannot be stored")]
    Unstorable { key: Key },
    #[error("{key} occurs twice in one write")]
    Repeated { key: Key },
    #[error("private value {bucket}/{key} is not what the write expects it to be")]
    PrivateConflict { bucket: String, key: String },
    #[error("the store's database is unavailable; nothing was written")]
    Unavailable(#[source] Source),
    /// The connection was lost while the commit was under way.
    #[error(
        "the connection to the store's database was lost during the commit: the write may or may not have happened"
    )]
    Uncertain(#[source] Source),
    #[error("the store's data is damaged: {what}")]
    Damaged { what: String },
}
