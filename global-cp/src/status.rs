//! What is known of zones, told truthfully by every replica.
//!
//! The replica that holds a zone's stream reports it; the others read that report when they are asked. A report of a replica
//! that is gone says what was, not what is: then the zone is `unknown` until another replica has its stream.

use crate::state::Global;
use crate::trust::rfc3339;
use crate::zones::ZoneLink;
use meridian_api::report::{self, Link, Presence, Rejected, ZoneReport};
use meridian_delta::PeerState;
use meridian_store::{ReadError, StatusRow};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// The section with a zone's [`Link`].
const LINK: &str = "link";

/// A zone that moves to another replica is reported from there within about a second. Only after that is it plain that it
/// has left, and a report of the old replica can't come late.
const MOVING: Duration = Duration::from_millis(1500);

/// Reports the link from now on, if nobody does yet.
pub(crate) fn watch(global: &Arc<Global>, link: &Arc<ZoneLink>) {
    if link.watched.swap(true, Ordering::AcqRel) {
        return;
    }
    let (global, link) = (Arc::downgrade(global), Arc::clone(link));
    tokio::spawn(async move {
        let (mut down, mut up) = (link.down.watch(), link.up.watch());
        loop {
            let connected = link.shown().connected;
            {
                let Some(global) = global.upgrade() else { return };
                if connected || left(&global, &link).await {
                    report_link(&global, &link);
                }
                confirm(&link);
                global.rotation_news.notify_one();
            }
            let ended = tokio::select! {
                changed = down.changed() => changed.is_err(),
                changed = up.changed() => changed.is_err(),
                () = link.changed.notified() => false,
            };
            if ended {
                return;
            }
        }
    });
}

/// Whether the zone is really gone, and not with another replica.
async fn left(global: &Global, link: &ZoneLink) -> bool {
    tokio::time::sleep(MOVING).await;
    if link.shown().connected {
        return true;
    }
    match rows(global, LINK).await {
        Ok(rows) => rows.iter().any(|row| row.zone == link.zone && row.replica == global.replica),
        // The row stays as it is; nobody can read it either.
        Err(_) => false,
    }
}

fn report_link(global: &Global, link: &ZoneLink) {
    if let Ok(value) = serde_json::to_value(of_link(global, link)) {
        global.store.put_status(&link.zone, LINK, &value);
    }
}

/// An operator who replaced a zone's process has also said that its store is the zone's now.
fn confirm(link: &ZoneLink) {
    let state = link.up.state();
    if state.connected && state.withheld > 0 && state.node.is_some_and(|node| node.take_over) {
        link.control.confirm();
    }
}

/// The link as this replica sees it.
fn of_link(global: &Global, link: &ZoneLink) -> Link {
    let (down, up, shown) = (link.down.state(), link.up.state(), link.shown());
    Link {
        presence: if shown.connected { Presence::Online } else { Presence::Offline },
        instance: shown.node.instance,
        version: shown.node.version,
        replica: global.replica.clone(),
        connected_at: shown.connected_at.map(rfc3339),
        disconnected_at: shown.disconnected_at.filter(|_| !shown.connected).map(rfc3339),
        revision: down.revision.map_or(0, |revision| revision.0),
        behind_millis: down.behind_millis(Instant::now()).unwrap_or(0),
        rejected: rejected(&down),
        refused_here: rejected(&up),
        withheld: down.withheld,
        withheld_here: up.withheld,
        refused: refusal(&down, &up),
    }
}

fn rejected(state: &PeerState) -> Vec<Rejected> {
    let one = |rejected: &meridian_delta::Rejected| Rejected {
        type_: rejected.id.type_.to_string(),
        name: rejected.id.name.to_string(),
        reason: rejected.reason.clone(),
    };
    state.rejected.iter().map(one).collect()
}

fn refusal(down: &PeerState, up: &PeerState) -> String {
    let by_zone = down.refused.as_ref().map(|why| format!("the zone refuses this control plane: {why}"));
    let here = up.refused.as_ref().map(|why| format!("the zone's store is refused here: {why}"));
    by_zone.into_iter().chain(here).collect::<Vec<_>>().join("; ")
}

/// Whether that process of the zone has a stream now, at any replica.
pub(crate) async fn is_live(global: &Global, zone: &str, instance: &str) -> Result<bool, ReadError> {
    let here = global.zones.get(zone).and_then(|link| link.connected());
    if here.is_some_and(|(connected, _)| connected == instance) {
        return Ok(true);
    }
    let rows = rows(global, LINK).await?;
    Ok(rows.iter().any(|row| {
        row.zone == zone
            && row.replica != global.replica
            && row.replica_alive
            && link_of(row).is_some_and(|link| link.presence == Presence::Online && link.instance == instance)
    }))
}

async fn rows(global: &Global, section: &str) -> Result<Vec<StatusRow>, ReadError> {
    global.store.statuses(section).await
}

/// Everything that is known of every zone.
pub(crate) async fn reports(global: &Global) -> Result<Vec<ZoneReport>, ReadError> {
    let mut zones: BTreeMap<String, ZoneReport> = BTreeMap::new();
    let now = OffsetDateTime::now_utc();
    let mut place = |zone: &str, put: &dyn Fn(&mut ZoneReport)| {
        put(zones
            .entry(zone.to_owned())
            .or_insert_with(|| ZoneReport { zone: zone.to_owned(), ..ZoneReport::default() }));
    };
    for row in rows(global, LINK).await? {
        let link = link_of(&row).map(|link| present(global, &row, link, now));
        place(&row.zone, &|report| report.link.clone_from(&link));
    }
    for row in rows(global, report::types::PROXY).await? {
        let proxies = parse(&row).unwrap_or_default();
        place(&row.zone, &|report| report.proxies.clone_from(&proxies));
    }
    for row in rows(global, report::types::DENIALS).await? {
        let denials = parse(&row).unwrap_or_default();
        place(&row.zone, &|report| report.denials.clone_from(&denials));
    }
    for row in rows(global, report::types::REJECT).await? {
        let rejects = parse(&row).unwrap_or_default();
        place(&row.zone, &|report| report.rejects.clone_from(&rejects));
    }
    Ok(zones.into_values().collect())
}

fn link_of(row: &StatusRow) -> Option<Link> {
    parse(row)
}

fn parse<T: serde::de::DeserializeOwned>(row: &StatusRow) -> Option<T> {
    let value: Value = row.value.clone();
    serde_json::from_value(value)
        .inspect_err(|error| tracing::warn!(zone = row.zone, section = row.section, %error, "a zone's status can't be read"))
        .ok()
}

/// A stored report as it is to be read now.
fn present(global: &Global, row: &StatusRow, stored: Link, now: OffsetDateTime) -> Link {
    if row.replica == global.replica {
        // This replica knows better than its own last write.
        return global
            .zones
            .get(&row.zone)
            .map_or(Link { presence: Presence::Offline, ..stored }, |link| of_link(global, &link));
    }
    at(row.replica_alive && global.store.feed().borrow().known, row.at, stored, now)
}

/// Another replica's report: `alive` says whether it can still be asked.
fn at(alive: bool, written: OffsetDateTime, stored: Link, now: OffsetDateTime) -> Link {
    if !alive && stored.presence == Presence::Online {
        return Link { presence: Presence::Unknown, ..stored };
    }
    // Who was behind when that was written still is, or it would have been written anew.
    let behind = stored.behind_millis > 0;
    let since = u64::try_from((now - written).whole_milliseconds()).unwrap_or(0);
    let behind_millis = stored.behind_millis.saturating_add(if behind { since } else { 0 });
    Link { behind_millis, ..stored }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(presence: Presence, behind_millis: u64) -> Link {
        Link {
            presence,
            instance: "i".into(),
            version: String::new(),
            replica: "r".into(),
            connected_at: None,
            disconnected_at: None,
            revision: 7,
            behind_millis,
            rejected: Vec::new(),
            refused_here: Vec::new(),
            withheld: 0,
            withheld_here: 0,
            refused: String::new(),
        }
    }

    #[test]
    fn a_dead_replicas_report_is_of_the_past() {
        let now = OffsetDateTime::from_unix_timestamp(1000).unwrap();
        let table = [
            (true, Presence::Online, Presence::Online),
            (false, Presence::Online, Presence::Unknown),
            (true, Presence::Offline, Presence::Offline),
            // It was gone before; had it come back, somebody else would report it.
            (false, Presence::Offline, Presence::Offline),
        ];
        for (alive, was, is) in table {
            assert_eq!(at(alive, now, link(was, 0), now).presence, is, "{alive} {was:?}");
        }
    }

    #[test]
    fn who_is_behind_gets_older() {
        let written = OffsetDateTime::from_unix_timestamp(1000).unwrap();
        let now = written + Duration::from_secs(2);
        assert_eq!(at(true, written, link(Presence::Online, 300), now).behind_millis, 2300);
        assert_eq!(at(true, written, link(Presence::Online, 0), now).behind_millis, 0);
    }
}
