//! Roots that users bring along.

use super::world::{bundle, intermediate, leaf};
use crate::{Bundles, PkiError, RootCa, Usage};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose,
    NameConstraints, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

/// Certificate and key, PEM.
fn made(
    algorithm: &'static SignatureAlgorithm,
    now: OffsetDateTime,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Example, Inc.");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(400);
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn what_a_provided_root_signs_is_believed() {
    let now = OffsetDateTime::now_utc();
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384]
    {
        let (certificate, key) = made(algorithm, now, |_| {});
        let root = RootCa::provided("default", &certificate, &key, now).unwrap();
        // As it is kept.
        let kept = (root.authority().certificate_pem(), root.authority().key().to_pem());
        let root = RootCa::from_pem("default", &kept.0, &kept.1).unwrap();
        let (issued, _) = leaf(&intermediate(&root, "east", now), "web", now);
        let bundles = Bundles::new();
        bundles.set(&bundle(&root)).unwrap();
        let peer = bundles.verify("default", &issued.chain, Usage::Client, now).unwrap();
        assert_eq!((peer.identity.zone.as_str(), peer.root), ("east", root.authority().key().spki_hash()));
    }
}

#[test]
fn why_a_root_is_of_no_use_is_said() {
    let now = OffsetDateTime::now_utc();
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (right, right_key) = made(p256, now, |_| {});
    let (_, other_key) = made(p256, now, |_| {});
    let (ed25519, ed25519_key) = made(&rcgen::PKCS_ED25519, now, |_| {});
    let of = |change: fn(&mut CertificateParams)| made(p256, now, change);
    let constrained = of(|params| {
        let excluded_subtrees = vec![GeneralSubtree::DnsName("example.com".into())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees: vec![], excluded_subtrees });
    });
    for ((certificate, key), why) in [
        ((right.clone(), other_key), "does not belong"),
        (of(|params| params.is_ca = IsCa::ExplicitNoCa), "no CA"),
        (of(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), "path length is 0"),
        (of(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]), "no keyCertSign"),
        (of(|params| params.not_after = params.not_before + Duration::hours(1)), "expired"),
        (of(|params| params.not_before = params.not_after - Duration::hours(1)), "not valid yet"),
        ((ed25519, ed25519_key), "RSA of 2048"),
        ((right.clone(), "nonsense".into()), "unencrypted key in PEM"),
        (("nonsense".into(), right_key.clone()), "certificate"),
        ((format!("{right}{right}"), right_key.clone()), "one certificate"),
    ] {
        let error = RootCa::provided("default", &certificate, &key, now).unwrap_err();
        assert!(error.to_string().contains(why), "{error} has no {why:?}");
    }
    // Constraints on names of other kinds do not concern it.
    let one = of(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)));
    for (certificate, key) in [one, constrained] {
        let made: Result<_, PkiError> = RootCa::provided("default", &certificate, &key, now);
        assert!(made.is_ok(), "{made:?}");
    }
}
