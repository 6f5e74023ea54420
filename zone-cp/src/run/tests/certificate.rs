//! `--tls-cert-file`: a renewed pair is used at the next connection; half of one is not.

use super::*;
use meridian_pki::ServerCa;

#[tokio::test]
async fn a_renewed_certificate_file_is_used_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let issuer = |name: &str| {
        (ServerCa::generate(name, OffsetDateTime::now_utc()).unwrap(), PrivateKey::generate().unwrap())
    };
    let (old, new) = (issuer("old"), issuer("new"));
    let write_certificate = |(ca, key): &(ServerCa, PrivateKey)| {
        let issued = ca.sign_server(key, &["127.0.0.1".to_owned()], OffsetDateTime::now_utc()).unwrap();
        std::fs::write(&certificate, certificates_to_pem(issued.chain.iter())).unwrap();
    };
    let write_key =
        |(_, private): &(ServerCa, PrivateKey)| std::fs::write(&key, private.to_pem().as_bytes()).unwrap();
    write_certificate(&old);
    write_key(&old);
    // What a zone with a CA of its own leaves beside its data.
    std::fs::write(dir.path().join("ca.crt"), old.0.authority().certificate_pem()).unwrap();
    let zone = Zone::start_with(dir.path(), |config| {
        config.tls_cert_file = Some(certificate.clone());
        config.tls_key_file = Some(key.clone());
    })
    .await;
    let shown = async |(ca, _): &(ServerCa, PrivateKey), address: SocketAddr| {
        let trust = ServerTrust::from_pem(&ca.authority().certificate_pem()).unwrap();
        let config = Arc::new(client_config(trust, None, &[H2, HTTP1]).unwrap());
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(config).connect(name, stream).await.is_ok()
    };
    let addresses = [zone.bound.api_https, zone.bound.proxies];
    for address in addresses {
        assert!(shown(&old, address).await && !shown(&new, address).await);
    }
    write_certificate(&new);
    for address in addresses {
        assert!(shown(&old, address).await, "half of a pair is not used");
    }
    write_key(&new);
    for address in addresses {
        until("the new certificate", async || shown(&new, address).await).await;
        assert!(!shown(&old, address).await);
    }
    zone.stop().await;
}
