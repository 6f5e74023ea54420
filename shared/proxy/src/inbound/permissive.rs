//! PERMISSIVE: telling a session of the mesh from everything else, by the protocols that its ClientHello offers.

use crate::{
    io::{Rewind, Socket},
    worker::Worker,
};
use bytes::BytesMut;
use meridian_proxy_config::alpn;
use rustls::server::Acceptor;
use std::{io, time::Duration};
use tokio::io::AsyncReadExt;

const HANDSHAKE_RECORD: u8 = 22;
/// A client of the mesh speaks at once; who is silent for so long waits for the server to speak.
const DETECT: Duration = Duration::from_millis(300);
/// Whoever began a ClientHello has to finish it.
const HELLO: Duration = Duration::from_secs(5);
const MAX_HELLO: usize = 64 << 10;

pub(super) enum Sniffed {
    Session(Rewind<Socket>),
    Plaintext(Rewind<Socket>),
}

/// Reads as much as decides; nothing is lost.
pub(super) async fn sniff(worker: &Worker, mut socket: Socket) -> io::Result<Sniffed> {
    let mut ahead = BytesMut::new();
    loop {
        let wait = if ahead.is_empty() { DETECT } else { HELLO };
        let ended = match worker.timer.timeout(wait, socket.read_buf(&mut ahead)).await {
            Some(read) => read? == 0,
            None => true,
        };
        match session(&ahead) {
            Some(true) => return Ok(Sniffed::Session(Rewind::new(ahead.freeze(), socket))),
            None if !ended && ahead.len() < MAX_HELLO => {}
            Some(false) | None => return Ok(Sniffed::Plaintext(Rewind::new(ahead.freeze(), socket))),
        }
    }
}

/// Whether bytes begin a session of the mesh; `None`: too few to tell.
fn session(bytes: &[u8]) -> Option<bool> {
    if *bytes.first()? != HANDSHAKE_RECORD {
        return Some(false);
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Some(false);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let ours = [alpn::HTTP1, alpn::HTTP2, alpn::TCP, alpn::EXTERNAL];
                let offered = accepted.client_hello().alpn();
                return Some(offered.is_some_and(|mut names| names.any(|name| ours.contains(&name))));
            }
            Ok(None) => {}
            Err(_) => return Some(false),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_known_by_its_first_byte() {
        assert_eq!(session(b"GET / HTTP/1.1\r\n"), Some(false));
        assert_eq!(session(b""), None);
    }

    #[test]
    fn a_session_is_known_by_what_it_offers() {
        for (offer, ours) in [(&b"mesh-h2"[..], true), (b"h2", false)] {
            let bytes = hello(&[offer.to_vec()]);
            assert_eq!(session(&bytes), Some(ours));
            assert_eq!(session(&bytes[..bytes.len() / 2]), None);
        }
        assert_eq!(session(&hello(&[])), Some(false));
    }

    fn hello(alpn: &[Vec<u8>]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(meridian_pki::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.to_vec();
        let name = "example.test".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }
}
