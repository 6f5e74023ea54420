//! Revisioned resources over Postgres or SQLite, for both control planes.
//!
//! One row, `meta`, holds the newest revision. A write locks it, stamps what it changes and its history with the next
//! number and commits; so revisions are given in the order of commits, without holes, and whoever has read the history up to
//! a revision has missed nothing. Readers keep a cursor and read what is above it when [`Store::feed`] moves: nothing polls.
//!
//! Rejected: a sequence (numbers become visible out of order, and a reader that skips one never returns for it), timestamps
//! (same), logical decoding (needs rights and slots that few databases give), and one trait with two implementations (the
//! two back ends share plans and sealing, and differ in nothing that a caller should see).
//!
//! What is secret is sealed before it reaches a statement: see [`KeyRing`].

mod change;
mod error;
mod failure;
mod feed;
mod keys;
mod plan;
mod postgres;
mod read;
mod revision;
mod rows;
mod seal;
mod sqlite;
mod status;
mod store;
mod vault;

pub use change::{Author, Change, Expect};
pub use error::{ChangesError, OpenError, ReadError, Source, WriteError};
pub use feed::Feed;
pub use keys::{KeyError, KeyId, KeyRing};
pub use read::{Changed, Changes, HistoryEntry, Page, Query, Snapshot, Stored};
pub use revision::{Revision, StoreId};
pub use status::StatusRow;
pub use store::{Options, RotateError, Store, check_url};
