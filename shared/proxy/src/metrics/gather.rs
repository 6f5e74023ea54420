//! All that a sidecar tells at once: what it counts itself, under its own and Envoy's names, and what the applications
//! beside it say. Gathered only when somebody asks, on the control thread; workers only count.

use super::{
    applications::{self, Failure},
    envoy::{self, Server},
    exposition::{self, Exposition, Kind, Sample},
    selection::Selection,
};
use crate::shared::Shared;
use futures::{StreamExt, stream};
use meridian_proxy_config::metrics as config;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Applications asked at a time: a host with hundreds must not open as many connections for one scrape.
const AT_ONCE: usize = 4;
/// Bytes of all applications' pages together, beyond which no more are taken: a scrape must not fill the proxy's memory.
const MAX_PAGES: usize = 8 << 20;

/// Pages that are together larger are read on a thread of their own: the control thread answers names, too.
const LARGE: usize = 64 << 10;

const UP: &str = "meridian_proxy_application_up";
const LEFT_OUT: &str = "meridian_proxy_application_left_out";

/// Who says all this: by these labels Kuma's dashboards tell proxies apart.
type Identity = Vec<(&'static str, String)>;

/// A policy, compiled.
#[derive(Debug)]
pub struct Publication {
    pub config: config::Metrics,
    pub selection: Selection,
}

/// What only the control thread knows.
#[derive(Clone, Debug)]
pub struct Own {
    /// A page under the proxy's own names.
    pub page: String,
    pub draining: bool,
    pub connected: bool,
    /// Until the first certificate ends.
    pub certificate: Option<Duration>,
}

/// Asks for [`Own`]; must not block.
pub type AskOwn = Arc<dyn Fn() -> Own + Send + Sync>;

/// What gathering needs.
#[derive(Clone)]
pub struct Gatherer {
    pub shared: Arc<Shared>,
    pub own: AskOwn,
    pub started: std::time::Instant,
}

impl Publication {
    /// # Errors
    /// A pattern can't be understood.
    pub fn compile(config: config::Metrics) -> Result<Self, String> {
        Ok(Self { selection: Selection::compile(&config.sidecar)?, config })
    }
}

impl Gatherer {
    /// Everything that a policy wants: what has not come by `deadline` is left out.
    pub async fn gather(&self, publication: &Publication, deadline: Instant) -> Exposition {
        let applications = &publication.config.applications;
        let captured = self.captured();
        let asked: Vec<_> =
            applications.iter().map(|it| applications::scrape(it, captured, deadline)).collect();
        let mut answers = stream::iter(asked).buffered(AT_ONCE);
        let (mut pages, mut room) = (Vec::new(), MAX_PAGES);
        for application in applications {
            let Some(page) = answers.next().await else { break };
            let page = page.and_then(|page| {
                room = room.checked_sub(page.len()).ok_or(Failure::TooLarge)?;
                Ok(page)
            });
            pages.push((application.name.clone(), page));
        }
        let (sidecar, identity) = (self.sidecar(publication), self.identity());
        if MAX_PAGES - room < LARGE {
            return assemble(sidecar, pages, &identity);
        }
        let assembling = tokio::task::spawn_blocking(move || assemble(sidecar, pages, &identity));
        // It does not panic; a runtime that ends wants no page.
        assembling.await.unwrap_or_default()
    }

    /// The proxy's own, as far as they are wanted.
    fn sidecar(&self, publication: &Publication) -> Exposition {
        let own = (self.own)();
        let server = Server {
            draining: own.draining,
            uptime: self.started.elapsed(),
            connected: own.connected,
            certificate: own.certificate,
        };
        let snapshot = self.shared.snapshots.load();
        let envoy = envoy::exposition(&self.shared.metrics.all(), &snapshot, &server);
        let own = exposition::parse(&own.page).unwrap_or_else(|error| {
            tracing::error!(%error, "the proxy's own metrics");
            Exposition::default()
        });
        let (mut both, _) = Exposition::merged([own, envoy]);
        both.retain(|name| publication.selection.has(name));
        if !publication.config.sidecar.include_unused {
            both.drop_unused();
        }
        both
    }

    /// Who says all this.
    pub(super) fn identity(&self) -> Identity {
        let snapshot = self.shared.snapshots.load();
        let Some(proxy) = &snapshot.proxy else { return Vec::new() };
        vec![
            ("mesh", proxy.mesh.clone()),
            ("dataplane", proxy.name.clone()),
            ("kuma_io_service", proxy.service.clone()),
            ("kuma_io_zone", proxy.zone.clone()),
            ("kuma_proxy_role", "sidecar".to_owned()),
        ]
    }

    fn captured(&self) -> bool {
        self.shared.snapshots.load().proxy.as_ref().is_some_and(|proxy| proxy.capture.is_some())
    }
}

/// One page of the sidecar's and the applications', by their names.
fn assemble(
    sidecar: Exposition,
    pages: Vec<(String, Result<String, Failure>)>,
    identity: &[(&'static str, String)],
) -> Exposition {
    let any = !pages.is_empty();
    let (mut parts, mut state) = (vec![sidecar], Exposition::default());
    for (name, page) in pages {
        let labels = [("application", name.as_str())];
        let read = page.and_then(|page| Ok(exposition::parse(&page)?));
        let up = Sample::new(&labels, f64::from(u8::from(read.is_ok())));
        state.push(UP, Kind::Gauge, "1 if the application gave its metrics.", up);
        match read {
            Ok(mut page) => {
                page.label(&labels);
                parts.push(page);
            }
            Err(error) => tracing::debug!(application = name, %error, "no metrics"),
        }
    }
    let identity: Vec<_> = identity.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // Before they are merged: a label that is added may make two series one.
    parts.iter_mut().for_each(|part| part.label(&identity));
    let (merged, left_out) = Exposition::merged(parts);
    if any {
        let help = "Samples left out, as they contradict what came before them.";
        state.push(LEFT_OUT, Kind::Gauge, help, Sample::new(&[], left_out as f64));
    }
    state.label(&identity);
    Exposition::merged([state, merged]).0
}
