use crate::{
    Intermediate, LeafSpec, PkiError, PrivateKey, SpkiHash, TrustStore, Usage, csr, lifetime, names, pem,
    x509,
};
use meridian_proxy_config::Bundle;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};

/// A signed certificate with what it needs to be presented: leaf first, without the root, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub chain: Vec<CertificateDer<'static>>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// Of the certified key: what a revocation would name.
    pub key: SpkiHash,
}

/// A self-signed certificate with its key. What it may sign is the business of [`RootCa`], [`ZoneCa`] and [`ServerCa`].
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: PrivateKey,
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

/// The root of one mesh, at the global control plane. Signs intermediates of zones.
#[derive(Debug)]
pub struct RootCa {
    mesh: String,
    authority: Authority,
}

/// The CA for zones' client certificates on port 5685, at the global control plane.
#[derive(Debug)]
pub struct ZoneCa(Authority);

/// The CA of a control plane's own server certificates, exported as `ca.crt`.
#[derive(Debug)]
pub struct ServerCa(Authority);

impl RootCa {
    pub fn generate(mesh: &str, now: OffsetDateTime) -> Result<Self, PkiError> {
        names::check("mesh", mesh, false)?;
        let trust_domain = format!("spiffe://{mesh}");
        let authority = Authority::generate(&format!("{mesh} mesh root"), Some(&trust_domain), 1, now)?;
        Ok(Self { mesh: mesh.to_owned(), authority })
    }

    /// Reads what [`Authority::certificate_pem`] and [`PrivateKey::to_pem`] gave.
    pub fn from_pem(mesh: &str, certificate: &str, key: &str) -> Result<Self, PkiError> {
        names::check("mesh", mesh, false)?;
        let certificate = Authority::one(certificate)?;
        let authority = Authority::new(certificate, PrivateKey::of_root(key)?)?;
        Ok(Self { mesh: mesh.to_owned(), authority })
    }

    /// A root that a user provides: it can sign zones' intermediates, and what these sign is believed by whoever trusts
    /// it, which is tried out.
    ///
    /// # Errors
    /// Why it is of no use, in words for whoever made it.
    pub fn provided(mesh: &str, certificate: &str, key: &str, now: OffsetDateTime) -> Result<Self, PkiError> {
        let root = Self::from_pem(mesh, certificate, key)?;
        root.check(now)?;
        root.try_out(now).map_err(|why| {
            PkiError::Certificate(format!("what it signs is not believed by the mesh's proxies: {why}"))
        })?;
        Ok(root)
    }

    fn check(&self, now: OffsetDateTime) -> Result<(), PkiError> {
        let bad = |why: &str| Err(PkiError::Certificate(why.to_owned()));
        let malformed = |error: x509_parser::error::X509Error| PkiError::Certificate(error.to_string());
        let parsed = x509::parse(self.authority.certificate())
            .map_err(|error| PkiError::Certificate(error.to_string()))?;
        let (not_before, not_after) = x509::validity(&parsed);
        if now < not_before {
            return bad("it is not valid yet");
        }
        if now >= not_after {
            return bad("it has expired");
        }
        let constraints = parsed.basic_constraints().map_err(malformed)?;
        if constraints.is_some_and(|it| it.value.path_len_constraint.is_some_and(|length| length < 1)) {
            return bad("its path length is 0: it must sign intermediates, so 1 at least, or none");
        }
        if parsed.key_usage().map_err(malformed)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return bad("its key usage has no keyCertSign");
        }
        Ok(())
    }

    /// Signs a zone's intermediate and that a leaf, which nobody gets, and has a proxy's verifier look at them.
    fn try_out(&self, now: OffsetDateTime) -> Result<(), String> {
        let text = |error: PkiError| error.to_string();
        let key = PrivateKey::generate().map_err(text)?;
        let request = key.request().map_err(text)?;
        let issued = self.sign_intermediate(&request, "zone", now).map_err(text)?;
        let certificate = issued.chain.into_iter().next().ok_or("no certificate")?;
        let intermediate = Intermediate::new(&self.mesh, certificate, key).map_err(text)?;
        let spec = LeafSpec { services: ["service".to_owned()].into(), ..LeafSpec::default() };
        let leaf = intermediate.sign_leaf(&request, &spec, now).map_err(text)?;
        let roots = vec![self.authority.certificate_pem()];
        let bundle = Bundle { mesh: self.mesh.clone(), roots, revoked: Vec::new() };
        let trust = TrustStore::compile(&bundle).map_err(text)?;
        trust.verify_peer(&leaf.chain, Usage::Server, now).map_err(|error| error.to_string())?;
        Ok(())
    }

    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Certifies a zone's key as its intermediate of this mesh. The zone is the authenticated peer's, never a claim.
    pub fn sign_intermediate(
        &self,
        request: &[u8],
        zone: &str,
        now: OffsetDateTime,
    ) -> Result<Issued, PkiError> {
        let requested = csr::parse(request)?;
        names::check("zone", zone, false)?;
        let mut params = params(&format!("{} zone {zone}", self.mesh), now, lifetime::INTERMEDIATE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names =
            vec![uri(&names::zone_uri(zone))?, uri(&format!("spiffe://{}", self.mesh))?];
        self.authority.sign(params, &requested.public_key, requested.hash, now)
    }
}

impl ZoneCa {
    pub fn generate(now: OffsetDateTime) -> Result<Self, PkiError> {
        Authority::generate("meridian zones", None, 0, now).map(Self)
    }

    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        Authority::from_pem(certificate, key).map(Self)
    }

    pub fn authority(&self) -> &Authority {
        &self.0
    }

    /// Certifies a zone control plane's key, for its links to the global control plane only.
    pub fn sign_client(&self, request: &[u8], zone: &str, now: OffsetDateTime) -> Result<Issued, PkiError> {
        let requested = csr::parse(request)?;
        names::check("zone", zone, false)?;
        let mut params = params(&format!("zone {zone}"), now, lifetime::ZONE_CLIENT);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![uri(&names::zone_uri(zone))?];
        self.0.sign(params, &requested.public_key, requested.hash, now)
    }
}

impl ServerCa {
    /// `name` says whose it is, for people (`meridian global control plane`).
    pub fn generate(name: &str, now: OffsetDateTime) -> Result<Self, PkiError> {
        Authority::generate(name, None, 0, now).map(Self)
    }

    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        Authority::from_pem(certificate, key).map(Self)
    }

    pub fn authority(&self) -> &Authority {
        &self.0
    }

    /// A server certificate for DNS names and addresses. The chain ends with the CA itself: a client that pins the
    /// CA's fingerprint has nothing else to check it by.
    pub fn sign_server(
        &self,
        key: &PrivateKey,
        hosts: &[String],
        now: OffsetDateTime,
    ) -> Result<Issued, PkiError> {
        let common_name = hosts.first().map_or("meridian", String::as_str);
        let mut params = params(common_name, now, lifetime::SERVER);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = hosts.iter().map(|host| host_name(host)).collect::<Result<_, _>>()?;
        let mut issued = self.0.sign(params, &key.pair()?, key.spki_hash(), now)?;
        issued.chain.push(self.0.certificate.clone());
        Ok(issued)
    }
}

impl Authority {
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> String {
        pem::certificates_to_pem([&self.certificate])
    }

    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    fn generate(
        common_name: &str,
        uri_name: Option<&str>,
        path_length: u8,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let key = PrivateKey::generate()?;
        let mut params = params(common_name, now, lifetime::ROOT);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = uri_name.map(uri).transpose()?.into_iter().collect();
        let certificate =
            params.self_signed(&key.pair()?).map_err(|error| PkiError::Sign(error.to_string()))?;
        Self::new(certificate.der().clone(), key)
    }

    fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        Self::new(Self::one(certificate)?, PrivateKey::from_pem(key)?)
    }

    fn one(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
        match pem::certificates_from_pem(pem)?.as_slice() {
            [certificate] => Ok(certificate.clone()),
            _ => Err(PkiError::Certificate("a CA is one certificate".into())),
        }
    }

    /// Also the signing half of an intermediate.
    pub(crate) fn new(certificate: CertificateDer<'static>, key: PrivateKey) -> Result<Self, PkiError> {
        let parsed = x509::parse(&certificate).map_err(|error| PkiError::Certificate(error.to_string()))?;
        if parsed.public_key().raw != key.spki() {
            return Err(PkiError::KeyMismatch);
        }
        if !parsed.is_ca() {
            return Err(PkiError::Certificate("it is no CA".into()));
        }
        let (_, not_after) = x509::validity(&parsed);
        let issuer = Issuer::from_ca_cert_der(&certificate, key.pair()?)
            .map_err(|error| PkiError::Certificate(error.to_string()))?;
        Ok(Self { certificate, key, issuer, not_after })
    }

    /// Signs, with a life that ends no later than the issuer's.
    pub(crate) fn sign(
        &self,
        mut params: CertificateParams,
        public_key: &impl PublicKeyData,
        hash: SpkiHash,
        now: OffsetDateTime,
    ) -> Result<Issued, PkiError> {
        if now >= self.not_after {
            return Err(PkiError::IssuerExpired);
        }
        params.not_after = params.not_after.min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        let (not_before, not_after) = (params.not_before, params.not_after);
        let certificate =
            params.signed_by(public_key, &self.issuer).map_err(|error| PkiError::Sign(error.to_string()))?;
        Ok(Issued { chain: vec![certificate.der().clone()], not_before, not_after, key: hash })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("key", &self.key)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Common to all: name, serial, validity. The serial is random: by default rcgen derives it from the key, and one key
/// is certified many times.
pub(crate) fn params(common_name: &str, now: OffsetDateTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // RFC 5280 4.1.2.2: positive, at most 20 bytes.
    let mut serial: [u8; 16] = rand::random();
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // X.509 has whole seconds.
    let now = now.replace_nanosecond(0).unwrap_or(now);
    params.not_before = now - lifetime::BACKDATE;
    params.not_after = now + life;
    params
}

pub(crate) fn uri(uri: &str) -> Result<SanType, PkiError> {
    let name = uri.try_into().map_err(|_| PkiError::Name { field: "name", value: uri.to_owned() })?;
    Ok(SanType::URI(name))
}

fn host_name(host: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let bad = || PkiError::Name { field: "host", value: host.to_owned() };
    rustls_pki_types::DnsName::try_from(host).map_err(|_| bad())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| bad())?))
}
