//! Merged configurations of policies, turned into what proxies execute: one file a kind, each a pure function over the
//! kind's merged `Conf`.

mod callers;
pub(crate) mod retry;
pub(crate) mod timeout;

use meridian_core::duration::PolicyDuration;

/// A duration in whole milliseconds: what is shorter than one counts as one, so that it does not become "never".
fn millis(duration: PolicyDuration) -> u64 {
    u64::try_from(duration.get().as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}
