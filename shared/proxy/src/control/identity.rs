//! Certificates: one for each mesh that the configuration names, renewed from half of its life.
//!
//! The key is made here and never leaves; of the request only the key counts. A new key each time.

use super::Control;
use meridian_pki::{
    Identity, PkiError, PrivateKey, Renewal, SpkiHash, TrustError, Usage, certificates_from_pem, renewal_time,
};
use meridian_proto::identity::{SignLeafRequest, proxy_identity_client::ProxyIdentityClient};
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;

/// Before another try for a certificate; doubled at each failure...
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// ...up to this.
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How long the control plane may take to sign.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How it goes, mesh by mesh.
#[derive(Default)]
pub(super) struct Progress(Mutex<BTreeMap<String, Mesh>>);

#[derive(Clone, Debug)]
struct Mesh {
    renew_at: OffsetDateTime,
    failures: u32,
    error: Option<String>,
    /// The root that signed when the present certificate was asked for.
    asked_of: Option<SpkiHash>,
}

#[derive(Debug, thiserror::Error)]
enum IdentityError {
    #[error("no connection to the control plane")]
    Connect(#[from] meridian_delta::client::ConnectError),
    #[error("the control plane did not sign: {}", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    #[error("the control plane did not answer")]
    Timeout,
    #[error("the certificate can't be used")]
    Pki(#[from] PkiError),
    #[error("the certificate is not believed by the mesh's own bundle")]
    Untrusted(#[from] TrustError),
    #[error("the certificate can't be kept")]
    Disk(#[from] io::Error),
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Mesh>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Meshes whose last attempt failed, with the reason.
    pub(super) fn errors(&self) -> BTreeMap<String, String> {
        self.lock().iter().filter_map(|(mesh, state)| Some((mesh.clone(), state.error.clone()?))).collect()
    }
}

/// Gets and renews certificates until dropped.
pub(super) async fn keep_fresh(control: Arc<Control>) {
    let mut changes = control.engine.shared().snapshots.subscribe();
    let mut streams = control.stream.pulled.watch();
    loop {
        let wanted = control.engine.identities();
        forget(&control, &wanted);
        let mut next = None;
        for mesh in wanted {
            let at = control.due(&mesh).await;
            next = Some(next.map_or(at, |next: OffsetDateTime| next.min(at)));
        }
        let wait = async {
            match next {
                Some(at) => {
                    let left = at - OffsetDateTime::now_utc();
                    tokio::time::sleep(left.try_into().unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        let reconnected = async {
            let was = streams.borrow_and_update().connected;
            let _ = streams.wait_for(|state| state.connected && !was).await;
        };
        tokio::select! {
            () = wait => {}
            changed = changes.changed() => if changed.is_err() { return },
            () = reconnected => control.hurry(),
        }
    }
}

fn forget(control: &Control, wanted: &[String]) {
    let tls = &control.engine.shared().tls;
    for mesh in tls.identities.meshes().into_iter().filter(|mesh| !wanted.contains(mesh)) {
        // Before the first configuration nothing is known to be unwanted.
        if control.engine.shared().snapshots.load().proxy.is_some() {
            tls.identities.remove(&mesh);
            control.disk.remove_identity(&mesh);
        }
    }
    control.identity.lock().retain(|mesh, _| wanted.contains(mesh));
}

impl Control {
    /// Renews a mesh's certificate if it is time; says when it is time again.
    async fn due(&self, mesh: &str) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        let known = self.identity.lock().get(mesh).cloned();
        let present = self.engine.shared().tls.identities.of(mesh).current(now);
        let signing = self.signing_root(mesh);
        let mut state = known.unwrap_or_else(|| Mesh {
            renew_at: present.as_ref().map_or(now, |identity| renewal(identity)),
            failures: 0,
            error: None,
            asked_of: None,
        });
        let root = present.as_ref().and_then(|identity| self.root_of(mesh, identity, now));
        // Nobody believes it: revoked, or of a root that went while this proxy was away.
        let unbelieved = signing.is_some() && present.is_some() && root.is_none();
        // Once a root: a control plane that can't follow yet is not asked over and over.
        let of_another_root = root.is_some() && root != signing && signing != state.asked_of;
        if state.error.is_none() && (unbelieved || of_another_root) {
            state.renew_at = now;
        }
        if state.renew_at > now {
            self.identity.lock().insert(mesh.to_owned(), state.clone());
            return state.renew_at;
        }
        let next = match self.renew(mesh).await {
            Ok(renew_at) => Mesh { renew_at, failures: 0, error: None, asked_of: signing },
            Err(error) => {
                let failures = state.failures.saturating_add(1);
                let longest = RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_LONGEST);
                let wait = longest.mul_f64(rand::random_range(0.5..1.0));
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(mesh, %error, source, again_in = ?wait, "no certificate");
                let renew_at = OffsetDateTime::now_utc() + wait;
                Mesh { renew_at, failures, error: Some(error.to_string()), asked_of: state.asked_of }
            }
        };
        self.identity.lock().insert(mesh.to_owned(), next.clone());
        next.renew_at
    }

    /// The root that signs now is the bundle's first. A certificate of another one is replaced, so that the other may go.
    fn signing_root(&self, mesh: &str) -> Option<SpkiHash> {
        let bundle = self.engine.shared().tls.bundles.get(mesh)?;
        let roots = certificates_from_pem(bundle.bundle().roots.first()?).ok()?;
        SpkiHash::of_certificate(roots.first()?).ok()
    }

    fn root_of(&self, mesh: &str, identity: &Identity, now: OffsetDateTime) -> Option<SpkiHash> {
        let bundles = &self.engine.shared().tls.bundles;
        bundles.verify(mesh, identity.chain(), Usage::Server, now).ok().map(|peer| peer.root)
    }

    /// The control plane is back: what waits for it need not wait longer.
    fn hurry(&self) {
        let now = OffsetDateTime::now_utc();
        for state in self.identity.lock().values_mut().filter(|state| state.error.is_some()) {
            state.renew_at = now;
        }
    }

    async fn renew(&self, mesh: &str) -> Result<OffsetDateTime, IdentityError> {
        let key = PrivateKey::generate()?;
        let request = SignLeafRequest { mesh: mesh.to_owned(), csr: key.request()? };
        let asking = async {
            let channel = self.settings.link.connector.channel().await?;
            let answer = ProxyIdentityClient::new(channel).sign_leaf(request).await.map_err(Box::new)?;
            Ok::<_, IdentityError>(answer.into_inner())
        };
        let answer =
            tokio::time::timeout(REQUEST_TIMEOUT, asking).await.map_err(|_| IdentityError::Timeout)??;
        let chain: Vec<_> = answer.chain.into_iter().map(CertificateDer::from).collect();
        let identity = Identity::new(chain.clone(), &key)?;
        let tls = &self.engine.shared().tls;
        if tls.bundles.get(mesh).is_some() {
            tls.bundles.verify(mesh, &chain, Usage::Server, OffsetDateTime::now_utc())?;
        }
        self.disk.save_identity(mesh, &chain, &key)?;
        let renew_at = renewal(&identity);
        tracing::info!(mesh, until = %identity.not_after(), "certificate");
        tls.set_identity(mesh, identity);
        self.engine.republish();
        Ok(renew_at)
    }
}

fn renewal(identity: &Identity) -> OffsetDateTime {
    renewal_time(identity.not_before(), identity.not_after(), Renewal::Half, rand::random())
}
