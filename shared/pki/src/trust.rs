use crate::{PkiError, SpkiHash, TrustError, names, pem, x509};
use meridian_proxy_config::{Bundle, CallerIdentity};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;

/// Signatures believed in certificates of a mesh. All keys that Meridian makes are of P-256; the others are those that a
/// root may have which a user provides.
pub(crate) const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
];

/// Which side of a session presented the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

/// A mesh's bundle, compiled: whom to believe.
#[derive(Debug)]
pub struct TrustStore {
    bundle: Bundle,
    generation: u64,
    roots: Vec<Root>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: BTreeSet<SpkiHash>,
}

/// Who answered or called, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    pub identity: CallerIdentity,
    /// Of the leaf or of its issuer, whichever ends first.
    pub not_after: OffsetDateTime,
    pub intermediate: SpkiHash,
    pub root: SpkiHash,
}

#[derive(Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    spki: SpkiHash,
}

impl TrustStore {
    /// A bundle that can't be read whole is refused: believing half of its revocations would be worse than an error.
    pub fn compile(bundle: &Bundle) -> Result<Self, PkiError> {
        Self::with_generation(bundle, 0)
    }

    pub(crate) fn with_generation(bundle: &Bundle, generation: u64) -> Result<Self, PkiError> {
        let mut roots = Vec::new();
        for text in &bundle.roots {
            for certificate in pem::certificates_from_pem(text)? {
                let anchor = webpki::anchor_from_trusted_cert(&certificate)
                    .map_err(|error| PkiError::Certificate(error.to_string()))?
                    .to_owned();
                roots.push(Root { anchor, spki: SpkiHash::of_certificate(&certificate)? });
            }
        }
        let revoked = bundle.revoked.iter().map(|hash| hash.parse()).collect::<Result<_, _>>()?;
        let anchors = roots.iter().map(|root| root.anchor.clone()).collect();
        Ok(Self { bundle: bundle.clone(), generation, roots, anchors, revoked })
    }

    pub fn mesh(&self) -> &str {
        &self.bundle.mesh
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Of the [`crate::Bundles`] when this bundle came: an open session whose peer was proven by another generation
    /// must be proven again ([`TrustStore::verify_peer`] with its stored chain) or cut.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Proves a chain of exactly leaf and intermediate at one moment: revocation; path, validity and usage by webpki; then
    /// what else is Meridian's own (the zone of the issuer, mesh, SPIFFE IDs).
    pub fn verify_peer(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: OffsetDateTime,
    ) -> Result<VerifiedPeer, TrustError> {
        let [leaf, intermediate] = chain else { return Err(TrustError::ChainShape(chain.len())) };
        let issuer = x509::parse(intermediate)?;
        let hash = SpkiHash::of(issuer.public_key().raw);
        // First: what is revoked stays so when its root has left, too, and then counts as more than untrusted.
        if self.revoked.contains(&hash) {
            return Err(TrustError::Revoked(hash.to_string()));
        }
        let root = self.verify_path(leaf, intermediate, usage, now)?;
        let zone = self.issuing_zone(&issuer)?;
        let leaf = x509::parse(leaf)?;
        check_leaf(&leaf)?;
        let identity = identity(self.mesh(), &zone, &leaf)?;
        let not_after = x509::validity(&leaf).1.min(x509::validity(&issuer).1);
        Ok(VerifiedPeer { identity, not_after, intermediate: hash, root })
    }

    /// The hash of the root that the path leads to.
    fn verify_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediate: &CertificateDer<'_>,
        usage: Usage,
        now: OffsetDateTime,
    ) -> Result<SpkiHash, TrustError> {
        let end_entity = EndEntityCert::try_from(leaf).map_err(path_error)?;
        let usage = match usage {
            Usage::Client => webpki::KeyUsage::client_auth(),
            Usage::Server => webpki::KeyUsage::server_auth(),
        };
        let intermediates = std::slice::from_ref(intermediate);
        let path = end_entity
            .verify_for_usage(ALGORITHMS, &self.anchors, intermediates, x509::unix(now), usage, None, None)
            .map_err(path_error)?;
        if path.intermediate_certificates().count() != 1 {
            return Err(TrustError::NotAnIntermediate("a root signed the leaf itself".into()));
        }
        let root = self.roots.iter().find(|root| root.anchor == *path.anchor());
        root.map(|root| root.spki).ok_or_else(|| TrustError::Untrusted("unknown root".into()))
    }

    fn issuing_zone(&self, issuer: &X509Certificate<'_>) -> Result<String, TrustError> {
        let names = x509::names(issuer)?;
        if !names.contains(&names::Name::TrustDomain(self.mesh())) {
            return Err(TrustError::NotAnIntermediate(format!("it is not of mesh `{}`", self.mesh())));
        }
        let zone =
            x509::zone(&names).ok_or_else(|| TrustError::NotAnIntermediate("it names no zone".into()))?;
        Ok(zone.to_owned())
    }
}

/// What a chain says, without proving it again: only for a chain that a verifier of this crate has accepted in this
/// session's handshake.
pub fn identity_of_accepted(mesh: &str, chain: &[CertificateDer<'_>]) -> Result<CallerIdentity, TrustError> {
    let [leaf, intermediate] = chain else { return Err(TrustError::ChainShape(chain.len())) };
    let issuer = x509::parse(intermediate)?;
    let names = x509::names(&issuer)?;
    let zone = x509::zone(&names).ok_or_else(|| TrustError::NotAnIntermediate("it names no zone".into()))?;
    identity(mesh, zone, &x509::parse(leaf)?)
}

/// What webpki leaves to us: extended key usage must be there (webpki requires it only if present), and a leaf is no CA.
pub(crate) fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), TrustError> {
    let malformed = |error: x509_parser::error::X509Error| TrustError::Malformed(error.to_string());
    let extended = leaf.extended_key_usage().map_err(malformed)?;
    let usage = leaf.key_usage().map_err(malformed)?;
    let signs_sessions_only =
        usage.is_some_and(|usage| usage.value.digital_signature() && !usage.value.key_cert_sign());
    if extended.is_some() && signs_sessions_only && !leaf.is_ca() {
        Ok(())
    } else {
        Err(TrustError::WrongUsage)
    }
}

fn identity(mesh: &str, zone: &str, leaf: &X509Certificate<'_>) -> Result<CallerIdentity, TrustError> {
    let mut spiffe = Vec::new();
    let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut dataplane = None;
    for name in x509::names(leaf)? {
        match name {
            names::Name::Spiffe { mesh: found, id } => {
                if found != mesh {
                    return Err(TrustError::ForeignMesh {
                        found: found.to_owned(),
                        expected: mesh.to_owned(),
                    });
                }
                spiffe.push(id.to_owned());
            }
            names::Name::Tag { key, value } => {
                tags.entry(key.to_owned()).or_default().insert(value.to_owned());
            }
            names::Name::Dataplane(name) if dataplane.is_none() => dataplane = Some(name.to_owned()),
            names::Name::Dataplane(_) => return Err(TrustError::Malformed("two Dataplane names".into())),
            // A leaf that speaks for a zone or a whole trust domain was not made by a control plane of ours.
            names::Name::Zone(_) | names::Name::TrustDomain(_) => {
                return Err(TrustError::Malformed("a leaf with a CA's name".into()));
            }
            names::Name::Other => {}
        }
    }
    let claimed = tags.get(names::ZONE_TAG);
    if !claimed.is_some_and(|claimed| claimed.len() == 1 && claimed.contains(zone)) {
        let claimed =
            claimed.map(|zones| zones.iter().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default();
        return Err(TrustError::ZoneClaim { claimed, issuer: zone.to_owned() });
    }
    if spiffe.is_empty() {
        return Err(TrustError::NoIdentity);
    }
    Ok(CallerIdentity { mesh: mesh.to_owned(), spiffe, tags, dataplane, zone: zone.to_owned() })
}

pub(crate) fn path_error(error: webpki::Error) -> TrustError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => TrustError::Expired,
        Error::CertNotValidYet { .. } => TrustError::NotYetValid,
        Error::RequiredEkuNotFoundContext(_) | Error::CaUsedAsEndEntity | Error::EndEntityUsedAsCa => {
            TrustError::WrongUsage
        }
        Error::BadDer | Error::ExtensionValueInvalid | Error::TrailingData(_) => {
            TrustError::Malformed(error.to_string())
        }
        other => TrustError::Untrusted(format!("{other:?}")),
    }
}
