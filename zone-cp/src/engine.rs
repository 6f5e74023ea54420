//! The loop: from the store's changes and the proxies' reports to what proxies are told.
//!
//! One task owns the picture. It wakes when the store's history grows or a proxy has reported, takes in all that has
//! gathered, and does each step once: so an idle zone answers in milliseconds and a busy one batches by itself.

use crate::audiences::{Audiences, Counters, Views};
use crate::compile::Unit;
use crate::compile::touched::{Touched, everything, touched, touched_by_certificates, touched_by_facts};
use crate::generate::{self, Action};
use crate::outgoing::Outgoing;
use crate::picture::{Facts, Picture, is_compiled};
use crate::reports::{Bundles, Reports};
use crate::tokens;
use crate::vip::{Addresses, Row, VipTable};
use arc_swap::ArcSwap;
use meridian_auth::Verifier;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::trust_bundle::TrustBundle;
use meridian_core::{Key, Resource};
use meridian_pki::SpkiHash;
use meridian_store::{
    Author, Change, Changed, Changes, ChangesError, Expect, HistoryEntry, ReadError, Revision, Store,
    WriteError,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Private rows: virtual addresses, and what proxies have reported.
const VIPS: &str = "vips";
const FACTS: &str = "facts";

/// When the store can't be written, again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Commands taken in one step.
const BATCH: usize = 512;

/// What other tasks ask of the engine.
#[derive(Debug)]
pub(crate) enum Command {
    /// A proxy is there; what it has reported, if it has.
    Facts { key: Key, facts: Option<Facts> },
    /// A proxy has left, or is to register anew: what it has reported no longer counts.
    Forget { key: Key },
    /// The zone's intermediate of a mesh chains to this root now.
    Issuer { mesh: String, root: Option<String> },
}

/// What others see of the engine's work.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) picture: Arc<ArcSwap<Picture>>,
    pub(crate) verifier: Arc<ArcSwap<Verifier>>,
    /// Virtual addresses in use.
    pub(crate) addresses: Addresses,
    /// Moves with each step.
    pub(crate) steps: watch::Sender<u64>,
    /// Moves when keys or revocations of tokens do.
    pub(crate) tokens: watch::Sender<u64>,
    pub(crate) counters: Arc<ArcSwap<Counters>>,
    /// Proxies whose resource is gone; their streams are to end.
    pub(crate) gone: Gone,
}

/// Keys that wait for whoever ends streams. No channel: the two tasks send to each other, and neither may wait.
#[derive(Clone, Default)]
pub(crate) struct Gone(Arc<(Mutex<Vec<Key>>, Notify)>);

impl Gone {
    fn add(&self, keys: Vec<Key>) {
        if !keys.is_empty() {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
            self.0.1.notify_one();
        }
    }

    /// The next ones; safe to cancel.
    pub(crate) async fn next(&self) -> Vec<Key> {
        loop {
            let keys = std::mem::take(&mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
            if !keys.is_empty() {
                return keys;
            }
            self.0.1.notified().await;
        }
    }
}

pub(crate) struct Engine {
    store: Store,
    zone: String,
    picture: Picture,
    vips: VipTable,
    audiences: Audiences,
    outgoing: Outgoing,
    reports: Reports,
    seen: Seen,
    cursor: Revision,
    /// Of this zone's MeshServices: to be overwritten only as they were seen.
    revisions: HashMap<Key, Revision>,
    /// What the generator has said of Dataplanes, by mesh and service.
    conditions: HashMap<(String, String), BTreeSet<(Key, String)>>,
    wakes: BTreeMap<(OffsetDateTime, String, String), ()>,
    tokens: tokens::Known,
    /// A write failed: these services are looked at again then.
    retry: Option<(Instant, BTreeSet<(String, String)>)>,
    /// Revisions and roots of the meshes' bundles.
    bundles: Bundles,
    /// Resources of the store that do not parse.
    unreadable: BTreeMap<Key, String>,
}

/// What an engine needs to begin.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) picture: Picture,
    pub(crate) views: Views,
    pub(crate) outgoing: Outgoing,
    pub(crate) reports: Reports,
    pub(crate) seen: Seen,
}

impl Engine {
    /// Loads everything from the store and compiles it.
    pub(crate) async fn start(parts: Parts) -> Result<Self, ReadError> {
        let Parts { store, picture, views, outgoing, reports, seen } = parts;
        let vips = stored_vips(&store).await?;
        seen.addresses.set(&vips);
        let mut engine = Self {
            zone: picture.zone.clone(),
            vips,
            audiences: Audiences::new(views),
            picture,
            outgoing,
            reports,
            seen,
            cursor: Revision::ZERO,
            revisions: HashMap::new(),
            conditions: HashMap::new(),
            wakes: BTreeMap::new(),
            tokens: tokens::Known::default(),
            retry: None,
            bundles: Bundles::new(),
            unreadable: BTreeMap::new(),
            store,
        };
        for (name, value) in engine.store.private_list(FACTS).await? {
            if let (Some(key), Ok(facts)) = (facts_key(&engine.zone, &name), serde_json::from_slice(&value)) {
                engine.picture.set_facts(&key, Some(facts));
            }
        }
        engine.reload().await?;
        Ok(engine)
    }

    pub(crate) fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Proxies that the store knows, whether they are there or not.
    pub(crate) fn known_proxies(&self) -> Vec<Key> {
        self.audiences.proxies().cloned().collect()
    }

    /// Runs until `shutdown`.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        let mut feed = self.store.feed();
        // What was committed since the store was read, too.
        feed.mark_changed();
        let mut batch = Vec::new();
        loop {
            let wake = self.next_wake();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = feed.changed() => if changed.is_err() { return },
                count = commands.recv_many(&mut batch, BATCH) => if count == 0 { return },
                () = tokio::time::sleep_until(wake) => {}
            }
            let state = *feed.borrow_and_update();
            self.outgoing.set_known(state.known);
            let mut touched = self.take_commands(std::mem::take(&mut batch)).await;
            match self.take_changes(state.revision).await {
                Ok(more) => touched.extend(more),
                Err(error) => {
                    tracing::warn!(%error, "the store can't be read; what is compiled stays as it is")
                }
            }
            self.wake_services(&mut touched);
            self.step(touched).await;
        }
    }

    fn next_wake(&self) -> Instant {
        let now = OffsetDateTime::now_utc();
        let service = self.wakes.first_key_value().map(|((at, ..), ())| {
            Instant::now() + Duration::try_from((*at - now).max(time::Duration::ZERO)).unwrap_or_default()
        });
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        // A day: nothing else is due.
        let idle = Instant::now() + Duration::from_hours(24);
        service.into_iter().chain(retry).fold(idle, Instant::min)
    }

    /// Services whose time has come, or whose write failed.
    fn wake_services(&mut self, touched: &mut Touched) {
        let now = OffsetDateTime::now_utc();
        while let Some(((at, mesh, service), ())) = self.wakes.pop_first() {
            if at > now {
                self.wakes.insert((at, mesh, service), ());
                break;
            }
            touched.services.insert((mesh, service));
        }
        if self.retry.as_ref().is_some_and(|(at, _)| *at <= Instant::now())
            && let Some((_, services)) = self.retry.take()
        {
            touched.services.extend(services);
        }
    }

    async fn take_commands(&mut self, commands: Vec<Command>) -> Touched {
        let mut out = Touched::default();
        let mut writes = Vec::new();
        // Looked at once for all commands: it takes a look at every proxy of the mesh.
        let mut certified = BTreeSet::new();
        for command in commands {
            match command {
                Command::Facts { key, facts } => {
                    let next = match (facts, self.picture.facts(&key)) {
                        (Some(facts), _) => facts,
                        (None, Some(_)) => continue,
                        (None, None) => Facts::default(),
                    };
                    let before = self.picture.facts(&key);
                    if before == Some(&next) {
                        continue;
                    }
                    if before.is_none_or(|before| before.certified != next.certified) {
                        certified.insert(key.mesh.clone());
                    }
                    writes.push(put_private(FACTS, &facts_name(&key), &next));
                    self.picture.set_facts(&key, Some(next));
                    out.extend(touched_by_facts(&self.picture, &key));
                }
                Command::Issuer { mesh, root } => {
                    self.picture.set_issuer(&mesh, root);
                    out.units.insert(Unit::Bundle(mesh));
                }
                Command::Forget { key } => {
                    if self.picture.facts(&key).is_some() {
                        writes.push(Change::DeletePrivate { bucket: FACTS.into(), key: facts_name(&key) });
                        self.picture.set_facts(&key, None);
                        out.extend(touched_by_facts(&self.picture, &key));
                        certified.insert(key.mesh.clone());
                    }
                }
            }
        }
        for mesh in certified {
            out.extend(touched_by_certificates(&self.picture, &mesh));
        }
        if !writes.is_empty()
            && let Err(error) = self.store.write(&Author::system(), last_of_each(writes)).await
        {
            tracing::error!(%error, "what proxies have reported could not be stored");
        }
        out
    }

    /// Reads history up to `newest` into the picture.
    async fn take_changes(&mut self, newest: Revision) -> Result<Touched, ReadError> {
        let mut out = Touched::default();
        while self.cursor < newest {
            match self.store.changes_after(self.cursor).await {
                Ok(Changes { entries, upto, floor, .. }) => {
                    for entry in entries {
                        out.extend(self.take_entry(entry));
                    }
                    self.outgoing.raise_floor(floor);
                    if upto <= self.cursor {
                        break;
                    }
                    self.cursor = upto;
                }
                Err(ChangesError::TooOld { .. }) => {
                    self.reload().await?;
                    break;
                }
                Err(ChangesError::Read(error)) => return Err(error),
            }
        }
        Ok(out)
    }

    fn take_entry(&mut self, entry: HistoryEntry) -> Touched {
        let HistoryEntry { revision, key, change, at, .. } = entry;
        self.outgoing.take(&key, &change, revision);
        if self.tokens.take(&key, &change) {
            self.publish_tokens();
        }
        if key.kind == MeshService::KIND && key.zone == self.zone {
            match &change {
                Changed::Put(_) => drop(self.revisions.insert(key.clone(), revision)),
                Changed::Delete => drop(self.revisions.remove(&key)),
            }
        }
        self.take_bundle(&key, &change, revision);
        if !is_compiled(key.kind) {
            return Touched::default();
        }
        let before = self.picture.clone();
        match change {
            Changed::Put(resource) => self.put(resource, at),
            Changed::Delete => {
                self.unreadable.remove(&key);
                self.picture.remove(&key);
            }
        }
        touched(&before, &self.picture, &key)
    }

    fn take_bundle(&mut self, key: &Key, change: &Changed, revision: Revision) {
        if key.kind != TrustBundle::KIND {
            return;
        }
        let parsed = match change {
            Changed::Put(resource) => resource.parse::<TrustBundle>().ok(),
            Changed::Delete => None,
        };
        let Some(bundle) = parsed else {
            self.bundles.remove(&key.mesh);
            return;
        };
        let certificates =
            bundle.roots.iter().flat_map(|pem| meridian_pki::certificates_from_pem(pem)).flatten();
        let hashes = certificates.filter_map(|certificate| SpkiHash::of_certificate(&certificate).ok());
        let roots = hashes.map(|hash| hash.to_string()).collect();
        self.bundles.insert(key.mesh.clone(), (revision.0, roots));
    }

    fn put(&mut self, resource: Resource, created: OffsetDateTime) {
        let key = resource.key.clone();
        self.picture.set_created(&key, created);
        match self.picture.put(resource) {
            Ok(()) => drop(self.unreadable.remove(&key)),
            Err(error) => {
                tracing::error!(%error, "a stored resource can't be read; what it was before goes on");
                self.unreadable.insert(key, format!("{error}: {}", error.source));
            }
        }
    }

    /// Everything anew from one consistent reading.
    async fn reload(&mut self) -> Result<(), ReadError> {
        let snapshot = self.store.snapshot().await?;
        let deleted = self.outgoing.deletions(&self.store, &snapshot).await?;
        self.outgoing.load(&snapshot, deleted);
        let mut stale = self.picture.clone();
        let mut fresh =
            Picture { zone: self.zone.clone(), options: self.picture.options.clone(), ..Picture::default() };
        fresh.facts = self.picture.facts.clone();
        fresh.issuers = self.picture.issuers.clone();
        std::mem::swap(&mut self.picture, &mut fresh);
        self.revisions.clear();
        self.tokens = tokens::Known::default();
        for stored in snapshot.resources {
            let key = stored.resource.key.clone();
            let change = Changed::Put(stored.resource.clone());
            self.tokens.take(&key, &change);
            self.take_bundle(&key, &change, stored.revision);
            if key.kind == MeshService::KIND && key.zone == self.zone {
                self.revisions.insert(key.clone(), stored.revision);
            }
            if is_compiled(key.kind) {
                self.put(stored.resource, stored.created);
            }
        }
        let known: Vec<Key> = self.picture.facts.keys().cloned().collect();
        for key in known {
            let there = self.picture.mesh(&key.mesh).is_some_and(|mesh| mesh.dataplane(&key).is_some());
            if !there && key.kind == Dataplane::KIND {
                self.picture.set_facts(&key, None);
            }
        }
        self.cursor = snapshot.revision;
        self.publish_tokens();
        stale.facts = self.picture.facts.clone();
        let mut touched = everything(&stale);
        touched.extend(everything(&self.picture));
        self.step(touched).await;
        let (vips, audiences) = (&mut self.vips, &self.audiences);
        vips.retain(|owner| audiences.uses_address(owner), unix_now());
        self.store_vips().await;
        Ok(())
    }

    /// Brings proxies, MeshServices and reports up to the picture.
    async fn step(&mut self, touched: Touched) {
        if touched.is_empty() {
            // What is only tried out touches nothing that is sent, and is asked about.
            self.seen.picture.store(Arc::new(self.picture.clone()));
            return;
        }
        self.audiences.allot(&self.picture, &mut self.vips, &touched.units, unix_now());
        self.store_vips().await;
        let revision = meridian_delta::Revision(self.cursor.0);
        let updated = self.audiences.update(&self.picture, &self.vips, &touched, revision);
        self.seen.counters.store(Arc::new(self.audiences.counters()));
        self.seen.picture.store(Arc::new(self.picture.clone()));
        self.seen.steps.send_modify(|steps| *steps = steps.wrapping_add(1));
        self.seen.gone.add(updated.gone);
        self.generate(touched.services).await;
        self.report();
    }

    async fn store_vips(&mut self) {
        let changed = self.vips.drain();
        self.seen.addresses.follow(&changed);
        let changes: Vec<Change> = changed
            .into_iter()
            .map(|(owner, row)| match row {
                Some(row) => put_private(VIPS, &owner.to_string(), &row),
                None => Change::DeletePrivate { bucket: VIPS.into(), key: owner.to_string() },
            })
            .collect();
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.store.write(&Author::system(), changes).await {
            // The address is a hash of its owner: a restart without the row mostly gives the same one.
            tracing::error!(%error, "virtual addresses could not be stored");
        }
    }

    async fn generate(&mut self, services: BTreeSet<(String, String)>) {
        let now = OffsetDateTime::now_utc();
        for (mesh, name) in services {
            let key = Key::new(MeshService::KIND, &mesh, &self.zone, &name);
            let owner = crate::compile::services::owner(&self.picture, &key);
            let vip = owner.and_then(|owner| self.vips.address(&owner));
            let outcome = generate::generate(&self.picture, &mesh, &name, vip, now);
            let id = (mesh, name);
            if outcome.conditions.is_empty() {
                self.conditions.remove(&id);
            } else {
                self.conditions.insert(id.clone(), outcome.conditions);
            }
            if let Some(at) = outcome.wake {
                self.wakes.insert((at, id.0.clone(), id.1.clone()), ());
            }
            let expect =
                self.revisions.get(&key).map_or(Expect::Absent, |revision| Expect::Revision(*revision));
            let change = match outcome.action {
                Action::Nothing => continue,
                Action::Put(resource) => Change::Put { resource: *resource, expect },
                Action::Delete(key) => Change::Delete { key, expect },
            };
            match self.store.write(&Author::system(), vec![change]).await {
                // Somebody else has written it: their change arrives, and it is looked at again then.
                Ok(_) | Err(WriteError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::error!(%error, %key, "a MeshService could not be written; it is tried again");
                    let retry = self.retry.get_or_insert_with(|| (Instant::now() + RETRY, BTreeSet::new()));
                    retry.1.insert(id);
                }
            }
        }
    }

    fn publish_tokens(&self) {
        self.seen.verifier.store(Arc::new(self.tokens.verifier()));
        self.seen.tokens.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Conditions of Dataplanes, and resources that can't be acted on.
    fn report(&self) {
        let mut conditions: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
        let mut rejects: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
        let generated = self.conditions.values().flatten().cloned();
        for (key, reason) in generated.chain(self.audiences.problems()) {
            let own = key.kind == Dataplane::KIND && key.zone == self.zone;
            let to = if own { &mut conditions } else { &mut rejects };
            to.entry(key).or_default().insert(reason);
        }
        for (key, reason) in &self.unreadable {
            rejects.entry(key.clone()).or_default().insert(reason.clone());
        }
        self.reports.set_bundles(self.bundles.clone());
        self.reports.set_conditions(conditions);
        self.reports.set_rejects(rejects);
    }
}

/// The virtual addresses as the store has them.
pub(crate) async fn stored_vips(store: &Store) -> Result<VipTable, ReadError> {
    let rows = store.private_list(VIPS).await?;
    Ok(VipTable::load(rows.into_iter().filter_map(|(_, row)| serde_json::from_slice::<Row>(&row).ok())))
}

fn put_private<T: serde::Serialize>(bucket: &str, key: &str, value: &T) -> Change {
    let value = serde_json::to_vec(value).unwrap_or_default();
    Change::PutPrivate { bucket: bucket.to_owned(), key: key.to_owned(), value }
}

fn facts_name(key: &Key) -> String {
    format!("{}/{}/{}", key.kind, key.mesh, key.name)
}

fn facts_key(zone: &str, name: &str) -> Option<Key> {
    let mut parts = name.splitn(3, '/');
    let (kind, mesh, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Key::new(meridian_core::Kind::named(kind)?, mesh, zone, name))
}

/// A key may occur once in a write: of several changes the last counts.
fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    let id = |change: &Change| match change {
        Change::Put { resource, .. } => resource.key.to_string(),
        Change::Delete { key, .. } => key.to_string(),
        Change::PutPrivate { bucket, key, .. }
        | Change::SwapPrivate { bucket, key, .. }
        | Change::DeletePrivate { bucket, key } => format!("{bucket}\n{key}"),
    };
    let mut last: BTreeMap<String, Change> = BTreeMap::new();
    for change in changes {
        last.insert(id(&change), change);
    }
    last.into_values().collect()
}

fn unix_now() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0)
}
