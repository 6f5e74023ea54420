//! The names of services: Kuma's built-in templates, and the HostnameGenerators that say something else.
//!
//! Templates are Go's in form, but only substitutions exist (`{{ .DisplayName }}`, `{{ label "k" }}`): the rest of that
//! language is refused where a HostnameGenerator is written.

use crate::meta::Meta;
use meridian_core::kinds::hostname_generator::HostnameGenerator;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::{Resource, labels, names};
use std::collections::BTreeSet;

/// `<service>.mesh`, for a `kuma.io/service` in all zones.
pub fn legacy_hostname(service: &str) -> String {
    format!("{}.mesh", service.to_ascii_lowercase())
}

/// The names that a MeshService or MeshExternalService has in a zone, sorted: a MeshService of that zone
/// `<name>.svc.mesh.local`, each with its zone in it. None of other kinds.
pub fn hostnames<'a>(
    zone: &str,
    generators: impl IntoIterator<Item = &'a HostnameGenerator>,
    resource: &Resource,
) -> Vec<String> {
    let meta = Meta::from(resource);
    let name = meta.display().to_ascii_lowercase();
    let own = &resource.key.zone;
    let mut out = BTreeSet::new();
    match resource.key.kind {
        MeshService::KIND => {
            if own.is_empty() || own == zone {
                out.insert(format!("{name}.svc.mesh.local"));
            }
            out.insert(format!("{name}.svc.{}.mesh.local", if own.is_empty() { zone } else { own }));
        }
        MeshExternalService::KIND => drop(out.insert(format!("{name}.extsvc.mesh.local"))),
        _ => return Vec::new(),
    }
    let selecting = generators.into_iter().filter(|generator| {
        let selector = match resource.key.kind {
            MeshService::KIND => generator.selector.mesh_service.as_ref(),
            _ => generator.selector.mesh_external_service.as_ref(),
        };
        selector.is_some_and(|selector| selector.matches(&resource.labels))
    });
    out.extend(selecting.filter_map(|generator| render(&generator.template, zone, meta)));
    out.into_iter().collect()
}

/// None if the template is not ours to understand, or the result is no name in a mesh's own domain: a template must
/// not take over a real host.
fn render(template: &str, zone: &str, resource: Meta<'_>) -> Option<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, tail) = after.split_once("}}")?;
        out.push_str(before);
        out.push_str(&substitute(action.trim(), zone, resource)?);
        rest = tail;
    }
    out.push_str(rest);
    let name = out.to_ascii_lowercase();
    (names::is_subdomain(&name) && (name.ends_with(".mesh.local") || name.ends_with(".mesh"))).then_some(name)
}

fn substitute(action: &str, zone: &str, resource: Meta<'_>) -> Option<String> {
    let label = |key: &str| resource.labels.get(key).cloned();
    if let Some(key) = action.strip_prefix("label ") {
        return label(key.trim().trim_matches('"'));
    }
    match action {
        ".DisplayName" => Some(resource.display().to_owned()),
        ".Name" => Some(resource.key.name.clone()),
        ".Namespace" => label(labels::NAMESPACE),
        ".Mesh" => Some(resource.key.mesh.clone()),
        ".Zone" if resource.key.zone.is_empty() => Some(zone.to_owned()),
        ".Zone" => Some(resource.key.zone.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::Key;
    use meridian_core::kinds::hostname_generator::Selector;
    use meridian_core::kinds::mesh_service::LabelSelector;
    use std::collections::BTreeMap;

    fn service(zone: &str, name: &str) -> Resource {
        let key = Key::new(MeshService::KIND, "default", zone, name);
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        Resource::of(key, labels, &MeshService::default())
    }

    #[test]
    fn built_in_names() {
        let local = hostnames("east", [], &service("east", "web"));
        assert_eq!(local, ["web.svc.east.mesh.local", "web.svc.mesh.local"]);
        assert_eq!(hostnames("east", [], &service("west", "web")), ["web.svc.west.mesh.local"]);
    }

    #[test]
    fn a_generator_adds_names_of_the_mesh_only() {
        let generator = |template: &str| HostnameGenerator {
            template: template.into(),
            selector: Selector { mesh_service: Some(LabelSelector::default()), ..Selector::default() },
            extension: None,
        };
        let generators = [
            generator(r#"{{ .DisplayName }}.{{ label "team" }}.mesh.local"#),
            generator("{{ .DisplayName }}.example.com"),
            generator("{{ if .Zone }}x{{ end }}.mesh.local"),
        ];
        let names = hostnames("east", &generators, &service("west", "web"));
        assert_eq!(names, ["web.a.mesh.local", "web.svc.west.mesh.local"]);
    }
}
