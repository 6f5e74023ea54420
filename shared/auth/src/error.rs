use crate::Purpose;
use thiserror::Error;

/// Why a token or key is refused. None of these repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    #[error("not a token: {0}")]
    Malformed(&'static str),
    #[error("the token is signed with {0}, only RS256 is accepted")]
    Algorithm(String),
    #[error("this is a {found} token, a {expected} token is needed")]
    WrongPurpose { found: Purpose, expected: Purpose },
    #[error("no {purpose} signing key `{kid}`{}: it was deleted, or the token is of another control plane", of_mesh(.mesh))]
    UnknownKey { purpose: Purpose, mesh: Option<String>, kid: String },
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token's claims are not a {purpose} token's: {reason}")]
    Claims { purpose: Purpose, reason: String },
    #[error("the token has expired; issue another")]
    Expired,
    #[error("the token is not valid yet: compare the clocks of its issuer and of this host")]
    NotYetValid,
    #[error("the token is revoked")]
    Revoked,
    #[error("not a usable RSA key: {0}")]
    Key(String),
    #[error("could not sign the token: {0}")]
    Sign(String),
}

fn of_mesh(mesh: &Option<String>) -> String {
    mesh.as_ref().map(|mesh| format!(" of mesh `{mesh}`")).unwrap_or_default()
}
