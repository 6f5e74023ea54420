//! Builds the parts and runs them until the end.

use crate::audiences::Views;
use crate::config::{Config, Settings};
use crate::diagnostics::Diagnostics;
use crate::engine::{self, Command, Engine, Gone, Seen};
use crate::hooks::ZoneHooks;
use crate::inspect::Inspector;
use crate::intermediates::Intermediates;
use crate::link::Link;
use crate::outgoing::Outgoing;
use crate::picture::{Options, Picture};
use crate::proxies::{self, Proxies};
use crate::questions;
use crate::reports::Reports;
use crate::serving::ServerCertificate;
use crate::status::Found;
use crate::vip::Addresses;
use anyhow::Context;
use arc_swap::ArcSwap;
use meridian_api::server::{Bounds, serve};
use meridian_api::{Api, Role};
use meridian_delta::{Node, StoreId};
use meridian_pki::link::{H2, HTTP1};
use meridian_proto::delta::sync_server::SyncServer;
use meridian_proto::identity::proxy_identity_server::ProxyIdentityServer;
use meridian_store::{KeyRing, Options as StoreOptions, Store};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

/// Reports of proxies that wait for the engine: one that reports more waits itself.
const COMMANDS: usize = 1_024;

struct Listeners {
    api_http: TcpListener,
    api_https: TcpListener,
    proxies: TcpListener,
    diagnostics: TcpListener,
}

/// Runs until `shutdown`; logs one line `ready` with the addresses that it bound.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = config.resolve()?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&settings.data_dir)
        .with_context(|| format!("could not make {}", settings.data_dir.display()))?;
    let node = node(&settings.zone);
    let keys = KeyRing::load_or_create(&settings.encryption_key_file)?;
    let store = Store::open(StoreOptions::new(&settings.store_url, keys, &node.instance)).await?;
    let listeners = Listeners::bind(&settings).await?;
    let tasks = TaskTracker::new();
    start(&settings, node, store, listeners, &tasks, shutdown.clone()).await?;
    tasks.close();
    shutdown.cancelled().await;
    tasks.wait().await;
    Ok(())
}

async fn start(
    settings: &Settings,
    node: Node,
    store: Store,
    listeners: Listeners,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> anyhow::Result<Bound> {
    let outgoing = Outgoing::new(&settings.zone);
    let reports = Reports::new(outgoing.clone());
    let views = Views::new(StoreId(store.store_id().0));
    let picture = Picture::new(&settings.zone, options(settings, &listeners)?);
    let (commands, received) = mpsc::channel(COMMANDS);
    let seen = seen();
    let parts = engine::Parts {
        store: store.clone(),
        picture,
        views: views.clone(),
        outgoing: outgoing.clone(),
        reports: reports.clone(),
        seen: seen.clone(),
    };
    let engine = Engine::start(parts).await.context("could not read the store")?;
    let known = engine.known_proxies();

    let intermediates = Intermediates::default();
    for (mesh, root) in intermediates.load(&store, engine.picture()).await? {
        commands.send(Command::Issuer { mesh, root: Some(root) }).await?;
    }
    tasks.spawn(engine.run(received, shutdown.clone()));

    let link = match &settings.global {
        Some(global) => Some(Link::new(global, &settings.zone, store.clone(), node.clone()).await?),
        None => None,
    };
    if let Some(link) = &link {
        let keep = intermediates.clone().run(
            store.clone(),
            seen.clone(),
            commands.clone(),
            link.clone(),
            shutdown.clone(),
        );
        tasks.spawn(keep);
        tasks.spawn(link.clone().run(outgoing, shutdown.clone()));
    }
    let sending = reports.clone();
    let stopping = shutdown.clone();
    tasks.spawn(async move { sending.run(stopping).await });

    let proxies = Proxies::new(proxies::Parts {
        zone: settings.zone.clone(),
        node: node.clone(),
        allow_unbound: settings.allow_unbound_tokens,
        store: store.clone(),
        views,
        reports: reports.clone(),
        seen: seen.clone(),
        intermediates,
        commands,
    });
    proxies.expect(known);
    tasks.spawn(proxies.clone().run(shutdown.clone()));

    let certificate = ServerCertificate::new(&store, settings).await?;
    let inspector = Inspector::new(store.clone(), seen.picture.clone());
    if let Some(link) = &link {
        tasks.spawn(questions::run(link.clone(), inspector.clone(), shutdown.clone()));
    }
    let found = Found { picture: seen.picture.clone(), addresses: seen.addresses.clone() };
    let hooks =
        ZoneHooks::new(&store, settings, &node.instance, reports.clone(), link.clone(), inspector, found)
            .await?;
    let api = Api {
        store,
        role: Role::Zone { name: settings.zone.clone() },
        access: settings.access.clone(),
        hooks: Arc::new(hooks),
        instance: node.instance,
    };
    let diagnostics = Diagnostics { counters: seen.counters, reports, link };
    let bound = listeners.serve(api, proxies, &certificate, diagnostics, tasks, shutdown.clone())?;
    tasks.spawn(certificate.run(shutdown));
    tracing::info!(
        zone = settings.zone,
        api_http = %bound.api_http,
        api_https = %bound.api_https,
        proxies = %bound.proxies,
        diagnostics = %bound.diagnostics,
        "ready"
    );
    Ok(bound)
}

/// Where it listens.
#[derive(Clone, Copy, Debug)]
struct Bound {
    api_http: SocketAddr,
    api_https: SocketAddr,
    proxies: SocketAddr,
    diagnostics: SocketAddr,
}

impl Listeners {
    async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self {
            api_http: bind(settings.api_http).await?,
            api_https: bind(settings.api_https).await?,
            proxies: bind(settings.proxy_listen).await?,
            diagnostics: bind(settings.diagnostics).await?,
        })
    }

    fn bound(&self) -> anyhow::Result<Bound> {
        Ok(Bound {
            api_http: self.api_http.local_addr()?,
            api_https: self.api_https.local_addr()?,
            proxies: self.proxies.local_addr()?,
            diagnostics: self.diagnostics.local_addr()?,
        })
    }

    fn serve(
        self,
        api: Api,
        proxies: Proxies,
        certificate: &ServerCertificate,
        diagnostics: Diagnostics,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Bound> {
        let bound = self.bound()?;
        let router = api.router();
        let bounds = Bounds::default();
        tasks.spawn(serve(self.api_http, None, router.clone(), bounds, shutdown.clone()));
        let https = certificate.tls(&[H2, HTTP1])?;
        tasks.spawn(serve(self.api_https, Some(https), router, bounds, shutdown.clone()));
        tasks.spawn(serve(self.diagnostics, None, diagnostics.router(), bounds, shutdown.clone()));
        let limit = meridian_delta::MAX_MESSAGE;
        let sync = SyncServer::new(proxies.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        let routes = Routes::new(sync).add_service(ProxyIdentityServer::new(proxies));
        let limits = meridian_delta::server::Limits::default();
        let tls = certificate.tls(&[H2])?;
        tasks.spawn(meridian_delta::server::serve(self.proxies, tls, routes, limits, shutdown));
        Ok(bound)
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("could not listen on {address}"))
}

fn node(zone: &str) -> Node {
    let started = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    Node {
        name: zone.to_owned(),
        instance: uuid::Uuid::new_v4().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: u64::try_from(started).unwrap_or(0),
        take_over: false,
    }
}

fn seen() -> Seen {
    Seen {
        picture: Arc::default(),
        addresses: Addresses::default(),
        verifier: Arc::default(),
        steps: watch::Sender::new(0),
        tokens: watch::Sender::new(0),
        counters: Arc::new(ArcSwap::default()),
        gone: Gone::default(),
    }
}

/// The control plane's own addresses, which no allowlist entry may lead to: those it listens on and those configured.
fn options(settings: &Settings, listeners: &Listeners) -> anyhow::Result<Options> {
    let bound = listeners.bound()?;
    let listening =
        [bound.api_http, bound.api_https, bound.proxies, bound.diagnostics].map(|address| address.ip());
    let listening = listening.into_iter().filter(|ip| !ip.is_unspecified());
    let named = settings.tls_san.iter().filter_map(|name| name.parse::<IpAddr>().ok());
    let all: std::collections::BTreeSet<IpAddr> =
        listening.chain(named).chain(settings.protected_addresses.iter().copied()).collect();
    Ok(Options {
        protected: all.into_iter().collect(),
        max_config_age_seconds: settings.max_config_age,
        dns_forward_zones: settings.dns_forward_zones.clone(),
    })
}

#[cfg(test)]
mod tests;
