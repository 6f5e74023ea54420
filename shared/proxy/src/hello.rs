//! The one reader of ClientHellos: for the ingress, the egress and captured connections alike.
//!
//! It reads and never changes: what was read is forwarded byte for byte. A second parser for some special case would
//! be a second opinion about what a name is, and a way past one of the two, so there is none.
//!
//! What it holds, beyond the format: at most 64 KiB over any number of records and segments; no extension twice, no
//! second name, no address as a name; case and trailing dot normalised. After a HelloRetryRequest the client sends a
//! second hello that a server may well believe: [`Watch`] holds it to the first one's name. With ECH the outer name
//! is what counts here, as it is all that can be seen. GREASE is normal and ignored.
//!
//! rustls' own acceptor was rejected as parser: it neither says whether a name was sent twice nor keeps the bytes.

mod parse;
mod stream;
mod watch;

pub use parse::{ClientHello, HelloError, MAX_HELLO, Opening, Parsed, opening, parse, read};
pub use stream::{HELLO_TIMEOUT, HelloStream, ReadError, read_hello};
pub use watch::Watch;

#[cfg(test)]
pub(crate) mod samples;
