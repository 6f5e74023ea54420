//! The zone's whole picture: every resource it compiles from, parsed once. A clone shares what did not change.
//!
//! Compiling reads nothing else, so that what a proxy gets is a function of (picture, virtual addresses).

use crate::compile::policies::{self, AskedTags, Collectors};
use crate::hostnames::{self, Names};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::hostname_generator::HostnameGenerator;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_open_telemetry_backend::MeshOpenTelemetryBackend;
use meridian_core::kinds::mesh_passthrough::MeshPassthrough;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_core::kinds::secret::Secret;
use meridian_core::kinds::trust_bundle::TrustBundle;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_core::{Key, Kind, ParseError, Resource, Spec, labels};
use meridian_policy::{Parsed, Policy, PolicyError, PolicyIndex, Routes, Subject, service_tag};
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use time::OffsetDateTime;

/// Sorted by key. Persistent: the engine compares the picture before a change with the one after it, and a copy of what
/// does not differ would cost as much as there are proxies.
type Map<K, V> = RedBlackTreeMapSync<K, V>;

/// By a tag, the resources that have it. The sets, too: a service may have as many Dataplanes as there are.
type Index = Map<String, RedBlackTreeSetSync<Key>>;

/// Resources of one kind.
pub(crate) type Table<T> = Map<Key, Arc<Parsed<T>>>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    /// This zone.
    pub(crate) zone: String,
    pub(crate) meshes: BTreeMap<String, Arc<MeshPicture>>,
    /// Of all zones.
    pub(crate) ingresses: Table<ZoneIngress>,
    /// Of this zone.
    pub(crate) egresses: Table<ZoneEgress>,
    pub(crate) generators: Table<HostnameGenerator>,
    /// What the zone knows of its Dataplanes beside their resources.
    pub(crate) facts: Map<Key, Arc<Facts>>,
    /// When the zone's Dataplanes, HostnameGenerators and MeshOpenTelemetryBackends were created: of two that contradict
    /// each other, the older wins.
    pub(crate) created: Map<Key, OffsetDateTime>,
    /// By mesh: the root (hash of its key) that the zone's present intermediate chains to.
    pub(crate) issuers: Arc<BTreeMap<String, String>>,
    pub(crate) options: Arc<Options>,
}

/// Settings of the control plane that reach proxies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Addresses of the zone's control plane, which nobody may be led to.
    pub(crate) protected: Vec<std::net::IpAddr>,
    pub(crate) max_config_age_seconds: Option<u64>,
    pub(crate) dns_forward_zones: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct MeshPicture {
    /// None while only its resources have arrived.
    pub(crate) mesh: Option<Arc<Parsed<Mesh>>>,
    pub(crate) bundle: Option<Arc<Parsed<TrustBundle>>>,
    /// Of this zone; of their resources without `spec`.
    pub(crate) dataplanes: Table<Dataplane>,
    /// Of all zones.
    pub(crate) services: Table<MeshService>,
    pub(crate) multi_zone_services: Table<MeshMultiZoneService>,
    pub(crate) external_services: Table<ExternalService>,
    pub(crate) mesh_external_services: Table<MeshExternalService>,
    /// Slices, because policies are always read all at once.
    pub(crate) passthroughs: Arc<Vec<Parsed<MeshPassthrough>>>,
    pub(crate) permissions: Arc<Vec<Parsed<MeshTrafficPermission>>>,
    /// Of the kinds that [`crate::compile::policies`] turns into what proxies execute.
    pub(crate) policies: Arc<PolicyIndex>,
    /// Of these, the ones that others may be about.
    pub(crate) routes: Arc<Routes>,
    /// Keys of tags that policies ask for.
    pub(crate) asked_tags: Arc<AskedTags>,
    pub(crate) collectors: Arc<Collectors>,
    pub(crate) secrets: Table<Secret>,
    /// Dataplanes by the `kuma.io/service` of their inbounds.
    pub(crate) by_service: Index,
    /// MeshServices by the `kuma.io/service` that they are of.
    pub(crate) services_by_tag: Index,
    /// MeshServices that select Dataplanes by more, or other things, than tags with a `kuma.io/service` among them.
    pub(crate) services_by_rest: RedBlackTreeSetSync<Key>,
    /// What services are called: follows from the services and the generators.
    pub(crate) names: Arc<Names>,
}

/// What a proxy's reports have told, stored so that a restart forgets nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Facts {
    /// Sections of inbounds whose probe succeeds.
    pub(crate) ready: BTreeSet<String>,
    /// Meshes in which it serves with a certificate.
    pub(crate) certified: BTreeSet<String>,
}

impl Picture {
    pub(crate) fn new(zone: &str, options: Options) -> Self {
        Self { zone: zone.to_owned(), options: Arc::new(options), ..Self::default() }
    }

    pub(crate) fn mesh(&self, name: &str) -> Option<&MeshPicture> {
        self.meshes.get(name).map(Arc::as_ref)
    }

    /// Whether the resource is this zone's own.
    pub(crate) fn is_local(&self, key: &Key) -> bool {
        key.zone == self.zone
    }

    pub(crate) fn facts(&self, dataplane: &Key) -> Option<&Facts> {
        self.facts.get(dataplane).map(Arc::as_ref)
    }

    /// Other zones' ingresses that others can reach, and the zone each belongs to.
    pub(crate) fn remote_ingresses<'a>(
        &'a self,
        zone: &'a str,
    ) -> impl Iterator<Item = &'a Parsed<ZoneIngress>> {
        self.ingresses
            .iter()
            .filter(move |(key, _)| key.zone == zone && key.zone != self.zone)
            .map(|(_, it)| it.as_ref())
    }

    /// Other zones with an ingress.
    pub(crate) fn remote_zones(&self) -> BTreeSet<String> {
        let remote = self.ingresses.keys().filter(|key| !self.is_local(key));
        remote.map(|key| key.zone.clone()).filter(|zone| !zone.is_empty()).collect()
    }

    pub(crate) fn has_egress(&self) -> bool {
        !self.egresses.is_empty()
    }

    /// Takes a resource in. An error leaves the picture as it was: the last good value goes on.
    pub(crate) fn put(&mut self, resource: Resource) -> Result<(), ParseError> {
        let key = resource.key.clone();
        self.insert(resource)?;
        self.rename(&key);
        Ok(())
    }

    fn insert(&mut self, resource: Resource) -> Result<(), ParseError> {
        let key = resource.key.clone();
        match key.kind {
            ZoneIngress::KIND => insert(&mut self.ingresses, resource),
            ZoneEgress::KIND if key.zone != self.zone => Ok(()),
            ZoneEgress::KIND => insert(&mut self.egresses, resource),
            HostnameGenerator::KIND => insert(&mut self.generators, resource),
            Mesh::KIND => {
                let mesh = Arc::new(Parsed::new(resource)?);
                self.mesh_mut(&key.name).mesh = Some(mesh);
                Ok(())
            }
            Dataplane::KIND if key.zone != self.zone => Ok(()),
            _ if key.mesh.is_empty() => Ok(()),
            MeshOpenTelemetryBackend::KIND => {
                let created = self.created.get(&key).copied();
                Arc::make_mut(&mut self.mesh_mut(&key.mesh).collectors).put(created, resource)
            }
            _ => self.mesh_mut(&key.mesh).put(resource),
        }
    }

    /// Brings names up to date after a change of this resource.
    fn rename(&mut self, key: &Key) {
        match key.kind {
            HostnameGenerator::KIND => {
                let meshes: Vec<String> = self.meshes.keys().cloned().collect();
                meshes.iter().for_each(|mesh| hostnames::follow_all(self, mesh));
            }
            Mesh::KIND => hostnames::follow_all(self, &key.name),
            ExternalService::KIND => hostnames::follow(self, key),
            kind if hostnames::is_named(kind) => hostnames::follow(self, key),
            _ => {}
        }
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.created.remove_mut(key);
        match key.kind {
            ZoneIngress::KIND => remove(&mut self.ingresses, key),
            ZoneEgress::KIND => remove(&mut self.egresses, key),
            HostnameGenerator::KIND => remove(&mut self.generators, key),
            Mesh::KIND => {
                if let Some(mesh) = self.meshes.get_mut(&key.name) {
                    Arc::make_mut(mesh).mesh = None;
                }
            }
            _ => {
                if let Some(mesh) = self.meshes.get_mut(&key.mesh) {
                    Arc::make_mut(mesh).remove(key);
                }
            }
        }
        self.rename(key);
        self.prune(if key.kind == Mesh::KIND { &key.name } else { &key.mesh });
    }

    pub(crate) fn set_facts(&mut self, key: &Key, facts: Option<Facts>) {
        match facts {
            Some(facts) => self.facts.insert_mut(key.clone(), Arc::new(facts)),
            None => drop(self.facts.remove_mut(key)),
        }
    }

    pub(crate) fn set_issuer(&mut self, mesh: &str, root: Option<String>) {
        let all = Arc::make_mut(&mut self.issuers);
        match root {
            Some(root) => drop(all.insert(mesh.to_owned(), root)),
            None => drop(all.remove(mesh)),
        }
    }

    /// Remembers when one of those was created whose age counts, unless that is known. To be said before what was
    /// created is put.
    pub(crate) fn set_created(&mut self, key: &Key, at: OffsetDateTime) {
        let counts = [HostnameGenerator::KIND, MeshOpenTelemetryBackend::KIND].contains(&key.kind)
            || (key.kind == Dataplane::KIND && self.is_local(key));
        if counts && !self.created.contains_key(key) {
            self.created.insert_mut(key.clone(), at);
        }
    }

    pub(crate) fn mesh_mut(&mut self, name: &str) -> &mut MeshPicture {
        Arc::make_mut(self.meshes.entry(name.to_owned()).or_default())
    }

    fn prune(&mut self, name: &str) {
        if self.meshes.get(name).is_some_and(|mesh| mesh.is_empty()) {
            self.meshes.remove(name);
        }
    }
}

impl MeshPicture {
    /// The typed Mesh; none while it is not there: nothing is compiled for its proxies then.
    pub(crate) fn spec(&self) -> Option<&Mesh> {
        self.mesh.as_ref().map(|mesh| &mesh.spec)
    }

    pub(crate) fn mtls(&self) -> bool {
        self.spec().is_some_and(|mesh| mesh.mtls_backend().is_some())
    }

    /// External traffic goes through the zone's egress, and nowhere else.
    pub(crate) fn egress_enforced(&self) -> bool {
        self.mtls() && self.spec().is_some_and(Mesh::zone_egress)
    }

    pub(crate) fn dataplane(&self, key: &Key) -> Option<&Parsed<Dataplane>> {
        self.dataplanes.get(key).map(Arc::as_ref)
    }

    pub(crate) fn service(&self, key: &Key) -> Option<&Parsed<MeshService>> {
        self.services.get(key).map(Arc::as_ref)
    }

    fn put(&mut self, resource: Resource) -> Result<(), ParseError> {
        match resource.key.kind {
            TrustBundle::KIND => {
                self.bundle = Some(Arc::new(Parsed::new(resource)?));
                Ok(())
            }
            Dataplane::KIND => {
                let key = resource.key.clone();
                let mut parsed = Parsed::<Dataplane>::new(resource)?;
                // Compiling reads the typed form, and there are many Dataplanes: each one's JSON takes some 20 KiB.
                parsed.resource.spec = serde_json::Value::Null;
                let parsed = Arc::new(parsed);
                self.unindex(&key);
                for service in service_tags(&parsed.spec) {
                    index(&mut self.by_service, service, &key);
                }
                self.dataplanes.insert_mut(key, parsed);
                Ok(())
            }
            MeshService::KIND => {
                let parsed = Arc::new(Parsed::<MeshService>::new(resource)?);
                let key = parsed.resource.key.clone();
                let before = self.services.get(&key).and_then(|it| service_tag(&it.spec));
                let after = service_tag(&parsed.spec);
                if before != after {
                    let before = before.map(str::to_owned);
                    before.iter().for_each(|tag| unindex(&mut self.services_by_tag, tag, &key));
                    after.iter().for_each(|tag| index(&mut self.services_by_tag, tag, &key));
                }
                if selects_by_service(&parsed.spec) {
                    self.services_by_rest.remove_mut(&key);
                } else {
                    self.services_by_rest.insert_mut(key.clone());
                }
                self.services.insert_mut(key, parsed);
                Ok(())
            }
            MeshMultiZoneService::KIND => insert(&mut self.multi_zone_services, resource),
            ExternalService::KIND => insert(&mut self.external_services, resource),
            MeshExternalService::KIND => insert(&mut self.mesh_external_services, resource),
            Secret::KIND => insert(&mut self.secrets, resource),
            MeshPassthrough::KIND => insert_policy(&mut self.passthroughs, resource),
            MeshTrafficPermission::KIND => insert_policy(&mut self.permissions, resource),
            kind if policies::is_executed(kind) => self.put_policy(resource),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, key: &Key) {
        match key.kind {
            TrustBundle::KIND => self.bundle = None,
            Dataplane::KIND => {
                self.unindex(key);
                remove(&mut self.dataplanes, key);
            }
            MeshService::KIND => {
                if let Some(tag) = self.services.get(key).and_then(|it| service_tag(&it.spec)) {
                    unindex(&mut self.services_by_tag, tag, key);
                }
                self.services_by_rest.remove_mut(key);
                remove(&mut self.services, key);
            }
            MeshMultiZoneService::KIND => remove(&mut self.multi_zone_services, key),
            ExternalService::KIND => remove(&mut self.external_services, key),
            MeshExternalService::KIND => remove(&mut self.mesh_external_services, key),
            Secret::KIND => remove(&mut self.secrets, key),
            MeshOpenTelemetryBackend::KIND => Arc::make_mut(&mut self.collectors).remove(key),
            MeshPassthrough::KIND => {
                Arc::make_mut(&mut self.passthroughs).retain(|it| it.resource.key != *key)
            }
            MeshTrafficPermission::KIND => {
                Arc::make_mut(&mut self.permissions).retain(|it| it.resource.key != *key);
            }
            kind if policies::is_executed(kind) => {
                let removed = self.policies.get(key).cloned();
                Arc::make_mut(&mut self.policies).remove(key);
                Arc::make_mut(&mut self.asked_tags).follow(removed.as_deref(), None);
                self.reindex_routes(removed.as_deref());
            }
            _ => {}
        }
    }

    fn put_policy(&mut self, resource: Resource) -> Result<(), ParseError> {
        let policy = Policy::new(Arc::new(resource)).map_err(|error| match error {
            PolicyError::Malformed { key, path, source } => ParseError { key, path, source },
            // The registry's own forms: none without a targetRef is executed.
            PolicyError::NotAPolicy(key) => {
                ParseError { key, path: String::new(), source: serde::de::Error::custom("not a policy") }
            }
        })?;
        let policy = Arc::new(policy);
        let before = self.policies.get(policy.key()).cloned();
        Arc::make_mut(&mut self.policies).insert(Arc::clone(&policy));
        Arc::make_mut(&mut self.asked_tags).follow(before.as_deref(), Some(&policy));
        self.reindex_routes(Some(&policy));
        Ok(())
    }

    fn reindex_routes(&mut self, changed: Option<&Policy>) {
        if changed.is_some_and(Routes::is_route) {
            self.routes = Arc::new(Routes::new(self.policies.values().filter(|it| Routes::is_route(it))));
        }
    }

    fn unindex(&mut self, key: &Key) {
        let Some(old) = self.dataplanes.get(key).cloned() else { return };
        for service in service_tags(&old.spec) {
            unindex(&mut self.by_service, service, key);
        }
    }

    fn is_empty(&self) -> bool {
        self.mesh.is_none()
            && self.bundle.is_none()
            && self.dataplanes.is_empty()
            && self.services.is_empty()
            && self.multi_zone_services.is_empty()
            && self.external_services.is_empty()
            && self.mesh_external_services.is_empty()
            && self.passthroughs.is_empty()
            && self.permissions.is_empty()
            && self.policies.is_empty()
            && self.secrets.is_empty()
            && self.collectors.is_empty()
    }
}

/// A Dataplane as policies see it.
pub(crate) fn subject(dataplane: &Parsed<Dataplane>) -> Subject<'_> {
    Subject { key: &dataplane.resource.key, labels: &dataplane.resource.labels, spec: &dataplane.spec }
}

/// The name under which a resource was written at home.
pub(crate) fn display_name(resource: &Resource) -> &str {
    resource.labels.get(labels::DISPLAY_NAME).map_or(resource.key.name.as_str(), String::as_str)
}

/// Every `kuma.io/service` that a Dataplane offers.
pub(crate) fn service_tags(dataplane: &Dataplane) -> BTreeSet<&str> {
    let inbounds = dataplane.networking.iter().flat_map(|networking| &networking.inbound);
    inbounds.filter_map(|inbound| inbound.service()).collect()
}

fn selects_by_service(service: &MeshService) -> bool {
    let selector = &service.selector;
    selector.dataplane_ref.is_none()
        && selector.dataplane_labels.is_none()
        && selector.dataplane_tags.as_ref().is_none_or(|tags| tags.contains_key(labels::SERVICE))
}

fn index(of: &mut Index, tag: &str, key: &Key) {
    let mut keys = of.get(tag).cloned().unwrap_or_default();
    keys.insert_mut(key.clone());
    of.insert_mut(tag.to_owned(), keys);
}

fn unindex(of: &mut Index, tag: &str, key: &Key) {
    let Some(mut keys) = of.get(tag).cloned() else { return };
    keys.remove_mut(key);
    if keys.is_empty() {
        of.remove_mut(tag);
    } else {
        of.insert_mut(tag.to_owned(), keys);
    }
}

fn insert<T: Spec>(table: &mut Table<T>, resource: Resource) -> Result<(), ParseError> {
    let parsed = Arc::new(Parsed::new(resource)?);
    table.insert_mut(parsed.resource.key.clone(), parsed);
    Ok(())
}

fn insert_policy<T: Spec + Clone>(
    policies: &mut Arc<Vec<Parsed<T>>>,
    resource: Resource,
) -> Result<(), ParseError> {
    let parsed = Parsed::<T>::new(resource)?;
    let policies = Arc::make_mut(policies);
    match policies.iter_mut().find(|there| there.resource.key == parsed.resource.key) {
        Some(there) => *there = parsed,
        None => policies.push(parsed),
    }
    Ok(())
}

fn remove<T>(table: &mut Table<T>, key: &Key) {
    table.remove_mut(key);
}

/// Kinds whose resources the picture holds.
pub(crate) fn is_compiled(kind: Kind) -> bool {
    [
        ZoneIngress::KIND,
        ZoneEgress::KIND,
        HostnameGenerator::KIND,
        Mesh::KIND,
        TrustBundle::KIND,
        Dataplane::KIND,
        MeshService::KIND,
        MeshMultiZoneService::KIND,
        ExternalService::KIND,
        MeshExternalService::KIND,
        Secret::KIND,
        MeshPassthrough::KIND,
        MeshTrafficPermission::KIND,
        MeshOpenTelemetryBackend::KIND,
    ]
    .contains(&kind)
        || policies::is_executed(kind)
}
