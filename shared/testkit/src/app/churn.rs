//! Writes and deletes one resource in turn, and prints when the API answered each.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Prints `<microseconds since 1970> put|delete` at each answer; the first change is a put.
pub(super) async fn run(url: &str, token: &Path, body: &Path, changes: u32, pause: Duration) -> Result<()> {
    let token = std::fs::read_to_string(token)?;
    let body = Bytes::from(std::fs::read(body)?);
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(HttpConnector::new());
    for change in 0..changes {
        let (method, name, body) = if change % 2 == 0 {
            (Method::PUT, "put", body.clone())
        } else {
            (Method::DELETE, "delete", Bytes::new())
        };
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header("authorization", format!("Bearer {}", token.trim()))
            .header("content-type", "application/yaml")
            .body(Full::new(body))?;
        let response = client.request(request).await.with_context(|| format!("{name} {url}"))?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        let status = response.status();
        let said = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{name}: {status} {}", String::from_utf8_lossy(&said));
        println!("{at} {name}");
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
