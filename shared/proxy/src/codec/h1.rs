//! HTTP/1.1 of our own, on the legs where applications speak it.
//!
//! hyper's keeps a task, channels and two buffers for each connection, and its server the space of a request's whole future:
//! measured, 70 KB a connection that rests, and several microseconds a request. Here a connection is one task that reads
//! heads and calls the handler; bodies read from the connection themselves; and what rests holds no buffer. The framing
//! rules are RFC 9112's, and where that leaves a choice, the one that no other program can take for something else.
//!
//! What it does not do: HTTP/2 and protocols after an upgrade (it hands the stream over), and answers other than the final
//! one (1xx): they end here.

mod client;
mod decode;
mod encode;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod link;
mod out;
mod parse;
mod server;

pub(crate) use client::{Client, Watch};
pub(super) use link::Incoming;
pub(crate) use server::Upgraded;
pub(super) use server::{Connection, Upgrading};

use super::BodyError;
use std::io;

/// Fields of a head. hyper and most servers take a hundred.
const MAX_FIELDS: usize = 100;
/// Bytes that wait to be written on a connection, beyond which no more of a body is read: back-pressure bounds memory.
const MAX_WAITING: usize = 64 << 10;

/// What went wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the head is malformed")]
    Head,
    #[error("the head is too large")]
    LargeHead,
    #[error("the body is malformed")]
    Body,
    #[error("the body ended early")]
    Cut,
    #[error("the connection ended before the answer")]
    Unanswered,
    #[error("the client left before its answer")]
    Left,
    #[error("the body that was to be sent failed")]
    Sending(#[source] Box<BodyError>),
    #[error("the body that was to be sent is not as long as its head says")]
    Length,
}

#[cfg(test)]
mod tests;
