//! The names of services: Kuma's built-in templates, and the HostnameGenerators that say something else.
//!
//! Templates are Go's in form, but only substitutions exist (`{{ .DisplayName }}`, `{{ label "k" }}`): the rest of that
//! language is refused where a HostnameGenerator is written.

use crate::picture::{Picture, display_name};
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::{Resource, names};
use meridian_policy::Parsed;
use std::collections::BTreeSet;

/// `<service>.mesh`.
pub(crate) fn legacy(service: &str) -> String {
    format!("{}.mesh", service.to_ascii_lowercase())
}

/// Names of a MeshService, sorted: of this zone's `<name>.svc.mesh.local`, of another's with the zone in it.
pub(crate) fn of_service(picture: &Picture, service: &Parsed<MeshService>) -> Vec<String> {
    let name = display_name(&service.resource).to_ascii_lowercase();
    let zone = &service.resource.key.zone;
    let mut out = BTreeSet::new();
    if zone.is_empty() || picture.is_local(&service.resource.key) {
        out.insert(format!("{name}.svc.mesh.local"));
    }
    let zone = if zone.is_empty() { &picture.zone } else { zone };
    out.insert(format!("{name}.svc.{zone}.mesh.local"));
    out.extend(generated(picture, &service.resource));
    out.into_iter().collect()
}

/// Names of a MeshExternalService, sorted.
pub(crate) fn of_external(picture: &Picture, service: &Parsed<MeshExternalService>) -> Vec<String> {
    let name = display_name(&service.resource).to_ascii_lowercase();
    let mut out = BTreeSet::from([format!("{name}.extsvc.mesh.local")]);
    out.extend(generated(picture, &service.resource));
    out.into_iter().collect()
}

fn generated(picture: &Picture, resource: &Resource) -> BTreeSet<String> {
    let selected = picture.generators.values().filter(|generator| {
        let selector = &generator.spec.selector;
        let selector = match resource.key.kind {
            MeshService::KIND => selector.mesh_service.as_ref(),
            MeshExternalService::KIND => selector.mesh_external_service.as_ref(),
            _ => None,
        };
        selector.is_some_and(|selector| selector.matches(&resource.labels))
    });
    selected.filter_map(|generator| render(&generator.spec.template, picture, resource)).collect()
}

/// None if the template is not ours to understand, or the result is no name in a mesh's own domain: a template must
/// not take over a real host.
fn render(template: &str, picture: &Picture, resource: &Resource) -> Option<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, tail) = after.split_once("}}")?;
        out.push_str(before);
        out.push_str(&substitute(action.trim(), picture, resource)?);
        rest = tail;
    }
    out.push_str(rest);
    let name = out.to_ascii_lowercase();
    (names::is_subdomain(&name) && (name.ends_with(".mesh.local") || name.ends_with(".mesh"))).then_some(name)
}

fn substitute(action: &str, picture: &Picture, resource: &Resource) -> Option<String> {
    let label = |key: &str| resource.labels.get(key).cloned();
    if let Some(key) = action.strip_prefix("label ") {
        return label(key.trim().trim_matches('"'));
    }
    match action {
        ".DisplayName" => Some(display_name(resource).to_owned()),
        ".Name" => Some(resource.key.name.clone()),
        ".Namespace" => label(meridian_core::labels::NAMESPACE),
        ".Mesh" => Some(resource.key.mesh.clone()),
        ".Zone" if resource.key.zone.is_empty() => Some(picture.zone.clone()),
        ".Zone" => Some(resource.key.zone.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::Key;
    use meridian_core::kinds::hostname_generator::{HostnameGenerator, Selector};
    use meridian_core::kinds::mesh_service::LabelSelector;
    use std::collections::BTreeMap;

    fn service(zone: &str, name: &str) -> Parsed<MeshService> {
        let key = Key::new(MeshService::KIND, "default", zone, name);
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        Parsed::new(Resource::of(key, labels, &MeshService::default())).unwrap()
    }

    #[test]
    fn built_in_names() {
        let picture = Picture::new("east", crate::picture::Options::default());
        let local = of_service(&picture, &service("east", "web"));
        assert_eq!(local, ["web.svc.east.mesh.local", "web.svc.mesh.local"]);
        assert_eq!(of_service(&picture, &service("west", "web")), ["web.svc.west.mesh.local"]);
    }

    #[test]
    fn a_generator_adds_names_of_the_mesh_only() {
        let mut picture = Picture::new("east", crate::picture::Options::default());
        for (name, template) in [
            ("good", r#"{{ .DisplayName }}.{{ label "team" }}.mesh.local"#),
            ("foreign", "{{ .DisplayName }}.example.com"),
            ("language", "{{ if .Zone }}x{{ end }}.mesh.local"),
        ] {
            let selector = Selector { mesh_service: Some(LabelSelector::default()), ..Selector::default() };
            let spec = HostnameGenerator { template: template.into(), selector, extension: None };
            let key = Key::global(HostnameGenerator::KIND, "", name);
            picture.put(Resource::of(key, BTreeMap::new(), &spec)).unwrap();
        }
        let names = of_service(&picture, &service("west", "web"));
        assert_eq!(names, ["web.a.mesh.local", "web.svc.west.mesh.local"]);
    }
}
