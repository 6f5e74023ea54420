use crate::Routes;
use crate::meta::{Meta, Role};
use crate::policy::Policy;
use meridian_core::kinds::dataplane::{Dataplane, Inbound, Listener};
use meridian_core::{Key, ProxyType, Resource, TargetKind, TargetRef, labels};
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

/// What of a Dataplane a policy may select on its own.
#[derive(Clone, Copy, Debug)]
pub enum Section<'a> {
    /// The Dataplane as a whole, as policies on outgoing traffic do.
    Whole,
    Inbound(&'a Inbound),
    /// A zone proxy's listener in a Dataplane.
    Listener(&'a Listener),
}

type Tags = BTreeMap<String, String>;

impl<'a> Subject<'a> {
    pub(crate) fn meta(&self) -> Meta<'a> {
        Meta { key: self.key, labels: self.labels }
    }

    pub(crate) fn inbounds(&self) -> &'a [Inbound] {
        self.spec.networking.as_ref().map_or(&[], |networking| &networking.inbound)
    }

    fn listeners(&self) -> &'a [Listener] {
        self.spec.networking.as_ref().map_or(&[], |networking| &networking.listeners)
    }

    /// All that policies on incoming traffic may select: inbounds, then listeners.
    pub fn sections(&self) -> impl Iterator<Item = Section<'a>> {
        let listeners = self.listeners().iter().map(Section::Listener);
        self.inbounds().iter().map(Section::Inbound).chain(listeners)
    }

    /// The sets of tags in question: that of an inbound, or those of all inbounds and of the gateway.
    pub(crate) fn tag_sets(&self, section: Section<'a>) -> impl Iterator<Item = &'a Tags> {
        let (inbounds, gateway) = match section {
            Section::Inbound(inbound) => (std::slice::from_ref(inbound), None),
            Section::Whole => (self.inbounds(), self.gateway()),
            Section::Listener(_) => ([].as_slice(), None),
        };
        inbounds.iter().map(|inbound| &inbound.tags).chain(gateway)
    }

    fn gateway(&self) -> Option<&'a Tags> {
        Some(&self.spec.networking.as_ref()?.gateway.as_ref()?.tags)
    }

    fn proxy_type(&self) -> ProxyType {
        if self.gateway().is_some() { ProxyType::Gateway } else { ProxyType::Sidecar }
    }
}

impl Section<'_> {
    /// Its name, or its port if it has none; `None` for the Dataplane as a whole.
    pub fn name(self) -> Option<String> {
        match self {
            Section::Whole => None,
            Section::Inbound(inbound) => Some(inbound.section_name()),
            Section::Listener(listener) if listener.name.is_empty() => Some(listener.port.to_string()),
            Section::Listener(listener) => Some(listener.name.clone()),
        }
    }
}

impl Policy {
    /// Whether the policy is in force for that part of a Dataplane. Policies that are only tried out never are.
    pub fn selects(&self, routes: &Routes, subject: &Subject<'_>, section: Section<'_>) -> bool {
        !Meta::from(&*self.resource).is_shadow() && self.would_select(routes, subject, section)
    }

    /// As [`Policy::selects`], for a policy that is tried out as if it were in force.
    pub fn would_select(&self, routes: &Routes, subject: &Subject<'_>, section: Section<'_>) -> bool {
        let meta = Meta::from(&*self.resource);
        if self.route_target().is_none() {
            return reaches(meta, self.target(), subject, section);
        }
        in_scope(meta, subject)
            && routes
                .targeted_by(self)
                .any(|route| reaches(Meta::from(&*route.resource), route.target(), subject, section))
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
    let meta = Meta::from(policy);
    !meta.is_shadow() && reaches(meta, target, subject, inbound.map_or(Section::Whole, Section::Inbound))
}

fn reaches(
    policy: Meta<'_>,
    target: Option<&TargetRef>,
    subject: &Subject<'_>,
    section: Section<'_>,
) -> bool {
    in_scope(policy, subject) && target.is_none_or(|target| matches(policy, target, subject, section))
}

/// Whether the policy is about Dataplanes of that mesh, zone and namespace.
fn in_scope(policy: Meta<'_>, subject: &Subject<'_>) -> bool {
    let own = subject.meta();
    // Producers' policies go to the clients, wherever they are.
    let everywhere = policy.role() == Role::Producer || policy.zone().is_empty();
    let in_zone = everywhere || policy.zone() == own.zone();
    let in_namespace = !policy.is_for_namespace() || policy.namespace() == own.namespace();
    policy.key.mesh == own.key.mesh && in_zone && in_namespace
}

fn matches(policy: Meta<'_>, target: &TargetRef, subject: &Subject<'_>, section: Section<'_>) -> bool {
    let of_type = target.proxy_types.is_empty() || target.proxy_types.contains(&subject.proxy_type());
    match target.kind {
        TargetKind::Mesh => of_type,
        TargetKind::MeshSubset => {
            of_type && subject.tag_sets(section).any(|tags| is_subset(target.tags.as_ref(), tags))
        }
        TargetKind::MeshService | TargetKind::MeshServiceSubset => {
            subject.tag_sets(section).any(|tags| is_service(target, tags))
        }
        TargetKind::Dataplane => {
            is_dataplane(policy, target, subject) && has_section(target.section_name(), subject, section)
        }
        // These name no Dataplane, or are resolved before.
        TargetKind::MeshGateway
        | TargetKind::MeshExternalService
        | TargetKind::MeshMultiZoneService
        | TargetKind::MeshHttpRoute
        | TargetKind::Other(_) => false,
    }
}

pub(crate) fn is_subset(wanted: Option<&Tags>, tags: &Tags) -> bool {
    wanted.into_iter().flatten().all(|(name, value)| tags.get(name) == Some(value))
}

/// Whether a MeshService or MeshServiceSubset reference means what has these tags.
pub(crate) fn is_service(target: &TargetRef, tags: &Tags) -> bool {
    let service = tags.get(labels::SERVICE).map(String::as_str);
    service.is_some() && target.name() == service && is_subset(target.tags.as_ref(), tags)
}

/// Labels select everywhere; a name only where the policy was written: elsewhere it would be another Dataplane's.
fn is_dataplane(policy: Meta<'_>, target: &TargetRef, subject: &Subject<'_>) -> bool {
    let own = subject.meta();
    if !own.has_labels(target.labels.as_ref()) {
        return false;
    }
    let Some(name) = target.name() else {
        return target.namespace().is_none_or(|namespace| namespace == own.namespace());
    };
    name == own.display()
        && target.namespace().unwrap_or(policy.namespace()) == own.namespace()
        && policy.zone() == own.zone()
}

fn has_section(wanted: Option<&str>, subject: &Subject<'_>, section: Section<'_>) -> bool {
    let Some(wanted) = wanted else {
        return true;
    };
    let is_it = |section: Section<'_>| section.name().is_some_and(|name| name == wanted);
    match section {
        Section::Whole => subject.sections().any(is_it),
        section => is_it(section),
    }
}
