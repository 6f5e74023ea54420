//! For tests: a worker on the test's own thread, and the configuration that it follows.

use crate::{
    denial::Reason,
    resolve::Resolver,
    shared::Shared,
    snapshot::{Resources, compile},
    worker::Worker,
};
use meridian_delta::{Encoded, Id};
use meridian_proxy_config::{DnsSettings, Proxy, Role, Unlisted};
use std::{pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::{task::LocalSet, time::timeout};

/// Longer than anything takes, unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// The sidecar `web-1` of zone `east`: what a test says of a proxy without a word of its own.
pub(crate) fn proxy() -> Proxy {
    Proxy {
        role: Role::Sidecar,
        mesh: "default".into(),
        name: "web-1".into(),
        zone: "east".into(),
        service: "web".into(),
        listen: None,
        identities: vec![],
        sessions: Default::default(),
        capture: None,
        dns: DnsSettings { listen_port: None, forward_zones: vec![], forward_all: false, ipv6: false },
        unlisted: Unlisted::Refuse,
        detect_timeout_millis: 300,
        max_config_age_seconds: None,
        protected: vec![],
        tags: Default::default(),
    }
}

pub(crate) struct Rig {
    pub(crate) worker: Rc<Worker>,
    resources: Resources,
}

impl Rig {
    pub(crate) fn new(resolver: Resolver) -> Self {
        let worker = Worker::new(0, Arc::new(Shared::new(1, resolver)));
        Self { worker, resources: Resources::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.worker.shared
    }

    pub(crate) fn put<T: serde::Serialize>(&mut self, kind: &str, name: &str, value: &T) {
        let encoded = Encoded::new(kind, name, serde_json::to_vec(value).unwrap()).unwrap();
        self.resources.upsert(&self.worker.shared.tls, &encoded).unwrap();
    }

    pub(crate) fn remove(&mut self, kind: &str, name: &str) {
        self.resources.remove(&self.worker.shared.tls, &Id::new(kind, name));
    }

    /// What a worker's loop does for a new configuration.
    pub(crate) fn publish(&self) {
        let shared = &self.worker.shared;
        let next = compile(&self.resources, &shared.snapshots.load(), &shared.metrics);
        shared.snapshots.publish(next);
        self.worker.connections().recheck(&self.worker.snapshot(), &shared.tls);
    }

    /// (caller, destination, reason) of what was refused.
    pub(crate) fn denials(&self) -> Vec<(String, String, String)> {
        let report = self.worker.shared.denials.snapshot();
        report.denials.into_iter().map(|row| (row.caller, row.destination, row.reason)).collect()
    }

    pub(crate) fn refused(&self, caller: &str, destination: &str, reason: &Reason) -> bool {
        let row = (caller.to_owned(), destination.to_owned(), reason.to_string());
        self.denials().contains(&row)
    }
}

/// Runs a test where tasks may stay on their thread.
pub(crate) fn local<'a>(test: impl Future<Output = ()> + 'a) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(async move { LocalSet::new().run_until(test).await })
}

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

/// Waits for something that another task is about to do.
pub(crate) async fn until(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    let holds = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(DEADLINE, holds).await.is_ok(), "{}", what());
}
