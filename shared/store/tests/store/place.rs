//! Where a test's store lives: a database of its own on the shared cluster, or a directory.

use anyhow::{Context, Result};
use meridian_core::{Key, Kind, Resource};
use meridian_store::{
    Author, Change, Expect, Feed, KeyRing, OpenError, Options, Revision, Store, WriteError,
};
use meridian_testkit::postgres::{Postgres, Settings};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::sync::watch;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) directory: tempfile::TempDir,
    /// The name of the database, on Postgres.
    pub(crate) database: Option<String>,
    pub(crate) keep_revisions: u64,
}

/// One cluster for all tests that do not disturb it; it ends with the process.
pub(crate) async fn cluster() -> Result<&'static Postgres> {
    static CLUSTER: OnceCell<Postgres> = OnceCell::const_new();
    CLUSTER.get_or_try_init(|| Postgres::start(Settings::default())).await
}

impl Place {
    pub(crate) async fn postgres() -> Result<Self> {
        let database = format!("t{}", uuid::Uuid::new_v4().simple());
        let url = cluster().await?.create_database(&database).await?;
        Ok(Self { url, directory: tempfile::tempdir()?, database: Some(database), keep_revisions: 100_000 })
    }

    #[expect(clippy::unused_async, reason = "called like the other one")]
    pub(crate) async fn sqlite() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let url = format!("sqlite:{}", directory.path().join("data/store.db").display());
        Ok(Self { url, directory, database: None, keep_revisions: 100_000 })
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    pub(crate) fn options(&self, replica: &str) -> Result<Options> {
        let keys = KeyRing::load_or_create(&self.key_file())?;
        let mut options = Options::new(&self.url, keys, replica);
        options.keep_revisions = self.keep_revisions;
        Ok(options)
    }

    pub(crate) async fn open(&self) -> Result<Store> {
        Ok(self.try_open("one").await??)
    }

    /// A further replica.
    pub(crate) async fn replica(&self, name: &str) -> Result<Store> {
        Ok(self.try_open(name).await??)
    }

    pub(crate) async fn try_open(&self, replica: &str) -> Result<Result<Store, OpenError>> {
        Ok(Store::open(self.options(replica)?).await)
    }

    /// Everything that the database has on disk, in one piece.
    pub(crate) async fn raw(&self) -> Result<Vec<u8>> {
        match &self.database {
            Some(database) => cluster().await?.dump(database).await,
            None => {
                let mut all = Vec::new();
                for entry in std::fs::read_dir(self.directory.path().join("data"))? {
                    all.extend(std::fs::read(entry?.path())?);
                }
                Ok(all)
            }
        }
    }

    /// Runs SQL behind the store's back; tables are named `meridian.…` in it.
    pub(crate) async fn tamper(&self, sql: &str) -> Result<()> {
        match &self.database {
            Some(database) => cluster().await?.psql(database, sql).await.map(drop),
            None => {
                use sqlx::ConnectOptions;
                let path = self.url.strip_prefix("sqlite:").context("not SQLite")?;
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let mut connection = options.connect().await?;
                let sql = sqlx::AssertSqlSafe(sql.replace("meridian.", ""));
                sqlx::raw_sql(sql).execute(&mut connection).await?;
                sqlx::Connection::close(connection).await?;
                Ok(())
            }
        }
    }
}

pub(crate) fn kind(name: &str) -> Kind {
    Kind::named(name).unwrap_or_else(|| panic!("kind {name}"))
}

pub(crate) fn key(name: &str) -> Key {
    Key::global(kind("ExternalService"), "default", name)
}

pub(crate) fn resource(key: &Key, spec: impl Into<Value>) -> Resource {
    Resource { key: key.clone(), labels: BTreeMap::new(), spec: spec.into(), status: None }
}

pub(crate) fn put(key: &Key, spec: impl Into<Value>) -> Change {
    Change::Put { resource: resource(key, spec), expect: Expect::Any }
}

pub(crate) fn delete(key: &Key) -> Change {
    Change::Delete { key: key.clone(), expect: Expect::Any }
}

pub(crate) fn author() -> Author {
    Author::new("anna", "api")
}

pub(crate) async fn write(store: &Store, changes: Vec<Change>) -> Result<Revision, WriteError> {
    store.write(&author(), changes).await
}

/// Waits until the feed says so.
pub(crate) async fn feed_until(
    feed: &mut watch::Receiver<Feed>,
    deadline: Duration,
    condition: impl FnMut(&Feed) -> bool,
) -> Result<Feed> {
    if let Ok(found) = tokio::time::timeout(deadline, feed.wait_for(condition)).await {
        return Ok(found.map(|feed| *feed)?);
    }
    anyhow::bail!("the feed did not get there within {deadline:?}: {:?}", *feed.borrow())
}

/// Each test on both back ends.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name(&mut crate::place::Place::postgres().await?).await
            })*
        }
        mod sqlite {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name(&mut crate::place::Place::sqlite().await?).await
            })*
        }
    };
}
pub(crate) use on_both;
