//! At rest, nothing but the liveness query reaches Postgres.

use crate::place::{key, put, write};
use anyhow::{Result, ensure};
use meridian_store::{KeyRing, Options, Store};
use meridian_testkit::postgres::{Postgres, Settings};
use meridian_testkit::wait;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn at_rest_only_the_liveness_query_reaches_postgres() -> Result<()> {
    let logged = ["log_statement", "log_connections", "log_disconnections"].map(str::to_owned);
    let values = ["all", "on", "on"].map(str::to_owned);
    let config = logged.into_iter().zip(values).collect();
    let postgres = Postgres::start(Settings { config, ..Settings::default() }).await?;
    let url = postgres.create_database("store").await?;
    let keys = KeyRing::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")?;
    let store = Store::open(Options::new(url, keys, "one")).await?;
    write(&store, vec![put(&key("a"), 1)]).await?;
    store.put_status("east", "overview", &json!({"proxies": 3}));
    wait::until("the status", wait::DEADLINE, || async {
        ensure!(postgres.log().contains("INSERT INTO meridian.zone_status"), "not written yet");
        Ok(())
    })
    .await?;
    // The liveness query as the server logs it: prepared before, executed under its name.
    let liveness =
        |line: &str| line.contains("SELECT store_id, revision, floor, data_key FROM meridian.meta");
    let start = postgres.log().len();
    let since = || postgres.log().get(start..).unwrap_or_default().to_owned();
    wait::until("two liveness queries", Duration::from_secs(50), || async {
        // What a zone reports again and again, unchanged, is not written again.
        store.put_status("east", "overview", &json!({"proxies": 3}));
        let queries = since().lines().filter(|line| liveness(line)).count();
        ensure!(queries >= 2, "{queries}");
        Ok(())
    })
    .await?;
    let said = since();
    let other: Vec<_> = said.lines().filter(|line| line.contains("LOG:") && !liveness(line)).collect();
    let other: Vec<_> = other.into_iter().filter(|line| !line.contains("checkpoint")).collect();
    assert!(other.is_empty(), "{other:#?}");
    Ok(())
}
