use crate::PkiError;
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// Every certificate of a PEM text, at least one.
pub fn certificates_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::Certificate(error.to_string()))?;
    if certificates.is_empty() {
        return Err(PkiError::Certificate("no `BEGIN CERTIFICATE` block".into()));
    }
    Ok(certificates)
}

pub fn certificates_to_pem<'a, 'c: 'a>(
    certificates: impl IntoIterator<Item = &'a CertificateDer<'c>>,
) -> String {
    certificates.into_iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let text = zeroize::Zeroizing::new(STANDARD.encode(der));
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 64);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
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
