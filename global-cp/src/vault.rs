//! What global keeps for itself, sealed by the store: keys that sign, and who was given what. Its places and forms are here
//! and nowhere else.

use anyhow::Context;
use meridian_pki::{Authority, RootCa, ServerCa, SpkiHash, ZoneCa};
use meridian_store::{Change, Store};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// PEM of private keys that sign tokens: `user/<kid>`, `zone/<kid>`, `dataplane/<mesh>/<kid>`.
pub(crate) const SIGNING_KEYS: &str = "signing-key";
/// The CAs of zones' client certificates and of this control plane's own: `zone`, `server`.
pub(crate) const AUTHORITIES: &str = "authority";
/// Roots of meshes: `<mesh>/<hash of its key>`.
pub(crate) const ROOTS: &str = "mesh-root";
/// Intermediates that zones hold: `<mesh>/<zone>/<hash of its key>`.
pub(crate) const INTERMEDIATES: &str = "intermediate";
/// Client certificates that zones hold: `<zone>`.
pub(crate) const CLIENTS: &str = "zone-client";
/// Tokens made before that moment do not enrol the zone: `<zone>`.
pub(crate) const CUTOFFS: &str = "zone-cutoff";
/// The process whose writes count: `<zone>`.
pub(crate) const FENCES: &str = "zone-fence";
/// How far a zone was followed: `<zone>`.
pub(crate) const CURSORS: &str = "zone-cursor";
/// What is done once in the life of a store.
pub(crate) const ONCE: &str = "once";

/// A CA at rest.
#[derive(Serialize, Deserialize)]
struct Kept {
    certificate: String,
    key: String,
}

impl Kept {
    fn of(authority: &Authority) -> Self {
        Self { certificate: authority.certificate_pem(), key: authority.key().to_pem().to_string() }
    }
}

/// An intermediate that a zone was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Intermediate {
    /// Seconds since 1970.
    pub(crate) not_after: i64,
    /// Nanoseconds since 1970: of several, the newest is what the zone uses.
    pub(crate) issued: i64,
    /// Hash of the root's key.
    pub(crate) root: String,
}

/// Client certificates of one zone that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clients(pub(crate) Vec<Client>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Client {
    /// Hash of its key.
    pub(crate) key: String,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
    /// The token that it goes back to; revoking that revokes this.
    pub(crate) token: String,
}

/// Which tokens do not enrol a zone (any more).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cutoff {
    /// Those made before that second (since 1970)...
    pub(crate) before: i64,
    /// ...and those that had been used: one of the same second must not pass.
    pub(crate) tokens: Vec<String>,
}

impl Cutoff {
    pub(crate) fn refuses(&self, token: &str, made: OffsetDateTime) -> bool {
        made.unix_timestamp() < self.before || self.tokens.iter().any(|used| used == token)
    }
}

impl Clients {
    /// Those that have not expired.
    pub(crate) fn live(&self, now: OffsetDateTime) -> impl Iterator<Item = &Client> {
        self.0.iter().filter(move |client| client.not_after > now.unix_timestamp())
    }

    pub(crate) fn find(&self, key: &SpkiHash, now: OffsetDateTime) -> Option<&Client> {
        let key = key.to_string();
        self.live(now).find(|client| client.key == key)
    }

    /// With one more; the expired ones go, and so does an older entry of the same key.
    pub(crate) fn with(&self, client: Client, now: OffsetDateTime) -> Self {
        let mut all: Vec<Client> = self.live(now).filter(|other| other.key != client.key).cloned().collect();
        all.push(client);
        Self(all)
    }
}

/// Reads a JSON value.
pub(crate) async fn read<T: serde::de::DeserializeOwned>(
    store: &Store,
    bucket: &str,
    key: &str,
) -> anyhow::Result<Option<T>> {
    let Some(bytes) = store.private_get(bucket, key).await? else { return Ok(None) };
    let value =
        serde_json::from_slice(&bytes).with_context(|| format!("private value {bucket}/{key} is damaged"))?;
    Ok(Some(value))
}

/// A write of a JSON value.
pub(crate) fn put<T: Serialize>(bucket: &str, key: &str, value: &T) -> Change {
    Change::PutPrivate { bucket: bucket.to_owned(), key: key.to_owned(), value: encode(value) }
}

pub(crate) fn delete(bucket: &str, key: &str) -> Change {
    Change::DeletePrivate { bucket: bucket.to_owned(), key: key.to_owned() }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own types, without maps of other keys than strings: can't fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The CA of this control plane's server certificates: made once, the same for all replicas.
pub(crate) async fn server_ca(store: &Store) -> anyhow::Result<ServerCa> {
    let fresh = || ServerCa::generate("meridian global control plane", OffsetDateTime::now_utc());
    let kept = authority(store, "server", || Ok(Kept::of(fresh()?.authority()))).await?;
    Ok(ServerCa::from_pem(&kept.certificate, &kept.key)?)
}

/// The CA of zones' client certificates.
pub(crate) async fn zone_ca(store: &Store) -> anyhow::Result<ZoneCa> {
    let fresh = || ZoneCa::generate(OffsetDateTime::now_utc());
    let kept = authority(store, "zone", || Ok(Kept::of(fresh()?.authority()))).await?;
    Ok(ZoneCa::from_pem(&kept.certificate, &kept.key)?)
}

async fn authority(
    store: &Store,
    name: &str,
    fresh: impl FnOnce() -> anyhow::Result<Kept>,
) -> anyhow::Result<Kept> {
    if let Some(kept) = read(store, AUTHORITIES, name).await? {
        return Ok(kept);
    }
    let bytes = store.private_ensure(AUTHORITIES, name, encode(&fresh()?)).await?;
    serde_json::from_slice(&bytes).with_context(|| format!("the {name} CA in the store is damaged"))
}

/// The name of a root: the hash of its key.
pub(crate) fn root_name(root: &RootCa) -> String {
    root.authority().key().spki_hash().to_string()
}

pub(crate) fn put_root(root: &RootCa) -> Change {
    put(ROOTS, &root_key(root.mesh(), &root_name(root)), &Kept::of(root.authority()))
}

pub(crate) fn root_key(mesh: &str, name: &str) -> String {
    format!("{mesh}/{name}")
}

/// A root with its key.
pub(crate) async fn root(store: &Store, mesh: &str, name: &str) -> anyhow::Result<Option<RootCa>> {
    let Some(kept) = read::<Kept>(store, ROOTS, &root_key(mesh, name)).await? else { return Ok(None) };
    Ok(Some(RootCa::from_pem(mesh, &kept.certificate, &kept.key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(key: &str, not_after: i64) -> Client {
        Client { key: key.into(), not_after, token: "t".into() }
    }

    #[test]
    fn tokens_from_before_the_cutoff_are_refused_and_newer_ones_are_not() {
        let at = |second| OffsetDateTime::from_unix_timestamp(second).unwrap();
        let cutoff = Cutoff { before: 100, tokens: vec!["used".into()] };
        assert!(cutoff.refuses("any", at(99)));
        assert!(cutoff.refuses("used", at(100)));
        assert!(!cutoff.refuses("new", at(100)));
        assert!(!Cutoff::default().refuses("any", at(0)));
    }

    #[test]
    fn expired_certificates_are_not_believed_and_forgotten() {
        let now = OffsetDateTime::from_unix_timestamp(100).unwrap();
        let clients = Clients(vec![client("old", 100), client("new", 101)]);
        assert_eq!(clients.live(now).map(|c| c.key.as_str()).collect::<Vec<_>>(), ["new"]);
        let renewed = clients.with(client("new", 200), now);
        assert_eq!(renewed, Clients(vec![client("new", 200)]));
    }
}
