//! The wire: generated from `proto/*.proto`.
#![allow(clippy::all, unreachable_pub, missing_docs)]

pub mod codec;

pub mod delta {
    tonic::include_proto!("meridian.delta.v1");
}

pub mod identity {
    tonic::include_proto!("meridian.identity.v1");
}

pub mod questions {
    tonic::include_proto!("meridian.questions.v1");

    /// Longest message of an answer: a sidecar's whole configuration. What is longer is for the zone's own API.
    pub const MAX_ANSWER: usize = 4 * 1024 * 1024;

    /// Questions to one zone that are not answered yet, at a time.
    pub const AT_ONCE: usize = 4;
}
