use crate::compile::members::{group_members, group_of, own_members};
use crate::compile::{Inputs, Unit, compile, owners};
use crate::picture::{MeshPicture, Picture};
use crate::vip::VipTable;
use meridian_core::{Key, Resource};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// All that a proxy is told: type, then name.
pub(super) type Config = BTreeMap<String, BTreeMap<String, Value>>;

/// The field of a private key, which nobody reads who may not read Secrets.
const PRIVATE: &str = "clientKey";
const HIDDEN: &str = "(a private key: not shown)";

/// `None` if it is not there.
pub(super) fn config(picture: &Picture, vips: &VipTable, proxy: &Key) -> Option<Config> {
    picture.mesh(&proxy.mesh)?.spec()?;
    let mut config = Config::new();
    for unit in units(picture, proxy)? {
        for resource in compile(&unit, Inputs { picture, vips }).resources {
            let mut body = serde_json::from_slice(&resource.body).unwrap_or_default();
            hide(&mut body);
            config.entry(resource.type_.to_string()).or_default().insert(resource.name.to_string(), body);
        }
    }
    Some(config)
}

/// Gives addresses to what has none in this copy of the table: what is only tried out has none yet, and mostly
/// gets the one that is shown, since an address is a hash of its owner.
pub(super) fn allot(picture: &Picture, vips: &mut VipTable, proxy: &Key) {
    for owner in units(picture, proxy).into_iter().flatten().flat_map(|unit| owners(&unit, picture)) {
        // Without one, the name is left out, as it would be from what proxies get.
        let _ = vips.ensure(&owner, 0);
    }
}

fn units(picture: &Picture, proxy: &Key) -> Option<BTreeSet<Unit>> {
    let group = group_of(picture, proxy)?;
    let mut units = group_members(picture, &group);
    units.extend(own_members(picture, proxy));
    Some(units)
}

/// The picture with the mesh's policies that are only tried out as if they were in force, and these; none if there are
/// none.
pub(super) fn enforced(picture: &Picture, mesh: &str) -> (Option<Picture>, Vec<Resource>) {
    let tried: Vec<Resource> = picture.mesh(mesh).map(shadows).unwrap_or_default();
    if tried.is_empty() {
        return (None, tried);
    }
    let mut enforced = picture.clone();
    for policy in tried.iter().filter_map(meridian_policy::as_in_force) {
        // It was read from this picture, so it can be read again.
        if let Err(error) = enforced.put(policy) {
            tracing::error!(%error, "a policy that is tried out can't be read");
        }
    }
    (Some(enforced), tried)
}

fn shadows(mesh: &MeshPicture) -> Vec<Resource> {
    let passthroughs = mesh.passthroughs.iter().map(|it| &it.resource);
    let permissions = mesh.permissions.iter().map(|it| &it.resource);
    let policies = mesh.policies.values().map(|it| &*it.resource);
    let all = passthroughs.chain(permissions).chain(policies);
    all.filter(|it| meridian_policy::as_in_force(it).is_some()).cloned().collect()
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == PRIVATE && value.is_string() {
                    *value = Value::from(HIDDEN);
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}
