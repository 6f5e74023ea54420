//! A call to a host outside of the mesh: what lists it, and what the egress would make of it.

use super::inside::decider;
use super::question::Question;
use super::{Caller, Decider, Facts, Outcome, Step, display};
use meridian_core::kinds::data_source::DataSource;
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh_external_service::{MeshExternalService, TlsVersion};
use meridian_core::kinds::mesh_passthrough::MatchType;
use meridian_core::{Key, document, labels};
use meridian_policy::{
    Parsed, PassthroughEntry, external_service_permission, hostnames, is_reachable, legacy_hostname,
    mesh_external_service_permission, passthrough, refers,
};
use meridian_proxy_config::sni::{Sni, SniKind};
use meridian_proxy_config::{CallerMode, HostMatch, Permission, Verdict};
use serde_json::{Value, json};

/// Where `<service>.mesh` answers beside the port of an ExternalService.
const LEGACY_PORT: u16 = 80;

/// An entry of the allowlist, of whatever kind.
struct Entry<'a> {
    listed: Listed<'a>,
    /// Empty: every one.
    ports: Vec<u16>,
    originates_tls: bool,
    /// The zone that it leaves from, if not the caller's.
    pinned: Option<&'a str>,
}

enum Listed<'a> {
    Service(&'a Parsed<ExternalService>),
    Mesh(&'a Parsed<MeshExternalService>),
    Passthrough(PassthroughEntry),
}

impl Entry<'_> {
    fn has(&self, port: Option<u16>) -> bool {
        self.ports.is_empty() || port.is_none_or(|port| self.ports.contains(&port))
    }

    fn named(&self) -> String {
        match &self.listed {
            Listed::Service(it) => format!("ExternalService {}", display(&it.resource)),
            Listed::Mesh(it) => format!("MeshExternalService {}", display(&it.resource)),
            Listed::Passthrough(it) => format!("MeshPassthrough {} ({})", it.policy, it.match_.value),
        }
    }

    /// Whether the caller's sidecar learns of it. A MeshPassthrough that selects the caller is told to it. Twin of
    /// `sidecars` and `own_members` in `zone-cp/src/compile/members.rs`.
    fn is_known_to(&self, caller: &Caller<'_>) -> bool {
        let Some(networking) = &caller.dataplane.spec.networking else { return true };
        let transparent = networking.transparent_proxying.as_ref();
        match &self.listed {
            Listed::Service(it) => {
                let tag = it.spec.service();
                let listed = transparent.map(|it| it.reachable_services.as_slice()).unwrap_or_default();
                listed.is_empty()
                    || listed.iter().any(|it| tag == Some(it))
                    || networking
                        .outbound
                        .iter()
                        .any(|it| tag.is_some() && it.tags.get(labels::SERVICE).map(String::as_str) == tag)
            }
            Listed::Mesh(it) => {
                let references = networking.outbound.iter().filter_map(|it| it.backend_ref.as_ref());
                is_reachable(transparent, &it.resource)
                    || references
                        .filter(|to| to.kind == MeshExternalService::KIND.as_str())
                        .any(|to| refers(&it.resource, &to.name, &to.labels))
            }
            Listed::Passthrough(_) => true,
        }
    }

    /// Why zones refuse it whoever asks, or may (`Unknown`). Twin of `extsvc_entry` and `service_entry` in
    /// `zone-cp/src/compile/external.rs`.
    fn flaw(&self) -> Option<Step> {
        let (sources, version): ([(&str, Option<&DataSource>); 3], Option<&TlsVersion>) = match &self.listed {
            Listed::Mesh(it) if it.spec.endpoints.is_empty() => {
                let text = format!("{} has no endpoints: zones refuse it (invalid-entry)", self.named());
                return Some(Step::denied("entry", text));
            }
            Listed::Mesh(it) => {
                let tls = it.spec.tls.as_ref().filter(|tls| tls.enabled)?;
                let of = tls.verification.as_ref();
                let versions = tls.version.iter().flat_map(|it| it.min.iter().chain(&it.max));
                let known = [TlsVersion::Auto, TlsVersion::Tls12, TlsVersion::Tls13];
                let sources = [
                    ("tls.verification.caCert", of.and_then(|it| it.ca_cert.as_ref())),
                    ("tls.verification.clientCert", of.and_then(|it| it.client_cert.as_ref())),
                    ("tls.verification.clientKey", of.and_then(|it| it.client_key.as_ref())),
                ];
                (sources, versions.into_iter().find(|version| !known.contains(version)))
            }
            Listed::Service(it) => {
                let tls = it.spec.networking.as_ref()?.tls.as_ref().filter(|tls| tls.enabled)?;
                let sources = [
                    ("tls.caCert", tls.ca_cert.as_ref()),
                    ("tls.clientCert", tls.client_cert.as_ref()),
                    ("tls.clientKey", tls.client_key.as_ref()),
                ];
                (sources, None)
            }
            Listed::Passthrough(_) => return None,
        };
        let mut secrets = Vec::new();
        for (field, source) in sources {
            let Some(source) = source else { continue };
            if let Some(name) = source.secret_name() {
                secrets.push(format!("{field}: {name}"));
            } else if source.inline_bytes().is_none_or(|bytes| String::from_utf8(bytes).is_err()) {
                let text = format!("{}: {field} is no text: zones refuse it (invalid-entry)", self.named());
                return Some(Step::denied("entry", text));
            }
        }
        if let Some(version) = version {
            let text = format!(
                "{}: tls.version {version} is not spoken: zones refuse it (invalid-entry)",
                self.named()
            );
            return Some(Step::denied("entry", text));
        }
        // Only administrators read Secrets, and who asks here need not be one.
        (!secrets.is_empty()).then(|| {
            let text = format!(
                "{} needs Secrets, which are not looked at here ({}): without them zones refuse it (invalid-entry)",
                self.named(),
                secrets.join(", ")
            );
            Step::new("entry", Outcome::Unknown, text)
        })
    }

    fn decider(&self, facts: &Facts) -> Decider {
        match &self.listed {
            Listed::Service(it) => Decider::of(&it.resource),
            Listed::Mesh(it) => Decider::of(&it.resource),
            Listed::Passthrough(it) => {
                let named = facts.passthroughs.iter().find(|policy| display(&policy.resource) == it.policy);
                let unnamed = || Decider {
                    kind: "MeshPassthrough".to_owned(),
                    name: it.policy.clone(),
                    kri: None,
                    items: Vec::new(),
                };
                named.map_or_else(unnamed, |policy| Decider::of(&policy.resource))
            }
        }
    }
}

/// What is meant, and everything that is decided.
pub(super) fn explain(facts: &Facts, caller: &Caller<'_>, question: &Question) -> (Value, Vec<Step>) {
    let selected = passthrough(&facts.mesh.spec, &caller.subject(), &facts.passthroughs);
    let mut entries = services(facts, caller, question);
    entries.extend(selected.entries.into_iter().filter_map(|entry| passed(entry, question)));
    let (entries, hidden): (Vec<_>, Vec<_>) = entries.into_iter().partition(|it| it.is_known_to(caller));
    let nearest = entries.iter().find(|entry| entry.has(question.port)).or(entries.first());
    let Some(entry) = nearest else {
        let step = hidden.first().map(|entry| vec![out_of_reach(facts, question, selected.mode, entry)]);
        let steps = step.unwrap_or_else(|| unlisted(facts, caller, question, selected.mode));
        return (json!({ "asked": question.asked }), steps);
    };
    let target =
        json!({ "asked": question.asked, "entry": entry.named(), "ports": entry.ports, "kri": kri(entry) });
    if !entry.has(question.port) {
        let ports: Vec<String> = entry.ports.iter().map(u16::to_string).collect();
        let text = format!(
            "{} lists {} on port {} only (port-not-listed)",
            entry.named(),
            question.host,
            ports.join(", ")
        );
        return (target, vec![Step::denied("allowlist", text).by([entry.decider(facts)])]);
    }
    let listed = format!("{} lists {}", entry.named(), question.shown());
    let mut steps = vec![Step::passed("allowlist", listed).by([entry.decider(facts)])];
    if let Some(flaw) = entry.flaw() {
        let is_refused = flaw.outcome == Outcome::Denied;
        steps.push(flaw.by([entry.decider(facts)]));
        if is_refused {
            return (target, steps);
        }
    }
    steps.push(way(facts, caller, entry));
    if facts.mtls() {
        steps.extend(permission(facts, caller, entry));
    }
    steps.push(held(question, entry));
    (target, steps)
}

fn kri(entry: &Entry<'_>) -> Option<String> {
    match &entry.listed {
        Listed::Service(it) => Some(document::kri(&it.resource)),
        Listed::Mesh(it) => Some(document::kri(&it.resource)),
        Listed::Passthrough(_) => None,
    }
}

/// ExternalServices and MeshExternalServices that the host names.
fn services<'a>(facts: &'a Facts, caller: &Caller<'_>, question: &Question) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for service in &facts.external_services {
        let Some((address, port)) = service.spec.host_and_port() else { continue };
        let by_address = same_host(address, question);
        let tag = service.spec.service().unwrap_or_default();
        let by_tag = legacy_hostname(tag) == question.host || (question.is_word() && tag == question.host);
        if !by_address && !by_tag {
            continue;
        }
        let legacy = Some(LEGACY_PORT).filter(|_| by_tag && !by_address);
        let tls = service.spec.networking.as_ref().and_then(|it| it.tls.as_ref());
        entries.push(Entry {
            listed: Listed::Service(service),
            ports: [port].into_iter().chain(legacy).collect(),
            originates_tls: tls.is_some_and(|tls| tls.enabled),
            pinned: service.spec.zone().filter(|zone| *zone != caller.zone()),
        });
    }
    for service in &facts.mesh_external_services {
        let names = hostnames(caller.zone(), &facts.generators, &service.resource);
        let by_name = names.contains(&question.host)
            || (question.is_word() && display(&service.resource) == question.host);
        if !by_name && !service.spec.endpoints.iter().any(|it| same_host(&it.address, question)) {
            continue;
        }
        entries.push(Entry {
            listed: Listed::Mesh(service),
            ports: u16::try_from(service.spec.match_.port).into_iter().collect(),
            originates_tls: service.spec.tls.as_ref().is_some_and(|tls| tls.enabled),
            pinned: None,
        });
    }
    entries
}

fn same_host(listed: &str, question: &Question) -> bool {
    let listed = listed.trim_end_matches('.');
    match question.address() {
        Some(address) => listed.parse().is_ok_and(|listed: std::net::IpAddr| listed == address),
        None => listed.eq_ignore_ascii_case(&question.host),
    }
}

/// What a MeshPassthrough lists, if that is the host.
fn passed(entry: PassthroughEntry, question: &Question) -> Option<Entry<'static>> {
    let value = &entry.match_.value;
    let host = match entry.match_.type_ {
        MatchType::Domain => match value.strip_prefix('*') {
            Some(parent) => HostMatch::Wildcard(parent.trim_start_matches('.').to_owned()),
            None => HostMatch::Exact(value.clone()),
        },
        MatchType::Ip => HostMatch::Ip(value.parse().ok()?),
        MatchType::Cidr => HostMatch::Net(value.parse().ok()?),
        MatchType::Other(_) => return None,
    };
    let means = match question.address() {
        Some(address) => host.has_address(address.to_canonical()),
        None => host.has_name(&question.host),
    };
    let ports = entry.match_.port.and_then(|port| u16::try_from(port).ok()).into_iter().collect();
    means.then_some(Entry { listed: Listed::Passthrough(entry), ports, originates_tls: false, pinned: None })
}

fn unlisted(facts: &Facts, caller: &Caller<'_>, question: &Question, mode: CallerMode) -> Vec<Step> {
    if mode != CallerMode::All {
        let text = format!(
            "nothing lists {}: no ExternalService, no MeshExternalService and no MeshPassthrough that selects {} (not-listed)",
            question.shown(),
            display(&caller.dataplane.resource)
        );
        return vec![Step::denied("allowlist", text)];
    }
    let text = format!(
        "nothing lists {}, but passthrough is on: any public address may be reached",
        question.shown()
    );
    let mut steps = vec![Step::passed("allowlist", text)];
    steps.push(if !facts.egress_enforced() {
        Step::passed("way out", "dialled by the sidecar")
    } else if facts.egresses.contains(caller.zone()) {
        Step::passed("way out", format!("by the ZoneEgress of zone {}", caller.zone()))
    } else {
        no_egress(caller)
    });
    steps
}

/// An entry that the caller's sidecar does not know. With passthrough it is a host like any other to the sidecar: what its
/// name resolves to decides, and the egress.
fn out_of_reach(facts: &Facts, question: &Question, mode: CallerMode, entry: &Entry<'_>) -> Step {
    let (outcome, end) = match mode {
        CallerMode::All => {
            (Outcome::Unknown, "passthrough is on, so it depends on what the name resolves to")
        }
        _ => (Outcome::Denied, "its sidecar does not know it (not-listed)"),
    };
    let text = format!(
        "{} lists {}, but is not among what the caller may reach: {end}",
        entry.named(),
        question.shown()
    );
    Step::new("allowlist", outcome, text).by([entry.decider(facts)])
}

fn no_egress(caller: &Caller<'_>) -> Step {
    let text = format!(
        "zone {} has no ZoneEgress, and the mesh lets nothing out otherwise (no-egress)",
        caller.zone()
    );
    Step::denied("way out", text)
}

/// How it leaves.
fn way(facts: &Facts, caller: &Caller<'_>, entry: &Entry<'_>) -> Step {
    let zone = caller.zone();
    if !facts.egress_enforced() {
        return match (&entry.listed, entry.pinned) {
            (Listed::Mesh(_), _) => {
                let text = "a MeshExternalService needs mTLS and routing.zoneEgress in its mesh (no-egress)";
                Step::denied("way out", text).by([Decider::of(&facts.mesh.resource)])
            }
            (_, Some(other)) => {
                let text = format!(
                    "it leaves from zone {other}, which only an egress reaches: the mesh has none (no-egress)"
                );
                Step::denied("way out", text).by([Decider::of(&facts.mesh.resource)])
            }
            _ => Step::passed("way out", "dialled by the sidecar, with the entry's checks"),
        };
    }
    if !facts.egresses.contains(zone) {
        return no_egress(caller);
    }
    match entry.pinned {
        Some(other) if !facts.ingresses.contains(other) => {
            let text = format!("it leaves from zone {other}, which has no ZoneIngress (zone-unreachable)");
            Step::denied("way out", text)
        }
        Some(other) => {
            let text = format!(
                "by the ZoneEgress of {zone}, the ZoneIngress of {other}, and the ZoneEgress of {other}"
            );
            Step::passed("way out", text)
        }
        None => Step::passed("way out", format!("by the ZoneEgress of zone {zone}")),
    }
}

/// What the egress asks of the caller's certificate. A MeshPassthrough that selects the caller is its permission.
fn permission(facts: &Facts, caller: &Caller<'_>, entry: &Entry<'_>) -> Option<Step> {
    let port = *entry.ports.first()?;
    let name = |key: &Key, name: &str| {
        let port = port.to_string();
        let zone = entry.pinned.unwrap_or(caller.zone());
        let sni = Sni { kind: SniKind::External, mesh: &key.mesh, zone, namespace: None, name, port: &port };
        sni.to_string()
    };
    let (permission, sni): (Permission, String) = match &entry.listed {
        Listed::Service(it) => {
            let sni = name(&it.resource.key, display(&it.resource));
            (external_service_permission(&it.spec, &sni, &facts.permissions), sni)
        }
        Listed::Mesh(it) => {
            let sni = name(&it.resource.key, display(&it.resource));
            let mesh = &facts.mesh.spec;
            let permission =
                mesh_external_service_permission(mesh, &it.resource, &it.spec, &sni, &facts.permissions);
            (permission, sni)
        }
        Listed::Passthrough(_) => return None,
    };
    let step = "MeshTrafficPermission";
    Some(match permission.decide(&caller.identity, Some(&sni)) {
        Verdict::Allow { policy, shadow_denied } => {
            let more = if shadow_denied { ", and counts it as a denial to come" } else { "" };
            Step::passed(step, format!("the egress lets the caller use it{more}"))
                .by([decider(facts, policy)])
        }
        Verdict::Deny { policy: Some(policy) } => {
            Step::denied(step, "the egress refuses it: a rule denies it").by([decider(facts, policy)])
        }
        Verdict::Deny { policy: None } => {
            let text = format!("the egress refuses it: no rule allows {}", caller.identity.spiffe.join(", "));
            Step::denied(step, text)
        }
    })
}

/// What the connection is held to.
fn held(question: &Question, entry: &Entry<'_>) -> Step {
    let protocol = match &entry.listed {
        Listed::Service(it) => it.spec.protocol().to_owned(),
        Listed::Mesh(it) => it.spec.match_.protocol.to_string(),
        Listed::Passthrough(it) => it.match_.protocol.to_string(),
    };
    let name = &question.host;
    let mut text = match protocol.as_str() {
        _ if question.address().is_some() => "the address that was dialled".to_owned(),
        "http" | "http2" | "grpc" => format!("Host {name}, and an address that {name} resolves to"),
        "tls" => format!("a ClientHello with SNI {name}, and an address that {name} resolves to"),
        _ => format!("an address that {name} resolves to, and SNI {name} if it is TLS"),
    };
    text.push_str(", and public addresses unless the entry names others");
    if entry.originates_tls {
        text.push_str("; TLS begins at the egress: the caller speaks plaintext");
    }
    Step::passed("held to", format!("{protocol}: {text}"))
}
