use thiserror::Error;

/// Why a key, certificate or configuration could not be made.
#[derive(Debug, Error)]
pub enum PkiError {
    #[error("not a usable private key: {0}")]
    Key(String),
    #[error("not a usable certificate: {0}")]
    Certificate(String),
    #[error("not a usable certificate request: {0}")]
    Request(String),
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("{field} `{value}` can't stand in a certificate")]
    Name { field: &'static str, value: String },
    #[error("the issuing certificate has expired")]
    IssuerExpired,
    #[error("could not sign: {0}")]
    Sign(String),
    #[error("could not set up TLS: {0}")]
    Tls(String),
    #[error("not a SHA-256 fingerprint (64 hexadecimal digits, colons allowed): `{0}`")]
    Fingerprint(String),
}

/// Why a peer is not believed. What an operator reads in a proxy's log, so each says whose certificate to look at.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrustError {
    #[error("no trust bundle for mesh `{0}`")]
    UnknownMesh(String),
    #[error("the session's server name names no mesh")]
    NoMesh,
    #[error("the peer sent {0} certificates; a workload sends its leaf and its zone's intermediate")]
    ChainShape(usize),
    #[error("unreadable certificate: {0}")]
    Malformed(String),
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate is not valid yet")]
    NotYetValid,
    #[error("the certificate is not meant for this side of a session")]
    WrongUsage,
    #[error("the certificate does not lead to a trusted root: {0}")]
    Untrusted(String),
    #[error("the intermediate {0} is revoked")]
    Revoked(String),
    #[error("the issuing certificate is no zone's intermediate: {0}")]
    NotAnIntermediate(String),
    #[error("the certificate is of mesh `{found}`, expected `{expected}`")]
    ForeignMesh { found: String, expected: String },
    #[error("the leaf claims zone `{claimed}`, its issuer is zone `{issuer}`")]
    ZoneClaim { claimed: String, issuer: String },
    #[error("the leaf has no SPIFFE ID")]
    NoIdentity,
    #[error("no identity is expected of this destination, so none is accepted")]
    NothingExpected,
    #[error("the peer is `{found}`, expected one of `{expected}`")]
    WrongIdentity { found: String, expected: String },
    #[error("the peer is in zone `{found}`, the dialled endpoint in `{expected}`")]
    WrongZone { found: String, expected: String },
    #[error("the server's certificate is not for `{0}`")]
    WrongName(String),
    #[error("no certificate of the server's chain has the expected fingerprint")]
    WrongFingerprint,
}

impl TrustError {
    /// A short, stable name: for metrics and denial reports.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownMesh(_) | Self::NoMesh => "unknown-mesh",
            Self::ChainShape(_) | Self::Malformed(_) => "bad-certificate",
            Self::Expired | Self::NotYetValid => "certificate-expired",
            Self::WrongUsage => "wrong-usage",
            Self::Untrusted(_) | Self::NotAnIntermediate(_) | Self::WrongFingerprint => "untrusted",
            Self::Revoked(_) => "revoked",
            Self::ForeignMesh { .. } => "foreign-mesh",
            Self::ZoneClaim { .. } | Self::WrongZone { .. } => "wrong-zone",
            Self::NoIdentity | Self::NothingExpected | Self::WrongIdentity { .. } | Self::WrongName(_) => {
                "wrong-identity"
            }
        }
    }

    /// As rustls carries it out of a handshake; [`TrustError::of`] finds it again.
    pub(crate) fn into_rustls(self) -> rustls::Error {
        use rustls::CertificateError;
        let other = rustls::OtherError(std::sync::Arc::new(self));
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
    }

    /// The reason of a failed handshake, if a verifier of this crate gave it.
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                other.0.downcast_ref()
            }
            _ => None,
        }
    }
}
