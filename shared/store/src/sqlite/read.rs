use super::Sqlite;
use crate::failure::Failure;
use crate::rows::{
    HistoryRow, HistoryRows, KeyRow, Meta, PrivateRow, ResourceRow, SnapshotRows, from_column, to_column,
};
use crate::{Author, Query, Revision};
use meridian_core::{Key, Kind};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use time::OffsetDateTime;

/// How many entries of history one answer has, but for the last write's, which are not cut.
const CHANGES: i64 = 256;

pub(super) async fn meta(connection: &mut SqliteConnection) -> Result<Option<Meta>, Failure> {
    let row: Option<(Vec<u8>, i64, i64, Vec<u8>)> =
        sqlx::query_as("SELECT store_id, revision, floor, data_key FROM meta")
            .fetch_optional(connection)
            .await?;
    row.map(|(store_id, revision, floor, data_key)| Meta::new(&store_id, revision, floor, data_key))
        .transpose()
}

impl Sqlite {
    pub(crate) async fn meta(&self) -> Result<Meta, Failure> {
        let mut reader = self.readers.acquire().await?;
        meta(&mut reader).await?.ok_or_else(Meta::missing)
    }

    pub(crate) async fn get(&self, key: &Key) -> Result<Option<ResourceRow>, Failure> {
        let row = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
             FROM resources WHERE kind = ? AND mesh = ? AND zone = ? AND name = ?",
        )
        .bind(key.kind.as_str())
        .bind(&key.mesh)
        .bind(&key.zone)
        .bind(&key.name)
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(resource_row).transpose()
    }

    pub(crate) async fn find(&self, kind: Kind, mesh: &str, name: &str) -> Result<Vec<ResourceRow>, Failure> {
        let rows = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
             FROM resources WHERE kind = ? AND mesh = ? AND name = ? ORDER BY zone",
        )
        .bind(kind.as_str())
        .bind(mesh)
        .bind(name)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(resource_row).collect()
    }

    pub(crate) async fn list(&self, query: &Query, labels: &str) -> Result<(Vec<ResourceRow>, u64), Failure> {
        let mut transaction = self.readers.begin().await?;
        let (total,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM resources r WHERE kind = ?1 AND (?2 IS NULL OR mesh = ?2) \
             AND (?3 IS NULL OR zone = ?3) AND (?4 IS NULL OR instr(name, ?4) > 0) \
             AND NOT EXISTS (SELECT 1 FROM json_each(?5) wanted WHERE NOT EXISTS (SELECT 1 FROM json_each(r.labels) has \
                 WHERE has.key = wanted.key AND has.value = wanted.value))",
        )
        .bind(query.kind.as_str())
        .bind(&query.mesh)
        .bind(&query.zone)
        .bind(&query.name_contains)
        .bind(labels)
        .fetch_one(&mut *transaction)
        .await?;
        let rows = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
             FROM resources r WHERE kind = ?1 AND (?2 IS NULL OR mesh = ?2) \
             AND (?3 IS NULL OR zone = ?3) AND (?4 IS NULL OR instr(name, ?4) > 0) \
             AND NOT EXISTS (SELECT 1 FROM json_each(?5) wanted WHERE NOT EXISTS (SELECT 1 FROM json_each(r.labels) has \
                 WHERE has.key = wanted.key AND has.value = wanted.value)) \
             ORDER BY mesh, name, zone LIMIT ?6 OFFSET ?7",
        )
        .bind(query.kind.as_str())
        .bind(&query.mesh)
        .bind(&query.zone)
        .bind(&query.name_contains)
        .bind(labels)
        .bind(to_column(query.size))
        .bind(to_column(query.offset))
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let rows = rows.iter().map(resource_row).collect::<Result<Vec<_>, _>>()?;
        Ok((rows, u64::try_from(total).unwrap_or(0)))
    }

    pub(crate) async fn snapshot(&self) -> Result<SnapshotRows, Failure> {
        let mut transaction = self.readers.begin().await?;
        let meta = meta(&mut transaction).await?.ok_or_else(Meta::missing)?;
        let rows = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
             FROM resources ORDER BY kind, mesh, name, zone",
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(SnapshotRows { meta, rows: rows.iter().map(resource_row).collect::<Result<_, _>>()? })
    }

    pub(crate) async fn changes_after(&self, cursor: Revision) -> Result<HistoryRows, Failure> {
        let mut transaction = self.readers.begin().await?;
        let meta = meta(&mut transaction).await?.ok_or_else(Meta::missing)?;
        let bound: Option<(i64,)> = sqlx::query_as(
            "SELECT revision FROM history WHERE revision > ? ORDER BY revision, ordinal LIMIT 1 OFFSET ?",
        )
        .bind(to_column(cursor.0))
        .bind(CHANGES)
        .fetch_optional(&mut *transaction)
        .await?;
        let upto = bound.map_or(Ok(meta.revision), |(bound,)| from_column(bound))?;
        let rows = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, author, via, at FROM history \
             WHERE revision > ? AND revision <= ? ORDER BY revision, ordinal",
        )
        .bind(to_column(cursor.0))
        .bind(to_column(upto.0))
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let rows = rows.iter().map(history_row).collect::<Result<_, _>>()?;
        Ok(HistoryRows { rows, upto, newest: meta.revision, floor: meta.floor })
    }

    pub(crate) async fn history(&self, key: &Key, limit: u32) -> Result<Vec<HistoryRow>, Failure> {
        let rows = sqlx::query(
            "SELECT kind, mesh, zone, name, revision, body, sealed, author, via, at FROM history \
             WHERE kind = ? AND mesh = ? AND zone = ? AND name = ? ORDER BY revision DESC LIMIT ?",
        )
        .bind(key.kind.as_str())
        .bind(&key.mesh)
        .bind(&key.zone)
        .bind(&key.name)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(history_row).collect()
    }

    pub(crate) async fn private_get(&self, bucket: &str, key: &str) -> Result<Option<PrivateRow>, Failure> {
        let found: Option<(Vec<u8>,)> =
            sqlx::query_as("SELECT value FROM private WHERE bucket = ? AND key = ?")
                .bind(bucket)
                .bind(key)
                .fetch_optional(&self.readers)
                .await?;
        let row = |(value,)| PrivateRow { bucket: bucket.to_owned(), key: key.to_owned(), value };
        Ok(found.map(row))
    }

    pub(crate) async fn private_list(&self, bucket: &str) -> Result<Vec<PrivateRow>, Failure> {
        let found: Vec<(String, Vec<u8>)> =
            sqlx::query_as("SELECT key, value FROM private WHERE bucket = ? ORDER BY key")
                .bind(bucket)
                .fetch_all(&self.readers)
                .await?;
        let row = |(key, value)| PrivateRow { bucket: bucket.to_owned(), key, value };
        Ok(found.into_iter().map(row).collect())
    }
}

pub(super) fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

pub(super) fn from_micros(micros: i64) -> Result<OffsetDateTime, Failure> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
        .map_err(|_| Failure::Damaged("a time is out of range".to_owned()))
}

fn key_row(row: &SqliteRow) -> Result<KeyRow, sqlx::Error> {
    Ok(KeyRow { kind: row.try_get(0)?, mesh: row.try_get(1)?, zone: row.try_get(2)?, name: row.try_get(3)? })
}

pub(super) fn resource_row(row: &SqliteRow) -> Result<ResourceRow, Failure> {
    Ok(ResourceRow {
        key: key_row(row)?,
        revision: row.try_get(4)?,
        body: row.try_get(5)?,
        sealed: row.try_get(6)?,
        created: from_micros(row.try_get(7)?)?,
        modified: from_micros(row.try_get(8)?)?,
        author: Author { name: row.try_get(9)?, via: row.try_get(10)? },
    })
}

fn history_row(row: &SqliteRow) -> Result<HistoryRow, Failure> {
    Ok(HistoryRow {
        key: key_row(row)?,
        revision: row.try_get(4)?,
        body: row.try_get(5)?,
        sealed: row.try_get(6)?,
        author: Author { name: row.try_get(7)?, via: row.try_get(8)? },
        at: from_micros(row.try_get(9)?)?,
    })
}
