//! Connections to Postgres: few, reused while they are fresh, dropped at the first sign of trouble.
//!
//! Why not the driver's pool: it tests a connection each time it is returned and, if the network silently drops
//! packets, that test waits for many minutes with the connection's place taken; and it cannot be told that all its
//! connections are of no more use.

use crate::error::Source;
use crate::failure::Failure;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Writes wait for one row anyway, and reads are short.
const MOST: usize = 8;
/// Middleboxes forget connections that rest: after this long, one is asked for a sign of life before it is used.
const FRESH: Duration = Duration::from_secs(30);
/// How long that sign may take.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// And after this long it is not kept.
const STALE: Duration = Duration::from_secs(600);
/// How long one attempt at a short operation may take.
pub(super) const ATTEMPT: Duration = Duration::from_secs(5);
/// How long a lost connection is tried anew before the caller hears of it: a restart of Postgres fits in.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two such tries, doubled...
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// ...up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// For every session: the server ends a transaction whose client went silent while it held the row that orders writes, and
/// notices that a client is gone (its advisory lock with it) within half a minute.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '15s'; SET statement_timeout = '60s'; \
    SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = 30000; SET search_path = meridian; SET client_min_messages = warning";

pub(super) struct Connections {
    options: PgConnectOptions,
    permits: Semaphore,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The latest used is last.
    connections: Vec<(PgConnection, Instant)>,
    /// Counts how often all connections were given up.
    generation: u64,
}

/// A connection in use. Dropped without being given back, it is closed.
pub(super) struct Lease<'a> {
    pub(super) connection: PgConnection,
    generation: u64,
    _permit: SemaphorePermit<'a>,
}

impl Connections {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self { options, permits: Semaphore::new(MOST), idle: Mutex::default() }
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// For an operation that may be begun twice: see [`retrying`].
    pub(super) fn attempts(&self) -> Attempts<'_> {
        Attempts { connections: self, deadline: Instant::now() + PATIENCE, pause: FIRST_PAUSE }
    }

    /// No connection that exists now is used again once it is idle.
    pub(super) fn give_up_all(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.connections.clear();
        idle.generation += 1;
    }

    async fn lease(&self) -> Result<Lease<'_>, Failure> {
        within(ATTEMPT, async {
            let permit = self.permits.acquire().await.map_err(|closed| Failure::Lost(closed.into()))?;
            let (generation, ready) = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.connections.retain(|(_, since)| since.elapsed() < STALE);
                (idle.generation, idle.connections.pop())
            };
            let connection = match ready {
                Some((connection, since)) if since.elapsed() < FRESH => Some(connection),
                Some((connection, _)) => alive(connection).await,
                None => None,
            };
            let connection = match connection {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            Ok(Lease { connection, generation, _permit: permit })
        })
        .await
    }

    /// For further use.
    fn give_back(&self, lease: Lease<'_>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.generation == idle.generation {
            idle.connections.push((lease.connection, Instant::now()));
        }
    }

    async fn connect(&self) -> Result<PgConnection, Failure> {
        // Boxed: it is large, and rarely runs.
        let mut connection = Box::pin(self.options.connect()).await?;
        prepare_session(&mut connection).await?;
        Ok(connection)
    }
}

/// Runs the block, which must give `Result<_, Failure>` and may be begun twice, with a connection; with another one, again and
/// again for a while, when that is lost. A macro, since an async closure that borrows its argument is not yet `Send` enough.
macro_rules! retrying {
    ($connections:expr, $limit:expr, $connection:ident => $operation:block) => {{
        let mut attempts = $connections.attempts();
        loop {
            let mut lease = match attempts.lease().await {
                Ok(lease) => lease,
                Err(failure) => break Err(failure),
            };
            let $connection = &mut lease.connection;
            let result = $crate::postgres::connections::within($limit, async { $operation }).await;
            if let Some(result) = attempts.settle(lease, result).await {
                break result;
            }
        }
    }};
}
pub(super) use retrying;

/// How often and how long an operation is tried.
pub(super) struct Attempts<'a> {
    connections: &'a Connections,
    deadline: Instant,
    pause: Duration,
}

impl<'a> Attempts<'a> {
    /// A connection; waits until there is one, within the patience of the operation.
    pub(super) async fn lease(&mut self) -> Result<Lease<'a>, Failure> {
        loop {
            match self.connections.lease().await {
                Err(Failure::Lost(why)) => self.wait(why).await?,
                lease => return lease,
            }
        }
    }

    /// What the operation came to; None if it is to be tried again.
    pub(super) async fn settle<T>(
        &mut self,
        lease: Lease<'a>,
        result: Result<T, Failure>,
    ) -> Option<Result<T, Failure>> {
        match result {
            Err(Failure::Lost(why)) => {
                drop(lease);
                self.connections.give_up_all();
                self.wait(why).await.err().map(Err)
            }
            Err(Failure::Uncertain(_)) => {
                self.connections.give_up_all();
                Some(result)
            }
            // Perhaps in the middle of a transaction, which ends with its connection.
            Err(_) => Some(result),
            Ok(_) => {
                self.connections.give_back(lease);
                Some(result)
            }
        }
    }

    async fn wait(&mut self, why: Source) -> Result<(), Failure> {
        if Instant::now() + self.pause >= self.deadline {
            return Err(Failure::Lost(why));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

pub(super) async fn prepare_session(connection: &mut PgConnection) -> Result<(), Failure> {
    sqlx::raw_sql(SESSION).execute(connection).await?;
    Ok(())
}

/// The connection, if it still answers.
async fn alive(mut connection: PgConnection) -> Option<PgConnection> {
    let answer = tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await;
    answer.is_ok_and(|answer| answer.is_ok()).then_some(connection)
}

/// The result, or a lost connection if it takes longer.
pub(super) async fn within<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let late = |_| Failure::Lost(format!("no answer from Postgres within {limit:?}").into());
    tokio::time::timeout(limit, operation).await.map_err(late)?
}
