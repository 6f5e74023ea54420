//! The zone's own CAs, one a mesh: keys made here, signed by the global control plane, sealed in the store.
//!
//! Each is renewed from a third of its life, as soon as the mesh's bundle begins with another root than the one that it
//! chains to (that root is the one that signs now), and once it is revoked, for when the zone has enrolled again. Without
//! global the present ones go on.

use crate::engine::{Command, Seen};
use crate::picture::{MeshPicture, Picture};
use arc_swap::ArcSwap;
use meridian_pki::{
    Intermediate, Issued, LeafSpec, PkiError, PrivateKey, Renewal, SpkiHash, TrustStore, Usage,
    certificates_to_pem, renewal_time,
};
use meridian_proto::identity::Certificate;
use meridian_proxy_config::Bundle;
use meridian_store::{Author, Change, ReadError, Store};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Private rows, by mesh.
const BUCKET: &str = "intermediates";
/// After a failure; doubled up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// ...which is this.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// The present intermediates. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Intermediates(Arc<ArcSwap<BTreeMap<String, Arc<Held>>>>);

struct Held {
    intermediate: Intermediate,
    /// The root that it chains to.
    root: SpkiHash,
    renew_at: OffsetDateTime,
}

/// How one is kept.
#[derive(Serialize, Deserialize)]
struct Stored {
    certificate: String,
    key: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    #[error("the zone has no intermediate of mesh {0} yet: the global control plane must sign it first")]
    None(String),
    #[error("the zone's intermediate of mesh {mesh} can't sign")]
    Pki { mesh: String, source: PkiError },
}

/// Whoever signs the zone's intermediates.
pub(crate) trait Signer: Send + Sync + 'static {
    fn sign(&self, mesh: &str, csr: Vec<u8>) -> impl Future<Output = anyhow::Result<Certificate>> + Send;
}

impl Intermediates {
    /// Certifies a workload's key.
    pub(crate) fn sign(
        &self,
        mesh: &str,
        csr: &[u8],
        leaf: &LeafSpec,
        now: OffsetDateTime,
    ) -> Result<Issued, SignError> {
        let all = self.0.load();
        let held = all.get(mesh).ok_or_else(|| SignError::None(mesh.to_owned()))?;
        let signed = held.intermediate.sign_leaf(csr, leaf, now);
        signed.map_err(|source| SignError::Pki { mesh: mesh.to_owned(), source })
    }

    /// Keeps every mesh's intermediate valid and of the root that signs, until `shutdown`.
    pub(crate) async fn run<S: Signer>(
        self,
        store: Store,
        seen: Seen,
        commands: mpsc::Sender<Command>,
        signer: S,
        shutdown: CancellationToken,
    ) {
        let mut steps = seen.steps.subscribe();
        let mut retry = RETRY_FIRST;
        loop {
            let picture = seen.picture.load_full();
            let mut failed = false;
            for mesh in self.due(&picture, OffsetDateTime::now_utc()) {
                match self.renew(&store, &picture, &mesh, &signer).await {
                    Ok(root) => {
                        let command = Command::Issuer { mesh, root: Some(root.to_string()) };
                        if commands.send(command).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(
                            mesh,
                            error = format!("{error:#}"),
                            "no (new) intermediate; it is tried again"
                        );
                        failed = true;
                    }
                }
            }
            retry = if failed { (retry * 2).min(RETRY_LAST) } else { RETRY_FIRST };
            let wait = if failed { retry } else { self.next_renewal(OffsetDateTime::now_utc()) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                // A new bundle or mesh does not wait for the back-off of another.
                changed = steps.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Reads what the store has, so that the zone issues without global. Returns each mesh's root.
    pub(crate) async fn load(
        &self,
        store: &Store,
        picture: &Picture,
    ) -> Result<BTreeMap<String, String>, ReadError> {
        let mut roots = BTreeMap::new();
        for (mesh, value) in store.private_list(BUCKET).await? {
            let Ok(stored) = serde_json::from_slice::<Stored>(&value) else { continue };
            let Some(bundle) = picture.mesh(&mesh).and_then(|it| bundle(&mesh, it)) else { continue };
            let held = Intermediate::from_pem(&mesh, &stored.certificate, &stored.key)
                .map_err(anyhow::Error::from)
                .and_then(|intermediate| Held::new(intermediate, &bundle));
            match held {
                Ok(held) => {
                    roots.insert(mesh.clone(), held.root.to_string());
                    self.set(&mesh, held);
                }
                Err(error) => {
                    tracing::warn!(mesh, error = format!("{error:#}"), "the stored intermediate is not used")
                }
            }
        }
        Ok(roots)
    }

    /// Meshes that need a (new) intermediate.
    fn due(&self, picture: &Picture, now: OffsetDateTime) -> Vec<String> {
        let held = self.0.load();
        let wants = |(name, mesh): (&String, &Arc<MeshPicture>)| {
            let signing = signing_root(mesh.as_ref())?;
            let held = held.get(name);
            let revoked = |key: &SpkiHash| {
                let key = key.to_string();
                mesh.bundle.as_ref().is_some_and(|bundle| bundle.spec.revoked.contains(&key))
            };
            let fine = held.is_some_and(|it| {
                it.root == signing && now < it.renew_at && !revoked(&it.intermediate.spki_hash())
            });
            (mesh.mtls() && !fine).then(|| name.clone())
        };
        picture.meshes.iter().filter_map(wants).collect()
    }

    fn next_renewal(&self, now: OffsetDateTime) -> Duration {
        let earliest = self.0.load().values().map(|held| held.renew_at).min();
        let wait = earliest.map(|at| (at - now).max(time::Duration::ZERO));
        wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(Duration::from_hours(24))
    }

    async fn renew<S: Signer>(
        &self,
        store: &Store,
        picture: &Picture,
        mesh: &str,
        signer: &S,
    ) -> anyhow::Result<SpkiHash> {
        let key = PrivateKey::generate()?;
        let answer = signer.sign(mesh, key.request()?).await?;
        let certificate = answer.chain.into_iter().next();
        let certificate =
            CertificateDer::from(certificate.ok_or_else(|| anyhow::anyhow!("an empty answer"))?);
        let stored =
            Stored { certificate: certificates_to_pem([&certificate]), key: key.to_pem().to_string() };
        // The bundle on its way down may be newer than ours: whom the answer names is believed too, it came over the
        // same link as the bundle does.
        let mut bundle =
            picture.mesh(mesh).and_then(|it| bundle(mesh, it)).unwrap_or_else(|| empty_bundle(mesh));
        bundle
            .roots
            .extend(answer.roots.into_iter().map(|root| certificates_to_pem([&CertificateDer::from(root)])));
        let held = Held::new(Intermediate::new(mesh, certificate, key)?, &bundle)?;
        anyhow::ensure!(
            held.intermediate.zone() == picture.zone,
            "it is of zone {}",
            held.intermediate.zone()
        );
        let value = serde_json::to_vec(&stored)?;
        let change = Change::PutPrivate { bucket: BUCKET.to_owned(), key: mesh.to_owned(), value };
        store.write(&Author::system(), vec![change]).await?;
        let (root, not_after) = (held.root, held.intermediate.not_after());
        tracing::info!(mesh, %root, %not_after, "the zone has a new intermediate");
        self.set(mesh, held);
        Ok(root)
    }

    fn set(&self, mesh: &str, held: Held) {
        let held = Arc::new(held);
        self.0.rcu(|all| {
            let mut next = BTreeMap::clone(all);
            next.insert(mesh.to_owned(), held.clone());
            next
        });
    }
}

impl Held {
    /// Proves it as a peer would: signs a leaf for a key that is thrown away, and verifies it by the bundle.
    fn new(intermediate: Intermediate, bundle: &Bundle) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let probe = crate::claims::egress_leaf();
        let issued = intermediate.sign_leaf(&PrivateKey::generate()?.request()?, &probe, now)?;
        let peer = TrustStore::compile(bundle)?.verify_peer(&issued.chain, Usage::Client, now)?;
        let (not_before, not_after) = (intermediate.not_before(), intermediate.not_after());
        let renew_at = renewal_time(not_before, not_after, Renewal::Third, rand::random());
        Ok(Self { intermediate, root: peer.root, renew_at })
    }
}

fn bundle(mesh: &str, picture: &MeshPicture) -> Option<Bundle> {
    let spec = &picture.bundle.as_ref()?.spec;
    Some(Bundle { mesh: mesh.to_owned(), roots: spec.roots.clone(), revoked: spec.revoked.clone() })
}

fn empty_bundle(mesh: &str) -> Bundle {
    Bundle { mesh: mesh.to_owned(), roots: Vec::new(), revoked: Vec::new() }
}

/// The first root of a bundle is the one that signs.
fn signing_root(mesh: &MeshPicture) -> Option<SpkiHash> {
    let pem = mesh.bundle.as_ref()?.spec.roots.first()?;
    root_hash(pem)
}

/// The hash of a root's key.
pub(crate) fn root_hash(pem: &str) -> Option<SpkiHash> {
    let certificates = meridian_pki::certificates_from_pem(pem).ok()?;
    certificates.first().and_then(|certificate| SpkiHash::of_certificate(certificate).ok())
}
