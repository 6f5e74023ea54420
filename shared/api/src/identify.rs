//! Who asks, and whether they may: runs before every handler but the open ones.

use crate::Api;
use crate::access::{Action, User};
use crate::problem::Problem;
use crate::server::Peer;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::net::{IpAddr, Ipv4Addr};

/// Tokens longer than that are not even looked at.
const MAX_TOKEN: usize = 16 << 10;

/// The user of a request. A token that does not hold is an error, never anonymity.
pub(crate) fn user(api: &Api, headers: &HeaderMap, peer: Option<Peer>) -> Result<User, Problem> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        // Without an address nobody is local.
        let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(address)| address.ip());
        return Ok(api.access.without_credentials(address));
    };
    let text = header.to_str().map_err(|_| Problem::unauthenticated("Authorization is not text"))?;
    let token = text
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Problem::unauthenticated("Authorization must be `Bearer TOKEN`"))?;
    if token.len() > MAX_TOKEN {
        return Err(Problem::unauthenticated("The token is too long"));
    }
    api.hooks.authenticate(token).map_err(Problem::unauthenticated)
}

/// Lets `user` do `action`, or says why not.
pub(crate) fn allow(api: &Api, user: &User, action: Action) -> Result<(), Problem> {
    use crate::access::Denied;
    api.access.check(user, action).map_err(|denied| match denied {
        Denied::NoCredentials => Problem::unauthenticated(denied.to_string()),
        Denied::NotGranted { .. } => Problem::forbidden(denied.to_string()),
    })
}
