//! The certificate of 5682 and 5685: one that an operator gave, or one from the CA in the store, which is the same for all
//! replicas and is left as `ca.crt` beside the data for clients to trust.

use crate::config::Settings;
use crate::vault;
use anyhow::Context;
use meridian_pki::{CertificateFiles, Identity, IdentityHandle, PrivateKey, Renewal, renewal_time};
use meridian_store::Store;
use std::net::IpAddr;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// What this control plane presents.
pub(crate) struct ServerCertificate {
    handle: IdentityHandle,
    files: Option<CertificateFiles>,
    /// What zones should trust for their link: our CA, or what the operator's chain ends with.
    pub(crate) roots: Vec<Vec<u8>>,
}

impl ServerCertificate {
    pub(crate) async fn new(store: &Store, settings: &Settings) -> anyhow::Result<Self> {
        if let Some((certificate, key)) = &settings.tls_files {
            let files = CertificateFiles::new(certificate, key);
            files.refresh()?;
            let handle = files.handle();
            let given = handle.latest();
            let last = given.as_ref().and_then(|identity| identity.chain().last());
            let roots = last.map(|last| last.to_vec()).into_iter().collect();
            return Ok(Self { handle, files: Some(files), roots });
        }
        let handle = IdentityHandle::new();
        let ca = vault::server_ca(store).await?;
        let path = settings.data_dir.join("ca.crt");
        std::fs::write(&path, ca.authority().certificate_pem())
            .with_context(|| format!("could not write {}", path.display()))?;
        handle.set(sign(&ca, &hosts(settings))?);
        Ok(Self { handle, files: None, roots: vec![ca.authority().certificate().to_vec()] })
    }

    pub(crate) fn handle(&self) -> IdentityHandle {
        self.handle.clone()
    }

    /// To be called when somebody connects.
    pub(crate) fn refresh(&self) {
        let Some(files) = &self.files else { return };
        match files.refresh() {
            Ok(false) => {}
            Ok(true) => tracing::info!(file = %files.path().display(), "the server certificate was renewed"),
            // Half of a pair may be new: the next connection looks again, this one gets the old certificate.
            Err(error) => {
                let error = meridian_telemetry::chain(&error);
                tracing::warn!(error, "the new server certificate can't be used");
            }
        }
    }

    /// Renews a certificate of our own CA, from half its life on.
    pub(crate) async fn renew(&self, store: &Store, settings: &Settings, shutdown: CancellationToken) {
        while self.files.is_none() {
            let Some(identity) = self.handle.latest() else { return };
            let at = renewal_time(identity.not_before(), identity.not_after(), Renewal::Half, rand::random());
            let wait =
                (at - OffsetDateTime::now_utc()).try_into().unwrap_or(std::time::Duration::from_secs(60));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let renewed = vault::server_ca(store).await.and_then(|ca| sign(&ca, &hosts(settings)));
            match renewed {
                Ok(identity) => self.handle.set(identity),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the server certificate could not be renewed; again in a minute"
                    );
                    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
                }
            }
        }
    }
}

fn sign(ca: &meridian_pki::ServerCa, hosts: &[String]) -> anyhow::Result<Identity> {
    let key = PrivateKey::generate()?;
    let issued = ca.sign_server(&key, hosts, OffsetDateTime::now_utc())?;
    Ok(Identity::new(issued.chain, &key)?)
}

/// Names and addresses under which clients may call: the configured ones, the host's name, the listeners' addresses, and
/// loopback.
fn hosts(settings: &Settings) -> Vec<String> {
    let mut hosts = settings.tls_san.clone();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim().to_ascii_lowercase();
    if meridian_core::names::is_subdomain(&hostname) {
        hosts.push(hostname);
    }
    hosts.push("localhost".to_owned());
    let listeners = [settings.api_https, settings.sync_listen].map(|address| address.ip());
    let addresses = listeners
        .into_iter()
        .filter(|ip| !ip.is_unspecified())
        .chain([IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)]);
    hosts.extend(addresses.map(|ip| ip.to_string()));
    let mut seen = std::collections::BTreeSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    hosts
}
