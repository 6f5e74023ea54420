//! MeshTLS: whether an inbound takes plaintext, and what sessions are like.
//!
//! It is no part of [`INCOMING`](super::kinds::INCOMING), since it acts before there is a caller, on both ends of a session, and on who may
//! be an endpoint at all.

use super::blame;
use super::kinds::by_caller;
use crate::compile::Compiled;
use crate::compile::services::selected_inbounds;
use crate::picture::{MeshPicture, Picture, subject};
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::mesh::MtlsMode;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::mesh_tls::{Conf, MeshTls, Mode, TlsCipher, TlsVersion as Given};
use meridian_core::{TargetKind, TargetRef};
use meridian_policy::{Parsed, Policy, Routes, Section, inbound_rules, sort};
use meridian_proxy_config::{InboundTls, SessionCipher, SessionTerms, TlsVersion};
use std::sync::Arc;

/// Some policy can't be read; it is reported where it is compiled.
struct Unreadable;

fn policies(mesh: &MeshPicture) -> impl Iterator<Item = &Arc<Policy>> {
    mesh.policies.values().filter(|policy| policy.key().kind == MeshTls::KIND && policy.is_incoming())
}

/// Whether a policy says something of a sidecar's sessions.
pub(crate) fn selects(policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    let subject = subject(dataplane);
    let inbounds = dataplane.spec.networking.iter().flat_map(|networking| &networking.inbound);
    let mut sections = inbounds.map(Section::Inbound).chain([Section::Whole]);
    policy.key().kind == MeshTls::KIND
        && policy.is_incoming()
        && sections.any(|section| policy.selects(&Routes::default(), &subject, section))
}

/// What policies add up to for everybody; the kind tells no callers apart. An error where they can't be read.
fn merged(selecting: &[Arc<Policy>], out: Option<&mut Compiled>) -> Result<Conf, Unreadable> {
    let rules = inbound_rules(selecting);
    match by_caller::<Conf>(&rules) {
        Ok(confs) => {
            let of_all = confs.into_iter().find(|(matched, _)| matched.is_none());
            Ok(of_all.map(|(_, conf)| conf).unwrap_or_default())
        }
        Err(error) => {
            if let Some(out) = out {
                blame(rules.iter().map(|rule| &rule.origin.policy.key), &error, out);
            }
            Err(Unreadable)
        }
    }
}

fn of_inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    out: Option<&mut Compiled>,
) -> Result<Conf, Unreadable> {
    merged(&selecting(mesh, dataplane, Section::Inbound(inbound)), out)
}

/// From weak to strong.
fn selecting(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>, section: Section<'_>) -> Vec<Arc<Policy>> {
    let subject = subject(dataplane);
    let mut selecting = mesh.policies.selecting(MeshTls::KIND, &Routes::default(), &subject, section);
    selecting.retain(|policy| policy.is_incoming());
    selecting
}

/// What an inbound takes: as the mesh says, unless a policy says otherwise. A policy that can't be read closes it to
/// plaintext.
pub(crate) fn inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    out: &mut Compiled,
) -> InboundTls {
    let Some(backend) = mesh.spec().and_then(|spec| spec.mtls_backend()) else { return InboundTls::Off };
    match of_inbound(mesh, dataplane, inbound, Some(out)).map(|conf| conf.mode) {
        Ok(Some(Mode::Permissive)) => InboundTls::Permissive,
        Ok(None) if backend.mode == MtlsMode::Permissive => InboundTls::Permissive,
        Ok(_) | Err(Unreadable) => InboundTls::Strict,
    }
}

/// Whether policies close some inbound of a service to plaintext, so that its callers have to speak mTLS whatever the mesh
/// says. Of this zone's services, whose Dataplanes are known.
pub(crate) fn closes<'a>(
    mesh: &MeshPicture,
    service: &MeshService,
    mut behind: impl Iterator<Item = &'a Parsed<Dataplane>>,
) -> bool {
    if policies(mesh).next().is_none() {
        return false;
    }
    let closed = |conf: Result<Conf, Unreadable>| conf.map_or(true, |conf| conf.mode == Some(Mode::Strict));
    behind.any(|dataplane| {
        selected_inbounds(service, &dataplane.spec)
            .any(|inbound| closed(of_inbound(mesh, dataplane, inbound, None)))
    })
}

/// What a sidecar's sessions are like; none: the default.
pub(crate) fn sessions(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    out: &mut Compiled,
) -> Option<SessionTerms> {
    let mut whole = selecting(mesh, dataplane, Section::Whole);
    whole.retain(|policy| is_of_mesh(policy.target()));
    merged(&whole, Some(out)).ok().and_then(|conf| terms(&conf))
}

/// The same for an egress of the zone, at which all of a mesh's sidecars call.
pub(crate) fn sessions_of_egress(picture: &Picture, mesh: &MeshPicture) -> Option<SessionTerms> {
    let here = policies(mesh).filter(|policy| {
        let zone = &policy.key().zone;
        is_of_mesh(policy.target()) && (zone.is_empty() || *zone == picture.zone)
    });
    merged(&sort(here.cloned().collect()), None).ok().and_then(|conf| terms(&conf))
}

/// Versions and ciphers are those of a whole mesh: both ends must agree on them.
fn is_of_mesh(target: Option<&TargetRef>) -> bool {
    target.is_none_or(|target| target.kind == TargetKind::Mesh)
}

fn terms(conf: &Conf) -> Option<SessionTerms> {
    let versions = conf.tls_version.clone().unwrap_or_default();
    // What is older than TLS 1.2 is not spoken: as a minimum it is kept, as a maximum it was refused.
    let version = |given: &Option<Given>| match given {
        None | Some(Given::Auto | Given::Other(_)) => None,
        Some(Given::Tls13) => Some(TlsVersion::Tls13),
        Some(Given::Tls10 | Given::Tls11 | Given::Tls12) => Some(TlsVersion::Tls12),
    };
    let max = version(&versions.max).unwrap_or(TlsVersion::Tls13);
    // TLS 1.2 is spoken where somebody asks for it, by its name or by nothing newer.
    let min = version(&versions.min).unwrap_or(max);
    let ciphers = conf.tls_ciphers.iter().flatten().filter_map(cipher).collect();
    let terms = SessionTerms { min, max, ciphers };
    (terms.allows(TlsVersion::Tls12)).then_some(terms)
}

/// Which key signs is the certificate's to say, and those of the mesh are of ECDSA: a name's `RSA` says nothing here.
fn cipher(given: &TlsCipher) -> Option<SessionCipher> {
    match given {
        TlsCipher::EcdsaAes128 | TlsCipher::RsaAes128 => Some(SessionCipher::Aes128Gcm),
        TlsCipher::EcdsaAes256 | TlsCipher::RsaAes256 => Some(SessionCipher::Aes256Gcm),
        TlsCipher::EcdsaChaCha20 | TlsCipher::RsaChaCha20 => Some(SessionCipher::ChaCha20Poly1305),
        TlsCipher::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::fixture::*;
    use serde_json::{Value, json};

    #[test]
    fn versions_and_ciphers() {
        for (conf, expected) in [
            (json!({}), Value::Null),
            (json!({ "mode": "Permissive" }), Value::Null),
            (json!({ "tlsVersion": { "min": "TLS13" } }), Value::Null),
            (json!({ "tlsVersion": { "min": "TLSAuto", "max": "TLSAuto" } }), Value::Null),
            (json!({ "tlsVersion": { "min": "TLS12" } }), json!({ "min": "TLS12", "max": "TLS13" })),
            (json!({ "tlsVersion": { "min": "TLS10" } }), json!({ "min": "TLS12", "max": "TLS13" })),
            (json!({ "tlsVersion": { "max": "TLS12" } }), json!({ "min": "TLS12", "max": "TLS12" })),
            // Of two policies: the minimum holds.
            (json!({ "tlsVersion": { "min": "TLS13", "max": "TLS12" } }), Value::Null),
            (json!({ "tlsCiphers": ["ECDHE-ECDSA-AES128-GCM-SHA256"] }), Value::Null),
            (
                json!({
                    "tlsVersion": { "max": "TLS12" },
                    "tlsCiphers": ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"],
                }),
                json!({ "min": "TLS12", "max": "TLS12", "ciphers": ["aes256Gcm", "chaCha20Poly1305"] }),
            ),
        ] {
            let parsed = serde_json::from_value(conf.clone()).unwrap();
            assert_eq!(serde_json::to_value(terms(&parsed)).unwrap(), expected, "{conf}");
        }
    }

    /// `Mesh.mtls.backends[0].mode`, MeshTLSes, and what web's inbound and sessions become.
    fn compiled(mode: &str, written: &[(&str, Value)]) -> (World, Value, Value) {
        let (mut east, _) = world();
        let mut mesh = east.mesh("default").unwrap().mesh.as_ref().unwrap().resource.clone();
        mesh.spec["mtls"]["backends"][0]["mode"] = json!(mode);
        east.put(mesh).unwrap();
        for (name, spec) in written {
            east.put(global("MeshTLS", "default", name, spec.clone())).unwrap();
        }
        let world = World::new(east);
        let inbound = world.one(&sidecar("east", "web-1"), "Inbound", "8080")["tls"].clone();
        let sessions = world.one(&sidecar("east", "web-1"), "Proxy", "self")["sessions"].clone();
        (world, inbound, sessions)
    }

    fn rules(conf: Value) -> Value {
        json!({ "rules": [{ "default": conf }] })
    }

    #[test]
    fn a_policy_overrides_the_meshes_mode() {
        let from = |conf: Value| json!({ "from": [{ "targetRef": { "kind": "Mesh" }, "default": conf }] });
        let (permissive, strict) = (json!({ "mode": "Permissive" }), json!({ "mode": "Strict" }));
        for (mode, policy, expected) in [
            ("STRICT", rules(permissive.clone()), "permissive"),
            ("STRICT", from(permissive.clone()), "permissive"),
            ("PERMISSIVE", rules(strict.clone()), "strict"),
            ("PERMISSIVE", from(strict), "strict"),
            ("PERMISSIVE", rules(json!({ "tlsVersion": { "min": "TLS13" } })), "permissive"),
            ("STRICT", rules(json!({ "tlsVersion": { "min": "TLS13" } })), "strict"),
        ] {
            let (_, inbound, sessions) = compiled(mode, &[("a", policy.clone())]);
            assert_eq!((inbound, sessions), (json!(expected), Value::Null), "{mode} {policy}");
        }
        // One inbound is not another.
        let mut elsewhere = rules(permissive);
        elsewhere["targetRef"] = json!({ "kind": "Dataplane", "sectionName": "other" });
        assert_eq!(compiled("STRICT", &[("a", elsewhere)]).1, "strict");
    }

    /// A service that is not all certified is spoken to in the clear in a PERMISSIVE mesh, but where it takes nothing else.
    #[test]
    fn callers_speak_mtls_to_what_takes_nothing_else() {
        let (_, mut west) = world();
        let mut mesh = west.mesh("default").unwrap().mesh.as_ref().unwrap().resource.clone();
        mesh.spec["mtls"]["backends"][0]["mode"] = json!("PERMISSIVE");
        west.put(mesh).unwrap();
        let service =
            west.mesh("default").unwrap().services.values().find(|it| it.resource.key.name == "backend");
        let mut service = service.unwrap().resource.clone();
        service.status = Some(json!({ "tls": { "status": "NotReady" } }));
        west.put(service).unwrap();
        let mut world = World::new(west);
        let shown = |world: &World| {
            let one =
                |name| world.one(&sidecar("west", "backend-2"), "Destination", name)["tls"]["mode"].clone();
            [one("default/west/backend/9000"), one("default//backend/9000")]
        };
        assert_eq!(shown(&world), ["off", "off"]);
        let strict = global("MeshTLS", "default", "strict", rules(json!({ "mode": "Strict" })));
        world.put(strict.clone());
        assert_eq!(shown(&world), ["mutual", "mutual"]);
        world.remove(&strict.key);
        assert_eq!(shown(&world), ["off", "off"]);
    }

    #[test]
    fn what_cannot_be_read_closes() {
        let (world, inbound, _) = compiled("PERMISSIVE", &[("broken", rules(json!({ "mode": 1 })))]);
        assert_eq!(inbound, "strict");
        assert!(world.audiences.problems().iter().any(|(key, _)| key.name == "broken"));
    }

    #[test]
    fn sessions_are_said_in_both_forms() {
        let conf = json!({
            "tlsVersion": { "min": "TLS12", "max": "TLS12" }, "tlsCiphers": ["ECDHE-ECDSA-AES128-GCM-SHA256"],
        });
        let from = json!({ "from": [{ "targetRef": { "kind": "Mesh" }, "default": conf }] });
        let expected = json!({ "default": { "min": "TLS12", "max": "TLS12", "ciphers": ["aes128Gcm"] } });
        for spec in [rules(conf), from] {
            assert_eq!(compiled("STRICT", &[("old", spec.clone())]).2, expected, "{spec}");
        }
    }

    #[test]
    fn sessions_follow_the_policies_as_they_come_and_go() {
        let (mut world, _, sessions) = compiled("STRICT", &[]);
        assert_eq!(sessions, Value::Null);
        let old = global("MeshTLS", "default", "old", rules(json!({ "tlsVersion": { "max": "TLS12" } })));
        world.put(old.clone());
        let shown = |world: &World| world.one(&sidecar("east", "web-1"), "Proxy", "self")["sessions"].clone();
        assert_eq!(shown(&world), json!({ "default": { "min": "TLS12", "max": "TLS12" } }));
        world.remove(&old.key);
        assert_eq!(shown(&world), Value::Null);
    }
}
