//! Whole meshes of real processes in network namespaces: what a user of the mesh sees.
//!
//! Each test has a laboratory of its own. They need root and the programs of `make build`.

mod across_zones;
mod allowlist;
mod at_rest;
mod attack;
mod bad_input;
mod balance;
mod budget;
mod capture;
mod churn;
mod grpc;
mod health;
mod hello;
mod identity;
mod intruder;
mod multizone;
mod observability;
mod outages;
mod permissions;
mod policies;
mod prometheus;
mod replicas;
mod rotation;
mod routes;
mod scripts;
mod sync;
mod traffic;
mod why;
