//! The task of one backend: takes what waits, and sends it until it is there.

use super::queue::{Batch, Queue};
use std::{fmt, time::Duration};
use tokio::time::Instant;

/// A backend that failed is tried again after so long, doubled each time...
const BACK_OFF: Duration = Duration::from_millis(100);
/// ...up to this: a collector that restarts is found soon, and one that is gone is not hammered.
const BACK_OFF_LONGEST: Duration = Duration::from_secs(10);
/// What a backend does wrong is told at most once in so long: one that takes every second batch must not fill our own log.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// Sends entries to one backend, within a time of its own.
pub(super) trait Export: Send + 'static {
    type Entry: Send + Sync + 'static;

    /// Given up in the middle, it must not leave half of a batch in the way of the next.
    fn send(&mut self, batch: &[Self::Entry]) -> impl Future<Output = Result<(), Failure>> + Send;
}

#[derive(Debug)]
pub(crate) enum Failure {
    /// The backend may take the same entries later.
    Again(String),
    /// It will never.
    Rejected(String),
}

impl Failure {
    pub(super) fn again(error: impl fmt::Display) -> Self {
        Self::Again(error.to_string())
    }
}

/// What is said at most once in [`TOLD_AGAIN`].
#[derive(Default)]
pub(crate) struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it may be said now; if so, it is.
    pub(crate) fn may(&mut self, now: Instant) -> bool {
        let may = self.0.is_none_or(|last| now.saturating_duration_since(last) >= TOLD_AGAIN);
        if may {
            self.0 = Some(now);
        }
        may
    }
}

/// What the log says of a backend: that it fails, once and not again soon, and that it no longer does, if the former was
/// said.
#[derive(Default)]
struct Health {
    is_told: bool,
    seldom: Seldom,
}

impl Health {
    /// Whether a failure is to be told.
    fn fails(&mut self, now: Instant) -> bool {
        let tell = !self.is_told && self.seldom.may(now);
        self.is_told |= tell;
        tell
    }

    /// Whether it is to be told that nothing fails.
    fn works(&mut self) -> bool {
        std::mem::take(&mut self.is_told)
    }
}

/// Runs until nobody can hand over more. What a backend has not taken when its last user is gone is tried once.
pub(super) async fn deliver<E: Export>(
    name: String,
    mut queue: Queue<E::Entry>,
    mut export: E,
    batch: Batch,
) {
    let mut health = Health::default();
    while let Some(entries) = queue.next(&batch).await {
        if entries.is_empty() {
            queue.settle(0, true);
            continue;
        }
        let mut wait = BACK_OFF;
        let written = loop {
            match export.send(&entries).await {
                Ok(()) => {
                    if health.works() {
                        tracing::info!(backend = %name, "entries are taken again");
                    }
                    break true;
                }
                Err(Failure::Rejected(reason)) => {
                    if health.fails(Instant::now()) {
                        tracing::warn!(backend = %name, %reason, entries = entries.len(), "entries are refused");
                    }
                    break false;
                }
                Err(Failure::Again(reason)) => {
                    queue.failed();
                    if health.fails(Instant::now()) {
                        tracing::warn!(backend = %name, %reason, "entries can't be written; trying again");
                    }
                    if queue.is_orphaned() {
                        break false;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACK_OFF_LONGEST);
                }
            }
        };
        queue.settle(entries.len(), written);
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{Counts, queue};
    use super::*;
    use std::sync::{Arc, Mutex, atomic::Ordering};

    const BATCH: Batch = Batch { entries: 10, bytes: 100, linger: Duration::from_millis(20) };

    /// Answers as it is told, then takes everything.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Mutex<(Vec<Failure>, Vec<u32>)>>);

    impl Export for Scripted {
        type Entry = u32;

        async fn send(&mut self, batch: &[u32]) -> Result<(), Failure> {
            let (failures, taken) = &mut *self.0.lock().unwrap();
            match failures.pop() {
                Some(failure) => Err(failure),
                None => {
                    taken.extend(batch);
                    Ok(())
                }
            }
        }
    }

    fn count(counts: &Counts) -> (u64, u64, u64) {
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        (of(&counts.written), of(&counts.dropped), of(&counts.failures))
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_sent_again_and_what_is_refused_is_not() {
        let export = Scripted::default();
        export.0.lock().unwrap().0 =
            vec![Failure::Rejected("b".into()), Failure::again("a"), Failure::again("a")];
        let counts = Arc::new(Counts::default());
        let (sender, entries) = queue(counts.clone());
        let task = tokio::spawn(deliver("x".into(), entries, export.clone(), BATCH));
        sender.offer(1, 1);
        sender.flush().await;
        assert_eq!(count(&counts), (0, 1, 2));
        sender.offer(2, 1);
        sender.flush().await;
        assert_eq!(count(&counts), (1, 1, 2));
        drop(sender);
        task.await.unwrap();
        assert_eq!(export.0.lock().unwrap().1, [2]);
    }

    #[test]
    fn a_backend_that_is_gone_for_hours_is_told_once() {
        let (mut health, began) = (Health::default(), Instant::now());
        let told = (0..10_000).filter(|second| health.fails(began + Duration::from_secs(*second)));
        assert_eq!(told.count(), 1);
        assert!(health.works() && !health.works());
    }

    #[test]
    fn a_backend_that_takes_every_second_batch_is_told_seldom() {
        let (mut health, began) = (Health::default(), Instant::now());
        let (mut failures, mut recoveries) = (0, 0);
        for tenth in 0..6_000 {
            let now = began + Duration::from_millis(100 * tenth);
            failures += u32::from(health.fails(now));
            recoveries += u32::from(health.works());
        }
        // Of ten minutes.
        assert_eq!((failures, recoveries), (10, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_dead_backend_that_nobody_names() {
        let export = Scripted::default();
        export.0.lock().unwrap().0 = (0..1_000).map(|_| Failure::again("dead")).collect();
        let counts = Arc::new(Counts::default());
        let (sender, entries) = queue(counts.clone());
        let task = tokio::spawn(deliver("x".into(), entries, export, BATCH));
        sender.offer(1, 1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(sender);
        task.await.unwrap();
        assert_eq!(count(&counts).1, 1);
    }
}
