//! Certificate requests: proof that the asker holds a key, and nothing else. Names and extensions in them are ignored.

use crate::{PkiError, SpkiHash};
use rcgen::SubjectPublicKeyInfo;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

/// Largest request read; a P-256 one takes about 200 bytes.
const MAX_REQUEST: usize = 8 * 1024;

/// The key of a verified request.
pub(crate) struct RequestedKey {
    pub(crate) public_key: SubjectPublicKeyInfo,
    pub(crate) hash: SpkiHash,
}

pub(crate) fn parse(der: &[u8]) -> Result<RequestedKey, PkiError> {
    if der.len() > MAX_REQUEST {
        return Err(PkiError::Request(format!("{} bytes, at most {MAX_REQUEST}", der.len())));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|error| PkiError::Request(error.to_string()))?;
    if !rest.is_empty() {
        return Err(PkiError::Request("bytes after the end".into()));
    }
    request
        .verify_signature()
        .map_err(|_| PkiError::Request("its signature does not prove the key".into()))?;
    let spki = request.certification_request_info.subject_pki.raw;
    let public_key =
        SubjectPublicKeyInfo::from_der(spki).map_err(|error| PkiError::Request(error.to_string()))?;
    if rcgen::PublicKeyData::algorithm(&public_key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(PkiError::Request("its key is not ECDSA P-256".into()));
    }
    Ok(RequestedKey { public_key, hash: SpkiHash::of(spki) })
}
