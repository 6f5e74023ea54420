//! The examples of the documentation: a global control plane takes each, and a zone compiles it.

use super::*;
use crate::compile::fixture::{World, add, zone};
use crate::picture::Picture;
use base64::{Engine, engine::general_purpose::STANDARD};
use meridian_core::{Kind, Scope, document};
use serde_json::Value;

/// Services that examples speak of: name, port, protocol. Their Dataplanes have the label `app`.
const SERVICES: [(&str, u32, &str); 10] = [
    ("web", 8080, "http"),
    ("backend", 8080, "http"),
    ("billing", 8080, "http"),
    ("shop", 8080, "http"),
    ("shop-v2", 8080, "http"),
    ("db", 5432, "tcp"),
    ("new-db", 5432, "tcp"),
    ("catalogue", 80, "http"),
    ("search", 8080, "http"),
    ("reports", 8080, "http"),
];

/// What the API warns of, by the example's name: that is what the page says, too.
const WARNINGS: [(&str, &str); 2] = [
    ("legacy-clients", "permissions do not cover callers without a certificate"),
    ("default", "meridian mesh rotate-ca default"),
];

/// How blocks begin that are no resources: a control plane's settings, and what the demo says, which is cut.
const NO_RESOURCES: [&str; 2] = ["access:\n", "  | type"];

struct Example {
    page: PathBuf,
    value: Value,
}

impl Example {
    fn text(&self, field: &str) -> &str {
        self.value[field].as_str().unwrap_or_default()
    }

    fn kind(&self) -> Kind {
        Kind::named(self.text("type")).unwrap()
    }

    fn resource(&self) -> Resource {
        document::check(&self.value, None).unwrap().resource
    }
}

/// Those of all pages: YAML by itself, or handed to a command by a shell.
fn examples() -> Vec<Example> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages = |folder: &str| {
        let all = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut pages: Vec<_> = all.filter(|path| path.extension().is_some_and(|it| it == "md")).collect();
        pages.sort();
        pages
    };
    let mut found = Vec::new();
    for page in [pages("."), pages("docs"), pages("docs/policies")].concat() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (begin, end) in [("```yaml\n", "```"), ("<<END\n", "\nEND")] {
            let blocks = text.split(begin).skip(1).map(|rest| rest.split(end).next().unwrap());
            for block in blocks.filter(|block| !NO_RESOURCES.iter().any(|begin| block.starts_with(begin))) {
                let values = document::split(block).unwrap_or_else(|it| panic!("{page:?}: {it:?}"));
                found.extend(values.into_iter().map(|value| Example { page: page.clone(), value }));
            }
        }
    }
    found
}

#[tokio::test]
async fn global_takes_each_and_warns_of_what_its_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let global = RealGlobal::start(dir.path()).await;
    let put = async |path: &str, body: &Value| {
        let answer = global.ask("PUT", path, &body.to_string()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let written = ["HTTP/1.1 200", "HTTP/1.1 201"].iter().any(|status| head.starts_with(status));
        assert!(written, "{path}: {answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        body["warnings"].as_array().cloned().unwrap_or_default()
    };
    // What the example of a root of one's own names.
    let root = RootCa::generate("corp", OffsetDateTime::now_utc()).unwrap();
    let (certificate, key) = (root.authority().certificate_pem(), root.authority().key().to_pem());
    for (name, text, sync) in
        [("ca-cert", certificate.as_str(), "enabled"), ("ca-key", key.as_str(), "disabled")]
    {
        let secret = json!({
            "type": "Secret", "mesh": "default", "name": name, "data": STANDARD.encode(text),
            "labels": {"kuma.io/kds-sync": sync},
        });
        assert_eq!(put(&format!("/meshes/default/secrets/{name}"), &secret).await, [Value::Null; 0]);
    }
    let all = examples();
    for example in &all {
        let (info, name) = (example.kind().info(), example.text("name"));
        let path = match info.scope {
            Scope::Mesh => format!("/meshes/{}/{}/{name}", example.text("mesh"), info.plural),
            Scope::Global => format!("/{}/{name}", info.plural),
        };
        let warnings = put(&path, &example.value).await;
        let told = WARNINGS.iter().find(|(of, _)| *of == name).map(|(_, warning)| *warning);
        assert_eq!(warnings.len(), usize::from(told.is_some()), "{:?} {name}: {warnings:?}", example.page);
        assert!(told.is_none_or(|told| warnings[0].as_str().unwrap().contains(told)), "{name}: {warnings:?}");
    }
    global.stop().await;
    assert!(all.len() > 20, "{}", all.len());
}

/// East, with all services that examples speak of.
fn services() -> Picture {
    let mut east = zone("east", "10.1.0", vec![]);
    for (host, (name, port, protocol)) in (20..).zip(SERVICES) {
        let address = format!("10.1.0.{host}");
        let mut resource = dataplane("east", &format!("{name}-1"), name, &address, port, protocol);
        resource.labels.insert("app".into(), name.into());
        add(&mut east, resource);
    }
    let services = east.meshes["default"].services.values().map(|it| it.resource.clone());
    for mut service in services.collect::<Vec<_>>() {
        service.labels.insert("team".into(), "shop".into());
        east.put(service).unwrap();
    }
    // What policies refer to.
    for example in examples().iter().filter(|it| it.text("type") == "MeshOpenTelemetryBackend") {
        let resource = example.resource();
        let mut backend = global(example.text("type"), "default", example.text("name"), resource.spec);
        backend.labels = resource.labels;
        east.put(backend).unwrap();
    }
    east
}

/// What all sidecars hold.
fn shown(world: &World) -> Vec<impl PartialEq + use<>> {
    let sidecars = SERVICES.map(|(name, ..)| crate::compile::fixture::sidecar("east", &format!("{name}-1")));
    sidecars.iter().map(|key| world.shown(key)).collect()
}

#[test]
fn a_zone_compiles_each_and_it_changes_something() {
    let plain = World::new(services());
    assert!(plain.audiences.problems().is_empty(), "{:?}", plain.audiences.problems());
    let is_compiled = |example: &&Example| {
        let info = example.kind().info();
        info.targets.is_some()
            || ["MeshMultiZoneService", "HostnameGenerator"].contains(&example.text("type"))
    };
    for example in examples().iter().filter(is_compiled) {
        let (kind, mesh, name) = (example.text("type"), example.text("mesh"), example.text("name"));
        let mut resource = global(kind, mesh, name, example.resource().spec);
        let is_shadow = example.value["labels"]["kuma.io/effect"] == "shadow";
        let mut picture = services();
        picture.put(resource.clone()).unwrap();
        let world = World::new(picture);
        assert!(world.audiences.problems().is_empty(), "{name}: {:?}", world.audiences.problems());
        assert!(shown(&world) != shown(&plain), "{:?} {name} changes nothing", example.page);
        if is_shadow {
            resource.labels.insert("kuma.io/effect".into(), "shadow".into());
            let mut picture = services();
            picture.put(resource).unwrap();
            assert!(shown(&World::new(picture)) == shown(&plain), "{name} is tried out only");
        }
    }
}
