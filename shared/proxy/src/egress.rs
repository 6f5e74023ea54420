//! The way out: where the allowlist is enforced.
//!
//! ```text
//! caller ── mTLS (ALPN mesh-ext) ──► serve ── preface ──► authorise ──► dial ──► carry / http
//!                                     who?      what?      may they?    where?    what do they say?
//! ```
//!
//! Nothing that the sidecar says is believed but what its certificate proves. [`authorise`] is a pure function over
//! the snapshot and is asked again for each new one: whoever may no longer is reset. [`dial`] resolves the name
//! itself, judges every address and connects to that address, so no time passes between check and use. What follows
//! is held to the entry for as long as it lasts: each request's Host, or the server name of a ClientHello.
//!
//! A sidecar that has to leave the mesh by itself (a mesh without an egress) runs the same [`carry`].

mod authorise;
mod carry;
mod dial;
mod guard;
mod http;
mod originate;
mod outward;
mod serve;

pub(crate) use authorise::terms;
pub use authorise::{Denied, Granted, authorise};
pub(crate) use carry::{Errand, Terms, carry};
pub use guard::{Breach, Guard, Hold};
pub use originate::{Application, OriginateError, Originator};
pub(crate) use outward::Caller;
pub use outward::{Ledger, Outward};
pub(crate) use serve::serve;

use crate::denial::Reason;

/// Reasons of the way out, beside those that all proxies have. `docs/denials.md` explains them.
impl Reason {
    /// A ClientHello without a server name where the entry holds one.
    pub const NO_SERVER_NAME: Self = Self::of("server-name-missing");
    pub const INVALID_CLIENT_HELLO: Self = Self::of("invalid-client-hello");
    /// The server's certificate is not what the entry asks for.
    pub const SERVER_CERTIFICATE: Self = Self::of("server-certificate");
    /// TLS is to be originated and nobody says whom to believe.
    pub const NO_ROOTS: Self = Self::of("no-root-certificates");
    pub const INVALID_PREFACE: Self = Self::of("invalid-preface");
    /// A port that the entry does not have.
    pub const PORT_NOT_LISTED: Self = Self::of("port-not-listed");
    /// More connections that are not yet routed than one source, or all, may have.
    pub const TOO_MANY_UNROUTED: Self = Self::of("too-many-unrouted");
    /// Allowed, and counted as what it will be.
    pub const SHADOW_DENIED: Self = Self::of("shadow-denied");
    /// No route for a session's server name.
    pub const NO_ROUTE: Self = Self::of("no-route");
}

#[cfg(test)]
mod tests;
