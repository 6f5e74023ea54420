//! HTTP/2 to other proxies and to applications, over the `h2` crate itself.
//!
//! hyper's client has a task for each request beside the one that waits for the answer, and channels between them and the
//! connection. Here a request opens its stream itself, and sends and receives on it until the answer's head is there.

mod batch;
mod client;
mod received;

pub(super) use batch::{Batched, Driven};
pub(crate) use client::{Client, Connection, Open, open};
pub(super) use received::Received;

#[cfg(test)]
mod tests;
