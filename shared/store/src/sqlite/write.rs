use super::Sqlite;
use super::read::{micros, resource_row};
use crate::failure::Failure;
use crate::plan::{Batch, Plan, Planned, Present, now};
use crate::rows::{KeyRow, Meta, open_private, to_column};
use crate::seal::SealKey;
use crate::vault::Vault;
use crate::{Author, Revision, StoreId, WriteError};
use meridian_core::Key;
use sqlx::{Connection, SqliteTransaction};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Key, body, revision and ordinal.
type SealedHistory = (String, String, String, String, Vec<u8>, i64, i64);

impl Sqlite {
    pub(crate) async fn write(
        &self,
        vault: &Vault,
        author: &Author,
        batch: &Batch,
    ) -> Result<Revision, WriteError> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.map_err(Failure::from)?;
        let revision = self.apply(&mut transaction, vault, author, batch).await?;
        transaction.commit().await.map_err(Failure::from)?;
        Ok(revision)
    }

    async fn apply(
        &self,
        transaction: &mut SqliteTransaction<'_>,
        vault: &Vault,
        author: &Author,
        batch: &Batch,
    ) -> Result<Revision, WriteError> {
        let meta = super::read::meta(transaction).await?.ok_or_else(Meta::missing)?;
        let data_key = vault.learn(&meta.data_key).map_err(|error| WriteError::Unavailable(error.into()))?;
        let present = present(transaction, vault, batch).await?;
        let private = private_present(transaction, vault, batch).await?;
        let plan = batch.plan(&present, &private, &data_key)?;
        write_private(transaction, &plan).await?;
        if plan.resources.is_empty() {
            return Ok(meta.revision);
        }
        let revision = meta.revision.next();
        write_resources(transaction, &plan.resources, revision, author).await?;
        let floor = self.history.floor(revision, meta.floor);
        if floor > meta.floor {
            sqlx::query("DELETE FROM history WHERE revision <= ?")
                .bind(to_column(floor.0))
                .execute(&mut **transaction)
                .await
                .map_err(Failure::from)?;
        }
        sqlx::query("UPDATE meta SET revision = ?, floor = ?")
            .bind(to_column(revision.0))
            .bind(to_column(floor.0))
            .execute(&mut **transaction)
            .await
            .map_err(Failure::from)?;
        Ok(revision)
    }

    pub(crate) async fn rename(&self, _vault: &Vault, store_id: StoreId) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().await;
        let update =
            sqlx::query("UPDATE meta SET store_id = ?").bind(store_id.0.as_slice()).execute(&mut *writer);
        update.await.map_err(Failure::from)?;
        Ok(())
    }

    /// Seals everything with another data key.
    pub(crate) async fn reseal(
        &self,
        vault: &Vault,
        key: &SealKey,
        data_key: &[u8],
    ) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().await;
        let reseal = async {
            let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
            reseal_resources(&mut transaction, vault, key).await?;
            reseal_history(&mut transaction, vault, key).await?;
            reseal_private(&mut transaction, vault, key).await?;
            sqlx::query("UPDATE meta SET data_key = ?").bind(data_key).execute(&mut *transaction).await?;
            transaction.commit().await?;
            // What was sealed with the old key leaves the log too.
            sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *writer).await?;
            Ok::<(), Failure>(())
        };
        Ok(reseal.await?)
    }
}

async fn present(
    transaction: &mut SqliteTransaction<'_>,
    vault: &Vault,
    batch: &Batch,
) -> Result<BTreeMap<Key, Present>, Failure> {
    let mut found = BTreeMap::new();
    for key in batch.keys() {
        let row = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
             FROM resources WHERE kind = ? AND mesh = ? AND zone = ? AND name = ?",
        )
        .bind(key.kind.as_str())
        .bind(&key.mesh)
        .bind(&key.zone)
        .bind(&key.name)
        .fetch_optional(&mut **transaction)
        .await?;
        let row = row.as_ref().map(resource_row).transpose()?;
        found.extend(row.map(|row| row.present(vault)).transpose()?.flatten());
    }
    Ok(found)
}

async fn private_present(
    transaction: &mut SqliteTransaction<'_>,
    vault: &Vault,
    batch: &Batch,
) -> Result<BTreeMap<(String, String), Zeroizing<Vec<u8>>>, Failure> {
    let mut found = BTreeMap::new();
    for (bucket, key) in batch.private_keys() {
        let row: Option<(Vec<u8>,)> =
            sqlx::query_as("SELECT value FROM private WHERE bucket = ? AND key = ?")
                .bind(bucket)
                .bind(key)
                .fetch_optional(&mut **transaction)
                .await?;
        if let Some((value,)) = row {
            found.insert((bucket.to_owned(), key.to_owned()), open_private(vault, bucket, key, &value)?);
        }
    }
    Ok(found)
}

async fn write_private(transaction: &mut SqliteTransaction<'_>, plan: &Plan) -> Result<(), Failure> {
    for change in &plan.private {
        let statement = match &change.value {
            Some(value) => sqlx::query(
                "INSERT INTO private (bucket, key, value) VALUES (?, ?, ?) \
                 ON CONFLICT (bucket, key) DO UPDATE SET value = excluded.value",
            )
            .bind(&change.bucket)
            .bind(&change.key)
            .bind(value),
            None => sqlx::query("DELETE FROM private WHERE bucket = ? AND key = ?")
                .bind(&change.bucket)
                .bind(&change.key),
        };
        statement.execute(&mut **transaction).await?;
    }
    Ok(())
}

async fn write_resources(
    transaction: &mut SqliteTransaction<'_>,
    changes: &[Planned],
    revision: Revision,
    author: &Author,
) -> Result<(), Failure> {
    let at = micros(now());
    for (ordinal, change) in (1_i64..).zip(changes) {
        let key = &change.key;
        match &change.body {
            Some(body) => sqlx::query(
                "INSERT INTO resources (kind, mesh, zone, name, labels, body, sealed, revision, created_at, modified_at, \
                     author, via) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10, ?11) \
                 ON CONFLICT (kind, mesh, name, zone) DO UPDATE SET labels = excluded.labels, body = excluded.body, \
                     sealed = excluded.sealed, revision = excluded.revision, modified_at = excluded.modified_at, \
                     author = excluded.author, via = excluded.via",
            )
            .bind(key.kind.as_str())
            .bind(&key.mesh)
            .bind(&key.zone)
            .bind(&key.name)
            .bind(&change.labels)
            .bind(body)
            .bind(change.sealed)
            .bind(to_column(revision.0))
            .bind(at)
            .bind(&author.name)
            .bind(&author.via),
            None => sqlx::query("DELETE FROM resources WHERE kind = ? AND mesh = ? AND zone = ? AND name = ?")
                .bind(key.kind.as_str())
                .bind(&key.mesh)
                .bind(&key.zone)
                .bind(&key.name),
        }
        .execute(&mut **transaction)
        .await?;
        sqlx::query(
            "INSERT INTO history (revision, ordinal, kind, mesh, zone, name, body, sealed, author, via, at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(to_column(revision.0))
        .bind(ordinal)
        .bind(key.kind.as_str())
        .bind(&key.mesh)
        .bind(&key.zone)
        .bind(&key.name)
        .bind(&change.body)
        .bind(change.sealed)
        .bind(&author.name)
        .bind(&author.via)
        .bind(at)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

async fn reseal_resources(
    transaction: &mut SqliteTransaction<'_>,
    vault: &Vault,
    key: &SealKey,
) -> Result<(), Failure> {
    let rows: Vec<(String, String, String, String, Vec<u8>)> =
        sqlx::query_as("SELECT kind, mesh, zone, name, body FROM resources WHERE sealed")
            .fetch_all(&mut **transaction)
            .await?;
    for (kind, mesh, zone, name, body) in rows {
        let place = KeyRow { kind, mesh, zone, name };
        let Some(body) = place.resealed(vault, key, &body)? else { continue };
        sqlx::query(
            "UPDATE resources SET body = ?5 WHERE kind = ?1 AND mesh = ?2 AND zone = ?3 AND name = ?4",
        )
        .bind(&place.kind)
        .bind(&place.mesh)
        .bind(&place.zone)
        .bind(&place.name)
        .bind(body)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

async fn reseal_history(
    transaction: &mut SqliteTransaction<'_>,
    vault: &Vault,
    key: &SealKey,
) -> Result<(), Failure> {
    let rows: Vec<SealedHistory> = sqlx::query_as(
        "SELECT kind, mesh, zone, name, body, revision, ordinal FROM history WHERE sealed AND body IS NOT NULL",
    )
    .fetch_all(&mut **transaction)
    .await?;
    for (kind, mesh, zone, name, body, revision, ordinal) in rows {
        let Some(body) = (KeyRow { kind, mesh, zone, name }).resealed(vault, key, &body)? else { continue };
        sqlx::query("UPDATE history SET body = ?3 WHERE revision = ?1 AND ordinal = ?2")
            .bind(revision)
            .bind(ordinal)
            .bind(body)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn reseal_private(
    transaction: &mut SqliteTransaction<'_>,
    vault: &Vault,
    key: &SealKey,
) -> Result<(), Failure> {
    let rows: Vec<(String, String, Vec<u8>)> =
        sqlx::query_as("SELECT bucket, key, value FROM private").fetch_all(&mut **transaction).await?;
    for (bucket, name, value) in rows {
        let value = crate::rows::reseal_private(vault, key, &bucket, &name, &value)?;
        sqlx::query("UPDATE private SET value = ?3 WHERE bucket = ?1 AND key = ?2")
            .bind(bucket)
            .bind(name)
            .bind(value)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}
