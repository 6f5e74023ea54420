//! The delta protocol: sets of named, versioned resources kept equal on both ends of a stream.
//!
//! One implementation carries all that moves between processes. A publisher is a [`View`] for one audience; a stream
//! is a cursor into it with at most one update in flight, so a slow subscriber costs no queue. What decides is in
//! [`protocol`], without I/O and without a clock of its own; [`publish`] and [`subscribe`] drive it over tonic streams,
//! and serve both the caller's and the called end; [`client`] and [`server`] are the connections.

pub mod client;
mod contents;
mod data;
mod index;
mod monitor;
pub mod peer;
pub mod protocol;
pub mod publish;
mod released;
pub mod server;
pub mod stream;
pub mod subscribe;
#[cfg(test)]
mod timing;
mod view;

pub use data::{
    Encoded, Id, MAX_BODY, MAX_MESSAGE, Malformed, Position, Revision, StoreId, TooLarge, Version,
};
pub use index::Deletions;
pub use peer::{Behind, Counters, Node, Peer, PeerState, Rejected};
pub use protocol::{PART, SMALL_PART};
pub use publish::Publisher;
pub use subscribe::{Batch, Control, Resume, Sink, SinkError, Subscriber};
pub use view::{Changing, Shared, View, ViewChange};

/// The version of the protocol in the hellos. A peer with another one is refused.
pub const PROTOCOL: u32 = 1;
