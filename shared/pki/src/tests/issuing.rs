use super::world::{World, leaf, spec};
use crate::{Identity, Intermediate, PkiError, PrivateKey, RootCa, TrustStore, Usage};
use rcgen::{CertificateParams, KeyPair, SanType};
use time::Duration;

#[test]
fn of_a_request_only_the_key_is_used() {
    let world = World::new();
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = ["spiffe://default/admin", "kuma://kuma.io/zone/west", "meridian://zone/west"]
        .map(|uri| SanType::URI(uri.try_into().unwrap()))
        .to_vec();
    let greedy = params.serialize_request(&key.pair().unwrap()).unwrap();
    let issued = world.east.sign_leaf(greedy.der(), &spec("web"), world.now).unwrap();
    let store = TrustStore::compile(&world.bundle()).unwrap();
    let peer = store.verify_peer(&issued.chain, Usage::Client, world.now).unwrap();
    assert_eq!(peer.identity.spiffe, ["spiffe://default/web"]);
    assert_eq!(peer.identity.zone, "east");
    assert_eq!(issued.key, key.spki_hash());
}

#[test]
fn a_zone_tag_of_the_caller_is_overruled() {
    let world = World::new();
    let mut claiming = spec("web");
    claiming.tags.insert("kuma.io/zone".into(), ["west".to_owned()].into());
    let request = PrivateKey::generate().unwrap().request().unwrap();
    let issued = world.east.sign_leaf(&request, &claiming, world.now).unwrap();
    let store = TrustStore::compile(&world.bundle()).unwrap();
    let peer = store.verify_peer(&issued.chain, Usage::Client, world.now).unwrap();
    assert_eq!(peer.identity.tags["kuma.io/zone"], ["east".to_owned()].into());
}

#[test]
fn requests_that_prove_no_p256_key_are_refused() {
    let world = World::new();
    let good = PrivateKey::generate().unwrap().request().unwrap();
    let mut unproven = good.clone();
    *unproven.last_mut().unwrap() ^= 1;
    let params = CertificateParams::default();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = params.serialize_request(&p384).unwrap().der().to_vec();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = params.serialize_request(&ed25519).unwrap().der().to_vec();
    let trailing = [good.as_slice(), &[0]].concat();
    let long = vec![0x30; 9 * 1024];
    for (what, request) in [
        ("a broken signature", unproven),
        ("P-384", p384),
        ("Ed25519", ed25519),
        ("trailing bytes", trailing),
        ("9 KiB", long),
        ("nothing", Vec::new()),
    ] {
        let refused = world.east.sign_leaf(&request, &spec("web"), world.now).unwrap_err();
        assert!(matches!(refused, PkiError::Request(_)), "{what}: {refused}");
    }
}

#[test]
fn names_that_would_read_back_as_others_are_refused() {
    let world = World::new();
    let request = PrivateKey::generate().unwrap().request().unwrap();
    let refused = |change: &dyn Fn(&mut crate::LeafSpec)| {
        let mut spec = spec("web");
        change(&mut spec);
        assert!(matches!(world.east.sign_leaf(&request, &spec, world.now), Err(PkiError::Name { .. })));
    };
    refused(&|spec| spec.services.clear());
    refused(&|spec| spec.services.extend(["wéb".to_owned()]));
    refused(&|spec| spec.services.extend(["web?x".to_owned()]));
    refused(&|spec| drop(spec.tags.insert("kuma.io".into(), ["zone/west".to_owned()].into())));
    refused(&|spec| drop(spec.tags.insert("a b".into(), ["c".to_owned()].into())));
    refused(&|spec| spec.dataplane = Some("a/b".into()));
    for zone in ["", "east/west", "ea st"] {
        assert!(world.root.sign_intermediate(&request, zone, world.now).is_err(), "zone `{zone}`");
    }
}

#[test]
fn nothing_outlives_its_issuer() {
    let world = World::new();
    let late = world.now + Duration::days(89) + Duration::hours(12);
    assert_eq!(leaf(&world.east, "web", late).0.not_after, world.east.not_after());
    let key = PrivateKey::generate().unwrap();
    let after = world.now + Duration::days(91);
    let refused = world.east.sign_leaf(&key.request().unwrap(), &spec("web"), after).unwrap_err();
    assert!(matches!(refused, PkiError::IssuerExpired));
}

#[test]
fn authorities_read_back_and_need_their_own_key() {
    let world = World::new();
    let (pem, key) = (world.root.authority().certificate_pem(), world.root.authority().key().to_pem());
    let again = RootCa::from_pem("default", &pem, &key).unwrap();
    assert_eq!(again.authority().certificate(), world.root.authority().certificate());
    let request = PrivateKey::generate().unwrap().request().unwrap();
    assert!(again.sign_intermediate(&request, "north", world.now).is_ok());
    let stranger = PrivateKey::generate().unwrap();
    assert!(matches!(RootCa::from_pem("default", &pem, &stranger.to_pem()), Err(PkiError::KeyMismatch)));

    let east =
        Intermediate::from_pem("default", &world.east.certificate_pem(), &world.east.key().to_pem()).unwrap();
    assert_eq!((east.zone(), east.mesh()), ("east", "default"));
    assert!(
        Intermediate::from_pem("other", &world.east.certificate_pem(), &world.east.key().to_pem()).is_err()
    );
    let (issued, leaf_key) = leaf(&world.east, "web", world.now);
    assert!(
        Intermediate::new("default", issued.chain[0].clone(), leaf_key).is_err(),
        "a leaf is no intermediate"
    );
}

#[test]
fn an_identity_needs_its_own_key_and_is_not_presented_once_expired() {
    let world = World::new();
    let (issued, key) = leaf(&world.east, "web", world.now);
    let stranger = PrivateKey::generate().unwrap();
    assert!(matches!(Identity::new(issued.chain.clone(), &stranger), Err(PkiError::KeyMismatch)));
    assert!(Identity::new(Vec::new(), &key).is_err());

    let handle = crate::IdentityHandle::new();
    assert!(handle.current(world.now).is_none());
    handle.set(Identity::new(issued.chain, &key).unwrap());
    assert!(handle.current(world.now).is_some());
    assert!(handle.current(issued.not_after).is_none());
    assert!(handle.latest().is_some());
    let pem = crate::certificates_to_pem(handle.latest().unwrap().chain());
    assert_eq!(Identity::from_pem(&pem, &key.to_pem()).unwrap().chain().len(), 2);
}

#[test]
fn keys_are_not_printed() {
    let key = PrivateKey::generate().unwrap();
    let shown =
        format!("{key:?} {:?}", RootCa::generate("default", time::OffsetDateTime::now_utc()).unwrap());
    assert!(shown.contains(&key.spki_hash().to_string()));
    assert!(shown.len() < 400, "{shown}");
}
