//! The names that HostnameGenerators make for services: which generator speaks of a service, and what its template says.
//!
//! Who has a name that several want is decided by the zone, which knows when each generator was written.

use crate::Parsed;
use crate::meta::Meta;
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::hostname_generator::{HostnameGenerator, Named, Template, TemplateError};
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::{Resource, labels};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `<service>.mesh`, for a `kuma.io/service` in all zones.
pub fn legacy_hostname(service: &str) -> String {
    format!("{}.mesh", service.to_ascii_lowercase())
}

/// Names that are an ExternalService's, and no service's of the mesh: its address, and the `.mesh` name of its
/// `kuma.io/service`.
pub fn listed_hostnames(service: &ExternalService) -> BTreeSet<String> {
    let address = service.host_and_port().map(|(address, _)| address);
    let named = address.filter(|address| address.parse::<IpAddr>().is_err());
    let named = named.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    service.service().map(legacy_hostname).into_iter().chain(named).collect()
}

/// What a generator calls a service in a zone; `None` if it does not speak of it.
///
/// # Errors
/// Why its template gives no name.
pub fn generated_hostname(
    zone: &str,
    generator: &HostnameGenerator,
    resource: &Resource,
) -> Option<Result<String, TemplateError>> {
    let selector = match resource.key.kind {
        MeshService::KIND => generator.selector.mesh_service.as_ref(),
        MeshExternalService::KIND => generator.selector.mesh_external_service.as_ref(),
        MeshMultiZoneService::KIND => generator.selector.mesh_multi_zone_service.as_ref(),
        _ => None,
    };
    let selects = selector.is_some_and(|selector| selector.matches(&resource.labels));
    selects.then(|| render(zone, &generator.template, resource))
}

fn render(zone: &str, template: &str, resource: &Resource) -> Result<String, TemplateError> {
    let (key, meta) = (&resource.key, Meta::from(resource));
    let named = Named {
        name: &key.name,
        display_name: meta.display(),
        namespace: meta.namespace(),
        mesh: &key.mesh,
        // What global wrote is of no zone: each zone names it by its own.
        zone: if key.zone.is_empty() { zone } else { &key.zone },
        labels: &resource.labels,
    };
    Template::parse(template)?.render(&named)
}

/// The names that a MeshService, MeshExternalService or MeshMultiZoneService is given in a zone, sorted; asked there or at
/// global. One that another service has before it is among them: only the zone knows.
pub fn hostnames<'a>(
    zone: &str,
    generators: impl IntoIterator<Item = &'a Parsed<HostnameGenerator>>,
    resource: &Resource,
) -> Vec<String> {
    // As the zone sees it: what is not its own comes from global.
    let origin = if resource.key.zone == zone { labels::ORIGIN_ZONE } else { labels::ORIGIN_GLOBAL };
    let mut seen = resource.clone();
    seen.labels.insert(labels::ORIGIN.to_owned(), origin.to_owned());
    let there = generators.into_iter().filter(|generator| {
        let of = &generator.resource.key.zone;
        of.is_empty() || of == zone
    });
    let names = there.filter_map(|it| generated_hostname(zone, &it.spec, &seen)?.ok());
    names.collect::<BTreeSet<String>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::kinds::hostname_generator::defaults;
    use meridian_core::{Key, Kind};
    use std::collections::BTreeMap;

    fn service(kind: Kind, zone: &str, name: &str) -> Resource {
        let key = Key::new(kind, "default", zone, name);
        let mut labels = labels::computed(&key, zone, &BTreeMap::new());
        labels.insert("team".to_owned(), "a".to_owned());
        labels.insert(labels::ENV.to_owned(), "universal".to_owned());
        Resource { key, labels, spec: serde_json::json!({}), status: None }
    }

    fn generator(zone: &str, template: &str) -> Parsed<HostnameGenerator> {
        let key = Key::new(HostnameGenerator::KIND, "", zone, "own");
        let spec = serde_json::json!({"selector": {"meshService": {}}, "template": template});
        Parsed::new(Resource { key, labels: BTreeMap::new(), spec, status: None }).unwrap()
    }

    #[test]
    fn the_names_that_a_mesh_begins_with() {
        let all: Vec<Parsed<HostnameGenerator>> =
            defaults().into_iter().map(|resource| Parsed::new(resource).unwrap()).collect();
        for (kind, zone, expected) in [
            (MeshService::KIND, "east", &["web.svc.east.mesh.local", "web.svc.mesh.local"][..]),
            (MeshService::KIND, "west", &["web.svc.west.mesh.local"]),
            (MeshExternalService::KIND, "", &["web.extsvc.mesh.local"]),
            (MeshMultiZoneService::KIND, "", &["web.mzsvc.mesh.local"]),
        ] {
            assert_eq!(hostnames("east", &all, &service(kind, zone, "web")), expected, "{kind} {zone}");
        }
    }

    #[test]
    fn a_generator_makes_names_of_the_mesh_only_and_in_its_own_zone() {
        let all = [
            generator("", r#"{{ .DisplayName }}.{{ label "team" }}.mesh.local"#),
            generator("", "{{ .DisplayName }}.example.com"),
            generator("", "{{ if .Zone }}x{{ end }}.mesh.local"),
            generator("west", "{{ .Name }}.west.mesh.local"),
        ];
        let names = |zone: &str| hostnames(zone, &all, &service(MeshService::KIND, "west", "web"));
        assert_eq!(names("east"), ["web.a.mesh.local"]);
        assert_eq!(names("west"), ["web.a.mesh.local", "web.west.mesh.local"]);
    }
}
