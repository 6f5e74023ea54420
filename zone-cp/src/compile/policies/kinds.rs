//! The tables of kinds: what is executed, and by which function. A new kind is a file beside this one and a line here.

use super::{
    Collectors, access_log, blame, circuit_breaker, fault_injection, health_check, load_balancing,
    rate_limit, request_filter, retry, timeout,
};
use crate::compile::Compiled;
use crate::picture::display_name;
use meridian_core::kinds::mesh_access_log::MeshAccessLog;
use meridian_core::kinds::mesh_circuit_breaker::MeshCircuitBreaker;
use meridian_core::kinds::mesh_fault_injection::MeshFaultInjection;
use meridian_core::kinds::mesh_health_check::MeshHealthCheck;
use meridian_core::kinds::mesh_http_route::MeshHttpRoute;
use meridian_core::kinds::mesh_load_balancing_strategy::MeshLoadBalancingStrategy;
use meridian_core::kinds::mesh_metric::MeshMetric;
use meridian_core::kinds::mesh_proxy_patch::MeshProxyPatch;
use meridian_core::kinds::mesh_rate_limit::MeshRateLimit;
use meridian_core::kinds::mesh_request_filter::MeshRequestFilter;
use meridian_core::kinds::mesh_retry::MeshRetry;
use meridian_core::kinds::mesh_tcp_route::MeshTcpRoute;
use meridian_core::kinds::mesh_timeout::MeshTimeout;
use meridian_core::kinds::mesh_tls::MeshTls;
use meridian_core::kinds::mesh_trace::MeshTrace;
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_core::kinds::{
    mesh_access_log, mesh_circuit_breaker, mesh_fault_injection, mesh_rate_limit, mesh_request_filter,
    mesh_timeout,
};
use meridian_core::{Key, Kind};
use meridian_policy::{InboundRule, Merged, Policy, TaggedRule, inbound_confs};
use meridian_proxy_config::{DestinationPolicies, InboundPolicies, Protocol};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

/// A kind whose `to` is executed.
pub(super) struct Outgoing {
    pub(super) kind: Kind,
    apply: fn(&Merged, Protocol, &Collectors, &mut DestinationPolicies) -> Result<(), serde_json::Error>,
}

/// Adds what a `from` item says of callers with its tags to what an inbound does; the strongest comes first.
type ByTags = fn(&TaggedRule, &mut InboundPolicies) -> Result<(), serde_json::Error>;

/// A kind whose `from` and `rules` are executed.
pub(super) struct Incoming {
    pub(super) kind: Kind,
    apply: fn(&[InboundRule], &Collectors, &mut InboundPolicies) -> Result<(), serde_json::Error>,
    /// The same for `from` items that tell callers apart by their tags; such kinds have nothing else in their `from`.
    pub(super) by_tags: Option<ByTags>,
    /// Whether one rule can be read by itself.
    reads: fn(&Value) -> Result<(), serde_json::Error>,
    /// What holds if one of its policies can't be read, of a kind that guards; of others what can be read holds.
    close: Option<fn(&mut InboundPolicies)>,
}

impl Incoming {
    /// A policy that can't be read takes no other with it.
    pub(super) fn apply_rules(
        &self,
        rules: &[InboundRule],
        collectors: &Collectors,
        policies: &mut InboundPolicies,
        out: &mut Compiled,
    ) {
        let Err(error) = (self.apply)(rules, collectors, policies) else { return };
        let mut broken: BTreeMap<&Key, serde_json::Error> = BTreeMap::new();
        for rule in rules {
            if let Err(error) = (self.reads)(&rule.conf) {
                broken.entry(&rule.origin.policy.key).or_insert(error);
            }
        }
        let is_whole = |rule: &&InboundRule| !broken.contains_key(&rule.origin.policy.key);
        let whole: Vec<InboundRule> = rules.iter().filter(is_whole).cloned().collect();
        let again = match self.close {
            Some(close) => {
                close(policies);
                if broken.is_empty() { Err(error) } else { Ok(()) }
            }
            // Each by itself can be read, and what they add up to can't.
            None if broken.is_empty() => Err(error),
            None => (self.apply)(&whole, collectors, policies),
        };
        if let Err(error) = again {
            blame(whole.iter().map(|rule| &rule.origin.policy.key), &error, out);
        }
        broken.iter().for_each(|(key, error)| blame(std::iter::once(*key), error, out));
    }
}

fn reads<T: DeserializeOwned>(conf: &Value) -> Result<(), serde_json::Error> {
    T::deserialize(conf).map(drop)
}

impl Outgoing {
    pub(super) fn apply_merged(
        &self,
        merged: Option<&Merged>,
        protocol: Protocol,
        collectors: &Collectors,
        policies: &mut DestinationPolicies,
        out: &mut Compiled,
    ) {
        let Some(merged) = merged else { return };
        if let Err(error) = (self.apply)(merged, protocol, collectors, policies) {
            blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
        }
    }
}

pub(super) const OUTGOING: &[Outgoing] = &[
    Outgoing {
        kind: MeshTimeout::KIND,
        apply: |merged, _, _, into| merged.conf().map(|conf| timeout::destination(&conf, into)),
    },
    Outgoing {
        kind: MeshRetry::KIND,
        apply: |merged, protocol, _, into| {
            merged.conf().map(|conf| retry::destination(&conf, protocol, into))
        },
    },
    // Before MeshCircuitBreaker, whose panic threshold wins.
    Outgoing {
        kind: MeshHealthCheck::KIND,
        apply: |merged, protocol, _, into| {
            merged.conf().map(|conf| health_check::destination(&conf, protocol, into))
        },
    },
    Outgoing {
        kind: MeshCircuitBreaker::KIND,
        apply: |merged, _, _, into| merged.conf().map(|conf| circuit_breaker::destination(&conf, into)),
    },
    Outgoing {
        kind: MeshLoadBalancingStrategy::KIND,
        apply: |merged, _, _, into| merged.conf().map(|conf| load_balancing::destination(&conf, into)),
    },
    Outgoing {
        kind: MeshAccessLog::KIND,
        apply: |merged, _, collectors, into| access_log::destination(&merged.conf()?, collectors, into),
    },
];

pub(super) const INCOMING: &[Incoming] = &[
    Incoming {
        kind: MeshTimeout::KIND,
        apply: |rules, _, into| by_caller(rules).map(|confs| timeout::inbound(&confs, into)),
        by_tags: None,
        reads: reads::<mesh_timeout::Conf>,
        close: None,
    },
    Incoming {
        kind: MeshCircuitBreaker::KIND,
        apply: |rules, _, into| by_caller(rules).map(|confs| circuit_breaker::inbound(&confs, into)),
        by_tags: None,
        reads: reads::<mesh_circuit_breaker::Conf>,
        close: None,
    },
    Incoming {
        kind: MeshRateLimit::KIND,
        apply: |rules, _, into| by_caller(rules).map(|confs| rate_limit::inbound(&confs, into)),
        by_tags: None,
        reads: reads::<mesh_rate_limit::Conf>,
        close: None,
    },
    Incoming {
        kind: MeshFaultInjection::KIND,
        apply: |rules, _, into| each(rules).map(|confs| fault_injection::inbound(&confs, into)),
        by_tags: Some(|rule, into| {
            let conf = serde::Deserialize::deserialize(&rule.conf)?;
            into.faults.extend(fault_injection::by_tags(&rule.tags, &conf));
            Ok(())
        }),
        reads: reads::<mesh_fault_injection::Conf>,
        close: None,
    },
    Incoming {
        kind: MeshRequestFilter::KIND,
        apply: |rules, _, into| {
            request_filter::inbound(&by_caller(rules)?, into);
            if let Some(policy) = strongest(rules) {
                request_filter::named(policy, into);
            }
            Ok(())
        },
        by_tags: None,
        reads: reads::<mesh_request_filter::Conf>,
        close: Some(request_filter::close),
    },
    Incoming {
        kind: MeshAccessLog::KIND,
        apply: |rules, collectors, into| access_log::inbound(&each(rules)?, collectors, into),
        by_tags: None,
        reads: reads::<mesh_access_log::Conf>,
        close: None,
    },
];

/// Kinds that say where calls go.
pub(super) const ROUTES: [Kind; 2] = [MeshHttpRoute::KIND, MeshTcpRoute::KIND];

/// Kinds whose `to` holds for calls that leave the mesh, too: executed where these leave it.
pub(super) const LEAVING: [Kind; 3] = [MeshTimeout::KIND, MeshRetry::KIND, MeshCircuitBreaker::KIND];

/// Kinds that say something of a sidecar as a whole.
pub(super) const WHOLE: [Kind; 2] = [MeshMetric::KIND, MeshTrace::KIND];

/// Kinds whose `rules` may name the server name of an entry: executed by egresses.
pub(super) const OF_ENTRIES: [Kind; 2] = [MeshRateLimit::KIND, MeshFaultInjection::KIND];

/// Protocols of destinations, as policies tell them apart: what is TLS to an entry is TCP to these.
pub(super) const PROTOCOLS: [Protocol; 4] = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];

/// Whether policies of a kind are turned into something here.
pub(crate) fn is_executed(kind: Kind) -> bool {
    let by_call = is_outgoing_kind(kind) || INCOMING.iter().any(|it| it.kind == kind);
    by_call || WHOLE.contains(&kind) || kind == MeshTls::KIND || kind == MeshProxyPatch::KIND
}

fn is_outgoing_kind(kind: Kind) -> bool {
    OUTGOING.iter().map(|it| it.kind).chain(ROUTES).any(|it| it == kind)
}

/// Whether a policy says something of calls that go out.
pub(crate) fn is_outgoing(policy: &Policy) -> bool {
    (is_outgoing_kind(policy.key().kind) && policy.is_outgoing()) || is_patch(policy)
}

/// A modification of a proxy is one of all that it does.
pub(super) fn is_patch(policy: &Policy) -> bool {
    policy.key().kind == MeshProxyPatch::KIND
}

/// Whether a policy says where calls go: [`meridian_policy::Routes::is_route`] means MeshHTTPRoutes alone.
pub(crate) fn says_where(policy: &Policy) -> bool {
    ROUTES.contains(&policy.key().kind)
}

/// Whether a policy may say something of entries.
pub(crate) fn is_of_entries(policy: &Policy) -> bool {
    OF_ENTRIES.contains(&policy.key().kind) && policy.is_incoming()
}

/// What rules add up to for each kind of caller: the first that matches decides, the last is for everybody.
pub(super) fn by_caller<T: DeserializeOwned>(
    rules: &[InboundRule],
) -> Result<Vec<(Option<RuleMatch>, T)>, serde_json::Error> {
    let confs = inbound_confs(rules);
    confs.into_iter().map(|conf| Ok((conf.matched, conf.merged.conf()?))).collect()
}

/// Rules of which every one that matches a caller acts, and last what those for everybody add up to.
fn each<T: DeserializeOwned>(
    rules: &[InboundRule],
) -> Result<Vec<(Option<RuleMatch>, T)>, serde_json::Error> {
    let (for_all, for_some): (Vec<_>, Vec<_>) =
        rules.iter().cloned().partition(|rule| rule.matched.is_none());
    let read = |rule: InboundRule| Ok((rule.matched, T::deserialize(&rule.conf)?));
    let mut confs = for_some.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    confs.extend(by_caller(&for_all)?);
    Ok(confs)
}

/// The name of the policy that has the last word on what holds for everybody.
fn strongest(rules: &[InboundRule]) -> Option<&str> {
    let last = rules.iter().rfind(|rule| rule.matched.is_none())?;
    Some(display_name(&last.origin.policy))
}
