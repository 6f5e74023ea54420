//! Tokens: RS256 JWTs with the claims and headers of Kuma's, so that what issues and reads those keeps working.
//!
//! Three kinds, each with signing keys of its own, named by `kid` (and by mesh for dataplane tokens). A token of one
//! kind never passes as another: it is looked up among the keys of the expected kind only, and its claims must be
//! exactly that kind's. Private keys stay at the global control plane; zones verify with the public halves.

mod claims;
mod error;
mod key;
#[cfg(test)]
mod tests;
mod verifier;

pub use claims::{Claims, DataplaneClaims, Purpose, UserClaims, ZoneClaims, ZoneScope};
pub use error::TokenError;
pub use key::{IssuedToken, SigningKey};
pub use verifier::{VerificationKey, Verified, Verifier};

/// The group whose users may write, issue tokens and read secrets.
pub const ADMIN_GROUP: &str = "mesh-system:admin";
/// The user of the first admin token.
pub const ADMIN_USER: &str = "mesh-system:admin";
/// The group of callers with a valid user token.
pub const AUTHENTICATED_GROUP: &str = "mesh-system:authenticated";
/// The group of everybody else.
pub const UNAUTHENTICATED_GROUP: &str = "mesh-system:unauthenticated";
