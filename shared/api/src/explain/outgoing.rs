//! What policies say of a call on the caller's side: where its routes take it, and what holds on the way there.

use super::inside::{Found, with_standing};
use super::question::Question;
use super::{Caller, Decider, Facts, Outcome, Step, routes, words};
use crate::inspect::world::kinds;
use meridian_core::kinds::mesh_access_log::MeshAccessLog;
use meridian_core::kinds::mesh_http_route::MeshHttpRoute;
use meridian_core::kinds::mesh_load_balancing_strategy::MeshLoadBalancingStrategy;
use meridian_core::kinds::mesh_retry::MeshRetry;
use meridian_core::kinds::mesh_service::Port;
use meridian_core::kinds::mesh_tcp_route::MeshTcpRoute;
use meridian_core::kinds::mesh_timeout::MeshTimeout;
use meridian_core::{Key, Kind, TargetKind};
use meridian_policy::{Merged, Policy, ResourceRules, Routes, Section, matches_hash, service_tag, to_conf};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Fields of `http` in a MeshTimeout that hold for a request; all others hold for the connections to a destination.
const OF_STREAMS: [&str; 3] = ["requestTimeout", "streamIdleTimeout", "maxStreamDuration"];

/// Kinds that may say something of one rule of a route.
const OF_ROUTES: [Kind; 4] =
    [MeshTimeout::KIND, MeshRetry::KIND, MeshAccessLog::KIND, MeshLoadBalancingStrategy::KIND];

/// Where routes take a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// To the service that was dialled.
    Itself,
    /// A rule sends the request to these backends. What policies say of requests ([`OF_ROUTES`]) stays the service dialled's, but
    /// for how instances are chosen.
    Requests(String),
    /// The connection goes to these backends, and all that holds is what holds for them.
    Connections(String),
    /// The sidecar answers with this redirect.
    Redirect(String),
}

/// The port that is called, as policies name it.
struct Called<'a> {
    key: &'a Key,
    section: String,
    /// The `kuma.io/service` that it is a view of; a MeshMultiZoneService is none of one.
    tag: Option<&'a str>,
}

/// What the policies of one kind that select the caller say.
struct Said {
    /// From weak to strong.
    policies: Vec<Arc<Policy>>,
    by_resource: ResourceRules,
}

/// What policies say; and what there is to say if the service dialled is not who answers.
pub(super) fn steps(
    facts: &Facts,
    caller: &Caller<'_>,
    question: &Question,
    found: &Found<'_>,
    port: &Port,
) -> (Vec<Step>, Option<Step>) {
    let Some(called) = Called::of(found, port) else { return (Vec::new(), None) };
    let said = |kind: Kind| Said::of(facts, caller, kind);
    let http = said(MeshHttpRoute::KIND).of_port(&called).filter(|it| found.is_http() && has_rules(it));
    let tcp = said(MeshTcpRoute::KIND).of_port(&called);
    let rule = http.as_ref().and_then(|merged| routes::chosen(merged.confs.first()?, question));
    // MeshHTTPRoutes come before MeshTCPRoutes, whether a rule takes the request or not.
    let way = match (&http, &tcp) {
        (Some(_), _) => rule.map_or(Way::Itself, Way::of_rule),
        (None, Some(tcp)) => tcp.confs.first().map_or(Way::Itself, Way::of_connection),
        (None, None) => Way::Itself,
    };
    let mut steps = Vec::new();
    for info in kinds().filter(|info| info.targets.is_some_and(|targets| targets.to)) {
        let step = match info.kind {
            MeshHttpRoute::KIND => http.as_ref().map(|merged| request_step(question, merged, rule)),
            MeshTcpRoute::KIND => tcp.as_ref().map(|merged| connection_step(merged, http.is_some())),
            kind if way.keeps(kind) => {
                let said = said(kind);
                // How instances are chosen is said of the backends, but for the rule's own hash.
                let is_backends = kind == MeshLoadBalancingStrategy::KIND && way != Way::Itself;
                let of_port = said.of_port(&called).filter(|_| !is_backends);
                let own = http.as_ref().zip(rule).and_then(|(merged, rule)| {
                    OF_ROUTES.contains(&kind).then(|| said.of_rule(facts, &called, merged, rule)).flatten()
                });
                plain_step(kind, of_port, own, way == Way::Itself)
            }
            _ => None,
        };
        steps.extend(step.map(|mut step| {
            step.text = with_standing(step.text, info, &["to", "default"]);
            step
        }));
    }
    (steps, way.step())
}

impl Way {
    fn of_rule(rule: &Value) -> Self {
        let conf = rule.get("default");
        let filters = conf.and_then(|conf| conf.get("filters")?.as_array()).into_iter().flatten();
        // Of several the last holds, and before any backend.
        let redirect = filters.filter_map(|filter| filter.get("requestRedirect")).next_back();
        match (redirect, conf.and_then(backends)) {
            (Some(redirect), _) => Self::Redirect(words::conf(redirect)),
            (None, Some(backends)) => Self::Requests(backends),
            (None, None) => Self::Itself,
        }
    }

    fn of_connection(conf: &Value) -> Self {
        conf.get("default").or(Some(conf)).and_then(backends).map_or(Self::Itself, Self::Connections)
    }

    /// Whether what policies of a kind say of the service dialled holds.
    fn keeps(&self, kind: Kind) -> bool {
        match self {
            Self::Itself => true,
            Self::Requests(_) => OF_ROUTES.contains(&kind),
            Self::Connections(_) | Self::Redirect(_) => false,
        }
    }

    /// Who answers can't be told by the service dialled.
    fn step(self) -> Option<Step> {
        match self {
            Self::Itself => None,
            Self::Requests(backends) | Self::Connections(backends) => {
                let text = format!(
                    "the route decides where it goes: ask for its backends by their names ({backends})"
                );
                Some(Step::new("endpoints", Outcome::Unknown, text))
            }
            Self::Redirect(to) => {
                let text =
                    format!("the caller's sidecar answers with a redirect ({to}): ask for where it leads");
                Some(Step::new("redirect", Outcome::Unknown, text))
            }
        }
    }
}

/// The backends of a rule in words; `None`: it has none, and the service itself is meant.
fn backends(conf: &Value) -> Option<String> {
    let references = conf.get("backendRefs")?.as_array().filter(|all| !all.is_empty())?;
    let text =
        |reference: &Value, field: &str| reference.get(field).and_then(Value::as_str).map(str::to_owned);
    let one = |reference: &Value| {
        let name = text(reference, "name").or_else(|| reference.get("labels").map(words::conf));
        let port = reference.get("port").map(|port| format!(" port {port}"));
        let section = text(reference, "sectionName").map(|section| format!(" port {section}"));
        let kind = text(reference, "kind").unwrap_or_default();
        format!("{kind} {}{}", name.unwrap_or_default(), port.or(section).unwrap_or_default())
    };
    Some(references.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn has_rules(merged: &Merged) -> bool {
    let rules = merged.confs.first().and_then(|conf| conf.get("rules")?.as_array());
    rules.is_some_and(|rules| !rules.is_empty())
}

fn request_step(question: &Question, merged: &Merged, rule: Option<&Value>) -> Step {
    let (method, path) = (&question.method, &question.path);
    let (conf, text) = match rule {
        Some(rule) => {
            let does = rule.get("default").map(words::conf).unwrap_or_default();
            (rule.clone(), format!("{method} {path} takes a rule: {does}"))
        }
        None => {
            let conf = merged.confs.first().cloned().unwrap_or_default();
            (conf, format!("no rule takes {method} {path}: it goes to the service"))
        }
    };
    said_step(MeshHttpRoute::KIND, conf, text, Decider::all(merged))
}

fn connection_step(merged: &Merged, is_overridden: bool) -> Step {
    let conf = merged.confs.first().cloned().unwrap_or_default();
    let mut text = words::conf(&conf);
    if is_overridden {
        text.push_str(" (not executed: a MeshHTTPRoute for the same destination comes first)");
    }
    said_step(MeshTcpRoute::KIND, conf, text, Decider::all(merged))
}

/// What is said of the port, or in its place what is said of the route's rule (`own`). Of timeouts a rule has its
/// requests' alone: those of connections are the destination's, and `is_itself` says whether that is the one dialled.
fn plain_step(kind: Kind, of_port: Option<Merged>, own: Option<Merged>, is_itself: bool) -> Option<Step> {
    let conf = |merged: &Merged| merged.confs.first().cloned().unwrap_or_default();
    if kind != MeshTimeout::KIND || (own.is_none() && is_itself) {
        let merged = own.or(of_port)?;
        let text = words::conf(&conf(&merged));
        return Some(said_step(kind, conf(&merged), text, Decider::all(&merged)));
    }
    let streams = own.as_ref().or(of_port.as_ref());
    let connections = of_port.as_ref().filter(|_| is_itself);
    let mut summed = Value::Object(Map::new());
    let mut deciders: Vec<Decider> = Vec::new();
    for (merged, of_streams) in [(streams, true), (connections, false)] {
        let Some(merged) = merged else { continue };
        let part = timeouts(&conf(merged), of_streams);
        if part.as_object().is_some_and(Map::is_empty) {
            continue;
        }
        summed = meridian_policy::merge(&[&summed, &part]).into_iter().next().unwrap_or_default();
        let more = Decider::all(merged).into_iter().filter(|it| !deciders.contains(it)).collect::<Vec<_>>();
        deciders.extend(more);
    }
    (!deciders.is_empty()).then(|| {
        let text = words::conf(&summed);
        said_step(kind, summed, text, deciders)
    })
}

/// Of a MeshTimeout's configuration what holds for requests, or all else.
fn timeouts(conf: &Value, of_streams: bool) -> Value {
    let mut out = Map::new();
    for (name, value) in conf.as_object().into_iter().flatten() {
        match value.as_object().filter(|_| name == "http") {
            Some(http) => {
                let kept = http.iter().filter(|(name, _)| OF_STREAMS.contains(&name.as_str()) == of_streams);
                let kept: Map<String, Value> = kept.map(|(name, it)| (name.clone(), it.clone())).collect();
                if !kept.is_empty() {
                    out.insert(name.clone(), Value::Object(kept));
                }
            }
            None if !of_streams => {
                out.insert(name.clone(), value.clone());
            }
            None => {}
        }
    }
    Value::Object(out)
}

fn said_step(kind: Kind, conf: Value, text: String, deciders: Vec<Decider>) -> Step {
    Step { conf: Some(conf), ..Step::passed(kind.as_str(), text) }.by(deciders)
}

impl<'a> Called<'a> {
    fn of(found: &'a Found<'_>, port: &Port) -> Option<Self> {
        let service = found.services.first()?;
        Some(match found.many {
            None => Self {
                key: &service.resource.key,
                section: port.section_name(),
                tag: service_tag(&service.spec),
            },
            Some(many) => {
                let declared = many.spec.ports.iter().find(|it| it.port == port.port)?;
                Self { key: &many.resource.key, section: declared.section_name(), tag: None }
            }
        })
    }
}

impl Said {
    fn of(facts: &Facts, caller: &Caller<'_>, kind: Kind) -> Self {
        let policies = facts.world.selecting(kind, &caller.subject(), Section::Whole);
        let by_resource = ResourceRules::new(&policies, &facts.world.destinations);
        Self { policies, by_resource }
    }

    /// As a zone compiles it: what is said by `kuma.io/service`, unless a policy names the resource itself. Twin of
    /// `SaidByKind::of_port` in `zone-cp/src/compile/policies/outgoing.rs`.
    fn of_port(&self, called: &Called<'_>) -> Option<Merged> {
        let named = |tag: &&str| self.policies.iter().any(|it| it.named_tags().any(|named| named == *tag));
        let is_own = self.by_resource.names_port(called.key, &called.section);
        let by_tag = called.tag.filter(named).filter(|_| !is_own);
        by_tag.and_then(|tag| to_conf(&self.policies, &Routes::default(), tag, None)).or_else(|| {
            self.by_resource.conf(called.key, &called.section, None).map(|rule| rule.merged.clone())
        })
    }

    /// What is said of a rule of the routes in force (`routes`); `None`: nothing but what is said of the destination. Twin
    /// of `SaidByKind::of_rule` in `zone-cp/src/compile/policies/outgoing/routed.rs`.
    fn of_rule(&self, facts: &Facts, called: &Called<'_>, routes: &Merged, rule: &Value) -> Option<Merged> {
        let matches = rule.get("matches").cloned().unwrap_or_default();
        let route = &routes.origin_of(&matches)?.key;
        if self.by_resource.names(route) {
            let rule = self.by_resource.conf(called.key, &called.section, Some(route));
            return rule.map(|rule| rule.merged.clone());
        }
        let is_of_routes = |policy: &Arc<Policy>| {
            policy.target().is_some_and(|target| target.kind == TargetKind::MeshHttpRoute)
        };
        if !self.policies.iter().any(is_of_routes) || self.by_resource.names_port(called.key, &called.section)
        {
            return None;
        }
        to_conf(&self.policies, &facts.world.routes, called.tag?, Some(&matches_hash(&matches)))
    }
}
