use crate::place::{DEADLINE, Place, author, delete, feed_until, key, kind, on_both, put, resource, write};
use anyhow::Result;
use meridian_core::{Key, Resource};
use meridian_store::{Author, Change, Expect, OpenError, Query, Revision, WriteError};
use serde_json::json;

on_both! {
    writes_take_consecutive_revisions_and_are_there_when_acknowledged,
    a_write_that_changes_nothing_uses_no_revision,
    a_write_happens_only_if_the_present_is_what_it_expects,
    all_of_a_write_happens_or_nothing,
    bodies_come_back_exactly,
    resources_over_the_limit_are_refused,
    what_no_text_column_can_hold_is_refused_and_not_found,
    lists_filter_and_page,
    a_name_is_found_in_all_zones,
    the_feed_moves_with_every_commit,
    a_store_that_is_opened_again_is_the_same,
    a_restored_store_has_another_id,
    a_newer_schema_is_refused,
    a_write_goes_on_when_nobody_waits_for_it,
}

async fn writes_take_consecutive_revisions_and_are_there_when_acknowledged(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    assert_eq!(store.revision().await?, Revision::ZERO);
    assert_eq!(store.get(&key("a")).await?, None);
    for number in 1..=5 {
        assert_eq!(write(&store, vec![put(&key("a"), number)]).await?, Revision(number));
        let found = store.get(&key("a")).await?.unwrap();
        assert_eq!((found.resource.spec, found.revision), (json!(number), Revision(number)));
        assert_eq!(found.author, author());
        assert!(found.created <= found.modified);
    }
    assert_eq!(write(&store, vec![delete(&key("a"))]).await?, Revision(6));
    assert_eq!(store.get(&key("a")).await?, None);
    assert_eq!(store.revision().await?, Revision(6));
    Ok(())
}

async fn a_write_that_changes_nothing_uses_no_revision(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let mut with_label = resource(&key("a"), json!({"x": 1, "y": [1, 2]}));
    with_label.labels.insert("team".into(), "a".into());
    with_label.status = Some(json!({"ready": true}));
    let same = || Change::Put { resource: with_label.clone(), expect: Expect::Any };
    let secret = Key::global(kind("Secret"), "default", "tls");
    write(&store, vec![same(), put(&secret, "hush")]).await?;
    let feed = store.feed();
    for changes in [vec![same()], vec![put(&secret, "hush")], vec![same(), delete(&key("absent"))], vec![]] {
        assert_eq!(write(&store, changes).await?, Revision(1));
    }
    assert_eq!(store.history(&key("a"), 10).await?.len(), 1);
    assert!(!feed.has_changed()?);
    // Each part counts, and only what differs is written.
    let mut other = with_label.clone();
    other.status = None;
    let changed = vec![Change::Put { resource: other.clone(), expect: Expect::Any }, put(&secret, "hush")];
    assert_eq!(write(&store, changed).await?, Revision(2));
    assert_eq!(store.get(&secret).await?.unwrap().revision, Revision(1));
    other.labels.clear();
    assert_eq!(write(&store, vec![Change::Put { resource: other, expect: Expect::Any }]).await?, Revision(3));
    Ok(())
}

async fn a_write_happens_only_if_the_present_is_what_it_expects(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let (there, absent) = (key("there"), key("absent"));
    write(&store, vec![put(&there, 1)]).await?;
    write(&store, vec![put(&key("other"), 1)]).await?;
    let put = |key: &Key, expect| vec![Change::Put { resource: resource(key, 2), expect }];
    let delete = |key: &Key, expect| vec![Change::Delete { key: key.clone(), expect }];
    let now = Some(Revision(1));
    for (changes, found) in [
        (put(&there, Expect::Absent), now),
        (put(&there, Expect::Revision(Revision(2))), now),
        (put(&absent, Expect::Revision(Revision(1))), None),
        (delete(&there, Expect::Absent), now),
        (delete(&there, Expect::Revision(Revision(0))), now),
        (delete(&absent, Expect::Revision(Revision(1))), None),
    ] {
        let error = write(&store, changes.clone()).await.unwrap_err();
        let WriteError::Conflict { found: really, .. } = error else { panic!("{changes:?}: {error}") };
        assert_eq!(really, found, "{changes:?}");
    }
    for changes in [put(&absent, Expect::Present), delete(&absent, Expect::Present)] {
        assert!(matches!(write(&store, changes).await, Err(WriteError::NotFound { .. })));
    }
    assert_eq!(store.revision().await?, Revision(2));
    for (changes, revision) in [
        (put(&there, Expect::Revision(Revision(1))), 3),
        (delete(&there, Expect::Present), 4),
        (put(&there, Expect::Absent), 5),
        (delete(&there, Expect::Revision(Revision(5))), 6),
        (delete(&there, Expect::Absent), 6),
    ] {
        assert_eq!(write(&store, changes).await?, Revision(revision));
    }
    Ok(())
}

async fn all_of_a_write_happens_or_nothing(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    write(&store, vec![put(&key("a"), 1)]).await?;
    let private = Change::PutPrivate { bucket: "b".into(), key: "k".into(), value: b"v".to_vec() };
    let conflict = Change::Put { resource: resource(&key("a"), 2), expect: Expect::Absent };
    assert!(write(&store, vec![put(&key("b"), 1), private.clone(), conflict]).await.is_err());
    let repeated = write(&store, vec![put(&key("b"), 1), private, put(&key("b"), 2)]).await;
    assert!(matches!(repeated, Err(WriteError::Repeated { .. })));
    assert_eq!(store.get(&key("b")).await?, None);
    assert_eq!(store.private_get("b", "k").await?, None);
    assert_eq!(store.revision().await?, Revision(1));
    // Many in one transaction share its revision.
    let many = (0..500).map(|number| put(&key(&format!("n{number:03}")), number)).chain([delete(&key("a"))]);
    assert_eq!(write(&store, many.collect()).await?, Revision(2));
    let snapshot = store.snapshot().await?;
    assert_eq!(snapshot.resources.len(), 500);
    assert!(snapshot.resources.iter().all(|stored| stored.revision == Revision(2)));
    Ok(())
}

async fn bodies_come_back_exactly(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let spec = json!({"float": 1.0, "int": 1, "large": u64::MAX, "small": 1e-7, "text": "ä\u{0}\u{1f600}\"", "null": null});
    let mut whole = resource(&key("exact"), spec);
    whole.labels.insert("kuma.io/display-name".into(), "x".into());
    whole.status = Some(json!([]));
    write(&store, vec![Change::Put { resource: whole.clone(), expect: Expect::Any }]).await?;
    let found = store.get(&whole.key).await?.unwrap().resource;
    assert_eq!(found.canonical(), whole.canonical());
    assert_eq!(found, whole);
    Ok(())
}

async fn resources_over_the_limit_are_refused(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let frame = resource(&key("a"), "").canonical().len();
    let sized = |size: usize| put(&key("a"), "x".repeat(size - frame));
    let error = write(&store, vec![sized(512 * 1024 + 1)]).await.unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { size: 524_289, limit: 524_288, .. }), "{error}");
    assert_eq!(write(&store, vec![sized(512 * 1024)]).await?, Revision(1));
    Ok(())
}

async fn what_no_text_column_can_hold_is_refused_and_not_found(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let odd = key("a\0b");
    let mut labelled = resource(&key("a"), 1);
    labelled.labels.insert("team".into(), "\0".into());
    for change in [put(&odd, 1), delete(&odd), Change::Put { resource: labelled, expect: Expect::Any }] {
        assert!(matches!(write(&store, vec![change]).await, Err(WriteError::Unstorable { .. })));
    }
    assert_eq!(store.get(&odd).await?, None);
    assert!(store.find(odd.kind, "default", &odd.name).await?.is_empty());
    assert!(store.history(&odd, 1).await?.is_empty());
    let odd_label = Query { labels: vec![("team".into(), "\0".into())], ..Query::all(odd.kind) };
    assert_eq!(store.list(&odd_label).await?.total, 0);
    store.write(&Author::new("a\0", "api"), vec![put(&key("a"), 1)]).await?;
    assert_eq!(store.get(&key("a")).await?.unwrap().author.name, "a\u{fffd}");
    Ok(())
}

async fn lists_filter_and_page(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let mut changes = Vec::new();
    for (mesh, zone) in [("default", ""), ("default", "east"), ("other", "")] {
        for number in 0..10 {
            let key = Key::new(kind("Dataplane"), mesh, zone, format!("dp-{number}"));
            let mut dataplane: Resource = resource(&key, number);
            dataplane.labels.insert("team".into(), if number % 2 == 0 { "even" } else { "odd%" }.into());
            dataplane.labels.insert("number".into(), number.to_string());
            changes.push(Change::Put { resource: dataplane, expect: Expect::Any });
        }
    }
    write(&store, changes).await?;
    write(&store, vec![put(&key("no-dataplane"), 1)]).await?;
    let label = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let all = Query::all(kind("Dataplane"));
    let count = |query: Query| {
        let store = store.clone();
        async move { store.list(&query).await.map(|page| (page.items.len(), page.total)) }
    };
    assert_eq!(count(all.clone()).await?, (30, 30));
    assert_eq!(count(Query { mesh: Some("default".into()), ..all.clone() }).await?, (20, 20));
    assert_eq!(count(Query { zone: Some("east".into()), ..all.clone() }).await?, (10, 10));
    assert_eq!(count(Query { zone: Some(String::new()), ..all.clone() }).await?, (20, 20));
    assert_eq!(count(Query { name_contains: Some("p-3".into()), ..all.clone() }).await?, (3, 3));
    assert_eq!(count(Query { name_contains: Some("%".into()), ..all.clone() }).await?, (0, 0));
    assert_eq!(count(Query { labels: label("team", "odd%"), ..all.clone() }).await?, (15, 15));
    let both = [label("team", "even"), label("number", "4")].concat();
    assert_eq!(count(Query { labels: both, ..all.clone() }).await?, (3, 3));
    assert_eq!(count(Query { labels: label("team", "od"), ..all.clone() }).await?, (0, 0));
    assert_eq!(count(Query { size: 7, ..all.clone() }).await?, (7, 30));
    assert_eq!(count(Query { offset: 28, size: 7, ..all.clone() }).await?, (2, 30));
    assert_eq!(count(Query { offset: 99, ..all.clone() }).await?, (0, 30));
    // Pages put together are the whole, in the documented order.
    let whole = store.list(&all).await?.items;
    let mut pages = Vec::new();
    for offset in (0..30).step_by(7) {
        pages.extend(store.list(&Query { offset, size: 7, ..all.clone() }).await?.items);
    }
    assert_eq!(pages, whole);
    let order: Vec<_> =
        whole.iter().map(|stored| &stored.resource.key).map(|k| (&k.mesh, &k.name, &k.zone)).collect();
    assert!(order.is_sorted());
    Ok(())
}

async fn a_name_is_found_in_all_zones(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let at = |zone: &str| Key::new(kind("MeshService"), "default", zone, "web");
    write(&store, vec![put(&at("west"), 1), put(&at(""), 2), put(&at("east"), 3)]).await?;
    let other_mesh = Key::new(kind("MeshService"), "other", "", "web");
    write(&store, vec![put(&other_mesh, 1), put(&key("web"), 1)]).await?;
    let found = store.find(kind("MeshService"), "default", "web").await?;
    let zones: Vec<_> = found.iter().map(|stored| stored.resource.key.zone.as_str()).collect();
    assert_eq!(zones, ["", "east", "west"]);
    assert!(store.find(kind("MeshService"), "default", "we").await?.is_empty());
    Ok(())
}

async fn the_feed_moves_with_every_commit(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let mut feed = store.feed();
    assert!(feed.borrow().known);
    assert_eq!(feed.borrow().store_id, store.store_id());
    for number in 1..=3 {
        write(&store, vec![put(&key("a"), number)]).await?;
        // No waiting: this replica's own writes are known when they are acknowledged.
        assert_eq!(feed.borrow_and_update().revision, Revision(number));
    }
    Ok(())
}

async fn a_store_that_is_opened_again_is_the_same(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let id = store.store_id();
    write(&store, vec![put(&key("a"), 1)]).await?;
    write(&store, vec![put(&key("b"), 1), delete(&key("a"))]).await?;
    let before = store.snapshot().await?;
    drop(store);
    let store = place.open().await?;
    assert_eq!((store.store_id(), store.feed().borrow().revision), (id, Revision(2)));
    assert_eq!(store.snapshot().await?.resources, before.resources);
    assert_eq!(store.history(&key("a"), 10).await?.len(), 2);
    Ok(())
}

async fn a_restored_store_has_another_id(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    write(&store, vec![put(&key("a"), 1)]).await?;
    let (before, mut feed) = (store.store_id(), store.feed());
    let after = store.restored().await?;
    assert_ne!(before, after);
    feed_until(&mut feed, DEADLINE, |feed| feed.store_id == after && feed.revision == Revision(1)).await?;
    assert_eq!(store.snapshot().await?.store_id, after);
    drop(store);
    assert_eq!(place.open().await?.store_id(), after);
    Ok(())
}

async fn a_newer_schema_is_refused(place: &mut Place) -> Result<()> {
    drop(place.open().await?);
    match place.database {
        Some(_) => place.tamper("INSERT INTO meridian.schema_version VALUES (99)").await?,
        None => place.tamper("PRAGMA user_version = 99").await?,
    }
    let refused = place.try_open("one").await?.err().unwrap();
    assert!(matches!(refused, OpenError::NewerSchema { found: 99, .. }), "{refused}");
    Ok(())
}

async fn a_write_goes_on_when_nobody_waits_for_it(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let mut feed = store.feed();
    let mut abandoned = Box::pin(write(&store, vec![put(&key("a"), 1)]));
    // Polled once, so that it has begun, and dropped.
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    feed_until(&mut feed, DEADLINE, |feed| feed.revision == Revision(1)).await?;
    assert!(store.get(&key("a")).await?.is_some());
    Ok(())
}
