use super::Postgres;
use super::connections::{ATTEMPT, retrying};
use crate::failure::Failure;
use crate::plan::now;
use crate::rows::StatusRecord;
use sqlx::Connection;
use time::OffsetDateTime;

/// Zone, value, name of the replica, whether it is there, time.
type StatusColumns = (String, Vec<u8>, Option<String>, bool, OffsetDateTime);

impl Postgres {
    /// Writes sections of a zone's status. `claim`: this replica has not reported the zone before, so another may have.
    pub(crate) async fn put_status(
        &self,
        zone: &str,
        sections: &[(String, Vec<u8>)],
        claim: bool,
    ) -> Result<(), Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
            sqlx::query(
                "INSERT INTO meridian.zone_status (zone, section, value, replica, at) \
                 SELECT $1, section, value, $4, $5 FROM unnest($2::text[], $3::bytea[]) AS new (section, value) \
                 ON CONFLICT (zone, section) DO UPDATE SET \
                     value = excluded.value, replica = excluded.replica, at = excluded.at",
            )
            .bind(zone)
            .bind(sections.iter().map(|(section, _)| section.as_str()).collect::<Vec<_>>())
            .bind(sections.iter().map(|(_, value)| value.as_slice()).collect::<Vec<_>>())
            .bind(self.replica.to_string())
            .bind(now())
            .execute(&mut *transaction)
            .await?;
            if claim {
                sqlx::query("SELECT pg_notify($1, $2)")
                    .bind(super::follow::CHANNEL)
                    .bind(super::follow::claim(self.replica, zone))
                    .execute(&mut *transaction)
                    .await?;
            }
            Ok(transaction.commit().await?)
        })
    }

    pub(crate) async fn statuses(&self, section: &str) -> Result<Vec<StatusRecord>, Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            let rows: Vec<StatusColumns> = sqlx::query_as(
                "WITH held AS MATERIALIZED (SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks \
                     WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
                 SELECT s.zone, s.value, r.name, EXISTS (SELECT FROM held WHERE held.key = r.lock_key), s.at \
                 FROM meridian.zone_status s LEFT JOIN meridian.replicas r ON r.id = s.replica \
                 WHERE s.section = $1 ORDER BY s.zone",
            )
            .bind(section)
            .fetch_all(&mut *connection)
            .await?;
            let record = |(zone, value, replica, replica_alive, at)| StatusRecord {
                zone,
                section: section.to_owned(),
                value,
                replica: Option::unwrap_or_default(replica),
                replica_alive,
                at,
            };
            Ok(rows.into_iter().map(record).collect())
        })
    }

    pub(crate) async fn delete_status(&self, zone: &str) -> Result<(), Failure> {
        retrying!(self.connections, ATTEMPT, connection => {
            sqlx::query("DELETE FROM meridian.zone_status WHERE zone = $1")
                .bind(zone)
                .execute(&mut *connection)
                .await?;
            Ok(())
        })
    }
}
