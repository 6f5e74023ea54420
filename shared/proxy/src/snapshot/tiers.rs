//! The virtual endpoints of a cluster in their order: tiers, and in the caller's zone parts by affinity.

use super::{Endpoint, compile::Origin};
use crate::policy::balance::{Circle, Member, Part, TierPlan};
use meridian_proxy_config::{self as config, ByZone, Host, Locality, Zones};
use std::{collections::BTreeMap, sync::Arc};

/// An ingress's replicas at most, whatever it says: each is a pool of connections.
const REPLICAS: u32 = 32;

/// Tiers, and how each is chosen in.
pub(super) fn arrange(origin: &Origin) -> (Vec<Vec<Arc<Endpoint>>>, Vec<TierPlan>) {
    let balancing = &origin.policies.balancing;
    let by_zone = match &balancing.locality {
        Locality::Zones(zones) => Some(zones),
        Locality::Tiers | Locality::Alike => None,
    };
    let arranged = tiers(origin).into_iter().map(|declared| {
        let mut tier = virtual_endpoints(origin, &declared);
        let parts = by_zone.map(|zones| part(&mut tier, zones, origin)).unwrap_or_default();
        let circle = Circle::new(&balancing.balancer, || members(&tier, &parts));
        (tier, TierPlan { parts, circle })
    });
    let (mut tiers, mut plans): (Vec<_>, Vec<_>) = arranged.unzip();
    // There are thousands, of a tier or two each.
    tiers.shrink_to_fit();
    plans.shrink_to_fit();
    (tiers, plans)
}

/// Makes at once what requests would have to wait for, if they went by its predecessor.
pub(super) fn prepare(plans: &[TierPlan], before: &[TierPlan]) {
    if circles(before).any(Circle::is_made) {
        circles(plans).for_each(Circle::prepare);
    }
}

fn circles(plans: &[TierPlan]) -> impl Iterator<Item = &Circle> {
    plans.iter().filter_map(|plan| plan.circle.as_ref())
}

/// The endpoints of each tier, as they were declared.
fn tiers(origin: &Origin) -> Vec<Vec<&config::Endpoint>> {
    let is_one =
        |it: &&config::Endpoint| origin.only.iter().all(|(key, value)| it.tags.get(key) == Some(value));
    let declared = || {
        let tiers = origin.tiers.iter();
        tiers.map(|sets| sets.iter().flatten().flat_map(|set| &set.endpoints).filter(is_one))
    };
    match &origin.policies.balancing.locality {
        Locality::Alike => vec![declared().flatten().collect()],
        Locality::Zones(zones) if origin.spans_zones => {
            let mut ranked: BTreeMap<usize, Vec<&config::Endpoint>> = BTreeMap::new();
            for endpoint in declared().flatten() {
                if let Some(rank) = rank(&endpoint.zone, &origin.zone, zones) {
                    ranked.entry(rank).or_default().push(endpoint);
                }
            }
            ranked.into_values().collect()
        }
        Locality::Tiers | Locality::Zones(_) => declared().map(Iterator::collect).collect(),
    }
}

/// Where a zone comes for a caller of another, or the same; `None`: not at all.
fn rank(zone: &str, caller: &str, zones: &ByZone) -> Option<usize> {
    if zone == caller {
        return Some(0);
    }
    let is_in = |zones: &[String], zone: &str| zones.iter().any(|it| it == zone);
    let mut rules = zones.failover.iter();
    let takes = rules.position(|rule| {
        let is_for = rule.from.is_empty() || is_in(&rule.from, caller);
        is_for
            && match &rule.to {
                Zones::Any => true,
                Zones::Only(some) => is_in(some, zone),
                Zones::AnyExcept(some) => !is_in(some, zone),
            }
    });
    takes.map(|rule| rule + 1)
}

/// Replicas of one address are spread out, so that taking turns does not send bursts through one ingress.
fn virtual_endpoints(origin: &Origin, declared: &[&config::Endpoint]) -> Vec<Arc<Endpoint>> {
    let replicas = |endpoint: &config::Endpoint| endpoint.replicas.clamp(1, REPLICAS);
    let most = declared.iter().map(|endpoint| replicas(endpoint)).max().unwrap_or_default();
    let mut seen = BTreeMap::new();
    let mut tier = Vec::new();
    for replica in 0..most {
        for endpoint in declared.iter().filter(|endpoint| replica < replicas(endpoint)) {
            let (sni, zone) = match &origin.instead {
                Some((sni, zone)) => (Some(sni.clone()), zone.clone()),
                None => (endpoint.sni.clone(), endpoint.zone.clone()),
            };
            let made = Endpoint {
                host: endpoint.host.clone(),
                port: endpoint.port,
                zone,
                sni,
                replica,
                name: endpoint.name.clone(),
                tags: endpoint.tags.clone(),
                remote: endpoint.zone != origin.zone,
            };
            let key = (made.host.clone(), made.port, made.sni.clone(), replica);
            if seen.insert(key, ()).is_none() {
                tier.push(Arc::new(made));
            }
        }
    }
    tier
}

/// Parts of the caller's own zone by the first tag of which an endpoint has a value of the caller's; endpoints then
/// stand part by part. None where all would be in one.
fn part(tier: &mut [Arc<Endpoint>], zones: &ByZone, origin: &Origin) -> Vec<Part> {
    if tier.iter().any(|endpoint| endpoint.remote) {
        return Vec::new();
    }
    let shares = |endpoint: &Endpoint, tag: &str| {
        let values = origin.caller_tags.get(tag);
        values.zip(endpoint.tags.get(tag)).is_some_and(|(values, value)| values.contains(value))
    };
    let of = |endpoint: &Endpoint| {
        let mut tags = zones.affinity.iter();
        tags.position(|affinity| shares(endpoint, &affinity.tag)).unwrap_or(zones.affinity.len())
    };
    tier.sort_by_cached_key(|endpoint| of(endpoint));
    let mut parts = Vec::new();
    let mut start = 0;
    for same in tier.chunk_by(|a, b| of(a) == of(b)) {
        let affinity = same.first().and_then(|endpoint| zones.affinity.get(of(endpoint)));
        let weight = affinity.map_or(1, |affinity| affinity.weight.get());
        parts.push(Part { endpoints: start..start + same.len(), weight });
        start += same.len();
    }
    if parts.len() > 1 { parts } else { Vec::new() }
}

/// Endpoints as they stand on a circle: a part's weight is that of all its endpoints together.
fn members(tier: &[Arc<Endpoint>], parts: &[Part]) -> Vec<Member> {
    let weight = |place: usize| {
        let part = parts.iter().find(|part| part.endpoints.contains(&place));
        part.map_or(1.0, |part| f64::from(part.weight) / part.endpoints.len() as f64)
    };
    tier.iter()
        .enumerate()
        .map(|(place, it)| Member { identity: it.identity(), weight: weight(place) })
        .collect()
}

impl Endpoint {
    /// The same in every proxy that has this endpoint, whatever else it knows of it, and no other's.
    pub fn identity(&self) -> String {
        let host = match &self.host {
            Host::Ip(address) => address.to_canonical().to_string(),
            Host::Name(name) => name.clone(),
        };
        let sni = self.sni.as_deref().unwrap_or_default();
        format!("{}|{host}|{}|{sni}|{}", self.zone, self.port, self.replica)
    }
}

#[cfg(test)]
mod tests;
