//! What a zone sends up: its resources into the store, under the origin that its certificate proves, and its reports into
//! `zone_status`.

use crate::state::Global;
use crate::vault;
use crate::zones::{Reports, ZoneLink};
use meridian_api::{report, wire};
use meridian_core::{Key, Resource, document};
use meridian_delta::{Batch, Encoded, Id, Position, Rejected, Resume, Sink, SinkError, Version};
use meridian_store::{Author, Change, Expect, Query, Stored};
use meridian_telemetry::chain;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The receiving end of one zone's Push.
pub(crate) struct ZoneSink {
    global: Arc<Global>,
    link: Arc<ZoneLink>,
    /// The process whose writes count; the store compares it in each transaction.
    instance: String,
    /// What the store has as the cursor.
    kept: Option<Position>,
    /// Resources were written since the cursor was.
    ahead: bool,
    /// This stream's reports are all here, and every section was put once.
    told: bool,
}

impl ZoneSink {
    pub(crate) fn new(global: Arc<Global>, link: Arc<ZoneLink>, instance: String) -> Self {
        Self { global, link, instance, kept: None, ahead: false, told: false }
    }

    fn zone(&self) -> &str {
        &self.link.zone
    }

    /// Everything of the zone that the store has.
    async fn held(&self) -> Result<Vec<Stored>, SinkError> {
        let mut all = Vec::new();
        for info in meridian_core::kinds().iter().filter(|info| info.flow.zone_to_global) {
            let query = Query { zone: Some(self.zone().to_owned()), ..Query::all(info.kind) };
            all.extend(self.global.store.list(&query).await?.items);
        }
        Ok(all)
    }

    /// The write of one resource, or why it can't be.
    fn put(&self, encoded: &Encoded) -> Result<Change, String> {
        let key = self.key(&encoded.id())?;
        let resource = Resource::from_canonical(key, &encoded.body).map_err(|error| chain(&error))?;
        document::check_resource(&resource).map_err(|problem| violations(&problem))?;
        let resource = wire::at_global(self.zone(), resource);
        Ok(Change::Put { resource, expect: Expect::Any })
    }

    /// The key at home. A zone speaks for itself only, and only of what zones make.
    fn key(&self, id: &Id) -> Result<Key, String> {
        let key = wire::key(&id.type_, &id.name).ok_or_else(|| "no kind or name of a resource".to_owned())?;
        if !key.kind.info().flow.zone_to_global {
            return Err(format!("a zone does not send a {}", key.kind));
        }
        if !key.zone.is_empty() && key.zone != self.zone() {
            return Err(format!("it claims zone {}, its sender is zone {}", key.zone, self.zone()));
        }
        Ok(Key { zone: self.zone().to_owned(), ..key })
    }

    fn deletion(&self, id: &Id) -> Option<Change> {
        let home = self.key(id).ok()?;
        let key = Key { name: wire::hashed_name(&home), ..home };
        Some(Change::Delete { key, expect: Expect::Any })
    }

    /// Reports go to memory and to their section; what can't be read is rejected.
    fn take_reports(&mut self, batch: &Batch, rejected: &mut Vec<Rejected>) {
        let mut touched = BTreeSet::new();
        let mut reports = self.link.reports();
        for encoded in batch.upserts.iter().filter(|encoded| Reports::is_report(&encoded.type_)) {
            match reports.take(&encoded.type_, &encoded.name, encoded.version, &encoded.body) {
                Ok(()) => drop(touched.insert(Arc::clone(&encoded.type_))),
                Err(reason) => rejected.push(Rejected { id: encoded.id(), version: encoded.version, reason }),
            }
        }
        for id in batch.removals.iter().filter(|id| Reports::is_report(&id.type_)) {
            reports.remove(&id.type_, &id.name);
            touched.insert(Arc::clone(&id.type_));
        }
        if batch.complete && !self.told {
            // What stands may be another replica's or an earlier process's, also where nothing came now.
            self.told = true;
            touched.extend(report::types::ALL.map(Arc::from));
        }
        for type_ in touched {
            self.global.store.put_status(self.zone(), &type_, &reports.section(&type_));
        }
        drop(reports);
        self.global.rotation_news.notify_one();
    }

    /// Whether the position is worth a write: reports alone are not.
    fn keeps(&self, position: Option<Position>, changes: &[Change]) -> Option<Position> {
        let position = position?;
        let moved = !changes.is_empty() || self.ahead;
        let first = self.kept.is_none_or(|kept| kept.store != position.store);
        (moved || first).then_some(position)
    }
}

impl Sink for ZoneSink {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        // The cursor first: it may be older than the contents, never newer.
        let position: Option<Position> = vault::read(&self.global.store, vault::CURSORS, self.zone()).await?;
        self.kept = position;
        self.ahead = false;
        self.told = false;
        let mut have = self.link.reports().have();
        for stored in self.held().await? {
            let Some(home) = wire::at_home(stored.resource) else { continue };
            let id = Id::new(home.key.kind.as_str(), wire::name(&home.key));
            have.push((id, Version::of(&home.canonical())));
        }
        Ok(Resume { position, have })
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        let mut rejected = Vec::new();
        self.take_reports(&batch, &mut rejected);
        let mut changes = Vec::new();
        for encoded in batch.upserts.iter().filter(|encoded| !Reports::is_report(&encoded.type_)) {
            self.link.taken.fetch_add(1, Ordering::Relaxed);
            match self.put(encoded) {
                Ok(change) => changes.push(change),
                Err(reason) => rejected.push(Rejected { id: encoded.id(), version: encoded.version, reason }),
            }
        }
        let removals = batch.removals.iter().filter(|id| !Reports::is_report(&id.type_));
        changes.extend(removals.filter_map(|id| self.deletion(id)));
        let keeps = self.keeps(batch.position, &changes);
        if changes.is_empty() && keeps.is_none() {
            return Ok(rejected);
        }
        self.ahead = keeps.is_none();
        changes.extend(keeps.map(|position| vault::put(vault::CURSORS, self.zone(), &position)));
        // Only the process that holds the zone writes: one that was replaced finds another name here.
        let instance = self.instance.clone().into_bytes();
        changes.push(Change::SwapPrivate {
            bucket: vault::FENCES.to_owned(),
            key: self.zone().to_owned(),
            from: Some(instance.clone()),
            to: instance,
        });
        let author = Author::new(format!("zone:{}", self.zone()), "sync");
        self.global.store.write(&author, changes).await?;
        self.kept = keeps.or(self.kept);
        Ok(rejected)
    }
}

/// All violations in one line.
fn violations(problem: &document::Problem) -> String {
    if problem.violations.is_empty() {
        return problem.detail.clone();
    }
    problem.violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
