//! Tokens: keys that sign stay here, sealed; their public halves are resources, so that every replica and zone has them.

use crate::vault;
use crate::world::World;
use anyhow::Context;
use arc_swap::ArcSwap;
use meridian_api::{Problem, Source, TokenRequest};
use meridian_auth::{
    DataplaneClaims, Purpose, SigningKey, UserClaims, VerificationKey, Verifier, ZoneClaims, ZoneScope,
};
use meridian_core::kinds::{
    token_key::{TokenKey, TokenPurpose},
    token_revocation::TokenRevocation,
};
use meridian_core::{Key, Resource, duration, labels, names};
use meridian_store::{Change, Expect, Store};
use std::collections::BTreeMap;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

/// What a token without `validFor` gets, as in Kuma.
const TEN_YEARS: Duration = Duration::days(3650);

/// The verifier of the moment; replaced when keys or revocations change.
#[derive(Clone, Default)]
pub(crate) struct Tokens(Arc<ArcSwap<Verifier>>);

impl Tokens {
    pub(crate) fn verifier(&self) -> Arc<Verifier> {
        self.0.load_full()
    }

    /// From the keys and revocations that the world holds.
    pub(crate) fn rebuild(&self, world: &World) {
        let mut verifier = Verifier::default();
        for resource in world.of_kind(TokenKey::KIND) {
            let Ok(key) = resource.parse::<TokenKey>() else { continue };
            let key = VerificationKey {
                purpose: purpose(key.purpose),
                mesh: key.mesh,
                kid: key.kid,
                public_key_pem: key.public_key_pem,
            };
            if let Err(error) = verifier.add_key(&key) {
                tracing::error!(key = %resource.key, %error, "a token key can't be used");
            }
        }
        for resource in world.of_kind(TokenRevocation::KIND) {
            let Ok(revocation) = resource.parse::<TokenRevocation>() else { continue };
            for id in &revocation.ids {
                verifier.revoke(purpose(revocation.purpose), revocation.mesh.as_deref(), id);
            }
        }
        self.0.store(Arc::new(verifier));
    }
}

fn purpose(purpose: TokenPurpose) -> Purpose {
    match purpose {
        TokenPurpose::Dataplane => Purpose::Dataplane,
        TokenPurpose::Zone => Purpose::Zone,
        TokenPurpose::User => Purpose::User,
    }
}

/// A new key: its private half for the vault, its public one as a resource.
pub(crate) fn new_key(purpose: TokenPurpose, mesh: Option<&str>, kid: &str) -> anyhow::Result<[Change; 2]> {
    let key = SigningKey::generate(kid)?;
    let place = place(purpose, mesh, kid);
    let spec = TokenKey {
        purpose,
        mesh: mesh.map(str::to_owned),
        kid: kid.to_owned(),
        public_key_pem: key.public_key_pem().to_owned(),
    };
    let resource_key = Key::global(TokenKey::KIND, "", place.replace('/', "."));
    Ok([
        Change::PutPrivate {
            bucket: vault::SIGNING_KEYS.to_owned(),
            key: place,
            value: key.to_pem().as_bytes().to_vec(),
        },
        Change::Put { resource: Resource::of(resource_key, origin(), &spec), expect: Expect::Absent },
    ])
}

/// Labels of what a control plane writes itself.
pub(crate) fn origin() -> BTreeMap<String, String> {
    BTreeMap::from([(labels::ORIGIN.to_owned(), labels::ORIGIN_GLOBAL.to_owned())])
}

/// `user/1`, `dataplane/default/1`.
fn place(purpose: TokenPurpose, mesh: Option<&str>, kid: &str) -> String {
    let purpose = match purpose {
        TokenPurpose::Dataplane => "dataplane",
        TokenPurpose::Zone => "zone",
        TokenPurpose::User => "user",
    };
    mesh.map_or_else(|| format!("{purpose}/{kid}"), |mesh| format!("{purpose}/{mesh}/{kid}"))
}

/// What goes with a mesh: its signing keys, their public halves and its revocations.
pub(crate) fn of_mesh(world: &World, mesh: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for resource in world.of_kind(TokenKey::KIND) {
        let Ok(key) = resource.parse::<TokenKey>() else { continue };
        if key.mesh.as_deref() == Some(mesh) {
            changes.push(Change::Delete { key: resource.key.clone(), expect: Expect::Any });
            changes.push(vault::delete(vault::SIGNING_KEYS, &place(key.purpose, Some(mesh), &key.kid)));
        }
    }
    for resource in world.of_kind(TokenRevocation::KIND) {
        let of_mesh = resource.parse::<TokenRevocation>().is_ok_and(|r| r.mesh.as_deref() == Some(mesh));
        if of_mesh {
            changes.push(Change::Delete { key: resource.key.clone(), expect: Expect::Any });
        }
    }
    changes
}

/// The newest signing key of a purpose: the highest `kid`, as numbers go.
async fn signing_key(store: &Store, purpose: TokenPurpose, mesh: Option<&str>) -> anyhow::Result<SigningKey> {
    let prefix = place(purpose, mesh, "");
    let keys = store.private_list(vault::SIGNING_KEYS).await?;
    let newest = keys
        .into_iter()
        .filter_map(|(place, pem)| {
            let kid = place.strip_prefix(&prefix)?.to_owned();
            (!kid.contains('/')).then_some((kid.parse::<u64>().unwrap_or(0), kid, pem))
        })
        .max_by_key(|(number, ..)| *number);
    let (_, kid, pem) = newest.with_context(|| format!("there is no signing key {prefix}"))?;
    Ok(SigningKey::from_pem(&kid, &String::from_utf8(pem)?)?)
}

/// Another token of the administrators' user, valid for ten years.
pub(crate) async fn admin(store: &Store) -> anyhow::Result<String> {
    let claims = UserClaims {
        name: meridian_auth::ADMIN_USER.to_owned(),
        groups: vec![meridian_auth::ADMIN_GROUP.to_owned()],
    };
    let key = signing_key(store, TokenPurpose::User, None).await?;
    Ok(key.issue(&claims, TEN_YEARS, OffsetDateTime::now_utc())?.text)
}

/// `POST /tokens/...`.
pub(crate) async fn issue(store: &Store, request: &TokenRequest) -> Result<String, Problem> {
    let now = OffsetDateTime::now_utc();
    let (purpose, mesh, valid_for) = match request {
        TokenRequest::Dataplane(wanted) => {
            (TokenPurpose::Dataplane, Some(mesh_of(&wanted.mesh)), &wanted.valid_for)
        }
        TokenRequest::Zone(wanted) => (TokenPurpose::Zone, None, &wanted.valid_for),
        TokenRequest::User(wanted) => (TokenPurpose::User, None, &wanted.valid_for),
    };
    let valid_for = lifetime(valid_for)?;
    check(request)?;
    let key = signing_key(store, purpose, mesh).await.map_err(|error| match mesh {
        Some(mesh) if store_answers(&error) => {
            Problem::invalid(Source::Body, "mesh", format!("mesh of name {mesh} is not found"))
        }
        _ => Problem::internal(&format!("{error:#}")),
    })?;
    let issued = match request {
        TokenRequest::Dataplane(wanted) => {
            let claims = DataplaneClaims {
                name: wanted.name.clone(),
                mesh: mesh_of(&wanted.mesh).to_owned(),
                tags: wanted.tags.clone(),
                kind: wanted.type_.clone(),
                workload: wanted.workload.clone(),
            };
            key.issue(&claims, valid_for, now)
        }
        TokenRequest::Zone(wanted) => {
            let scope = if wanted.scope.is_empty() {
                ZoneScope::ALL.iter().map(|scope| scope.as_str().to_owned()).collect()
            } else {
                wanted.scope.clone()
            };
            key.issue(&ZoneClaims { zone: wanted.zone.clone(), scope }, valid_for, now)
        }
        TokenRequest::User(wanted) => {
            let claims = UserClaims { name: wanted.name.clone(), groups: wanted.groups.clone() };
            key.issue(&claims, valid_for, now)
        }
    };
    issued.map(|issued| issued.text).map_err(|error| Problem::internal(&error))
}

/// Not an error of the store: so the key is missing.
fn store_answers(error: &anyhow::Error) -> bool {
    error.downcast_ref::<meridian_store::ReadError>().is_none()
}

fn mesh_of(mesh: &str) -> &str {
    if mesh.is_empty() { meridian_core::document::DEFAULT_MESH } else { mesh }
}

fn check(request: &TokenRequest) -> Result<(), Problem> {
    let mut violations = meridian_core::Violations::default();
    match request {
        TokenRequest::Dataplane(wanted) => {
            if !matches!(wanted.type_.as_str(), "" | "dataplane") {
                violations
                    .push("type", "must be dataplane; an ingress or egress takes a zone token of that scope");
            }
        }
        TokenRequest::Zone(wanted) => {
            if !names::is_label_1035(&wanted.zone) {
                violations.push("zone", "must be the name of a zone (an RFC 1035 label)");
            }
            for (index, scope) in wanted.scope.iter().enumerate() {
                if ZoneScope::parse(scope).is_none() {
                    violations.push(format!("scope[{index}]"), "must be one of: cp, ingress, egress");
                }
            }
        }
        TokenRequest::User(wanted) => {
            if wanted.name.is_empty() {
                violations.push("name", "cannot be empty");
            }
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(Problem::violations(violations.into_vec())) }
}

fn lifetime(text: &str) -> Result<Duration, Problem> {
    if text.is_empty() {
        return Ok(TEN_YEARS);
    }
    let bad = |reason: &str| Problem::invalid(Source::Body, "validFor", reason);
    let parsed = duration::GoDuration::parse(text).map_err(|error| bad(&error.to_string()))?;
    if parsed.0.is_zero() {
        return Err(bad("must be greater than 0"));
    }
    Duration::try_from(parsed.0)
        .ok()
        .filter(|lifetime| *lifetime <= TEN_YEARS)
        .ok_or_else(|| bad("must be at most ten years"))
}

/// When a token was made, from its claims; it must have been verified. The text's own clock is set back by 5 s.
pub(crate) fn issued_at(token: &str) -> Option<OffsetDateTime> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = token.split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let made = claims.get("iat")?.as_i64()?.checked_add(5)?;
    OffsetDateTime::from_unix_timestamp(made).ok()
}

/// Kuma's lists of revoked tokens are secrets with `jti`s, separated by commas. Which list a secret is, by its name.
pub(crate) fn revocations(key: &Key) -> Option<(TokenPurpose, Option<String>)> {
    let info = key.kind.info();
    if !info.admin_only {
        return None;
    }
    match (info.scope, key.name.as_str()) {
        (meridian_core::Scope::Global, "zone-token-revocations") => Some((TokenPurpose::Zone, None)),
        (meridian_core::Scope::Global, "user-token-revocations") => Some((TokenPurpose::User, None)),
        (meridian_core::Scope::Mesh, name) => {
            let mesh = name.strip_prefix("dataplane-token-revocations-")?;
            (mesh == key.mesh).then(|| (TokenPurpose::Dataplane, Some(mesh.to_owned())))
        }
        _ => None,
    }
}

/// The key of the TokenRevocation that a list becomes.
pub(crate) fn revocation_key(purpose: TokenPurpose, mesh: Option<&str>) -> Key {
    let name = place(purpose, mesh, "revoked").replace('/', ".");
    Key::global(TokenRevocation::KIND, "", name)
}

/// The list of a secret: `jti`s separated by commas, base64 as every secret.
pub(crate) fn revoked_ids(secret: &Resource) -> Vec<String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let data = secret.spec.get("data").and_then(serde_json::Value::as_str).unwrap_or_default();
    let text = STANDARD.decode(data).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    text.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_api::{DataplaneTokenRequest, UserTokenRequest, ZoneTokenRequest};
    use meridian_core::Kind;

    fn fields(request: TokenRequest) -> Vec<String> {
        check(&request).err().map(|p| p.invalid.into_iter().map(|v| v.field).collect()).unwrap_or_default()
    }

    #[test]
    fn requests_are_checked_whole() {
        let zone = ZoneTokenRequest {
            zone: "East".into(),
            scope: vec!["cp".into(), "all".into(), "x".into()],
            ..Default::default()
        };
        assert_eq!(fields(TokenRequest::Zone(zone)), ["zone", "scope[1]", "scope[2]"]);
        assert_eq!(fields(TokenRequest::User(UserTokenRequest::default())), ["name"]);
        let ingress = DataplaneTokenRequest { type_: "ingress".into(), ..Default::default() };
        assert_eq!(fields(TokenRequest::Dataplane(ingress)), ["type"]);
    }

    #[test]
    fn lifetimes() {
        assert_eq!(lifetime("").unwrap(), TEN_YEARS);
        assert_eq!(lifetime("24h").unwrap(), Duration::days(1));
        for bad in ["0s", "-1h", "soon", "999y"] {
            assert_eq!(lifetime(bad).unwrap_err().invalid[0].field, "validFor", "{bad}");
        }
    }

    #[test]
    fn when_a_token_was_made_is_read_from_it() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let key = SigningKey::generate("1").unwrap();
        let token = key.issue(&UserClaims::default(), Duration::hours(1), now).unwrap();
        assert_eq!(issued_at(&token.text), Some(now));
        assert_eq!(issued_at("nonsense"), None);
    }

    #[test]
    fn kumas_revocation_lists_are_known_by_name() {
        let secret = |kind: &str, mesh: &str, name: &str| Key::global(Kind::named(kind).unwrap(), mesh, name);
        let table = [
            (secret("GlobalSecret", "", "zone-token-revocations"), Some((TokenPurpose::Zone, None))),
            (secret("GlobalSecret", "", "user-token-revocations"), Some((TokenPurpose::User, None))),
            (secret("GlobalSecret", "", "other"), None),
            (
                secret("Secret", "m", "dataplane-token-revocations-m"),
                Some((TokenPurpose::Dataplane, Some("m".to_owned()))),
            ),
            (secret("Secret", "m", "dataplane-token-revocations-other"), None),
            (secret("Mesh", "", "zone-token-revocations"), None),
        ];
        for (key, expected) in table {
            assert_eq!(revocations(&key), expected, "{key}");
        }
    }
}
