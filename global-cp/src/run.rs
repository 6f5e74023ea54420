//! The process: opens, binds, serves, drains.

use crate::config::{Config, Settings};
use crate::hooks::GlobalHooks;
use crate::identity::IdentityService;
use crate::state::Global;
use crate::sync::SyncService;
use crate::tls::ServerCertificate;
use crate::{bootstrap, diagnostics, follow, questions, rotate, tokens, vault};
use anyhow::Context;
use meridian_api::server::{Bounds, serve};
use meridian_api::{Api, Role};
use meridian_pki::link;
use meridian_proto::{delta::sync_server::SyncServer, identity::zone_identity_server::ZoneIdentityServer};
use meridian_store::{KeyRing, Options, Store};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where a control plane listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub api_http: SocketAddr,
    pub api_https: SocketAddr,
    pub sync: SocketAddr,
    pub diagnostics: SocketAddr,
}

struct Listeners {
    api_http: TcpListener,
    api_https: TcpListener,
    sync: TcpListener,
    diagnostics: TcpListener,
}

impl Listeners {
    async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let bind = |address: SocketAddr, what: &'static str| async move {
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({what})"))
        };
        Ok(Self {
            api_http: bind(settings.api_http, "apiHttp").await?,
            api_https: bind(settings.api_https, "apiHttps").await?,
            sync: bind(settings.sync_listen, "syncListen").await?,
            diagnostics: bind(settings.diagnostics, "diagnostics").await?,
        })
    }

    fn bound(&self) -> std::io::Result<Bound> {
        Ok(Bound {
            api_http: self.api_http.local_addr()?,
            api_https: self.api_https.local_addr()?,
            sync: self.sync.local_addr()?,
            diagnostics: self.diagnostics.local_addr()?,
        })
    }
}

/// Runs until `shutdown`; logs one line `ready` with the addresses that it bound.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (ready, _) = oneshot::channel();
    run_with(config.resolve()?, ready, shutdown).await
}

/// The same, and tells `ready` where it listens.
pub async fn run_with(
    settings: Settings,
    ready: oneshot::Sender<Bound>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let global = open(settings).await?;
    let listeners = Listeners::bind(&global.settings).await?;
    let bound = listeners.bound()?;
    let tasks = TaskTracker::new();
    tasks.spawn(follow::run(Arc::clone(&global), shutdown.clone()));
    tasks.spawn(rotate::run(Arc::clone(&global), shutdown.clone()));
    {
        let (global, shutdown) = (Arc::clone(&global), shutdown.clone());
        tasks.spawn(async move { global.server.renew(&global.store, &global.settings, shutdown).await });
    }
    start(&global, listeners, &tasks, &shutdown)?;
    tracing::info!(
        replica = global.replica,
        api_http = %bound.api_http,
        api_https = %bound.api_https,
        sync = %bound.sync,
        diagnostics = %bound.diagnostics,
        "ready"
    );
    // Nobody may be waiting for it.
    let _ = ready.send(bound);
    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The store, its first contents, and what a replica keeps in memory.
async fn open(settings: Settings) -> anyhow::Result<Arc<Global>> {
    std::fs::create_dir_all(&settings.data_dir)
        .with_context(|| format!("cannot create {}", settings.data_dir.display()))?;
    let replica = uuid::Uuid::new_v4().to_string();
    let store = open_store(&settings, &replica).await?;
    if bootstrap::run(&store).await? {
        tracing::info!("a new store: mesh `default`, keys and name generators were written");
    }
    bootstrap::admin_token_file(&store, &settings.data_dir).await?;
    let server = ServerCertificate::new(&store, &settings).await?;
    let zone_ca = vault::zone_ca(&store).await?;
    let zone_clients = link::ZoneClients::new(&zone_ca.authority().certificate_pem(), [])?;
    let world = follow::load(&store).await?;
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let epoch = u64::try_from(epoch).unwrap_or(u64::MAX);
    Ok(Arc::new(Global::new(store, settings, replica, epoch, world, zone_ca, zone_clients, server)))
}

async fn open_store(settings: &Settings, replica: &str) -> anyhow::Result<Store> {
    let keys = KeyRing::load_or_create(&settings.encryption_key_file)?;
    Ok(Store::open(Options::new(settings.store_url.clone(), keys, replica)).await?)
}

fn start(
    global: &Arc<Global>,
    listeners: Listeners,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let api = Api {
        store: global.store.clone(),
        role: Role::Global,
        access: global.settings.access.clone(),
        hooks: Arc::new(GlobalHooks(Arc::clone(global))),
        instance: global.replica.clone(),
    }
    .router();
    let rest = Arc::new(link::server_config(global.server.handle(), None, &[link::H2, link::HTTP1])?);
    let zones = Some(global.zone_clients.clone());
    let sync = Arc::new(link::server_config(global.server.handle(), zones, &[link::H2])?);
    let with = |config: Arc<rustls::ServerConfig>| {
        let global = Arc::clone(global);
        move || {
            global.server.refresh();
            Arc::clone(&config)
        }
    };
    let bounds = Bounds::default();
    tasks.spawn(serve(listeners.api_http, None, api.clone(), bounds, shutdown.clone()));
    tasks.spawn(serve(listeners.api_https, Some(Arc::new(with(rest))), api, bounds, shutdown.clone()));
    let diagnostics = diagnostics::router(Arc::clone(global));
    tasks.spawn(serve(listeners.diagnostics, None, diagnostics, bounds, shutdown.clone()));
    let mut routes = tonic::service::Routes::builder();
    routes
        .add_service(SyncServer::new(SyncService(Arc::clone(global))))
        .add_service(ZoneIdentityServer::new(IdentityService(Arc::clone(global))))
        .add_service(questions::service(Arc::clone(global)));
    tasks.spawn(meridian_delta::server::serve(
        listeners.sync,
        Arc::new(with(sync)),
        routes.routes(),
        meridian_delta::server::Limits::default(),
        shutdown.clone(),
    ));
    Ok(())
}

/// `meridian global-cp admin-token`: another admin token, from store and key.
pub async fn admin_token(config: Config) -> anyhow::Result<String> {
    let store = open_store(&config.resolve()?, "admin-token").await?;
    tokens::admin(&store).await
}

/// `meridian global-cp restored`: to be called once after a backup was restored. Returns the new store id.
pub async fn restored(config: Config) -> anyhow::Result<String> {
    let store = open_store(&config.resolve()?, "restored").await?;
    Ok(store.restored().await?.to_string())
}

/// `meridian global-cp rotate-key`: a new key at rest. Returns its id.
pub async fn rotate_key(config: Config) -> anyhow::Result<String> {
    let store = open_store(&config.resolve()?, "rotate-key").await?;
    Ok(store.rotate_key().await?.to_string())
}
