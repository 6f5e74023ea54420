//! Scrapes under TLS: with a certificate that the operator gave, and as the sidecar in its mesh.

use crate::{
    apps::http_app,
    metrics::{ask, connection_over, is_closed, metrics, publish_with, scrape},
    page::Page,
    world::{Ca, MESH, Pair, address, soon, until},
};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::SendRequest;
use meridian_pki::{
    CertificateFiles, IdentityHandle, PrivateKey, ServerCa, certificates_to_pem,
    link::{self, ServerTrust},
    mesh_tls::{self, MeshServerVerifier},
};
use meridian_proxy_config::{
    Protocol, SessionTerms,
    metrics::{Metrics, ScrapeTls},
    types,
};
use rustls::ClientConfig;
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

fn secured(at: SocketAddr, tls: ScrapeTls) -> Metrics {
    let mut told = metrics(at);
    told.prometheus[0].tls = tls;
    told
}

/// A pair of files as an operator leaves them.
struct Files {
    directory: tempfile::TempDir,
}

/// Who signs what is in them, with the key.
struct Issuer(ServerCa, PrivateKey);

impl Issuer {
    fn new(name: &str) -> Self {
        Self(ServerCa::generate(name, OffsetDateTime::now_utc()).unwrap(), PrivateKey::generate().unwrap())
    }

    fn client(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let trust = ServerTrust::from_pem(&self.0.authority().certificate_pem()).unwrap();
        Arc::new(link::client_config(trust, None, alpn).unwrap())
    }
}

impl Files {
    fn certificate(&self) -> PathBuf {
        self.directory.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("tls.key")
    }

    fn given(&self) -> CertificateFiles {
        CertificateFiles::new(self.certificate(), self.key())
    }

    fn write_certificate(&self, of: &Issuer) {
        let names = ["127.0.0.1".to_owned()];
        let issued = of.0.sign_server(&of.1, &names, OffsetDateTime::now_utc()).unwrap();
        std::fs::write(self.certificate(), certificates_to_pem(issued.chain.iter())).unwrap();
    }

    fn write_key(&self, of: &Issuer) {
        std::fs::write(self.key(), of.1.to_pem().as_bytes()).unwrap();
    }
}

/// A connection over TLS; its server is known as 127.0.0.1.
async fn session(at: SocketAddr, config: &Arc<ClientConfig>) -> Option<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(at).await.ok()?;
    let name = "127.0.0.1".try_into().unwrap();
    let session = TlsConnector::from(config.clone()).connect(name, stream).await.ok()?;
    connection_over(session).await
}

async fn page(sender: &mut SendRequest<Empty<Bytes>>) -> Option<Page> {
    let (status, text) = soon("a page", ask(sender, "/metrics", "5")).await?;
    (status == 200).then(|| Page::read(&text))
}

/// Whether a client is given metrics.
async fn gets(at: SocketAddr, config: &Arc<ClientConfig>) -> bool {
    let Some(mut sender) = session(at, config).await else { return false };
    page(&mut sender).await.is_some_and(|page| page.has("envoy_server_live"))
}

/// What is answered to who speaks no TLS.
async fn in_plaintext(at: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await);
    let mut answer = Vec::new();
    drop(soon("an end", stream.read_to_end(&mut answer)).await);
    answer
}

async fn problem(pair: &Pair, says: &str) {
    let scrapes = &pair.web.engine.shared().scrapes;
    until("the problem", async || scrapes.problems().iter().any(|it| it.contains(says)).then_some(())).await;
}

#[tokio::test]
async fn a_provided_certificate_is_presented_and_renewed() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let files = Files { directory: tempfile::tempdir().unwrap() };
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    publish_with(&pair.web, Some(files.given()));
    let at = address();
    pair.web.feed(types::METRICS, "self", &secured(at, ScrapeTls::Provided));
    problem(&pair, &format!("no metrics at {at}: can't read {}", files.certificate().display())).await;
    is_closed(at).await;

    // No restart, and no other configuration.
    files.write_certificate(&old);
    files.write_key(&old);
    let (old_client, new_client) = (old.client(&[]), new.client(&[]));
    until("a page", async || gets(at, &old_client).await.then_some(())).await;
    assert_eq!(pair.web.engine.shared().scrapes.problems(), [""; 0]);
    // As Prometheus offers.
    assert!(gets(at, &old.client(&[b"h2", b"http/1.1"])).await);
    assert!(!gets(at, &new_client).await);
    let plain = in_plaintext(at).await;
    assert!(!plain.windows(4).any(|it| it == b"HTTP"), "{plain:?}");

    files.write_certificate(&new);
    assert!(gets(at, &old_client).await, "half of a pair is not used");
    files.write_key(&new);
    assert!(gets(at, &new_client).await);
    assert!(!gets(at, &old_client).await);

    // What the policy wants of connections holds for those that are open.
    let mut kept = session(at, &new_client).await.unwrap();
    assert!(page(&mut kept).await.is_some());
    pair.web.feed(types::METRICS, "self", &secured(at, ScrapeTls::Off));
    until("the end", async || kept.is_closed().then_some(())).await;
    scrape(at).await;
}

#[tokio::test]
async fn without_a_certificate_a_port_stays_closed() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    publish_with(&pair.web, None);
    let at = address();
    pair.web.feed(types::METRICS, "self", &secured(at, ScrapeTls::Provided));
    problem(&pair, "tls.mode ProvidedTLS needs --metrics-cert-file and --metrics-key-file").await;
    is_closed(at).await;

    // Two words on one port: the weaker one must not hold.
    let mut both = metrics(at);
    both.prometheus.extend(secured(at, ScrapeTls::Mesh).prometheus);
    pair.web.feed(types::METRICS, "self", &both);
    problem(&pair, "its backends differ in tls.mode").await;
    is_closed(at).await;
}

/// A client with an identity in a mesh: it knows who must answer.
fn workload(pair: &Pair, ca: Option<&Ca>, service: &str, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let bundles = meridian_pki::Bundles::new();
    bundles.set(&pair.ca.bundle()).unwrap();
    let verifier = MeshServerVerifier::new(&bundles, MESH, vec!["spiffe://default/web".into()], "east");
    let identity = IdentityHandle::new();
    if let Some(ca) = ca {
        identity.set(ca.identity("west", service));
    }
    mesh_tls::client_config(identity, Arc::new(verifier), alpn, &SessionTerms::default()).unwrap()
}

#[tokio::test]
async fn only_workloads_of_the_mesh_scrape_under_its_mtls() {
    let (application, _) = http_app(false).await;
    let mut pair = Pair::start(Protocol::Http, application).await;
    publish_with(&pair.web, None);
    let at = address();
    pair.web.feed(types::METRICS, "self", &secured(at, ScrapeTls::Mesh));
    let member = workload(&pair, Some(&pair.ca), "prometheus", &[]);
    until("a page", async || gets(at, &member).await.then_some(())).await;
    assert!(gets(at, &workload(&pair, Some(&pair.ca), "prometheus", &[b"h2", b"http/1.1"])).await);
    let foreign = Ca::new(MESH, &["west"]);
    assert!(!gets(at, &workload(&pair, Some(&foreign), "prometheus", &[])).await, "another mesh's");
    assert!(!gets(at, &workload(&pair, None, "prometheus", &[])).await, "nobody's");
    let plain = in_plaintext(at).await;
    assert!(!plain.windows(4).any(|it| it == b"HTTP"), "{plain:?}");

    // Taken away: what is open ends.
    let mut kept = session(at, &member).await.unwrap();
    assert!(page(&mut kept).await.is_some());
    pair.ca.revoke("west");
    pair.web.feed(types::BUNDLE, MESH, &pair.ca.bundle());
    until("the end", async || kept.is_closed().then_some(())).await;
    assert!(!gets(at, &member).await);

    // A mesh without mTLS: no port.
    pair.web.remove(types::BUNDLE, MESH);
    problem(&pair, "tls.mode ActiveMTLSBackend needs a certificate of the mesh").await;
    is_closed(at).await;
}
