//! A worker: one thread, one current-thread runtime, and all that its connections use, without locks.

use crate::{
    denial::{Reason, Refusal},
    egress::Ledger,
    inbound::Beginners,
    metrics::WorkerMetrics,
    outbound::Mirrors,
    scripts::Scripts,
    shared::Shared,
    snapshot::Snapshot,
    timer::Timer,
    tls::Peer,
    upstream::Upstreams,
};
use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    sync::Arc,
};

mod registry;
mod run;
pub use registry::{Check, ConnectionInfo, Direction, Ending, Registry, Tracked};
pub use run::{Command, Handle, OpenConnections, start};

/// Everything a connection's task needs. `!Send`: never leaves its thread.
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub metrics: Arc<WorkerMetrics>,
    pub timer: Timer,
    pub upstreams: Upstreams,
    pub beginners: Rc<Beginners>,
    /// Copies of requests that are under way.
    pub mirrors: Mirrors,
    pub scripts: Scripts,
    /// What callers have under way to the outside.
    pub leaving: Ledger,
    registry: Rc<Registry>,
    numbered: Cell<u64>,
    seen: Cell<u64>,
    cached: RefCell<Arc<Snapshot>>,
}

impl Worker {
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let snapshot = shared.snapshots.load();
        Rc::new(Self {
            index,
            metrics: shared.metrics.worker(index),
            timer: Timer::default(),
            upstreams: Upstreams::default(),
            beginners: Rc::default(),
            mirrors: Mirrors::default(),
            scripts: Scripts::default(),
            leaving: Ledger::default(),
            registry: Rc::default(),
            numbered: Cell::default(),
            seen: Cell::new(snapshot.generation),
            cached: RefCell::new(snapshot),
            shared,
        })
    }

    /// The newest snapshot: one atomic load unless it changed.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let generation = self.shared.snapshots.generation();
        if self.seen.get() != generation {
            let snapshot = self.shared.snapshots.load();
            self.seen.set(snapshot.generation);
            *self.cached.borrow_mut() = snapshot;
        }
        self.cached.borrow().clone()
    }

    /// A number that no connection of this process has had.
    pub fn next_number(&self) -> u64 {
        let next = self.numbered.get() + 1;
        self.numbered.set(next);
        let (workers, index) = (self.shared.workers as u64, self.index as u64);
        (next - 1).saturating_mul(workers).saturating_add(index + 1)
    }

    /// Runs a task on this worker.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(tokio::task::spawn_local(task));
    }

    /// Registers a connection among those that a change of rules may end.
    ///
    /// `check` is asked at once, and again for each new snapshot; `Err` ends the connection with that reason
    /// (it resolves [`Tracked::reset`]). So there is no gap between the decision and the registration.
    pub fn track(&self, info: ConnectionInfo, check: Check) -> Tracked {
        self.registry.track(info, None, check, &self.snapshot(), &self.shared.tls)
    }

    /// As [`Worker::track`] for a session with a verified peer: it also ends when that peer is no longer believed.
    pub fn track_session(&self, info: ConnectionInfo, peer: Peer, check: Check) -> Tracked {
        self.registry.track(info, Some(peer), check, &self.snapshot(), &self.shared.tls)
    }

    pub fn connections(&self) -> &Registry {
        &self.registry
    }

    /// Counts and reports one refusal.
    pub fn refuse(&self, refusal: &Refusal<'_>) {
        self.metrics.denials.inc();
        self.shared.denials.report(refusal);
    }

    /// Reports what this sidecar refused its own application.
    pub fn refuse_own(&self, destination: &str, port: u16, reason: &Reason, rule: &str) {
        let snapshot = self.snapshot();
        let (mesh, caller) = snapshot
            .proxy
            .as_ref()
            .map_or(("", "none"), |proxy| (proxy.mesh.as_str(), proxy.service.as_str()));
        self.refuse(&Refusal { mesh, caller, destination, port, reason, rule });
    }
}
