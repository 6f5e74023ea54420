//! The one proxy engine: a sidecar, a zone's ingress and its egress are three wirings of it.
//!
//! One control thread keeps the configuration, certificates, names and metrics; worker threads carry the traffic.
//! A worker is a current-thread runtime that owns its listeners, upstream pools and counters, so that no lock and no
//! channel lies on the request path. Configuration reaches it as an immutable [`snapshot::Snapshot`], of which it
//! compares one generation number.
//!
//! Life of a connection: [`listener`] accepts it, [`dispatch`] decides what it is from where it was accepted
//! (never from its bytes), one of [`inbound`], [`outbound`], [`external`], [`sni`] and [`egress`] serves it, and
//! [`worker::Worker::track`] keeps it among those that a change of rules may end.

pub mod access_log;
pub mod address;
pub mod capture;
pub mod codec;
pub mod control;
pub mod copy;
pub mod denial;
pub mod dispatch;
pub mod dns;
pub mod egress;
pub mod engine;
pub mod exchange;
pub mod external;
pub mod health;
pub mod hello;
pub mod host;
pub mod inbound;
pub mod io;
pub mod lent;
pub mod listener;
pub mod metrics;
pub mod outbound;
pub mod policy;
pub mod preface;
pub mod refuse;
pub mod resolve;
#[cfg(test)]
mod rig;
pub mod scripts;
pub mod shared;
pub mod snapshot;
pub mod sni;
pub mod telemetry;
pub mod timer;
pub mod tls;
pub mod trace;
pub mod upstream;
pub mod worker;
