//! Who gets what: pure decisions over one resource and a few facts about the mesh.
//!
//! A zone gets what was written at global, and other zones' services and ingresses under the names that global gave them;
//! never its own resources back, never what signs. A secret goes only where a resource that the zone has names it.

use meridian_api::wire;
use meridian_core::kinds::{
    mesh::Mesh,
    secret::Secret,
    token_key::{TokenKey, TokenPurpose},
    token_revocation::TokenRevocation,
};
use meridian_core::{Key, Resource, labels};
use serde_json::Value;
use std::collections::BTreeSet;

/// Facts that decide about more than one resource.
pub(crate) trait Facts {
    /// Whether other zones may use this zone's services: it exists, is enabled and not revoked.
    fn offers(&self, zone: &str) -> bool;

    /// Whether a resource that `zone` has names this secret.
    fn names_secret(&self, zone: &str, secret: &Key) -> bool;
}

/// How a resource reaches a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Written at global: as it is.
    Down,
    /// From another zone: with the labels that say so.
    Across,
}

/// Whether `zone` gets the resource, and how.
pub(crate) fn route(resource: &Resource, zone: &str, facts: &impl Facts) -> Option<Route> {
    let candidate = candidate(resource, zone)?;
    let given = match candidate {
        Route::Across => facts.offers(&resource.key.zone),
        Route::Down if resource.key.kind == Secret::KIND => facts.names_secret(zone, &resource.key),
        Route::Down => true,
    };
    given.then_some(candidate)
}

/// How the resource would reach the zone, facts aside.
fn candidate(resource: &Resource, zone: &str) -> Option<Route> {
    let info = resource.key.kind.info();
    if resource.labels.get(labels::KDS_SYNC).is_some_and(|sync| sync == "disabled") {
        return None;
    }
    if resource.key.zone.is_empty() {
        return (info.flow.global_to_zone && !only_global(resource)).then_some(Route::Down);
    }
    (info.flow.across_zones && resource.key.zone != zone).then_some(Route::Across)
}

/// What says who is a user of global's API is nobody else's business.
fn only_global(resource: &Resource) -> bool {
    let purpose = match resource.key.kind {
        kind if kind == TokenKey::KIND => resource.parse::<TokenKey>().ok().map(|key| key.purpose),
        kind if kind == TokenRevocation::KIND => resource.parse::<TokenRevocation>().ok().map(|r| r.purpose),
        _ => return false,
    };
    // One that can't be read goes nowhere.
    purpose.is_none_or(|purpose| purpose == TokenPurpose::User)
}

/// The resource as it is encoded for that route.
pub(crate) fn as_sent(resource: &Resource, route: Route) -> Resource {
    match route {
        Route::Down => resource.clone(),
        Route::Across => wire::across(resource.clone()),
    }
}

/// The secrets that a resource names: Kuma's data sources, wherever they stand in its spec. Of a Mesh: the keys of its
/// roots, which stay here whoever else names them.
pub(crate) fn named_secrets(resource: &Resource) -> BTreeSet<Key> {
    let mut names = BTreeSet::new();
    let mut mesh = &resource.key.mesh;
    match resource.key.kind {
        Secret::KIND => {}
        Mesh::KIND => {
            mesh = &resource.key.name;
            let backends = resource.spec.pointer("/mtls/backends").and_then(Value::as_array);
            let keys = backends.into_iter().flatten().filter_map(|backend| backend.pointer("/conf/key"));
            keys.for_each(|key| collect(key, &mut names));
        }
        _ => collect(&resource.spec, &mut names),
    }
    let key = |name: String| Key::global(Secret::KIND, mesh.clone(), name);
    names.into_iter().map(key).collect()
}

fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        Value::Object(fields) => {
            for (field, value) in fields {
                match (field.as_str(), value) {
                    ("secret", Value::String(name)) if !name.is_empty() => {
                        names.insert(name.clone());
                    }
                    ("secretRef", Value::Object(reference)) => {
                        let name = reference.get("name").and_then(Value::as_str);
                        names.extend(name.map(str::to_owned));
                    }
                    _ => collect(value, names),
                }
            }
        }
        _ => {}
    }
}

/// Whether what the resource names is used in `zone`: one that is pinned to a zone is dialled by that zone's egress, and
/// nobody else needs its secrets.
pub(crate) fn uses_secrets_in(resource: &Resource, zone: &str) -> bool {
    let pinned = resource.spec.get("tags").and_then(|tags| tags.get(labels::ZONE)).and_then(Value::as_str);
    let at_home = resource.key.zone == zone;
    (at_home || candidate(resource, zone).is_some()) && pinned.is_none_or(|pinned| pinned == zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::Kind;
    use serde_json::json;
    use std::collections::BTreeMap;

    struct Mesh {
        closed: &'static [&'static str],
        named: &'static [(&'static str, &'static str)],
    }

    impl Facts for Mesh {
        fn offers(&self, zone: &str) -> bool {
            !self.closed.contains(&zone)
        }

        fn names_secret(&self, zone: &str, secret: &Key) -> bool {
            self.named.contains(&(zone, secret.name.as_str()))
        }
    }

    const OPEN: Mesh = Mesh { closed: &[], named: &[("west", "ca")] };

    fn resource(kind: &str, zone: &str, name: &str, spec: Value) -> Resource {
        let kind = Kind::named(kind).unwrap();
        let mesh = if kind.info().scope == meridian_core::Scope::Mesh { "default" } else { "" };
        Resource { key: Key::new(kind, mesh, zone, name), labels: BTreeMap::new(), spec, status: None }
    }

    #[test]
    fn who_gets_what() {
        let token_key = |purpose: &str| json!({"purpose": purpose, "kid": "1", "publicKeyPem": "p"});
        let table = [
            // kind, origin, spec, what east gets, what west gets
            ("Mesh", "", json!({}), Some(Route::Down), Some(Route::Down)),
            ("ExternalService", "", json!({}), Some(Route::Down), Some(Route::Down)),
            ("MeshTrafficPermission", "", json!({}), Some(Route::Down), Some(Route::Down)),
            ("TrustBundle", "", json!({}), Some(Route::Down), Some(Route::Down)),
            ("Zone", "", json!({}), None, None),
            ("GlobalSecret", "", json!({}), None, None),
            ("MeshService", "east", json!({}), None, Some(Route::Across)),
            ("ZoneIngress", "east", json!({}), None, Some(Route::Across)),
            ("ZoneEgress", "east", json!({}), None, None),
            ("Dataplane", "east", json!({}), None, None),
            ("MeshTrafficPermission", "east", json!({}), None, None),
            ("Secret", "", json!({}), None, Some(Route::Down)),
            ("TokenKey", "", token_key("dataplane"), Some(Route::Down), Some(Route::Down)),
            ("TokenKey", "", token_key("zone"), Some(Route::Down), Some(Route::Down)),
            ("TokenKey", "", token_key("user"), None, None),
            ("TokenKey", "", json!({"nonsense": 1}), None, None),
        ];
        for (kind, origin, spec, east, west) in table {
            let resource = resource(kind, origin, "ca", spec);
            assert_eq!(route(&resource, "east", &OPEN), east, "{kind} to east");
            assert_eq!(route(&resource, "west", &OPEN), west, "{kind} to west");
        }
    }

    #[test]
    fn a_zone_that_is_disabled_offers_nothing_and_still_gets_the_rest() {
        let closed = Mesh { closed: &["east"], named: &[] };
        let service = |zone| resource("MeshService", zone, "backend", json!({}));
        assert_eq!(route(&service("east"), "west", &closed), None);
        assert_eq!(route(&service("west"), "east", &closed), Some(Route::Across));
    }

    #[test]
    fn what_is_labelled_not_to_be_synced_stays() {
        let mut mesh = resource("Mesh", "", "default", json!({}));
        mesh.labels.insert(labels::KDS_SYNC.to_owned(), "disabled".to_owned());
        assert_eq!(route(&mesh, "east", &OPEN), None);
    }

    #[test]
    fn secrets_are_found_wherever_they_are_named() {
        let legacy =
            json!({"networking": {"tls": {"caCert": {"secret": "ca"}, "clientKey": {"inline": "x"}}}});
        let new = json!({"tls": {"verification": {"caCert": {"type": "Secret", "secretRef": {"kind": "Secret", "name": "ca2"}}}}});
        let names = |spec| -> Vec<String> {
            named_secrets(&resource("ExternalService", "", "es", spec)).into_iter().map(|k| k.name).collect()
        };
        assert_eq!(names(legacy), ["ca"]);
        assert_eq!(names(new), ["ca2"]);
        assert!(named_secrets(&resource("Secret", "", "x", json!({"secret": "y"}))).is_empty());
        let conf = json!({"cert": {"secret": "ca"}, "key": {"secret": "root"}});
        let mesh = resource("Mesh", "", "corp", json!({"mtls": {"backends": [{"conf": conf}]}}));
        assert_eq!(named_secrets(&mesh), [Key::global(Secret::KIND, "corp", "root")].into());
    }

    #[test]
    fn what_is_pinned_to_a_zone_takes_its_secrets_nowhere_else() {
        let pinned = resource("ExternalService", "", "es", json!({"tags": {"kuma.io/zone": "west"}}));
        assert!(uses_secrets_in(&pinned, "west"));
        assert!(!uses_secrets_in(&pinned, "east"));
        let own = resource("MeshExternalService", "east", "mes", json!({}));
        assert!(uses_secrets_in(&own, "east"));
        assert!(!uses_secrets_in(&own, "west"));
    }
}
