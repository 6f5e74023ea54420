//! The wire: generated from `proto/*.proto`.
#![allow(clippy::all, unreachable_pub, missing_docs)]

pub mod delta {
    tonic::include_proto!("meridian.delta.v1");
}

pub mod identity {
    tonic::include_proto!("meridian.identity.v1");
}
