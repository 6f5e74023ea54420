use crate::meta::Meta;
use crate::policy::HTTP_ROUTE;
use meridian_core::{Key, Resource, TargetKind, TargetRef, labels};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The resources that `to` may name: a mesh's services of all kinds, its MeshHTTPRoutes, and the Mesh itself.
#[derive(Clone, Debug, Default)]
pub struct Destinations {
    by_kind: BTreeMap<String, BTreeMap<Key, Arc<Resource>>>,
    /// By kind, mesh and the name under which each was written.
    by_name: BTreeMap<(String, String, String), Vec<Key>>,
}

/// A destination, or one port of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationId {
    pub key: Key,
    /// The port's name, or its number if it has none; empty: all ports.
    pub section: String,
}

/// The label that Kubernetes' services get; part of the names `<name>_<namespace>_svc_<port>`.
const SERVICE_INFIX: &str = "svc";

impl Destinations {
    /// Kinds that can't be named in `to` are left out.
    pub fn new<'a>(resources: impl IntoIterator<Item = &'a Arc<Resource>>) -> Self {
        let mut destinations = Self::default();
        resources.into_iter().for_each(|resource| destinations.insert(Arc::clone(resource)));
        destinations
    }

    pub fn insert(&mut self, resource: Arc<Resource>) {
        let kind = resource.key.kind.as_str();
        let kinds = ["Mesh", "MeshService", "MeshExternalService", "MeshMultiZoneService", HTTP_ROUTE];
        if !kinds.contains(&kind) {
            return;
        }
        self.remove(&resource.key);
        let name = name_of(&resource);
        self.by_name.entry(name).or_default().push(resource.key.clone());
        self.by_kind.entry(kind.to_owned()).or_default().insert(resource.key.clone(), resource);
    }

    pub fn remove(&mut self, key: &Key) {
        let removed = self.by_kind.get_mut(key.kind.as_str()).and_then(|of_kind| of_kind.remove(key));
        if let Some(resource) = removed
            && let Some(keys) = self.by_name.get_mut(&name_of(&resource))
        {
            keys.retain(|other| other != key);
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Resource>> {
        self.by_kind.get(key.kind.as_str())?.get(key)
    }

    /// The Mesh of that name.
    pub(crate) fn mesh(&self, name: &str) -> Option<&Arc<Resource>> {
        self.by_kind.get("Mesh")?.values().find(|mesh| mesh.key.name == name)
    }

    /// What an item of `to` in a policy names.
    pub(crate) fn resolve(&self, target: &TargetRef, policy: &Resource) -> Vec<DestinationId> {
        let policy = Meta::from(policy);
        if target.kind == TargetKind::Mesh {
            return self.mesh(&policy.key.mesh).map(|mesh| whole(mesh)).into_iter().collect();
        }
        if let Some(named) = legacy_name(target) {
            return self.of_legacy_name(target, policy, &named);
        }
        let found: Vec<&Arc<Resource>> = match target.name() {
            Some(name) if !target.has_labels() => self.named(target, policy, name).into_iter().collect(),
            _ if target.has_labels() => self.labelled(target, policy).collect(),
            _ => Vec::new(),
        };
        let section = target.section_name();
        found.into_iter().filter_map(|resource| self::section(resource, section)).collect()
    }

    /// A name means a resource of the policy's own zone and namespace.
    fn named(&self, target: &TargetRef, policy: Meta<'_>, name: &str) -> Option<&Arc<Resource>> {
        let namespace = target.namespace().unwrap_or(policy.namespace());
        let name = (target.kind.as_str().to_owned(), policy.key.mesh.clone(), name.to_owned());
        let near = |resource: &&Arc<Resource>| {
            let meta = Meta::from(&***resource);
            meta.zone() == policy.zone() && meta.namespace() == namespace
        };
        self.by_name.get(&name)?.iter().filter_map(|key| self.get(key)).find(near)
    }

    fn labelled(&self, target: &TargetRef, policy: Meta<'_>) -> impl Iterator<Item = &Arc<Resource>> {
        let all = self.by_kind.get(target.kind.as_str());
        let is_it = move |resource: &&Arc<Resource>| {
            let meta = Meta::from(&***resource);
            meta.key.mesh == policy.key.mesh && meta.has_labels(target.labels.as_ref())
        };
        all.into_iter().flat_map(BTreeMap::values).filter(is_it)
    }

    fn of_legacy_name(
        &self,
        target: &TargetRef,
        policy: Meta<'_>,
        named: &LegacyName<'_>,
    ) -> Vec<DestinationId> {
        let name = (target.kind.as_str().to_owned(), policy.key.mesh.clone(), named.name.to_owned());
        let keys = self.by_name.get(&name).into_iter().flatten();
        let in_namespace = |resource: &&Arc<Resource>| {
            resource.labels.get(labels::NAMESPACE).is_some_and(|namespace| namespace == named.namespace)
        };
        let found = keys.filter_map(|key| self.get(key)).filter(in_namespace);
        let port = |resource: &Arc<Resource>| match named.port {
            None => Some(whole(resource)),
            Some(wanted) => {
                let section = ports(resource).into_iter().find(|port| port.number == wanted)?.section();
                Some(DestinationId { key: resource.key.clone(), section })
            }
        };
        found.filter_map(port).collect()
    }
}

fn name_of(resource: &Resource) -> (String, String, String) {
    let display = Meta::from(resource).display().to_owned();
    (resource.key.kind.as_str().to_owned(), resource.key.mesh.clone(), display)
}

fn whole(resource: &Resource) -> DestinationId {
    DestinationId { key: resource.key.clone(), section: String::new() }
}

/// `None`: the resource has no such port.
fn section(resource: &Resource, wanted: Option<&str>) -> Option<DestinationId> {
    let Some(wanted) = wanted else {
        return Some(whole(resource));
    };
    if resource.spec.get("ports").is_none() {
        return Some(whole(resource));
    }
    let is_it = |port: &Port| port.section() == wanted;
    let section = ports(resource).into_iter().find(is_it)?.section();
    Some(DestinationId { key: resource.key.clone(), section })
}

struct Port {
    name: String,
    number: u64,
}

impl Port {
    fn section(&self) -> String {
        if self.name.is_empty() { self.number.to_string() } else { self.name.clone() }
    }
}

fn ports(resource: &Resource) -> Vec<Port> {
    let ports = resource.spec.get("ports").and_then(Value::as_array);
    let port = |port: &Value| {
        let name = port.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Port { name, number: port.get("port")?.as_u64()? })
    };
    ports.into_iter().flatten().filter_map(port).collect()
}

/// The name that a Kubernetes service has as `kuma.io/service`.
struct LegacyName<'a> {
    name: &'a str,
    namespace: &'a str,
    port: Option<u64>,
}

fn legacy_name(target: &TargetRef) -> Option<LegacyName<'_>> {
    if target.kind != TargetKind::MeshService || target.section_name().is_some() {
        return None;
    }
    let mut parts = target.name()?.split('_');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let is_service = parts.next()? == SERVICE_INFIX;
    let port = parts.next().map(str::parse).transpose().ok()?;
    (is_service && parts.next().is_none()).then_some(LegacyName { name, namespace, port })
}
