//! What several replicas on one Postgres are to each other, and what a second process on one SQLite file is told.

use crate::place::{DEADLINE, Place, cluster, feed_until, key, kind, put, resource, write};
use crate::status::rows_until;
use anyhow::{Context, Result};
use meridian_core::Key;
use meridian_store::{Author, Change, Expect, OpenError, Options, Query, Revision, Store};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[tokio::test]
async fn replicas_that_start_together_share_one_store() -> Result<()> {
    let place = Place::postgres().await?;
    let options = place.options("many")?;
    let opened = (0..6).map(|_| tokio::spawn(Store::open(options.clone())));
    let mut ids = Vec::new();
    for store in opened.collect::<Vec<_>>() {
        ids.push(store.await??.store_id());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_commit_of_one_replica_moves_the_feeds_of_all() -> Result<()> {
    let place = Place::postgres().await?;
    let (one, two) = (place.open().await?, place.replica("two").await?);
    let (mut one_feed, mut two_feed) = (one.feed(), two.feed());
    for number in 1..=20 {
        let writer = if number % 2 == 0 { &one } else { &two };
        write(writer, vec![put(&key("a"), number)]).await?;
        for (feed, store) in [(&mut one_feed, &one), (&mut two_feed, &two)] {
            feed_until(feed, DEADLINE, |feed| feed.revision == Revision(number)).await?;
            assert_eq!(store.get(&key("a")).await?.unwrap().resource.spec, json!(number));
        }
    }
    let id = two.restored().await?;
    feed_until(&mut one_feed, DEADLINE, |feed| feed.store_id == id).await?;
    assert_eq!(one.store_id(), id);
    Ok(())
}

#[tokio::test]
async fn a_write_that_comes_to_nothing_does_not_hold_up_other_replicas() -> Result<()> {
    let place = Place::postgres().await?;
    let (one, two) = (place.open().await?, place.replica("two").await?);
    write(&one, vec![put(&key("a"), 1)]).await?;
    let conflict = Change::Put { resource: resource(&key("a"), 2), expect: Expect::Absent };
    let unstorable = Change::PutPrivate { bucket: "b\0".into(), key: "k".into(), value: Vec::new() };
    for (number, nothing) in (1..).zip([conflict, put(&key("a"), 1), unstorable]) {
        let _ = write(&one, vec![nothing]).await;
        // The first one does nothing more: it must not sit on the row that orders writes.
        let written =
            tokio::time::timeout(Duration::from_secs(5), write(&two, vec![put(&key("b"), number)])).await;
        assert_eq!(written.context("the other replica waits")??, Revision(number + 1));
    }
    Ok(())
}

#[tokio::test]
async fn an_older_database_underneath_takes_the_feed_back() -> Result<()> {
    let place = Place::postgres().await?;
    let database = place.database.clone().unwrap();
    let store = place.open().await?;
    write(&store, vec![put(&key("a"), 1)]).await?;
    let backup = cluster().await?.dump(&database).await?;
    for number in 2..=5 {
        write(&store, vec![put(&key("a"), number)]).await?;
    }
    let mut feed = store.feed();
    cluster().await?.restore(&database, &backup).await?;
    feed_until(&mut feed, DEADLINE, |feed| feed.known && feed.revision == Revision(1)).await?;
    assert!(store.changes_after(Revision(5)).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_rotation_by_one_replica_is_followed_by_the_others() -> Result<()> {
    let place = Place::postgres().await?;
    let (one, two) = (place.open().await?, place.replica("two").await?);
    let secret = Key::global(kind("Secret"), "default", "tls");
    write(&one, vec![put(&secret, "1")]).await?;
    assert_eq!(two.get(&secret).await?.unwrap().resource.spec, "1");
    one.rotate_key().await?;
    assert_eq!(two.get(&secret).await?.unwrap().resource.spec, "1");
    one.rotate_key().await?;
    // It writes without having read first.
    write(&two, vec![put(&secret, "2")]).await?;
    assert_eq!(one.get(&secret).await?.unwrap().resource.spec, "2");
    two.rotate_key().await?;
    assert_eq!(one.get(&secret).await?.unwrap().resource.spec, "2");
    Ok(())
}

#[tokio::test]
async fn the_status_of_a_dead_replica_is_unknown_everywhere_and_taken_over_by_another() -> Result<()> {
    let place = Place::postgres().await?;
    let (one, two, three) = (place.open().await?, place.replica("two").await?, place.replica("three").await?);
    one.put_status("east", "overview", &json!(1));
    for store in [&one, &two, &three] {
        rows_until(store, "overview", |rows| rows.len() == 1 && rows[0].replica_alive).await?;
    }
    // The zone moves to another replica, and back: what is equal to what one wrote before is written again.
    two.put_status("east", "overview", &json!(2));
    rows_until(&one, "overview", |rows| rows[0].replica == "two").await?;
    one.claim_status("east");
    one.put_status("east", "overview", &json!(1));
    rows_until(&two, "overview", |rows| rows[0].replica == "one" && rows[0].value == 1).await?;
    drop(one);
    for store in [&two, &three] {
        rows_until(store, "overview", |rows| !rows[0].replica_alive && rows[0].replica == "one").await?;
    }
    three.put_status("east", "overview", &json!(1));
    rows_until(&two, "overview", |rows| rows[0].replica_alive && rows[0].replica == "three").await?;
    Ok(())
}

#[tokio::test]
async fn a_second_holder_of_an_sqlite_file_is_refused() -> Result<()> {
    let place = Place::sqlite().await?;
    let store = place.open().await?;
    let refused = place.try_open("two").await?.err().unwrap();
    assert!(matches!(refused, OpenError::InUse { .. }));
    let text = refused.to_string();
    assert!(text.contains("store.db") && text.contains(&format!("pid {}", std::process::id())), "{text}");
    write(&store, vec![put(&key("a"), 1)]).await?;
    drop(store);
    assert_eq!(place.replica("two").await?.revision().await?, Revision(1));
    for entry in std::fs::read_dir(place.directory.path().join("data"))? {
        let entry = entry?;
        assert_eq!(entry.metadata()?.permissions().mode() & 0o077, 0, "{:?}", entry.path());
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_without_the_password() -> Result<()> {
    let place = Place::sqlite().await?;
    let keys = place.options("one")?.keys;
    for url in ["postgres://u:hush@[::1:5432/d", "mysql://u:hush@host/d", "sqlite:"] {
        let refused = Store::open(Options::new(url, keys.clone(), "one")).await.err().unwrap();
        assert!(matches!(refused, OpenError::Url { .. }), "{url}: {refused}");
        assert!(!format!("{refused:?}{refused}").contains("hush"));
    }
    Ok(())
}

/// What API servers and streams run on threads of a runtime must be movable between them.
#[test]
fn futures_of_the_store_can_move_between_threads() {
    fn movable<T: Send>(_: impl Fn() -> T) {}
    let all = |store: &Store, key: &Key, query: &Query, author: &Author| {
        movable(|| store.write(author, Vec::new()));
        movable(|| store.get(key));
        movable(|| store.snapshot());
        movable(|| store.changes_after(Revision::ZERO));
        movable(|| store.history(key, 1));
        movable(|| store.list(query));
        movable(|| store.private_ensure("a", "b", Vec::new()));
        movable(|| store.statuses("a"));
        movable(|| store.rotate_key());
        movable(|| store.restored());
    };
    let _: &dyn Fn(&Store, &Key, &Query, &Author) = &all;
}
