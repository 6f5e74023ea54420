//! A steady load that counts what failed.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    sent: u64,
    succeeded: u64,
    failed: u64,
    slowest_millis: u128,
    failures: BTreeMap<String, u64>,
    answered_by: BTreeMap<String, u64>,
}

/// A request without an answer after this long has failed.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn run(url: &str, rate: u32, fresh: bool, http2: bool) -> Result<()> {
    ensure!(rate > 0, "--rate must be at least 1");
    let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
    let mut builder = Client::builder(TokioExecutor::new());
    if fresh {
        builder.pool_max_idle_per_host(0);
    }
    if http2 {
        builder.http2_only(true);
    }
    let client = builder.build(HttpConnector::new());
    let summary = Arc::new(Mutex::new(Summary::default()));
    let mut terminated = signal(SignalKind::terminate())?;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut requests = tokio::task::JoinSet::new();
    println!("load runs");
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = pace.tick() => {
                requests.spawn(one(client.clone(), uri.clone(), Arc::clone(&summary)));
            }
            Some(_) = requests.join_next() => {}
        }
    }
    while requests.join_next().await.is_some() {}
    println!("{}", serde_json::to_string(&*summary.lock().unwrap_or_else(PoisonError::into_inner))?);
    Ok(())
}

async fn one(client: Client<HttpConnector, Empty<Bytes>>, uri: Uri, summary: Arc<Mutex<Summary>>) {
    let started = Instant::now();
    let result = match tokio::time::timeout(LIMIT, fetch(&client, uri)).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("no answer in {LIMIT:?}")),
    };
    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
    summary.sent += 1;
    summary.slowest_millis = summary.slowest_millis.max(started.elapsed().as_millis());
    match result {
        Ok(name) => {
            summary.succeeded += 1;
            *summary.answered_by.entry(name).or_default() += 1;
        }
        Err(error) => {
            summary.failed += 1;
            *summary.failures.entry(format!("{error:#}")).or_default() += 1;
        }
    }
}

async fn fetch(client: &Client<HttpConnector, Empty<Bytes>>, uri: Uri) -> Result<String> {
    let response = client.get(uri).await?;
    ensure!(response.status().is_success(), "status {}", response.status());
    let body = response.into_body().collect().await?.to_bytes();
    let seen: serde_json::Value =
        serde_json::from_slice(&body).context("the answer is not the application's")?;
    Ok(seen.get("app").and_then(|name| name.as_str()).unwrap_or_default().to_owned())
}
