use crate::place::{Place, author, delete, key, on_both, put, resource, write};
use anyhow::Result;
use meridian_core::Key;
use meridian_store::{Author, Changed, ChangesError, HistoryEntry, Revision, Store};
use serde_json::{Value, json};
use std::collections::BTreeMap;

on_both! {
    history_says_who_when_and_what,
    changes_follow_on_from_a_snapshot,
    a_long_way_is_read_in_steps_that_cut_no_write_apart,
    history_is_kept_to_its_limit_and_says_where_it_ends,
}

async fn history_says_who_when_and_what(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let bob = Author::new("zone:east", "sync");
    let start = time::OffsetDateTime::now_utc() - time::Duration::seconds(1);
    write(&store, vec![put(&key("a"), 1)]).await?;
    write(&store, vec![put(&key("b"), 1)]).await?;
    store.write(&bob, vec![put(&key("a"), 2)]).await?;
    let created = store.get(&key("a")).await?.unwrap();
    assert!(created.created < created.modified && created.created > start);
    store.write(&bob, vec![delete(&key("a"))]).await?;
    write(&store, vec![put(&key("a"), 3)]).await?;
    let entries = store.history(&key("a"), 10).await?;
    let put_of = |number: i32| Changed::Put(resource(&key("a"), number));
    let told: Vec<_> =
        entries.iter().map(|entry| (entry.revision.0, entry.change.clone(), entry.author.clone())).collect();
    let expected = vec![
        (5, put_of(3), author()),
        (4, Changed::Delete, bob.clone()),
        (3, put_of(2), bob),
        (1, put_of(1), author()),
    ];
    assert_eq!(told, expected);
    assert!(entries.windows(2).all(|pair| pair[0].at >= pair[1].at));
    assert!(entries.iter().all(|entry| entry.at > start && entry.key == key("a")));
    assert_eq!(store.history(&key("a"), 1).await?, entries[..1]);
    // Made anew, it is new.
    assert!(store.get(&key("a")).await?.unwrap().created > created.modified);
    Ok(())
}

/// Applies changes to a copy.
fn apply(copy: &mut BTreeMap<Key, Value>, entries: &[HistoryEntry]) {
    for entry in entries {
        match &entry.change {
            Changed::Put(resource) => copy.insert(entry.key.clone(), resource.spec.clone()),
            Changed::Delete => copy.remove(&entry.key),
        };
    }
}

async fn contents(store: &Store) -> Result<BTreeMap<Key, Value>> {
    let resources = store.snapshot().await?.resources;
    Ok(resources.into_iter().map(|stored| (stored.resource.key, stored.resource.spec)).collect())
}

async fn changes_follow_on_from_a_snapshot(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    write(&store, vec![put(&key("a"), 1), put(&key("b"), 1)]).await?;
    let snapshot = store.snapshot().await?;
    assert_eq!((snapshot.revision, snapshot.floor), (Revision(1), Revision::ZERO));
    let mut copy = contents(&store).await?;
    let none = store.changes_after(snapshot.revision).await?;
    assert_eq!((none.entries.len(), none.upto, none.newest), (0, Revision(1), Revision(1)));
    write(&store, vec![put(&key("c"), 1), delete(&key("a"))]).await?;
    write(&store, vec![put(&key("b"), 2)]).await?;
    let changes = store.changes_after(snapshot.revision).await?;
    assert_eq!((changes.upto, changes.newest), (Revision(3), Revision(3)));
    let order: Vec<_> =
        changes.entries.iter().map(|entry| (entry.revision.0, entry.key.name.as_str())).collect();
    assert_eq!(order, [(2, "c"), (2, "a"), (3, "b")]);
    apply(&mut copy, &changes.entries);
    assert_eq!(copy, contents(&store).await?);
    Ok(())
}

async fn a_long_way_is_read_in_steps_that_cut_no_write_apart(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    for number in 0..40 {
        let count = if number == 20 { 600 } else { 15 };
        let changes = (0..count).map(|index| put(&key(&format!("r{index}")), json!([number, index])));
        write(&store, changes.collect()).await?;
    }
    let (mut cursor, mut steps, mut copy, mut sizes) = (Revision::ZERO, 0, BTreeMap::new(), BTreeMap::new());
    loop {
        let changes = store.changes_after(cursor).await?;
        assert_eq!(changes.newest, Revision(40));
        assert!(
            changes.entries.iter().all(|entry| entry.revision > cursor && entry.revision <= changes.upto)
        );
        for entry in &changes.entries {
            *sizes.entry(entry.revision.0).or_insert(0) += 1;
        }
        apply(&mut copy, &changes.entries);
        (cursor, steps) = (changes.upto, steps + 1);
        if cursor == changes.newest {
            break;
        }
    }
    assert!(steps > 2, "{steps}");
    let expected: BTreeMap<u64, i32> =
        (1..=40).map(|revision| (revision, if revision == 21 { 600 } else { 15 })).collect();
    assert_eq!(sizes, expected);
    assert_eq!(copy, contents(&store).await?);
    Ok(())
}

async fn history_is_kept_to_its_limit_and_says_where_it_ends(place: &mut Place) -> Result<()> {
    place.keep_revisions = 8;
    let store = place.open().await?;
    for number in 1..=30 {
        write(&store, vec![put(&key("a"), number)]).await?;
    }
    let snapshot = store.snapshot().await?;
    assert_eq!((snapshot.revision, snapshot.floor), (Revision(30), Revision(22)));
    assert_eq!(store.history(&key("a"), 100).await?.len(), 8);
    assert_eq!(store.changes_after(Revision(22)).await?.entries.len(), 8);
    for cursor in [0, 21, 31] {
        let refused = store.changes_after(Revision(cursor)).await;
        let Err(ChangesError::TooOld { floor, newest, .. }) = refused else {
            panic!("{cursor}: {refused:?}")
        };
        assert_eq!((floor, newest), (Revision(22), Revision(30)));
    }
    Ok(())
}
