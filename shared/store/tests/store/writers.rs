//! Writers that get in each other's way, with random delays and killed connections, and readers that follow them: no
//! reader sees a hole or misses a change, and what was acknowledged is there, once.

use crate::place::{DEADLINE, Place, cluster, delete, key, put, resource, write};
use anyhow::{Context, Result, ensure};
use meridian_core::Key;
use meridian_store::{Change, Changed, ChangesError, Expect, ReadError, Revision, Store, WriteError};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

#[derive(Clone, Debug)]
struct Plan {
    writers: Vec<Vec<Step>>,
    /// Pauses before all sessions of the database are killed.
    kills: Vec<Duration>,
    /// When each reader begins.
    readers: Vec<Duration>,
}

#[derive(Clone, Debug)]
struct Step {
    pause: Duration,
    act: Act,
}

#[derive(Clone, Debug)]
enum Act {
    Put {
        names: Vec<u8>,
    },
    /// At the revision that was read before, so that one of two rivals fails.
    Replace {
        name: u8,
    },
    Delete {
        name: u8,
    },
    /// Fails after it has taken its turn.
    Fail {
        name: u8,
    },
    Private,
}

fn plans() -> impl Strategy<Value = Plan> {
    let name = 0..5_u8;
    let act = prop_oneof![
        4 => proptest::collection::btree_set(name.clone(), 1..4).prop_map(|names| Act::Put { names: names.into_iter().collect() }),
        2 => name.clone().prop_map(|name| Act::Replace { name }),
        2 => name.clone().prop_map(|name| Act::Delete { name }),
        1 => name.prop_map(|name| Act::Fail { name }),
        1 => Just(Act::Private),
    ];
    let pause = |most: u64| (0..most).prop_map(Duration::from_millis);
    let step = (pause(12), act).prop_map(|(pause, act)| Step { pause, act });
    let writers = proptest::collection::vec(proptest::collection::vec(step, 5..25), 2..6);
    let kills = proptest::collection::vec(pause(120), 0..4);
    let readers = proptest::collection::vec(pause(150), 1..4);
    (writers, kills, readers).prop_map(|(writers, kills, readers)| Plan { writers, kills, readers })
}

/// What a writer was told: its values, and the revision if it was acknowledged; none if the outcome is unknown.
type Told = Vec<(Vec<(Key, Value)>, Option<Revision>)>;

async fn run_writer(store: Store, number: usize, steps: Vec<Step>, disturbed: bool) -> Result<Told> {
    let mut told = Vec::new();
    for (index, step) in steps.into_iter().enumerate() {
        sleep(step.pause).await;
        let value = |name: u8| (key(&format!("r{name}")), json!([number, index, name]));
        let (values, changes) = match step.act {
            Act::Put { names } => {
                let values: Vec<_> = names.into_iter().map(value).collect();
                let changes = values.iter().map(|(key, value)| put(key, value.clone())).collect();
                (values, changes)
            }
            Act::Replace { name } => {
                let (key, value) = value(name);
                let Ok(found) = store.get(&key).await else { continue };
                let expect = found.map_or(Expect::Absent, |found| Expect::Revision(found.revision));
                let change = Change::Put { resource: resource(&key, value.clone()), expect };
                (vec![(key, value)], vec![change])
            }
            Act::Delete { name } => (Vec::new(), vec![delete(&value(name).0)]),
            Act::Fail { name } => {
                let impossible = Expect::Revision(Revision(u64::from(u32::MAX)));
                let change = Change::Put { resource: resource(&key("never"), 1), expect: impossible };
                let (key, value) = value(name);
                let refused = write(&store, vec![put(&key, value), change]).await;
                ensure!(refused.is_err(), "{refused:?}");
                continue;
            }
            Act::Private => {
                let private = Change::PutPrivate { bucket: "b".into(), key: "k".into(), value: vec![1] };
                (Vec::new(), vec![private])
            }
        };
        match write(&store, changes).await {
            Ok(revision) => told.push((values, Some(revision))),
            Err(WriteError::Uncertain(_)) if disturbed => told.push((values, None)),
            Err(WriteError::Conflict { .. }) => {}
            Err(WriteError::Unavailable(_)) if disturbed => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(told)
}

/// Follows the store from a snapshot until it has reached the end, and gives its copy.
async fn follow(
    store: Store,
    begin: Duration,
    mut end: watch::Receiver<Option<Revision>>,
) -> Result<BTreeMap<Key, Value>> {
    sleep(begin).await;
    let snapshot = loop {
        match store.snapshot().await {
            Ok(snapshot) => break snapshot,
            Err(ReadError::Unavailable(_)) => sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let contents = snapshot.resources.into_iter().map(|stored| (stored.resource.key, stored.resource.spec));
    let (mut copy, mut cursor): (BTreeMap<_, _>, _) = (contents.collect(), snapshot.revision);
    let mut feed = store.feed();
    loop {
        let seen = *feed.borrow_and_update();
        match store.changes_after(cursor).await {
            Ok(changes) => {
                ensure!(
                    changes.newest >= seen.revision,
                    "the feed said {seen:?}, the store {:?}",
                    changes.newest
                );
                let mut revisions: Vec<u64> = changes.entries.iter().map(|entry| entry.revision.0).collect();
                revisions.dedup();
                let expected: Vec<u64> = (cursor.0 + 1..=changes.upto.0).collect();
                ensure!(revisions == expected, "above {cursor}: {revisions:?}, up to {}", changes.upto);
                for entry in changes.entries {
                    match entry.change {
                        Changed::Put(resource) => copy.insert(entry.key, resource.spec),
                        Changed::Delete => copy.remove(&entry.key),
                    };
                }
                cursor = changes.upto;
            }
            Err(ChangesError::Read(ReadError::Unavailable(_))) => {}
            Err(error) => return Err(error.into()),
        }
        if end.borrow_and_update().is_some_and(|end| cursor >= end) {
            return Ok(copy);
        }
        tokio::select! {
            changed = feed.changed() => changed?,
            changed = end.changed() => changed?,
        }
    }
}

/// Kills every session of the store now and then.
async fn kill(database: String, pauses: Vec<Duration>) -> Result<()> {
    for pause in pauses {
        sleep(pause).await;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'meridian'";
        cluster().await?.psql(&database, kill).await?;
    }
    Ok(())
}

async fn hold(place: Place, plan: Plan) -> Result<()> {
    let first = place.open().await?;
    let second = if place.database.is_some() { place.replica("two").await? } else { first.clone() };
    let disturbed = place.database.is_some() && !plan.kills.is_empty();
    let either = |number: usize| if number.is_multiple_of(2) { first.clone() } else { second.clone() };
    let (end, ended) = watch::channel(None);
    let spawn_reader = |(number, begin)| tokio::spawn(follow(either(number), begin, ended.clone()));
    let readers: Vec<_> = plan.readers.into_iter().enumerate().map(spawn_reader).collect();
    let spawn_writer = |(number, steps)| tokio::spawn(run_writer(either(number), number, steps, disturbed));
    let writers: Vec<_> = plan.writers.into_iter().enumerate().map(spawn_writer).collect();
    if let Some(database) = place.database.clone() {
        kill(database, plan.kills).await?;
    }
    let mut told = Vec::new();
    for writer in writers {
        told.extend(writer.await??);
    }
    let snapshot = first.snapshot().await?;
    end.send_replace(Some(snapshot.revision));
    let present: BTreeMap<_, _> =
        snapshot.resources.into_iter().map(|stored| (stored.resource.key, stored.resource.spec)).collect();
    for reader in readers {
        let copy =
            tokio::time::timeout(DEADLINE, reader).await.context("a reader did not get to the end")???;
        ensure!(copy == present, "a reader's copy {copy:?} is not {present:?}");
    }
    // History has each acknowledged value at its revision, and each value at most once.
    let mut places: BTreeMap<String, Revision> = BTreeMap::new();
    let mut cursor = Revision::ZERO;
    while cursor < snapshot.revision {
        let changes = first.changes_after(cursor).await?;
        for entry in &changes.entries {
            if let Changed::Put(resource) = &entry.change {
                let twice = places.insert(resource.spec.to_string(), entry.revision);
                ensure!(twice.is_none(), "{} was written twice", resource.spec);
            }
        }
        cursor = changes.upto;
    }
    for (values, revision) in told {
        let found: Vec<_> = values.iter().map(|(_, value)| places.get(&value.to_string()).copied()).collect();
        match revision {
            Some(revision) => {
                ensure!(found.iter().all(|found| *found == Some(revision)), "{values:?}: {found:?}")
            }
            None => ensure!(
                found.windows(2).all(|pair| pair[0] == pair[1]),
                "half of a write: {values:?}: {found:?}"
            ),
        }
    }
    Ok(())
}

fn in_a_runtime(test: impl Future<Output = Result<()>>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(test));
    result.map_err(|error| TestCaseError::fail(format!("{error:#}")))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        max_shrink_iters: 20,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn on_postgres_readers_miss_nothing_and_nothing_acknowledged_is_lost(plan in plans()) {
        in_a_runtime(async { hold(Place::postgres().await?, plan).await })?;
    }

    #[test]
    fn on_sqlite_readers_miss_nothing_and_nothing_acknowledged_is_lost(plan in plans()) {
        in_a_runtime(async { hold(Place::sqlite().await?, plan).await })?;
    }
}
