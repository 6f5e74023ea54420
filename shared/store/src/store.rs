use crate::failure::Failure;
use crate::feed::FeedSender;
use crate::plan::{Batch, storable, storable_key};
use crate::postgres::Postgres;
use crate::rows::{Meta, Row, StatusRecord};
use crate::seal;
use crate::sqlite::Sqlite;
use crate::status::{Errand, StatusDesk};
use crate::vault::Vault;
use crate::{
    Author, Change, Changes, ChangesError, Feed, HistoryEntry, KeyError, KeyId, KeyRing, OpenError, Page,
    Query, ReadError, Revision, Snapshot, StatusRow, StoreId, Stored, WriteError,
};
use meridian_core::{Key, Kind};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// `postgres://user:password@host/database?sslmode=verify-full&sslrootcert=…` or `sqlite:/path/to/file.db`.
    pub url: String,
    pub keys: KeyRing,
    /// The name of this process, shown beside the status that it writes.
    pub replica: String,
    /// How many revisions of history to keep, about. Subscribers that were away for longer are compared in full.
    pub keep_revisions: u64,
}

impl Options {
    /// With history of 100,000 revisions.
    pub fn new(url: impl Into<String>, keys: KeyRing, replica: impl Into<String>) -> Self {
        Self { url: url.into(), keys, replica: replica.into(), keep_revisions: 100_000 }
    }
}

/// How long opening waits for the feed to know the newest revision.
const FOLLOWING: Duration = Duration::from_secs(2);

/// A store; clones are the same one. Its tasks end, and its locks fall, when the last clone is gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    vault: Vault,
    feed: FeedSender,
    desk: Arc<StatusDesk>,
    /// One rotation at a time.
    rotation: tokio::sync::Mutex<()>,
    _end: DropGuard,
}

/// The two back ends: an enum, since a caller never brings a third.
#[derive(Clone)]
enum Database {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

/// The same call on either back end.
macro_rules! on {
    ($database:expr, $back_end:ident => $call:expr) => {
        match $database {
            Database::Postgres($back_end) => $call.await,
            Database::Sqlite($back_end) => $call.await,
        }
    };
}

impl Store {
    /// Opens, and creates or migrates what is there, under a lock.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let vault = Vault::new(options.keys.clone());
        let (database, meta) = match Location::of(&options.url)? {
            Location::Postgres => {
                let (postgres, meta) = Postgres::open(&options, &vault).await?;
                (Database::Postgres(postgres), meta)
            }
            Location::Sqlite(path) => {
                let (sqlite, meta) = Sqlite::open(path, &options, &vault).await?;
                (Database::Sqlite(sqlite), meta)
            }
        };
        let desk = Arc::new(StatusDesk::default());
        let end = CancellationToken::new();
        let known = matches!(database, Database::Sqlite(_));
        let feed = FeedSender::new(&meta, known);
        if let Database::Postgres(postgres) = &database {
            postgres.follow(options.replica, feed.clone(), Arc::clone(&desk), end.clone());
        }
        // Not a failure if it takes longer: the feed says that it does not know.
        let _ = tokio::time::timeout(FOLLOWING, feed.subscribe().wait_for(|feed| feed.known)).await;
        tokio::spawn(write_statuses(Arc::clone(&desk), database.clone(), end.clone()));
        let (rotation, end) = (tokio::sync::Mutex::default(), end.drop_guard());
        Ok(Self { inner: Arc::new(Inner { database, vault, feed, desk, rotation, _end: end }) })
    }

    pub fn store_id(&self) -> StoreId {
        self.inner.feed.current().store_id
    }

    /// The newest committed revision, asked of the database.
    pub async fn revision(&self) -> Result<Revision, ReadError> {
        Ok(self.meta().await?.revision)
    }

    /// To be called after a backup was restored: gives the store a new id, so that no subscriber takes its revisions for
    /// those that it has seen.
    pub async fn restored(&self) -> Result<StoreId, WriteError> {
        let store_id = StoreId::random();
        on!(&self.inner.database, database => database.rename(&self.inner.vault, store_id))?;
        self.inner.feed.renamed(store_id);
        Ok(store_id)
    }

    /// Makes a new key in the key file and seals everything anew in one transaction. Other replicas need the new file
    /// before they can read secrets again.
    pub async fn rotate_key(&self) -> Result<KeyId, RotateError> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move {
            let _turn = inner.rotation.lock().await;
            // The file has both keys until the store has the new one: whenever this ends, it can be opened.
            let ring = inner.vault.ring().with_new_key()?;
            let wrapped = seal::new_data_key(&ring)?;
            inner.vault.set_ring(ring.clone());
            let key = inner.vault.learn(&wrapped).map_err(|error| WriteError::Unavailable(error.into()))?;
            on!(&inner.database, database => database.reseal(&inner.vault, &key, &wrapped))?;
            let ring = ring.without_old_keys()?;
            inner.vault.set_ring(ring.clone());
            Ok(ring.id())
        })
        .await
    }

    /// All changes or none, in one transaction. Returns the revision at which they are in the store: the present one if
    /// they change nothing.
    ///
    /// Goes on to its end when the caller no longer waits.
    pub async fn write(&self, author: &Author, changes: Vec<Change>) -> Result<Revision, WriteError> {
        let batch = Batch::new(changes)?;
        if batch.is_empty() {
            return Ok(self.revision().await?);
        }
        // A name out of a token may hold anything.
        let author = Author::new(author.name.replace('\0', "\u{fffd}"), author.via.replace('\0', "\u{fffd}"));
        let inner = Arc::clone(&self.inner);
        to_its_end(async move {
            let revision = on!(&inner.database, database => database.write(&inner.vault, &author, &batch))?;
            inner.feed.committed(revision);
            Ok(revision)
        })
        .await
    }

    pub async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        if !storable_key(key) {
            return Ok(None);
        }
        let row = on!(&self.inner.database, database => database.get(key))?;
        let opened = self.open_all(row).await?;
        Ok(opened.into_iter().next())
    }

    /// Those of that name, whatever their zone of origin; in the order of zones, global's own first.
    pub async fn find(&self, kind: Kind, mesh: &str, name: &str) -> Result<Vec<Stored>, ReadError> {
        if !storable(mesh) || !storable(name) {
            return Ok(Vec::new());
        }
        let rows = on!(&self.inner.database, database => database.find(kind, mesh, name))?;
        self.open_all(rows).await
    }

    pub async fn list(&self, query: &Query) -> Result<Page, ReadError> {
        if !query.texts().all(storable) {
            return Ok(Page { items: Vec::new(), total: 0 });
        }
        let labels: serde_json::Map<String, serde_json::Value> =
            query.labels.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let labels = serde_json::Value::Object(labels).to_string();
        let (rows, total) = on!(&self.inner.database, database => database.list(query, &labels))?;
        let items = self.open_all(rows).await?;
        Ok(Page { items, total })
    }

    /// All resources at one revision. To follow on, read [`Store::changes_after`] that revision.
    pub async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let found = on!(&self.inner.database, database => database.snapshot())?;
        let Meta { store_id, revision, floor, .. } = found.meta;
        let resources = self.open_all(found.rows).await?;
        Ok(Snapshot { store_id, revision, floor, resources })
    }

    /// What happened above the cursor, oldest first, as much as fits in one answer.
    pub async fn changes_after(&self, cursor: Revision) -> Result<Changes, ChangesError> {
        let found = on!(&self.inner.database, database => database.changes_after(cursor))?;
        let (upto, newest, floor) = (found.upto, found.newest, found.floor);
        if cursor < floor || cursor > newest {
            return Err(ChangesError::TooOld { cursor, floor, newest });
        }
        let entries = self.open_all(found.rows).await?;
        Ok(Changes { entries, upto, newest, floor })
    }

    /// Moves with every commit of any replica. See [`Feed`].
    pub fn feed(&self) -> watch::Receiver<Feed> {
        self.inner.feed.subscribe()
    }

    /// The kept changes of one resource, newest first.
    pub async fn history(&self, key: &Key, limit: u32) -> Result<Vec<HistoryEntry>, ReadError> {
        if !storable_key(key) {
            return Ok(Vec::new());
        }
        let rows = on!(&self.inner.database, database => database.history(key, limit))?;
        self.open_all(rows).await
    }

    pub async fn private_get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let row = on!(&self.inner.database, database => database.private_get(bucket, key))?;
        Ok(self.open_all(row).await?.into_iter().next().map(|(_, value)| value))
    }

    /// All of a bucket, in the order of keys.
    pub async fn private_list(&self, bucket: &str) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        let rows = on!(&self.inner.database, database => database.private_list(bucket))?;
        self.open_all(rows).await
    }

    /// The value of that key; if there is none, `value` becomes it. All replicas get the same.
    pub async fn private_ensure(
        &self,
        bucket: &str,
        key: &str,
        value: Vec<u8>,
    ) -> Result<Vec<u8>, WriteError> {
        if let Some(found) = self.private_get(bucket, key).await? {
            return Ok(found);
        }
        let (to, place) = (value.clone(), (bucket.to_owned(), key.to_owned()));
        let change = Change::SwapPrivate { bucket: place.0, key: place.1, from: None, to };
        match self.write(&Author::system(), vec![change]).await {
            Err(WriteError::PrivateConflict { bucket, key }) => {
                let found = self.private_get(&bucket, &key).await?;
                found.ok_or(WriteError::PrivateConflict { bucket, key })
            }
            written => written.map(|_| value),
        }
    }

    /// Changes when reports of this replica have reached the database, where [`Store::statuses`] reads them:
    /// [`Store::put_status`] returns before.
    pub fn status_writes(&self) -> watch::Receiver<u64> {
        self.inner.desk.watch_writes()
    }

    /// Reports a zone's status. Returns at once: it is written in the background, at most once a second a zone, the latest
    /// value of each section only, and not if nothing changed.
    pub fn put_status(&self, zone: &str, section: &str, value: &serde_json::Value) {
        self.inner.desk.report(zone, section, value);
    }

    /// To be called when a zone comes to this replica, before its first report: the next value of each section is written
    /// even if it equals what this replica wrote before, since another may have written meanwhile.
    pub fn claim_status(&self, zone: &str) {
        self.inner.desk.taken_over(zone);
    }

    /// The status of all zones in that section, as last written by any replica.
    pub async fn statuses(&self, section: &str) -> Result<Vec<StatusRow>, ReadError> {
        let rows = on!(&self.inner.database, database => database.statuses(section))?;
        let row = |StatusRecord { zone, section, value, replica, replica_alive, at }| {
            let parsed = serde_json::from_slice(&value);
            let value =
                parsed.map_err(|_| ReadError::Damaged { what: format!("the status of zone {zone}") })?;
            Ok(StatusRow { zone, section, value, replica, replica_alive, at })
        };
        rows.into_iter().map(row).collect()
    }

    /// Forgets a zone's status, all sections.
    pub async fn delete_status(&self, zone: &str) -> Result<(), WriteError> {
        self.inner.desk.drop_zone(zone);
        Ok(on!(&self.inner.database, database => database.delete_status(zone))?)
    }

    async fn meta(&self) -> Result<Meta, Failure> {
        on!(&self.inner.database, database => database.meta())
    }

    /// Opens rows; if one is sealed with a data key that another replica has made, learns that key first.
    async fn open_all<R: Row>(&self, rows: impl IntoIterator<Item = R>) -> Result<Vec<R::Opened>, ReadError> {
        let vault = &self.inner.vault;
        let rows: Vec<R> = rows.into_iter().collect();
        if rows.iter().filter_map(R::sealed).any(|sealed| !vault.knows_key_of(sealed)) {
            let meta = self.meta().await?;
            vault.learn(&meta.data_key).map_err(|error| ReadError::Unavailable(error.into()))?;
        }
        Ok(rows.into_iter().filter_map(|row| row.open(vault).transpose()).collect::<Result<_, _>>()?)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a URL points to.
enum Location<'a> {
    Postgres,
    Sqlite(&'a Path),
}

/// Whether a URL names a store.
///
/// # Errors
/// What is wrong with it; not the URL itself, which may hold a password.
pub fn check_url(url: &str) -> Result<(), OpenError> {
    Location::of(url).map(drop)
}

impl<'a> Location<'a> {
    fn of(url: &'a str) -> Result<Self, OpenError> {
        let wrong = |reason: &str| Err(OpenError::Url { reason: reason.to_owned() });
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres);
        }
        match url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path)) {
            Some("" | ":memory:") => wrong("SQLite needs the path of a file"),
            Some(path) if path.contains('?') => wrong("SQLite takes no parameters"),
            Some(path) => Ok(Self::Sqlite(Path::new(path))),
            None => wrong("its scheme is none of postgres, postgresql and sqlite"),
        }
    }
}

/// A write is not given up halfway because nobody waits for it any more: what is committed must reach the feed.
async fn to_its_end<T, E>(task: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<WriteError> + Send + 'static,
{
    tokio::spawn(task).await.unwrap_or_else(|lost| Err(WriteError::Uncertain(lost.into()).into()))
}

async fn write_statuses(desk: Arc<StatusDesk>, database: Database, end: CancellationToken) {
    let write = |errand: Errand| async {
        match &database {
            Database::Postgres(postgres) => {
                postgres.put_status(&errand.zone, &errand.sections, errand.claim).await?
            }
            Database::Sqlite(sqlite) => sqlite.put_status(&errand.zone, &errand.sections).await?,
        }
        Ok(errand)
    };
    end.run_until_cancelled(desk.run(write)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_a_database_or_are_refused_without_being_repeated() {
        let sqlite = |url| match Location::of(url) {
            Ok(Location::Sqlite(path)) => path.to_str(),
            _ => None,
        };
        assert_eq!(sqlite("sqlite:/var/lib/a.db"), Some("/var/lib/a.db"));
        assert_eq!(sqlite("sqlite:///var/lib/a.db"), Some("/var/lib/a.db"));
        assert_eq!(sqlite("sqlite:a.db"), Some("a.db"));
        assert!(matches!(Location::of("postgresql://u:p@h/d"), Ok(Location::Postgres)));
        for wrong in ["", "sqlite:", "sqlite::memory:", "sqlite:a.db?mode=ro", "mysql://u:hush@h/d"] {
            let error = Location::of(wrong).err().map(|error| error.to_string()).unwrap();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
