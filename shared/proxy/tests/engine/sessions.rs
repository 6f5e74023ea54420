//! MeshTLS: whether an inbound takes plaintext, and which versions of TLS the mesh speaks.

use crate::{
    apps::{call, echo_app, get, http_app, http1, whole},
    world::{MESH, Pair, Sidecar, soon, until},
};
use meridian_proxy_config::{InboundTls, Protocol, SessionCipher, SessionTerms, TlsVersion, types};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn speak(sidecar: &Sidecar, version: TlsVersion, ciphers: &[SessionCipher]) {
    let snapshot = sidecar.engine.shared().snapshots.load();
    let mut proxy = (**snapshot.proxy.as_ref().unwrap()).clone();
    let terms = SessionTerms { min: version, max: version, ciphers: ciphers.iter().copied().collect() };
    proxy.sessions = [(MESH.to_owned(), terms)].into();
    sidecar.feed(types::PROXY, "self", &proxy);
}

/// A new version is spoken by the next request, and by open sessions no longer.
#[tokio::test]
async fn both_ends_have_to_speak_the_same_version() {
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let application = match protocol {
            Protocol::Http => http_app(false).await.0,
            _ => echo_app().await.0,
        };
        let pair = Pair::start(protocol, application).await;
        let works = async || {
            if protocol == Protocol::Http {
                return call(pair.outbound, "/headers").await.status == 200;
            }
            let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
            stream.write_all(b"a").await.is_ok() && soon("an end", stream.read_u8()).await.is_ok()
        };
        assert!(works().await);
        speak(&pair.web, TlsVersion::Tls12, &[]);
        assert!(!works().await, "the other end speaks TLS 1.3 alone");
        speak(&pair.backend, TlsVersion::Tls12, &[]);
        until("both speak TLS 1.2", async || works().await.then_some(())).await;
        speak(&pair.web, TlsVersion::Tls13, &[]);
        assert!(!works().await, "the minimum holds");
        speak(&pair.backend, TlsVersion::Tls13, &[]);
        until("both speak TLS 1.3", async || works().await.then_some(())).await;
    }
}

#[tokio::test]
async fn both_ends_have_to_know_a_cipher_that_the_other_knows() {
    use SessionCipher::{Aes128Gcm, Aes256Gcm, ChaCha20Poly1305};
    let (application, _) = http_app(false).await;
    for (ours, theirs, status) in [
        (vec![Aes128Gcm], vec![Aes128Gcm], 200),
        (vec![Aes128Gcm], vec![Aes256Gcm, ChaCha20Poly1305], 503),
        (vec![Aes256Gcm], vec![Aes256Gcm, Aes128Gcm], 200),
        (vec![Aes256Gcm], vec![Aes128Gcm, ChaCha20Poly1305], 503),
        (vec![ChaCha20Poly1305], vec![], 200),
        (vec![ChaCha20Poly1305], vec![Aes128Gcm, Aes256Gcm], 503),
    ] {
        let pair = Pair::start(Protocol::Http, application).await;
        speak(&pair.web, TlsVersion::Tls12, &ours);
        speak(&pair.backend, TlsVersion::Tls12, &theirs);
        pair.settled().await;
        assert_eq!(call(pair.outbound, "/headers").await.status, status, "{ours:?} {theirs:?}");
    }
}

/// What was let in without a certificate ends when nobody is any more.
#[tokio::test]
async fn an_inbound_that_closes_ends_plaintext() {
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let application = match protocol {
            Protocol::Http => http_app(false).await.0,
            _ => echo_app().await.0,
        };
        let pair = Pair::start(protocol, application).await;
        pair.change_inbound(|inbound| inbound.tls = InboundTls::Permissive);
        pair.settled().await;
        if protocol == Protocol::Http {
            let mut client = http1(pair.inbound).await;
            let answer = whole(client.send_request(get("/headers")).await.unwrap()).await;
            assert_eq!(answer.status, 200);
            pair.change_inbound(|inbound| inbound.tls = InboundTls::Strict);
            until("it is closed", async || client.is_closed().then_some(())).await;
            // Who has a certificate is not concerned.
            assert_eq!(call(pair.outbound, "/headers").await.status, 200);
        } else {
            let mut stream = TcpStream::connect(pair.inbound).await.unwrap();
            stream.write_all(b"a").await.unwrap();
            assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
            pair.change_inbound(|inbound| inbound.tls = InboundTls::Strict);
            assert!(soon("the reset", stream.read_u8()).await.is_err());
        }
        let mut stream = TcpStream::connect(pair.inbound).await.unwrap();
        drop(stream.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").await);
        assert_ne!(soon("an alert or the end", stream.read_u8()).await.ok(), Some(b'H'), "no answer of HTTP");
    }
}
