//! What a sidecar is told, in readable form, and what policies that are only tried out (`kuma.io/effect: shadow`) would
//! change of it.
//!
//! Compiled anew for each question, by the functions that compile for proxies, from the picture as it is: a policy that is
//! tried out costs nothing while nobody asks, and the answer can't differ from what would come into force. Rejected: a
//! second compilation that is kept up to date beside the real one.

mod config;
mod difference;
mod words;

use crate::engine::stored_vips;
use crate::picture::Picture;
use arc_swap::ArcSwap;
use config::{allot, config, enforced};
use meridian_api::{Problem, ProxyConfigRequest};
use meridian_core::{Key, document};
use meridian_store::Store;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Questions that are worked on at once. Each compiles all that a sidecar holds; the others wait.
const AT_ONCE: usize = 2;

/// Answers questions about configurations.
#[derive(Clone)]
pub(crate) struct Inspector {
    store: Store,
    picture: Arc<ArcSwap<Picture>>,
    slots: Arc<Semaphore>,
}

impl Inspector {
    pub(crate) fn new(store: Store, picture: Arc<ArcSwap<Picture>>) -> Self {
        Self { store, picture, slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The zone that answers.
    pub(crate) fn zone(&self) -> String {
        self.picture.load().zone.clone()
    }

    /// The body of `GET /meshes/{mesh}/dataplanes/{name}/_config`.
    pub(crate) async fn config(&self, proxy: &Key, asked: ProxyConfigRequest) -> Result<Value, Problem> {
        let closed = |_| {
            let status = http::StatusCode::SERVICE_UNAVAILABLE;
            Problem::new(status, "Service unavailable", "The control plane stops")
        };
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(closed)?;
        let vips =
            stored_vips(&self.store).await.map_err(|error| Problem::unavailable(&error.to_string()))?;
        let (picture, proxy) = (self.picture.load_full(), proxy.clone());
        // The place is taken until the work is done, also where whoever asked has gone meanwhile.
        let work = move || {
            let answer = answer(&picture, vips, &proxy, asked);
            drop(slot);
            answer
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Problem::internal(&error.to_string()))?
    }
}

/// Pure: of the picture and the addresses that are given.
fn answer(
    picture: &Picture,
    mut vips: crate::vip::VipTable,
    proxy: &Key,
    asked: ProxyConfigRequest,
) -> Result<Value, Problem> {
    let missing = || {
        let detail = format!("{proxy} is not compiled for: it, or its Mesh, has not arrived here (yet)");
        Problem::new(http::StatusCode::NOT_FOUND, "Could not retrieve a configuration", detail)
    };
    let (tried, policies) = if asked.shadow { enforced(picture, &proxy.mesh) } else { Default::default() };
    let shown = tried.as_ref().unwrap_or(picture);
    for picture in [picture, shown] {
        allot(picture, &mut vips, proxy);
    }
    let now = config(picture, &vips, proxy).ok_or_else(missing)?;
    let then = match &tried {
        Some(tried) => config(tried, &vips, proxy).ok_or_else(missing)?,
        None => now.clone(),
    };
    let mut answer = json!({ "xds": &then });
    if let Some(fields) = answer.as_object_mut() {
        if asked.shadow {
            let tried: Vec<Value> = policies.iter().map(|it| json!({ "kri": document::kri(it) })).collect();
            fields.insert("shadowPolicies".to_owned(), Value::Array(tried));
        }
        if asked.diff {
            fields.insert("diff".to_owned(), json!(difference::patch(&now, &then)));
            fields.insert("changes".to_owned(), json!(difference::changes(&now, &then)));
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
