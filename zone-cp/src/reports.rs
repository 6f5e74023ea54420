//! What the zone says of its proxies and of itself, to its own API and to global: who is there, how far each is, what
//! they refused, what could not be acted on. Gathered as it comes, sent at most once a second, and only what changed.

use crate::outgoing::Outgoing;
use crate::presence::StreamId;
use meridian_api::report::{ProxyOverview, Rejected, ZoneReject, types};
use meridian_core::Key;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_delta::Peer;
use meridian_proxy_config::types::BUNDLE;
use meridian_proxy_config::{Denial, DenialReport, ProxyStatus};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Reports go to global at most this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// All reports of the zone. Clones are the same.
#[derive(Clone)]
pub(crate) struct Reports(Arc<Inner>);

struct Inner {
    outgoing: Outgoing,
    state: Mutex<State>,
    dirty: Notify,
}

#[derive(Default)]
struct State {
    proxies: BTreeMap<Key, Proxy>,
    /// The stream that publishes to a proxy, now or last. Often it is there before the proxy has registered.
    peers: HashMap<Key, (StreamId, Peer)>,
    conditions: BTreeMap<Key, BTreeSet<String>>,
    rejects: BTreeMap<Key, BTreeSet<String>>,
    /// Of proxies that are gone.
    retained: HashMap<DenialKey, Denial>,
    retained_overflow: u64,
    /// To be sent.
    changed: BTreeSet<Key>,
    denials_changed: bool,
    rejects_changed: bool,
    sent_rejects: BTreeSet<String>,
    bundles: Bundles,
}

/// By mesh: the revision at which proxies were given the newest bundle, and its roots (hashes of their keys).
pub(crate) type Bundles = BTreeMap<String, (u64, Vec<String>)>;

#[derive(Default)]
struct Proxy {
    online: bool,
    connected_at: Option<OffsetDateTime>,
    disconnected_at: Option<OffsetDateTime>,
    status: Option<ProxyStatus>,
    denials: DenialReport,
    /// By mesh: roots of the newest bundle that it has acknowledged.
    trusted_roots: BTreeMap<String, Vec<String>>,
}

type DenialKey = (String, String, String, u16, String, String, String);

impl Reports {
    pub(crate) fn new(outgoing: Outgoing) -> Self {
        Self(Arc::new(Inner { outgoing, state: Mutex::default(), dirty: Notify::new() }))
    }

    /// A proxy that the store knows, from before this process.
    pub(crate) fn expect(&self, key: &Key) {
        self.change(|state| {
            state.proxies.entry(key.clone()).or_default();
            state.changed.insert(key.clone());
        });
    }

    pub(crate) fn opened(&self, key: &Key) {
        self.change(|state| {
            let proxy = state.proxies.entry(key.clone()).or_default();
            proxy.online = true;
            proxy.connected_at = Some(OffsetDateTime::now_utc());
            proxy.disconnected_at = None;
            acknowledge(state, key);
            state.changed.insert(key.clone());
        });
    }

    pub(crate) fn closed(&self, key: &Key) {
        self.known_proxy(key, |proxy| {
            proxy.online = false;
            proxy.disconnected_at = Some(OffsetDateTime::now_utc());
        });
    }

    pub(crate) fn gone(&self, key: &Key) {
        self.change(|state| {
            if let Some(proxy) = state.proxies.remove(key) {
                for denial in proxy.denials.denials {
                    merge(&mut state.retained, denial);
                }
                state.retained_overflow += proxy.denials.overflow;
                bound(&mut state.retained, &mut state.retained_overflow);
            }
            if state.peers.get(key).is_some_and(|(_, peer)| !peer.state().connected) {
                state.peers.remove(key);
            }
            state.changed.insert(key.clone());
        });
    }

    pub(crate) fn status(&self, key: &Key, status: ProxyStatus) {
        self.known_proxy(key, |proxy| proxy.status = Some(status));
    }

    pub(crate) fn denials(&self, key: &Key, report: DenialReport) {
        self.known_proxy(key, |proxy| proxy.denials = report);
        self.change(|state| state.denials_changed = true);
    }

    /// The stream that publishes to a proxy: its state is shown from now on.
    pub(crate) fn follows(&self, key: &Key, stream: StreamId, peer: Peer) {
        self.change(|state| {
            state.peers.insert(key.clone(), (stream, peer));
            state.changed.insert(key.clone());
        });
    }

    /// That stream has ended. How far a registered proxy came stays to be seen.
    pub(crate) fn unfollows(&self, key: &Key, stream: StreamId) {
        self.change(|state| {
            let ended = state.peers.get(key).is_some_and(|(newest, _)| *newest == stream);
            if ended && !state.proxies.contains_key(key) {
                state.peers.remove(key);
            }
            state.changed.insert(key.clone());
        });
    }

    /// The state of a proxy's stream has changed.
    pub(crate) fn moved(&self, key: &Key) {
        self.change(|state| {
            acknowledge(state, key);
            state.changed.insert(key.clone());
        });
    }

    pub(crate) fn set_conditions(&self, conditions: BTreeMap<Key, BTreeSet<String>>) {
        self.change(|state| {
            let keys: BTreeSet<&Key> = state.conditions.keys().chain(conditions.keys()).collect();
            let differ = keys.into_iter().filter(|key| state.conditions.get(key) != conditions.get(key));
            let differ: Vec<Key> = differ.cloned().collect();
            state.changed.extend(differ);
            state.conditions = conditions;
        });
    }

    pub(crate) fn set_rejects(&self, rejects: BTreeMap<Key, BTreeSet<String>>) {
        self.change(|state| {
            state.rejects_changed |= state.rejects != rejects;
            state.rejects = rejects;
        });
    }

    pub(crate) fn overviews(&self) -> Vec<ProxyOverview> {
        let state = self.state();
        let all = state.proxies.iter().map(|(key, proxy)| overview(key, proxy, &state));
        all.collect()
    }

    /// New bundles were put into the proxies' views.
    pub(crate) fn set_bundles(&self, bundles: Bundles) {
        self.change(|state| {
            if state.bundles != bundles {
                state.changed.extend(state.proxies.keys().cloned());
                state.bundles = bundles;
                let all: Vec<Key> = state.proxies.keys().cloned().collect();
                all.iter().for_each(|key| acknowledge(state, key));
            }
        });
    }

    pub(crate) fn all_denials(&self) -> DenialReport {
        summed(&self.state())
    }

    pub(crate) fn all_rejects(&self) -> Vec<ZoneReject> {
        rejects(&self.state())
    }

    /// Sends what changed, until `shutdown`.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        loop {
            let next = async {
                self.0.dirty.notified().await;
            };
            if shutdown.run_until_cancelled(next).await.is_none() {
                return;
            }
            self.send();
            if shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    fn send(&self) {
        let mut state = self.state();
        for key in std::mem::take(&mut state.changed) {
            let name = format!("{}/{}/{}", key.kind, key.mesh, key.name);
            let body = state.proxies.get(&key).map(|proxy| json(&overview(&key, proxy, &state)));
            self.0.outgoing.report(types::PROXY, &name, body);
        }
        if std::mem::take(&mut state.denials_changed) {
            self.0.outgoing.report(types::DENIALS, "self", Some(json(&summed(&state))));
        }
        if std::mem::take(&mut state.rejects_changed) {
            let now = rejects(&state);
            let names: BTreeSet<String> = now.iter().map(ZoneReject::wire_name).collect();
            for gone in state.sent_rejects.difference(&names) {
                self.0.outgoing.report(types::REJECT, gone, None);
            }
            for reject in &now {
                self.0.outgoing.report(types::REJECT, &reject.wire_name(), Some(json(reject)));
            }
            state.sent_rejects = names;
        }
    }

    /// Nothing for one that is gone already.
    fn known_proxy(&self, key: &Key, change: impl FnOnce(&mut Proxy)) {
        self.change(|state| {
            if let Some(proxy) = state.proxies.get_mut(key) {
                change(proxy);
                state.changed.insert(key.clone());
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.dirty.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy that has applied everything up to a bundle's revision, and not refused it, believes its roots.
fn acknowledge(state: &mut State, key: &Key) {
    let State { proxies, peers, bundles, .. } = state;
    let (Some(proxy), Some((_, peer))) = (proxies.get_mut(key), peers.get(key)) else { return };
    let peer = peer.state();
    let has = |mesh: &str| match key.kind {
        Dataplane::KIND => key.mesh == mesh,
        ZoneEgress::KIND => true,
        _ => false,
    };
    for (mesh, (revision, roots)) in bundles.iter().filter(|(mesh, _)| has(mesh)) {
        let refused = peer.rejected.iter().any(|it| *it.id.type_ == *BUNDLE && *it.id.name == **mesh);
        if peer.revision.is_some_and(|reached| reached.0 >= *revision) && !refused {
            proxy.trusted_roots.insert(mesh.clone(), roots.clone());
        }
    }
    proxy.trusted_roots.retain(|mesh, _| bundles.contains_key(mesh));
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn overview(key: &Key, proxy: &Proxy, state: &State) -> ProxyOverview {
    let peer = state.peers.get(key).map(|(_, peer)| peer.state()).unwrap_or_default();
    let text = |at: Option<OffsetDateTime>| at.and_then(|at| at.format(&Rfc3339).ok());
    let rejected = |it: &meridian_delta::Rejected| Rejected {
        type_: it.id.type_.to_string(),
        name: it.id.name.to_string(),
        reason: it.reason.clone(),
    };
    ProxyOverview {
        kind: key.kind.to_string(),
        mesh: key.mesh.clone(),
        name: key.name.clone(),
        online: proxy.online,
        connected_at: text(proxy.connected_at),
        disconnected_at: text(proxy.disconnected_at),
        revision: peer.revision.map_or(0, |revision| revision.0),
        behind_millis: peer.behind_millis(Instant::now()).unwrap_or(0),
        rejected: peer.rejected.iter().map(rejected).collect(),
        trusted_roots: proxy.trusted_roots.clone(),
        conditions: state.conditions.get(key).into_iter().flatten().cloned().collect(),
        status: proxy.status.clone(),
    }
}

fn rejects(state: &State) -> Vec<ZoneReject> {
    let one = |(key, reasons): (&Key, &BTreeSet<String>)| ZoneReject {
        kind: key.kind.to_string(),
        mesh: key.mesh.clone(),
        name: key.name.clone(),
        reason: reasons.iter().cloned().collect::<Vec<_>>().join("; "),
    };
    state.rejects.iter().map(one).collect()
}

/// One row a (mesh, caller, destination, port, reason, rule, who refused); the newest are kept.
fn summed(state: &State) -> DenialReport {
    let mut rows = state.retained.clone();
    let mut overflow = state.retained_overflow;
    for proxy in state.proxies.values() {
        for denial in &proxy.denials.denials {
            merge(&mut rows, denial.clone());
        }
        overflow += proxy.denials.overflow;
    }
    let mut denials: Vec<Denial> = rows.into_values().collect();
    denials.sort_by(|one, two| two.last.cmp(&one.last).then_with(|| id(one).cmp(&id(two))));
    for over in denials.split_off(denials.len().min(DenialReport::MAX_ROWS)) {
        overflow += over.count;
    }
    DenialReport { denials, overflow }
}

/// Names in reports are the refused caller's to choose: what is kept of them is bounded.
fn bound(rows: &mut HashMap<DenialKey, Denial>, overflow: &mut u64) {
    if rows.len() > DenialReport::MAX_ROWS {
        let mut all: Vec<Denial> = rows.drain().map(|(_, denial)| denial).collect();
        all.sort_by(|one, two| two.last.cmp(&one.last));
        for over in all.split_off(DenialReport::MAX_ROWS) {
            *overflow += over.count;
        }
        rows.extend(all.into_iter().map(|denial| (id(&denial), denial)));
    }
}

fn merge(rows: &mut HashMap<DenialKey, Denial>, denial: Denial) {
    if let Some(there) = rows.get_mut(&id(&denial)) {
        there.count += denial.count;
        there.last = denial.last.max(std::mem::take(&mut there.last));
    } else {
        rows.insert(id(&denial), denial);
    }
}

fn id(denial: &Denial) -> DenialKey {
    let Denial { mesh, caller, destination, port, reason, rule, by, .. } = denial.clone();
    (mesh, caller, destination, port, reason, rule, by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(destination: &str, count: u64, last: &str) -> Denial {
        Denial {
            mesh: "default".into(),
            caller: "web".into(),
            destination: destination.into(),
            port: 443,
            reason: "not-listed".into(),
            rule: String::new(),
            count,
            last: last.into(),
            by: "sidecar web-1".into(),
        }
    }

    fn key(name: &str) -> Key {
        Key::new(Dataplane::KIND, "default", "east", name)
    }

    #[test]
    fn refusals_outlive_the_proxy_that_saw_them() {
        let reports = Reports::new(Outgoing::new("east"));
        reports.opened(&key("web-1"));
        let denials = vec![denial("evil.example", 2, "2026-01-01T00:00:00Z")];
        reports.denials(&key("web-1"), DenialReport { denials, overflow: 1 });
        reports.gone(&key("web-1"));
        reports.opened(&key("web-1"));
        let denials = vec![denial("evil.example", 3, "2026-01-02T00:00:00Z")];
        reports.denials(&key("web-1"), DenialReport { denials, overflow: 0 });
        let all = reports.all_denials();
        assert_eq!((all.denials.len(), all.denials[0].count, all.overflow), (1, 5, 1));
        assert_eq!(all.denials[0].last, "2026-01-02T00:00:00Z");
    }

    #[test]
    fn rows_are_bounded_and_the_rest_is_counted() {
        let reports = Reports::new(Outgoing::new("east"));
        reports.opened(&key("web-1"));
        let denials = (0..1_200).map(|n| denial(&format!("h{n}"), 1, &format!("{n:05}"))).collect();
        reports.denials(&key("web-1"), DenialReport { denials, overflow: 0 });
        let all = reports.all_denials();
        assert_eq!((all.denials.len(), all.overflow), (DenialReport::MAX_ROWS, 200));
        assert_eq!(all.denials[0].destination, "h1199");
    }

    #[test]
    fn online_is_what_the_stream_says() {
        let reports = Reports::new(Outgoing::new("east"));
        reports.expect(&key("web-1"));
        assert!(!reports.overviews()[0].online);
        reports.opened(&key("web-1"));
        assert!(reports.overviews()[0].online);
        reports.closed(&key("web-1"));
        let overview = reports.overviews().remove(0);
        assert!(!overview.online && overview.disconnected_at.is_some());
        reports.gone(&key("web-1"));
        assert!(reports.overviews().is_empty());
    }
}
