use super::*;
use crate::picture::Options;
use meridian_core::kinds::hostname_generator::defaults;
use meridian_core::labels;
use serde_json::{Value, json};

fn named(kind: Kind, zone: &str, name: &str, labels: &[(&str, &str)], spec: Value) -> Resource {
    let key = Key::new(kind, "default", zone, name);
    let mut all = BTreeMap::from([
        (labels::DISPLAY_NAME.to_owned(), name.to_owned()),
        (labels::ENV.to_owned(), "universal".to_owned()),
        (labels::ORIGIN.to_owned(), if zone == "east" { "zone" } else { "global" }.to_owned()),
    ]);
    all.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Resource { key, labels: all, spec, status: None }
}

fn service(zone: &str, name: &str) -> Resource {
    named(MeshService::KIND, zone, name, &[("team", "a")], json!({"state": "Available"}))
}

fn external(name: &str) -> Resource {
    let spec = json!({"match": {"type": "HostnameGenerator", "port": 80, "protocol": "http"}});
    named(MeshExternalService::KIND, "", name, &[("team", "b")], spec)
}

fn many(name: &str) -> Resource {
    let spec = json!({"selector": {"meshService": {"matchLabels": {"team": "a"}}}, "ports": [{"port": 80}]});
    named(MeshMultiZoneService::KIND, "", name, &[("team", "c")], spec)
}

fn generator(zone: &str, name: &str, selector: &str, template: &str) -> Resource {
    let key = Key::new(HostnameGenerator::KIND, "", zone, name);
    let spec = json!({"selector": {selector: {}}, "template": template});
    Resource { key, labels: BTreeMap::new(), spec, status: None }
}

fn picture(resources: impl IntoIterator<Item = Resource>) -> Picture {
    let mut picture = Picture::new("east", Options::default());
    resources.into_iter().for_each(|resource| picture.put(resource).unwrap());
    picture
}

fn of(picture: &Picture, resource: &Resource) -> Vec<String> {
    picture.meshes["default"].names.of(&resource.key)
}

fn reasons(picture: &Picture, resource: &Resource) -> Vec<(String, String)> {
    let all = picture.meshes["default"].names.conditions(&resource.key);
    let one = |mut it: HostnameGeneratorStatus| {
        (it.hostname_generator_ref.core_name, it.conditions.remove(0).reason)
    };
    all.into_iter().map(one).collect()
}

#[test]
fn the_generators_that_a_mesh_begins_with() {
    let all = [service("east", "web"), service("west", "web"), external("api"), many("web")];
    let picture = picture(defaults().into_iter().chain(all.clone()));
    let names = all.each_ref().map(|resource| of(&picture, resource));
    assert_eq!(names[0], ["web.svc.east.mesh.local", "web.svc.mesh.local"]);
    assert_eq!(names[1], ["web.svc.west.mesh.local"]);
    assert_eq!(names[2], ["api.extsvc.mesh.local"]);
    assert_eq!(names[3], ["web.mzsvc.mesh.local"]);
    let addresses = picture.meshes["default"].names.addresses(&all[3].key);
    let by = addresses[0].hostname_generator_ref.as_ref().unwrap();
    assert_eq!(by.core_name, "synced-mesh-multi-zone-service");
}

#[test]
fn every_substitution() {
    let template = r#"{{ .Name }}.{{ .DisplayName }}.{{ .Mesh }}.{{ .Zone }}.{{ label "team" }}.Mesh.Local"#;
    let (service, other) = (service("west", "Web"), many("all"));
    let generators = ["meshService", "meshMultiZoneService"].map(|it| generator("", it, it, template));
    let picture = picture(generators.into_iter().chain([service.clone(), other.clone()]));
    assert_eq!(of(&picture, &service), ["web.web.default.west.a.mesh.local"]);
    assert_eq!(of(&picture, &other), ["all.all.default.east.c.mesh.local"], "of no zone: this one's");
}

#[test]
fn what_is_no_name_of_the_mesh_is_none_and_says_why() {
    let service = service("east", "web");
    let templates = [
        ("foreign", "{{ .DisplayName }}.example.com"),
        ("label", r#"{{ label "absent" }}.mesh.local"#),
        ("language", "{{ if .Zone }}x{{ end }}.mesh.local"),
        ("name", "{{ .Namespace }}.mesh.local"),
        ("sound", "{{ .DisplayName }}.mesh.local"),
    ];
    let generators = templates.map(|(name, template)| generator("", name, "meshService", template));
    let picture = picture(generators.into_iter().chain([service.clone()]));
    assert_eq!(of(&picture, &service), ["web.mesh.local"]);
    let reasons = reasons(&picture, &service);
    let wrong = reasons.iter().filter(|(_, reason)| reason == TEMPLATE_ERROR).count();
    assert_eq!((wrong, reasons.last().unwrap().1.as_str()), (4, GENERATED));
}

#[test]
fn of_those_who_want_a_name_one_has_it() {
    let (web, far, api) = (service("east", "web"), service("west", "web"), external("web"));
    let flat = |zone: &str, name: &str, of: &str| generator(zone, name, of, "{{ .DisplayName }}.mesh.local");
    // One generator: the zone's own service, whatever came first.
    for order in [[&web, &far], [&far, &web]] {
        let mut all = vec![flat("", "flat", "meshService")];
        all.extend(order.map(Clone::clone));
        let picture = picture(all);
        assert_eq!(of(&picture, &web), ["web.mesh.local"]);
        assert_eq!(of(&picture, &far), Vec::<String>::new());
        assert_eq!(reasons(&picture, &far), [("flat".to_owned(), COLLISION.to_owned())]);
        let message = &picture.meshes["default"].names.conditions(&far.key)[0].conditions[0].message;
        assert_eq!(message, "web.mesh.local is the name of MeshService web (east)");
    }
    // Two: the zone's own generator before global's, then the older; over all kinds.
    let late = OffsetDateTime::UNIX_EPOCH + time::Duration::days(1);
    for (zone, created, winner) in [
        ("east", late, &api),
        ("", late, &web),
        ("", OffsetDateTime::UNIX_EPOCH - time::Duration::days(1), &api),
    ] {
        let (one, two) = (flat("", "b", "meshService"), flat(zone, "a", "meshExternalService"));
        let mut picture = picture([one.clone(), two.clone()]);
        picture.set_created(&one.key, OffsetDateTime::UNIX_EPOCH);
        picture.set_created(&two.key, created);
        for resource in [&web, &api] {
            picture.put(resource.clone()).unwrap();
        }
        assert_eq!(of(&picture, winner), ["web.mesh.local"], "{zone:?} {created}");
        let loser = if winner.key == web.key { &api } else { &web };
        assert_eq!(of(&picture, loser), Vec::<String>::new());
        picture.remove(&winner.key);
        assert_eq!(of(&picture, loser), ["web.mesh.local"], "free again");
    }
}

#[test]
fn no_generator_takes_the_name_of_a_kuma_io_service() {
    let spec = json!({"state": "Available", "selector": {"dataplaneTags": {"kuma.io/service": "billing"}}});
    let billing = named(MeshService::KIND, "west", "billing", &[], spec);
    let thief = service("east", "billing");
    let of_mesh = generator("east", "thief", "meshService", "{{ .DisplayName }}.mesh");
    let mut picture = picture([of_mesh, thief.clone(), billing.clone()]);
    assert_eq!(of(&picture, &thief), Vec::<String>::new());
    assert_eq!(reasons(&picture, &thief)[0].1, COLLISION);
    picture.remove(&billing.key);
    assert_eq!(of(&picture, &thief), ["billing.mesh"]);
}

#[test]
fn an_external_services_names_are_its_own() {
    let spec =
        json!({"tags": {"kuma.io/service": "Ledger"}, "networking": {"address": "Bank.mesh.local.:443"}});
    let listed = named(ExternalService::KIND, "", "ledger", &[], spec);
    let tagged = json!({"state": "Available", "selector": {"dataplaneTags": {"kuma.io/service": "ledger"}}});
    let thieves = [
        named(MeshService::KIND, "east", "a", &[], tagged),
        service("east", "ledger"),
        service("east", "bank"),
    ];
    let generators = [
        generator("east", "mesh", "meshService", "{{ .DisplayName }}.mesh"),
        generator("east", "local", "meshService", "{{ .DisplayName }}.mesh.local"),
    ];
    let mut picture = picture(generators.into_iter().chain(thieves.clone()).chain([listed.clone()]));
    let names = |picture: &Picture| thieves.each_ref().map(|it| of(picture, it));
    assert_eq!(
        names(&picture),
        [vec!["a.mesh", "a.mesh.local"], vec!["ledger.mesh.local"], vec!["bank.mesh"]]
    );
    for name in ["ledger.mesh", "bank.mesh.local"] {
        assert_eq!(picture.meshes["default"].names.listed(name), Some(&listed.key));
    }
    let conditions = picture.meshes["default"].names.conditions(&thieves[2].key);
    let message =
        &conditions.iter().find(|it| it.hostname_generator_ref.core_name == "local").unwrap().conditions[0];
    assert_eq!(message.message, "bank.mesh.local is the name of ExternalService ledger (global)");
    picture.remove(&listed.key);
    assert_eq!(names(&picture)[2], ["bank.mesh", "bank.mesh.local"]);
}

/// Followed change by change, names are what they are when worked out at once.
#[test]
fn following_is_working_out() {
    let changes = [
        service("east", "a"),
        generator("", "one", "meshService", "{{ .DisplayName }}.mesh.local"),
        external("a"),
        generator("", "two", "meshExternalService", "{{ .DisplayName }}.mesh.local"),
        service("west", "a"),
        named(ExternalService::KIND, "", "a", &[], json!({"networking": {"address": "a.mesh.local:80"}})),
        many("a"),
        generator("east", "three", "meshMultiZoneService", "{{ .DisplayName }}.mesh.local"),
        generator("", "one", "meshService", r#"{{ label "team" }}.mesh.local"#),
    ];
    let mut followed = picture([]);
    for (n, change) in changes.iter().enumerate() {
        followed.put(change.clone()).unwrap();
        let mut anew = followed.clone();
        follow_all(&mut anew, "default");
        let names = |picture: &Picture| picture.mesh("default").map(|mesh| mesh.names.clone());
        assert_eq!(names(&followed), names(&anew), "after {n}");
    }
    for change in changes {
        followed.remove(&change.key);
    }
    assert!(followed.meshes.is_empty(), "{:?}", followed.meshes);
}
