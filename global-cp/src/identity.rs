//! The identity service of port 5685: a zone's first contact, its client certificates, and its intermediates.

use crate::state::Global;
use crate::sync::{authenticate, unavailable};
use crate::tokens;
use crate::trust::{self, rfc3339, zone_key};
use crate::vault::{self, Client, Clients, Cutoff, Intermediate};
use crate::zone_status::ZoneStatus;
use meridian_auth::{Verified, ZoneClaims, ZoneScope};
use meridian_core::kinds::zone::Zone;
use meridian_core::{Resource, labels};
use meridian_delta::server::Connection;
use meridian_pki::Issued;
use meridian_proto::identity as wire;
use meridian_store::{Author, Change, Expect, WriteError};
use std::sync::Arc;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

/// The service; one for all connections.
#[derive(Clone)]
pub(crate) struct IdentityService(pub(crate) Arc<Global>);

/// By what somebody enrols.
enum Caller {
    /// A zone token, made then.
    Token { id: String, made: OffsetDateTime },
    /// The zone's present certificate.
    Certificate { token: String },
}

impl Caller {
    fn token(&self) -> &str {
        match self {
            Self::Token { id, .. } | Self::Certificate { token: id } => id,
        }
    }
}

#[tonic::async_trait]
impl wire::zone_identity_server::ZoneIdentity for IdentityService {
    async fn enroll(
        &self,
        request: Request<wire::EnrollRequest>,
    ) -> Result<Response<wire::Certificate>, Status> {
        let caller = self.caller(&request).await?;
        let wire::EnrollRequest { zone, csr, take_over } = request.into_inner();
        let now = OffsetDateTime::now_utc();
        let issued = self
            .0
            .zone_ca
            .sign_client(&csr, &zone, now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        for _ in 0..8 {
            let changes = self.enrolment(&zone, &caller, &issued, take_over, now).await?;
            match self.0.store.write(&Author::new(format!("zone:{zone}"), "sync"), changes).await {
                Ok(_) => {
                    tracing::info!(zone, key = %issued.key, until = %issued.not_after, "enrolled");
                    let chain = issued.chain.iter().map(|certificate| certificate.to_vec()).collect();
                    return Ok(Response::new(wire::Certificate {
                        chain,
                        roots: self.0.server.roots.clone(),
                    }));
                }
                Err(WriteError::Conflict { .. } | WriteError::PrivateConflict { .. }) => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
        Err(Status::unavailable("the Zone changes too often; try again"))
    }

    async fn sign_intermediate(
        &self,
        request: Request<wire::SignIntermediateRequest>,
    ) -> Result<Response<wire::Certificate>, Status> {
        let connection =
            Connection::of(&request).cloned().ok_or_else(|| Status::internal("no connection"))?;
        let (client, _) = authenticate(&self.0, &connection).await?;
        let wire::SignIntermediateRequest { mesh, csr } = request.into_inner();
        let held = trust::read(&self.0.store, &mesh).await.map_err(unavailable)?;
        let held = held.ok_or_else(|| Status::not_found(format!("mesh {mesh} has no CA")))?;
        let signing = held.bundle.roots.first().and_then(|pem| trust::root_hash(pem));
        let signing = signing.ok_or_else(|| Status::internal("the bundle has no usable root"))?;
        let root = vault::root(&self.0.store, &mesh, &signing).await.map_err(unavailable)?;
        let root = root.ok_or_else(|| Status::internal("the root's key is missing"))?;
        let now = OffsetDateTime::now_utc();
        let issued = root
            .sign_intermediate(&csr, &client.zone, now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = issued.key.to_string();
        if held.bundle.revoked.contains(&key) {
            return Err(Status::permission_denied("that key is revoked: make another"));
        }
        let record = Intermediate {
            not_after: issued.not_after.unix_timestamp(),
            issued: i64::try_from(now.unix_timestamp_nanos()).unwrap_or(i64::MAX),
            root: signing,
        };
        let place = format!("{mesh}/{}/{key}", client.zone);
        // A certificate that nobody could revoke must not leave: so it is written before it is given. The bundle is held
        // to its revision by the same write, so that a revocation that runs now does not miss it.
        let changes = vec![
            vault::put(vault::INTERMEDIATES, &place, &record),
            Change::Put {
                resource: trust::resource(&mesh, &held.bundle, held.rotation.as_ref()),
                expect: Expect::Revision(held.revision),
            },
            self.still_enrolled(&client.zone).await?,
        ];
        self.0.store.write(&Author::new(format!("zone:{}", client.zone), "sync"), changes).await.map_err(
            |error| match error {
                WriteError::Conflict { .. } | WriteError::PrivateConflict { .. } => {
                    Status::aborted("the mesh's trust changed meanwhile; try again")
                }
                error => unavailable(error),
            },
        )?;
        self.0.rotation_news.notify_one();
        let roots = held
            .bundle
            .roots
            .iter()
            .filter_map(|pem| meridian_pki::certificates_from_pem(pem).ok())
            .flatten()
            .map(|certificate| certificate.to_vec())
            .collect();
        let chain = issued.chain.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Response::new(wire::Certificate { chain, roots }))
    }
}

impl IdentityService {
    async fn caller(&self, request: &Request<wire::EnrollRequest>) -> Result<Caller, Status> {
        let connection = Connection::of(request).cloned().ok_or_else(|| Status::internal("no connection"))?;
        let zone = &request.get_ref().zone;
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let Some(token) = header.and_then(|header| header.strip_prefix("Bearer ")) else {
            let (client, credential) = authenticate(&self.0, &connection).await?;
            if client.zone != *zone {
                return Err(Status::permission_denied(format!("the certificate is zone {}'s", client.zone)));
            }
            return Ok(Caller::Certificate { token: credential.token });
        };
        let verified: Verified<ZoneClaims> = self
            .0
            .tokens
            .verifier()
            .verify(token, OffsetDateTime::now_utc())
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if verified.claims.zone != *zone {
            return Err(Status::permission_denied(format!("the token is zone {}'s", verified.claims.zone)));
        }
        if !verified.claims.has(ZoneScope::ControlPlane) {
            return Err(Status::permission_denied("the token has not the scope cp"));
        }
        let made = tokens::issued_at(token).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Ok(Caller::Token { id: verified.id, made })
    }

    /// What enrolling the zone with that certificate writes, or why it may not.
    async fn enrolment(
        &self,
        zone: &str,
        caller: &Caller,
        issued: &Issued,
        take_over: bool,
        now: OffsetDateTime,
    ) -> Result<Vec<Change>, Status> {
        let store = &self.0.store;
        let present = store.private_get(vault::CLIENTS, zone).await.map_err(unavailable)?;
        let clients: Clients = match &present {
            Some(bytes) => serde_json::from_slice(bytes).map_err(unavailable)?,
            None => Clients::default(),
        };
        let key = issued.key.to_string();
        let mut changes = Vec::new();
        if let Caller::Token { id, made } = caller {
            let cutoff: Option<Cutoff> =
                vault::read(store, vault::CUTOFFS, zone).await.map_err(unavailable)?;
            if cutoff.is_some_and(|cutoff| cutoff.refuses(id, *made)) {
                return Err(Status::permission_denied(format!(
                    "zone {zone} was revoked or deleted after that token was made: a new token is needed"
                )));
            }
            let other = clients.live(now).any(|client| client.key != key);
            if other && !take_over {
                return Err(Status::already_exists(format!(
                    "zone {zone} holds a live certificate of another key: start with --take-over to replace it"
                )));
            }
            if other {
                // The new process may have another store: what it does not have is not there any more.
                changes.push(vault::delete(vault::CURSORS, zone));
            }
            changes.extend(self.zone(zone).await?);
        }
        let keep = if take_over { Clients::default() } else { clients };
        let client =
            Client { key, not_after: issued.not_after.unix_timestamp(), token: caller.token().to_owned() };
        changes.push(Change::SwapPrivate {
            bucket: vault::CLIENTS.to_owned(),
            key: zone.to_owned(),
            from: present,
            to: vault::encode(&keep.with(client, now)),
        });
        Ok(changes)
    }

    /// The Zone of one that enrols with a token: made if it is not there, and not revoked any more if it was.
    async fn zone(&self, zone: &str) -> Result<Option<Change>, Status> {
        let key = zone_key(zone);
        let Some(stored) = self.0.store.get(&key).await.map_err(unavailable)? else {
            let mut resource = Resource::of(key, tokens::origin(), &Zone { enabled: Some(true) });
            resource.labels = labels::computed(&resource.key, "", &resource.labels);
            tracing::info!(zone, at = rfc3339(OffsetDateTime::now_utc()), "a new zone");
            return Ok(Some(Change::Put { resource, expect: Expect::Absent }));
        };
        let state = ZoneStatus::of(&stored.resource);
        if !state.is_revoked() {
            return Ok(None);
        }
        let mut resource = stored.resource;
        resource.status = Some(serde_json::json!(ZoneStatus { revoked_at: None, ..state }));
        Ok(Some(Change::Put { resource, expect: Expect::Revision(stored.revision) }))
    }

    /// A change that changes nothing, and fails if the zone's certificates were taken back meanwhile.
    async fn still_enrolled(&self, zone: &str) -> Result<Change, Status> {
        let present = self.0.store.private_get(vault::CLIENTS, zone).await.map_err(unavailable)?;
        let present = present.ok_or_else(|| Status::unauthenticated("the zone is not enrolled"))?;
        Ok(Change::SwapPrivate {
            bucket: vault::CLIENTS.to_owned(),
            key: zone.to_owned(),
            from: Some(present.clone()),
            to: present,
        })
    }
}
