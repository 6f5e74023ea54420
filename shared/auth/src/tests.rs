use crate::{
    Claims, DataplaneClaims, IssuedToken, Purpose, SigningKey, TokenError, UserClaims, Verified, Verifier,
    ZoneClaims, ZoneScope,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::OnceLock;
use time::{Duration, OffsetDateTime};

/// RSA keys take long to make: one a kind for all tests.
struct Keys {
    dataplane: SigningKey,
    zone: SigningKey,
    user: SigningKey,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let key = || SigningKey::generate("1").unwrap();
        Keys { dataplane: key(), zone: key(), user: key() }
    })
}

fn verifier() -> Verifier {
    let mut verifier = Verifier::default();
    verifier.add_key(&keys().dataplane.verification_key::<DataplaneClaims>(Some("default"))).unwrap();
    verifier.add_key(&keys().zone.verification_key::<ZoneClaims>(None)).unwrap();
    verifier.add_key(&keys().user.verification_key::<UserClaims>(None)).unwrap();
    verifier
}

fn web() -> DataplaneClaims {
    DataplaneClaims {
        name: "web-1".into(),
        mesh: "default".into(),
        tags: [("kuma.io/service".to_owned(), vec!["web".to_owned()])].into(),
        ..Default::default()
    }
}

fn east() -> ZoneClaims {
    ZoneClaims { zone: "east".into(), scope: vec!["cp".into()] }
}

fn issue<C: Claims>(key: &SigningKey, claims: &C) -> IssuedToken {
    key.issue(claims, Duration::hours(1), OffsetDateTime::now_utc()).unwrap()
}

fn verify<C: Claims>(token: &str) -> Result<Verified<C>, TokenError> {
    verifier().verify(token, OffsetDateTime::now_utc())
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn payload(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn each_kind_reads_back() {
    let token = issue(&keys().dataplane, &web());
    let verified = verify::<DataplaneClaims>(&token.text).unwrap();
    assert_eq!((verified.claims, verified.id, verified.kid), (web(), token.id, "1".into()));
    assert_eq!(verified.expires.unix_timestamp(), token.expires.unix_timestamp());
    assert_eq!(verify::<ZoneClaims>(&issue(&keys().zone, &east()).text).unwrap().claims, east());
    let user = UserClaims { name: "ann".into(), groups: vec![crate::ADMIN_GROUP.into()] };
    assert!(verify::<UserClaims>(&issue(&keys().user, &user).text).unwrap().claims.is_in(crate::ADMIN_GROUP));
}

#[test]
fn tokens_look_like_kumas() {
    let token = issue(&keys().dataplane, &web()).text;
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap();
    assert_eq!(header, json!({"alg": "RS256", "typ": "JWT", "kid": "1"}));
    let claims = payload(&token);
    let names: Vec<&str> = claims.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["Mesh", "Name", "Tags", "Type", "Workload", "exp", "iat", "jti", "nbf"]);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(), 3605, "backdated by 5 s");
}

#[test]
fn a_token_of_kuma_with_null_lists_is_read() {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let claims = json!({"Name": "", "Mesh": "default", "Tags": null, "Type": "", "Workload": "", "iss": "kuma",
        "iat": now - 5, "nbf": now - 5, "exp": now + 60, "jti": "6b1f"});
    let verified = verify::<DataplaneClaims>(&signed(&keys().dataplane, &claims)).unwrap();
    assert!(!verified.claims.is_bound());
    assert!(web().is_bound());
}

/// Signs any claims with a real key.
fn signed(key: &SigningKey, claims: &Value) -> String {
    let header = jsonwebtoken::Header {
        kid: Some(key.kid().into()),
        ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256)
    };
    let encoding = jsonwebtoken::EncodingKey::from_rsa_pem(key.to_pem().as_bytes()).unwrap();
    jsonwebtoken::encode(&header, claims, &encoding).unwrap()
}

#[test]
fn a_token_is_good_for_its_own_kind_only() {
    let dataplane = issue(&keys().dataplane, &web()).text;
    let zone = issue(&keys().zone, &east()).text;
    let user = issue(&keys().user, &UserClaims { name: "ann".into(), groups: Vec::new() }).text;
    let wrong = |found, expected| TokenError::WrongPurpose { found, expected };
    use Purpose::{Dataplane, User, Zone};
    assert_eq!(verify::<ZoneClaims>(&dataplane).unwrap_err(), wrong(Dataplane, Zone));
    assert_eq!(verify::<UserClaims>(&dataplane).unwrap_err(), wrong(Dataplane, User));
    assert_eq!(verify::<DataplaneClaims>(&zone).unwrap_err(), wrong(Zone, Dataplane));
    assert_eq!(verify::<UserClaims>(&zone).unwrap_err(), wrong(Zone, User));
    assert_eq!(verify::<ZoneClaims>(&user).unwrap_err(), wrong(User, Zone));
    // The right claims, signed by a key of another kind.
    assert_eq!(verify::<ZoneClaims>(&issue(&keys().user, &east()).text).unwrap_err(), TokenError::Signature);
    // Claims of two kinds at once.
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mixed = json!({"Zone": "east", "Scope": ["cp"], "Groups": ["mesh-system:admin"], "exp": now + 60, "jti": "1"});
    assert!(matches!(verify::<ZoneClaims>(&signed(&keys().zone, &mixed)), Err(TokenError::Claims { .. })));
    assert!(verify::<UserClaims>(&signed(&keys().user, &mixed)).is_err());
}

#[test]
fn a_dataplane_token_of_another_mesh_finds_no_key() {
    let other = DataplaneClaims { mesh: "other".into(), ..web() };
    let refused = verify::<DataplaneClaims>(&issue(&keys().dataplane, &other).text).unwrap_err();
    assert!(refused.to_string().contains("`1` of mesh `other`"), "{refused}");
}

#[test]
fn only_rs256_signed_by_a_known_key() {
    let good = issue(&keys().user, &UserClaims { name: "ann".into(), groups: vec!["a".into()] }).text;
    let [_, body, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let none = format!("{}.{body}.", part(&json!({"alg": "none", "kid": "1"})));
    let ps256 = format!("{}.{body}.{signature}", part(&json!({"alg": "PS256", "kid": "1"})));
    let public = keys().user.public_key_pem();
    let hmac = jsonwebtoken::encode(
        &jsonwebtoken::Header {
            kid: Some("1".into()),
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256)
        },
        &payload(&good),
        &jsonwebtoken::EncodingKey::from_secret(public.as_bytes()),
    )
    .unwrap();
    for (what, token) in [("alg none", &none), ("PS256", &ps256), ("HS256 with the public key", &hmac)] {
        let refused = verify::<UserClaims>(token).unwrap_err();
        assert!(matches!(refused, TokenError::Algorithm(_) | TokenError::Malformed(_)), "{what}: {refused}");
    }
    let stranger = SigningKey::generate("1").unwrap();
    let refused = verify::<UserClaims>(&issue(&stranger, &UserClaims::default()).text).unwrap_err();
    assert_eq!(refused, TokenError::Signature);
    let unknown = SigningKey::from_pem("2", keys().user.to_pem()).unwrap();
    let refused = verify::<UserClaims>(&issue(&unknown, &UserClaims::default()).text).unwrap_err();
    assert!(matches!(refused, TokenError::UnknownKey { .. }), "{refused}");
    for junk in ["", ".", "a.b.c", "..", &"x".repeat(20_000)] {
        assert!(matches!(verify::<UserClaims>(junk), Err(TokenError::Malformed(_))));
    }
}

#[test]
fn time_and_identity_of_a_token_are_required() {
    let now = OffsetDateTime::now_utc();
    let at = |offset: i64| now.unix_timestamp() + offset;
    let expired = keys().user.issue(&UserClaims::default(), Duration::seconds(-10), now).unwrap();
    assert_eq!(verify::<UserClaims>(&expired.text).unwrap_err(), TokenError::Expired);
    let base = json!({"Name": "ann", "Groups": []});
    let with = |extra: Value| {
        let mut claims = base.clone();
        claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        verify::<UserClaims>(&signed(&keys().user, &claims))
    };
    assert_eq!(
        with(json!({"nbf": at(60), "exp": at(120), "jti": "1"})).unwrap_err(),
        TokenError::NotYetValid
    );
    assert!(with(json!({"exp": at(120), "jti": "1"})).is_ok());
    for claims in [
        json!({"jti": "1"}),
        json!({"exp": at(120)}),
        json!({"exp": at(120), "jti": ""}),
        json!({"exp": 1e300, "jti": "1"}),
    ] {
        assert!(matches!(with(claims.clone()), Err(TokenError::Claims { .. })), "{claims}");
    }
    let unknown = json!({"exp": at(120), "jti": "1", "Superuser": true});
    assert!(matches!(with(unknown), Err(TokenError::Claims { .. })));
}

#[test]
fn a_revoked_token_is_refused_and_found_on_open_streams() {
    let now = OffsetDateTime::now_utc();
    let token = issue(&keys().dataplane, &web());
    let mut verifier = verifier();
    let open = verifier.verify::<DataplaneClaims>(&token.text, now).unwrap();
    verifier.recheck(&open, now).unwrap();
    assert_eq!(verifier.recheck(&open, open.expires), Err(TokenError::Expired));
    // Ids of another kind or mesh are other tokens.
    verifier.revoke(Purpose::Zone, None, &token.id);
    verifier.revoke(Purpose::Dataplane, Some("other"), &token.id);
    verifier.recheck(&open, now).unwrap();
    verifier.revoke(Purpose::Dataplane, Some("default"), &token.id);
    assert_eq!(verifier.recheck(&open, now), Err(TokenError::Revoked));
    assert_eq!(verifier.verify::<DataplaneClaims>(&token.text, now), Err(TokenError::Revoked));
    // A deleted key ends all its tokens.
    assert!(matches!(Verifier::default().recheck(&open, now), Err(TokenError::UnknownKey { .. })));
}

#[test]
fn a_key_read_back_signs_the_same_and_is_not_printed() {
    let key = SigningKey::from_pem("1", keys().zone.to_pem()).unwrap();
    assert_eq!(key.public_key_pem(), keys().zone.public_key_pem());
    assert!(verify::<ZoneClaims>(&issue(&key, &east()).text).is_ok());
    assert_eq!(format!("{key:?}"), "SigningKey { kid: \"1\", .. }");
    for bad in
        ["", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", keys().zone.public_key_pem()]
    {
        assert!(matches!(SigningKey::from_pem("1", bad), Err(TokenError::Key(_))), "{bad}");
    }
    let mut verifier = Verifier::default();
    let mut key = keys().zone.verification_key::<ZoneClaims>(None);
    key.public_key_pem = "nonsense".into();
    assert!(matches!(verifier.add_key(&key), Err(TokenError::Key(_))));
}

#[test]
fn scopes_have_names() {
    for scope in ZoneScope::ALL {
        assert_eq!(ZoneScope::parse(scope.as_str()), Some(scope));
    }
    assert_eq!(ZoneScope::parse("root"), None);
    assert!(east().has(ZoneScope::ControlPlane) && !east().has(ZoneScope::Egress));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any changed character of header, claims or signature is refused, and nothing panics.
    #[test]
    fn a_changed_token_is_refused(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        static TOKEN: OnceLock<String> = OnceLock::new();
        let token = TOKEN.get_or_init(|| issue(&keys().zone, &east()).text);
        let at = at.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(at..=at, &to);
        let same = changed == *token;
        prop_assert_eq!(verify::<ZoneClaims>(&changed).is_ok(), same);
    }
}
