use super::Sqlite;
use super::read::{from_micros, micros};
use crate::failure::Failure;
use crate::plan::now;
use crate::rows::StatusRecord;
use sqlx::Connection;

impl Sqlite {
    /// Writes sections of a zone's status.
    pub(crate) async fn put_status(&self, zone: &str, sections: &[(String, Vec<u8>)]) -> Result<(), Failure> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
        for (section, value) in sections {
            sqlx::query(
                "INSERT INTO zone_status (zone, section, value, replica, process, at) VALUES (?, ?, ?, ?, ?, ?) \
                 ON CONFLICT (zone, section) DO UPDATE SET value = excluded.value, replica = excluded.replica, \
                     process = excluded.process, at = excluded.at",
            )
            .bind(zone)
            .bind(section)
            .bind(value)
            .bind(&self.name)
            .bind(self.replica.as_bytes().as_slice())
            .bind(micros(now()))
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// This process is alive, and every other is gone: it holds the lock.
    pub(crate) async fn statuses(&self, section: &str) -> Result<Vec<StatusRecord>, Failure> {
        let rows: Vec<(String, Vec<u8>, String, bool, i64)> = sqlx::query_as(
            "SELECT zone, value, replica, process = ?, at FROM zone_status WHERE section = ? ORDER BY zone",
        )
        .bind(self.replica.as_bytes().as_slice())
        .bind(section)
        .fetch_all(&self.readers)
        .await?;
        let record = |(zone, value, replica, replica_alive, at)| {
            let section = section.to_owned();
            Ok(StatusRecord { zone, section, value, replica, replica_alive, at: from_micros(at)? })
        };
        rows.into_iter().map(record).collect()
    }

    pub(crate) async fn delete_status(&self, zone: &str) -> Result<(), Failure> {
        let mut writer = self.writer.lock().await;
        sqlx::query("DELETE FROM zone_status WHERE zone = ?").bind(zone).execute(&mut *writer).await?;
        Ok(())
    }
}
