use crate::place::{DEADLINE, Place, on_both};
use anyhow::{Result, ensure};
use meridian_store::{StatusRow, Store};
use meridian_testkit::wait;
use serde_json::json;

on_both! {
    a_status_is_there_soon_and_the_latest_wins,
    a_deleted_zone_has_no_status,
    what_an_earlier_process_wrote_is_of_the_past,
}

/// Waits until the section is as the condition wants it.
pub(crate) async fn rows_until(
    store: &Store,
    section: &str,
    condition: impl Fn(&[StatusRow]) -> bool,
) -> Result<Vec<StatusRow>> {
    wait::until("the status", DEADLINE, || async {
        let rows = store.statuses(section).await?;
        ensure!(condition(&rows), "{rows:?}");
        Ok(rows)
    })
    .await
}

async fn a_status_is_there_soon_and_the_latest_wins(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    for number in 0..100 {
        store.put_status("east", "overview", &json!({"number": number}));
    }
    store.put_status("west", "overview", &json!(1));
    store.put_status("east", "denials", &json!([]));
    let rows =
        rows_until(&store, "overview", |rows| rows.len() == 2 && rows[0].value["number"] == 99).await?;
    assert_eq!((rows[0].zone.as_str(), rows[1].zone.as_str()), ("east", "west"));
    assert!(rows.iter().all(|row| row.replica == "one" && row.replica_alive && row.section == "overview"));
    rows_until(&store, "denials", |rows| rows.len() == 1).await?;
    assert_eq!(store.revision().await?.0, 0, "status has no revision");
    Ok(())
}

async fn a_deleted_zone_has_no_status(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    store.put_status("east", "overview", &json!(1));
    store.put_status("west", "overview", &json!(1));
    rows_until(&store, "overview", |rows| rows.len() == 2).await?;
    store.delete_status("east").await?;
    rows_until(&store, "overview", |rows| rows.len() == 1 && rows[0].zone == "west").await?;
    // It may come back.
    store.put_status("east", "overview", &json!(1));
    rows_until(&store, "overview", |rows| rows.len() == 2).await?;
    Ok(())
}

async fn what_an_earlier_process_wrote_is_of_the_past(place: &mut Place) -> Result<()> {
    let store = place.open().await?;
    store.put_status("east", "overview", &json!(1));
    rows_until(&store, "overview", |rows| rows.len() == 1 && rows[0].replica_alive).await?;
    drop(store);
    let store = place.replica("two").await?;
    let rows = rows_until(&store, "overview", |rows| !rows[0].replica_alive).await?;
    assert_eq!((rows[0].replica.as_str(), &rows[0].value), ("one", &json!(1)));
    store.put_status("east", "overview", &json!(1));
    rows_until(&store, "overview", |rows| rows[0].replica_alive && rows[0].replica == "two").await?;
    Ok(())
}
