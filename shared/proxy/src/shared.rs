//! What all threads of one proxy share. Built once, handed down; no globals.

use crate::{
    denial::Denials,
    lent::Lent,
    listener::Listening,
    metrics::{Metrics, publish::Scrapes},
    resolve::Resolver,
    snapshot::Snapshots,
    sni::Admission,
    telemetry::Sinks,
    tls::Tls,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

pub struct Shared {
    pub snapshots: Snapshots,
    pub tls: Tls,
    pub denials: Denials,
    pub metrics: Metrics,
    /// Where lines and spans go.
    pub sinks: Sinks,
    pub resolver: Resolver,
    /// What the sidecar's resolver gave to names below a wildcard.
    pub lent: Lent,
    /// How old the configuration may be: an egress may refuse by it.
    pub contact: Contact,
    /// Connections to an ingress or egress that are not routed yet.
    pub admission: Admission,
    /// What the workers listen on, and what they could not.
    pub listening: Listening,
    /// Who takes metrics, and what can't be given.
    pub scrapes: Scrapes,
    /// More than one worker shares each port (SO_REUSEPORT).
    pub workers: usize,
}

impl Shared {
    pub fn new(workers: usize, resolver: Resolver) -> Self {
        let workers = workers.max(1);
        Self {
            snapshots: Snapshots::default(),
            tls: Tls::default(),
            denials: Denials::default(),
            metrics: Metrics::new(workers),
            sinks: Sinks::default(),
            resolver,
            lent: Lent::default(),
            contact: Contact::default(),
            admission: Admission::default(),
            listening: Listening::new(workers),
            scrapes: Scrapes::default(),
            workers,
        }
    }
}

/// Since when what this proxy knows may be out of date: it has no stream, or is behind.
pub struct Contact {
    start: Instant,
    /// Milliseconds after `start`; [`Contact::CURRENT`] while it equals its control plane.
    since: AtomicU64,
}

impl Default for Contact {
    /// Never in contact, from now on.
    fn default() -> Self {
        Self { start: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl Contact {
    const CURRENT: u64 = u64::MAX;

    /// This proxy equals its control plane.
    pub fn current(&self) {
        self.since.store(Self::CURRENT, Ordering::Relaxed);
    }

    /// It last did then.
    pub fn behind_since(&self, at: Instant) {
        let millis = at.saturating_duration_since(self.start).as_millis();
        self.since.store(u64::try_from(millis).unwrap_or(Self::CURRENT - 1), Ordering::Relaxed);
    }

    /// How long it has not equalled its control plane; since the start, if it never did.
    pub fn age(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            Self::CURRENT => Duration::ZERO,
            since => self.start.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_proxy_that_is_behind_ages() {
        let contact = Contact::default();
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        assert_eq!(contact.age(), second);
        contact.current();
        tokio::time::advance(second).await;
        assert_eq!(contact.age(), Duration::ZERO);
        contact.behind_since(Instant::now());
        tokio::time::advance(second).await;
        assert_eq!(contact.age(), second);
    }
}
