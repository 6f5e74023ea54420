//! What one proxy says, over one stream: itself, how it is, what it refused.

use super::{Proxies, own_name};
use crate::claims::Subject;
use crate::engine::Command;
use crate::picture::Facts;
use crate::presence::StreamId;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_core::{Key, Resource, document, labels};
use meridian_delta::{Batch, Encoded, Id, Rejected, Resume, Sink, SinkError};
use meridian_proxy_config::{DenialReport, ProxyStatus, report_types};
use meridian_store::{Author, Change, Expect};
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Takes in what one proxy says.
pub(super) struct ProxySink {
    pub(super) proxies: Proxies,
    pub(super) key: Key,
    pub(super) subject: Subject,
    pub(super) stream: StreamId,
    pub(super) epoch: u64,
    pub(super) cut: CancellationToken,
}

impl Sink for ProxySink {
    /// Everything anew: it is three small resources.
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        Ok(Resume::default())
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        let mut rejected = Vec::new();
        // The proxy itself before what it reports, which needs it.
        let (own, reports): (Vec<_>, Vec<_>) =
            batch.upserts.into_iter().partition(|it| *it.type_ == *self.key.kind.as_str());
        for resource in own.into_iter().chain(reports) {
            if let Err(reason) = self.take(&resource).await? {
                tracing::warn!(key = %self.key, type_ = %resource.type_, reason, "refused what the proxy says");
                rejected.push(Rejected { id: resource.id(), version: resource.version, reason });
            }
        }
        for id in batch.removals.iter().filter(|id| self.is_own(id)) {
            tracing::info!(key = %self.key, %id, "the proxy takes itself away");
            self.proxies.presence().forget(&self.key);
            self.proxies.leave(self.key.clone()).await;
        }
        Ok(rejected)
    }
}

impl ProxySink {
    fn is_own(&self, id: &Id) -> bool {
        *id.type_ == *self.key.kind.as_str() && *id.name == *own_name(&self.key)
    }

    /// The inner error is the proxy's, with its reason; the outer one is ours.
    async fn take(&self, resource: &Arc<Encoded>) -> Result<Result<(), String>, SinkError> {
        let known = self.proxies.presence().is_held_by(&self.key, self.stream);
        match &*resource.type_ {
            _ if self.is_own(&resource.id()) => self.register(resource).await,
            report_types::STATUS | report_types::DENIALS if !known => {
                Ok(Err(format!("{} is not registered over this stream", self.key)))
            }
            report_types::STATUS => match serde_json::from_slice::<ProxyStatus>(&resource.body) {
                Ok(status) => Ok(Ok(self.status(status).await?)),
                Err(error) => Ok(Err(error.to_string())),
            },
            report_types::DENIALS => match serde_json::from_slice::<DenialReport>(&resource.body) {
                Ok(report) => {
                    self.proxies.0.reports.denials(&self.key, report);
                    Ok(Ok(()))
                }
                Err(error) => Ok(Err(error.to_string())),
            },
            said => Ok(Err(format!("the token makes this the {}: it is for no {said}", self.key))),
        }
    }

    async fn register(&self, encoded: &Encoded) -> Result<Result<(), String>, SinkError> {
        let proxies = &self.proxies;
        let resource = match self.accept(encoded) {
            Ok(resource) => resource,
            Err(reason) => return Ok(Err(reason)),
        };
        let _writing = proxies.0.writing.lock().await;
        let seated = proxies.presence().register(&self.key, &self.subject, self.stream, self.epoch);
        let seated = match seated {
            Ok(seated) => seated,
            Err(refused) => return Ok(Err(refused.to_string())),
        };
        if let Some(replaced) = seated.replaced
            && let Some(live) = proxies.streams().get(&replaced)
        {
            live.cut.cancel();
        }
        let author = Author::new(format!("proxy {}", own_name(&self.key)), "proxy");
        let change = Change::Put { resource, expect: Expect::Any };
        if let Err(error) = proxies.0.store.write(&author, vec![change]).await {
            proxies.presence().stream_ended(&self.key, self.stream, false, Instant::now());
            proxies.0.deadlines.notify_one();
            return Err(error.into());
        }
        proxies.0.reports.opened(&self.key);
        if self.key.kind == Dataplane::KIND {
            proxies.0.commands.send(Command::Facts { key: self.key.clone(), facts: None }).await?;
        }
        if self.cut.is_cancelled() {
            return Ok(Err("the stream was cut".to_owned()));
        }
        tracing::info!(key = %self.key, subject = %self.subject, "the proxy is registered");
        Ok(Ok(()))
    }

    /// The resource as the zone keeps it, if the token allows it and it is valid.
    fn accept(&self, encoded: &Encoded) -> Result<Resource, String> {
        let zone = &self.proxies.0.zone;
        let mut resource = Resource::from_canonical(self.key.clone(), &encoded.body)
            .map_err(|error| format!("{error}: {}", error.source))?;
        resource.status = None;
        for label in [labels::DISPLAY_NAME, labels::ZONE, labels::ORIGIN, labels::MESH] {
            resource.labels.remove(label);
        }
        let checked = document::check_resource(&resource).map_err(|problem| {
            let violations = problem.violations.iter().map(ToString::to_string);
            violations.collect::<Vec<_>>().join("; ")
        })?;
        resource.spec = checked.spec;
        let allowed = self.subject.may_register(zone, &resource, self.proxies.0.allow_unbound);
        allowed.map_err(|denied| denied.to_string())?;
        in_zone(zone, &mut resource)?;
        Ok(resource)
    }

    async fn status(&self, status: ProxyStatus) -> Result<(), SinkError> {
        if self.key.kind == Dataplane::KIND {
            let now = OffsetDateTime::now_utc();
            let holds = |expires: &str| {
                let parsed = OffsetDateTime::parse(expires, &time::format_description::well_known::Rfc3339);
                parsed.is_ok_and(|expires| expires > now)
            };
            let ready =
                status.inbounds.iter().filter(|inbound| inbound.ready).map(|inbound| inbound.name.clone());
            let certified =
                status.certificates.iter().filter(|it| holds(&it.expires)).map(|it| it.mesh.clone());
            let facts = Facts { ready: ready.collect(), certified: certified.collect() };
            self.proxies
                .0
                .commands
                .send(Command::Facts { key: self.key.clone(), facts: Some(facts) })
                .await?;
        }
        self.proxies.0.reports.status(&self.key, status);
        Ok(())
    }
}

/// What the zone itself says of a proxy's resource, whatever the proxy said.
fn in_zone(zone: &str, resource: &mut Resource) -> Result<(), String> {
    let key = resource.key.clone();
    resource.labels = labels::computed(&key, zone, &resource.labels);
    let text = |error: meridian_core::ParseError| format!("{error}: {}", error.source);
    match key.kind {
        Dataplane::KIND => {
            let mut spec: Dataplane = resource.parse().map_err(text)?;
            let networking = spec.networking.iter_mut();
            for inbound in networking.flat_map(|networking| &mut networking.inbound) {
                inbound.tags.insert(labels::ZONE.to_owned(), zone.to_owned());
            }
            *resource = Resource::of(key, std::mem::take(&mut resource.labels), &spec);
        }
        ZoneIngress::KIND => {
            let spec = ZoneIngress { zone: zone.to_owned(), ..resource.parse().map_err(text)? };
            *resource = Resource::of(key, std::mem::take(&mut resource.labels), &spec);
        }
        _ => {
            let spec = ZoneEgress { zone: zone.to_owned(), ..resource.parse().map_err(text)? };
            *resource = Resource::of(key, std::mem::take(&mut resource.labels), &spec);
        }
    }
    Ok(())
}
