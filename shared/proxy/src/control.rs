//! The control thread: everything of a proxy that is not traffic.
//!
//! It follows the zone's control plane, keeps certificates fresh, answers names, probes the application, and tells what
//! it sees; and it keeps what it knows on disk, so that a proxy starts and serves without a control plane. Traffic
//! never waits for any of it.

mod admin;
mod disk;
mod identity;
mod probes;
mod ready;
mod registration;
mod rest;
mod settings;
mod status;
mod stream;

pub use registration::Registration;
pub use settings::{
    BadConfiguration, Link, LinkArguments, ProxyArguments, Settings, Trust, program, variable,
};

use crate::{dns, engine::Engine, metrics::publish, resolve::Resolver, telemetry::FLUSH_LIMIT, tls};
use disk::Disk;
use meridian_delta::Node;
use meridian_pki::CertificateFiles;
use std::{future::Future, sync::Arc, time::Duration};
use stream::Stream;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// After the goodbye, new connections are still taken for so long: peers have to hear of it first.
const LINGER: Duration = Duration::from_secs(1);

/// What the tasks of the control thread share.
struct Control {
    engine: Engine,
    settings: Settings,
    registration: Registration,
    node: Node,
    disk: Disk,
    stream: Stream,
    /// Cancelled by the admin socket to drain.
    drain: CancellationToken,
    /// By mesh name: why no certificate could be had.
    identity: identity::Progress,
    probes: probes::Probes,
}

/// Runs a proxy until it is told to stop.
///
/// # Errors
/// It could not start, or a worker died.
pub fn run(settings: Settings, registration: Registration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(settings, registration))
}

async fn serve(settings: Settings, registration: Registration) -> anyhow::Result<()> {
    let disk = Disk::open(&settings.data_dir)?;
    let engine = Engine::start(settings.workers, Resolver::default())?.answering_at(settings.dns_port);
    let node = Node {
        name: registration.node_name(),
        instance: uuid::Uuid::new_v4().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: stream::now_millis(),
        take_over: false,
    };
    let control = Arc::new(Control {
        stream: Stream::new(&registration),
        engine,
        settings,
        registration,
        node,
        disk,
        drain: CancellationToken::new(),
        identity: identity::Progress::default(),
        probes: probes::Probes::default(),
    });
    tls::warm_up();
    control.restore();
    let stopping = CancellationToken::new();
    let mut tasks = JoinSet::new();
    control.clone().start(&mut tasks, &stopping)?;
    let outcome = control.until_stopped().await;
    control.stop(&stopping, &mut tasks).await;
    outcome
}

impl Control {
    /// What the last process left: certificates first, so that the first connection finds them.
    fn restore(&self) {
        for (mesh, identity) in self.disk.identities() {
            self.engine.shared().tls.set_identity(&mesh, identity);
        }
        if let Some(saved) = self.disk.config() {
            let rejected = self.engine.apply(&saved.resources, &[]);
            self.stream.restored(saved.position, saved.saved_at);
            tracing::info!(
                resources = saved.resources.len(),
                rejected = rejected.len(),
                "configuration from disk"
            );
        }
    }

    fn start(self: Arc<Self>, tasks: &mut JoinSet<()>, stopping: &CancellationToken) -> anyhow::Result<()> {
        let ready = ready::listen(self.settings.readiness)?;
        let admin = self.settings.admin_socket.as_deref().map(admin::listen).transpose()?;
        tasks.spawn(ready::serve(self.clone(), ready));
        if let Some(listener) = admin {
            tasks.spawn(admin::serve(self.clone(), listener));
        }
        tasks.spawn(dns::run(self.engine.shared().clone()));
        let own = self.clone();
        let files = self.settings.metrics_files.as_ref();
        let files = files.map(|(certificate, key)| CertificateFiles::new(certificate, key));
        tasks.spawn(publish::run(self.engine.shared().clone(), Arc::new(move || own.own_metrics()), files));
        tasks.spawn(stopping.clone().run_until_cancelled_owned(keep_saving(self.clone())).discard());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(identity::keep_fresh(self.clone())).discard());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(probes::run(self.clone())).discard());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(status::report(self.clone())).discard());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(rest::shrink(self.clone())).discard());
        tasks.spawn(stream::pull(self.clone(), stopping.clone()));
        tasks.spawn(stream::age(self.clone()));
        tasks.spawn(stream::push(self, stopping.clone()));
        Ok(())
    }

    async fn until_stopped(&self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
            () = self.drain.cancelled() => tracing::info!("told to drain"),
            () = self.engine.failed() => anyhow::bail!("a worker ended; its connections are gone"),
        }
        Ok(())
    }

    /// Says goodbye, so that peers go elsewhere; then finishes what is open.
    async fn stop(&self, stopping: &CancellationToken, tasks: &mut JoinSet<()>) {
        self.drain.cancel();
        stopping.cancel();
        tokio::time::sleep(LINGER.min(self.settings.drain_time)).await;
        if !self.engine.drain(self.settings.drain_time).await {
            tracing::warn!(after = ?self.settings.drain_time, "connections that did not finish are cut");
        }
        if !self.engine.shared().sinks.flush(FLUSH_LIMIT).await {
            tracing::warn!(after = ?FLUSH_LIMIT, "what backends of logs and traces did not take is lost");
        }
        self.save();
        tasks.shutdown().await;
    }

    fn save(&self) {
        let position = self.stream.position();
        if let Err(error) = self.disk.save_config(position, &self.engine.all()) {
            tracing::error!(%error, "the configuration could not be kept; a restart would need a control plane");
        }
    }
}

/// The first change of a burst is kept at once, the next after this: a restart without a control plane would serve
/// what was before, so it is short; the whole configuration is written each time, so it is not zero.
const SAVE_PAUSE: Duration = Duration::from_millis(200);

/// Keeps the newest configuration on disk.
async fn keep_saving(control: Arc<Control>) {
    let mut changes = control.stream.changes();
    while changes.changed().await.is_ok() {
        control.save();
        tokio::time::sleep(SAVE_PAUSE).await;
    }
}

/// For tasks whose result says nothing.
trait Discard: Future + Sized {
    async fn discard(self) {
        let _ = self.await;
    }
}

impl<F: Future> Discard for F {}
