use super::{
    forge::Forgery,
    world::{World, bundle, intermediate, leaf, spec},
};
use crate::{Bundles, PrivateKey, SpkiHash, TrustError, TrustStore, Usage, VerifiedPeer};
use meridian_proxy_config::Bundle;
use proptest::prelude::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use std::sync::OnceLock;
use time::Duration;

type Chain = Vec<CertificateDer<'static>>;

const SPIFFE: &str = "spiffe://default/web";
const IN_EAST: &str = "kuma://kuma.io/zone/east";
const IN_WEST: &str = "kuma://kuma.io/zone/west";

fn verify(world: &World, chain: &[CertificateDer<'_>]) -> Result<VerifiedPeer, TrustError> {
    TrustStore::compile(&world.bundle()).unwrap().verify_peer(chain, Usage::Client, world.now)
}

/// A leaf with these URIs, as east's intermediate (its key is the attacker's) would sign it.
fn from_east(world: &World, forgery: &Forgery) -> Chain {
    let key = PrivateKey::generate().unwrap();
    vec![
        forgery.signed_by(world.east.certificate(), world.east.key(), &key),
        world.east.certificate().clone(),
    ]
}

/// An honest leaf under an intermediate with these URIs, which the mesh's root signed.
fn under(world: &World, uris: &[&str]) -> Chain {
    let (key, leaf_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let root = world.root.authority();
    let issuer = Forgery::intermediate(uris, world.now).signed_by(root.certificate(), root.key(), &key);
    vec![Forgery::leaf(&[SPIFFE, IN_EAST], world.now).signed_by(&issuer, &key, &leaf_key), issuer]
}

#[test]
fn an_honest_chain_says_who_it_is() {
    let world = World::new();
    let (issued, _) = leaf(&world.east, "web", world.now);
    for usage in [Usage::Client, Usage::Server] {
        let store = TrustStore::compile(&world.bundle()).unwrap();
        let peer = store.verify_peer(&issued.chain, usage, world.now).unwrap();
        assert_eq!(peer.identity.spiffe, [SPIFFE]);
        assert_eq!(peer.identity.zone, "east");
        assert_eq!(peer.identity.dataplane.as_deref(), Some("web-1"));
        assert_eq!(peer.identity.tags["kuma.io/zone"], ["east".to_owned()].into());
        assert_eq!(peer.intermediate, world.east.spki_hash());
        assert_eq!(peer.root, world.root.authority().key().spki_hash());
        assert_eq!(peer.not_after, issued.not_after);
    }
}

#[test]
fn what_a_taken_zone_could_sign_is_refused() {
    let world = World::new();
    let leaf = |uris: &[&str]| Forgery::leaf(uris, world.now);
    let cases: Vec<(&str, Forgery, &str)> = vec![
        ("claims west", leaf(&[SPIFFE, IN_WEST]), "wrong-zone"),
        ("claims both zones", leaf(&[SPIFFE, IN_EAST, IN_WEST]), "wrong-zone"),
        ("claims no zone", leaf(&[SPIFFE]), "wrong-zone"),
        ("has no SPIFFE ID", leaf(&[IN_EAST]), "wrong-identity"),
        ("has another mesh's SPIFFE ID", leaf(&["spiffe://other/web", IN_EAST]), "foreign-mesh"),
        ("has another mesh's beside its own", leaf(&[SPIFFE, "spiffe://other/web", IN_EAST]), "foreign-mesh"),
        ("speaks for a zone", leaf(&[SPIFFE, IN_EAST, "meridian://zone/west"]), "bad-certificate"),
        ("speaks for the mesh", leaf(&[SPIFFE, IN_EAST, "spiffe://default"]), "bad-certificate"),
        (
            "is two Dataplanes",
            leaf(&[SPIFFE, IN_EAST, "meridian://dataplane/a", "meridian://dataplane/b"]),
            "bad-certificate",
        ),
        (
            "is for servers only",
            leaf(&[SPIFFE, IN_EAST])
                .with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "wrong-usage",
        ),
        (
            "says no usage",
            leaf(&[SPIFFE, IN_EAST]).with(|p| p.extended_key_usages = Vec::new()),
            "wrong-usage",
        ),
        ("may not sign", leaf(&[SPIFFE, IN_EAST]).with(|p| p.key_usages = Vec::new()), "wrong-usage"),
        (
            "may sign certificates",
            leaf(&[SPIFFE, IN_EAST]).with(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            "wrong-usage",
        ),
        (
            "is a CA",
            leaf(&[SPIFFE, IN_EAST]).with(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
            "wrong-usage",
        ),
        (
            "has expired",
            leaf(&[SPIFFE, IN_EAST]).with(|p| p.not_after = world.now - Duration::seconds(2)),
            "certificate-expired",
        ),
        (
            "is not valid yet",
            leaf(&[SPIFFE, IN_EAST]).with(|p| p.not_before = world.now + Duration::minutes(1)),
            "certificate-expired",
        ),
    ];
    // The forge itself makes acceptable leaves: what is refused is refused for its difference.
    assert!(verify(&world, &from_east(&world, &leaf(&[SPIFFE, IN_EAST]))).is_ok());
    for (what, forgery, reason) in cases {
        let refused = verify(&world, &from_east(&world, &forgery)).expect_err(what);
        assert_eq!(refused.reason(), reason, "a leaf that {what}: {refused}");
    }
}

#[test]
fn only_a_zones_intermediate_issues() {
    let world = World::new();
    let zone = "meridian://zone/east";
    assert!(verify(&world, &under(&world, &[zone, "spiffe://default"])).is_ok());
    for uris in [
        &["spiffe://default"][..],
        &[zone, "meridian://zone/west", "spiffe://default"],
        &[zone],
        &[zone, "spiffe://other"],
    ] {
        let refused = verify(&world, &under(&world, uris)).unwrap_err();
        assert!(matches!(refused, TrustError::NotAnIntermediate(_)), "{uris:?}: {refused}");
    }
    let root = world.root.authority();
    let key = PrivateKey::generate().unwrap();
    let direct = Forgery::leaf(&[SPIFFE, IN_EAST], world.now).signed_by(root.certificate(), root.key(), &key);
    let refused = verify(&world, &[direct, world.east.certificate().clone()]).unwrap_err();
    assert!(matches!(refused, TrustError::NotAnIntermediate(_)), "signed by the root itself: {refused}");
}

#[test]
fn no_leaf_and_no_zone_makes_a_ca() {
    let world = World::new();
    let (honest, honest_key) = leaf(&world.east, "web", world.now);
    let key = PrivateKey::generate().unwrap();
    // A workload signs with its own leaf.
    let forged = Forgery::leaf(&[SPIFFE, IN_EAST], world.now).signed_by(&honest.chain[0], &honest_key, &key);
    assert!(verify(&world, &[forged, honest.chain[0].clone()]).is_err());
    // East makes an intermediate that names west.
    let sub_key = PrivateKey::generate().unwrap();
    let sub = Forgery::intermediate(&["meridian://zone/west", "spiffe://default"], world.now).signed_by(
        world.east.certificate(),
        world.east.key(),
        &sub_key,
    );
    let forged = Forgery::leaf(&[SPIFFE, IN_WEST], world.now).signed_by(&sub, &sub_key, &key);
    let three = [forged.clone(), sub.clone(), world.east.certificate().clone()];
    assert_eq!(verify(&world, &three), Err(TrustError::ChainShape(3)));
    assert!(verify(&world, &[forged, sub]).is_err());
}

#[test]
fn the_chain_must_belong_together() {
    let world = World::new();
    let (web, _) = leaf(&world.east, "web", world.now);
    let (foreign, _) = leaf(&world.other_east, "web", world.now);
    let [web, foreign_leaf] = [web.chain[0].clone(), foreign.chain[0].clone()];
    let (east, west) = (world.east.certificate().clone(), world.west.certificate().clone());
    let root = world.root.authority().certificate().clone();
    let cases: Vec<(&str, Chain)> = vec![
        ("nothing", vec![]),
        ("a leaf alone", vec![web.clone()]),
        ("with the root", vec![web.clone(), east.clone(), root.clone()]),
        ("the other zone's intermediate", vec![web.clone(), west]),
        ("the root in the intermediate's place", vec![web, root]),
        ("another mesh", foreign.chain.clone()),
        ("another mesh's leaf under ours", vec![foreign_leaf, east.clone()]),
        ("an intermediate as leaf", vec![east.clone(), east.clone()]),
        ("no certificate at all", vec![CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]), east]),
    ];
    for (what, chain) in cases {
        assert!(verify(&world, &chain).is_err(), "{what}");
    }
}

#[test]
fn an_expired_intermediate_ends_its_leaves() {
    let world = World::new();
    let long =
        Forgery::leaf(&[SPIFFE, IN_EAST], world.now).with(|p| p.not_after = world.now + Duration::days(365));
    let chain = from_east(&world, &long);
    let store = TrustStore::compile(&world.bundle()).unwrap();
    let peer = store.verify_peer(&chain, Usage::Client, world.now).unwrap();
    assert_eq!(peer.not_after, world.east.not_after(), "whichever ends first");
    let later = world.now + Duration::days(91);
    assert_eq!(store.verify_peer(&chain, Usage::Client, later), Err(TrustError::Expired));
}

#[test]
fn a_revoked_zone_is_out_and_the_others_are_not() {
    let world = World::new();
    let (east, _) = leaf(&world.east, "web", world.now);
    let (west, _) = leaf(&world.west, "web", world.now);
    let revoked = Bundle { revoked: vec![world.east.spki_hash().to_string()], ..world.bundle() };
    let store = TrustStore::compile(&revoked).unwrap();
    let verify = |chain: &Chain| store.verify_peer(chain, Usage::Client, world.now);
    assert_eq!(verify(&east.chain), Err(TrustError::Revoked(world.east.spki_hash().to_string())));
    assert!(verify(&west.chain).is_ok());
    // The same key in a certificate that the root signed anew is as revoked.
    let again =
        world.root.sign_intermediate(&world.east.key().request().unwrap(), "east", world.now).unwrap();
    assert!(matches!(
        verify(&vec![east.chain[0].clone(), again.chain[0].clone()]),
        Err(TrustError::Revoked(_))
    ));
    // The zone enrolled again with a new key is believed.
    let fresh = intermediate(&world.root, "east", world.now);
    assert!(verify(&leaf(&fresh, "web", world.now).0.chain).is_ok());
}

#[test]
fn during_a_root_rotation_both_roots_hold() {
    let world = World::new();
    let new_root = crate::RootCa::generate("default", world.now).unwrap();
    let (old, _) = leaf(&world.east, "web", world.now);
    let (new, _) = leaf(&intermediate(&new_root, "east", world.now), "web", world.now);
    let roots = [&world.root, &new_root].map(|root| root.authority().certificate_pem());
    let both = TrustStore::compile(&Bundle { roots: roots.to_vec(), ..world.bundle() }).unwrap();
    let root_of = |chain: &Chain| both.verify_peer(chain, Usage::Client, world.now).unwrap().root;
    assert_eq!(root_of(&old.chain), world.root.authority().key().spki_hash());
    assert_eq!(root_of(&new.chain), new_root.authority().key().spki_hash());
    let after = TrustStore::compile(&bundle(&new_root)).unwrap();
    assert!(after.verify_peer(&old.chain, Usage::Client, world.now).is_err());
    assert!(after.verify_peer(&new.chain, Usage::Client, world.now).is_ok());
    // A session from before the rotation is told from one of a zone that was shut out since.
    assert!(matches!(after.verify_peer(&old.chain, Usage::Client, world.now), Err(TrustError::Untrusted(_))));
    let revoked = vec![world.east.spki_hash().to_string()];
    let after = TrustStore::compile(&Bundle { revoked, ..bundle(&new_root) }).unwrap();
    assert!(matches!(after.verify_peer(&old.chain, Usage::Client, world.now), Err(TrustError::Revoked(_))));
}

#[test]
fn a_bundle_that_cant_be_read_whole_changes_nothing() {
    let world = World::new();
    let bundles = world.bundles();
    let before = bundles.generation();
    let (chain, _) = leaf(&world.east, "web", world.now);
    for bad in [
        Bundle { roots: vec!["no PEM".into()], ..world.bundle() },
        Bundle { revoked: vec!["zz".into()], ..world.bundle() },
        Bundle { revoked: vec!["abcd".into()], ..world.bundle() },
    ] {
        bundles.set(&bad).unwrap_err();
    }
    assert_eq!(bundles.generation(), before);
    assert!(bundles.verify("default", &chain.chain, Usage::Client, world.now).is_ok());
}

#[test]
fn generations_tell_what_to_look_at_again() {
    let world = World::new();
    let bundles = world.bundles();
    let (chain, _) = leaf(&world.east, "web", world.now);
    let proven_by = bundles.get("default").unwrap().generation();
    assert!(!bundles.set(&world.bundle()).unwrap(), "an equal bundle is no change");
    assert_eq!(bundles.get("default").unwrap().generation(), proven_by);

    bundles.set(&Bundle { revoked: vec![world.east.spki_hash().to_string()], ..world.bundle() }).unwrap();
    assert!(bundles.get("default").unwrap().generation() > proven_by);
    assert!(matches!(
        bundles.verify("default", &chain.chain, Usage::Client, world.now),
        Err(TrustError::Revoked(_))
    ));
    assert!(bundles.remove("default"));
    assert!(!bundles.remove("default"));
    assert_eq!(
        bundles.verify("default", &chain.chain, Usage::Client, world.now),
        Err(TrustError::UnknownMesh("default".into()))
    );
}

#[test]
fn the_mesh_of_a_server_name_also_when_hashed() {
    let world = World::new();
    let bundles: Bundles = world.bundles();
    let odd = crate::RootCa::generate("Odd_Mesh", world.now).unwrap();
    bundles.set(&bundle(&odd)).unwrap();
    for mesh in ["default", "other", "Odd_Mesh"] {
        let sni = meridian_proxy_config::sni::Sni {
            kind: meridian_proxy_config::sni::SniKind::External,
            mesh,
            zone: "east",
            namespace: None,
            name: "api",
            port: "443",
        };
        assert_eq!(bundles.mesh_of_sni(&sni.to_string()).as_deref(), Some(mesh));
    }
    for foreign in ["sni.extsvc.nowhere.east.api.443", "example.com", ""] {
        assert_eq!(bundles.mesh_of_sni(foreign), None, "{foreign}");
    }
}

fn shared() -> &'static (World, TrustStore, Chain) {
    static SHARED: OnceLock<(World, TrustStore, Chain)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let world = World::new();
        let store = TrustStore::compile(&world.bundle()).unwrap();
        let chain = leaf(&world.east, "web", world.now).0.chain;
        (world, store, chain)
    })
}

proptest! {
    /// One changed bit anywhere in either certificate is refused, and nothing panics on it.
    #[test]
    fn a_changed_bit_is_refused(which in 0usize..2, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (world, store, chain) = shared();
        let mut changed: Vec<Vec<u8>> = chain.iter().map(|certificate| certificate.to_vec()).collect();
        let at = at.index(changed[which].len());
        changed[which][at] ^= 1 << bit;
        let changed: Chain = changed.into_iter().map(CertificateDer::from).collect();
        prop_assert!(store.verify_peer(&changed, Usage::Client, world.now).is_err());
    }

    /// rustls sends and takes every server name that the mesh uses.
    #[test]
    fn server_names_are_names_to_rustls(mesh in ".{1,40}", name in ".{1,300}", port in "[a-z0-9]{1,15}|[0-9]{1,5}|0x[0-9a-f]{1,4}") {
        use meridian_proxy_config::sni::{Sni, SniKind};
        let sni = Sni { kind: SniKind::External, mesh: &mesh, zone: "east", namespace: None, name: &name, port: &port };
        prop_assert!(rustls_pki_types::DnsName::try_from(sni.to_string()).is_ok(), "{}", sni);
    }

    /// What the control plane puts into a leaf is what a verifier reads, for every name it accepts.
    #[test]
    fn names_survive_the_certificate(
        service in "[a-z0-9][a-zA-Z0-9._-]{0,60}",
        values in proptest::collection::btree_set("[a-zA-Z0-9.:_-]{1,20}", 0..4),
        key in "[a-z0-9]{1,10}(\\.io/[a-z]{1,10})?",
        dataplane in proptest::option::of("[a-z0-9]([a-z0-9.-]{0,30}[a-z0-9])?"),
    ) {
        prop_assume!(key != "kuma.io/zone");
        let (world, store, _) = shared();
        let mut wanted = spec(&service);
        wanted.dataplane = dataplane.clone();
        if !values.is_empty() {
            wanted.tags.insert(key.clone(), values.clone());
        }
        let request = PrivateKey::generate().unwrap().request().unwrap();
        let issued = world.east.sign_leaf(&request, &wanted, world.now).unwrap();
        let peer = store.verify_peer(&issued.chain, Usage::Server, world.now).unwrap();
        let mut tags = wanted.tags.clone();
        tags.insert("kuma.io/zone".into(), ["east".to_owned()].into());
        prop_assert_eq!(peer.identity.tags, tags);
        prop_assert_eq!(peer.identity.dataplane, dataplane);
        prop_assert_eq!(peer.identity.spiffe, vec![format!("spiffe://default/{service}")]);
    }

    #[test]
    fn hashes_read_back(bytes in any::<[u8; 40]>()) {
        let hash = SpkiHash::of(&bytes);
        prop_assert_eq!(hash.to_string().parse::<SpkiHash>().unwrap(), hash);
        let colons: Vec<String> = hash.to_string().as_bytes().chunks(2).map(|b| String::from_utf8_lossy(b).to_uppercase()).collect();
        prop_assert_eq!(format!("sha256:{}", colons.join(":")).parse::<SpkiHash>().unwrap(), hash);
    }
}
