use super::*;
use meridian_proxy_config::{Affinity, Balancer, Balancing, DestinationPolicies, EndpointSet, Failover};
use std::{collections::BTreeSet, num::NonZeroU32};

fn endpoint(zone: &str, n: u8, tags: &[(&str, &str)]) -> config::Endpoint {
    config::Endpoint {
        host: Host::Ip([10, 0, 0, n].into()),
        port: 80,
        zone: zone.into(),
        sni: Some(format!("sni.{zone}")),
        replicas: 1,
        name: format!("{zone}-{n}"),
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

/// A destination with two endpoints in east, the caller's zone, and some in others.
fn origin(locality: Locality, spans_zones: bool) -> Origin {
    let set = |endpoints| Some(Arc::new(EndpointSet { endpoints }));
    let east = vec![endpoint("east", 1, &[]), endpoint("east", 2, &[])];
    let far = vec![endpoint("west", 3, &[]), endpoint("north", 4, &[]), endpoint("south", 5, &[])];
    Origin {
        tiers: vec![vec![set(east)], vec![set(far), None]],
        zone: "east".into(),
        spans_zones,
        policies: policies(locality, Balancer::default()),
        ..Origin::default()
    }
}

fn policies(locality: Locality, balancer: Balancer) -> Arc<DestinationPolicies> {
    let balancing = Balancing { locality, balancer, hash: vec![] };
    Arc::new(DestinationPolicies { balancing, ..DestinationPolicies::default() })
}

fn rule(from: &[&str], to: Zones) -> Failover {
    Failover { from: from.iter().map(|zone| (*zone).to_owned()).collect(), to }
}

fn only(zones: &[&str]) -> Zones {
    Zones::Only(zones.iter().map(|zone| (*zone).to_owned()).collect())
}

fn by_zone(failover: Vec<Failover>) -> Locality {
    Locality::Zones(ByZone { affinity: vec![], failover, enough: 5_000 })
}

fn names(origin: &Origin) -> Vec<Vec<String>> {
    let (tiers, plans) = arrange(origin);
    assert_eq!(tiers.len(), plans.len());
    tiers.iter().map(|tier| tier.iter().map(|endpoint| endpoint.name.clone()).collect()).collect()
}

#[test]
fn rules_make_tiers() {
    let east = || vec!["east-1", "east-2"];
    for (locality, expected) in [
        (Locality::Tiers, vec![east(), vec!["west-3", "north-4", "south-5"]]),
        (Locality::Alike, vec![vec!["east-1", "east-2", "west-3", "north-4", "south-5"]]),
        (by_zone(vec![]), vec![east()]),
        (by_zone(vec![rule(&[], Zones::Any)]), vec![east(), vec!["west-3", "north-4", "south-5"]]),
        (by_zone(vec![rule(&["west"], Zones::Any)]), vec![east()]),
        (
            by_zone(vec![
                rule(&["west", "east"], only(&["south"])),
                rule(&[], Zones::AnyExcept(vec!["north".into()])),
                rule(&[], only(&["nowhere"])),
                rule(&["east"], Zones::Any),
            ]),
            vec![east(), vec!["south-5"], vec!["west-3"], vec!["north-4"]],
        ),
    ] {
        assert_eq!(names(&origin(locality.clone(), true)), expected, "{locality:?}");
    }
}

#[test]
fn who_calls_one_zones_service_gets_that_zone() {
    let set = Some(Arc::new(EndpointSet { endpoints: vec![endpoint("west", 3, &[])] }));
    let one = |locality| Origin { tiers: vec![vec![set.clone()]], ..origin(locality, false) };
    for locality in [Locality::Tiers, Locality::Alike, by_zone(vec![])] {
        assert_eq!(names(&one(locality)), [["west-3"]]);
    }
}

fn affine(tags: &[(&str, u32)], of: &[&[(&str, &str)]]) -> Origin {
    let endpoints = (1..).zip(of).map(|(n, tags)| endpoint("east", n, tags)).collect();
    let affinity = tags
        .iter()
        .map(|(tag, weight)| Affinity { tag: (*tag).to_owned(), weight: NonZeroU32::new(*weight).unwrap() });
    let locality = Locality::Zones(ByZone { affinity: affinity.collect(), failover: vec![], enough: 5_000 });
    let own = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<_>>();
    Origin {
        tiers: vec![vec![Some(Arc::new(EndpointSet { endpoints }))]],
        caller_tags: [("rack".to_owned(), own(&["r1", "r2"])), ("row".to_owned(), own(&["a"]))].into(),
        ..origin(locality, true)
    }
}

#[test]
fn an_endpoint_belongs_to_the_first_tag_that_it_shares() {
    let origin = affine(
        &[("rack", 90), ("row", 9)],
        &[
            &[],
            &[("row", "a")],
            &[("rack", "r2"), ("row", "a")],
            &[("rack", "r3"), ("row", "a")],
            &[("rack", "r1")],
        ],
    );
    assert_eq!(names(&origin), [["east-3", "east-5", "east-2", "east-4", "east-1"]]);
    let (_, plans) = arrange(&origin);
    let part = |endpoints, weight| Part { endpoints, weight };
    assert_eq!(plans[0].parts, [part(0..2, 90), part(2..4, 9), part(4..5, 1)]);
    // A part's weight is that of all its endpoints together.
    let (tiers, _) = arrange(&origin);
    let weights: Vec<f64> = members(&tiers[0], &plans[0].parts).iter().map(|member| member.weight).collect();
    assert_eq!(weights, [45.0, 45.0, 4.5, 4.5, 1.0]);
}

#[test]
fn one_part_is_none() {
    for of in [&[&[("rack", "r1")][..], &[("rack", "r2")]], &[&[("rack", "r3")][..], &[]]] {
        let (_, plans) = arrange(&affine(&[("rack", 90), ("pod", 9)], of));
        assert_eq!(plans[0].parts, []);
    }
}

#[test]
fn replicas_have_identities_of_their_own_and_are_spread() {
    let mut ingress = [endpoint("west", 1, &[]), endpoint("west", 2, &[])];
    (ingress[0].replicas, ingress[1].replicas) = (2, 1_000);
    let origin = Origin {
        tiers: vec![vec![Some(Arc::new(EndpointSet { endpoints: ingress.to_vec() }))]],
        policies: policies(Locality::Tiers, Balancer::Maglev { size: NonZeroU32::new(101).unwrap() }),
        ..origin(Locality::Tiers, false)
    };
    let (tiers, plans) = arrange(&origin);
    let order: Vec<&str> = tiers[0].iter().take(5).map(|it| it.name.as_str()).collect();
    assert_eq!(order, ["west-1", "west-2", "west-1", "west-2", "west-2"]);
    assert_eq!(tiers[0].len(), 2 + 32);
    let identities: BTreeSet<String> = tiers[0].iter().map(|it| it.identity()).collect();
    assert_eq!(identities.len(), tiers[0].len());
    assert!(plans[0].circle.is_some());
}

#[test]
fn a_table_is_made_by_who_asks_or_with_what_follows_one_that_was_asked() {
    let maglev = Balancer::Maglev { size: NonZeroU32::new(101).unwrap() };
    let origin = Origin { policies: policies(Locality::Tiers, maglev), ..origin(Locality::Tiers, false) };
    let plans = || arrange(&origin).1;
    let made = |plans: &[TierPlan]| -> Vec<bool> {
        plans.iter().map(|plan| plan.circle.as_ref().is_some_and(Circle::is_made)).collect()
    };
    let (before, after) = (plans(), plans());
    prepare(&after, &before);
    assert_eq!((made(&before), made(&after)), (vec![false, false], vec![false, false]));
    assert!(before[0].circle.as_ref().unwrap().table().is_some());
    prepare(&after, &before);
    assert_eq!((made(&before), made(&after)), (vec![true, false], vec![true, true]));
}
