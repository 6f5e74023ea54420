//! Whom a worker chooses, counted: with a fixed seed, so that counts are the same each time.

use crate::{
    policy::outliers::Event,
    resolve::Resolver,
    rig::Rig,
    snapshot::Cluster,
    upstream::{Balance, EndpointState, Upstream, Wish, choose::Dice},
};
use meridian_proxy_config::{
    Affinity, Balancer, Balancing, ByZone, Destination, DestinationPolicies, DestinationTls, Endpoint,
    EndpointSet, Failover, Host, Locality, Outbound, OutlierDetection, Protocol, Proxy, Target, Zones, types,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
};

const SEED: u64 = 7;
/// A moment.
const NOW: u64 = 1_000;

/// A destination of several zones, as a worker of a proxy in east sees it.
struct Bench {
    rig: Rig,
    upstream: Upstream,
    balancing: Balancing,
}

fn proxy() -> Proxy {
    Proxy {
        tags: BTreeMap::from([
            ("rack".to_owned(), BTreeSet::from(["r1".to_owned()])),
            ("row".to_owned(), BTreeSet::from(["a".to_owned()])),
        ]),
        ..crate::rig::proxy()
    }
}

fn endpoint(zone: &str, n: u8, tags: &[(&str, &str)]) -> Endpoint {
    Endpoint {
        host: Host::Ip([10, zone.as_bytes()[0], 0, n].into()),
        port: 80,
        zone: zone.into(),
        sni: None,
        replicas: 1,
        name: format!("{zone}-{n}"),
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

fn some(zone: &str, count: u8) -> Vec<Endpoint> {
    (0..count).map(|n| endpoint(zone, n, &[])).collect()
}

fn size(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn maglev() -> Balancer {
    Balancer::Maglev { size: size(65_537) }
}

fn ring() -> Balancer {
    Balancer::RingHash { function: Default::default(), min_size: size(1_024), max_size: size(8_000_000) }
}

impl Bench {
    fn new(balancing: Balancing, east: Vec<Endpoint>, west: Vec<Endpoint>) -> Self {
        let mut rig = Rig::new(Resolver::default());
        rig.put(types::PROXY, "self", &proxy());
        let destination = Destination {
            service: "backend".into(),
            protocol: Protocol::Http,
            tls: DestinationTls::Off,
            tiers: vec![vec!["east".into()], vec!["west".into()]],
            spans_zones: true,
        };
        rig.put(types::DESTINATION, "backend", &destination);
        let target = Target::Destination("backend".into());
        let outbound = Outbound { bind: None, vips: vec![], port: 80, hostnames: vec![], target };
        rig.put(types::OUTBOUND, "backend", &outbound);
        let cluster = fed(&mut rig, &balancing, east, west);
        let upstream = Upstream::new(&cluster, Rc::new(Dice::seeded(SEED)));
        Self { rig, upstream, balancing }
    }

    fn change(&mut self, east: Vec<Endpoint>, west: Vec<Endpoint>) {
        let cluster = fed(&mut self.rig, &self.balancing, east, west);
        self.upstream.update(&cluster);
    }

    fn pick(&self, hash: Option<u64>) -> Rc<EndpointState> {
        self.upstream.pick(NOW, Balance::Policy { hash }, &[]).unwrap()
    }

    fn counts(&self, picks: u32) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..picks {
            *counts.entry(self.pick(None).endpoint.name.clone()).or_default() += 1;
        }
        counts
    }

    /// By zone and the first figure of the number: parts and tiers, as tests name them.
    fn shares(&self, picks: u32, of: impl Fn(&str) -> &'static str) -> BTreeMap<&'static str, u32> {
        let mut shares = BTreeMap::new();
        self.counts(picks).iter().for_each(|(name, count)| *shares.entry(of(name)).or_default() += count);
        shares
    }

    fn state(&self, name: &str) -> Rc<EndpointState> {
        let tiers = self.upstream.tiers.borrow();
        tiers.iter().flatten().find(|state| state.endpoint.name == name).unwrap().clone()
    }

    fn down(&self, names: &[&str]) {
        names.iter().for_each(|name| self.state(name).failed(NOW));
    }

    /// Whom each of some keys leads to.
    fn led(&self) -> Vec<String> {
        (0..500).map(|n| self.pick(Some(spread(n))).endpoint.name.clone()).collect()
    }
}

fn fed(rig: &mut Rig, balancing: &Balancing, east: Vec<Endpoint>, west: Vec<Endpoint>) -> Arc<Cluster> {
    rig.put(types::ENDPOINTS, "east", &EndpointSet { endpoints: east });
    rig.put(types::ENDPOINTS, "west", &EndpointSet { endpoints: west });
    let policies = DestinationPolicies { balancing: balancing.clone(), ..DestinationPolicies::default() };
    rig.put(types::POLICIES, "backend", &policies);
    rig.publish();
    rig.worker.snapshot().clusters["destination/backend"].clone()
}

/// Keys as hashes give them.
fn spread(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn by(balancer: Balancer) -> Balancing {
    Balancing { balancer, ..Balancing::default() }
}

fn by_zone(affinity: &[(&str, u32)], failover: Vec<Zones>, enough: u32) -> Balancing {
    let affinity =
        affinity.iter().map(|(tag, weight)| Affinity { tag: (*tag).into(), weight: size(*weight) });
    let failover = failover.into_iter().map(|to| Failover { from: vec![], to });
    let zones = ByZone { affinity: affinity.collect(), failover: failover.collect(), enough };
    Balancing { locality: Locality::Zones(zones), ..Balancing::default() }
}

fn even(counts: &BTreeMap<String, u32>, of: usize, each: u32, tolerance: u32) {
    assert_eq!(counts.len(), of, "{counts:?}");
    assert!(counts.values().all(|count| count.abs_diff(each) <= tolerance), "{counts:?}");
}

#[tokio::test]
async fn each_gets_the_same_by_turns_and_nearly_the_same_by_lot() {
    even(&Bench::new(Balancing::default(), some("east", 10), some("west", 2)).counts(10_000), 10, 1_000, 0);
    let hundredth = 100;
    for balancer in [Balancer::Random, maglev(), ring(), Balancer::LeastRequest { choices: size(2) }] {
        // A ring is as uneven as its points are: that is the ring's own test.
        let tolerance = if balancer == ring() { 250 } else { hundredth };
        even(&Bench::new(by(balancer), some("east", 10), vec![]).counts(10_000), 10, 1_000, tolerance);
    }
}

#[tokio::test]
async fn all_zones_alike_is_one_tier() {
    let alike = Balancing { locality: Locality::Alike, ..Balancing::default() };
    even(&Bench::new(alike, some("east", 3), some("west", 2)).counts(1_000), 5, 200, 0);
}

#[tokio::test]
async fn who_is_down_gets_nothing_and_its_share_goes_to_all() {
    for balancer in [Balancer::Random, maglev(), ring(), Balancer::LeastRequest { choices: size(3) }] {
        let bench = Bench::new(by(balancer.clone()), some("east", 10), some("west", 2));
        bench.down(&["east-0", "east-1", "east-2", "east-3", "east-4"]);
        let tolerance = if balancer == ring() { 700 } else { 200 };
        even(&bench.counts(10_000), 5, 2_000, tolerance);
    }
}

#[tokio::test]
async fn the_next_tier_comes_when_nobody_is_left_and_the_last_resort_is_somebody() {
    for balancer in [Balancer::RoundRobin, Balancer::Random, maglev(), ring()] {
        let bench = Bench::new(by(balancer), some("east", 2), some("west", 2));
        bench.down(&["east-0", "east-1"]);
        assert!(bench.counts(100).keys().all(|name| name.starts_with("west")));
        bench.down(&["west-0", "west-1"]);
        assert!(bench.counts(100).keys().all(|name| name.starts_with("east")), "as if all were up");
    }
}

/// Four of ten in the caller's rack, three in its row, three elsewhere.
fn racks() -> Vec<Endpoint> {
    let tags: [&[(&str, &str)]; 3] =
        [&[("rack", "r1"), ("row", "a")], &[("rack", "r2"), ("row", "a")], &[("row", "b")]];
    (0..10).map(|n| endpoint("east", n, tags[usize::from(n) % 3])).collect()
}

fn rack(name: &str) -> &'static str {
    match name.rsplit('-').next().unwrap().parse::<u8>().unwrap() % 3 {
        0 => "rack",
        1 => "row",
        _ => "rest",
    }
}

#[tokio::test]
async fn tags_share_by_weight_whatever_the_rule() {
    for balancer in [
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::LeastRequest { choices: size(2) },
        maglev(),
        ring(),
    ] {
        let usual = by_zone(&[("rack", 90), ("row", 9)], vec![], 5_000);
        let bench = Bench::new(Balancing { balancer: balancer.clone(), ..usual }, racks(), some("west", 3));
        let shares = bench.shares(10_000, rack);
        let tolerance = if balancer == ring() { 300 } else { 100 };
        for (part, expected) in [("rack", 9_000_u32), ("row", 900), ("rest", 100)] {
            assert!(shares[part].abs_diff(expected) <= tolerance, "{balancer:?} {shares:?}");
        }
    }
}

#[tokio::test]
async fn a_part_that_loses_endpoints_gives_its_share_away() {
    let bench = Bench::new(by_zone(&[("rack", 90), ("row", 9)], vec![], 5_000), racks(), vec![]);
    // One of four is left: half of what is enough.
    bench.down(&["east-0", "east-3", "east-6"]);
    let shares = bench.shares(10_000, rack);
    let expected = 10_000 * 45 / 55;
    assert!(shares["rack"].abs_diff(expected) < 150, "{shares:?}");
    bench.down(&["east-9"]);
    let shares = bench.shares(10_000, rack);
    assert!(!shares.contains_key("rack") && shares["row"].abs_diff(9_000) < 150, "{shares:?}");
}

#[tokio::test]
async fn a_zone_with_too_few_gives_away_what_it_lacks() {
    let zone = |name: &str| if name.starts_with("east") { "east" } else { "west" };
    for balancer in [Balancer::RoundRobin, Balancer::Random, maglev()] {
        let usual = by_zone(&[], vec![Zones::Any], 5_000);
        let bench = Bench::new(Balancing { balancer, ..usual }, some("east", 8), some("west", 2));
        bench.down(&["east-0", "east-1", "east-2", "east-3"]);
        assert_eq!(bench.shares(1_000, zone), BTreeMap::from([("east", 1_000)]), "half is enough");
        bench.down(&["east-4", "east-5"]);
        let shares = bench.shares(10_000, zone);
        assert!(shares["east"].abs_diff(5_000) < 200, "a quarter is half of it: {shares:?}");
        // The same key leads to the same place, in whichever zone.
        if bench.balancing.balancer == maglev() {
            assert_eq!(bench.led(), bench.led());
        }
    }
    let strict = Bench::new(by_zone(&[], vec![], 5_000), some("east", 2), some("west", 2));
    strict.down(&["east-0", "east-1"]);
    assert!(strict.counts(100).keys().all(|name| name.starts_with("east")), "no rule leads elsewhere");
}

#[tokio::test]
async fn zones_come_in_the_order_of_the_rules() {
    let far = || [some("west", 1), some("north", 1), some("south", 1)].concat();
    let only = |zone: &str| Zones::Only(vec![zone.into()]);
    let rules = vec![only("south"), Zones::AnyExcept(vec!["north".into(), "south".into()])];
    let bench = Bench::new(by_zone(&[], rules, 10_000), some("east", 1), far());
    for expected in ["east-0", "south-0", "west-0"] {
        assert_eq!(bench.counts(20).keys().collect::<Vec<_>>(), [expected]);
        bench.down(&[expected]);
    }
    assert!(!bench.counts(50).contains_key("north-0"), "no rule takes it");
}

#[tokio::test]
async fn the_same_key_leads_to_the_same_endpoint_in_whatever_order_they_came() {
    for balancer in [maglev(), ring()] {
        let one = Bench::new(by(balancer.clone()), some("east", 9), vec![]);
        let mut turned = some("east", 9);
        turned.reverse();
        turned.rotate_left(4);
        // Names and tags are none of what leads to it.
        turned.iter_mut().for_each(|it| drop(it.tags.insert("a".into(), "b".into())));
        let other = Bench::new(by(balancer), turned, vec![]);
        let led = one.led();
        assert_eq!(led, other.led());
        assert!(led.iter().collect::<BTreeSet<_>>().len() == 9);

        other.down(&["east-3"]);
        for (key, (before, after)) in led.iter().zip(other.led()).enumerate() {
            assert!(after != "east-3" && (before == "east-3" || *before == after), "{key} {before} {after}");
        }
        other.state("east-3").succeeded();
        assert_eq!(led, other.led(), "it is up again");
    }
}

#[tokio::test]
async fn a_ring_that_loses_an_endpoint_moves_only_its_keys() {
    let mut bench = Bench::new(by(ring()), some("east", 9), vec![]);
    let before = bench.led();
    let mut fewer = some("east", 9);
    fewer.remove(4);
    bench.change(fewer, vec![]);
    for (before, after) in before.iter().zip(bench.led()) {
        assert!(before == "east-4" || *before == after, "{before} {after}");
    }
}

#[tokio::test]
async fn repetitions_go_on_along_the_circle() {
    let bench = Bench::new(by(ring()), some("east", 5), vec![]);
    let hash = Some(spread(3));
    let again = |been: &[Rc<EndpointState>], unreached: &[Rc<EndpointState>], looks| {
        let avoids = |state: &Rc<EndpointState>| been.iter().any(|other| other.is(state));
        let wish = Wish { avoided_tiers: &[], unreached, avoids, hash, looks };
        bench.upstream.pick_by(NOW, &wish).unwrap().1
    };
    let first = again(&[], &[], None);
    assert!(first.is(&again(&[], &[], None)), "unless it is told otherwise, it stays");
    let second = again(std::slice::from_ref(&first), &[], None);
    assert!(!second.is(&first) && second.is(&again(&[], std::slice::from_ref(&first), None)));
    let both = [first.clone(), second.clone()];
    let third = again(&both, &[], None);
    assert!(!third.is(&first) && !third.is(&second));
    // One look more finds the second, which is not wanted either.
    assert!(again(&both, &[], Some(1)).is(&second));
    assert!(again(&both, &[], Some(2)).is(&third));
}

#[tokio::test]
async fn the_least_busy_of_those_drawn_is_taken() {
    for (choices, count) in [(2, 2_u8), (9, 5)] {
        let bench =
            Bench::new(by(Balancer::LeastRequest { choices: size(choices) }), some("east", count), vec![]);
        let cluster = bench.upstream.cluster.borrow().clone();
        let mut held = Vec::new();
        for round in 0..20 {
            // All are drawn: each round gives one to each.
            let mut names = BTreeSet::new();
            for _ in 0..count {
                let state = bench.pick(None);
                names.insert(state.endpoint.name.clone());
                held.push(state.under_way(&cluster).unwrap());
            }
            assert_eq!(names.len(), usize::from(count), "{round}");
        }
        held.clear();
        assert_eq!(bench.state("east-0").requests.get(), 0);
    }
    let bench = Bench::new(Balancing::default(), some("east", 2), vec![]);
    let cluster = bench.upstream.cluster.borrow().clone();
    assert!(bench.pick(None).under_way(&cluster).is_none(), "nobody asks, nobody counts");
}

#[tokio::test]
async fn what_is_known_of_an_endpoint_outlives_what_is_said_of_it() {
    let mut bench = Bench::new(Balancing::default(), some("east", 2), vec![]);
    bench.down(&["east-0"]);
    let before = bench.state("east-0");
    let renamed = |n: u8| Endpoint { name: format!("new-{n}"), ..endpoint("east", n, &[("rack", "r9")]) };
    bench.change(vec![renamed(1), renamed(0)], vec![]);
    let after = bench.state("new-0");
    assert!(after.is(&before) && Rc::ptr_eq(&after.pool, &before.pool));
    assert_eq!(after.endpoint.tags["rack"], "r9");
    assert_eq!(bench.counts(10).into_keys().collect::<Vec<_>>(), ["new-1"], "it is still down");
}

/// Of three endpoints two thirds may be out, of two only one.
#[tokio::test]
async fn an_endpoint_in_two_tiers_is_one_and_counts_once() {
    let mut bench = Bench::new(Balancing::default(), some("east", 2), some("east", 1));
    let detection = OutlierDetection {
        interval_millis: 10_000.try_into().unwrap(),
        ejection_millis: 10_000.try_into().unwrap(),
        max_percent: 67,
        split: false,
        panic_below: 0,
        total_failures: Some(size(1)),
        gateway_failures: None,
        local_failures: None,
        success_rate: None,
        failure_percentage: None,
    };
    let policies = DestinationPolicies { outliers: Some(detection), ..DestinationPolicies::default() };
    bench.rig.put(types::POLICIES, "backend", &policies);
    bench.rig.publish();
    bench.upstream.update(&bench.rig.worker.snapshot().clusters["destination/backend"]);
    let (first, in_both) = (bench.state("east-1"), bench.state("east-0"));
    assert!(bench.upstream.tiers.borrow()[1][0].is(&in_both));
    for state in [&first, &in_both] {
        bench.upstream.note(&bench.rig.worker, state, Event::Status(500));
    }
    let now = bench.rig.worker.timer.now();
    let left = bench.upstream.pick(now, Balance::RoundRobin, &[]).unwrap();
    assert!(left.is(&in_both), "the second may not be out as well");
}
