use crate::place::{Place, delete, key, kind, on_both, put, write};
use anyhow::Result;
use meridian_core::Key;
use meridian_store::{Change, Changed, KeyError, KeyRing, OpenError, ReadError, Revision, Store};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

on_both! {
    nothing_secret_is_in_the_database_in_clear,
    a_secret_in_another_place_does_not_open,
    another_key_is_refused,
    after_a_rotation_only_the_new_key_opens,
}

const CANARY: &str = "c4n4ry-that-sings-in-clear";

fn secret(name: &str) -> Key {
    Key::global(kind("Secret"), "default", name)
}

fn private(value: &str) -> Change {
    Change::PutPrivate { bucket: "roots".into(), key: "default".into(), value: value.as_bytes().to_vec() }
}

/// In any of the forms in which a dump or a file may hold it.
fn holds(raw: &[u8], text: &str) -> bool {
    use base64::Engine as _;
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Base64 depends on where the text begins: compare what does not.
    let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(text);
    [text.as_bytes(), hex.as_bytes(), base64.get(..20).unwrap_or(&base64).as_bytes()]
        .iter()
        .any(|needle| raw.windows(needle.len()).any(|window| window == *needle))
}

async fn nothing_secret_is_in_the_database_in_clear(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let global = Key::global(kind("GlobalSecret"), "", "admin");
    write(&store, vec![put(&secret("tls"), json!({"data": CANARY})), put(&global, CANARY), private(CANARY)])
        .await?;
    write(&store, vec![put(&secret("tls"), json!({"data": format!("{CANARY}-2")}))]).await?;
    write(&store, vec![delete(&global), put(&key("open"), "this-is-no-secret")]).await?;
    // What is read is in clear, from the present and from history.
    assert_eq!(
        store.get(&secret("tls")).await?.unwrap().resource.spec,
        json!({"data": format!("{CANARY}-2")})
    );
    let history = store.history(&global, 5).await?;
    let specs: Vec<_> = history
        .iter()
        .filter_map(|e| if let Changed::Put(r) = &e.change { Some(&r.spec) } else { None })
        .collect();
    assert_eq!(specs, [CANARY]);
    assert_eq!(store.private_get("roots", "default").await?.as_deref(), Some(CANARY.as_bytes()));
    assert_eq!(store.changes_after(Revision::ZERO).await?.entries.len(), 5);
    let raw = place.raw().await?;
    assert!(holds(&raw, "this-is-no-secret"), "the search finds what is there");
    assert!(!holds(&raw, CANARY));
    drop(store);
    assert!(!holds(&place.raw().await?, CANARY));
    Ok(())
}

async fn a_secret_in_another_place_does_not_open(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    write(&store, vec![put(&secret("mine"), "a"), put(&secret("yours"), "b"), private("c")]).await?;
    drop(store);
    place
        .tamper("UPDATE meridian.resources SET body = (SELECT body FROM meridian.resources WHERE name = 'yours') WHERE name = 'mine'")
        .await?;
    place.tamper("UPDATE meridian.private SET bucket = 'elsewhere'").await?;
    let store = place.open().await?;
    for damaged in [
        store.get(&secret("mine")).await.err(),
        store.snapshot().await.err(),
        store.private_get("elsewhere", "default").await.err(),
    ] {
        let text = format!("{:?}", damaged.as_ref().unwrap());
        assert!(matches!(damaged, Some(ReadError::Damaged { .. })), "{text}");
    }
    assert_eq!(store.get(&secret("yours")).await?.unwrap().resource.spec, "b");
    Ok(())
}

async fn another_key_is_refused(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    write(&store, vec![put(&secret("a"), "a")]).await?;
    let id = KeyRing::load_or_create(&place.key_file())?.id().to_string();
    drop(store);
    let kept = place.directory.path().join("kept");
    std::fs::rename(place.key_file(), &kept)?;
    let refused = place.try_open("one").await?.err().unwrap();
    let other = KeyRing::load_or_create(&place.key_file())?.id().to_string();
    assert!(matches!(refused, OpenError::OtherKey { .. }));
    let text = refused.to_string();
    assert!(text.contains(&id) && text.contains(&other), "{text}");
    std::fs::rename(&kept, place.key_file())?;
    assert!(place.open().await?.get(&secret("a")).await?.is_some());
    Ok(())
}

async fn after_a_rotation_only_the_new_key_opens(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    let old_file = std::fs::read(place.key_file())?;
    let old = KeyRing::load_or_create(&place.key_file())?.id();
    write(&store, vec![put(&secret("a"), "1"), private("p")]).await?;
    write(&store, vec![put(&secret("a"), "2"), put(&secret("gone"), "x")]).await?;
    write(&store, vec![delete(&secret("gone"))]).await?;
    let new = store.rotate_key().await?;
    assert_ne!(old, new);
    let all_there = async |store: &Store| -> Result<()> {
        assert_eq!(store.get(&secret("a")).await?.unwrap().resource.spec, "2");
        assert_eq!(store.history(&secret("a"), 9).await?.len(), 2);
        assert_eq!(store.changes_after(Revision::ZERO).await?.entries.len(), 4);
        assert_eq!(store.private_get("roots", "default").await?.as_deref(), Some(&b"p"[..]));
        Ok(())
    };
    all_there(&store).await?;
    assert_eq!(store.revision().await?, Revision(3), "a rotation changes no resource");
    assert_eq!(write(&store, vec![put(&secret("a"), "2")]).await?, Revision(3));
    drop(store);
    let new_file = std::fs::read(place.key_file())?;
    assert_eq!(KeyRing::load_or_create(&place.key_file())?.id(), new);
    assert_eq!(std::fs::metadata(place.key_file())?.permissions().mode() & 0o777, 0o600);
    std::fs::write(place.key_file(), old_file)?;
    assert!(matches!(place.try_open("one").await?, Err(OpenError::OtherKey { .. })));
    std::fs::write(place.key_file(), new_file)?;
    all_there(&place.open().await?).await
}

#[test]
fn a_key_file_is_made_once_for_its_owner_only_and_refused_if_others_can_read_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("sub/key");
    let rings: Vec<_> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..8).map(|_| scope.spawn(|| KeyRing::load_or_create(&path))).collect();
        made.into_iter().map(|thread| thread.join().unwrap()).collect::<Result<_, _>>()
    })?;
    assert!(rings.iter().all(|ring| ring.id() == rings[0].id()));
    assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(directory.path().join("sub"))?.count(), 1, "no drafts are left");
    let key = std::fs::read_to_string(&path)?;
    assert!(!format!("{:?}", rings[0]).contains(key.trim()));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640))?;
    assert!(matches!(KeyRing::load_or_create(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    Ok(())
}

#[test]
fn what_is_to_be_written_does_not_show_in_logs() {
    let swap = Change::SwapPrivate {
        bucket: "roots".into(),
        key: "default".into(),
        from: Some(CANARY.into()),
        to: CANARY.into(),
    };
    let shown = format!("{:?}", [put(&secret("tls"), CANARY), private(CANARY), swap]);
    assert_eq!(
        shown,
        "[put Secret default/tls (Any), put private roots/default, swap private roots/default]"
    );
}

#[test]
fn keys_from_the_configuration_must_be_keys() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let ring = KeyRing::parse(&format!("# newest\n{key}\n")).unwrap();
    assert_eq!(ring.id(), KeyRing::parse(key).unwrap().id());
    for wrong in ["", "# none", "AAEC", "not base64!", &format!("{key}\nAAEC")] {
        let refused = KeyRing::parse(wrong);
        assert!(matches!(refused, Err(KeyError::Format { .. })), "{wrong:?}");
    }
}
