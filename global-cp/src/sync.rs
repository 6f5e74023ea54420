//! The delta service of port 5685: who may open a stream for a zone, and what it is connected to.

use crate::sink::ZoneSink;
use crate::state::Global;
use crate::status;
use crate::trust::zone_key;
use crate::vault::{self, Clients};
use crate::zone_status::{Admission, ZoneStatus};
use crate::zones::{Credential, Stream, ZoneLink};
use meridian_api::report;
use meridian_core::kinds::token_key::TokenPurpose;
use meridian_delta::server::Connection;
use meridian_delta::stream::{Hello, Message, Opened, Outbound};
use meridian_delta::{PART, Publisher, Subscriber};
use meridian_pki::link::ZoneClient;
use meridian_proto::delta as wire;
use meridian_store::{Author, Change, Expect, WriteError};
use std::sync::Arc;
use time::OffsetDateTime;
use tonic::{Request, Response, Status, Streaming};

/// The service; one for all connections.
#[derive(Clone)]
pub(crate) struct SyncService(pub(crate) Arc<Global>);

/// A stream that was let in.
struct Admitted<M> {
    opened: Opened<M>,
    link: Arc<ZoneLink>,
    stream: Stream,
}

#[tonic::async_trait]
impl wire::sync_server::Sync for SyncService {
    type PullStream = Outbound<wire::PublisherMessage>;
    type PushStream = Outbound<wire::SubscriberMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<wire::SubscriberMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let Admitted { opened, link, stream } = self.admit(request).await?;
        let view = self.0.world().view(&link.zone);
        let types = meridian_core::kinds()
            .iter()
            .filter(|info| info.flow.global_to_zone || info.flow.across_zones)
            .map(|info| info.kind.as_str().into())
            .collect();
        let publisher = Publisher { view, types, part: PART, node: self.0.node(), peer: link.down.clone() };
        let (response, task) = publisher.answer(opened, stream.closing.clone());
        tokio::spawn(async move {
            let end = task.await;
            tracing::info!(zone = link.zone, ?end, "the stream to the zone ended");
            drop(stream);
            link.changed.notify_one();
        });
        Ok(response)
    }

    async fn push(
        &self,
        request: Request<Streaming<wire::PublisherMessage>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let Admitted { opened, link, stream } = self.admit(request).await?;
        // One stream at a time writes for a zone.
        let mut pushing = link.pushing.lock().await;
        if let Some((closing, task)) = pushing.take() {
            closing.cancel();
            let _ = task.await;
        }
        let node = opened.hello.node.clone();
        if node.take_over
            && let Some(position) = opened.hello.position
        {
            // The operator has said that this process, with this store, is the zone.
            link.control.accept(position.store);
        }
        let types = meridian_core::kinds()
            .iter()
            .filter(|info| info.flow.zone_to_global)
            .map(|info| info.kind.as_str())
            .chain(report::types::ALL)
            .map(Into::into)
            .collect();
        let subscriber = Subscriber {
            sink: ZoneSink::new(Arc::clone(&self.0), Arc::clone(&link), node.instance),
            types,
            node: self.0.node(),
            peer: link.up.clone(),
            control: link.control.clone(),
        };
        let closing = stream.closing.clone();
        let (response, task) = subscriber.answer(opened, closing.clone());
        let of_task = Arc::clone(&link);
        let task = tokio::spawn(async move {
            let end = task.await;
            tracing::info!(zone = of_task.zone, ?end, "the stream from the zone ended");
            drop(stream);
            of_task.changed.notify_one();
        });
        *pushing = Some((closing, task));
        Ok(response)
    }
}

impl SyncService {
    /// Who is there, whether its certificate still counts, and whether its process is the one that speaks for the zone.
    async fn admit<M: Message>(&self, request: Request<Streaming<M>>) -> Result<Admitted<M>, Status>
    where
        Streaming<M>: futures::Stream<Item = Result<M, Status>>,
    {
        let connection =
            Connection::of(&request).cloned().ok_or_else(|| Status::internal("no connection"))?;
        let (client, credential) = authenticate(&self.0, &connection).await?;
        let opened = Opened::read(request.into_inner()).await?;
        let Hello { node, .. } = &opened.hello;
        if node.name != client.zone {
            return Err(Status::permission_denied(format!(
                "the certificate is zone {}'s, the stream is said to be {:?}'s",
                client.zone, node.name
            )));
        }
        let address = connection.peer.to_string();
        self.take_session(&client.zone, node, &address).await?;
        let link = self.0.zones.link(&client.zone);
        let stream = link.enter(node, &address, credential, &connection.closing);
        // It may have been with another replica since: what this one wrote last need not be what stands.
        self.0.store.claim_status(&client.zone);
        status::watch(&self.0, &link);
        link.changed.notify_one();
        Ok(Admitted { opened, link, stream })
    }

    /// Makes the process the zone's, unless another one is.
    async fn take_session(
        &self,
        zone: &str,
        node: &meridian_delta::Node,
        address: &str,
    ) -> Result<(), Status> {
        for _ in 0..8 {
            let stored = self.0.store.get(&zone_key(zone)).await.map_err(unavailable)?;
            let stored = stored.ok_or_else(|| {
                Status::permission_denied(format!("there is no zone {zone}: it was deleted"))
            })?;
            let mut state = ZoneStatus::of(&stored.resource);
            if state.is_revoked() {
                return Err(Status::permission_denied(format!(
                    "zone {zone} is revoked: enrol it with a new token"
                )));
            }
            let held = state.session.as_ref().map(|session| session.instance.clone());
            let live = match &held {
                Some(instance) => status::is_live(&self.0, zone, instance).await.map_err(unavailable)?,
                None => false,
            };
            match state.admit(node, address, live) {
                Admission::Same => return Ok(()),
                Admission::Refused(why) => return Err(Status::already_exists(why)),
                Admission::Takes(session) => state.session = Some(session),
            }
            let mut resource = stored.resource;
            resource.status = Some(serde_json::json!(state));
            let changes = vec![
                Change::Put { resource, expect: Expect::Revision(stored.revision) },
                Change::PutPrivate {
                    bucket: vault::FENCES.to_owned(),
                    key: zone.to_owned(),
                    value: node.instance.clone().into_bytes(),
                },
            ];
            match self.0.store.write(&Author::new(format!("zone:{zone}"), "sync"), changes).await {
                Ok(_) => {
                    tracing::info!(zone, instance = node.instance, from = address, "the zone's process");
                    return Ok(());
                }
                // Somebody changed the Zone meanwhile: look again.
                Err(WriteError::Conflict { .. }) => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
        Err(Status::unavailable("the Zone changes too often; try again"))
    }
}

/// The zone behind a connection's certificate. It must be one that was given out and not taken back since.
pub(crate) async fn authenticate(
    global: &Global,
    connection: &Connection,
) -> Result<(ZoneClient, Credential), Status> {
    let now = OffsetDateTime::now_utc();
    if connection.certificates.is_empty() {
        return Err(Status::unauthenticated(
            "a zone's client certificate is needed: enrol with a zone token",
        ));
    }
    let client = global
        .zone_clients
        .verify(&connection.certificates, now)
        .map_err(|error| Status::unauthenticated(error.to_string()))?;
    let clients: Clients = vault::read(&global.store, vault::CLIENTS, &client.zone)
        .await
        .map_err(unavailable)?
        .unwrap_or_default();
    let known = clients.find(&client.key, now).ok_or_else(|| {
        Status::unauthenticated(format!(
            "the certificate of zone {} counts no longer (revoked, or replaced): enrol again",
            client.zone
        ))
    })?;
    let credential = Credential { key: known.key.clone(), token: known.token.clone() };
    if global.world().is_revoked(TokenPurpose::Zone, &credential.token) {
        return Err(Status::unauthenticated("the token by which the zone was enrolled is revoked"));
    }
    Ok((client, credential))
}

/// The store does not answer: not the caller's fault, and worth another try.
pub(crate) fn unavailable(error: impl Into<anyhow::Error>) -> Status {
    let error: anyhow::Error = error.into();
    tracing::warn!(error = format!("{error:#}"), "a call could not be served");
    Status::unavailable("the control plane can't serve this now; its log tells more")
}
