//! The rotation of a mesh's root: pure decisions. [`crate::rotate`] reads the facts and writes the steps.
//!
//! ```text
//!  Start ──► Distributing ──────────► Reissuing ──────────► (done: only the target is left)
//!            roots [old, new]         roots [new, old]
//!            until all zones and      until no intermediate and no leaf
//!            proxies know both        chains to the old one
//! ```
//! The first root signs. An abort while distributing just drops the new one; while reissuing it turns around: the old root
//! becomes the target, and goes the same way back. So no step ever takes away what somebody may still present. The state
//! is the bundle's own status: whoever changes it expects the bundle's revision, so of many replicas one takes each step,
//! and a kill between two steps loses nothing.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A rotation under way. Roots are named by the hashes of their keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rotation {
    pub(crate) phase: Phase,
    /// What is to be the only root.
    pub(crate) target: String,
    /// What is to go.
    pub(crate) leaving: String,
    /// It was turned around.
    #[serde(default)]
    pub(crate) aborting: bool,
    /// Who asked for it.
    pub(crate) by: String,
    /// RFC 3339.
    pub(crate) started: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Everybody learns the new root.
    Distributing,
    /// Everybody gets certificates of the target.
    Reissuing,
}

/// What is known of those who must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Zones that hold a live intermediate of the mesh.
    pub(crate) zones: BTreeMap<String, ZoneFacts>,
    /// Registered proxies of the mesh (egresses too), by zone and wire name.
    pub(crate) proxies: BTreeMap<String, ProxyFacts>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ZoneFacts {
    /// It has applied the bundle's present revision.
    pub(crate) acknowledged: bool,
    /// Root of the newest intermediate that it was given.
    pub(crate) issuer: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyFacts {
    /// Roots that it has acknowledged.
    pub(crate) trusts: BTreeSet<String>,
    /// It has said what certificates it has, to the zone control plane that runs now.
    pub(crate) heard: bool,
    /// The root of its leaf; none: it has no certificate yet.
    pub(crate) leaf: Option<String>,
}

impl Rotation {
    /// Who is not there yet, in words. Empty: the next step may be taken.
    pub(crate) fn waiting_for(&self, facts: &Facts) -> Vec<String> {
        let zones = facts.zones.iter().filter_map(|(zone, is)| match self.phase {
            _ if !is.acknowledged => Some(format!("zone {zone}: has not applied the bundle")),
            Phase::Reissuing if is.issuer != self.target => {
                Some(format!("zone {zone}: its intermediate is of the leaving root"))
            }
            _ => None,
        });
        let proxies = facts.proxies.iter().filter_map(|(proxy, is)| match self.phase {
            Phase::Distributing => {
                let knows = is.trusts.contains(&self.target) && is.trusts.contains(&self.leaving);
                (!knows).then(|| format!("{proxy}: has not acknowledged both roots"))
            }
            // A zone control plane that has just restarted knows of proxies before it hears from them.
            Phase::Reissuing if !is.heard => Some(format!("{proxy}: has not reported its certificates")),
            Phase::Reissuing => (is.leaf.as_ref().is_some_and(|root| *root != self.target))
                .then(|| format!("{proxy}: its certificate is of the leaving root")),
        });
        zones.chain(proxies).collect()
    }

    /// The next phase; None: it is done.
    pub(crate) fn next(&self) -> Option<Self> {
        match self.phase {
            Phase::Distributing => Some(Self { phase: Phase::Reissuing, ..self.clone() }),
            Phase::Reissuing => None,
        }
    }

    /// The roots of the bundle in this phase, the one that signs first.
    pub(crate) fn order(&self) -> [&str; 2] {
        match self.phase {
            Phase::Distributing => [&self.leaving, &self.target],
            Phase::Reissuing => [&self.target, &self.leaving],
        }
    }

    /// Turned around: None if nobody can have a certificate of the target yet, so that it may just go.
    pub(crate) fn aborted(&self) -> Option<Self> {
        match self.phase {
            Phase::Distributing => None,
            Phase::Reissuing => Some(Self {
                target: self.leaving.clone(),
                leaving: self.target.clone(),
                aborting: !self.aborting,
                ..self.clone()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rotation(phase: Phase) -> Rotation {
        Rotation {
            phase,
            target: "new".into(),
            leaving: "old".into(),
            aborting: false,
            by: "jo".into(),
            started: String::new(),
        }
    }

    fn facts(acknowledged: bool, issuer: &str, trusts: &[&str], leaf: Option<&str>) -> Facts {
        let proxy = ProxyFacts {
            trusts: trusts.iter().map(|t| (*t).to_owned()).collect(),
            heard: true,
            leaf: leaf.map(str::to_owned),
        };
        Facts {
            zones: BTreeMap::from([(
                "east".to_owned(),
                ZoneFacts { acknowledged, issuer: issuer.to_owned() },
            )]),
            proxies: BTreeMap::from([("east Dataplane/default/web".to_owned(), proxy)]),
        }
    }

    #[test]
    fn a_proxy_that_has_not_been_heard_yet_is_waited_for() {
        let mut facts = facts(true, "new", &["old", "new"], None);
        assert!(rotation(Phase::Reissuing).waiting_for(&facts).is_empty());
        facts.proxies.values_mut().for_each(|proxy| proxy.heard = false);
        let waiting = rotation(Phase::Reissuing).waiting_for(&facts);
        assert_eq!(waiting, ["east Dataplane/default/web: has not reported its certificates"]);
    }

    #[test]
    fn nobody_is_given_a_certificate_that_somebody_does_not_know() {
        let distributing = rotation(Phase::Distributing);
        let table = [
            (false, &["old", "new"][..], 1),
            (true, &["old"][..], 1),
            (false, &["old"][..], 2),
            (true, &["old", "new"][..], 0),
        ];
        for (acknowledged, trusts, waits) in table {
            let waiting = distributing.waiting_for(&facts(acknowledged, "old", trusts, Some("old")));
            assert_eq!(waiting.len(), waits, "{waiting:?}");
        }
    }

    #[test]
    fn the_old_root_stays_while_something_chains_to_it() {
        let reissuing = rotation(Phase::Reissuing);
        let both = &["old", "new"][..];
        assert_eq!(reissuing.waiting_for(&facts(true, "old", both, Some("old"))).len(), 2);
        assert_eq!(reissuing.waiting_for(&facts(true, "new", both, Some("old"))).len(), 1);
        assert_eq!(reissuing.waiting_for(&facts(true, "old", both, Some("new"))).len(), 1);
        assert!(reissuing.waiting_for(&facts(true, "new", both, Some("new"))).is_empty());
        assert!(reissuing.waiting_for(&facts(true, "new", both, None)).is_empty(), "a proxy without mTLS");
    }

    #[test]
    fn an_abort_while_reissuing_goes_the_same_way_back() {
        assert_eq!(rotation(Phase::Distributing).aborted(), None);
        let back = rotation(Phase::Reissuing).aborted().unwrap();
        assert_eq!((back.order(), back.aborting), (["old", "new"], true));
        assert_eq!(back.waiting_for(&facts(true, "new", &["old", "new"], Some("new"))).len(), 2);
        assert!(!back.aborted().unwrap().aborting, "and may be turned around again");
    }

    #[test]
    fn a_mesh_without_zones_waits_for_nobody() {
        assert!(rotation(Phase::Distributing).waiting_for(&Facts::default()).is_empty());
        assert_eq!(rotation(Phase::Distributing).next().unwrap().order(), ["new", "old"]);
        assert_eq!(rotation(Phase::Reissuing).next(), None);
    }

    /// One thing that may happen while a root rotates.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        ZoneApplies,
        ZoneRenews,
        ProxyLearns,
        ProxyRenews,
        Step,
        Abort,
    }

    proptest! {
        /// Whatever the order of events: what the proxy presents is always in the bundle, and in what it has acknowledged
        /// itself (others like it verify it by that).
        #[test]
        fn no_order_of_events_leaves_a_certificate_without_its_root(
            events in proptest::collection::vec(
                prop_oneof![
                    Just(Event::ZoneApplies), Just(Event::ZoneRenews), Just(Event::ProxyLearns),
                    Just(Event::ProxyRenews), Just(Event::Step), Just(Event::Abort),
                ],
                0..60,
            )
        ) {
            let mut running = Some(rotation(Phase::Distributing));
            let mut bundle = vec!["old".to_owned(), "new".to_owned()];
            let mut zone_bundle = vec!["old".to_owned()];
            let mut issuer = "old".to_owned();
            let mut trusts = vec!["old".to_owned()];
            let mut leaf = "old".to_owned();
            for event in events {
                match event {
                    Event::ZoneApplies => zone_bundle.clone_from(&bundle),
                    // Global signs with the bundle's first root, whatever the zone knows.
                    Event::ZoneRenews => issuer.clone_from(&bundle[0]),
                    Event::ProxyLearns => trusts.clone_from(&zone_bundle),
                    Event::ProxyRenews => leaf.clone_from(&issuer),
                    Event::Abort => {
                        if let Some(now) = running.clone() {
                            running = now.aborted();
                            bundle = running.as_ref().map_or_else(
                                || vec![now.leaving.clone()],
                                |r| r.order().map(str::to_owned).to_vec(),
                            );
                        }
                    }
                    Event::Step => {
                        let Some(now) = running.clone() else { continue };
                        let known: Vec<&str> = trusts.iter().map(String::as_str).collect();
                        let facts = facts(zone_bundle == bundle, &issuer, &known, Some(&leaf));
                        if now.waiting_for(&facts).is_empty() {
                            let target = now.target.clone();
                            running = now.next();
                            bundle = running.as_ref().map_or_else(
                                || vec![target],
                                |r| r.order().map(str::to_owned).to_vec(),
                            );
                        }
                    }
                }
                prop_assert!(bundle.contains(&leaf), "{bundle:?} lacks {leaf}");
                prop_assert!(bundle.contains(&issuer), "{bundle:?} lacks {issuer}");
                prop_assert!(trusts.contains(&leaf) , "{trusts:?} lacks {leaf}");
            }
        }
    }
}
