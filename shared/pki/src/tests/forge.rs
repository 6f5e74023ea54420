//! Certificates that no control plane would make, signed by keys that an attacker may hold.

use crate::PrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

pub(super) struct Forgery {
    pub(super) params: CertificateParams,
}

impl Forgery {
    /// A leaf as a control plane would make it, with these URIs.
    pub(super) fn leaf(uris: &[&str], now: OffsetDateTime) -> Self {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&[7; 8]));
        params.not_before = now - Duration::minutes(5);
        params.not_after = now + Duration::hours(24);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        Self { params }
    }

    /// An intermediate as a root would make it, with these URIs.
    pub(super) fn intermediate(uris: &[&str], now: OffsetDateTime) -> Self {
        let mut forgery = Self::leaf(uris, now);
        forgery.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        forgery.params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        forgery.params.extended_key_usages = Vec::new();
        let name = rcgen::DnType::CommonName;
        forgery.params.distinguished_name.push(name, format!("forged {}", uris.join(" ")));
        forgery
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }

    pub(super) fn signed_by(
        &self,
        issuer: &CertificateDer<'_>,
        issuer_key: &PrivateKey,
        subject: &PrivateKey,
    ) -> CertificateDer<'static> {
        let issuer = Issuer::from_ca_cert_der(issuer, issuer_key.pair().unwrap()).unwrap();
        self.params.signed_by(&subject.pair().unwrap(), &issuer).unwrap().der().clone()
    }
}
