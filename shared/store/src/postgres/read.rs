use super::Postgres;
use super::connections::{ATTEMPT, retrying};
use crate::failure::Failure;
use crate::rows::{
    HistoryRow, HistoryRows, KeyRow, Meta, PrivateRow, ResourceRow, SnapshotRows, from_column, to_column,
};
use crate::{Author, Query, Revision};
use meridian_core::{Key, Kind};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use std::time::Duration;

/// A snapshot reads everything.
const SNAPSHOT: Duration = Duration::from_secs(50);
/// How many entries of history one answer has, but for the last write's, which are not cut.
const CHANGES: i64 = 256;

type MetaColumns = (Vec<u8>, i64, i64, Vec<u8>);

pub(super) async fn meta(connection: &mut PgConnection) -> Result<Option<Meta>, Failure> {
    let row: Option<MetaColumns> =
        sqlx::query_as("SELECT store_id, revision, floor, data_key FROM meridian.meta")
            .fetch_optional(&mut *connection)
            .await?;
    row.map(|(store_id, revision, floor, data_key)| Meta::new(&store_id, revision, floor, data_key))
        .transpose()
}

impl Postgres {
    pub(crate) async fn meta(&self) -> Result<Meta, Failure> {
        let found = retrying!(self.connections, ATTEMPT, connection => { meta(connection).await })?;
        found.ok_or_else(Meta::missing)
    }

    pub(crate) async fn get(&self, key: &Key) -> Result<Option<ResourceRow>, Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let row = sqlx::query(
                "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
                 FROM meridian.resources WHERE kind = $1 AND mesh = $2 AND zone = $3 AND name = $4",
            )
            .bind(key.kind.as_str())
            .bind(&key.mesh)
            .bind(&key.zone)
            .bind(&key.name)
            .fetch_optional(&mut *connection)
            .await?;
            row.as_ref().map(resource_row).transpose()
        })
    }

    pub(crate) async fn find(&self, kind: Kind, mesh: &str, name: &str) -> Result<Vec<ResourceRow>, Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let rows = sqlx::query(
                "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
                 FROM meridian.resources WHERE kind = $1 AND mesh = $2 AND name = $3 ORDER BY zone",
            )
            .bind(kind.as_str())
            .bind(mesh)
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
            rows.iter().map(resource_row).collect()
        })
    }

    pub(crate) async fn list(&self, query: &Query, labels: &str) -> Result<(Vec<ResourceRow>, u64), Failure> {
        retrying!(self.connections, SNAPSHOT, connection => {
            let mut transaction =
                connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let (total,): (i64,) = sqlx::query_as(
                "SELECT count(*) FROM meridian.resources WHERE kind = $1 AND ($2::text IS NULL OR mesh = $2) \
                 AND ($3::text IS NULL OR zone = $3) AND ($4::text IS NULL OR position($4 IN name) > 0) \
                 AND labels @> $5::jsonb",
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
                 FROM meridian.resources WHERE kind = $1 AND ($2::text IS NULL OR mesh = $2) \
                 AND ($3::text IS NULL OR zone = $3) AND ($4::text IS NULL OR position($4 IN name) > 0) \
                 AND labels @> $5::jsonb ORDER BY mesh, name, zone LIMIT $6 OFFSET $7",
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
        })
    }

    pub(crate) async fn snapshot(&self) -> Result<SnapshotRows, Failure> {
        retrying!(self.connections, SNAPSHOT, connection => {
            let mut transaction =
                connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let meta = meta(&mut transaction).await?;
            let meta = meta.ok_or_else(Meta::missing)?;
            let rows = sqlx::query(
                "SELECT kind, mesh, zone, name, revision, body, sealed, created_at, modified_at, author, via \
                 FROM meridian.resources ORDER BY kind, mesh, name, zone",
            )
            .fetch_all(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(SnapshotRows { meta, rows: rows.iter().map(resource_row).collect::<Result<_, _>>()? })
        })
    }

    pub(crate) async fn changes_after(&self, cursor: Revision) -> Result<HistoryRows, Failure> {
        // One statement sees one state: the newest revision it gives is that of its entries.
        retrying!(self.connections, SNAPSHOT, connection => {
            let rows = sqlx::query(
                "SELECT h.kind, h.mesh, h.zone, h.name, h.revision, h.body, h.sealed, h.author, h.via, h.at, \
                        m.revision AS newest, m.floor, m.bound \
                 FROM (SELECT revision, floor, (SELECT revision FROM meridian.history WHERE revision > $1 \
                              ORDER BY revision, ordinal OFFSET $2 LIMIT 1) AS bound FROM meridian.meta) m \
                 LEFT JOIN meridian.history h ON h.revision > $1 AND (m.bound IS NULL OR h.revision <= m.bound) \
                 ORDER BY h.revision, h.ordinal",
            )
            .bind(to_column(cursor.0))
            .bind(CHANGES)
            .fetch_all(&mut *connection)
            .await?;
            let first = rows.first().ok_or_else(Meta::missing)?;
            let newest = from_column(first.try_get(10)?)?;
            let floor = from_column(first.try_get(11)?)?;
            let bound: Option<i64> = first.try_get(12)?;
            let upto = bound.map_or(Ok(newest), from_column)?;
            // With nothing above the cursor, the one row has no history.
            let entries = rows
                .iter()
                .filter(|row| row.try_get::<Option<String>, _>(0).is_ok_and(|kind| kind.is_some()));
            let rows = entries.map(history_row).collect::<Result<_, _>>()?;
            Ok(HistoryRows { rows, upto, newest, floor })
        })
    }

    pub(crate) async fn history(&self, key: &Key, limit: u32) -> Result<Vec<HistoryRow>, Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let rows = sqlx::query(
                "SELECT kind, mesh, zone, name, revision, body, sealed, author, via, at FROM meridian.history \
                 WHERE kind = $1 AND mesh = $2 AND zone = $3 AND name = $4 ORDER BY revision DESC LIMIT $5",
            )
            .bind(key.kind.as_str())
            .bind(&key.mesh)
            .bind(&key.zone)
            .bind(&key.name)
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
            rows.iter().map(history_row).collect()
        })
    }

    pub(crate) async fn private_get(&self, bucket: &str, key: &str) -> Result<Option<PrivateRow>, Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let found: Option<(Vec<u8>,)> =
                sqlx::query_as("SELECT value FROM meridian.private WHERE bucket = $1 AND key = $2")
                    .bind(bucket)
                    .bind(key)
                    .fetch_optional(connection)
                    .await?;
            let row = |(value,)| PrivateRow { bucket: bucket.to_owned(), key: key.to_owned(), value };
            Ok(found.map(row))
        })
    }

    pub(crate) async fn private_list(&self, bucket: &str) -> Result<Vec<PrivateRow>, Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let found: Vec<(String, Vec<u8>)> =
                sqlx::query_as("SELECT key, value FROM meridian.private WHERE bucket = $1 ORDER BY key")
                    .bind(bucket)
                    .fetch_all(&mut *connection)
                    .await?;
            let row = |(key, value)| PrivateRow { bucket: bucket.to_owned(), key, value };
            Ok(found.into_iter().map(row).collect())
        })
    }
}

fn key_row(row: &PgRow) -> Result<KeyRow, sqlx::Error> {
    Ok(KeyRow { kind: row.try_get(0)?, mesh: row.try_get(1)?, zone: row.try_get(2)?, name: row.try_get(3)? })
}

pub(super) fn resource_row(row: &PgRow) -> Result<ResourceRow, Failure> {
    Ok(ResourceRow {
        key: key_row(row)?,
        revision: row.try_get(4)?,
        body: row.try_get(5)?,
        sealed: row.try_get(6)?,
        created: row.try_get(7)?,
        modified: row.try_get(8)?,
        author: Author { name: row.try_get(9)?, via: row.try_get(10)? },
    })
}

pub(super) fn history_row(row: &PgRow) -> Result<HistoryRow, Failure> {
    Ok(HistoryRow {
        key: key_row(row)?,
        revision: row.try_get(4)?,
        body: row.try_get(5)?,
        sealed: row.try_get(6)?,
        author: Author { name: row.try_get(7)?, via: row.try_get(8)? },
        at: row.try_get(9)?,
    })
}
