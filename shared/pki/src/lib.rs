//! Identity inside the mesh: who signs whom, and who believes whom.
//!
//! A mesh's root (at the global control plane) signs one intermediate a zone; the zone's intermediate signs its
//! workloads' leaves. The zone of a workload is that of its *issuer*: a taken zone can make leaves that claim any
//! service, but not one that claims another zone, and it is shut out by its intermediate's key hash alone.
//!
//! Two families of verifiers live here and share nothing: mesh sessions ([`mesh_tls`]: TLS 1.3 unless a policy says
//! otherwise, both sides proven by the mesh's bundle) and control-plane links ([`link`]: a server certificate by CA or fingerprint,
//! optionally a zone's client certificate). Every rustls config names its provider: there is no process default.
//!
//! Rejected: URI name constraints on intermediates (rustls-webpki refuses every certificate that has them), and
//! session resumption (a resumed session skips the look at the peer's certificate, so it would outlive a revocation).

mod authority;
mod bundles;
mod csr;
mod error;
mod files;
mod identity;
mod intermediate;
mod key;
pub mod link;
pub mod mesh_tls;
mod names;
mod pem;
mod renewal;
#[cfg(test)]
mod tests;
mod trust;
mod x509;

pub use authority::{Authority, Issued, RootCa, ServerCa, ZoneCa};
pub use bundles::Bundles;
pub use error::{PkiError, TrustError};
pub use files::{CertificateFiles, FilesError};
pub use identity::{Identities, Identity, IdentityHandle};
pub use intermediate::{Intermediate, LeafSpec};
pub use key::{PrivateKey, SpkiHash};
pub use names::{dataplane_uri, spiffe_id, tag_uri, zone_uri};
pub use pem::{certificates_from_pem, certificates_to_pem};
pub use renewal::{Renewal, renewal_time};
pub use trust::{TrustStore, Usage, VerifiedPeer};

use meridian_proxy_config::{SessionCipher, SessionTerms, TlsVersion};
use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{cipher_suite, kx_group},
};
use std::sync::{Arc, OnceLock};

/// The one cryptography provider; hand it to every rustls builder, and install it in `main` for libraries that
/// ask for the process default.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// The same for sessions between workloads, of which there are many: AES-128-GCM and X25519 first. The hybrid
/// post-quantum exchange is offered and not preferred: it doubles the ClientHello, past one packet. The suites of TLS 1.2
/// are there where it may be spoken, for ECDSA alone, as are the mesh's certificates.
pub(crate) fn mesh_provider(terms: &SessionTerms) -> Arc<CryptoProvider> {
    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let of_tls12 = [
        (SessionCipher::Aes128Gcm, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (SessionCipher::Aes256Gcm, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        (SessionCipher::ChaCha20Poly1305, cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ];
    if terms.allows(TlsVersion::Tls12) {
        let wanted = |cipher: &SessionCipher| terms.ciphers.is_empty() || terms.ciphers.contains(cipher);
        cipher_suites
            .extend(of_tls12.into_iter().filter(|(cipher, _)| wanted(cipher)).map(|(_, suite)| suite));
    }
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups: vec![kx_group::X25519, kx_group::X25519MLKEM768, kx_group::SECP256R1],
        ..rustls::crypto::aws_lc_rs::default_provider()
    })
}

/// Lifetimes, and how clocks may differ.
pub mod lifetime {
    use time::Duration;

    /// Roots: replaced by rotation, not by age.
    pub const ROOT: Duration = Duration::days(3650);
    /// A zone's intermediate; renewed from day 30, so that two months of a global outage hurt nobody.
    pub const INTERMEDIATE: Duration = Duration::days(90);
    /// A workload's leaf; renewed from half.
    pub const LEAF: Duration = Duration::hours(24);
    /// A zone's client certificate; renewed from half.
    pub const ZONE_CLIENT: Duration = Duration::days(7);
    /// A control plane's own server certificate; renewed from half.
    pub const SERVER: Duration = Duration::days(365);
    /// Certificates begin so long before they are made: clocks of hosts differ.
    pub const BACKDATE: Duration = Duration::minutes(5);
}
