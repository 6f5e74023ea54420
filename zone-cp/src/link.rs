//! The link to the global control plane: enrolment, what comes down, what goes up.
//!
//! The zone proves itself once by its token and from then on by a client certificate, whose key it made. Both directions
//! run by themselves; when global is away the zone goes on from its store.

use crate::config::{GlobalSettings, GlobalTrust};
use crate::incoming::GlobalSink;
use crate::intermediates::Signer;
use crate::outgoing::Outgoing;
use anyhow::Context;
use meridian_delta::client::{Address, Authenticated, ConnectError, Connector};
use meridian_delta::{Control, Node, PART, Peer, Publisher, Subscriber, Version};
use meridian_pki::link::{H2, ServerTrust, client_config};
use meridian_pki::{
    Identity, IdentityHandle, PrivateKey, Renewal, certificates_from_pem, certificates_to_pem, renewal_time,
};
use meridian_proto::identity::zone_identity_client::ZoneIdentityClient;
use meridian_proto::identity::{Certificate, EnrollRequest, SignIntermediateRequest};
use meridian_store::{Author, Change, Store};
use rustls_pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// Private rows: the key and certificate of the link, and the position of what came down.
pub(crate) const BUCKET: &str = "link";
const KEY: &str = "key";
const CERTIFICATE: &str = "certificate";
/// Digest of the token that the certificate goes back to.
const TOKEN: &str = "token";

/// Before another try at the link to global, doubled...
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// ...up to this.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// The link. Clones are the same.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    zone: String,
    take_over: bool,
    store: Store,
    node: Node,
    key: PrivateKey,
    handle: IdentityHandle,
    /// The stored certificate, while it stands back behind a new token.
    spare: Mutex<Option<Identity>>,
    token_file: Option<PathBuf>,
    connector: Connector,
    /// Whether the zone holds a certificate that is valid.
    enrolled: watch::Sender<bool>,
    /// What comes down, what goes up.
    pull: Peer,
    push: Peer,
    control: Control,
}

impl Link {
    /// Reads what the store has of an earlier enrolment.
    pub(crate) async fn new(
        settings: &GlobalSettings,
        zone: &str,
        store: Store,
        mut node: Node,
    ) -> anyhow::Result<Self> {
        node.take_over = settings.take_over;
        // Made before the first request: a lost answer must not leave a certificate of a key that nobody has.
        let fresh = PrivateKey::generate()?.to_pem().to_string().into_bytes();
        let key = store.private_ensure(BUCKET, KEY, fresh).await?;
        let key = PrivateKey::from_pem(std::str::from_utf8(&key)?)?;
        let handle = IdentityHandle::new();
        let mut spare = None;
        if let Some(chain) = store.private_get(BUCKET, CERTIFICATE).await? {
            let chain = certificates_from_pem(std::str::from_utf8(&chain)?)?;
            match Identity::new(chain, &key) {
                // A new token says: enrol anew (the zone was revoked, or global is another one).
                Ok(identity) if new_token(settings, &store).await? => spare = Some(identity),
                Ok(identity) => handle.set(identity),
                Err(error) => tracing::warn!(%error, "the stored client certificate is not used"),
            }
        }
        let connector = connector(settings, handle.clone())?;
        let enrolled = watch::Sender::new(handle.current(OffsetDateTime::now_utc()).is_some());
        Ok(Self(Arc::new(Inner {
            zone: zone.to_owned(),
            take_over: settings.take_over,
            store,
            node,
            key,
            handle,
            spare: Mutex::new(spare),
            token_file: settings.zone_token_file.clone(),
            connector,
            enrolled,
            pull: Peer::new(),
            push: Peer::new(),
            control: Control::new(),
        })))
    }

    pub(crate) fn pull_peer(&self) -> &Peer {
        &self.0.pull
    }

    pub(crate) fn push_peer(&self) -> &Peer {
        &self.0.push
    }

    /// Takes the global control plane that is refused now, and applies the deletions that wait. Err: none was refused.
    pub(crate) fn accept_global(&self) -> Option<String> {
        let offered = self.0.pull.state().offered?;
        self.0.control.accept(offered.store);
        self.0.control.confirm();
        Some(offered.to_string())
    }

    /// Runs all parts until `shutdown`.
    pub(crate) async fn run(self, outgoing: Outgoing, shutdown: CancellationToken) {
        tokio::join!(
            self.keep_enrolled(&shutdown),
            self.keep_pulling(&shutdown),
            self.keep_pushing(&outgoing, &shutdown),
        );
    }

    /// Holds a valid client certificate: made with the token, renewed from half of its life with itself.
    async fn keep_enrolled(&self, shutdown: &CancellationToken) {
        let mut retry = RETRY_FIRST;
        loop {
            let now = OffsetDateTime::now_utc();
            let due = self.0.handle.current(now).map(|identity| {
                renewal_time(identity.not_before(), identity.not_after(), Renewal::Half, rand::random())
            });
            let wait = match due.filter(|at| *at > now) {
                Some(at) => Duration::try_from(at - now).unwrap_or_default(),
                None => match self.enroll().await {
                    Ok(()) => {
                        retry = RETRY_FIRST;
                        self.0.enrolled.send_replace(true);
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "not enrolled with the global control plane; again soon"
                        );
                        retry = (retry * 2).min(RETRY_LAST);
                        retry.mul_f64(rand::random_range(0.5..1.0))
                    }
                },
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn enroll(&self) -> anyhow::Result<()> {
        let by_token = self.0.handle.current(OffsetDateTime::now_utc()).is_none();
        let channel = self.0.connector.channel().await?;
        let request = EnrollRequest {
            zone: self.0.zone.clone(),
            csr: self.0.key.request()?,
            take_over: self.0.take_over,
        };
        let answer = match ZoneIdentityClient::new(channel).enroll(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let denied = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
                let Some(spare) = denied.then(|| self.spare().take()).flatten() else {
                    return Err(told(status));
                };
                tracing::warn!(
                    why = status.message(),
                    "the new token is not taken: the old certificate goes on"
                );
                self.0.handle.set(spare);
                self.0.connector.renew().await;
                return Ok(());
            }
        };
        let chain: Vec<CertificateDer<'static>> =
            answer.chain.into_iter().map(CertificateDer::from).collect();
        let value = certificates_to_pem(chain.iter()).into_bytes();
        let identity = Identity::new(chain, &self.0.key)?;
        let not_after = identity.not_after();
        let put =
            |key: &str, value| Change::PutPrivate { bucket: BUCKET.to_owned(), key: key.to_owned(), value };
        let mut changes = vec![put(CERTIFICATE, value)];
        let token = self.0.token_file.as_deref().filter(|_| by_token).and_then(read_token);
        changes.extend(token.map(|token| put(TOKEN, digest(&token))));
        self.0.store.write(&Author::system(), changes).await?;
        self.spare().take();
        self.0.handle.set(identity);
        // Connections that were made without it, or with the old one, are not used for new calls.
        self.0.connector.renew().await;
        tracing::info!(%not_after, "enrolled with the global control plane");
        Ok(())
    }

    fn spare(&self) -> MutexGuard<'_, Option<Identity>> {
        self.0.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to global, for a service beside the streams.
    pub(crate) async fn service(&self) -> Result<Authenticated, ConnectError> {
        self.0.connector.channel().await
    }

    /// The process of the zone's streams.
    pub(crate) fn instance(&self) -> &str {
        &self.0.node.instance
    }

    pub(crate) async fn until_enrolled(&self, shutdown: &CancellationToken) -> bool {
        let mut enrolled = self.0.enrolled.subscribe();
        let waited = shutdown.run_until_cancelled(enrolled.wait_for(|enrolled| *enrolled)).await;
        waited.is_some_and(|waited| waited.is_ok())
    }

    async fn keep_pulling(&self, shutdown: &CancellationToken) {
        if !self.until_enrolled(shutdown).await {
            return;
        }
        let mut subscriber = Subscriber {
            sink: GlobalSink::new(self.0.store.clone(), &self.0.zone),
            types: Vec::new(),
            node: self.0.node.clone(),
            peer: self.0.pull.clone(),
            control: self.0.control.clone(),
        };
        self.0.connector.pull(&mut subscriber, shutdown.clone()).await;
    }

    /// One view after another: it is another one only after the store's history was lost.
    async fn keep_pushing(&self, outgoing: &Outgoing, shutdown: &CancellationToken) {
        if !self.until_enrolled(shutdown).await {
            return;
        }
        let mut views = outgoing.watch();
        while !shutdown.is_cancelled() {
            views.mark_unchanged();
            let Some(view) = outgoing.view() else {
                if shutdown.run_until_cancelled(views.changed()).await.is_none() {
                    return;
                }
                continue;
            };
            let publisher = Publisher {
                view,
                types: Vec::new(),
                part: PART,
                node: self.0.node.clone(),
                peer: self.0.push.clone(),
            };
            tokio::select! {
                () = self.0.connector.push(&publisher, shutdown.clone()) => {}
                // The stream is dropped without a goodbye, and comes again with the new view.
                _ = views.changed() => {}
            }
        }
    }
}

impl Signer for Link {
    async fn sign(&self, mesh: &str, csr: Vec<u8>) -> anyhow::Result<Certificate> {
        anyhow::ensure!(*self.0.enrolled.borrow(), "the zone is not enrolled yet");
        let channel = self.0.connector.channel().await?;
        let request = SignIntermediateRequest { mesh: mesh.to_owned(), csr };
        Ok(ZoneIdentityClient::new(channel).sign_intermediate(request).await.map_err(told)?.into_inner())
    }
}

fn told(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("global answered {}: {}", status.code(), status.message())
}

fn connector(settings: &GlobalSettings, handle: IdentityHandle) -> anyhow::Result<Connector> {
    let trust = match &settings.trust {
        GlobalTrust::CaFile(path) => {
            let pem = std::fs::read_to_string(path)
                .with_context(|| format!("could not read {}", path.display()))?;
            ServerTrust::from_pem(&pem).with_context(|| format!("could not use {}", path.display()))?
        }
        GlobalTrust::Fingerprint(hex) => ServerTrust::Fingerprint(hex.parse()?),
    };
    let tls = Arc::new(client_config(trust, Some(handle.clone()), &[H2])?);
    let host =
        if settings.host.contains(':') { format!("[{}]", settings.host) } else { settings.host.clone() };
    let address: Address = format!("https://{host}:{}", settings.port).parse()?;
    let token_file = settings.zone_token_file.clone();
    let token = move || {
        // The certificate says who this is as soon as there is one.
        let needed = handle.current(OffsetDateTime::now_utc()).is_none();
        token_file.as_deref().filter(|_| needed).and_then(read_token)
    };
    Ok(Connector::new(address, Arc::new(move || tls.clone()), Arc::new(token)))
}

/// Whether the token is another than the one that the stored certificate goes back to.
async fn new_token(settings: &GlobalSettings, store: &Store) -> anyhow::Result<bool> {
    let Some(token) = settings.zone_token_file.as_deref().and_then(read_token) else { return Ok(false) };
    Ok(store.private_get(BUCKET, TOKEN).await? != Some(digest(&token)))
}

/// A token is a signature: its digest tells nothing.
fn digest(token: &str) -> Vec<u8> {
    Version::of(token.as_bytes()).0.to_vec()
}

/// Read at each use, so that a new token needs no restart.
fn read_token(path: &Path) -> Option<String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "the zone token can't be read"))
        .ok()
}
