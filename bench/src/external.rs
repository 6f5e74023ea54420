//! A host outside of the mesh: its names, its certificate, and who believes it.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// What the egress asks for where it speaks TLS itself.
pub(crate) const NAME: &str = "external.bench";
/// What callers ask for: names of the mesh, since loopback has none of its own. An egress holds them to these.
pub(crate) const ORIGINATED: &str = "bench-originated.mesh";
pub(crate) const PASSED: &str = "bench-passed.mesh";

/// Files of a CA of its own, and of its certificate.
#[derive(Clone, Debug)]
pub(crate) struct External {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl External {
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let files = Self {
            ca: folder.join("external-ca.pem"),
            cert: folder.join("external.pem"),
            key: folder.join("external.key"),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "external CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(&files.ca, issuer.pem())?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![SanType::DnsName(NAME.try_into()?), SanType::DnsName(PASSED.try_into()?)];
        fs::write(&files.cert, params.signed_by(&key, &issuer)?.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }
}

pub(crate) fn server(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let chain = vec![CertificateDer::from_pem_file(cert)?];
    Ok(Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?))
}

pub(crate) fn client(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    Ok(Arc::new(builder.with_no_client_auth()))
}
