//! HTTP/2 over the `h2` crate itself.
//!
//! hyper's client has a task for each request beside the one that waits for the answer, and channels between them and the
//! connection. Here a request opens its stream itself, and sends and receives on it until the answer's head is there. What
//! serves is here for what hyper's server does not do: a body's time passes while its client gives no window.

mod batch;
mod client;
mod received;
mod server;
mod upload;

use std::time::Duration;

pub(super) use batch::{Batched, Driven};
pub(crate) use client::{Client, Connection, Open, open};
pub(super) use received::Received;
pub(super) use server::Server;

/// Streams that a peer may have open on one connection.
const MAX_STREAMS: u32 = 1_000;
/// Streams that a peer has reset before they were looked at; beyond them its connection ends.
const PENDING_RESETS: usize = 64;
/// Windows: a stream's, and a connection's. The connection's has room for as many streams as a pool lets on one before it
/// opens the next (100), so that streams whose readers have stopped can't hold up the others. It is a bound, not a buffer:
/// what is not read takes memory, and nothing else.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
pub(super) const CONNECTION_WINDOW: u32 = 100 * STREAM_WINDOW;
pub(super) const FRAME: u32 = 32 << 10;
/// Bytes of one stream that wait to be sent: back-pressure bounds memory.
pub(super) const SEND_BUFFER: usize = 256 << 10;
/// With streams open, a silent peer is asked so often...
pub(super) const PING: Duration = Duration::from_secs(10);
/// ...and given up after so long.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
