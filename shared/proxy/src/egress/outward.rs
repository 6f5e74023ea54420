//! What traffic policies say of calls that leave the mesh, as the proxy executes it that sees them leave.
//!
//! Requests to the outside are first read where they leave the mesh, so it is the egress (or a sidecar that leaves by
//! itself) that holds them to their time, limits how many there are, and repeats them: each caller's by the policies that
//! select that caller. How much a caller has under way is counted by caller and entry, as if each had a proxy of its
//! own; one who takes all that it may takes nothing from others.

use crate::{
    policy::{
        at_once::{Active, Limits, Load},
        retry::{RetryPolicy, affordable},
        timeouts::{ConnectionLimits, StreamLimits},
    },
    snapshot::Snapshot,
};
use meridian_proxy_config::{
    self as config, DestinationPolicies, Protocol, policies_for_others, policies_of_callers,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
};

/// What holds for the calls of some callers to one entry.
#[derive(Debug)]
pub struct Outward {
    pub config: Arc<DestinationPolicies>,
    pub connections: ConnectionLimits,
    streams: StreamLimits,
    grpc_streams: StreamLimits,
    /// Of each worker.
    pub at_once: Limits,
    pub retry: Option<Arc<RetryPolicy>>,
    /// How often a connection is tried; `None`: at some addresses, each once.
    pub connect_attempts: Option<usize>,
}

impl Outward {
    pub fn compile(
        config: &Arc<DestinationPolicies>,
        retry: Option<Arc<RetryPolicy>>,
        workers: usize,
    ) -> Self {
        Self {
            config: config.clone(),
            connections: ConnectionLimits::from(&config.connection_timeouts),
            streams: StreamLimits::outbound(&config.stream_timeouts, false),
            grpc_streams: StreamLimits::outbound(&config.stream_timeouts, true),
            at_once: Limits::share(&config.at_once, workers),
            retry,
            connect_attempts: crate::policy::retry::connect_attempts(config),
        }
    }

    /// Where no policy says anything.
    pub fn unsaid() -> Self {
        Self::compile(&Arc::default(), None, 1)
    }

    pub fn streams(&self, grpc: bool) -> StreamLimits {
        if grpc { self.grpc_streams } else { self.streams }
    }
}

/// Whose calls they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// This sidecar's own application's.
    Own,
    /// A Dataplane's of this zone.
    Dataplane(String),
    /// Somebody's of whom this zone knows no policies.
    Other,
}

impl Caller {
    /// By what its certificate says. A Dataplane of another zone may have the name of one of this.
    pub(crate) fn of(identity: &config::CallerIdentity, zone: &str) -> Self {
        match &identity.dataplane {
            Some(dataplane) if identity.zone == zone => Self::Dataplane(dataplane.clone()),
            _ => Self::Other,
        }
    }

    /// What holds for its calls to an entry now.
    pub(crate) fn outward(&self, snapshot: &Snapshot, mesh: &str, entry: &config::Entry) -> Arc<Outward> {
        let set = match self {
            Self::Own => Some(""),
            Self::Dataplane(name) => snapshot
                .caller(mesh, name)
                .map(|caller| caller.policies.as_str())
                .filter(|set| !set.is_empty()),
            Self::Other => None,
        };
        // Policies tell TLS from no other bytes.
        let protocol = if entry.protocol == Protocol::Tls { Protocol::Tcp } else { entry.protocol };
        let said = set.and_then(|set| {
            let named = |name: &str| snapshot.outward.get(policies_of_callers(set, name).as_str());
            named(&entry.key).or_else(|| named(policies_for_others(protocol)))
        });
        said.cloned().unwrap_or_else(|| Arc::new(Outward::unsaid()))
    }
}

/// What one caller has under way towards one entry, at one worker.
#[derive(Default)]
pub(crate) struct Underway {
    pub(crate) load: Load,
    waiting: Rc<Cell<usize>>,
    repeating: Rc<Cell<usize>>,
}

impl Underway {
    /// Counts a request until it is answered.
    pub(crate) fn wait(&self) -> Active {
        Active::new(&self.waiting)
    }

    /// Counts a repetition, if the policy's limit, or else the budget, allows one more.
    pub(crate) fn repeat(&self, limits: &Limits) -> Option<Active> {
        let repeating = self.repeating.get();
        let allowed = match limits.retries {
            Some(limit) => repeating < limit,
            None => affordable(self.waiting.get(), repeating),
        };
        allowed.then(|| Active::new(&self.repeating))
    }
}

/// Of a worker, by caller and entry; there as long as the caller has a connection.
#[derive(Default)]
pub struct Ledger(RefCell<HashMap<(String, String), Weak<Underway>>>);

/// So many may be there before those that nobody has any more are looked for.
const SWEEP_FROM: usize = 64;

impl Ledger {
    pub(crate) fn of(&self, caller: &str, entry: &str) -> Rc<Underway> {
        let mut all = self.0.borrow_mut();
        let key = (caller.to_owned(), entry.to_owned());
        if let Some(there) = all.get(&key).and_then(Weak::upgrade) {
            return there;
        }
        // Each sweep is paid for by as many insertions as it may find.
        if all.len() >= SWEEP_FROM && all.len() == all.capacity() {
            all.retain(|_, underway| underway.strong_count() > 0);
        }
        let underway = Rc::new(Underway::default());
        all.insert(key, Rc::downgrade(&underway));
        underway
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proxy_config::{
        AddressPolicy, CallerIdentity, CallerMode, EntryKind, EntryPolicies, Permission,
    };

    fn policies(seconds: u64) -> Arc<Outward> {
        let config: DestinationPolicies = serde_json::from_str(&format!(
            r#"{{"streamTimeouts": {{"requestMillis": {}}}}}"#,
            seconds * 1000
        ))
        .unwrap();
        Arc::new(Outward::compile(&Arc::new(config), None, 1))
    }

    fn entry(protocol: Protocol) -> config::Entry {
        config::Entry {
            key: "m/extsvc//api".into(),
            mesh: "m".into(),
            kind: EntryKind::MeshExternalService,
            protocol,
            hosts: vec![],
            ports: vec![],
            endpoints: vec![],
            tls: None,
            addresses: AddressPolicy::default(),
            permission: Permission::default(),
            policies: EntryPolicies::default(),
        }
    }

    fn seconds(outward: &Outward) -> Option<u64> {
        outward.config.stream_timeouts.request_millis.map(|millis| millis / 1000)
    }

    #[test]
    fn each_caller_has_its_own_and_a_stranger_none() {
        let mut snapshot = Snapshot::default();
        for (name, policies) in [
            ("*/http", policies(1)),
            ("a|m/extsvc//api", policies(2)),
            ("a|*/http", policies(3)),
            ("b|*/http", policies(4)),
            ("b|*/tcp", policies(5)),
        ] {
            snapshot.outward.insert(name.into(), policies);
        }
        for (name, set) in [("web-1", "a"), ("web-2", "b"), ("web-3", "")] {
            let caller = config::Caller {
                mesh: "m".into(),
                dataplane: name.into(),
                mode: CallerMode::None,
                entries: vec![],
                policies: set.into(),
            };
            snapshot.callers.insert(("m".into(), name.into()), Arc::new(caller));
        }
        let said = |caller: Caller, protocol| seconds(&caller.outward(&snapshot, "m", &entry(protocol)));
        let of = |name: &str| Caller::Dataplane(name.into());
        for (caller, protocol, expected) in [
            (Caller::Own, Protocol::Http, Some(1)),
            (Caller::Own, Protocol::Tcp, None),
            (of("web-1"), Protocol::Http, Some(2)),
            (of("web-2"), Protocol::Http, Some(4)),
            (of("web-2"), Protocol::Tls, Some(5)),
            // Selected by no policy, and unknown: not what holds for this proxy itself.
            (of("web-3"), Protocol::Http, None),
            (of("web-4"), Protocol::Http, None),
            (Caller::Other, Protocol::Http, None),
        ] {
            assert_eq!(said(caller.clone(), protocol), expected, "{caller:?} {protocol:?}");
        }
    }

    #[test]
    fn a_caller_is_known_in_its_own_zone_only() {
        let identity = |zone: &str, dataplane: Option<&str>| CallerIdentity {
            mesh: "m".into(),
            zone: zone.into(),
            dataplane: dataplane.map(str::to_owned),
            ..CallerIdentity::default()
        };
        assert_eq!(Caller::of(&identity("east", Some("web-1")), "east"), Caller::Dataplane("web-1".into()));
        assert_eq!(Caller::of(&identity("west", Some("web-1")), "east"), Caller::Other);
        assert_eq!(Caller::of(&identity("east", None), "east"), Caller::Other);
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let ledger = Ledger::default();
        let kept = ledger.of("web", "api");
        assert!(Rc::ptr_eq(&kept, &ledger.of("web", "api")));
        for n in 0..10_000 {
            drop(ledger.of("web", &n.to_string()));
        }
        assert!(ledger.0.borrow().len() < 1_000, "{}", ledger.0.borrow().len());
        assert!(Rc::ptr_eq(&kept, &ledger.of("web", "api")));
    }
}
