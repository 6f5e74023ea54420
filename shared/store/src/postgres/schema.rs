//! Tables, and how they came to be: a list of steps that only grows.

use super::connections::{Connections, retrying};
use crate::failure::Failure;
use crate::rows::Meta;
use crate::seal::new_data_key;
use crate::vault::Vault;
use crate::{OpenError, StoreId};
use sqlx::{Connection, PgConnection};
use std::time::Duration;

/// Held by whoever migrates; the number is the name "meridian" in ASCII.
const LOCK: i64 = 0x6d65_7269_6469_616e;
/// A migration may wait for another replica's.
const LIMIT: Duration = Duration::from_secs(120);

const STEPS: [&str; 1] = ["
    CREATE TABLE meridian.meta (
        only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        store_id   bytea NOT NULL,
        revision   bigint NOT NULL,
        floor      bigint NOT NULL,
        data_key   bytea NOT NULL
    );
    CREATE TABLE meridian.resources (
        kind text COLLATE \"C\" NOT NULL,
        mesh text COLLATE \"C\" NOT NULL,
        zone text COLLATE \"C\" NOT NULL,
        name text COLLATE \"C\" NOT NULL,
        revision    bigint NOT NULL,
        labels      jsonb NOT NULL,
        body        bytea NOT NULL,
        sealed      boolean NOT NULL,
        created_at  timestamptz NOT NULL,
        modified_at timestamptz NOT NULL,
        author      text NOT NULL,
        via         text NOT NULL,
        PRIMARY KEY (kind, mesh, name, zone)
    );
    CREATE TABLE meridian.history (
        revision bigint NOT NULL,
        ordinal  bigint NOT NULL,
        kind text COLLATE \"C\" NOT NULL,
        mesh text COLLATE \"C\" NOT NULL,
        zone text COLLATE \"C\" NOT NULL,
        name text COLLATE \"C\" NOT NULL,
        body     bytea,
        sealed   boolean NOT NULL,
        author   text NOT NULL,
        via      text NOT NULL,
        at       timestamptz NOT NULL,
        PRIMARY KEY (revision, ordinal)
    );
    CREATE INDEX history_by_key ON meridian.history (kind, mesh, name, zone, revision);
    CREATE TABLE meridian.private (
        bucket text COLLATE \"C\" NOT NULL,
        key    text COLLATE \"C\" NOT NULL,
        value  bytea NOT NULL,
        PRIMARY KEY (bucket, key)
    );
    CREATE TABLE meridian.replicas (
        id       text PRIMARY KEY,
        name     text NOT NULL,
        lock_key bigint NOT NULL
    );
    CREATE TABLE meridian.zone_status (
        zone    text COLLATE \"C\" NOT NULL,
        section text COLLATE \"C\" NOT NULL,
        value   bytea NOT NULL,
        replica text NOT NULL,
        at      timestamptz NOT NULL,
        PRIMARY KEY (zone, section)
    );
"];

/// Migrates, and makes the store's one row if there is none, in one transaction under a lock.
pub(super) async fn prepare(connections: &Connections, vault: &Vault) -> Result<Meta, OpenError> {
    retrying!(connections, LIMIT, connection => { migrate(connection, vault).await })?
}

async fn migrate(connection: &mut PgConnection, vault: &Vault) -> Result<Result<Meta, OpenError>, Failure> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    // Not IF NOT EXISTS, which asks for the right to create schemas even where there is nothing to create.
    let (exists,): (bool,) =
        sqlx::query_as("SELECT to_regnamespace('meridian') IS NOT NULL").fetch_one(&mut *transaction).await?;
    if !exists {
        sqlx::raw_sql("CREATE SCHEMA meridian").execute(&mut *transaction).await?;
    }
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS meridian.schema_version (version bigint NOT NULL)")
        .execute(&mut *transaction)
        .await?;
    let (found,): (i64,) = sqlx::query_as("SELECT coalesce(max(version), 0) FROM meridian.schema_version")
        .fetch_one(&mut *transaction)
        .await?;
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Ok(Err(OpenError::NewerSchema { found, known }));
    }
    for (version, step) in (1_i64..).zip(STEPS).filter(|(version, _)| *version > found) {
        sqlx::raw_sql(step).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO meridian.schema_version VALUES ($1)")
            .bind(version)
            .execute(&mut *transaction)
            .await?;
    }
    let meta = match super::read::meta(&mut transaction).await? {
        Some(meta) => meta,
        None => {
            match new_data_key(&vault.ring()) {
                Err(error) => return Ok(Err(error.into())),
                Ok(data_key) => {
                    let store_id = StoreId::random();
                    sqlx::query("INSERT INTO meridian.meta (store_id, revision, floor, data_key) VALUES ($1, 0, 0, $2)")
                    .bind(store_id.0.as_slice())
                    .bind(&data_key)
                    .execute(&mut *transaction)
                    .await?;
                    Meta::new(&store_id.0, 0, 0, data_key)?
                }
            }
        }
    };
    if let Err(error) = vault.learn(&meta.data_key) {
        return Ok(Err(error.into()));
    }
    transaction.commit().await?;
    Ok(Ok(meta))
}
