use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, mpsc, oneshot};

/// Entries that wait for one backend: a few seconds of a busy proxy.
const QUEUE_ENTRIES: usize = 8_192;
/// Bytes of them, so that long lines don't make that many megabytes.
const QUEUE_BYTES: usize = 8 << 20;

/// What became of the entries for one backend.
#[derive(Debug, Default)]
pub struct Counts {
    pub written: AtomicU64,
    /// The queue was full, or the backend would not have them.
    pub dropped: AtomicU64,
    /// Attempts that failed and were made again.
    pub failures: AtomicU64,
}

/// The workers' end of a queue.
pub struct Sender<T> {
    queue: mpsc::Sender<Message<T>>,
    shared: Arc<Shared>,
}

/// The backend's end.
pub(super) struct Queue<T> {
    receiver: mpsc::Receiver<Message<T>>,
    shared: Arc<Shared>,
    /// Of what was taken and is not settled yet.
    taken: usize,
    flushes: Vec<oneshot::Sender<()>>,
}

struct Shared {
    bytes: AtomicUsize,
    hurry: Notify,
    counts: Arc<Counts>,
}

enum Message<T> {
    Entry(T, usize),
    /// Answered when all before it is settled.
    Flush(oneshot::Sender<()>),
}

/// How much is sent at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) entries: usize,
    pub(super) bytes: usize,
    /// After the first entry, so that more come together and a busy proxy does not wake the sending thread for each.
    pub(super) linger: Duration,
}

pub(super) fn queue<T>(counts: Arc<Counts>) -> (Sender<T>, Queue<T>) {
    let (sender, receiver) = mpsc::channel(QUEUE_ENTRIES);
    let shared = Arc::new(Shared { bytes: AtomicUsize::new(0), hurry: Notify::new(), counts });
    let queue = Queue { receiver, shared: shared.clone(), taken: 0, flushes: Vec::new() };
    (Sender { queue: sender, shared }, queue)
}

impl<T> Sender<T> {
    /// Hands an entry of so many bytes over; if there is no room, it is dropped and counted.
    pub fn offer(&self, entry: T, bytes: usize) {
        let before = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Message::Entry(entry, bytes)).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
        if !fits || self.queue.capacity() < QUEUE_ENTRIES / 2 {
            self.shared.hurry.notify_one();
        }
    }

    /// Returns when all that was handed over before is written, or was given up.
    pub(super) async fn flush(&self) {
        let (settled, receiver) = oneshot::channel();
        self.shared.hurry.notify_one();
        if self.queue.send(Message::Flush(settled)).await.is_ok() {
            self.shared.hurry.notify_one();
            drop(receiver.await);
        }
    }
}

impl<T> Queue<T> {
    /// What is to be sent next; `None` when all was taken and nobody can hand over more.
    pub(super) async fn next(&mut self, batch: &Batch) -> Option<Vec<T>> {
        let mut entries = Vec::new();
        let first = self.receiver.recv().await?;
        if self.take(first, &mut entries) {
            tokio::select! {
                () = tokio::time::sleep(batch.linger) => {}
                () = self.shared.hurry.notified() => {}
            }
        }
        while entries.len() < batch.entries && self.taken < batch.bytes && self.flushes.is_empty() {
            match self.receiver.try_recv() {
                Ok(message) => drop(self.take(message, &mut entries)),
                Err(_) => break,
            }
        }
        Some(entries)
    }

    /// Whether it is an entry.
    fn take(&mut self, message: Message<T>, entries: &mut Vec<T>) -> bool {
        match message {
            Message::Entry(entry, bytes) => {
                self.taken += bytes;
                entries.push(entry);
                true
            }
            Message::Flush(settled) => {
                self.flushes.push(settled);
                false
            }
        }
    }

    /// What was taken is written (`true`) or given up.
    pub(super) fn settle(&mut self, entries: usize, written: bool) {
        self.shared.bytes.fetch_sub(self.taken, Ordering::Relaxed);
        self.taken = 0;
        let counts = &self.shared.counts;
        let counter = if written { &counts.written } else { &counts.dropped };
        counter.fetch_add(u64::try_from(entries).unwrap_or(u64::MAX), Ordering::Relaxed);
        for flush in self.flushes.drain(..) {
            let _ = flush.send(());
        }
    }

    pub(super) fn failed(&self) {
        self.shared.counts.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody hands over more: the configuration does not name the backend any longer.
    pub(super) fn is_orphaned(&self) -> bool {
        self.receiver.sender_strong_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BATCH: Batch = Batch { entries: 4, bytes: 100, linger: Duration::from_millis(20) };

    fn dropped<T>(sender: &Sender<T>) -> u64 {
        sender.shared.counts.dropped.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_dropped_and_counted() {
        let (sender, mut queue) = queue(Arc::default());
        for n in 0..QUEUE_ENTRIES + 3 {
            sender.offer(n, 1);
        }
        assert_eq!(dropped(&sender), 3);
        assert_eq!(queue.next(&BATCH).await, Some(vec![0, 1, 2, 3]));
        queue.settle(4, true);
        sender.offer(7, QUEUE_BYTES);
        assert_eq!(dropped(&sender), 4, "too many bytes");
        sender.offer(7, 1);
        assert_eq!(dropped(&sender), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn entries_come_together_and_end_with_the_senders() {
        let (sender, mut queue) = queue(Arc::default());
        sender.offer("a", 60);
        let later = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            sender.offer("b", 60);
            sender.offer("c", 60);
            drop(sender);
        };
        let (batch, ()) = tokio::join!(queue.next(&BATCH), later);
        assert_eq!(batch, Some(vec!["a", "b"]));
        queue.settle(2, true);
        assert!(queue.is_orphaned());
        assert_eq!(queue.next(&BATCH).await, Some(vec!["c"]));
        assert_eq!(queue.next(&BATCH).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_waits_for_what_was_before_it_and_not_for_more() {
        let (sender, mut queue) = queue(Arc::default());
        let slow = Batch { linger: Duration::from_secs(3_600), ..BATCH };
        sender.offer(1, 1);
        let start = tokio::time::Instant::now();
        let empty = async {
            while let Some(batch) = queue.next(&slow).await {
                let done = batch.is_empty();
                queue.settle(batch.len(), true);
                if done {
                    break;
                }
            }
        };
        let ((), ()) = tokio::join!(sender.flush(), async {
            tokio::select! { () = empty => {}, () = tokio::time::sleep(Duration::from_secs(60)) => {} }
        });
        assert_eq!(sender.shared.counts.written.load(Ordering::Relaxed), 1);
        assert!(start.elapsed() <= Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn no_order_of_events_loses_count(events in proptest::collection::vec((0..3u8, 1..9_000_000usize), 0..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let counts = Arc::new(Counts::default());
                let (sender, mut queue) = queue(counts.clone());
                let mut offered = 0u64;
                let mut waiting = 0usize;
                for (event, bytes) in events {
                    if event > 0 || waiting == 0 {
                        let before = counts.dropped.load(Ordering::Relaxed);
                        sender.offer((), bytes);
                        offered += 1;
                        waiting += usize::from(counts.dropped.load(Ordering::Relaxed) == before);
                    } else {
                        let batch = queue.next(&BATCH).await.unwrap();
                        waiting -= batch.len();
                        queue.settle(batch.len(), event % 2 == 0);
                    }
                }
                drop(sender);
                while let Some(batch) = queue.next(&BATCH).await {
                    queue.settle(batch.len(), true);
                }
                let settled = counts.written.load(Ordering::Relaxed) + counts.dropped.load(Ordering::Relaxed);
                assert_eq!((settled, queue.shared.bytes.load(Ordering::Relaxed)), (offered, 0));
            });
        }
    }
}
