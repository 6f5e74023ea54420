//! The changes whose way is timed. Each says how many peers it must reach.

use super::held::Mark;
use super::plane::Plane;
use super::proxies::{Fleet, service_name};
use super::zones::Zones;
use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use meridian_proxy_config::types;
use serde_json::{Value, json};

/// Makes the change of a round; the answer is how many sidecars get it.
pub(super) type ProxyChange = for<'a> fn(&'a Fleet, &'a Plane, usize) -> LocalBoxFuture<'a, Result<usize>>;

pub(super) const PROXY_CHANGES: [(&str, ProxyChange); 5] = [
    ("one endpoint's health", |fleet, _, round| health(fleet, round).boxed_local()),
    ("one endpoint's address", |fleet, _, round| address(fleet, round).boxed_local()),
    ("a permission for one service", |fleet, global, round| permission(fleet, global, round).boxed_local()),
    ("a timeout for calls to one service", |fleet, global, round| {
        timeout(fleet, global, round).boxed_local()
    }),
    ("a permission for the whole mesh", |fleet, global, round| mesh_wide(fleet, global, round).boxed_local()),
];

/// The last of them, to be taken away.
pub(super) const MESH_WIDE: &str = "/meshes/default/meshtrafficpermissions/scale-mesh";

/// Makes the change of a round among so many zones; the answer is how many of them get it.
pub(super) type ZoneChange =
    for<'a> fn(&'a Zones, usize, &'a Plane, usize) -> LocalBoxFuture<'a, Result<usize>>;

pub(super) const ZONE_CHANGES: [(&str, ZoneChange); 2] = [
    ("a policy", |zones, count, global, round| policy(zones, count, global, round).boxed_local()),
    ("one zone's service", |zones, count, _, round| service(zones, count, round).boxed_local()),
];

async fn health(fleet: &Fleet, round: usize) -> Result<usize> {
    let proxy = fleet.proxies.first().context("a proxy")?;
    fleet.common.seek(Mark::Name(types::ENDPOINTS, service_name(proxy.service())));
    proxy.say_ready(round % 2 == 1)?;
    Ok(fleet.shape.subscribers(proxy.service()))
}

/// Of the last proxy: the first one's health has changed before.
async fn address(fleet: &Fleet, round: usize) -> Result<usize> {
    let proxy = fleet.proxies.last().context("a proxy")?;
    fleet.common.seek(Mark::Name(types::ENDPOINTS, service_name(proxy.service())));
    proxy.say_where(u8::try_from(round % 200 + 1)?)?;
    Ok(fleet.shape.subscribers(proxy.service()))
}

async fn permission(fleet: &Fleet, global: &Plane, round: usize) -> Result<usize> {
    let caller = format!("caller-{round}-of-one");
    let target = json!({"kind": "MeshSubset", "tags": {"kuma.io/service": service_name(0)}});
    fleet.common.seek(Mark::Body(caller.clone()));
    let path = "/meshes/default/meshtrafficpermissions/scale-one";
    global.put(path, &allow("scale-one", &target, &caller)).await?;
    Ok(fleet.shape.instances(0))
}

async fn mesh_wide(fleet: &Fleet, global: &Plane, round: usize) -> Result<usize> {
    let caller = format!("caller-{round}-of-all");
    fleet.common.seek(Mark::Body(caller.clone()));
    global.put(MESH_WIDE, &allow("scale-mesh", &json!({"kind": "Mesh"}), &caller)).await?;
    Ok(fleet.shape.proxies)
}

async fn timeout(fleet: &Fleet, global: &Plane, round: usize) -> Result<usize> {
    let millis = 100_001 + round;
    fleet.common.seek(Mark::Body(millis.to_string()));
    let body = json!({"type": "MeshTimeout", "mesh": "default", "name": "scale", "spec": {
        "targetRef": {"kind": "Mesh"},
        "to": [{
            "targetRef": {"kind": "MeshService", "labels": {"kuma.io/display-name": service_name(0)}},
            "default": {"http": {"requestTimeout": format!("{millis}ms")}},
        }],
    }});
    global.put("/meshes/default/meshtimeouts/scale", &body).await?;
    Ok(fleet.shape.proxies)
}

fn allow(name: &str, target: &Value, caller: &str) -> Value {
    let id = json!({"type": "Exact", "value": format!("spiffe://default/{caller}")});
    json!({"type": "MeshTrafficPermission", "mesh": "default", "name": name, "spec": {
        "targetRef": target,
        "rules": [{"default": {"allow": [{"spiffeID": id}]}}],
    }})
}

async fn policy(zones: &Zones, count: usize, global: &Plane, round: usize) -> Result<usize> {
    let caller = format!("caller-{round}-of-zones");
    zones.common.seek(Mark::Body(caller.clone()));
    global.put(MESH_WIDE, &allow("scale-mesh", &json!({"kind": "Mesh"}), &caller)).await?;
    Ok(count)
}

/// Its own zone does not get it back.
async fn service(zones: &Zones, count: usize, round: usize) -> Result<usize> {
    let port = u16::try_from(20_001 + round)?;
    zones.common.seek(Mark::Body(port.to_string()));
    zones.change_service(port)?;
    Ok(count - 1)
}
