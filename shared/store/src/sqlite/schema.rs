//! Tables, and how they came to be: a list of steps that only grows. `PRAGMA user_version` counts them.

use crate::failure::Failure;
use crate::rows::Meta;
use crate::seal::new_data_key;
use crate::vault::Vault;
use crate::{OpenError, StoreId};
use sqlx::{Connection, SqliteConnection};

/// Revisions and times are integers; times are microseconds since 1970.
const STEPS: [&str; 1] = ["
    CREATE TABLE meta (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        store_id BLOB NOT NULL,
        revision INTEGER NOT NULL,
        floor    INTEGER NOT NULL,
        data_key BLOB NOT NULL
    ) STRICT;
    CREATE TABLE resources (
        kind TEXT NOT NULL, mesh TEXT NOT NULL, zone TEXT NOT NULL, name TEXT NOT NULL,
        revision    INTEGER NOT NULL,
        labels      TEXT NOT NULL,
        body        BLOB NOT NULL,
        sealed      INTEGER NOT NULL,
        created_at  INTEGER NOT NULL,
        modified_at INTEGER NOT NULL,
        author      TEXT NOT NULL,
        via         TEXT NOT NULL,
        PRIMARY KEY (kind, mesh, name, zone)
    ) STRICT;
    CREATE TABLE history (
        revision INTEGER NOT NULL,
        ordinal  INTEGER NOT NULL,
        kind TEXT NOT NULL, mesh TEXT NOT NULL, zone TEXT NOT NULL, name TEXT NOT NULL,
        body   BLOB,
        sealed INTEGER NOT NULL,
        author TEXT NOT NULL,
        via    TEXT NOT NULL,
        at     INTEGER NOT NULL,
        PRIMARY KEY (revision, ordinal)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX history_by_key ON history (kind, mesh, name, zone, revision);
    CREATE TABLE private (
        bucket TEXT NOT NULL,
        key    TEXT NOT NULL,
        value  BLOB NOT NULL,
        PRIMARY KEY (bucket, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE zone_status (
        zone    TEXT NOT NULL,
        section TEXT NOT NULL,
        value   BLOB NOT NULL,
        replica TEXT NOT NULL,
        process BLOB NOT NULL,
        at      INTEGER NOT NULL,
        PRIMARY KEY (zone, section)
    ) STRICT;
"];

/// Migrates, and makes the store's one row if there is none, in one transaction that excludes everybody else.
pub(super) async fn prepare(connection: &mut SqliteConnection, vault: &Vault) -> Result<Meta, OpenError> {
    let begun = connection.begin_with("BEGIN EXCLUSIVE").await;
    let mut transaction = begun.map_err(Failure::from)?;
    let (found,): (i64,) =
        sqlx::query_as("PRAGMA user_version").fetch_one(&mut *transaction).await.map_err(Failure::from)?;
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(OpenError::NewerSchema { found, known });
    }
    for step in STEPS.into_iter().skip(usize::try_from(found).unwrap_or(0)) {
        sqlx::raw_sql(step).execute(&mut *transaction).await.map_err(Failure::from)?;
    }
    // A pragma takes no parameters; the constant is held to the number of steps by a test.
    sqlx::raw_sql(SET_VERSION).execute(&mut *transaction).await.map_err(Failure::from)?;
    let meta = match super::read::meta(&mut transaction).await? {
        Some(meta) => meta,
        None => {
            let (store_id, data_key) = (StoreId::random(), new_data_key(&vault.ring())?);
            sqlx::query(
                "INSERT INTO meta (only_row, store_id, revision, floor, data_key) VALUES (1, ?, 0, 0, ?)",
            )
            .bind(store_id.0.as_slice())
            .bind(&data_key)
            .execute(&mut *transaction)
            .await
            .map_err(Failure::from)?;
            Meta::new(&store_id.0, 0, 0, data_key)?
        }
    };
    vault.learn(&meta.data_key)?;
    transaction.commit().await.map_err(Failure::from)?;
    Ok(meta)
}

const SET_VERSION: &str = "PRAGMA user_version = 1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_number_of_steps() {
        assert_eq!(SET_VERSION, format!("PRAGMA user_version = {}", STEPS.len()));
    }
}
