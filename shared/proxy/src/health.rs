//! Health checks of a cluster's endpoints (MeshHealthCheck): who makes them, and who knows what they found.
//!
//! An endpoint is asked by one worker, whichever its hash picks, and what is found is one atomic that all workers read. So
//! more workers don't mean more checks, and choosing an endpoint takes no lock. A request to a cluster without checks pays
//! one branch, to one whose endpoints are all well one atomic load. Rejected: the control thread as the asker, since it has
//! neither sockets nor sessions of the mesh, and a burst of checks must not hold up certificates.

use crate::{
    policy::health::{HealthPlan, Machine},
    snapshot::{Cluster, Endpoint, Snapshot},
    worker::Worker,
};
use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{sync::Semaphore, task::JoinHandle};

mod ask;
mod events;
mod watch;

/// Checks of one worker that are under way at once; the others wait their turn. A check holds a connection, in TLS some
/// 40 KiB.
const AT_ONCE: usize = 128;

/// What is known of the endpoints of one cluster.
#[derive(Debug)]
pub struct Board {
    pub plan: Arc<HealthPlan>,
    endpoints: HashMap<Arc<Endpoint>, Arc<EndpointHealth>>,
    /// Grows with every change of an endpoint's health.
    changes: Arc<AtomicU64>,
}

/// What is known of one endpoint.
#[derive(Debug)]
pub struct EndpointHealth {
    well: AtomicBool,
    /// Only the one worker that asks takes it.
    machine: Mutex<Machine>,
    changes: Arc<AtomicU64>,
}

impl Board {
    /// Endpoints that `before` knows keep what is known of them. One that is new begins as unhealthy, as nobody knows it;
    /// but where nothing was asked before, all do as healthy: they were in use a moment ago.
    pub fn new(plan: Arc<HealthPlan>, endpoints: &[Vec<Arc<Endpoint>>], before: Option<&Self>) -> Self {
        let changes = before.map_or_else(Arc::default, |before| before.changes.clone());
        let known: HashMap<_, _> = before
            .into_iter()
            .flat_map(|before| &before.endpoints)
            .map(|(endpoint, health)| (place(endpoint), health))
            .collect();
        let health = |endpoint: &Arc<Endpoint>| {
            let known = known.get(&place(endpoint)).copied();
            known.cloned().unwrap_or_else(|| Arc::new(EndpointHealth::new(before.is_none(), &changes)))
        };
        let endpoints =
            endpoints.iter().flatten().map(|endpoint| (endpoint.clone(), health(endpoint))).collect();
        Self { plan, endpoints, changes }
    }

    pub fn of(&self, endpoint: &Arc<Endpoint>) -> Option<&Arc<EndpointHealth>> {
        self.endpoints.get(endpoint)
    }

    /// How often an endpoint's health has changed: whoever has seen them at this number need not look again.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// Where an endpoint is: another name or another tag make it no other.
fn place(endpoint: &Endpoint) -> impl Hash + Eq + use<> {
    let Endpoint { host, port, zone, sni, replica, .. } = endpoint.clone();
    (host, port, zone, sni, replica)
}

impl EndpointHealth {
    fn new(well: bool, changes: &Arc<AtomicU64>) -> Self {
        let machine = Mutex::new(Machine::new(well));
        Self { well: AtomicBool::new(well), machine, changes: changes.clone() }
    }

    pub fn is_well(&self) -> bool {
        self.well.load(Ordering::Acquire)
    }

    /// Takes a finding in; the new state, if it is another.
    fn note(&self, plan: &HealthPlan, finding: &crate::policy::health::Finding) -> Option<bool> {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let change = machine.note(plan, finding);
        if let Some(well) = change {
            self.well.store(well, Ordering::Release);
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        change
    }
}

/// The checks that a worker makes.
pub struct Checks {
    clusters: HashMap<Arc<str>, OfCluster>,
    turns: Rc<Semaphore>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { clusters: HashMap::new(), turns: Rc::new(Semaphore::new(AT_ONCE)) }
    }
}

struct OfCluster {
    /// As it is now, for the tasks.
    now: Rc<RefCell<Arc<Cluster>>>,
    tasks: HashMap<Arc<Endpoint>, Task>,
}

/// A task that ends with its handle.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checks {
    /// Makes the checks of a snapshot all there are. What stays the same goes on undisturbed.
    pub fn reconcile(&mut self, worker: &Rc<Worker>, snapshot: &Snapshot) {
        let checked =
            |name: &Arc<str>| snapshot.clusters.get(name).is_some_and(|cluster| cluster.health.is_some());
        self.clusters.retain(|name, _| checked(name));
        for (name, cluster) in &snapshot.clusters {
            let Some(board) = &cluster.health else { continue };
            let known = self.clusters.get(name).map(|known| known.now.borrow().clone());
            if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, cluster)) {
                continue;
            }
            // Asked in another way, or of somebody else: from the beginning, though not from no knowledge.
            if known.is_some_and(|known| !asks_alike(&known, cluster)) {
                self.clusters.remove(name);
            }
            let turns = &self.turns;
            let of = self.clusters.entry(name.clone()).or_insert_with(|| OfCluster {
                now: Rc::new(RefCell::new(cluster.clone())),
                tasks: HashMap::new(),
            });
            *of.now.borrow_mut() = cluster.clone();
            of.tasks.retain(|endpoint, _| board.of(endpoint).is_some());
            let own = board.endpoints.iter().filter(|(endpoint, _)| is_own(worker, name, endpoint));
            for (endpoint, health) in own {
                let now = &of.now;
                of.tasks.entry(endpoint.clone()).or_insert_with(|| {
                    let (now, turns) = (now.clone(), turns.clone());
                    let (endpoint, health) = (endpoint.clone(), health.clone());
                    let watching = watch::watch(worker.clone(), now, endpoint, health, turns);
                    Task(tokio::task::spawn_local(watching))
                });
            }
        }
    }
}

fn asks_alike(a: &Cluster, b: &Cluster) -> bool {
    let config = |cluster: &Cluster| cluster.health.as_ref().map(|board| board.plan.config.clone());
    config(a) == config(b) && a.tls == b.tls && a.protocol == b.protocol
}

/// Whether it is this worker that asks an endpoint. All workers come to the same answer.
fn is_own(worker: &Worker, cluster: &str, endpoint: &Endpoint) -> bool {
    let mut hasher = DefaultHasher::new();
    (cluster, endpoint).hash(&mut hasher);
    let workers = u64::try_from(worker.shared.workers.max(1)).unwrap_or(1);
    hasher.finish() % workers == u64::try_from(worker.index).unwrap_or_default()
}

#[cfg(test)]
mod tests;
