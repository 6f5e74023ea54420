//! How resources are named between global and zones: `<mesh>/<zone of origin>/<name>`, empty parts kept.
//!
//! A zone's resource is under its own name at home and on the way up; global gives it Kuma's hashed name, under which
//! global and the other zones know it. The labels that say where it is from are set by both ends the same way, so that
//! its version is the same at both: the receiver does not believe them, it makes them.

use meridian_core::labels::{DISPLAY_NAME, ORIGIN, ORIGIN_GLOBAL, ORIGIN_ZONE, ZONE};
use meridian_core::{Key, Kind, Resource, names};

/// The name of a resource on the stream.
#[must_use]
pub fn name(key: &Key) -> String {
    format!("{}/{}/{}", key.mesh, key.zone, key.name)
}

/// The key of a resource on the stream; None if the type is no kind, or the name has not three parts.
#[must_use]
pub fn key(type_: &str, name: &str) -> Option<Key> {
    let kind = Kind::named(type_)?;
    let mut parts = name.splitn(3, '/');
    let (mesh, zone, name) = (parts.next()?, parts.next()?, parts.next()?);
    (!name.is_empty()).then(|| Key::new(kind, mesh, zone, name))
}

/// A zone's own resource as it travels to global: `zone` is the sender, whatever the resource says.
#[must_use]
pub fn from_zone(zone: &str, mut resource: Resource) -> Resource {
    zone.clone_into(&mut resource.key.zone);
    let name = resource.key.name.clone();
    resource.labels.insert(DISPLAY_NAME.to_owned(), name);
    resource.labels.insert(ZONE.to_owned(), zone.to_owned());
    resource.labels.insert(ORIGIN.to_owned(), ORIGIN_ZONE.to_owned());
    resource
}

/// What global keeps of a zone's resource: [`from_zone`] under the hashed name.
#[must_use]
pub fn at_global(zone: &str, resource: Resource) -> Resource {
    let mut resource = from_zone(zone, resource);
    resource.key.name = hashed_name(&resource.key);
    resource
}

/// The inverse of [`at_global`], for comparing with what the zone has: None for a resource without its home name.
#[must_use]
pub fn at_home(mut resource: Resource) -> Option<Resource> {
    let home = resource.labels.get(DISPLAY_NAME)?.clone();
    resource.key.name = home;
    Some(resource)
}

/// What other zones get of a zone's resource as global keeps it: for them it comes from global.
#[must_use]
pub fn across(mut resource: Resource) -> Resource {
    resource.labels.insert(ORIGIN.to_owned(), ORIGIN_GLOBAL.to_owned());
    resource
}

/// The name under which global and other zones know the resource that has `key` at home.
#[must_use]
pub fn hashed_name(key: &Key) -> String {
    names::hashed(&key.mesh, &key.name, &key.zone, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn service(zone: &str, name: &str) -> Resource {
        let kind = Kind::named("MeshService").unwrap();
        Resource {
            key: Key::new(kind, "default", zone, name),
            labels: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
            spec: serde_json::json!({}),
            status: None,
        }
    }

    #[test]
    fn names_survive_the_wire() {
        for (mesh, zone) in [("default", "east"), ("", "east"), ("default", ""), ("", "")] {
            let expected = Key::new(Kind::named("MeshService").unwrap(), mesh, zone, "a.b");
            assert_eq!(key("MeshService", &name(&expected)), Some(expected));
        }
        assert_eq!(key("MeshService", "default/east"), None);
        assert_eq!(key("MeshService", "default/east/"), None);
        assert_eq!(key("Nonsense", "//x"), None);
    }

    #[test]
    fn the_sender_is_the_origin_whatever_the_resource_says() {
        let mut forged = service("west", "backend");
        forged.labels.insert(ZONE.to_owned(), "west".to_owned());
        forged.labels.insert(DISPLAY_NAME.to_owned(), "other".to_owned());
        let kept = at_global("east", forged);
        assert_eq!(kept.key.zone, "east");
        assert_eq!(kept.labels[ZONE], "east");
        assert_eq!(kept.labels[DISPLAY_NAME], "backend");
        assert_eq!(kept.labels[ORIGIN], "zone");
    }

    #[test]
    fn two_zones_may_use_the_same_name() {
        let (east, west) =
            (at_global("east", service("", "backend")), at_global("west", service("", "backend")));
        assert_ne!(east.key.name, west.key.name);
        assert!(east.key.name.starts_with("backend-"), "{}", east.key.name);
    }

    #[test]
    fn global_finds_back_what_the_zone_sent() {
        let sent = from_zone("east", service("", "backend"));
        let back = at_home(at_global("east", service("", "backend"))).unwrap();
        assert_eq!((back.key.clone(), back.canonical()), (sent.key.clone(), sent.canonical()));
    }
}
