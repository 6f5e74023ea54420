//! How much is under way at once towards one destination or application, and how much may be.
//!
//! A worker counts by itself, so its limits are its share of the policy's, rounded up: a count is next to a worker's own
//! pool and needs no atomics on the request path. The price, with more than one worker (the default is one): a caller
//! whose requests all come over one connection has one worker's share. Nothing waits for its turn: whoever comes when a
//! limit is reached is told so.

use meridian_proxy_config::AtOnce;
use smallvec::SmallVec;
use std::{cell::Cell, fmt, num::NonZeroU32, rc::Rc};

type Count = Rc<Cell<usize>>;

/// One worker's share of [`AtOnce`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub connections: Option<usize>,
    pub pending: Option<usize>,
    pub requests: Option<usize>,
    pub retries: Option<usize>,
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Connections,
    Pending,
    Requests,
}

/// What a worker has under way.
#[derive(Default)]
pub struct Load {
    connections: Count,
    pending: Count,
    requests: Count,
}

/// Counts as something under way until dropped.
pub struct Active(SmallVec<[Count; 2]>);

impl Limits {
    pub fn share(config: &AtOnce, workers: usize) -> Self {
        let share = |limit: Option<NonZeroU32>| {
            let limit = usize::try_from(limit?.get()).unwrap_or(usize::MAX);
            Some(limit.div_ceil(workers.max(1)))
        };
        Self {
            connections: share(config.connections),
            pending: share(config.pending),
            requests: share(config.requests),
            retries: share(config.retries),
        }
    }
}

impl Limit {
    /// As the header says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "max-connections",
            Self::Pending => "max-pending-requests",
            Self::Requests => "max-requests",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Active {
    pub fn new(count: &Count) -> Self {
        Self(SmallVec::new()).with(count)
    }

    /// Both, for as long as this is kept.
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }

    fn with(mut self, count: &Count) -> Self {
        count.set(count.get().saturating_add(1));
        self.0.push(count.clone());
        self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        for count in &self.0 {
            count.set(count.get().saturating_sub(1));
        }
    }
}

impl Load {
    /// A connection: from the attempt to make it to its end. `needed`: its endpoint has none that takes requests, and may
    /// always have one, since else nothing could be sent to it while others, or its own retired ones, hold all.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn connect(&self, limits: &Limits, needed: bool) -> Result<Active, Limit> {
        if self.connected(limits) && !needed {
            return Err(Limit::Connections);
        }
        Ok(Active::new(&self.connections))
    }

    /// Whether there are as many connections as may be.
    pub fn connected(&self, limits: &Limits) -> bool {
        reached(&self.connections, limits.connections)
    }

    /// Something that waits for a connection; `None`: nobody counts.
    ///
    /// # Errors
    /// As many wait as may.
    pub fn wait(&self, limits: &Limits) -> Result<Option<Active>, Limit> {
        take(&self.pending, limits.pending).ok_or(Limit::Pending)
    }

    /// A request, until its answer has ended; `None`: nobody counts.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn request(&self, limits: &Limits) -> Result<Option<Active>, Limit> {
        take(&self.requests, limits.requests).ok_or(Limit::Requests)
    }
}

fn reached(count: &Cell<usize>, limit: Option<usize>) -> bool {
    limit.is_some_and(|limit| count.get() >= limit)
}

fn take(count: &Count, limit: Option<usize>) -> Option<Option<Active>> {
    (!reached(count, limit)).then(|| limit.map(|_| Active::new(count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(n: usize) -> Limits {
        Limits { connections: Some(n), pending: Some(n), requests: Some(n), retries: Some(n) }
    }

    #[test]
    fn workers_share_a_limit_and_none_is_left_without() {
        let config = |n| AtOnce { requests: NonZeroU32::new(n), ..AtOnce::default() };
        for (limit, workers, share) in
            [(1024, 1, Some(1024)), (1024, 3, Some(342)), (1, 4, Some(1)), (7, 0, Some(7)), (0, 2, None)]
        {
            assert_eq!(Limits::share(&config(limit), workers).requests, share, "{limit} {workers}");
        }
        assert_eq!(Limits::share(&AtOnce::default(), 1), Limits::default());
    }

    #[test]
    fn each_limit_is_its_own() {
        let load = Load::default();
        let one = limits(1);
        let held = (load.request(&one).ok(), load.wait(&one).ok(), load.connect(&one, false).ok());
        assert_eq!(load.request(&one).err(), Some(Limit::Requests));
        assert_eq!(load.wait(&one).err(), Some(Limit::Pending));
        assert_eq!(load.connect(&one, false).err(), Some(Limit::Connections));
        assert!(load.connect(&one, true).is_ok() && load.connected(&one));
        drop(held);
        assert!(load.request(&one).is_ok() && load.wait(&one).is_ok() && load.connect(&one, false).is_ok());
    }

    #[test]
    fn what_nothing_limits_is_not_counted() {
        let load = Load::default();
        assert!(load.request(&Limits::default()).is_ok_and(|held| held.is_none()));
        assert!(load.wait(&Limits::default()).is_ok_and(|held| held.is_none()));
    }

    #[test]
    fn two_are_kept_as_one() {
        let load = Load::default();
        let request = load.request(&limits(1)).unwrap().unwrap();
        let both = load.connect(&limits(1), false).unwrap().and(request);
        assert!(load.request(&limits(1)).is_err() && load.connected(&limits(1)));
        drop(both);
        assert!(load.request(&limits(1)).is_ok() && !load.connected(&limits(1)));
    }

    proptest! {
        /// Whatever comes and goes: never more than may be, and room is there again as soon as one has gone.
        #[test]
        fn never_more_than_may_be(limit in 1usize..5, steps in prop::collection::vec(any::<Option<u8>>(), 1..80)) {
            let load = Load::default();
            let mut held = Vec::new();
            for step in steps {
                match step {
                    None => match load.request(&limits(limit)) {
                        Ok(active) => held.push(active),
                        Err(_) => prop_assert_eq!(held.len(), limit),
                    },
                    Some(n) if !held.is_empty() => drop(held.swap_remove(usize::from(n) % held.len())),
                    Some(_) => {}
                }
                prop_assert!(held.len() <= limit);
                prop_assert_eq!(load.requests.get(), held.len());
            }
        }
    }
}
