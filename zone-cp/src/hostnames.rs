//! The names of services: what HostnameGenerators make of them, and who has a name that several want.
//!
//! A name leads to one service. Where two want the same, the stronger generator decides: one of the zone's own before
//! one of global's, then the older, as in Kuma; of what one generator names alike, the zone's own service comes before
//! others. Unlike in Kuma that holds over all kinds of services, and `<service>.mesh` is nobody else's. What an
//! ExternalService is called comes before all of these: global listed it, and a zone, which says what services it has,
//! must not draw its callers to itself. The loser's status says who has the name.
//!
//! Kept with the picture and brought up to date resource by resource: a name that comes or goes touches only those who
//! want it. Rejected: working names out where they are needed, which would render every service's for each of them.

use crate::picture::{MeshPicture, Picture};
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::hostname_generator::{Condition, HostnameGenerator, HostnameGeneratorStatus};
use meridian_core::kinds::mesh::MeshServicesMode;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::{Address, HostnameGeneratorRef, MeshService};
use meridian_core::{Key, Kind, Resource};
use meridian_policy::{Parsed, generated_hostname, listed_hostnames};
use rpds::RedBlackTreeMapSync;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use time::OffsetDateTime;

/// `status.addresses[].origin`
const ORIGIN: &str = "HostnameGenerator";
/// The condition's type and its reasons, as Kuma has them.
const GENERATED: &str = "Generated";
const TEMPLATE_ERROR: &str = "TemplateError";
const COLLISION: &str = "Collision";

pub(crate) use meridian_policy::legacy_hostname as legacy;

/// Whether resources of a kind have generated names.
pub(crate) fn is_named(kind: Kind) -> bool {
    [MeshService::KIND, MeshExternalService::KIND, MeshMultiZoneService::KIND].contains(&kind)
}

/// Names of one mesh. A clone shares what does not change: the engine keeps the picture before each change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Names {
    /// What each resource wants.
    made: RedBlackTreeMapSync<Key, Arc<[Made]>>,
    /// Who wants a name, the strongest first.
    wanted: RedBlackTreeMapSync<String, BTreeSet<Claim>>,
}

/// What came of one generator for one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Made {
    by: Rank,
    name: Result<String, String>,
}

/// The strength of what gives a name; the smallest has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The address of an ExternalService, and the `.mesh` name of its `kuma.io/service`.
    Listed,
    /// `<service>.mesh`, which all MeshServices of a `kuma.io/service` share.
    Legacy,
    Generator {
        of_global: bool,
        created: Option<OffsetDateTime>,
        name: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    by: Rank,
    elsewhere: bool,
    key: Key,
}

impl Names {
    /// Names of a resource, sorted.
    pub(crate) fn of(&self, key: &Key) -> Vec<String> {
        let all: BTreeSet<&String> =
            self.generated(key).filter_map(|(made, _)| self.won(key, made)).collect();
        all.into_iter().cloned().collect()
    }

    /// As `status.addresses`: each name once, by the strongest generator that gives it.
    pub(crate) fn addresses(&self, key: &Key) -> Vec<Address> {
        let mut by_name: BTreeMap<&String, (&Rank, &str)> = BTreeMap::new();
        for (made, generator) in self.generated(key) {
            if let Some(name) = self.won(key, made) {
                let there = by_name.entry(name).or_insert((&made.by, generator));
                if made.by < *there.0 {
                    *there = (&made.by, generator);
                }
            }
        }
        let address = |(hostname, (_, generator)): (&String, (&Rank, &str))| Address {
            hostname: hostname.clone(),
            origin: ORIGIN.to_owned(),
            hostname_generator_ref: Some(HostnameGeneratorRef { core_name: generator.to_owned() }),
        };
        by_name.into_iter().map(address).collect()
    }

    /// As `status.hostnameGenerators`.
    pub(crate) fn conditions(&self, key: &Key) -> Vec<HostnameGeneratorStatus> {
        let mut all: Vec<_> = self.generated(key).collect();
        all.sort_by_key(|(_, generator)| *generator);
        let status = |(made, generator): (&Made, &str)| HostnameGeneratorStatus {
            hostname_generator_ref: HostnameGeneratorRef { core_name: generator.to_owned() },
            conditions: vec![self.condition(key, made)],
        };
        all.into_iter().map(status).collect()
    }

    fn condition(&self, key: &Key, made: &Made) -> Condition {
        let name = match &made.name {
            Ok(name) => name,
            Err(reason) => return Condition::new(GENERATED, "False", TEMPLATE_ERROR, reason.clone()),
        };
        match self.holder(name) {
            Some(holder) if holder.key != *key => {
                let other = &holder.key;
                let whose = if holder.by == Rank::Legacy { "of kuma.io/service that" } else { "of" };
                let zone = if other.zone.is_empty() { "global" } else { &other.zone };
                let message = format!("{name} is the name {whose} {} {} ({zone})", other.kind, other.name);
                Condition::new(GENERATED, "False", COLLISION, message)
            }
            _ => Condition::new(GENERATED, "True", GENERATED, ""),
        }
    }

    /// Resources that have other names now that this one wants something else; itself among them.
    pub(crate) fn renamed(before: &Self, after: &Self, key: &Key) -> BTreeSet<Key> {
        let wanted =
            [before, after].into_iter().filter_map(|names| names.made.get(key)).flat_map(|made| made.iter());
        let names: BTreeSet<&String> = wanted.filter_map(|made| made.name.as_ref().ok()).collect();
        let holders = names
            .into_iter()
            .map(|name| [before, after].map(|names| names.holder(name).map(|claim| claim.key.clone())));
        let moved = holders.filter(|[old, new]| old != new).flatten().flatten();
        moved.chain([key.clone()]).collect()
    }

    /// The ExternalService that has a name, whoever else wants it.
    pub(crate) fn listed(&self, name: &str) -> Option<&Key> {
        self.holder(name).filter(|claim| claim.by == Rank::Listed).map(|claim| &claim.key)
    }

    /// Whether a resource wants the same here as there.
    pub(crate) fn same(&self, other: &Self, key: &Key) -> bool {
        self.made.get(key) == other.made.get(key)
    }

    fn generated<'a>(&'a self, key: &Key) -> impl Iterator<Item = (&'a Made, &'a str)> {
        let all = self.made.get(key).into_iter().flat_map(|made| made.iter());
        all.filter_map(|made| match &made.by {
            Rank::Listed | Rank::Legacy => None,
            Rank::Generator { name, .. } => Some((made, name.as_str())),
        })
    }

    /// The name, if no other resource has it.
    fn won<'a>(&self, key: &Key, made: &'a Made) -> Option<&'a String> {
        let name = made.name.as_ref().ok()?;
        self.holder(name).is_some_and(|holder| holder.key == *key).then_some(name)
    }

    fn holder(&self, name: &str) -> Option<&Claim> {
        self.wanted.get(name)?.first()
    }

    fn set(&mut self, key: &Key, elsewhere: bool, made: Vec<Made>) {
        let before = self.made.get(key).cloned();
        for old in before.iter().flat_map(|made| made.iter()) {
            let Ok(name) = &old.name else { continue };
            let Some(claims) = self.wanted.get_mut(name) else { continue };
            claims.retain(|claim| claim.key != *key);
            if claims.is_empty() {
                self.wanted.remove_mut(name);
            }
        }
        for new in &made {
            let Ok(name) = &new.name else { continue };
            let claim = Claim { by: new.by.clone(), elsewhere, key: key.clone() };
            let mut claims = self.wanted.get(name).cloned().unwrap_or_default();
            claims.insert(claim);
            self.wanted.insert_mut(name.clone(), claims);
        }
        if made.is_empty() {
            self.made.remove_mut(key);
        } else {
            self.made.insert_mut(key.clone(), made.into());
        }
    }
}

/// Brings the names of one resource up to date: it came, changed or went.
pub(crate) fn follow(picture: &mut Picture, key: &Key) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let made = wanted_by(picture, mesh, key);
    if mesh.names.made.get(key).map_or(&[][..], AsRef::as_ref) == made.as_slice() {
        return;
    }
    let elsewhere = !picture.is_local(key);
    Arc::make_mut(&mut picture.mesh_mut(&key.mesh).names).set(key, elsewhere, made);
}

/// Works out all names of a mesh: its mode, or a generator, has changed.
pub(crate) fn follow_all(picture: &mut Picture, mesh_name: &str) {
    let Some(mesh) = picture.mesh(mesh_name) else { return };
    let mut names = Names::default();
    let keys = mesh.services.keys().chain(mesh.mesh_external_services.keys());
    let keys = keys.chain(mesh.multi_zone_services.keys()).chain(mesh.external_services.keys());
    for key in keys {
        names.set(key, !picture.is_local(key), wanted_by(picture, mesh, key));
    }
    if *mesh.names != names {
        picture.mesh_mut(mesh_name).names = Arc::new(names);
    }
}

fn wanted_by(picture: &Picture, mesh: &MeshPicture, key: &Key) -> Vec<Made> {
    match key.kind {
        MeshService::KIND => {
            let Some(service) = mesh.service(key) else { return Vec::new() };
            let tag = crate::compile::services::service_of(&service.spec);
            let legacy = tag.map(|tag| Made { by: Rank::Legacy, name: Ok(legacy(tag)) });
            let mode = mesh.spec().map(|spec| spec.mesh_services_mode());
            // Without an address there is nothing to name.
            let named = mode != Some(MeshServicesMode::Disabled);
            let generated = named.then(|| generated(picture, &service.resource));
            legacy.into_iter().chain(generated.into_iter().flatten()).collect()
        }
        MeshExternalService::KIND => {
            let service = mesh.mesh_external_services.get(key);
            service.map(|service| generated(picture, &service.resource)).unwrap_or_default()
        }
        MeshMultiZoneService::KIND => {
            let service = mesh.multi_zone_services.get(key);
            service.map(|service| generated(picture, &service.resource)).unwrap_or_default()
        }
        ExternalService::KIND => {
            let service = mesh.external_services.get(key);
            let names = service.map(|service| listed_hostnames(&service.spec)).unwrap_or_default();
            names.into_iter().map(|name| Made { by: Rank::Listed, name: Ok(name) }).collect()
        }
        _ => Vec::new(),
    }
}

fn generated(picture: &Picture, resource: &Resource) -> Vec<Made> {
    let made = |generator: &Arc<Parsed<HostnameGenerator>>| {
        let name = generated_hostname(&picture.zone, &generator.spec, resource)?;
        let by = Rank::Generator {
            of_global: !picture.is_local(&generator.resource.key),
            created: picture.created.get(&generator.resource.key).copied(),
            name: generator.resource.key.name.clone(),
        };
        Some(Made { by, name: name.map_err(|error| error.to_string()) })
    };
    picture.generators.values().filter_map(made).collect()
}

#[cfg(test)]
mod tests;
