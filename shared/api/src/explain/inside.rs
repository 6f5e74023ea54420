//! A call to a service of the mesh.

use super::question::Question;
use super::{Caller, Decider, Facts, Outcome, Step, display, outgoing, plaintext, words};
use crate::inspect::world::{kinds, subject};
use meridian_core::kinds::dataplane::{Dataplane, Inbound, InboundState};
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh::{MeshServicesMode, MtlsMode};
use meridian_core::kinds::mesh_access_log::MeshAccessLog;
use meridian_core::kinds::mesh_fault_injection::MeshFaultInjection;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::{MeshService, Port, State};
use meridian_core::kinds::mesh_traffic_permission::{MeshTrafficPermission, RuleMatch};
use meridian_core::{Kind, KindInfo, Resource, Standing, document, labels};
use meridian_policy::{
    InboundRule, Parsed, Section, TaggedRule, caller_match, hostnames, inbound_confs, inbound_permission,
    inbound_rules, is_reachable, leads_to, legacy_hostname, listed_hostnames, offered, protocol, refers,
    service_tag, spoken, tagged_rules,
};
use meridian_proxy_config::{CallerIdentity, CallerMatch, Protocol, Verdict};
use serde_json::{Value, json};

/// Where `<service>.mesh` answers beside the ports of the service.
const LEGACY_PORT: u16 = 80;
/// Instances that are named one by one where they differ.
const NAMED: usize = 5;
/// Kinds of which every rule that matches a caller acts. Twin of those with `each` in `INCOMING` of
/// `zone-cp/src/compile/policies/kinds.rs`.
const EACH_ACTS: [Kind; 2] = [MeshFaultInjection::KIND, MeshAccessLog::KIND];

/// The service that is meant.
pub(super) struct Found<'a> {
    asked: &'a str,
    /// By whose name they are called, if by one's of several zones.
    pub(super) many: Option<&'a Parsed<MeshMultiZoneService>>,
    /// Of the caller's zone first.
    pub(super) services: Vec<&'a Parsed<MeshService>>,
    /// By its `kuma.io/service`, in all zones.
    is_legacy: bool,
    /// `None`: it has no such port.
    port: Option<&'a Port>,
}

/// Part of an answer that instances give, and who gives it.
type Shared<T> = Vec<(T, Vec<String>)>;

/// The MeshServices that the host names, or of the MeshMultiZoneService that it names; `None` if it names none, or an
/// ExternalService, whose names no service of the mesh can take.
pub(super) fn find<'a>(facts: &'a Facts, caller: &Caller<'_>, question: &'a Question) -> Option<Found<'a>> {
    if facts.external_services.iter().any(|it| has_name(&it.spec, question)) {
        return None;
    }
    let by_name = |it: &Resource| hostnames(caller.zone(), &facts.generators, it).contains(&question.host);
    let has_names = facts.mesh.spec.mesh_services_mode() != MeshServicesMode::Disabled;
    let mut services: Vec<&Parsed<MeshService>> =
        facts.services.iter().filter(|it| has_names && by_name(&it.resource)).collect();
    if services.is_empty()
        && let Some(many) = facts.multi_zone_services.iter().find(|it| by_name(&it.resource))
    {
        return Some(of_many_zones(facts, caller, question, many));
    }
    let is_legacy = services.is_empty();
    if is_legacy {
        let by_tag = |it: &&Parsed<MeshService>| {
            let tag = service_tag(&it.spec);
            tag.is_some_and(|tag| legacy_hostname(tag) == question.host)
                || (question.is_word()
                    && (tag == Some(&question.host) || display(&it.resource) == question.host))
        };
        services.extend(facts.services.iter().filter(by_tag));
    }
    services.sort_by_key(|it| it.resource.key.zone != caller.zone());
    if services.is_empty() {
        return None;
    }
    let declared = |number: u32| {
        let ports = || services.iter().filter_map(move |it| Some((*it, port_of(it, number)?)));
        let word = agreed(caller, ports());
        ports().map(|(_, port)| port).find(|port| Some(protocol(port.protocol())) == word)
    };
    let lowest = || {
        let numbers = services.iter().flat_map(|it| &it.spec.ports).map(|port| port.port);
        numbers.min().and_then(declared)
    };
    let port = match question.port {
        None => lowest(),
        Some(LEGACY_PORT) if is_legacy => declared(u32::from(LEGACY_PORT)).or_else(lowest),
        Some(number) => declared(u32::from(number)),
    };
    Some(Found { asked: &question.asked, many: None, services, is_legacy, port })
}

/// Whether the host is a name of this ExternalService, or a word that means its `kuma.io/service`.
fn has_name(service: &ExternalService, question: &Question) -> bool {
    let names = listed_hostnames(service);
    names.contains(&question.host) || (question.is_word() && names.contains(&legacy_hostname(&question.host)))
}

/// Those that a MeshMultiZoneService selects and that serve its port; of which kind they must be, HTTP or not, its port
/// says, or the first of them.
fn of_many_zones<'a>(
    facts: &'a Facts,
    caller: &Caller<'_>,
    question: &'a Question,
    many: &'a Parsed<MeshMultiZoneService>,
) -> Found<'a> {
    let mut services: Vec<&Parsed<MeshService>> =
        facts.services.iter().filter(|it| many.spec.selector.matches(&it.resource.labels)).collect();
    services.sort_by_key(|it| it.resource.key.zone != caller.zone());
    let asked = question.port.map(u32::from);
    let ports = many.spec.ports.iter().filter(|port| asked.is_none_or(|asked| port.port == asked));
    let Some(declared) = ports.min_by_key(|port| port.port) else {
        return Found { asked: &question.asked, many: Some(many), services, is_legacy: false, port: None };
    };
    let offered = |it: &&'a Parsed<MeshService>| Some((*it, port_of(it, declared.port)?));
    let word = match protocol(&declared.app_protocol) {
        Protocol::Tcp => agreed(caller, services.iter().filter_map(offered)),
        said => Some(said),
    };
    let is_spoken =
        |port: &Port| word.is_some_and(|word| protocol(port.protocol()).is_http() == word.is_http());
    services.retain(|it| port_of(it, declared.port).is_some_and(is_spoken));
    let port = services.first().and_then(|it| port_of(it, declared.port));
    Found { asked: &question.asked, many: Some(many), services, is_legacy: false, port }
}

fn port_of(service: &Parsed<MeshService>, number: u32) -> Option<&Port> {
    service.spec.ports.iter().find(|port| port.port == number)
}

fn agreed<'a>(
    caller: &Caller<'_>,
    offers: impl Iterator<Item = (&'a Parsed<MeshService>, &'a Port)>,
) -> Option<Protocol> {
    spoken(caller.zone(), offers.map(|(it, port)| (it.resource.key.zone.as_str(), protocol(port.protocol()))))
}

impl Found<'_> {
    pub(super) fn shown(&self) -> Value {
        let one = |resource: &Resource| {
            json!({
                "type": resource.key.kind.as_str(), "name": display(resource), "zone": resource.key.zone,
                "kri": document::kri(resource),
            })
        };
        let services = self.many.iter().map(|it| &it.resource);
        let services = services.chain(self.services.iter().map(|it| &it.resource)).map(one);
        json!({
            "asked": self.asked,
            "services": services.collect::<Vec<_>>(),
            "port": self.port.map(|port| port.port),
            "protocol": self.port.map(Port::protocol),
        })
    }

    /// Whether the caller's sidecar learns of the name: `reachableBackends` are MeshServices, `reachableServices` are the
    /// names `<service>.mesh`.
    fn is_known_to(&self, caller: &Caller<'_>) -> bool {
        let networking = caller.dataplane.spec.networking.as_ref();
        let transparent = networking.and_then(|it| it.transparent_proxying.as_ref());
        // What an outbound of its Dataplane names, it knows in any case.
        let outbounds = || networking.iter().flat_map(|it| &it.outbound);
        let is_named = |resource: &Resource| {
            let mut references = outbounds().filter_map(|it| it.backend_ref.as_ref());
            references
                .any(|to| to.kind == resource.key.kind.as_str() && refers(resource, &to.name, &to.labels))
        };
        if let Some(many) = self.many {
            return is_reachable(transparent, &many.resource) || is_named(&many.resource);
        }
        let listed = transparent.map(|it| &it.reachable_services).filter(|listed| !listed.is_empty());
        self.services.iter().any(|service| match (self.is_legacy, listed) {
            (false, _) => is_reachable(transparent, &service.resource) || is_named(&service.resource),
            (true, None) => true,
            (true, Some(listed)) => service_tag(&service.spec).is_some_and(|tag| {
                listed.iter().any(|it| it == tag)
                    || outbounds().any(|it| it.tags.get(labels::SERVICE).is_some_and(|it| it == tag))
            }),
        })
    }

    /// Whether one name means instances of all zones.
    fn spans_zones(&self) -> bool {
        self.is_legacy || self.many.is_some()
    }

    pub(super) fn is_http(&self) -> bool {
        self.port.is_some_and(|port| protocol(port.protocol()).is_http())
    }

    /// In words.
    fn meant(&self) -> String {
        let names: Vec<String> = self
            .services
            .iter()
            .map(|it| format!("{} of zone {}", display(&it.resource), it.resource.key.zone))
            .collect();
        match self.many {
            None => format!("MeshService {}", names.join(", ")),
            Some(many) if names.is_empty() => format!("MeshMultiZoneService {}", display(&many.resource)),
            Some(many) => {
                format!("MeshMultiZoneService {}: MeshService {}", display(&many.resource), names.join(", "))
            }
        }
    }
}

/// Everything that is decided, in the order in which it happens.
pub(super) fn steps(facts: &Facts, caller: &Caller<'_>, question: &Question, found: &Found<'_>) -> Vec<Step> {
    let meant = found.meant();
    let Some(port) = found.port else {
        let text = match (found.many, question.port) {
            (Some(many), Some(number)) if many.spec.ports.iter().all(|it| it.port != u32::from(number)) => {
                format!("{meant} has no port {number}")
            }
            (Some(_), _) => format!("{meant} has no endpoints: it selects no MeshService with that port"),
            (None, number) => format!("{meant} has no port {}", number.unwrap_or_default()),
        };
        return vec![Step::denied("destination", text)];
    };
    if !found.is_known_to(caller) {
        let text = format!("{meant} is not among what the caller may reach: the name is unknown to it");
        return vec![Step::denied("destination", text)];
    }
    let text = format!("{meant}, port {} ({})", port.port, port.protocol());
    let mut steps = vec![Step::passed("destination", text)];
    let (said, elsewhere) = outgoing::steps(facts, caller, question, found, port);
    steps.extend(said);
    if let Some(elsewhere) = elsewhere {
        steps.push(elsewhere);
        return steps;
    }
    let is_plain = plaintext::is_spoken(facts, caller.zone(), &found.services);
    steps.push(endpoints(facts, caller, found, is_plain));
    steps.push(identity(facts, is_plain));
    steps.extend(incoming(facts, caller, found, is_plain));
    steps
}

/// Where instances are, and whether the caller's zone has a way there.
fn endpoints(facts: &Facts, caller: &Caller<'_>, found: &Found<'_>, is_plain: bool) -> Step {
    let mut said = Vec::new();
    let mut reachable = 0;
    for service in &found.services {
        let zone = service.resource.key.zone.as_str();
        let (ready, total) =
            plaintext::status_of(service).dataplane_proxies.map_or((0, 0), |it| (it.healthy, it.total));
        let usable = ready > 0 && (zone == caller.zone() || service.spec.state == State::Available);
        match way(facts, caller, found, zone, is_plain) {
            Ok(way) => {
                reachable += u32::from(usable);
                said.push(format!("zone {zone}: {ready} of {total} ready, {way}"));
            }
            Err(why) => said.push(format!("zone {zone}: {ready} of {total} ready, not reachable: {why}")),
        }
    }
    let outcome = if reachable == 0 { Outcome::Denied } else { Outcome::Passed };
    Step::new("endpoints", outcome, said.join("; "))
}

/// How the caller's zone gets to a zone of the service; an error says why it does not.
fn way(
    facts: &Facts,
    caller: &Caller<'_>,
    found: &Found<'_>,
    zone: &str,
    is_plain: bool,
) -> Result<String, String> {
    if zone == caller.zone() {
        return Ok("in the caller's zone".to_owned());
    }
    // A service by its own name, of another zone, is always spoken to by mTLS where the mesh has it.
    if !facts.mtls() || (is_plain && found.spans_zones()) {
        Err("plaintext does not cross zones".to_owned())
    } else if !facts.ingresses.contains(zone) {
        Err(format!("zone {zone} has no ZoneIngress with an advertised address"))
    } else if facts.egress_enforced() && !facts.egresses.contains(caller.zone()) {
        Err(format!("zone {} has no ZoneEgress", caller.zone()))
    } else if facts.egress_enforced() {
        Ok(format!("by the ZoneEgress of {} and the ZoneIngress of {zone}", caller.zone()))
    } else {
        Ok(format!("by the ZoneIngress of {zone}"))
    }
}

fn identity(facts: &Facts, is_plain: bool) -> Step {
    let mode = facts.mesh.spec.mtls_backend().map(|backend| backend.mode);
    let text = match mode {
        None => "mTLS is off: plaintext, and nobody is asked for a permission",
        Some(MtlsMode::Strict) => "mTLS (STRICT)",
        Some(MtlsMode::Permissive) if is_plain => {
            "plaintext until all of the service's instances in the caller's zone have certificates (PERMISSIVE), and \
             nobody is asked for a permission"
        }
        Some(MtlsMode::Permissive) => {
            "mTLS (PERMISSIVE: plaintext is taken too, and permissions do not cover it)"
        }
    };
    Step::passed("identity", text).by([Decider::of(&facts.mesh.resource)])
}

/// An instance's inbound that takes the call.
type Instance<'a> = (&'a Parsed<Dataplane>, &'a Inbound);

/// What the instances say.
fn incoming(facts: &Facts, caller: &Caller<'_>, found: &Found<'_>, is_plain: bool) -> Vec<Step> {
    let mut instances: Vec<Instance<'_>> = Vec::new();
    let mut steps = Vec::new();
    let has_way =
        |it: &Parsed<MeshService>| way(facts, caller, found, &it.resource.key.zone, is_plain).is_ok();
    // Who can't be reached has no say, unless nobody can be.
    let some_have = found.services.iter().any(|it| has_way(it));
    for service in found.services.iter().filter(|it| !some_have || has_way(it)) {
        let zone = &service.resource.key.zone;
        if facts.here.as_ref().is_some_and(|here| here != zone) {
            let text = format!("decided by the instances in zone {zone}: ask global, or that zone");
            steps.push(Step::new("instances", Outcome::Unknown, text));
            continue;
        }
        let Some(port) = service.spec.ports.iter().find(|it| Some(it.port) == found.port.map(|it| it.port))
        else {
            continue;
        };
        for dataplane in &facts.dataplanes {
            let inbounds = offered(service, dataplane).into_iter();
            let taking = inbounds.filter(|it| leads_to(port, it) && it.state != InboundState::Ignored);
            instances.extend(taking.map(|inbound| (dataplane, inbound)));
        }
    }
    if instances.is_empty() {
        return steps;
    }
    if !is_plain {
        steps.extend(permission(facts, caller, &instances));
    }
    // Who speaks plaintext is nobody to whom a rule could be.
    let nobody = CallerIdentity::default();
    let identity = if is_plain { &nobody } else { &caller.identity };
    for info in kinds().filter(|info| info.kind != MeshTrafficPermission::KIND) {
        steps.extend(at_inbound(facts, identity, info, &instances));
    }
    steps
}

/// One step for each answer.
fn permission(facts: &Facts, caller: &Caller<'_>, instances: &[Instance<'_>]) -> Vec<Step> {
    let mesh = &facts.mesh.resource.key.name;
    let decide = |(dataplane, inbound): &Instance<'_>| {
        let permission = inbound_permission(mesh, &subject(dataplane), inbound, &facts.permissions);
        match permission.decide(&caller.identity, None) {
            Verdict::Allow { policy, shadow_denied } => (true, shadow_denied, Some(policy.to_owned())),
            Verdict::Deny { policy } => (false, false, policy.map(str::to_owned)),
        }
    };
    let answers = by_answer(instances, decide);
    let only = answers.len() == 1;
    // Where instances differ, the call may meet either.
    let some_allow = answers.iter().any(|((allowed, ..), _)| *allowed);
    let step = |((allowed, shadow, policy), who): ((bool, bool, Option<String>), Vec<String>)| {
        let who = named(&who, only);
        let text = match (allowed, shadow, &policy) {
            (true, false, _) => format!("let in by {who}"),
            (true, true, _) => format!("let in by {who}, and counted as a denial to come"),
            (false, _, Some(_)) => format!("refused by {who}: a rule denies it"),
            (false, _, None) => {
                format!("refused by {who}: no rule allows {}", caller.identity.spiffe.join(", "))
            }
        };
        let outcome = match (allowed, some_allow) {
            (true, _) => Outcome::Passed,
            (false, true) => Outcome::Unknown,
            (false, false) => Outcome::Denied,
        };
        Step::new("MeshTrafficPermission", outcome, text).by(policy.map(|policy| decider(facts, &policy)))
    };
    answers.into_iter().map(step).collect()
}

/// The permission of that name.
pub(super) fn decider(facts: &Facts, name: &str) -> Decider {
    let found = facts.permissions.iter().find(|it| display(&it.resource) == name);
    // Of the Mesh's own rule the name says which field it is.
    let field = name.strip_prefix("Mesh ").unwrap_or(name);
    let unnamed =
        || Decider { kind: "Mesh".to_owned(), name: field.to_owned(), kri: None, items: Vec::new() };
    found.map_or_else(unnamed, |it| Decider::of(&it.resource))
}

/// What policies of one kind say at the instances' inbounds of this caller.
fn at_inbound(
    facts: &Facts,
    caller: &CallerIdentity,
    info: &KindInfo,
    instances: &[Instance<'_>],
) -> Vec<Step> {
    let said = |(dataplane, inbound): &Instance<'_>| {
        let policies = facts.world.selecting(info.kind, &subject(dataplane), Section::Inbound(inbound));
        let (mut rules, tagged) = (inbound_rules(&policies), tagged_rules(&policies));
        rules.retain(|rule| tagged.is_empty() || !rule.of_from);
        if EACH_ACTS.contains(&info.kind) { every(&rules, &tagged, caller) } else { first(&rules, caller) }
    };
    let answers = by_answer(instances, said);
    let only = answers.len() == 1;
    let step = |(said, who): (Option<(Value, Vec<Decider>)>, Vec<String>)| {
        let (conf, deciders) = said?;
        let text = format!("at {}: {}", named(&who, only), words::conf(&conf));
        let text = with_standing(text, info, &["rules", "from", "default"]);
        Some(Step { conf: Some(conf), ..Step::passed(info.kind.as_str(), text) }.by(deciders))
    };
    answers.into_iter().filter_map(step).collect()
}

/// What rules add up to for the caller: of the kinds of callers the first that it is.
fn first(rules: &[InboundRule], caller: &CallerIdentity) -> Option<(Value, Vec<Decider>)> {
    let conf = inbound_confs(rules).into_iter().find(|conf| means(conf.matched.as_ref(), caller))?;
    Some((conf.merged.confs.first().cloned().unwrap_or_default(), Decider::all(&conf.merged)))
}

/// Every rule that matches acts, and those for everybody are one; of those by tags the first.
fn every(
    rules: &[InboundRule],
    tagged: &[TaggedRule],
    caller: &CallerIdentity,
) -> Option<(Value, Vec<Decider>)> {
    let (for_all, for_some): (Vec<InboundRule>, Vec<InboundRule>) =
        rules.iter().cloned().partition(|rule| rule.matched.is_none());
    let (mut confs, mut deciders) = (Vec::new(), Vec::new());
    for rule in for_some.iter().filter(|rule| means(rule.matched.as_ref(), caller)) {
        confs.push(rule.conf.clone());
        deciders.push(Decider { items: vec![rule.origin.item], ..Decider::of(&rule.origin.policy) });
    }
    let by_tags = |rule: &&TaggedRule| {
        let matched = CallerMatch { tags: rule.tags.clone(), ..CallerMatch::default() };
        rule.conf.get("http").is_some() && matched.matches(caller, None)
    };
    if let Some(rule) = tagged.iter().find(by_tags) {
        confs.push(rule.conf.clone());
        deciders.push(Decider { items: vec![rule.origin.item], ..Decider::of(&rule.origin.policy) });
    }
    if let Some((conf, more)) = first(&for_all, caller) {
        confs.push(conf);
        deciders.extend(more);
    }
    (!confs.is_empty()).then_some((Value::Array(confs), deciders))
}

fn means(matched: Option<&RuleMatch>, caller: &CallerIdentity) -> bool {
    matched.is_none_or(|matched| caller_match(matched).matches(caller, None))
}

/// The instances by what they answer, in the order of their first.
fn by_answer<T: PartialEq>(instances: &[Instance<'_>], ask: impl Fn(&Instance<'_>) -> T) -> Shared<T> {
    let mut answers: Shared<T> = Vec::new();
    for instance in instances {
        let (answer, name) = (ask(instance), display(&instance.0.resource).to_owned());
        match answers.iter_mut().find(|(known, _)| *known == answer) {
            Some((_, who)) => who.push(name),
            None => answers.push((answer, vec![name])),
        }
    }
    answers
}

fn named(who: &[String], all: bool) -> String {
    match who {
        [one] => format!("instance {one}"),
        several if all => format!("all {} instances", several.len()),
        several if several.len() <= NAMED => format!("instances {}", several.join(", ")),
        several => format!("{} instances", several.len()),
    }
}

/// Says so where nothing executes these lists of the kind.
pub(super) fn with_standing(text: String, info: &KindInfo, lists: &[&str]) -> String {
    let covers =
        |path: &str| lists.iter().any(|list| path == *list || path.strip_prefix(*list) == Some("[].default"));
    let warned = info.fields.iter().find_map(|(path, standing)| match standing {
        Standing::Warned(reason) if covers(path) => Some(*reason),
        _ => None,
    });
    warned.map_or(text.clone(), |reason| format!("{text} (not executed: {reason})"))
}
