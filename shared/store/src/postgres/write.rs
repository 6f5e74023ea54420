use super::Postgres;
use super::connections::{ATTEMPT, retrying, within};
use crate::failure::Failure;
use crate::plan::{Batch, Plan, Planned, Present, now};
use crate::rows::{KeyRow, Meta, ResourceRow, open_private, to_column};
use crate::seal::SealKey;
use crate::vault::Vault;
use crate::{Author, Revision, StoreId, WriteError};
use meridian_core::Key;
use sqlx::{Connection, PgTransaction};
use std::collections::BTreeMap;
use std::time::Duration;
use zeroize::Zeroizing;

/// Waiting for this process's other writes.
const TURN: Duration = Duration::from_secs(15);
/// Waiting for other replicas' writes included.
const APPLY: Duration = Duration::from_secs(10);
/// For the commit itself.
const COMMIT: Duration = Duration::from_secs(10);
/// Everything sealed is read and written.
const ROTATE: Duration = Duration::from_secs(120);

/// Key, body, revision and ordinal.
type SealedHistory = (String, String, String, String, Vec<u8>, i64, i64);

/// What a transaction does once it holds the row of revisions.
enum Job<'a> {
    Write { author: &'a Author, batch: &'a Batch },
    Rename(StoreId),
    Reseal { key: &'a SealKey, data_key: &'a [u8] },
}

/// What it came to before its commit. The revision is the newest then.
enum Outcome {
    /// Nothing to commit.
    Unchanged(Revision),
    Changed(Revision),
    Error(WriteError),
}

impl Postgres {
    pub(crate) async fn write(
        &self,
        vault: &Vault,
        author: &Author,
        batch: &Batch,
    ) -> Result<Revision, WriteError> {
        self.transact(vault, APPLY, &Job::Write { author, batch }).await
    }

    pub(crate) async fn rename(&self, vault: &Vault, store_id: StoreId) -> Result<(), WriteError> {
        self.transact(vault, APPLY, &Job::Rename(store_id)).await.map(drop)
    }

    /// Seals everything with another data key.
    pub(crate) async fn reseal(
        &self,
        vault: &Vault,
        key: &SealKey,
        data_key: &[u8],
    ) -> Result<(), WriteError> {
        self.transact(vault, ROTATE, &Job::Reseal { key, data_key }).await.map(drop)
    }

    /// Does a job in a transaction that holds the row of revisions from its start, and commits.
    async fn transact(&self, vault: &Vault, limit: Duration, job: &Job<'_>) -> Result<Revision, WriteError> {
        // One connection of this process waits for the row; the others are for readers.
        let _turn = within(TURN, async { Ok(self.writing.lock().await) }).await?;
        retrying!(self.connections, limit + COMMIT + COMMIT, connection => {
            let begin = async { Ok(connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?) };
            let mut transaction = within(ATTEMPT, begin).await?;
            match within(limit, self.apply(&mut transaction, vault, job)).await? {
                Outcome::Changed(revision) => commit(transaction).await.map(|()| Ok(revision)),
                // Said to the server, and not left for the connection's next use: it would sit on the row until then.
                Outcome::Unchanged(revision) => transaction.rollback().await.map(|()| Ok(revision)).map_err(Failure::from),
                Outcome::Error(error) => transaction.rollback().await.map(|()| Err(error)).map_err(Failure::from),
            }
        })?
    }

    async fn apply(
        &self,
        transaction: &mut PgTransaction<'_>,
        vault: &Vault,
        job: &Job<'_>,
    ) -> Result<Outcome, Failure> {
        let meta = lock(transaction).await?;
        let data_key = match vault.learn(&meta.data_key) {
            Ok(key) => key,
            Err(error) => return Ok(Outcome::Error(WriteError::Unavailable(error.into()))),
        };
        match job {
            Job::Write { author, batch } => {
                self.change(transaction, vault, &meta, &data_key, author, batch).await
            }
            Job::Rename(store_id) => {
                sqlx::query("UPDATE meridian.meta SET store_id = $1")
                    .bind(store_id.0.as_slice())
                    .execute(&mut **transaction)
                    .await?;
                sqlx::query("SELECT pg_notify('meridian', 'restored')").execute(&mut **transaction).await?;
                Ok(Outcome::Changed(meta.revision))
            }
            Job::Reseal { key, data_key } => {
                reseal_resources(transaction, vault, key).await?;
                reseal_history(transaction, vault, key).await?;
                reseal_private(transaction, vault, key).await?;
                sqlx::query("UPDATE meridian.meta SET data_key = $1")
                    .bind(data_key)
                    .execute(&mut **transaction)
                    .await?;
                Ok(Outcome::Changed(meta.revision))
            }
        }
    }

    async fn change(
        &self,
        transaction: &mut PgTransaction<'_>,
        vault: &Vault,
        meta: &Meta,
        data_key: &SealKey,
        author: &Author,
        batch: &Batch,
    ) -> Result<Outcome, Failure> {
        let present = present(transaction, vault, batch).await?;
        let private = private_present(transaction, vault, batch).await?;
        let plan = match batch.plan(&present, &private, data_key) {
            Ok(plan) => plan,
            Err(error) => return Ok(Outcome::Error(error)),
        };
        write_private(transaction, &plan).await?;
        if plan.resources.is_empty() {
            let unchanged = plan.private.is_empty();
            return Ok(if unchanged {
                Outcome::Unchanged(meta.revision)
            } else {
                Outcome::Changed(meta.revision)
            });
        }
        let revision = meta.revision.next();
        write_resources(transaction, &plan.resources, revision, author).await?;
        let floor = self.history.floor(revision, meta.floor);
        if floor > meta.floor {
            sqlx::query("DELETE FROM meridian.history WHERE revision <= $1")
                .bind(to_column(floor.0))
                .execute(&mut **transaction)
                .await?;
        }
        sqlx::query(
            "WITH moved AS (UPDATE meridian.meta SET revision = $1, floor = $2 RETURNING revision) \
             SELECT pg_notify('meridian', revision::text) FROM moved",
        )
        .bind(to_column(revision.0))
        .bind(to_column(floor.0))
        .execute(&mut **transaction)
        .await?;
        Ok(Outcome::Changed(revision))
    }
}

/// Once the server may have seen COMMIT, only an answer says what became of it.
async fn commit(transaction: PgTransaction<'_>) -> Result<(), Failure> {
    match tokio::time::timeout(COMMIT, transaction.commit()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => match Failure::from(error) {
            Failure::Lost(source) => Err(Failure::Uncertain(source)),
            failure => Err(failure),
        },
        Err(late) => Err(Failure::Uncertain(late.into())),
    }
}

/// Takes the row of revisions: from here to the end of the transaction no other write happens.
async fn lock(transaction: &mut PgTransaction<'_>) -> Result<Meta, Failure> {
    let (store_id, revision, floor, data_key): (Vec<u8>, i64, i64, Vec<u8>) =
        sqlx::query_as("SELECT store_id, revision, floor, data_key FROM meridian.meta FOR UPDATE")
            .fetch_optional(&mut **transaction)
            .await?
            .ok_or_else(Meta::missing)?;
    Meta::new(&store_id, revision, floor, data_key)
}

async fn present(
    transaction: &mut PgTransaction<'_>,
    vault: &Vault,
    batch: &Batch,
) -> Result<BTreeMap<Key, Present>, Failure> {
    let keys = KeyColumns::of(batch.keys());
    if keys.kinds.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query(
        "SELECT r.kind, r.mesh, r.zone, r.name, r.revision, r.body, r.sealed, r.created_at, r.modified_at, r.author, r.via \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS k (kind, mesh, zone, name) \
         JOIN meridian.resources r ON r.kind = k.kind AND r.mesh = k.mesh AND r.zone = k.zone AND r.name = k.name",
    )
    .bind(&keys.kinds)
    .bind(&keys.meshes)
    .bind(&keys.zones)
    .bind(&keys.names)
    .fetch_all(&mut **transaction)
    .await?;
    let rows = rows.iter().map(super::read::resource_row).collect::<Result<Vec<ResourceRow>, _>>()?;
    rows.into_iter().filter_map(|row| row.present(vault).transpose()).collect()
}

async fn private_present(
    transaction: &mut PgTransaction<'_>,
    vault: &Vault,
    batch: &Batch,
) -> Result<BTreeMap<(String, String), Zeroizing<Vec<u8>>>, Failure> {
    let (buckets, keys): (Vec<String>, Vec<String>) =
        batch.private_keys().map(|(bucket, key)| (bucket.to_owned(), key.to_owned())).unzip();
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(String, String, Vec<u8>)> = sqlx::query_as(
        "SELECT bucket, key, value FROM meridian.private \
         WHERE (bucket, key) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
    )
    .bind(&buckets)
    .bind(&keys)
    .fetch_all(&mut **transaction)
    .await?;
    rows.into_iter()
        .map(|(bucket, key, value)| {
            open_private(vault, &bucket, &key, &value).map(|value| ((bucket, key), value))
        })
        .collect()
}

async fn write_private(transaction: &mut PgTransaction<'_>, plan: &Plan) -> Result<(), Failure> {
    for change in &plan.private {
        let statement = match &change.value {
            Some(value) => sqlx::query(
                "INSERT INTO meridian.private (bucket, key, value) VALUES ($1, $2, $3) \
                 ON CONFLICT (bucket, key) DO UPDATE SET value = excluded.value",
            )
            .bind(&change.bucket)
            .bind(&change.key)
            .bind(value),
            None => sqlx::query("DELETE FROM meridian.private WHERE bucket = $1 AND key = $2")
                .bind(&change.bucket)
                .bind(&change.key),
        };
        statement.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// The present and the history, each in one statement however many there are.
async fn write_resources(
    transaction: &mut PgTransaction<'_>,
    changes: &[Planned],
    revision: Revision,
    author: &Author,
) -> Result<(), Failure> {
    let at = now();
    let puts = || changes.iter().filter(|change| change.body.is_some());
    let keys = KeyColumns::of(puts().map(|change| &change.key));
    if !keys.kinds.is_empty() {
        sqlx::query(
            "INSERT INTO meridian.resources AS r \
                 (kind, mesh, zone, name, labels, body, sealed, revision, created_at, modified_at, author, via) \
             SELECT kind, mesh, zone, name, labels::jsonb, body, sealed, $8, $9, $9, $10, $11 \
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::boolean[]) \
                 AS new (kind, mesh, zone, name, labels, body, sealed) \
             ON CONFLICT (kind, mesh, name, zone) DO UPDATE SET labels = excluded.labels, body = excluded.body, \
                 sealed = excluded.sealed, revision = excluded.revision, modified_at = excluded.modified_at, \
                 author = excluded.author, via = excluded.via",
        )
        .bind(&keys.kinds)
        .bind(&keys.meshes)
        .bind(&keys.zones)
        .bind(&keys.names)
        .bind(puts().map(|change| change.labels.as_str()).collect::<Vec<_>>())
        .bind(puts().map(|change| change.body.as_deref().unwrap_or_default()).collect::<Vec<_>>())
        .bind(puts().map(|change| change.sealed).collect::<Vec<_>>())
        .bind(to_column(revision.0))
        .bind(at)
        .bind(&author.name)
        .bind(&author.via)
        .execute(&mut **transaction)
        .await?;
    }
    let keys =
        KeyColumns::of(changes.iter().filter(|change| change.body.is_none()).map(|change| &change.key));
    if !keys.kinds.is_empty() {
        sqlx::query(
            "DELETE FROM meridian.resources WHERE (kind, mesh, zone, name) IN \
             (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]))",
        )
        .bind(&keys.kinds)
        .bind(&keys.meshes)
        .bind(&keys.zones)
        .bind(&keys.names)
        .execute(&mut **transaction)
        .await?;
    }
    let keys = KeyColumns::of(changes.iter().map(|change| &change.key));
    sqlx::query(
        "INSERT INTO meridian.history (kind, mesh, zone, name, body, sealed, ordinal, revision, author, via, at) \
         SELECT kind, mesh, zone, name, body, sealed, ordinal, $7, $8, $9, $10 \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::boolean[]) WITH ORDINALITY \
             AS new (kind, mesh, zone, name, body, sealed, ordinal)",
    )
    .bind(&keys.kinds)
    .bind(&keys.meshes)
    .bind(&keys.zones)
    .bind(&keys.names)
    .bind(changes.iter().map(|change| change.body.as_deref()).collect::<Vec<_>>())
    .bind(changes.iter().map(|change| change.sealed).collect::<Vec<_>>())
    .bind(to_column(revision.0))
    .bind(&author.name)
    .bind(&author.via)
    .bind(at)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

async fn reseal_resources(
    transaction: &mut PgTransaction<'_>,
    vault: &Vault,
    key: &SealKey,
) -> Result<(), Failure> {
    let rows: Vec<(String, String, String, String, Vec<u8>)> =
        sqlx::query_as("SELECT kind, mesh, zone, name, body FROM meridian.resources WHERE sealed")
            .fetch_all(&mut **transaction)
            .await?;
    for (kind, mesh, zone, name, body) in rows {
        let place = KeyRow { kind, mesh, zone, name };
        let Some(body) = place.resealed(vault, key, &body)? else { continue };
        sqlx::query(
            "UPDATE meridian.resources SET body = $5 WHERE kind = $1 AND mesh = $2 AND zone = $3 AND name = $4",
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
    transaction: &mut PgTransaction<'_>,
    vault: &Vault,
    key: &SealKey,
) -> Result<(), Failure> {
    let rows: Vec<SealedHistory> = sqlx::query_as(
        "SELECT kind, mesh, zone, name, body, revision, ordinal FROM meridian.history WHERE sealed AND body IS NOT NULL",
    )
    .fetch_all(&mut **transaction)
    .await?;
    for (kind, mesh, zone, name, body, revision, ordinal) in rows {
        let Some(body) = (KeyRow { kind, mesh, zone, name }).resealed(vault, key, &body)? else { continue };
        sqlx::query("UPDATE meridian.history SET body = $3 WHERE revision = $1 AND ordinal = $2")
            .bind(revision)
            .bind(ordinal)
            .bind(body)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn reseal_private(
    transaction: &mut PgTransaction<'_>,
    vault: &Vault,
    key: &SealKey,
) -> Result<(), Failure> {
    let rows: Vec<(String, String, Vec<u8>)> =
        sqlx::query_as("SELECT bucket, key, value FROM meridian.private")
            .fetch_all(&mut **transaction)
            .await?;
    for (bucket, name, value) in rows {
        let value = crate::rows::reseal_private(vault, key, &bucket, &name, &value)?;
        sqlx::query("UPDATE meridian.private SET value = $3 WHERE bucket = $1 AND key = $2")
            .bind(bucket)
            .bind(name)
            .bind(value)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// Keys as columns, for statements about many.
#[derive(Default)]
struct KeyColumns<'a> {
    kinds: Vec<&'a str>,
    meshes: Vec<&'a str>,
    zones: Vec<&'a str>,
    names: Vec<&'a str>,
}

impl<'a> KeyColumns<'a> {
    fn of(keys: impl Iterator<Item = &'a Key>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.kinds.push(key.kind.as_str());
            columns.meshes.push(&key.mesh);
            columns.zones.push(&key.zone);
            columns.names.push(&key.name);
        }
        columns
    }
}
