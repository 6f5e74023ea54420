use crate::place::{Place, key, on_both, put, write};
use anyhow::Result;
use meridian_store::{Change, Revision, Store, WriteError};

on_both! {
    private_values_are_kept_without_revision_or_history,
    a_swap_happens_only_from_what_it_names,
    all_who_ensure_a_value_get_the_same,
}

fn set(key: &str, value: &[u8]) -> Change {
    Change::PutPrivate { bucket: "keys".into(), key: key.into(), value: value.to_vec() }
}

fn swap(key: &str, from: Option<&[u8]>, to: &[u8]) -> Change {
    Change::SwapPrivate {
        bucket: "keys".into(),
        key: key.into(),
        from: from.map(<[u8]>::to_vec),
        to: to.to_vec(),
    }
}

async fn private_values_are_kept_without_revision_or_history(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let feed = store.feed();
    write(&store, vec![set("b", b"2"), set("a", b"1"), set("c", b"")]).await?;
    assert!(!feed.has_changed()?);
    let remove = Change::DeletePrivate { bucket: "keys".into(), key: "b".into() };
    let elsewhere = Change::PutPrivate { bucket: "other".into(), key: "a".into(), value: b"3".to_vec() };
    assert_eq!(write(&store, vec![remove, elsewhere, put(&key("x"), 1)]).await?, Revision(1));
    let listed = store.private_list("keys").await?;
    assert_eq!(listed, [("a".to_owned(), b"1".to_vec()), ("c".to_owned(), Vec::new())]);
    assert_eq!(store.private_get("other", "a").await?.as_deref(), Some(&b"3"[..]));
    assert_eq!(store.private_get("keys", "b").await?, None);
    assert_eq!(store.changes_after(Revision::ZERO).await?.entries.len(), 1);
    drop(store);
    assert_eq!(place.open().await?.private_list("keys").await?, listed);
    Ok(())
}

async fn a_swap_happens_only_from_what_it_names(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    write(&store, vec![swap("a", None, b"1")]).await?;
    for wrong in [None, Some(&b"2"[..])] {
        let refused = write(&store, vec![swap("a", wrong, b"3"), put(&key("x"), 1)]).await;
        assert!(matches!(refused, Err(WriteError::PrivateConflict { .. })), "{refused:?}");
    }
    assert_eq!(store.get(&key("x")).await?, None);
    // Parts of one write see what the earlier ones did.
    write(&store, vec![swap("a", Some(b"1"), b"2"), swap("a", Some(b"2"), b"3")]).await?;
    assert_eq!(store.private_get("keys", "a").await?.as_deref(), Some(&b"3"[..]));
    Ok(())
}

async fn all_who_ensure_a_value_get_the_same(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let ensure = |number: u8| {
        let store: Store = store.clone();
        tokio::spawn(async move { store.private_ensure("ca", "server", vec![number; 8]).await })
    };
    let asked: Vec<_> = (0..10).map(ensure).collect();
    let mut given = Vec::new();
    for answer in asked {
        given.push(answer.await??);
    }
    given.dedup();
    assert_eq!(given.len(), 1);
    assert_eq!(store.private_get("ca", "server").await?, given.pop());
    Ok(())
}
