//! Service probes: whether the application takes TCP connections, inbound by inbound.

use super::Control;
use meridian_proxy_config::Inbound;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};

/// What the probes found.
pub(super) struct Probes {
    ready: Mutex<BTreeMap<String, bool>>,
    changed: watch::Sender<u64>,
}

impl Default for Probes {
    fn default() -> Self {
        Self { ready: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Probes {
    /// Whether an inbound's application is there: as probed, or true for one that has no probe.
    pub(super) fn ready(&self, inbound: &Inbound) -> bool {
        let probed = self.ready.lock().unwrap_or_else(PoisonError::into_inner).get(&inbound.name).copied();
        probed.unwrap_or(inbound.probe.is_none())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn set(&self, name: &str, ready: bool) {
        let before = self.ready.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), ready);
        if before != Some(ready) {
            tracing::info!(inbound = name, ready, "service probe");
            self.changed.send_modify(|count| *count += 1);
        }
    }

    fn keep(&self, wanted: &[Arc<Inbound>]) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|name, _| wanted.iter().any(|inbound| inbound.name == *name));
    }
}

/// Probes what the configuration wants probed, until dropped.
pub(super) async fn run(control: Arc<Control>) {
    let mut changes = control.engine.shared().snapshots.subscribe();
    let mut running = JoinSet::new();
    let mut probed: Vec<Arc<Inbound>> = Vec::new();
    loop {
        let snapshot = control.engine.shared().snapshots.load();
        let inbounds = snapshot.inbounds.values().map(|inbound| inbound.config.clone());
        let wanted: Vec<_> = inbounds.filter(|inbound| inbound.probe.is_some()).collect();
        if wanted != probed {
            running.abort_all();
            control.probes.keep(&wanted);
            for inbound in &wanted {
                running.spawn(probe(control.clone(), inbound.clone()));
            }
            probed = wanted;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn probe(control: Arc<Control>, inbound: Arc<Inbound>) {
    let Some(probe) = &inbound.probe else { return };
    let limit = Duration::from_millis(probe.timeout_millis.max(1));
    let interval = Duration::from_millis(probe.interval_millis.max(100));
    let (mut good, mut bad) = (0u32, 0u32);
    let mut first = true;
    loop {
        let connected = tokio::time::timeout(limit, TcpStream::connect(inbound.application)).await;
        if matches!(connected, Ok(Ok(_))) {
            (good, bad) = (good.saturating_add(1), 0);
        } else {
            (good, bad) = (0, bad.saturating_add(1));
        }
        // The first answer counts whatever the thresholds are: there is nothing to weigh it against.
        if good >= probe.healthy_threshold.max(1) || (first && good > 0) {
            control.probes.set(&inbound.name, true);
        } else if bad >= probe.unhealthy_threshold.max(1) || (first && bad > 0) {
            control.probes.set(&inbound.name, false);
        }
        first = false;
        tokio::time::sleep(interval).await;
    }
}
