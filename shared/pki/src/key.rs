use crate::PkiError;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};
use zeroize::Zeroizing;

/// An ECDSA P-256 key; that of a root which a user provides may be another ([`PrivateKey::of_root`]). Wiped when dropped;
/// never printed.
#[derive(Clone)]
pub struct PrivateKey {
    /// Of a root: perhaps in the form in which it was given.
    pkcs8: Zeroizing<Vec<u8>>,
    spki: Vec<u8>,
    is_p256: bool,
}

impl PrivateKey {
    pub fn generate() -> Result<Self, PkiError> {
        Self::of(&KeyPair::generate().map_err(|error| PkiError::Key(error.to_string()))?)
    }

    /// Reads PKCS#8.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| PkiError::Key(error.to_string()))?;
        Self::of(&pair)
    }

    /// Reads a key that signs certificates: RSA of at least 2048 bits, ECDSA P-256 or P-384; PKCS#8, PKCS#1 or SEC1.
    pub fn of_root(pem: &str) -> Result<Self, PkiError> {
        // What the parser says of a key stays here: it may quote it.
        let pair = KeyPair::from_pem(pem).map_err(|_| PkiError::Key(NO_ROOT_KEY.to_owned()))?;
        let known = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256];
        if known.contains(&pair.algorithm()) {
            Self::of(&pair)
        } else {
            Err(PkiError::Key(NO_ROOT_KEY.to_owned()))
        }
    }

    pub fn from_der(pkcs8: &[u8]) -> Result<Self, PkiError> {
        Self::of(&pair(pkcs8)?)
    }

    /// PKCS#8. The caller keeps it as secret as the key.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(crate::pem::encode("PRIVATE KEY", &self.pkcs8))
    }

    /// A PKCS#10 request for this key, DER. It asks for nothing: whoever signs decides every name.
    pub fn request(&self) -> Result<Vec<u8>, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request =
            params.serialize_request(&self.pair()?).map_err(|error| PkiError::Request(error.to_string()))?;
        Ok(request.der().to_vec())
    }

    /// DER of the SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub fn spki_hash(&self) -> SpkiHash {
        SpkiHash::of(&self.spki)
    }

    pub(crate) fn pair(&self) -> Result<KeyPair, PkiError> {
        if self.is_p256 {
            return pair(&self.pkcs8);
        }
        KeyPair::try_from(self.pkcs8.as_slice()).map_err(|error| PkiError::Key(error.to_string()))
    }

    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }

    fn of(pair: &KeyPair) -> Result<Self, PkiError> {
        let is_p256 = pair.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256;
        let der = Zeroizing::new(pair.serialize_der());
        Ok(Self { pkcs8: der, spki: pair.subject_public_key_info(), is_p256 })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.spki_hash())
    }
}

const NO_ROOT_KEY: &str =
    "it must be one unencrypted key in PEM: RSA of 2048 to 8192 bits, ECDSA P-256 or P-384";

fn pair(pkcs8: &[u8]) -> Result<KeyPair, PkiError> {
    let der = PrivatePkcs8KeyDer::from(pkcs8);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| PkiError::Key(error.to_string()))
}

/// SHA-256 over a SubjectPublicKeyInfo: how a key is named in bundles and logs. Text form: lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpkiHash([u8; 32]);

impl SpkiHash {
    pub fn of(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// Of the key in a certificate.
    pub fn of_certificate(certificate: &[u8]) -> Result<Self, PkiError> {
        let parsed =
            crate::x509::parse(certificate).map_err(|error| PkiError::Certificate(error.to_string()))?;
        Ok(Self::of(parsed.public_key().raw))
    }
}

impl fmt::Display for SpkiHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpkiHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpkiHash {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        sha256_from_hex(text).map(Self)
    }
}

/// 64 hexadecimal digits, colons between bytes and a `sha256:` in front allowed (as openssl and docker print them).
pub(crate) fn sha256_from_hex(text: &str) -> Result<[u8; 32], PkiError> {
    let bad = || PkiError::Fingerprint(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let digits: Vec<u8> = lower
        .trim_start_matches("sha256:")
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        })
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    bytes.try_into().map_err(|_| bad())
}
