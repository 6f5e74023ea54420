//! What policies say of calls that come in: to an inbound of a sidecar, and to an entry at an egress. Both depend on who
//! is called, so that they are part of the inbound's and the entry's own resource.

use super::kinds::{INCOMING, OF_ENTRIES, is_patch};
use super::proxy_patch::{self, Patches, Place};
use super::{blame, tls};
use crate::compile::{Compiled, protocol};
use crate::picture::{MeshPicture, subject};
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::mesh_proxy_patch::MeshProxyPatch;
use meridian_policy::{Parsed, Policy, Routes, Section, entry_rules, inbound_rules, tagged_rules};
use meridian_proxy_config::{EntryPolicies, InboundPolicies};

/// Whether a policy says something of the calls to some inbound of a sidecar, or of its sessions.
pub(crate) fn selects_incoming(policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    if is_patch(policy) {
        return policy.selects(&Routes::default(), &subject(dataplane), Section::Whole);
    }
    let is_here = INCOMING.iter().any(|it| it.kind == policy.key().kind);
    let inbounds = dataplane.spec.networking.iter().flat_map(|networking| &networking.inbound);
    (is_here && policy.is_incoming() && inbounds.into_iter().any(|inbound| takes(policy, dataplane, inbound)))
        || tls::selects(policy, dataplane)
}

fn takes(policy: &Policy, dataplane: &Parsed<Dataplane>, inbound: &Inbound) -> bool {
    policy.selects(&Routes::default(), &subject(dataplane), Section::Inbound(inbound))
}

/// What holds for calls to an inbound.
pub(crate) fn inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    out: &mut Compiled,
) -> InboundPolicies {
    let mut policies = InboundPolicies::default();
    let (subject, section) = (subject(dataplane), Section::Inbound(inbound));
    for of in INCOMING {
        let mut selecting = mesh.policies.selecting(of.kind, &Routes::default(), &subject, section);
        selecting.retain(|policy| policy.is_incoming());
        let mut rules = inbound_rules(&selecting);
        let tagged = of.by_tags.map(|by_tags| (by_tags, tagged_rules(&selecting)));
        let tagged = tagged.filter(|(_, tagged)| !tagged.is_empty());
        rules.retain(|rule| tagged.is_none() || !rule.of_from);
        of.apply_rules(&rules, &mesh.collectors, &mut policies, out);
        for (by_tags, rule) in
            tagged.iter().flat_map(|(by_tags, rules)| rules.iter().map(move |it| (by_tags, it)))
        {
            if let Err(error) = by_tags(rule, &mut policies) {
                blame(std::iter::once(&rule.origin.policy.key), &error, out);
            }
        }
    }
    patch_inbound(mesh, dataplane, inbound, &mut policies, out);
    policies
}

/// Modifications come after all other kinds.
fn patch_inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    policies: &mut InboundPolicies,
    out: &mut Compiled,
) {
    let subject = subject(dataplane);
    let selecting = mesh.policies.selecting(MeshProxyPatch::KIND, &mesh.routes, &subject, Section::Whole);
    if selecting.is_empty() {
        return;
    }
    let address = dataplane.spec.networking.as_ref().map(|networking| networking.address.as_str());
    let address =
        Some(inbound.address.as_str()).filter(|own| !own.is_empty()).or(address).unwrap_or_default();
    let port = if inbound.service_port == 0 { inbound.port } else { inbound.service_port };
    let place = Place {
        origin: "inbound",
        protocol: protocol(inbound.declared_protocol()),
        listener: Some(format!("inbound:{address}:{}", inbound.port)),
        tags: Some(&inbound.tags),
        cluster: Some(format!("localhost:{port}")),
    };
    match Patches::read(&selecting) {
        Ok(patches) => patches.inbound(&place, policies),
        Err(error) => {
            proxy_patch::close(policies);
            blame(selecting.iter().map(|policy| policy.key()), &error, out);
        }
    }
}

/// What holds for calls to the entry whose server name at the egress is `sni`.
pub(crate) fn entry(mesh: &MeshPicture, sni: &str, out: &mut Compiled) -> EntryPolicies {
    let mut policies = InboundPolicies::default();
    for of in INCOMING.iter().filter(|of| OF_ENTRIES.contains(&of.kind)) {
        let all = mesh.policies.values().filter(|policy| policy.key().kind == of.kind).cloned();
        of.apply_rules(&entry_rules(&all.collect::<Vec<_>>(), sni), &mesh.collectors, &mut policies, out);
    }
    EntryPolicies { faults: policies.faults, rate_limits: policies.rate_limits }
}
