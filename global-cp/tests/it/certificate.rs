//! `--tls-cert-file`: a renewed certificate is used at the next connection, and half of a pair is not.

use crate::harness::Replica;
use meridian_global_cp::Config;
use meridian_pki::link::{H2, HTTP1, ServerTrust, client_config};
use meridian_pki::{PrivateKey, ServerCa, certificates_to_pem};
use meridian_testkit::wait::{DEADLINE, until};
use rustls_pki_types::ServerName;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::net::TcpStream;

struct Issuer {
    ca: ServerCa,
    key: PrivateKey,
}

impl Issuer {
    fn new(name: &str) -> Self {
        Self {
            ca: ServerCa::generate(name, OffsetDateTime::now_utc()).unwrap(),
            key: PrivateKey::generate().unwrap(),
        }
    }

    fn write_certificate(&self, path: &Path) {
        let hosts = ["127.0.0.1".to_owned()];
        let issued = self.ca.sign_server(&self.key, &hosts, OffsetDateTime::now_utc()).unwrap();
        std::fs::write(path, certificates_to_pem(&issued.chain)).unwrap();
    }

    fn write_key(&self, path: &Path) {
        std::fs::write(path, self.key.to_pem().as_bytes()).unwrap();
    }

    /// Whether the server at this address shows a certificate of this CA.
    async fn is_behind(&self, address: SocketAddr) -> bool {
        let trust = ServerTrust::from_pem(&self.ca.authority().certificate_pem()).unwrap();
        let config = Arc::new(client_config(trust, None, &[H2, HTTP1]).unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(config).connect(name, stream).await.is_ok()
    }
}

#[tokio::test]
async fn a_renewed_certificate_file_is_used_without_a_restart() {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let (certificate, key) = (data.path().join("tls.crt"), data.path().join("tls.key"));
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    old.write_certificate(&certificate);
    old.write_key(&key);
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let config = Config {
        data_dir: Some(data.path().to_owned()),
        api_http: any,
        api_https: any,
        sync_listen: any,
        diagnostics: any,
        tls_cert_file: Some(certificate.clone()),
        tls_key_file: Some(key.clone()),
        ..Config::default()
    };
    let global = Replica::with(config, data).await;
    for address in [global.bound.api_https, global.bound.sync] {
        assert!(old.is_behind(address).await && !new.is_behind(address).await);
    }
    // Half of the pair: the one of before stays.
    new.write_certificate(&certificate);
    for address in [global.bound.api_https, global.bound.sync] {
        assert!(old.is_behind(address).await, "half of a pair is not used");
    }
    new.write_key(&key);
    for address in [global.bound.api_https, global.bound.sync] {
        let renewed = async || {
            anyhow::ensure!(new.is_behind(address).await, "still the old certificate");
            Ok(())
        };
        until("the new certificate", DEADLINE, renewed).await.unwrap();
        assert!(!old.is_behind(address).await);
    }
}
