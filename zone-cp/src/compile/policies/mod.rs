//! Merged configurations of policies, turned into what proxies execute: one file a kind, each a pure function over the
//! kind's merged `Conf`.

mod callers;
pub(crate) mod fault_injection;
pub(crate) mod rate_limit;
