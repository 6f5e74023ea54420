use crate::{Claims, TokenError, VerificationKey};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Serialize;
use std::fmt;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// Tokens are valid so long before they are issued: clocks of hosts differ (Kuma's value).
const BACKDATE: Duration = Duration::seconds(5);

/// A private RSA key that signs tokens of one kind. Never printed.
#[derive(Clone)]
pub struct SigningKey {
    kid: String,
    pem: Zeroizing<String>,
    public_pem: String,
    encoding: EncodingKey,
}

/// A token with what its revocation would name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    pub text: String,
    /// `jti`
    pub id: String,
    pub expires: OffsetDateTime,
}

#[derive(Serialize)]
struct Whole<'a, C> {
    #[serde(flatten)]
    claims: &'a C,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: &'a str,
}

impl SigningKey {
    /// A new 2048-bit key.
    pub fn generate(kid: &str) -> Result<Self, TokenError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|error| TokenError::Key(error.to_string()))?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|error| TokenError::Key(error.to_string()))?;
        Self::of(kid, Zeroizing::new(pem("PRIVATE KEY", der.as_ref())), &pair)
    }

    /// Reads PKCS#8 (`PRIVATE KEY`) and, as Kuma writes them, PKCS#1 (`RSA PRIVATE KEY`).
    pub fn from_pem(kid: &str, text: &str) -> Result<Self, TokenError> {
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|error| TokenError::Key(error.to_string()))?;
        let pair = match &key {
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(TokenError::Key("it is no RSA key".into())),
        };
        let pair = pair.map_err(|error| TokenError::Key(error.to_string()))?;
        Self::of(kid, Zeroizing::new(text.to_owned()), &pair)
    }

    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The caller keeps it as secret as the key.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// SubjectPublicKeyInfo (`PUBLIC KEY`).
    pub fn public_key_pem(&self) -> &str {
        &self.public_pem
    }

    /// What verifies this key's tokens of kind `C`; `mesh` for dataplane tokens.
    pub fn verification_key<C: Claims>(&self, mesh: Option<&str>) -> VerificationKey {
        VerificationKey {
            purpose: C::PURPOSE,
            mesh: mesh.map(str::to_owned),
            kid: self.kid.clone(),
            public_key_pem: self.public_pem.clone(),
        }
    }

    pub fn issue<C: Claims>(
        &self,
        claims: &C,
        valid_for: Duration,
        now: OffsetDateTime,
    ) -> Result<IssuedToken, TokenError> {
        let id = uuid::Uuid::new_v4().to_string();
        let expires = now
            .checked_add(valid_for)
            .ok_or_else(|| TokenError::Sign("it would be valid too long".into()))?;
        let start = (now - BACKDATE).unix_timestamp();
        let whole = Whole { claims, iat: start, nbf: start, exp: expires.unix_timestamp(), jti: &id };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::RS256) };
        let text = jsonwebtoken::encode(&header, &whole, &self.encoding)
            .map_err(|error| TokenError::Sign(error.to_string()))?;
        Ok(IssuedToken { text, id, expires })
    }

    fn of(kid: &str, text: Zeroizing<String>, pair: &KeyPair) -> Result<Self, TokenError> {
        let public: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(|error| TokenError::Key(error.to_string()))?;
        let public_pem = pem("PUBLIC KEY", public.as_ref());
        let encoding =
            EncodingKey::from_rsa_pem(text.as_bytes()).map_err(|error| TokenError::Key(error.to_string()))?;
        Ok(Self { kid: kid.to_owned(), pem: text, public_pem, encoding })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(STANDARD.encode(der));
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
