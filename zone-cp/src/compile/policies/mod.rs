//! Merged configurations of policies, turned into what proxies execute: one file a kind, each a pure function over the
//! kind's merged `Conf`.

pub(crate) mod circuit_breaker;
