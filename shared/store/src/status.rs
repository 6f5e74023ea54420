//! Status of zones: reported often, of use only while it is fresh, so outside resources and history.
//!
//! A desk keeps the latest value of each section until it is written, at most once a second a zone. So a caller
//! reports whatever it hears, and the database sees what is worth a write.

use crate::failure::Failure;
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What a replica last reported of a zone. Not a resource: no revision, no history.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusRow {
    pub zone: String,
    pub section: String,
    pub value: Value,
    /// The name of the replica that wrote it.
    pub replica: String,
    /// Whether that replica is still there: if not, the value is of the past and the present unknown.
    pub replica_alive: bool,
    pub at: OffsetDateTime,
}

/// The least time between two writes of one zone's status.
const PACE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct StatusDesk {
    zones: Mutex<BTreeMap<String, ZoneDesk>>,
    reported: Notify,
    /// Counts writes that the database has taken.
    writes: watch::Sender<u64>,
}

#[derive(Default)]
struct ZoneDesk {
    sections: BTreeMap<String, Section>,
    /// Not before this.
    next: Option<Instant>,
    /// Whether the database says that this replica reports the zone.
    claimed: bool,
    /// Counts how often the database may have come to say something else than what was written.
    epoch: u64,
}

#[derive(Default)]
struct Section {
    /// What is to be in the database, and is not for all that this replica knows.
    wanted: Option<Vec<u8>>,
    written: Option<Vec<u8>>,
}

/// What to write of one zone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Errand {
    pub(crate) zone: String,
    pub(crate) sections: Vec<(String, Vec<u8>)>,
    pub(crate) claim: bool,
    epoch: u64,
}

impl StatusDesk {
    pub(crate) fn report(&self, zone: &str, section: &str, value: &Value) {
        let value = value.to_string().into_bytes();
        self.with(|zones| {
            let desk =
                zones.entry(zone.to_owned()).or_default().sections.entry(section.to_owned()).or_default();
            desk.wanted = (desk.written.as_ref() != Some(&value)).then_some(value);
        });
        self.reported.notify_one();
    }

    /// Changes when the database has taken a write.
    pub(crate) fn watch_writes(&self) -> watch::Receiver<u64> {
        self.writes.subscribe()
    }

    /// The zone's status is deleted.
    pub(crate) fn drop_zone(&self, zone: &str) {
        self.with(|zones| zones.remove(zone));
    }

    /// Another replica reports the zone, or did: what this one wrote may be no more what the database has.
    pub(crate) fn taken_over(&self, zone: &str) {
        self.with(|zones| zones.get_mut(zone).map(ZoneDesk::forget_written));
    }

    /// [`StatusDesk::taken_over`] may have been missed for any zone.
    pub(crate) fn forget_written(&self) {
        self.with(|zones| zones.values_mut().for_each(ZoneDesk::forget_written));
    }

    /// Writes what is reported, by `write`, for ever.
    pub(crate) async fn run<W, R>(&self, write: W)
    where
        W: Fn(Errand) -> R,
        R: Future<Output = Result<Errand, Failure>>,
    {
        loop {
            match self.next(Instant::now()) {
                Next::Idle => self.reported.notified().await,
                Next::At(time) => tokio::select! {
                    () = self.reported.notified() => {}
                    () = tokio::time::sleep_until(time) => {}
                },
                Next::Errand(errand) => match write(errand).await {
                    Ok(errand) => {
                        self.written(errand);
                        self.writes.send_modify(|count| *count = count.wrapping_add(1));
                    }
                    // It stays wanted, and its time comes again.
                    Err(failure) => tracing::warn!(?failure, "a zone's status could not be written"),
                },
            }
        }
    }

    fn next(&self, now: Instant) -> Next {
        self.with(|zones| {
            let waiting =
                zones.iter_mut().filter(|(_, desk)| desk.sections.values().any(|s| s.wanted.is_some()));
            let Some((zone, desk)) = waiting.min_by_key(|(_, desk)| desk.next) else { return Next::Idle };
            if let Some(next) = desk.next.filter(|next| *next > now) {
                return Next::At(next);
            }
            desk.next = Some(now + PACE);
            let wanted = desk.sections.iter_mut().filter_map(|(name, section)| {
                let value = section.wanted.clone()?;
                // Until the write is done, nobody knows what the database says.
                section.written = None;
                Some((name.clone(), value))
            });
            let sections = wanted.collect();
            Next::Errand(Errand { zone: zone.clone(), sections, claim: !desk.claimed, epoch: desk.epoch })
        })
    }

    fn written(&self, errand: Errand) {
        self.with(|zones| {
            let Some(desk) = zones.get_mut(&errand.zone) else { return };
            let certain = desk.epoch == errand.epoch;
            desk.claimed = certain;
            for (name, value) in errand.sections {
                let Some(section) = desk.sections.get_mut(&name) else { continue };
                if section.wanted.as_ref() == Some(&value) {
                    section.wanted = None;
                }
                section.written = certain.then_some(value);
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<String, ZoneDesk>) -> T) -> T {
        change(&mut self.zones.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

enum Next {
    Idle,
    At(Instant),
    Errand(Errand),
}

impl ZoneDesk {
    fn forget_written(&mut self) {
        self.claimed = false;
        self.epoch += 1;
        for section in self.sections.values_mut() {
            section.written = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use tokio::sync::mpsc;

    /// A desk whose writes arrive at a channel.
    fn desk() -> (Arc<StatusDesk>, mpsc::Receiver<(Instant, Errand)>) {
        let desk = Arc::new(StatusDesk::default());
        let (sender, receiver) = mpsc::channel(16);
        let runner = Arc::clone(&desk);
        tokio::spawn(async move {
            let write = |errand: Errand| {
                let copy = errand.clone();
                let sender = sender.clone();
                async move {
                    sender.send((Instant::now(), copy)).await.unwrap();
                    Ok(errand)
                }
            };
            runner.run(write).await;
        });
        (desk, receiver)
    }

    fn values(errand: &Errand) -> Vec<(&str, &str)> {
        let text = |value: &'_ Vec<u8>| std::str::from_utf8(value).map(str::to_owned).unwrap().leak() as &str;
        errand.sections.iter().map(|(name, value)| (name.as_str(), text(value))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_value_is_written_once_a_second_a_zone() {
        let (desk, mut writes) = desk();
        desk.report("east", "overview", &json!(1));
        let (first, errand) = writes.recv().await.unwrap();
        assert_eq!((values(&errand), errand.claim), (vec![("overview", "1")], true));
        for value in 2..50 {
            desk.report("east", "overview", &json!(value));
            desk.report("east", "denials", &json!(value));
        }
        desk.report("west", "overview", &json!(0));
        let (_, west) = writes.recv().await.unwrap();
        assert_eq!(west.zone, "west");
        let (second, errand) = writes.recv().await.unwrap();
        assert_eq!((values(&errand), errand.claim), (vec![("denials", "49"), ("overview", "49")], false));
        assert!(second - first >= PACE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unchanged_is_not_written_unless_another_replica_wrote() {
        let (desk, mut writes) = desk();
        desk.report("east", "overview", &json!({"a": 1}));
        writes.recv().await.unwrap();
        tokio::task::yield_now().await;
        desk.report("east", "overview", &json!({"a": 1}));
        assert!(tokio::time::timeout(Duration::from_secs(60), writes.recv()).await.is_err());
        desk.taken_over("east");
        desk.report("east", "overview", &json!({"a": 1}));
        assert!(writes.recv().await.unwrap().1.claim);
    }

    /// The errand that is due then, if any.
    fn due(desk: &StatusDesk, now: Instant) -> Option<Errand> {
        match desk.next(now) {
            Next::Errand(errand) => Some(errand),
            Next::Idle | Next::At(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_reported_during_a_write_is_written_after_it() {
        let (desk, mut now) = (StatusDesk::default(), Instant::now());
        for value in [1, 2] {
            desk.report("east", "overview", &json!(value));
            now += PACE;
            let errand = due(&desk, now).unwrap();
            // Back to what was written before: for the database it is a change.
            desk.report("east", "overview", &json!(1));
            desk.written(errand);
        }
        let errand = due(&desk, now + PACE).unwrap();
        assert_eq!(values(&errand), [("overview", "1")]);
        desk.written(errand);
        assert!(due(&desk, now + PACE * 9).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_failed_or_was_overtaken_comes_again() {
        let (desk, now) = (StatusDesk::default(), Instant::now());
        desk.report("east", "overview", &json!(1));
        let failed = due(&desk, now).unwrap();
        assert!(due(&desk, now).is_none(), "not at once");
        assert_eq!(due(&desk, now + PACE), Some(failed.clone()));
        // Another replica claims the zone while this one's write is under way: who was last is not known.
        desk.taken_over("east");
        desk.written(failed);
        desk.report("east", "overview", &json!(1));
        assert!(due(&desk, now + PACE * 2).is_some_and(|errand| errand.claim));
    }
}
