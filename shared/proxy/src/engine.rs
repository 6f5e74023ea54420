//! The engine: workers, and the configuration that they follow. Knows nothing of control planes or files.

use crate::{
    resolve::Resolver,
    shared::Shared,
    snapshot::{Resources, compile},
    worker::{self, OpenConnections},
};
use futures::future::{join_all, select_all};
use meridian_delta::{Encoded, Id, Rejected, Version};
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<worker::Handle>,
    resources: Mutex<Resources>,
    dns_port: Option<u16>,
}

impl Engine {
    /// Starts the workers; they listen on nothing before they have a configuration.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(workers: usize, resolver: Resolver) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(workers, resolver));
        let workers = (0..shared.workers)
            .map(|index| worker::start(index, shared.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self { shared, workers, resources: Mutex::default(), dns_port: None })
    }

    /// Answers names at this port, whatever the configuration says.
    #[must_use]
    pub fn answering_at(mut self, port: Option<u16>) -> Self {
        self.dns_port = port;
        self
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Takes resources in and publishes what they mean. What is not accepted is returned with the reason, and what it
    /// guards is refused; the rest applies.
    pub fn apply(&self, upserts: &[Arc<Encoded>], removals: &[Id]) -> Vec<Rejected> {
        let mut resources = self.resources();
        let rejected = self.take(&mut resources, upserts, removals);
        self.publish(&resources);
        rejected
    }

    /// Takes a part of something in, and publishes nothing: that is for the next [`Self::apply`] or [`Self::republish`].
    pub fn apply_part(&self, upserts: &[Arc<Encoded>], removals: &[Id]) -> Vec<Rejected> {
        self.take(&mut self.resources(), upserts, removals)
    }

    fn take(&self, resources: &mut Resources, upserts: &[Arc<Encoded>], removals: &[Id]) -> Vec<Rejected> {
        for id in removals {
            resources.remove(&self.shared.tls, id);
        }
        let mut rejected = Vec::new();
        for resource in upserts {
            if let Err(reason) = resources.upsert(&self.shared.tls, resource) {
                rejected.push(Rejected { id: resource.id(), version: resource.version, reason });
            }
        }
        rejected
    }

    /// Looks at every connection again: certificates or their validity changed, or parts came.
    pub fn republish(&self) {
        self.publish(&self.resources());
    }

    fn publish(&self, resources: &Resources) {
        let previous = self.shared.snapshots.load();
        let mut next = compile(resources, &previous, &self.shared.metrics);
        if let (Some(proxy), Some(port)) = (&mut next.proxy, self.dns_port) {
            Arc::make_mut(proxy).dns.listen_port = Some(port);
        }
        if let Some(proxy) = &next.proxy {
            self.shared.denials.set_by(&format!("{:?} {}", proxy.role, proxy.name).to_lowercase());
        }
        self.shared.snapshots.publish(next);
    }

    /// What is held, for a publisher to send only the difference.
    pub fn have(&self) -> Vec<(Id, Version)> {
        self.resources().have()
    }

    /// Everything that came, refused or not: what a restart needs to be where this process is.
    pub fn all(&self) -> Vec<Arc<Encoded>> {
        self.resources().all().cloned().collect()
    }

    /// What is not accepted, with the reason.
    pub fn refused(&self) -> Vec<(Id, String)> {
        self.resources().refused().map(|(resource, reason)| (resource.id(), reason.to_owned())).collect()
    }

    /// Meshes in which a certificate is needed.
    pub fn identities(&self) -> Vec<String> {
        self.resources().identities()
    }

    /// What is open, over all workers.
    pub async fn connections(&self) -> Vec<OpenConnections> {
        let mut all: Vec<_> = join_all(self.workers.iter().map(worker::Handle::connections))
            .await
            .into_iter()
            .flatten()
            .collect();
        all.sort_by(|a, b| a.info.cmp(&b.info));
        all
    }

    /// Takes nothing new from peers and lets what is open finish, for at most `limit`. Whether all finished.
    pub async fn drain(&self, limit: Duration) -> bool {
        let all = async {
            let waiting = join_all(self.workers.iter().map(worker::Handle::drain)).await;
            join_all(waiting).await
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// Resolves when a worker's thread has ended: fatal, as its connections are gone.
    pub async fn failed(&self) {
        select_all(self.workers.iter().map(|worker| Box::pin(worker.ended()))).await;
    }

    fn resources(&self) -> MutexGuard<'_, Resources> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
