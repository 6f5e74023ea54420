use crate::{Authority, Issued, PkiError, PrivateKey, SpkiHash, authority, csr, lifetime, names, pem, x509};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet};
use time::{Duration, OffsetDateTime};

/// A zone's CA of one mesh: its key was made in the zone, its certificate names the zone.
#[derive(Debug)]
pub struct Intermediate {
    mesh: String,
    zone: String,
    authority: Authority,
    not_before: OffsetDateTime,
}

/// What a leaf will say. Every name is decided by the control plane; nothing of a request but its key is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeafSpec {
    /// Service names: `spiffe://<mesh>/<service>` each. At least one.
    pub services: BTreeSet<String>,
    /// `kuma://<tag>/<value>` each. `kuma.io/zone` is left out if present: it is always the intermediate's.
    pub tags: BTreeMap<String, BTreeSet<String>>,
    /// The Dataplane's name. None for an egress.
    pub dataplane: Option<String>,
    /// How long it lasts; never longer than the intermediate. Unset: [`lifetime::LEAF`].
    pub lifetime: Option<Duration>,
}

impl Intermediate {
    /// Of the certificate that global signed and the zone's own key.
    pub fn new(mesh: &str, certificate: CertificateDer<'static>, key: PrivateKey) -> Result<Self, PkiError> {
        let parsed = x509::parse(&certificate).map_err(|error| PkiError::Certificate(error.to_string()))?;
        let names = x509::names(&parsed).map_err(|error| PkiError::Certificate(error.to_string()))?;
        let zone = x509::zone(&names)
            .ok_or_else(|| PkiError::Certificate("it names no zone, so it is no zone's intermediate".into()))?
            .to_owned();
        if !names.contains(&names::Name::TrustDomain(mesh)) {
            return Err(PkiError::Certificate(format!("it is not of mesh `{mesh}`")));
        }
        let (not_before, _) = x509::validity(&parsed);
        Ok(Self { mesh: mesh.to_owned(), zone, authority: Authority::new(certificate, key)?, not_before })
    }

    pub fn from_pem(mesh: &str, certificate: &str, key: &str) -> Result<Self, PkiError> {
        let certificates = pem::certificates_from_pem(certificate)?;
        let first = certificates.into_iter().next().ok_or_else(|| PkiError::Certificate("none".into()))?;
        Self::new(mesh, first, PrivateKey::from_pem(key)?)
    }

    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    pub fn zone(&self) -> &str {
        &self.zone
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    pub fn certificate_pem(&self) -> String {
        self.authority.certificate_pem()
    }

    pub fn key(&self) -> &PrivateKey {
        self.authority.key()
    }

    pub fn spki_hash(&self) -> SpkiHash {
        self.authority.key().spki_hash()
    }

    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.authority.not_after()
    }

    /// Certifies a workload's key. The chain is the leaf, then this intermediate.
    pub fn sign_leaf(
        &self,
        request: &[u8],
        spec: &LeafSpec,
        now: OffsetDateTime,
    ) -> Result<Issued, PkiError> {
        let requested = csr::parse(request)?;
        let common_name =
            spec.services.first().ok_or(PkiError::Name { field: "service", value: String::new() })?;
        let mut params = authority::params(common_name, now, spec.lifetime.unwrap_or(lifetime::LEAF));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names =
            self.uris(spec)?.iter().map(|name| authority::uri(name)).collect::<Result<_, _>>()?;
        let mut issued = self.authority.sign(params, &requested.public_key, requested.hash, now)?;
        issued.chain.push(self.certificate().clone());
        Ok(issued)
    }

    fn uris(&self, spec: &LeafSpec) -> Result<Vec<String>, PkiError> {
        let mut uris = Vec::new();
        for service in &spec.services {
            uris.push(names::spiffe_id(&self.mesh, names::check("service", service, true)?));
        }
        uris.push(names::tag_uri(names::ZONE_TAG, &self.zone));
        for (tag, values) in spec.tags.iter().filter(|(tag, _)| *tag != names::ZONE_TAG) {
            names::check("tag", tag, true)?;
            for value in values {
                uris.push(names::tag_uri(tag, names::check("tag value", value, false)?));
            }
        }
        if let Some(name) = &spec.dataplane {
            uris.push(names::dataplane_uri(names::check("dataplane", name, false)?));
        }
        Ok(uris)
    }
}
