use crate::precedence::{is_for_namespace, zone, zone_of};
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::{Key, ProxyType, Resource, TargetKind, TargetRef, labels, names};
use std::collections::BTreeMap;

/// A Dataplane as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub key: &'a Key,
    pub labels: &'a BTreeMap<String, String>,
    pub spec: &'a Dataplane,
}

/// One inbound of a [`Subject`].
pub type InboundRef<'a> = Option<&'a Inbound>;

type Tags = BTreeMap<String, String>;

/// Policies with this label are tried out, not executed.
const EFFECT: &str = "kuma.io/effect";
const SHADOW: &str = "shadow";

impl<'a> Subject<'a> {
    fn zone(&self) -> &'a str {
        zone_of(self.key, self.labels)
    }

    fn namespace(&self) -> &'a str {
        self.labels.get(labels::NAMESPACE).map_or("", String::as_str)
    }

    /// A label, of which some say what the key says.
    fn label(&self, name: &str) -> Option<&'a str> {
        match name {
            labels::DISPLAY_NAME => Some(names::display(&self.key.name, self.labels)),
            labels::MESH => Some(&self.key.mesh),
            labels::ZONE => Some(self.zone()),
            _ => self.labels.get(name).map(String::as_str),
        }
    }

    fn inbounds(&self) -> &'a [Inbound] {
        self.spec.networking.as_ref().map_or(&[], |networking| &networking.inbound)
    }

    /// The sets of tags in question: that of `inbound`, or those of all inbounds and of the gateway.
    fn tag_sets(&self, inbound: InboundRef<'a>) -> impl Iterator<Item = &'a Tags> {
        let whole = match inbound {
            Some(inbound) => (std::slice::from_ref(inbound), None),
            None => (self.inbounds(), self.gateway()),
        };
        whole.0.iter().map(|inbound| &inbound.tags).chain(whole.1)
    }

    fn gateway(&self) -> Option<&'a Tags> {
        Some(&self.spec.networking.as_ref()?.gateway.as_ref()?.tags)
    }

    fn proxy_type(&self) -> ProxyType {
        if self.gateway().is_some() { ProxyType::Gateway } else { ProxyType::Sidecar }
    }
}

/// Whether a policy's top-level targetRef selects a Dataplane: one inbound of it, or (`None`) the Dataplane as a
/// whole, as policies on outgoing traffic do. An absent targetRef selects the whole mesh.
pub fn selects(
    policy: &Resource,
    target: Option<&TargetRef>,
    subject: &Subject<'_>,
    inbound: InboundRef<'_>,
) -> bool {
    if policy.key.mesh != subject.key.mesh || !is_executed(policy) {
        return false;
    }
    if !zone(policy).is_empty() && zone(policy) != subject.zone() {
        return false;
    }
    let namespace = policy.labels.get(labels::NAMESPACE).map_or("", String::as_str);
    if is_for_namespace(policy) && namespace != subject.namespace() {
        return false;
    }
    target.is_none_or(|target| matches(policy, target, subject, inbound))
}

/// Policies that are only tried out change nothing.
pub(crate) fn is_executed(policy: &Resource) -> bool {
    policy.labels.get(EFFECT).is_none_or(|effect| effect != SHADOW)
}

fn matches(policy: &Resource, target: &TargetRef, subject: &Subject<'_>, inbound: InboundRef<'_>) -> bool {
    let of_type = target.proxy_types.is_empty() || target.proxy_types.contains(&subject.proxy_type());
    match target.kind {
        TargetKind::Mesh => of_type,
        TargetKind::MeshSubset => {
            of_type && subject.tag_sets(inbound).any(|tags| is_subset(target.tags.as_ref(), tags))
        }
        TargetKind::MeshService | TargetKind::MeshServiceSubset => {
            subject.tag_sets(inbound).any(|tags| is_service(target, tags))
        }
        TargetKind::Dataplane => {
            is_dataplane(policy, target, subject) && has_section(target.section_name(), subject, inbound)
        }
        // These name no Dataplane.
        TargetKind::MeshGateway
        | TargetKind::MeshExternalService
        | TargetKind::MeshMultiZoneService
        | TargetKind::MeshHttpRoute
        | TargetKind::Other(_) => false,
    }
}

fn is_subset(wanted: Option<&Tags>, tags: &Tags) -> bool {
    wanted.into_iter().flatten().all(|(name, value)| tags.get(name) == Some(value))
}

/// Whether a MeshService or MeshServiceSubset reference means what has these tags.
pub(crate) fn is_service(target: &TargetRef, tags: &Tags) -> bool {
    let service = tags.get(labels::SERVICE).map(String::as_str);
    service.is_some() && target.name() == service && is_subset(target.tags.as_ref(), tags)
}

/// Labels select everywhere; a name only where the policy was written: elsewhere it would be another Dataplane's.
fn is_dataplane(policy: &Resource, target: &TargetRef, subject: &Subject<'_>) -> bool {
    let labelled = |(name, value): (&String, &String)| subject.label(name) == Some(value);
    if !target.labels.iter().flatten().all(labelled) {
        return false;
    }
    let Some(name) = target.name() else {
        return target.namespace().is_none_or(|namespace| namespace == subject.namespace());
    };
    let own = policy.labels.get(labels::NAMESPACE).map_or("", String::as_str);
    name == names::display(&subject.key.name, subject.labels)
        && target.namespace().unwrap_or(own) == subject.namespace()
        && zone(policy) == subject.zone()
}

fn has_section(section: Option<&str>, subject: &Subject<'_>, inbound: InboundRef<'_>) -> bool {
    let Some(section) = section else {
        return true;
    };
    let is_it = |inbound: &Inbound| inbound.section_name() == section;
    inbound.map_or_else(|| subject.inbounds().iter().any(is_it), is_it)
}
