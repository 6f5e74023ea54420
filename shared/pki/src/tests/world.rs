//! Two zones of one mesh, and a second mesh.

use crate::{Bundles, Identity, IdentityHandle, Intermediate, Issued, LeafSpec, PrivateKey, RootCa};
use meridian_proxy_config::Bundle;
use time::OffsetDateTime;

pub(super) struct World {
    pub(super) now: OffsetDateTime,
    pub(super) root: RootCa,
    pub(super) east: Intermediate,
    pub(super) west: Intermediate,
    pub(super) other_root: RootCa,
    pub(super) other_east: Intermediate,
}

impl World {
    pub(super) fn new() -> Self {
        let now = OffsetDateTime::now_utc();
        let root = RootCa::generate("default", now).unwrap();
        let other_root = RootCa::generate("other", now).unwrap();
        let (east, west) = (intermediate(&root, "east", now), intermediate(&root, "west", now));
        let other_east = intermediate(&other_root, "east", now);
        Self { now, root, east, west, other_root, other_east }
    }

    pub(super) fn bundle(&self) -> Bundle {
        bundle(&self.root)
    }

    pub(super) fn bundles(&self) -> Bundles {
        let bundles = Bundles::new();
        bundles.set(&bundle(&self.root)).unwrap();
        bundles.set(&bundle(&self.other_root)).unwrap();
        bundles
    }
}

pub(super) fn bundle(root: &RootCa) -> Bundle {
    Bundle { mesh: root.mesh().into(), roots: vec![root.authority().certificate_pem()], revoked: Vec::new() }
}

pub(super) fn intermediate(root: &RootCa, zone: &str, now: OffsetDateTime) -> Intermediate {
    let key = PrivateKey::generate().unwrap();
    let issued = root.sign_intermediate(&key.request().unwrap(), zone, now).unwrap();
    Intermediate::new(root.mesh(), issued.chain[0].clone(), key).unwrap()
}

pub(super) fn spec(service: &str) -> LeafSpec {
    LeafSpec {
        services: [service.to_owned()].into(),
        tags: [("kuma.io/service".to_owned(), [service.to_owned()].into())].into(),
        dataplane: Some(format!("{service}-1")),
        lifetime: None,
    }
}

pub(super) fn leaf(intermediate: &Intermediate, service: &str, now: OffsetDateTime) -> (Issued, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let issued = intermediate.sign_leaf(&key.request().unwrap(), &spec(service), now).unwrap();
    (issued, key)
}

pub(super) fn identity(intermediate: &Intermediate, service: &str, now: OffsetDateTime) -> IdentityHandle {
    let (issued, key) = leaf(intermediate, service, now);
    let handle = IdentityHandle::new();
    handle.set(Identity::new(issued.chain, &key).unwrap());
    handle
}
