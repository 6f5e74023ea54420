//! The store on Postgres: any number of replicas, one of which at a time holds the row that orders writes.

mod connections;
mod follow;
mod read;
mod schema;
mod status;
mod write;

use crate::feed::FeedSender;
use crate::plan::KeptHistory;
use crate::rows::Meta;
use crate::status::StatusDesk;
use crate::vault::Vault;
use crate::{OpenError, Options};
use connections::Connections;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Clone)]
pub(crate) struct Postgres {
    connections: Arc<Connections>,
    /// This replica, until the process ends.
    replica: Uuid,
    history: KeptHistory,
    /// Held by the one write of this process that is under way.
    writing: Arc<Mutex<()>>,
}

impl Postgres {
    /// Connects, migrates, and gives what the store's one row says.
    pub(crate) async fn open(options: &Options, vault: &Vault) -> Result<(Self, Meta), OpenError> {
        // The driver's message may repeat parts of the URL.
        let connect: PgConnectOptions = options
            .url
            .parse()
            .map_err(|_| OpenError::Url { reason: "it is not a URL of a Postgres database".to_owned() })?;
        let connect = connect.application_name("meridian").disable_statement_logging();
        let connections = Arc::new(Connections::new(connect));
        let meta = schema::prepare(&connections, vault).await?;
        let history = KeptHistory { revisions: options.keep_revisions };
        Ok((Self { connections, replica: Uuid::new_v4(), history, writing: Arc::default() }, meta))
    }

    /// Starts to follow what all replicas commit, until `end`.
    pub(crate) fn follow(
        &self,
        name: String,
        feed: FeedSender,
        desk: Arc<StatusDesk>,
        end: CancellationToken,
    ) {
        let follower = follow::Follower::new(Arc::clone(&self.connections), self.replica, name, feed, desk);
        tokio::spawn(async move { end.run_until_cancelled_owned(Box::pin(follower.run())).await });
    }
}
