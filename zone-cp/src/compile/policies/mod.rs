//! Traffic policies, merged and turned into what proxies execute. One file a kind holds a pure function over the kind's
//! merged `Conf`; the tables in `kinds` are all that the rest of the zone knows of kinds.
//!
//! What holds for calls that go out depends on who calls: on the policies that select the sidecar, its [`Selection`].
//! Sidecars with one selection share one unit. It says what holds for the whole mesh once for each protocol, and beside
//! that only what differs for destinations that a policy names: so a policy for the whole mesh is one small resource to
//! each sidecar, however many services there are. Rejected: policies inside of destinations, which would then be as many
//! as selections times services.

use super::Compiled;
use meridian_core::Key;
use meridian_core::duration::PolicyDuration;
use std::collections::BTreeSet;

mod access_log;
mod asked_tags;
mod circuit_breaker;
mod collectors;
mod fault_injection;
mod health_check;
mod http_route;
mod incoming;
mod kinds;
mod load_balancing;
mod metric;
mod outgoing;
mod proxy_patch;
mod rate_limit;
mod request_filter;
mod retry;
mod selection;
mod timeout;
pub(crate) mod tls;
mod trace;
mod whole;

#[cfg(test)]
mod tests;

pub(crate) use asked_tags::AskedTags;
pub(crate) use collectors::{Collectors, refers_to_collectors};
pub(crate) use incoming::{entry, inbound, selects_incoming};
pub(crate) use kinds::{is_executed, is_of_entries, is_outgoing, says_where};
pub(crate) use outgoing::backends::Held;
pub(crate) use outgoing::{leaving, outgoing};
pub(crate) use selection::{Selection, held, selection, selects_outgoing};
pub(crate) use whole::{metrics, selects_whole, trace};

/// A duration in whole milliseconds: what is shorter than one counts as one, so that it does not become "never".
fn millis(duration: PolicyDuration) -> u64 {
    u64::try_from(duration.get().as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// A configuration that can't be read is its policies' fault; the others hold.
fn blame<'a>(policies: impl Iterator<Item = &'a Key>, error: &serde_json::Error, out: &mut Compiled) {
    let keys: BTreeSet<&Key> = policies.collect();
    keys.into_iter().for_each(|key| out.problem(key, error.to_string()));
}
