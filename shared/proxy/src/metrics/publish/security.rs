//! How a port of metrics is secured: not at all, by a certificate that the operator gave, or as this proxy in its mesh,
//! for others of that mesh.
//!
//! Where what is asked for is not there, the port stays closed: metrics are never served with less.

use crate::{
    io::Socket,
    shared::Shared,
    telemetry::Seldom,
    tls::{HANDSHAKE_TIMEOUT, Peer, TlsError, Trust},
};
use meridian_pki::{
    CertificateFiles,
    link::{self, HTTP1},
};
use meridian_proxy_config::metrics::ScrapeTls;
use meridian_telemetry::chain;
use rustls::ServerConfig;
use std::{
    future::pending,
    sync::{Arc, Mutex, PoisonError},
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What the connections to one port are secured by.
#[derive(Clone)]
pub(super) enum Security {
    Plaintext,
    Provided(Arc<Provided>),
    Mesh(String),
}

/// A certificate that the operator gave.
pub(super) struct Provided {
    files: Arc<CertificateFiles>,
    config: Arc<ServerConfig>,
    /// That the files can't be used: anybody may connect, and so have it found out again.
    failures: Mutex<Seldom>,
}

impl Security {
    /// # Errors
    /// What is missing.
    pub(super) fn new(
        tls: ScrapeTls,
        shared: &Shared,
        files: Option<&Arc<CertificateFiles>>,
    ) -> Result<Self, String> {
        match tls {
            ScrapeTls::Off => Ok(Self::Plaintext),
            ScrapeTls::Provided => provided(files),
            ScrapeTls::Mesh => {
                let mesh = shared.snapshots.load().proxy.as_ref().map(|proxy| proxy.mesh.clone());
                let mesh = mesh.filter(|mesh| shared.tls.ready(mesh));
                mesh.map(Self::Mesh).ok_or_else(|| {
                    "tls.mode ActiveMTLSBackend needs a certificate of the mesh, and there is none: is mTLS enabled?"
                        .to_owned()
                })
            }
        }
    }
}

fn provided(files: Option<&Arc<CertificateFiles>>) -> Result<Security, String> {
    let files = files.ok_or("tls.mode ProvidedTLS needs --metrics-cert-file and --metrics-key-file")?;
    let read = files.refresh();
    if files.handle().current(OffsetDateTime::now_utc()).is_none() {
        return Err(match read {
            Err(error) => chain(&error),
            Ok(_) => format!("the certificate in {} has expired", files.path().display()),
        });
    }
    let config = link::server_config(files.handle(), None, &[HTTP1]).map_err(|error| chain(&error))?;
    let failures = Mutex::default();
    Ok(Security::Provided(Arc::new(Provided { files: files.clone(), config: Arc::new(config), failures })))
}

/// A session with the certificate in the operator's files: whoever knows it may scrape.
pub(super) async fn accept_provided(
    provided: &Provided,
    socket: Socket,
) -> Result<TlsStream<Socket>, TlsError> {
    let Provided { files, config, failures } = provided;
    match files.refresh() {
        Ok(false) => {}
        Ok(true) => tracing::info!(file = %files.path().display(), "the certificate of metrics was renewed"),
        // Half of a pair may be new: the next connection looks again, this one gets the old certificate.
        Err(error) => {
            if failures.lock().unwrap_or_else(PoisonError::into_inner).may(Instant::now()) {
                tracing::warn!(error = chain(&error), "the new certificate of metrics is not used");
            }
        }
    }
    let handshake = TlsAcceptor::from(config.clone()).accept(socket);
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    accepted.map_err(|_| TlsError::Timeout)?.map_err(TlsError::Handshake)
}

/// Once what is thought of an open session's peer satisfies `is`.
pub(super) async fn once(shared: &Shared, peer: &Peer, is: fn(Trust) -> bool) {
    let mut changes = shared.snapshots.subscribe();
    let mut judged = None;
    loop {
        let generation = Some(shared.tls.bundles.generation());
        if judged != generation {
            judged = generation;
            if is(shared.tls.trust(peer)) {
                return;
            }
        }
        if changes.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}
