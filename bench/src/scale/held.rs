//! What simulated peers hold, and the changes that they are watched for.
//!
//! A peer must say at each reconnect what it holds, as a real one does. Thousands in one process hold nearly the same, so each
//! name and each version is kept once and a peer keeps pairs of numbers.

use meridian_delta::{Batch, Encoded, Id, Position, Rejected, Resume, Sink, SinkError, Version};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Shared by all peers of one simulation.
#[derive(Default)]
pub(super) struct Common {
    names: Mutex<Numbers<Id>>,
    versions: Mutex<Numbers<Version>>,
    sought: RwLock<Option<Sought>>,
    arrivals: Mutex<Vec<Duration>>,
    /// Resources that were received, and bytes of their bodies.
    resources: AtomicUsize,
    bytes: AtomicUsize,
}

/// A number for each value.
struct Numbers<T> {
    of: HashMap<T, u32>,
    all: Vec<T>,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self { of: HashMap::new(), all: Vec::new() }
    }
}

impl<T: Clone + Eq + Hash> Numbers<T> {
    fn number(&mut self, value: &T) -> u32 {
        if let Some(number) = self.of.get(value) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.of.insert(value.clone(), number);
        self.all.push(value.clone());
        number
    }

    fn value(&self, number: u32) -> Option<T> {
        self.all.get(usize::try_from(number).ok()?).cloned()
    }
}

/// A change that is on its way.
#[derive(Clone)]
struct Sought {
    number: u64,
    what: Mark,
    since: Instant,
}

/// How a peer knows a change when it arrives.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// A resource whose body has this text.
    Body(String),
    /// A resource of this type whose name has this text.
    Name(&'static str, String),
}

impl Mark {
    fn is_on(&self, resource: &Encoded) -> bool {
        match self {
            Self::Body(text) => resource.body.windows(text.len()).any(|window| window == text.as_bytes()),
            Self::Name(type_, text) => *resource.type_ == **type_ && resource.name.contains(text.as_str()),
        }
    }
}

impl Common {
    /// From now on arrivals of this change are timed, and those of the one before no longer.
    pub(super) fn seek(&self, what: Mark) {
        let mut sought = self.sought.write().unwrap_or_else(PoisonError::into_inner);
        lock(&self.arrivals).clear();
        let number = sought.as_ref().map_or(1, |last| last.number + 1);
        *sought = Some(Sought { number, what, since: Instant::now() });
    }

    /// How long each peer took that has it.
    pub(super) fn arrivals(&self) -> Vec<Duration> {
        lock(&self.arrivals).clone()
    }

    pub(super) fn arrived(&self) -> usize {
        lock(&self.arrivals).len()
    }

    /// Resources and bytes of their bodies that all peers have received.
    pub(super) fn received(&self) -> (usize, usize) {
        (self.resources.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn sought(&self) -> Option<Sought> {
        self.sought.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One peer's memory.
pub(super) struct Holding {
    common: Arc<Common>,
    position: Option<Position>,
    held: BTreeMap<u32, u32>,
    /// The last change that it was timed for.
    seen: u64,
    /// Moves when a resource of the awaited type has come.
    awaited: Option<(&'static str, watch::Sender<bool>)>,
    whole: Whole,
}

/// When the present stream first said that nothing is missing; none before. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Whole(Arc<Mutex<Option<Instant>>>);

impl Whole {
    pub(super) fn at(&self) -> Option<Instant> {
        *lock(&self.0)
    }
}

impl Holding {
    pub(super) fn new(common: Arc<Common>, whole: Whole) -> Self {
        Self { common, position: None, held: BTreeMap::new(), seen: 0, awaited: None, whole }
    }

    /// Says when the first resource of that type is there.
    pub(super) fn awaiting(mut self, type_: &'static str) -> (Self, watch::Receiver<bool>) {
        let (sender, receiver) = watch::channel(false);
        self.awaited = Some((type_, sender));
        (self, receiver)
    }

    fn take(&mut self, batch: &Batch) {
        {
            let mut names = lock(&self.common.names);
            let mut versions = lock(&self.common.versions);
            for resource in &batch.upserts {
                self.held.insert(names.number(&resource.id()), versions.number(&resource.version));
            }
            for id in &batch.removals {
                self.held.remove(&names.number(id));
            }
        }
        self.position = batch.position.or(self.position);
        let bytes: usize = batch.upserts.iter().map(|resource| resource.body.len()).sum();
        self.common.resources.fetch_add(batch.upserts.len(), Ordering::Relaxed);
        self.common.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some((type_, sender)) = &self.awaited
            && batch.upserts.iter().any(|resource| *resource.type_ == **type_)
        {
            sender.send_replace(true);
        }
        if let Some(sought) = self.common.sought()
            && sought.number != self.seen
            && batch.upserts.iter().any(|resource| sought.what.is_on(resource))
        {
            self.seen = sought.number;
            lock(&self.common.arrivals).push(sought.since.elapsed());
        }
    }
}

impl Sink for Holding {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        *lock(&self.whole.0) = None;
        let names = lock(&self.common.names);
        let versions = lock(&self.common.versions);
        let pair = |(id, version): (&u32, &u32)| Some((names.value(*id)?, versions.value(*version)?));
        Ok(Resume { position: self.position, have: self.held.iter().filter_map(pair).collect() })
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        self.take(&batch);
        if batch.complete {
            lock(&self.whole.0).get_or_insert_with(Instant::now);
        }
        Ok(Vec::new())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
