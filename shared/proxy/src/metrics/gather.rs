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
/// Samples of one application's page. The largest in the wild have some ten thousand; with its labels one takes about a
/// KiB, whatever it takes on the page.
const MAX_SAMPLES: usize = 50_000;
/// Samples of all applications together: about 100 MiB, for each scrape that is under way.
const MAX_ALL_SAMPLES: usize = 100_000;

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
    // What is said of applications goes before what they say.
    let (mut parts, mut state) = (vec![sidecar], Exposition::default());
    let mut room = MAX_ALL_SAMPLES;
    for (name, page) in pages {
        let labels = [("application", name.as_str())];
        let read = page.and_then(|page| Ok(exposition::parse_up_to(&page, MAX_SAMPLES.min(room))?));
        let up = Sample::new(&labels, f64::from(u8::from(read.is_ok())));
        state.push(UP, Kind::Gauge, "1 if the application gave its metrics.", up);
        match read {
            Ok(mut page) => {
                room = room.saturating_sub(page.len());
                page.label(&labels);
                parts.push(page);
            }
            Err(error) => tracing::debug!(application = name, %error, "no metrics"),
        }
    }
    if any {
        let help = "Samples left out, as they contradict what came before them.";
        state.push(LEFT_OUT, Kind::Gauge, help, Sample::new(&[], 0.0));
    }
    parts.insert(0, state);
    let identity: Vec<_> = identity.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // Before they are merged: a label that is added may make two series one.
    parts.iter_mut().for_each(|part| part.label(&identity));
    let (mut merged, left_out) = Exposition::merged(parts);
    // An application may have put more under this name; the first is the proxy's.
    if any && let Some(count) = merged.families.get_mut(LEFT_OUT).and_then(|it| it.samples.first_mut()) {
        count.value = left_out as f64;
        if left_out > 0 {
            tracing::debug!(samples = left_out, "applications contradict what came before them");
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sidecar: &str, pages: Vec<(&str, String)>) -> Exposition {
        let pages = pages.into_iter().map(|(name, page)| (name.to_owned(), Ok(page))).collect();
        assemble(exposition::parse(sidecar).unwrap(), pages, &[("mesh", "default".to_owned())])
    }

    fn up(page: &Exposition) -> Vec<f64> {
        page.families[UP].samples.iter().map(|sample| sample.value).collect()
    }

    fn left_out(page: &Exposition) -> f64 {
        page.families[LEFT_OUT].samples[0].value
    }

    fn numbered(name: &str, samples: usize) -> String {
        (0..samples).map(|i| format!("{name}{{i=\"{i}\"}} 1\n")).collect()
    }

    #[test]
    fn a_page_of_too_many_samples_is_not_taken_and_the_others_are() {
        let page = of(
            "own 1\n",
            vec![
                ("small", "a 1\n".to_owned()),
                ("large", "a 1\n".repeat(MAX_SAMPLES + 1)),
                ("after", "b 1\n".to_owned()),
            ],
        );
        assert_eq!(up(&page), [1.0, 0.0, 1.0]);
        assert_eq!((page.families["a"].samples.len(), left_out(&page)), (1, 0.0));
        assert!(page.families.contains_key("own") && page.families.contains_key("b"));
    }

    #[test]
    fn all_pages_share_a_room() {
        let page = of(
            "own 1\n",
            vec![
                ("first", numbered("a", MAX_SAMPLES)),
                ("second", numbered("b", MAX_SAMPLES - 1)),
                ("third", numbered("c", 2)),
                ("fourth", numbered("d", 1)),
                ("fifth", numbered("e", 1)),
            ],
        );
        assert_eq!(up(&page), [1.0, 1.0, 0.0, 1.0, 0.0]);
        assert!(page.families.contains_key("own") && page.families.contains_key("d"));
    }

    #[test]
    fn applications_do_not_change_the_types_of_the_proxy() {
        let sidecar = "# TYPE meridian_proxy_requests_total counter\nmeridian_proxy_requests_total 7\n";
        let liar = format!(
            "# TYPE meridian_proxy_requests_total gauge\nmeridian_proxy_requests_total 1\n\
             # TYPE {UP} counter\n{UP} 1\n# TYPE {LEFT_OUT} counter\n{LEFT_OUT} 9\n"
        );
        let page = of(sidecar, vec![("liar", liar), ("good", "a 1\n".to_owned())]);
        let requests = &page.families["meridian_proxy_requests_total"];
        assert_eq!((requests.kind, requests.samples.len()), (Kind::Counter, 1));
        assert_eq!(page.families[UP].kind, Kind::Gauge);
        assert_eq!((page.families[LEFT_OUT].samples.len(), left_out(&page)), (1, 3.0));
        assert_eq!(page.families["a"].samples.len(), 1);
    }
}
