//! Following what all replicas commit: one session that listens, holds this replica's advisory lock, and is asked for the
//! newest revision every 15 s, since a connection whose packets are dropped looks like one on which nothing happens.
//!
//! Notifications are only a hint of what is committed. They are lost with the session, so each new session asks for the
//! newest revision after it has begun to listen; what lies between is in the history.

use super::connections::{Connections, prepare_session, within};
use crate::Revision;
use crate::failure::Failure;
use crate::feed::FeedSender;
use crate::rows::Meta;
use crate::status::StatusDesk;
use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use sqlx::{Acquire, PgConnection};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

pub(super) const CHANNEL: &str = "meridian";
/// How often the connection that listens is asked whether it still hears: the one query at rest.
const LIVENESS: Duration = Duration::from_secs(15);
/// For the liveness query, and for all that opens a session.
const LIMIT: Duration = Duration::from_secs(5);
/// Before a new session, doubled...
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// ...up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Follower {
    connections: Arc<Connections>,
    replica: Uuid,
    name: String,
    feed: FeedSender,
    desk: Arc<StatusDesk>,
}

/// What the payload of a notification says.
#[derive(Debug, PartialEq)]
enum Notice {
    Committed(Revision),
    /// A replica began to report a zone's status.
    Claimed {
        replica: Uuid,
        zone: String,
    },
    /// Anything else: ask.
    Look,
}

impl Follower {
    pub(super) fn new(
        connections: Arc<Connections>,
        replica: Uuid,
        name: String,
        feed: FeedSender,
        desk: Arc<StatusDesk>,
    ) -> Self {
        Self { connections, replica, name, feed, desk }
    }

    /// Never returns.
    pub(super) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match within(LIMIT, self.open()).await {
                Ok(session) => {
                    tracing::debug!("following the database");
                    pause = FIRST_PAUSE;
                    self.listen(session).await
                }
                Err(why) => why,
            };
            if self.feed.current().known {
                tracing::warn!(?why, "the database is out of reach: its newest revision is unknown");
            }
            self.feed.lost();
            self.connections.give_up_all();
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A session that listens, holds the replica's lock and knows the newest revision.
    async fn open(&self) -> Result<PgListener, Failure> {
        // The driver's listener wants a pool to take its one connection from.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(LIMIT)
            .max_lifetime(None)
            .idle_timeout(None);
        let pool = pool.test_before_acquire(false).connect_lazy_with(self.connections.options().clone());
        let mut session = PgListener::connect_with(&pool).await?;
        session.eager_reconnect(false);
        session.ignore_pool_close_event(true);
        prepare_session(session.acquire().await?).await?;
        session.listen(CHANNEL).await?;
        self.sign_in(session.acquire().await?).await?;
        // Claims of other replicas may have been missed: report anew what there is to report.
        self.desk.forget_written();
        self.ask(&mut session).await?;
        Ok(session)
    }

    /// Takes a lock of its own for this session: an earlier session's may still be held by a server that has not
    /// noticed its end.
    async fn sign_in(&self, connection: &mut PgConnection) -> Result<(), Failure> {
        let lock_key: i64 = rand::random_range(1..i64::MAX);
        let (held,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_lock($1)")
            .bind(lock_key)
            .fetch_one(&mut *connection)
            .await?;
        if !held {
            return Err(Failure::Lost("the lock of this replica is held by another".into()));
        }
        sqlx::query(
            "INSERT INTO meridian.replicas (id, name, lock_key) VALUES ($1, $2, $3) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, lock_key = excluded.lock_key",
        )
        .bind(self.replica.to_string())
        .bind(&self.name)
        .bind(lock_key)
        .execute(&mut *connection)
        .await?;
        // Replicas that are gone and have left nothing behind.
        sqlx::query(
            "DELETE FROM meridian.replicas r WHERE NOT EXISTS (SELECT FROM meridian.zone_status s WHERE s.replica = r.id) \
             AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
                 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND (l.classid::bigint << 32) | l.objid::bigint = r.lock_key)",
        )
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Serves a session until it is lost.
    async fn listen(&self, mut session: PgListener) -> Failure {
        let mut liveness = Instant::now() + LIVENESS;
        loop {
            let notice = tokio::select! {
                received = session.try_recv() => match received {
                    Ok(Some(notification)) => Notice::of(&notification),
                    Ok(None) => return Failure::Lost("the connection was closed".into()),
                    Err(error) => return error.into(),
                },
                () = tokio::time::sleep_until(liveness) => Notice::Look,
            };
            match notice {
                Notice::Committed(revision) => self.feed.committed(revision),
                Notice::Claimed { replica, .. } if replica == self.replica => {}
                Notice::Claimed { zone, .. } => self.desk.taken_over(&zone),
                Notice::Look => {
                    if let Err(why) = within(LIMIT, self.ask(&mut session)).await {
                        return why;
                    }
                    liveness = Instant::now() + LIVENESS;
                }
            }
        }
    }

    async fn ask(&self, session: &mut PgListener) -> Result<(), Failure> {
        let before = self.feed.current();
        let meta = super::read::meta(session.acquire().await?).await?.ok_or_else(Meta::missing)?;
        self.feed.asked(before, &meta);
        Ok(())
    }
}

impl Notice {
    fn of(notification: &PgNotification) -> Self {
        Self::parse(notification.payload())
    }

    fn parse(payload: &str) -> Self {
        if let Ok(revision) = payload.parse() {
            return Self::Committed(Revision(revision));
        }
        let claim = payload.strip_prefix("claim ").and_then(|rest| rest.split_once(' '));
        match claim.map(|(replica, zone)| (replica.parse(), zone)) {
            Some((Ok(replica), zone)) => Self::Claimed { replica, zone: zone.to_owned() },
            _ => Self::Look,
        }
    }
}

/// The payload that tells other replicas that this one reports a zone's status.
pub(super) fn claim(replica: Uuid, zone: &str) -> String {
    format!("claim {replica} {zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_understood_and_others_make_it_look() {
        assert_eq!(Notice::parse("17"), Notice::Committed(Revision(17)));
        let replica = Uuid::new_v4();
        let claimed = Notice::Claimed { replica, zone: "a zone".to_owned() };
        assert_eq!(Notice::parse(&claim(replica, "a zone")), claimed);
        for other in ["", "restored", "-1", "claim x y", "claim", "99999999999999999999999"] {
            assert_eq!(Notice::parse(other), Notice::Look, "{other:?}");
        }
    }
}
