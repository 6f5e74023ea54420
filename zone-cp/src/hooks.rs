//! What the REST API asks of a zone: who bears a token, how the zone's proxies are, and to take a new global.

use crate::config::Settings;
use crate::inspect::Inspector;
use crate::link::Link;
use crate::reports::Reports;
use crate::status::Found;
use anyhow::Context;
use futures::future::BoxFuture;
use meridian_api::access::{ADMIN, User};
use meridian_api::report::{Link as LinkReport, Presence, Rejected, ZoneReport};
use meridian_api::{Hooks, Problem, ProxyConfigRequest};
use meridian_auth::{SigningKey, UserClaims, Verifier};
use meridian_core::Resource;
use meridian_delta::PeerState;
use meridian_store::Store;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Private row of the key that signs the zone's own user tokens: those of global are for global.
const BUCKET: &str = "user-tokens";
const NAME: &str = "self";
/// As Kuma's first admin token.
const ADMIN_TOKEN_LIFE: time::Duration = time::Duration::days(3650);

pub(crate) struct ZoneHooks {
    zone: String,
    instance: String,
    users: Verifier,
    reports: Reports,
    link: Option<Link>,
    inspector: Inspector,
    found: Found,
    config: Value,
}

impl ZoneHooks {
    pub(crate) async fn new(
        store: &Store,
        settings: &Settings,
        instance: &str,
        reports: Reports,
        link: Option<Link>,
        inspector: Inspector,
        found: Found,
    ) -> anyhow::Result<Self> {
        let key = user_key(store).await?;
        let mut users = Verifier::default();
        users.add_key(&key.verification_key::<UserClaims>(None))?;
        admin_token(&key, &settings.data_dir)?;
        let (zone, instance) = (settings.zone.clone(), instance.to_owned());
        Ok(Self { zone, instance, users, reports, link, inspector, found, config: shown(settings) })
    }
}

impl Hooks for ZoneHooks {
    fn authenticate(&self, token: &str) -> Result<User, String> {
        let verified = self.users.verify::<UserClaims>(token, OffsetDateTime::now_utc());
        let claims = verified.map_err(|error| error.to_string())?.claims;
        Ok(User::authenticated(claims.name, claims.groups))
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<ZoneReport>, Problem>> {
        Box::pin(async {
            Ok(vec![ZoneReport {
                zone: self.zone.clone(),
                link: self.link.as_ref().map(|link| self.link_report(link)),
                proxies: self.reports.overviews(),
                denials: self.reports.all_denials(),
                rejects: self.reports.all_rejects(),
            }])
        })
    }

    fn status(&self, resource: &Resource) -> Option<Value> {
        self.found.status(resource)
    }

    fn accept_global<'a>(&'a self, user: &'a User) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(async move {
            let link = self
                .link
                .as_ref()
                .ok_or_else(|| Problem::not_allowed("This zone has no global control plane"))?;
            let accepted = link.accept_global();
            let accepted =
                accepted.ok_or_else(|| Problem::conflict("No global control plane has answered yet"))?;
            tracing::warn!(
                user = user.name,
                accepted,
                "an operator accepts the global control plane as it is"
            );
            Ok(json!({ "accepted": accepted }))
        })
    }

    fn proxy_config<'a>(
        &'a self,
        dataplane: &'a Resource,
        asked: ProxyConfigRequest,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(self.inspector.config(&dataplane.key, asked))
    }

    fn config(&self) -> Value {
        self.config.clone()
    }
}

impl ZoneHooks {
    fn link_report(&self, link: &Link) -> LinkReport {
        let (pull, push) = (link.pull_peer().state(), link.push_peer().state());
        let since = pull.since.map(|since| OffsetDateTime::now_utc() - since.elapsed());
        let since = since.and_then(|at| at.format(&Rfc3339).ok());
        let node = pull.node.clone().unwrap_or_default();
        LinkReport {
            presence: if pull.connected { Presence::Online } else { Presence::Offline },
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replica: node.instance,
            connected_at: since.clone().filter(|_| pull.connected),
            disconnected_at: since.filter(|_| !pull.connected),
            revision: pull.revision.map_or(0, |revision| revision.0),
            behind_millis: pull.behind_millis(Instant::now()).unwrap_or(0),
            rejected: rejected(&pull),
            refused_here: rejected(&push),
            withheld: pull.withheld,
            withheld_here: push.withheld,
            refused: pull.refused.unwrap_or_default(),
        }
    }
}

fn rejected(peer: &PeerState) -> Vec<Rejected> {
    let one = |it: &meridian_delta::Rejected| Rejected {
        type_: it.id.type_.to_string(),
        name: it.id.name.to_string(),
        reason: it.reason.clone(),
    };
    peer.rejected.iter().map(one).collect()
}

async fn user_key(store: &Store) -> anyhow::Result<SigningKey> {
    if let Some(pem) = store.private_get(BUCKET, NAME).await? {
        return Ok(SigningKey::from_pem("zone", std::str::from_utf8(&pem)?)?);
    }
    let made = SigningKey::generate("zone")?;
    let pem = store.private_ensure(BUCKET, NAME, made.to_pem().as_bytes().to_vec()).await?;
    Ok(SigningKey::from_pem("zone", std::str::from_utf8(&pem)?)?)
}

/// Left beside the data for its owner only; its path is printed, not the token.
fn admin_token(key: &SigningKey, data_dir: &Path) -> anyhow::Result<()> {
    let path = data_dir.join("admin-token");
    let claims = UserClaims { name: ADMIN.to_owned(), groups: vec![ADMIN.to_owned()] };
    let token = key.issue(&claims, ADMIN_TOKEN_LIFE, OffsetDateTime::now_utc())?;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            file.write_all(token.text.as_bytes()).with_context(|| path.display().to_string())?;
            tracing::info!(path = %path.display(), "the zone's first admin token is here");
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(|| format!("could not write {}", path.display())),
    }
}

/// Paths and addresses; no secret is among the settings, only the names of files.
fn shown(settings: &Settings) -> Value {
    let path = |path: &Path| path.display().to_string();
    json!({
        "mode": "zone",
        "environment": "universal",
        "dataDir": path(&settings.data_dir),
        "store": {"type": if settings.store_url.starts_with("postgres") { "postgres" } else { "sqlite" }},
        "apiServer": {
            "http": {"address": settings.api_http.to_string()},
            "https": {"address": settings.api_https.to_string()},
            "authn": {"localhostIsAdmin": settings.access.local_is_admin},
        },
        "access": {"type": "static", "static": settings.access},
        "multizone": {"zone": {
            "name": settings.zone,
            "globalAddress": settings.global.as_ref().map(|global| format!("https://{}:{}", global.host, global.port)),
        }},
        "dpServer": {
            "address": settings.proxy_listen.to_string(),
            "allowUnboundTokens": settings.allow_unbound_tokens,
            "protectedAddresses": settings.protected_addresses,
            "maxConfigAgeSeconds": settings.max_config_age,
        },
        "dnsServer": {"forwardZones": settings.dns_forward_zones},
        "diagnostics": {"address": settings.diagnostics.to_string()},
        "tls": {"given": settings.tls_files.is_some(), "san": settings.tls_san},
    })
}
