//! The certificate of 5678 and 5682: one that an operator gave, looked at again whenever somebody connects, or one from a
//! CA in the store, which is left as `ca.crt` beside the data for proxies to trust.

use crate::config::Settings;
use anyhow::Context;
use meridian_pki::{CertificateFiles, Identity, IdentityHandle, PrivateKey, Renewal, ServerCa, renewal_time};
use meridian_store::Store;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// Private row of the CA.
const BUCKET: &str = "server-ca";
const NAME: &str = "self";
/// After a failed renewal: half a year is left.
const RETRY: Duration = Duration::from_mins(1);

/// What the control plane presents.
#[derive(Clone)]
pub(crate) struct ServerCertificate(Arc<Inner>);

struct Inner {
    handle: IdentityHandle,
    source: Source,
}

enum Source {
    Files(CertificateFiles),
    Ca { ca: Box<ServerCa>, hosts: Vec<String> },
}

#[derive(Serialize, Deserialize)]
struct StoredCa {
    certificate: String,
    key: String,
}

impl ServerCertificate {
    pub(crate) async fn new(store: &Store, settings: &Settings) -> anyhow::Result<Self> {
        let (handle, source) = match settings.tls_files.clone() {
            Some((certificate, key)) => {
                let files = CertificateFiles::new(certificate, key);
                (files.handle(), Source::Files(files))
            }
            None => {
                let ca = load_ca(store, &settings.zone).await?;
                let path = settings.data_dir.join("ca.crt");
                std::fs::write(&path, ca.authority().certificate_pem())
                    .with_context(|| format!("could not write {}", path.display()))?;
                (IdentityHandle::new(), Source::Ca { ca: Box::new(ca), hosts: hosts(settings) })
            }
        };
        let certificate = Self(Arc::new(Inner { handle, source }));
        certificate.renew()?;
        Ok(certificate)
    }

    /// The configuration for a new connection; a file that has changed is read first.
    pub(crate) fn tls(
        &self,
        alpn: &[&[u8]],
    ) -> anyhow::Result<Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>> {
        let config = Arc::new(meridian_pki::link::server_config(self.0.handle.clone(), None, alpn)?);
        let this = self.clone();
        Ok(Arc::new(move || {
            if let Err(error) = this.reload_files() {
                // Half of a pair may be new: the next connection looks again.
                tracing::warn!(error = format!("{error:#}"), "the new server certificate is not used");
            }
            config.clone()
        }))
    }

    /// Renews a certificate of our own CA from half of its life, until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        if let Source::Files(_) = self.0.source {
            return;
        }
        loop {
            let due = self.0.handle.latest().map(|it| {
                let at = renewal_time(it.not_before(), it.not_after(), Renewal::Half, rand::random());
                Duration::try_from(at - OffsetDateTime::now_utc()).unwrap_or(RETRY)
            });
            if shutdown.run_until_cancelled(tokio::time::sleep(due.unwrap_or(RETRY))).await.is_none() {
                return;
            }
            if let Err(error) = self.renew() {
                tracing::warn!(error = format!("{error:#}"), "the server certificate could not be renewed");
            }
        }
    }

    fn renew(&self) -> anyhow::Result<()> {
        match &self.0.source {
            Source::Files(_) => self.reload_files(),
            Source::Ca { ca, hosts } => {
                let key = PrivateKey::generate()?;
                let issued = ca.sign_server(&key, hosts, OffsetDateTime::now_utc())?;
                self.0.handle.set(Identity::new(issued.chain, &key)?);
                Ok(())
            }
        }
    }

    fn reload_files(&self) -> anyhow::Result<()> {
        if let Source::Files(files) = &self.0.source {
            files.refresh()?;
        }
        Ok(())
    }
}

async fn load_ca(store: &Store, zone: &str) -> anyhow::Result<ServerCa> {
    let made = ServerCa::generate(&format!("meridian zone {zone} control plane"), OffsetDateTime::now_utc())?;
    let made = StoredCa {
        certificate: made.authority().certificate_pem(),
        key: made.authority().key().to_pem().to_string(),
    };
    let value = store.private_ensure(BUCKET, NAME, serde_json::to_vec(&made)?).await?;
    let StoredCa { certificate, key } = serde_json::from_slice(&value)?;
    Ok(ServerCa::from_pem(&certificate, &key)?)
}

/// Names and addresses under which proxies may call: the configured ones, the host's name, the listeners' addresses, and
/// loopback.
fn hosts(settings: &Settings) -> Vec<String> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim().to_ascii_lowercase();
    let named = meridian_core::names::is_subdomain(&hostname).then_some(hostname);
    let listeners =
        [settings.api_https.ip(), settings.proxy_listen.ip()].into_iter().filter(|ip| !ip.is_unspecified());
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let addresses = listeners.chain(loopback).map(|ip| ip.to_string());
    let names = named.into_iter().chain(["localhost".to_owned()]).chain(addresses);
    let mut seen = BTreeSet::new();
    settings.tls_san.iter().cloned().chain(names).filter(|host| seen.insert(host.clone())).collect()
}
