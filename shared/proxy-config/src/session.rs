use crate::TlsVersion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What sessions between the proxies of one mesh are like, beside who may have one (MeshTLS).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SessionTerms {
    pub min: TlsVersion,
    pub max: TlsVersion,
    /// Of TLS 1.2; those of 1.3 are all as good. Empty: all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ciphers: BTreeSet<SessionCipher>,
}

/// How a session of TLS 1.2 is encrypted. Its keys are agreed on by ECDHE and signed by whatever key a certificate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionCipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Default for SessionTerms {
    /// TLS 1.3 and nothing else.
    fn default() -> Self {
        Self { min: TlsVersion::Tls13, max: TlsVersion::Tls13, ciphers: BTreeSet::new() }
    }
}

impl SessionTerms {
    /// Whether a version may be spoken. Where nothing would be left, TLS 1.3 may: a minimum is always kept.
    pub fn allows(&self, version: TlsVersion) -> bool {
        if self.min > self.max {
            return version == TlsVersion::Tls13;
        }
        (self.min..=self.max).contains(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TlsVersion::{Tls12, Tls13};

    #[test]
    fn a_minimum_is_always_kept() {
        for (min, max, old, new) in [
            (Tls12, Tls12, true, false),
            (Tls12, Tls13, true, true),
            (Tls13, Tls13, false, true),
            (Tls13, Tls12, false, true),
        ] {
            let terms = SessionTerms { min, max, ciphers: BTreeSet::new() };
            assert_eq!((terms.allows(Tls12), terms.allows(Tls13)), (old, new), "{min:?} {max:?}");
        }
        assert!(!SessionTerms::default().allows(Tls12));
    }

    #[test]
    fn terms_travel_as_they_are() {
        let body = r#"{"min":"TLS12","max":"TLS13","ciphers":["aes256Gcm","chaCha20Poly1305"]}"#;
        let terms: SessionTerms = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&terms).unwrap(), body);
        assert!(serde_json::from_str::<SessionTerms>(r#"{"min":"TLS11","max":"TLS13"}"#).is_err());
    }
}
