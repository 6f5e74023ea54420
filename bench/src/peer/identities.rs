//! Certificates of a peer's programs: a CA, and what it has signed, in files.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const CLIENT: &str = "bench-client";
pub(super) const SERVER: &str = "bench-server";
pub(super) const EGRESS: &str = "bench-egress";

/// What a mesh calls the one of that name.
pub(super) fn spiffe(name: &str) -> String {
    format!("spiffe://default/{name}")
}

pub(super) struct Identities {
    pub(super) ca: PathBuf,
    pub(super) client: Identity,
    pub(super) server: Identity,
    pub(super) egress: Identity,
}

/// A certificate and its key. HAProxy is not told of the key: it looks for one beside the certificate, under this name.
pub(super) struct Identity {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Identities {
    /// Each has its name as SPIFFE ID, and as common name and DNS name for programs that do not read the ID.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "bench");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca = folder.join("ca.pem");
        fs::write(&ca, issuer.pem())?;
        let issue = |name: &str| -> Result<Identity> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names =
                vec![SanType::URI(spiffe(name).try_into()?), SanType::DnsName(name.try_into()?)];
            let identity = Identity {
                cert: folder.join(format!("{name}.pem")),
                key: folder.join(format!("{name}.pem.key")),
            };
            fs::write(&identity.cert, params.signed_by(&key, &issuer)?.pem())?;
            fs::write(&identity.key, key.serialize_pem())?;
            Ok(identity)
        };
        Ok(Self { ca, client: issue(CLIENT)?, server: issue(SERVER)?, egress: issue(EGRESS)? })
    }
}
