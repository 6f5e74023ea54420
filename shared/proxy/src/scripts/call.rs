//! What scripts ask of other services. It goes like a call of the application's own: to the same endpoints, with the same
//! identity, under the same policies, but through no scripts of this side. Those of the other side may call in turn, also
//! back: so each call says how many led to it, and ends a circle.

use super::MAX_CALLS;
use crate::{
    codec::Body,
    outbound,
    policy::at_once::Active,
    snapshot::{Cluster, Snapshot, Target},
    worker::Worker,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use meridian_lua::{Call, HOPS, Reply, limits::MAX_BODY};
use std::{net::SocketAddr, rc::Rc, sync::Arc};

/// How many calls of scripts led to a request. What is no number counts as too many: it is not from a proxy.
pub(super) fn hops(headers: &HeaderMap) -> u32 {
    let values = headers.get_all(&HOPS).iter();
    let count = |value: &HeaderValue| value.to_str().ok().and_then(|text| text.parse().ok());
    values.map(|value| count(value).unwrap_or(u32::MAX)).max().unwrap_or_default()
}

/// The answer, or in place of one that does not come what Envoy says then. `hops`: of the request for which it is asked.
pub(super) async fn call(worker: &Rc<Worker>, call: Call, hops: u32) -> Reply {
    let failed = || Reply {
        status: StatusCode::SERVICE_UNAVAILABLE,
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"upstream failure"),
    };
    let Some(cluster) = find(&worker.snapshot(), &call.cluster) else {
        if worker.scripts.tells() {
            tracing::warn!(cluster = ?call.cluster, "a script calls a service that there is not");
        }
        return failed();
    };
    let calls = &worker.scripts.calls;
    if calls.get() >= MAX_CALLS {
        if worker.scripts.tells() {
            tracing::warn!(service = ?cluster.service, "scripts make too many calls at once");
        }
        return failed();
    }
    let _active = Active::new(calls);
    // Not the coarse timer's: scripts wait for milliseconds.
    let timeout = call.timeout;
    let answer = tokio::time::timeout(timeout, Box::pin(ask(worker, &cluster, call, hops))).await;
    answer.ok().flatten().unwrap_or_else(failed)
}

async fn ask(worker: &Rc<Worker>, cluster: &Arc<Cluster>, call: Call, hops: u32) -> Option<Reply> {
    let body = if call.body.is_empty() { Body::empty() } else { Body::full(call.body) };
    let mut request = Request::new(body);
    *request.method_mut() = call.method;
    *request.uri_mut() = call.path.into();
    *request.headers_mut() = call.headers;
    request.headers_mut().insert(HOPS.clone(), hops.saturating_add(1).into());
    let response = outbound::ask(worker, cluster, &call.authority, request).await;
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.ok()?.data_ref() {
            if bytes.len() + data.len() > MAX_BODY {
                return None;
            }
            bytes.extend_from_slice(data);
        }
    }
    Some(Reply { status: head.status, headers: head.headers, body: bytes.into() })
}

/// The destination that a script means: by the service's name (`kuma.io/service` or a MeshService's), with `:port` if it
/// has several and not the lowest is meant, or by a name that the application could call it by.
fn find(snapshot: &Snapshot, name: &str) -> Option<Arc<Cluster>> {
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().ok()?)),
        None => (name, None),
    };
    let mesh = &snapshot.proxy.as_ref()?.mesh;
    let zone = &snapshot.proxy.as_ref()?.zone;
    by_name(snapshot, &format!("destination/{mesh}//{host}/"), port)
        .or_else(|| by_name(snapshot, &format!("destination/{mesh}/{zone}/{host}/"), port))
        .or_else(|| by_host(snapshot, &host.to_ascii_lowercase(), port.unwrap_or(80)))
}

fn by_name(snapshot: &Snapshot, prefix: &str, port: Option<u16>) -> Option<Arc<Cluster>> {
    let found = match port {
        Some(port) => snapshot.clusters.get(format!("{prefix}{port}").as_str()),
        None => {
            let all = snapshot.clusters.range(Arc::from(prefix)..);
            let all = all.take_while(|(name, _)| name.starts_with(prefix));
            let number = |name: &str| name.get(prefix.len()..)?.parse::<u16>().ok();
            let ports = all.filter_map(|(name, cluster)| Some((number(name)?, cluster)));
            ports.min_by_key(|(port, _)| *port).map(|(_, cluster)| cluster)
        }
    };
    found.filter(|cluster| cluster.protocol.is_http()).cloned()
}

fn by_host(snapshot: &Snapshot, host: &str, port: u16) -> Option<Arc<Cluster>> {
    let addresses = snapshot.addresses_of(host)?;
    let outbound = addresses.iter().find_map(|address| snapshot.vip(SocketAddr::new(*address, port)))?;
    match &outbound.target {
        Target::Cluster(cluster) => Some(cluster.clone()).filter(|it| it.protocol.is_http()),
        Target::External(_) | Target::Missing(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_of_hops_is_too_many() {
        for (values, expected) in [
            (&[][..], 0),
            (&["0"], 0),
            (&["3"], 3),
            (&["3", "1"], 3),
            (&["1", "x"], u32::MAX),
            (&["-1"], u32::MAX),
            (&["99999999999"], u32::MAX),
            (&["\u{fc}"], u32::MAX),
            (&[""], u32::MAX),
        ] {
            let value = |value: &&str| HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let headers: HeaderMap = values.iter().map(|text| (HOPS.clone(), value(text))).collect();
            assert_eq!(hops(&headers), expected, "{values:?}");
        }
    }
}
