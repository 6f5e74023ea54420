//! Routes joined with the clusters that they lead to.

use super::Cluster;
use crate::policy::{
    routes::{Compiled, Found, Rule, Turns},
    timeouts::StreamLimits,
};
use http::{HeaderMap, Method, Uri};
use meridian_proxy_config::{BackendTarget, Protocol, RouteBackend, StreamTimeouts};
use std::{collections::BTreeMap, sync::Arc};

/// Where calls to one destination go.
pub struct Routing {
    /// `None`: they could not be understood. Then nobody knows where a call should go, and it is refused.
    compiled: Option<Arc<Compiled>>,
    /// Beside the rules.
    ways: Vec<Way>,
    /// What all of it was joined with.
    clusters: BTreeMap<BackendTarget, Arc<Cluster>>,
    own: Own,
}

/// What matters of the destination that the routes are of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Own {
    protocol: Protocol,
    leaves: bool,
}

/// Where the requests of one rule go, or (without rules) all connections.
pub struct Way {
    name: String,
    /// `None`: to the destination itself.
    pub split: Option<Split>,
    pub mirrors: Vec<MirrorTo>,
    /// In place of the destination's.
    pub streams: Option<StreamLimits>,
}

/// Backends that take turns.
pub struct Split {
    backends: Vec<RouteBackend>,
    clusters: Vec<Result<Arc<Cluster>, String>>,
    turns: Arc<Turns>,
}

/// Where copies of requests go.
pub struct MirrorTo {
    pub per_million: u32,
    pub cluster: Arc<Cluster>,
}

/// What the routes say of a request.
pub enum Verdict<'a> {
    /// To the destination itself, unchanged.
    Itself,
    Rule(Found, &'a Rule, &'a Way),
    /// To one of these, unchanged.
    Connection(&'a Split),
    Unreadable,
}

impl Routing {
    /// Joins routes with clusters, which are those of [`targets`]. `previous`: whose turns go on where nothing else is
    /// shared out.
    pub(super) fn new(
        compiled: Option<Arc<Compiled>>,
        clusters: BTreeMap<BackendTarget, Arc<Cluster>>,
        own: &Cluster,
        previous: Option<&Self>,
        workers: usize,
    ) -> Self {
        let own = Own::of(own);
        let join = Join { clusters: &clusters, previous, workers, own };
        let ways = match compiled.as_deref() {
            None => Vec::new(),
            Some(Compiled::Http(rules)) => rules.rules.iter().map(|rule| join.rule(rule)).collect(),
            Some(Compiled::Tcp(backends)) => vec![join.connections(backends)],
        };
        Self { compiled, ways, clusters, own }
    }

    /// Whether it was joined from the same.
    pub(super) fn is_of(
        &self,
        compiled: Option<&Arc<Compiled>>,
        clusters: &BTreeMap<BackendTarget, Arc<Cluster>>,
        own: &Cluster,
    ) -> bool {
        let same_routes = match (&self.compiled, compiled) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let same = |(target, cluster): (&BackendTarget, &Arc<Cluster>)| {
            self.clusters.get(target).is_some_and(|old| Arc::ptr_eq(old, cluster))
        };
        same_routes
            && self.own == Own::of(own)
            && self.clusters.len() == clusters.len()
            && clusters.iter().all(same)
    }

    /// What becomes of a request.
    pub fn of_request(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Verdict<'_> {
        match self.compiled.as_deref() {
            None => Verdict::Unreadable,
            Some(Compiled::Http(rules)) => match rules.find(method, uri, headers) {
                None => Verdict::Itself,
                Some((found, rule)) => match self.ways.get(found.rule) {
                    Some(way) => Verdict::Rule(found, rule, way),
                    None => Verdict::Unreadable,
                },
            },
            Some(Compiled::Tcp(_)) => self.of_connections().map_or(Verdict::Unreadable, Verdict::Connection),
        }
    }

    /// Where connections go, whatever is spoken on them; `None`: their requests decide.
    pub fn of_connections(&self) -> Option<&Split> {
        match self.compiled.as_deref() {
            Some(Compiled::Tcp(_)) => self.ways.first()?.split.as_ref(),
            _ => None,
        }
    }

    /// Whether somebody is told of the requests of some rule alone.
    pub fn logs_rules(&self) -> bool {
        let Some(Compiled::Http(rules)) = self.compiled.as_deref() else { return false };
        rules.rules.iter().any(|rule| rule.policies.as_ref().is_some_and(|policies| policies.logs.is_some()))
    }

    pub fn is_readable(&self) -> bool {
        self.compiled.is_some()
    }
}

impl Own {
    fn of(cluster: &Cluster) -> Self {
        Self { protocol: cluster.protocol, leaves: cluster.leaving.is_some() }
    }
}

/// What routes lead to.
pub(super) fn targets(compiled: &Compiled) -> impl Iterator<Item = &BackendTarget> {
    let (rules, backends) = match compiled {
        Compiled::Http(rules) => (rules.rules.as_slice(), [].as_slice()),
        Compiled::Tcp(backends) => ([].as_slice(), backends.as_slice()),
    };
    let of_rules = rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter().flatten().map(|backend| &backend.to);
        backends.chain(rule.mirrors.iter().map(|mirror| &mirror.to))
    });
    of_rules.chain(backends.iter().map(|backend| &backend.to))
}

impl Split {
    /// Who is next; an error says why that backend is none.
    ///
    /// # Errors
    /// The backend whose turn it is is not there: its share is for nobody else.
    pub fn next(&self, worker: usize) -> Result<&Arc<Cluster>, &str> {
        let next = self.turns.next(worker).and_then(|index| self.clusters.get(index));
        match next {
            Some(backend) => backend.as_ref().map_err(String::as_str),
            None => Err("there is no backend with a weight"),
        }
    }
}

struct Join<'a> {
    clusters: &'a BTreeMap<BackendTarget, Arc<Cluster>>,
    previous: Option<&'a Routing>,
    workers: usize,
    own: Own,
}

impl Join<'_> {
    fn rule(&self, rule: &Rule) -> Way {
        let grpc = self.own.protocol == Protocol::Grpc;
        // Without a word of policies the egress decides.
        let limits = |timeouts: &StreamTimeouts| {
            if self.own.leaves {
                StreamLimits::inbound(timeouts)
            } else {
                StreamLimits::outbound(timeouts, grpc)
            }
        };
        let mirror = |mirror: &meridian_proxy_config::Mirror| {
            let cluster = self.http(&mirror.to).ok()?;
            Some(MirrorTo { per_million: mirror.per_million, cluster })
        };
        Way {
            name: rule.name.clone(),
            split: rule
                .backends
                .as_ref()
                .map(|backends| self.split(&rule.name, backends, |target| self.http(target))),
            mirrors: rule.mirrors.iter().filter_map(mirror).collect(),
            streams: rule.policies.as_ref().map(|policies| limits(&policies.timeouts)),
        }
    }

    fn connections(&self, backends: &[RouteBackend]) -> Way {
        let split = self.split("", backends, |target| self.cluster(target));
        Way { name: String::new(), split: Some(split), mirrors: Vec::new(), streams: None }
    }

    fn split(
        &self,
        name: &str,
        backends: &[RouteBackend],
        find: impl Fn(&BackendTarget) -> Result<Arc<Cluster>, String>,
    ) -> Split {
        let before = self.previous.into_iter().flat_map(|previous| &previous.ways);
        let before = before.filter(|way| way.name == name).filter_map(|way| way.split.as_ref());
        let kept = before.filter(|split| split.backends == backends).map(|split| split.turns.clone()).next();
        let weights = || backends.iter().map(|backend| backend.weight).collect::<Vec<_>>();
        Split {
            turns: kept.unwrap_or_else(|| Arc::new(Turns::new(&weights(), self.workers, rand::random()))),
            clusters: backends.iter().map(|backend| find(&backend.to)).collect(),
            backends: backends.to_vec(),
        }
    }

    fn cluster(&self, target: &BackendTarget) -> Result<Arc<Cluster>, String> {
        match target {
            BackendTarget::Missing(why) => Err(why.clone()),
            BackendTarget::Destination(name)
            | BackendTarget::External(name)
            | BackendTarget::Subset { destination: name, .. } => {
                self.clusters.get(target).cloned().ok_or_else(|| format!("destination {name} has not come"))
            }
        }
    }

    fn http(&self, target: &BackendTarget) -> Result<Arc<Cluster>, String> {
        let cluster = self.cluster(target)?;
        if cluster.protocol.is_http() {
            Ok(cluster)
        } else {
            Err(format!("{} does not speak HTTP", cluster.service))
        }
    }
}
