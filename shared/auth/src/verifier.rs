use crate::{Claims, Purpose, TokenError};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

/// Longest token read.
const MAX_TOKEN: usize = 16 * 1024;
/// Registered claims that say nothing of the bearer.
const REGISTERED: [&str; 6] = ["iat", "nbf", "exp", "jti", "iss", "sub"];

/// The public half of a signing key, as it is stored and synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VerificationKey {
    pub purpose: Purpose,
    /// Of dataplane tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    pub kid: String,
    pub public_key_pem: String,
}

/// A token that holds, and what tells later whether it still does ([`Verifier::recheck`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<C> {
    pub claims: C,
    /// `jti`
    pub id: String,
    pub kid: String,
    pub expires: OffsetDateTime,
}

/// Public keys and revocations at one moment. Build a new one when they change.
#[derive(Clone, Default)]
pub struct Verifier {
    keys: BTreeMap<Scope, BTreeMap<String, DecodingKey>>,
    revoked: BTreeMap<Scope, BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    purpose: Purpose,
    mesh: Option<String>,
}

impl Verifier {
    /// A key that can't be read is the caller's to report; it verifies nothing, and the others still do.
    pub fn add_key(&mut self, key: &VerificationKey) -> Result<(), TokenError> {
        let decoding = DecodingKey::from_rsa_pem(key.public_key_pem.as_bytes())
            .map_err(|error| TokenError::Key(error.to_string()))?;
        self.keys
            .entry(Scope::of(key.purpose, key.mesh.as_deref()))
            .or_default()
            .insert(key.kid.clone(), decoding);
        Ok(())
    }

    /// Refuses the token with this `jti` from now on.
    pub fn revoke(&mut self, purpose: Purpose, mesh: Option<&str>, id: &str) {
        self.revoked.entry(Scope::of(purpose, mesh)).or_default().insert(id.to_owned());
    }

    /// Proves a token of one kind.
    pub fn verify<C: Claims>(&self, token: &str, now: OffsetDateTime) -> Result<Verified<C>, TokenError> {
        let unproven: Map<String, Value> = read(token)?;
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed("its header"))?;
        if header.alg != Algorithm::RS256 {
            return Err(TokenError::Algorithm(format!("{:?}", header.alg)));
        }
        let found = purpose_of(&unproven);
        if let Some(found) = found.filter(|found| *found != C::PURPOSE) {
            return Err(TokenError::WrongPurpose { found, expected: C::PURPOSE });
        }
        let mesh = match C::PURPOSE {
            Purpose::Dataplane => unproven.get("Mesh").and_then(Value::as_str),
            Purpose::Zone | Purpose::User => None,
        };
        let kid = header.kid.unwrap_or_default();
        let scope = Scope::of(C::PURPOSE, mesh);
        let key = self.key(&scope, &kid)?;
        let proven = jsonwebtoken::decode::<Map<String, Value>>(token, key, &signature_only())
            .map_err(|error| signature_error(error.kind()))?;
        let verified = content::<C>(proven.claims, kid)?;
        self.check(&scope, &verified.id)?;
        in_time(&verified, &unproven, now)?;
        Ok(verified)
    }

    /// Whether a token proven earlier still holds: its key is there, it is not revoked, not expired. For open streams,
    /// after a change of keys or revocations.
    pub fn recheck<C: Claims>(&self, verified: &Verified<C>, now: OffsetDateTime) -> Result<(), TokenError> {
        let scope = Scope::of(C::PURPOSE, verified.claims.mesh());
        self.key(&scope, &verified.kid)?;
        self.check(&scope, &verified.id)?;
        if now >= verified.expires { Err(TokenError::Expired) } else { Ok(()) }
    }

    fn key(&self, scope: &Scope, kid: &str) -> Result<&DecodingKey, TokenError> {
        self.keys.get(scope).and_then(|keys| keys.get(kid)).ok_or_else(|| TokenError::UnknownKey {
            purpose: scope.purpose,
            mesh: scope.mesh.clone(),
            kid: kid.to_owned(),
        })
    }

    fn check(&self, scope: &Scope, id: &str) -> Result<(), TokenError> {
        let revoked = self.revoked.get(scope).is_some_and(|ids| ids.contains(id));
        if revoked { Err(TokenError::Revoked) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<_> =
            self.keys.iter().map(|(scope, keys)| (scope, keys.keys().collect::<Vec<_>>())).collect();
        f.debug_struct("Verifier").field("keys", &keys).finish_non_exhaustive()
    }
}

impl Scope {
    fn of(purpose: Purpose, mesh: Option<&str>) -> Self {
        Self { purpose, mesh: mesh.map(str::to_owned) }
    }
}

/// The claims, before they are proven.
fn read(token: &str) -> Result<Map<String, Value>, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Malformed("it is longer than 16 KiB"));
    }
    jsonwebtoken::dangerous::insecure_decode_claims(token)
        .map_err(|_| TokenError::Malformed("it has no readable claims"))
}

/// By what only one kind has; `None` if it can't be told.
fn purpose_of(claims: &Map<String, Value>) -> Option<Purpose> {
    if claims.contains_key("Zone") {
        Some(Purpose::Zone)
    } else if claims.contains_key("Mesh") {
        Some(Purpose::Dataplane)
    } else if claims.contains_key("Groups") {
        Some(Purpose::User)
    } else {
        None
    }
}

/// Time is checked by us, against the caller's clock.
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation
}

fn signature_error(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm("another algorithm".into()),
        _ => TokenError::Malformed("it can't be decoded"),
    }
}

fn content<C: Claims>(mut claims: Map<String, Value>, kid: String) -> Result<Verified<C>, TokenError> {
    let bad = |reason: &str| TokenError::Claims { purpose: C::PURPOSE, reason: reason.to_owned() };
    let id = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| bad("`jti` is missing, so it could never be revoked"))?.to_owned();
    let expires = claims.get("exp").and_then(Value::as_f64).ok_or_else(|| bad("`exp` is missing"))?;
    let expires = timestamp(expires).ok_or_else(|| bad("`exp` is out of range"))?;
    for name in REGISTERED {
        claims.remove(name);
    }
    let claims = serde_json::from_value(Value::Object(claims)).map_err(|error| bad(&error.to_string()))?;
    Ok(Verified { claims, id, kid, expires })
}

fn in_time<C>(
    verified: &Verified<C>,
    claims: &Map<String, Value>,
    now: OffsetDateTime,
) -> Result<(), TokenError> {
    if now >= verified.expires {
        return Err(TokenError::Expired);
    }
    let not_before = claims.get("nbf").and_then(Value::as_f64).and_then(timestamp);
    if not_before.is_some_and(|start| now < start) { Err(TokenError::NotYetValid) } else { Ok(()) }
}

/// RFC 7519 2: seconds, fractions allowed.
fn timestamp(seconds: f64) -> Option<OffsetDateTime> {
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and the range is checked next")]
    OffsetDateTime::from_unix_timestamp(seconds.floor() as i64).ok()
}
