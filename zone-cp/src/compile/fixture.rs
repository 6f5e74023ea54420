//! Two zones as their control planes see them: web in east, backend in west, destinations outside.

use crate::audiences::{Audiences, Views};
use crate::compile::touched::{Touched, everything};
use crate::generate::{Action, generate};
use crate::picture::{Facts, Options, Picture};
use crate::vip::VipTable;
use meridian_api::wire;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::hostname_generator::defaults;
use meridian_core::{Key, Kind, Resource, labels};
use meridian_delta::{Revision, StoreId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

pub(crate) fn kind(name: &str) -> Kind {
    Kind::named(name).unwrap()
}

/// A resource that was written at global.
pub(crate) fn global(kind_name: &str, mesh: &str, name: &str, spec: Value) -> Resource {
    let key = Key::global(kind(kind_name), mesh, name);
    let labels = labels::computed(&key, "", &BTreeMap::new());
    Resource { key, labels, spec, status: None }
}

/// A resource of a zone, at home.
pub(crate) fn local(zone: &str, kind_name: &str, mesh: &str, name: &str, spec: Value) -> Resource {
    let key = Key::new(kind(kind_name), mesh, zone, name);
    let labels = labels::computed(&key, zone, &BTreeMap::new());
    Resource { key, labels, spec, status: None }
}

/// The same in another zone.
pub(crate) fn abroad(zone: &str, resource: Resource) -> Resource {
    wire::across(wire::at_global(zone, resource))
}

pub(crate) fn dataplane(
    zone: &str,
    name: &str,
    service: &str,
    address: &str,
    port: u32,
    protocol: &str,
) -> Resource {
    let spec = json!({"networking": {
        "address": address,
        "inbound": [{
            "port": port, "servicePort": port + 1, "serviceAddress": "127.0.0.1",
            "tags": {"kuma.io/service": service, "kuma.io/protocol": protocol, "kuma.io/zone": zone},
        }],
        "transparentProxying": {"redirectPortInbound": 15006, "redirectPortOutbound": 15001},
    }});
    local(zone, "Dataplane", "default", name, spec)
}

pub(crate) fn mesh(spec: Value) -> Resource {
    global("Mesh", "", "default", spec)
}

pub(crate) fn strict() -> Value {
    json!({
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin", "mode": "STRICT"}]},
        "routing": {"zoneEgress": true},
        "networking": {"outbound": {"passthrough": false}},
    })
}

/// Ready on all its inbounds, with a certificate.
pub(crate) fn healthy(resource: &Resource) -> Facts {
    healthy_at(&resource.key, &resource.parse().unwrap())
}

pub(crate) fn healthy_at(key: &Key, dataplane: &Dataplane) -> Facts {
    let inbounds = &dataplane.networking.as_ref().unwrap().inbound;
    let ready = inbounds.iter().map(|inbound| inbound.section_name()).collect();
    Facts { ready, certified: BTreeSet::from([key.mesh.clone()]) }
}

/// What is the same in both zones.
pub(crate) fn policies() -> Vec<Resource> {
    let mut all = defaults();
    all.extend([
        mesh(strict()),
        global("TrustBundle", "default", "default", json!({"roots": ["root"], "revoked": []})),
        global(
            "MeshTrafficPermission",
            "default",
            "web-calls",
            json!({
                "targetRef": {"kind": "Mesh"},
                "from": [{"targetRef": {"kind": "MeshService", "name": "web"}, "default": {"action": "Allow"}}],
            }),
        ),
        global(
            "ExternalService",
            "default",
            "httpbin",
            json!({
                "tags": {"kuma.io/service": "httpbin", "kuma.io/protocol": "tcp"},
                "networking": {"address": "httpbin.example:443"},
            }),
        ),
        global(
            "ExternalService",
            "default",
            "ledger",
            json!({
                "tags": {"kuma.io/service": "ledger", "kuma.io/protocol": "http", "kuma.io/zone": "west"},
                "networking": {"address": "ledger.example:80", "allowedAddresses": ["192.0.2.0/24"]},
            }),
        ),
        global(
            "MeshExternalService",
            "default",
            "billing",
            json!({
                "match": {"type": "HostnameGenerator", "port": 80, "protocol": "http"},
                "endpoints": [{"address": "billing.example", "port": 443}, {"address": "203.0.113.7", "port": 443}],
                "tls": {"enabled": true, "verification": {
                    "serverName": "billing.example",
                    "caCert": {"secret": "billing-ca"},
                }},
            }),
        ),
        global("Secret", "default", "billing-ca", json!({"data": "UEVNIENB"})),
        global(
            "MeshPassthrough",
            "default",
            "updates",
            json!({
                "targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}},
                "default": {"passthroughMode": "Matched", "appendMatch": [
                    {"type": "Domain", "value": "updates.example", "port": 443, "protocol": "tls"},
                    {"type": "IP", "value": "198.51.100.9", "protocol": "tcp"},
                ]},
            }),
        ),
    ]);
    all
}

/// The zone's own gateways.
pub(crate) fn gateways(zone: &str, net: &str) -> [Resource; 2] {
    let ingress = json!({"zone": zone, "networking": {
        "address": format!("{net}.10"), "port": 10001,
        "advertisedAddress": format!("{net}.10"), "advertisedPort": 10001,
    }});
    let egress = json!({"zone": zone, "networking": {"address": format!("{net}.11"), "port": 10002}});
    [local(zone, "ZoneIngress", "", "ingress", ingress), local(zone, "ZoneEgress", "", "egress", egress)]
}

/// A zone with one Dataplane a service, its gateways, the policies, and MeshServices as generated.
pub(crate) fn zone(name: &str, net: &str, dataplanes: Vec<Resource>) -> Picture {
    let mut picture = Picture::new(name, Options::default());
    for resource in policies().into_iter().chain(gateways(name, net)) {
        picture.put(resource).unwrap();
    }
    for resource in dataplanes {
        add(&mut picture, resource);
    }
    picture
}

/// A Dataplane that is there and ready, with what the generator makes of it.
pub(crate) fn add(picture: &mut Picture, dataplane: Resource) {
    let key = dataplane.key.clone();
    picture.set_facts(&key, Some(healthy(&dataplane)));
    picture.put(dataplane).unwrap();
    generate_all(picture);
}

/// Runs the generator until nothing changes.
pub(crate) fn generate_all(picture: &mut Picture) {
    loop {
        let mesh = picture.meshes["default"].clone();
        let tags = mesh.by_service.keys().cloned();
        let own = mesh.services.keys().filter(|key| picture.is_local(key)).map(|key| key.name.clone());
        let names: BTreeSet<String> = tags.chain(own).collect();
        let mut changed = false;
        for name in names {
            match generate(picture, "default", &name, None, OffsetDateTime::UNIX_EPOCH).action {
                Action::Put(resource) => {
                    picture.put(*resource).unwrap();
                    changed = true;
                }
                Action::Delete(key) => {
                    picture.remove(&key);
                    changed = true;
                }
                Action::Nothing => {}
            }
        }
        if !changed {
            return;
        }
    }
}

/// What one zone publishes reaches the other.
pub(crate) fn tell(from: &Picture, to: &mut Picture) {
    let services = from.meshes["default"].services.values().map(|it| it.resource.clone());
    let ingresses = from.ingresses.values().map(|it| it.resource.clone());
    let own: Vec<Resource> = services.chain(ingresses).filter(|it| from.is_local(&it.key)).collect();
    for resource in own {
        to.put(abroad(&from.zone, resource)).unwrap();
    }
}

/// A MeshService of another zone with two ready instances, as that zone says it.
pub(crate) fn far_service(zone: &str, name: &str, tag: &str, ports: &[(usize, &str)]) -> Resource {
    let port = |(number, protocol): &(usize, &str)| json!({"port": number, "appProtocol": protocol});
    let spec = json!({
        "selector": {"dataplaneTags": {"kuma.io/service": tag}}, "state": "Available",
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
        "identities": [{"type": "ServiceTag", "value": tag}],
    });
    let mut service = local(zone, "MeshService", "default", name, spec);
    service.status = Some(json!({"dataplaneProxies": {"connected": 2, "healthy": 2, "total": 2}}));
    abroad(zone, service)
}

/// East and west.
pub(crate) fn world() -> (Picture, Picture) {
    let mut east = zone("east", "10.1.0", vec![dataplane("east", "web-1", "web", "10.1.0.1", 8080, "http")]);
    let backends = vec![
        dataplane("west", "backend-1", "backend", "10.2.0.1", 9000, "http"),
        dataplane("west", "backend-2", "backend", "10.2.0.2", 9000, "http"),
        dataplane("west", "backend-3", "backend", "10.2.0.3", 9000, "http"),
    ];
    let mut west = zone("west", "10.2.0", backends);
    tell(&west, &mut east);
    tell(&east, &mut west);
    (east, west)
}

/// Compiled from nothing.
pub(crate) struct World {
    pub(crate) picture: Picture,
    pub(crate) vips: VipTable,
    pub(crate) views: Views,
    pub(crate) audiences: Audiences,
    revision: u64,
}

impl World {
    pub(crate) fn new(picture: Picture) -> Self {
        Self::with(picture, VipTable::default())
    }

    pub(crate) fn with(picture: Picture, vips: VipTable) -> Self {
        let views = Views::new(StoreId([1; 16]));
        let audiences = Audiences::new(views.clone());
        let mut world = Self { picture, vips, views, audiences, revision: 0 };
        let touched = everything(&world.picture);
        world.update(touched);
        world
    }

    pub(crate) fn update(&mut self, touched: Touched) {
        self.revision += 1;
        self.audiences.allot(&self.picture, &mut self.vips, &touched.units, 0);
        self.audiences.update(&self.picture, &self.vips, &touched, Revision(self.revision));
    }

    /// Changes the picture and follows.
    pub(crate) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Picture)) {
        let before = self.picture.clone();
        change(&mut self.picture);
        let touched = super::touched::touched(&before, &self.picture, key);
        self.update(touched);
    }

    pub(crate) fn put(&mut self, resource: Resource) {
        let key = resource.key.clone();
        self.change(&key, |picture| picture.put(resource).unwrap());
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.change(key, |picture| picture.remove(key));
    }

    /// All that a proxy holds: type -> name -> body.
    pub(crate) fn shown(&self, key: &Key) -> BTreeMap<String, BTreeMap<String, Value>> {
        let mut out: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
        for resource in self.views.open(key).list() {
            let body = serde_json::from_slice(&resource.body).unwrap();
            out.entry(resource.type_.to_string()).or_default().insert(resource.name.to_string(), body);
        }
        out
    }

    pub(crate) fn one(&self, key: &Key, type_: &str, name: &str) -> Value {
        let found = self.views.open(key).get(type_, name);
        let found =
            found.unwrap_or_else(|| panic!("{type_} {name} is not among {:?}", self.shown(key).get(type_)));
        serde_json::from_slice(&found.body).unwrap()
    }
}

pub(crate) fn sidecar(zone: &str, name: &str) -> Key {
    Key::new(kind("Dataplane"), "default", zone, name)
}

pub(crate) fn ingress(zone: &str) -> Key {
    Key::new(kind("ZoneIngress"), "", zone, "ingress")
}

pub(crate) fn egress(zone: &str) -> Key {
    Key::new(kind("ZoneEgress"), "", zone, "egress")
}
