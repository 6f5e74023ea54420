//! A Postgres that goes away: restarted, killed, cut off without a word.

use crate::link::Link;
use crate::place::{DEADLINE, cluster, feed_until, key, put, write};
use anyhow::{Context, Result, ensure};
use meridian_store::{KeyRing, Options, ReadError, Revision, Store};
use meridian_testkit::postgres::{Postgres, Settings};
use meridian_testkit::wait;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

async fn open(url: &str, keys: &KeyRing, replica: &str) -> Result<Store> {
    Ok(Store::open(Options::new(url, keys.clone(), replica)).await?)
}

fn keys() -> Result<KeyRing> {
    Ok(KeyRing::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")?)
}

/// A writer that goes on whatever happens, and remembers what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<(String, Revision)>>,
}

impl Load {
    fn start(store: Store, number: usize) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for index in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let name = format!("w{number}-{index}");
                if let Ok(revision) = write(&store, vec![put(&key(&name), json!([number, index]))]).await {
                    acknowledged.push((name, revision));
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
            acknowledged
        });
        Self { stop, count, task }
    }

    async fn until_more(&self, more: u64) -> Result<()> {
        let goal = self.count.load(Ordering::SeqCst) + more;
        wait::until("writes to be acknowledged", DEADLINE, || async {
            let count = self.count.load(Ordering::SeqCst);
            ensure!(count >= goal, "{count} of {goal}");
            Ok(())
        })
        .await
    }

    async fn stop(self) -> Result<Vec<(String, Revision)>> {
        self.stop.store(true, Ordering::SeqCst);
        Ok(self.task.await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_loses_no_acknowledged_write_and_no_follower_is_stuck() -> Result<()> {
    let postgres = Postgres::start(Settings::default()).await?;
    let url = postgres.create_database("store").await?;
    let keys = keys()?;
    let (one, two) = (open(&url, &keys, "one").await?, open(&url, &keys, "two").await?);
    let loads: Vec<_> =
        (0..4).map(|n| Load::start(if n % 2 == 0 { one.clone() } else { two.clone() }, n)).collect();
    for kill in [false, true] {
        for load in &loads {
            load.until_more(10).await?;
        }
        if kill {
            postgres.kill().await?;
            let mut feed = two.feed();
            feed_until(&mut feed, DEADLINE, |feed| !feed.known).await?;
            postgres.launch().await?;
        } else {
            postgres.restart().await?;
        }
    }
    for load in &loads {
        load.until_more(10).await?;
    }
    let mut acknowledged = Vec::new();
    for load in loads {
        acknowledged.extend(load.stop().await?);
    }
    let newest = one.revision().await?;
    for store in [&one, &two] {
        feed_until(&mut store.feed(), DEADLINE, |feed| feed.known && feed.revision >= newest).await?;
    }
    for (name, revision) in &acknowledged {
        let found = two
            .get(&key(name))
            .await?
            .with_context(|| format!("{name}, acknowledged at {revision}, is lost"))?;
        assert_eq!(found.revision, *revision);
    }
    // No hole: as many revisions as there are writes in history.
    let (mut cursor, mut count) = (Revision::ZERO, 0);
    while cursor < newest {
        let changes = two.changes_after(cursor).await?;
        count += changes.entries.len();
        cursor = changes.upto;
    }
    assert_eq!(u64::try_from(count)?, newest.0);
    Ok(())
}

#[tokio::test]
async fn a_killed_listener_is_back_at_once_and_has_missed_nothing() -> Result<()> {
    let database = format!("t{}", uuid::Uuid::new_v4().simple());
    let url = cluster().await?.create_database(&database).await?;
    let keys = keys()?;
    let (one, two) = (open(&url, &keys, "one").await?, open(&url, &keys, "two").await?);
    let mut feed = two.feed();
    for number in 1..=5 {
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'meridian'";
        cluster().await?.psql(&database, kill).await?;
        write(&one, vec![put(&key("a"), number)]).await?;
        let before = Instant::now();
        feed_until(&mut feed, DEADLINE, |feed| feed.known && feed.revision == Revision(number)).await?;
        // Not by the liveness query, which comes every 15 s.
        assert!(before.elapsed() < Duration::from_secs(10));
    }
    Ok(())
}

#[tokio::test]
async fn a_silently_cut_connection_is_noticed_and_read_from_where_it_ended() -> Result<()> {
    let database = format!("t{}", uuid::Uuid::new_v4().simple());
    let direct = cluster().await?.create_database(&database).await?;
    let link = Link::to(cluster().await?.port()).await?;
    let through =
        direct.replace(&format!(":{}/", cluster().await?.port()), &format!(":{}/", link.address.port()));
    assert_ne!(direct, through);
    let keys = keys()?;
    let (near, far) = (open(&direct, &keys, "near").await?, open(&through, &keys, "far").await?);
    let mut feed = far.feed();
    write(&near, vec![put(&key("a"), 1)]).await?;
    feed_until(&mut feed, DEADLINE, |feed| feed.known && feed.revision == Revision(1)).await?;
    assert!(far.get(&key("a")).await?.is_some());
    link.cut();
    write(&near, vec![put(&key("a"), 2)]).await?;
    // An answer comes, though not the one that was hoped for.
    let before = Instant::now();
    let unanswered = far.get(&key("a")).await;
    assert!(matches!(unanswered, Err(ReadError::Unavailable(_))), "{unanswered:?}");
    assert!(before.elapsed() < Duration::from_secs(20));
    // 15 s between liveness queries and 5 s for an answer; the rest is this machine's.
    let lost = feed_until(&mut feed, Duration::from_secs(25), |feed| !feed.known).await?;
    assert_eq!(lost.revision, Revision(1));
    write(&near, vec![put(&key("b"), 1)]).await?;
    link.mend();
    feed_until(&mut feed, DEADLINE, |feed| feed.known && feed.revision == Revision(3)).await?;
    let missed = far.changes_after(Revision(1)).await?;
    assert_eq!(missed.entries.iter().map(|entry| entry.key.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    // And it hears again.
    write(&near, vec![put(&key("c"), 1)]).await?;
    feed_until(&mut feed, DEADLINE, |feed| feed.revision == Revision(4)).await?;
    write(&far, vec![put(&key("d"), 1)]).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_falls_silent_in_a_write_does_not_stop_the_others() -> Result<()> {
    let database = format!("t{}", uuid::Uuid::new_v4().simple());
    let url = cluster().await?.create_database(&database).await?;
    let store = open(&url, &keys()?, "one").await?;
    // Another client with the row that orders writes, as a replica has it whose host just died.
    let mut silent = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await?;
    sqlx::raw_sql(
        "SET idle_in_transaction_session_timeout = '2s'; BEGIN; SELECT * FROM meridian.meta FOR UPDATE",
    )
    .execute(&mut silent)
    .await?;
    assert_eq!(write(&store, vec![put(&key("a"), 1)]).await?, Revision(1));
    Ok(())
}
