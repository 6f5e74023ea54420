//! Follows the store: what any replica commits is read once, applied to the [`World`], and what hangs on it is woken.

use crate::state::Global;
use crate::world::World;
use crate::zone_status::ZoneStatus;
use meridian_core::Key;
use meridian_core::kinds::{
    token_key::{TokenKey, TokenPurpose},
    token_revocation::TokenRevocation,
    trust_bundle::TrustBundle,
    zone::Zone,
};
use meridian_store::{ChangesError, Feed, HistoryEntry, Revision, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Before another try when the store does not answer; its feed says when it does again.
const RETRY: Duration = Duration::from_millis(500);

/// Everything, and what history knows of deletions.
pub(crate) async fn load(store: &Store) -> Result<World, ChangesError> {
    loop {
        let snapshot = store.snapshot().await?;
        match deletions(store, snapshot.floor, snapshot.revision).await {
            Ok(deletions) => return Ok(World::new(snapshot, &deletions)),
            // History was cut meanwhile: look again.
            Err(ChangesError::TooOld { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

async fn deletions(
    store: &Store,
    floor: Revision,
    upto: Revision,
) -> Result<Vec<HistoryEntry>, ChangesError> {
    let mut deletions = Vec::new();
    let mut cursor = floor;
    while cursor < upto {
        let changes = store.changes_after(cursor).await?;
        cursor = changes.upto;
        let deleted =
            |entry: &HistoryEntry| entry.change == meridian_store::Changed::Delete && entry.revision <= upto;
        deletions.extend(changes.entries.into_iter().filter(deleted));
        if changes.upto >= changes.newest {
            break;
        }
    }
    Ok(deletions)
}

/// Runs until `shutdown`.
pub(crate) async fn run(global: Arc<Global>, shutdown: CancellationToken) {
    let mut feed = global.store.feed();
    loop {
        let seen = *feed.borrow_and_update();
        match catch_up(&global, seen).await {
            Ok(()) => global.world().set_known(feed.borrow().known),
            Err(error) => {
                global.world().set_known(false);
                tracing::warn!(%error, "could not read what is new in the store");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => continue,
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = feed.changed() => if changed.is_err() { return },
        }
    }
}

async fn catch_up(global: &Global, feed: Feed) -> Result<(), ChangesError> {
    loop {
        let (store, cursor) = {
            let world = global.world();
            (world.store(), world.revision())
        };
        if feed.store_id != store || feed.revision < cursor {
            return reload(global, "the store is another one than before").await;
        }
        if feed.revision == cursor {
            return Ok(());
        }
        let changes = match global.store.changes_after(cursor).await {
            Ok(changes) => changes,
            Err(ChangesError::TooOld { .. }) => return reload(global, "history does not reach back").await,
            Err(error) => return Err(error),
        };
        let done = changes.upto >= changes.newest;
        let touched = global.world().apply(changes.entries, changes.upto, changes.floor);
        react(global, &touched).await;
        if done {
            return Ok(());
        }
    }
}

/// Begins anew from a snapshot. Streams are cut: their subscribers decide by the hello whom they believe.
async fn reload(global: &Global, why: &str) -> Result<(), ChangesError> {
    tracing::warn!(why, "reading the whole store anew");
    let world = load(&global.store).await?;
    *global.world() = world;
    for link in global.zones.all() {
        link.cut(why);
    }
    global.tokens.rebuild(&global.world());
    global.rotation_news.notify_one();
    Ok(())
}

/// What else a change means.
async fn react(global: &Global, touched: &BTreeSet<Key>) {
    let any = |kinds: &[meridian_core::Kind]| touched.iter().any(|key| kinds.contains(&key.kind));
    if any(&[TokenKey::KIND, TokenRevocation::KIND]) {
        let world = global.world();
        global.tokens.rebuild(&world);
        for link in global.zones.all() {
            let token = link.connected().map(|(_, credential)| credential.token);
            if token.is_some_and(|token| world.is_revoked(TokenPurpose::Zone, &token)) {
                link.cut("the token by which it was enrolled is revoked");
            }
        }
    }
    for zone in touched.iter().filter(|key| key.kind == Zone::KIND) {
        if check(global, &zone.name) == Standing::Gone
            && let Err(error) = global.store.delete_status(&zone.name).await
        {
            tracing::warn!(zone = zone.name, %error, "the status of a deleted zone is still there");
        }
    }
    if any(&[TrustBundle::KIND]) {
        global.rotation_news.notify_one();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Stays,
    Gone,
}

/// Cuts the streams of a zone that may not have them any more.
fn check(global: &Global, zone: &str) -> Standing {
    let state = global.world().zone(zone).map(|resource| ZoneStatus::of(resource));
    let Some(state) = state else {
        global.zones.forget(zone, "the zone was deleted");
        return Standing::Gone;
    };
    let Some(link) = global.zones.get(zone) else { return Standing::Stays };
    if state.is_revoked() {
        link.cut("the zone was revoked");
    } else if let Some(session) = &state.session {
        link.keep_only(&session.instance);
    }
    Standing::Stays
}
