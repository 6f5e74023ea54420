//! The store on SQLite: one process, which holds a lock on a file beside the database for as long as it lives.
//!
//! One connection writes, some read; in WAL mode neither waits for the other. Commits reach the disk before they are
//! acknowledged.

mod lock;
mod read;
mod schema;
mod status;
mod write;

use crate::failure::Failure;
use crate::plan::KeptHistory;
use crate::rows::Meta;
use crate::vault::Vault;
use crate::{OpenError, Options};
use lock::FileLock;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;
use uuid::Uuid;

const READERS: u32 = 4;

#[derive(Clone)]
pub(crate) struct Sqlite {
    writer: Arc<Mutex<SqliteConnection>>,
    readers: SqlitePool,
    /// This process, until it ends.
    replica: Uuid,
    /// Its name.
    name: String,
    history: KeptHistory,
    _lock: Arc<FileLock>,
}

impl Sqlite {
    /// Opens the file, creating and migrating it as needed, and gives what the store's one row says.
    pub(crate) async fn open(
        path: &Path,
        options: &Options,
        vault: &Vault,
    ) -> Result<(Self, Meta), OpenError> {
        let lock = FileLock::take(path).await?;
        // Made here, since SQLite would let others read it; its other files take over this one's mode.
        let made = std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        made.map_err(|error| OpenError::Unavailable(Box::new(error)))?;
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // What is deleted is overwritten: keys and secrets do not linger in free pages.
            .pragma("secure_delete", "on")
            .disable_statement_logging();
        let mut writer = connect.connect().await.map_err(Failure::from)?;
        let meta = schema::prepare(&mut writer, vault).await?;
        let readers = SqlitePoolOptions::new().max_connections(READERS).idle_timeout(None).max_lifetime(None);
        let readers =
            readers.test_before_acquire(false).connect_lazy_with(connect.pragma("query_only", "on"));
        let store = Self {
            writer: Arc::new(Mutex::new(writer)),
            readers,
            replica: Uuid::new_v4(),
            name: options.replica.clone(),
            history: KeptHistory { revisions: options.keep_revisions },
            _lock: Arc::new(lock),
        };
        Ok((store, meta))
    }
}
