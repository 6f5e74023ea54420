//! MeshLoadBalancingStrategy: to which of a service's instances a client comes.

use crate::{
    apps::{Answer, Seen, call, echo_app, get, http_app, http1, request, streaming, text, whole},
    world::{Ca, MESH, Sidecar, address, destination, endpoint, soon, until},
};
use http::Method;
use meridian_proxy_config::{
    Affinity, Balancer, Balancing, ByZone, Destination, DestinationPolicies, DestinationTls, Endpoint,
    EndpointSet, Failover, HashFunction, HashPolicy, HashSource, HttpMatch, HttpRoutes, HttpRule, Locality,
    Outbound, OutlierDetection, Protocol, RoutePolicies, Routes, Target, Zones, types,
};
use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A service of several zones without mTLS, so that its instances are the applications themselves.
struct Service {
    ca: Ca,
    protocol: Protocol,
    instances: Vec<(SocketAddr, Seen)>,
}

/// A caller in east, and where its application connects.
struct Caller {
    web: Sidecar,
    outbound: SocketAddr,
}

impl Service {
    async fn start(protocol: Protocol, instances: usize) -> Self {
        let mut all = Vec::new();
        for _ in 0..instances {
            all.push(if protocol == Protocol::Tcp { echo_app().await } else { http_app(false).await });
        }
        Self { ca: Ca::new(MESH, &["east"]), protocol, instances: all }
    }

    /// The first in east, the others of the zones as they are named.
    fn endpoints(&self, zones: &[&str]) -> Vec<Endpoint> {
        let instances = self.instances.iter().zip(zones.iter().chain(std::iter::repeat(&"east")));
        instances.map(|((address, _), zone)| endpoint(*address, zone)).collect()
    }

    async fn caller(&self, balancing: Balancing, endpoints: Vec<Endpoint>) -> Caller {
        let caller = Caller { web: Sidecar::start(&self.ca, "east", "web"), outbound: address() };
        let here = Destination {
            tls: DestinationTls::Off,
            spans_zones: true,
            ..destination(self.protocol, &["backend"])
        };
        caller.web.feed(types::DESTINATION, "backend", &here);
        let outbound = Outbound {
            bind: Some(caller.outbound),
            vips: vec![],
            port: caller.outbound.port(),
            hostnames: vec![],
            target: Target::Destination("backend".into()),
        };
        caller.web.feed(types::OUTBOUND, "backend", &outbound);
        caller.follow(balancing, endpoints).await;
        caller
    }

    fn requests(&self) -> Vec<usize> {
        self.instances.iter().map(|(_, seen)| seen.requests()).collect()
    }

    /// Which instance all requests since `before` came to.
    fn only_one(&self, before: &[usize]) -> usize {
        let more: Vec<usize> = self.requests().iter().zip(before).map(|(now, before)| now - before).collect();
        let served: Vec<usize> = (0..more.len()).filter(|n| more[*n] > 0).collect();
        assert_eq!(served.len(), 1, "{more:?}");
        served[0]
    }
}

impl Caller {
    async fn follow(&self, balancing: Balancing, endpoints: Vec<Endpoint>) {
        self.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints });
        let policies = DestinationPolicies { balancing, ..DestinationPolicies::default() };
        self.web.feed(types::POLICIES, "backend", &policies);
        self.web.settled().await;
    }

    /// A request with a header, over a connection of its own.
    async fn with(&self, name: &str, value: &str) -> Answer {
        let mut request = get("/headers");
        request.headers_mut().insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        let answer = http1(self.outbound).await.send_request(request).await;
        whole(soon("an answer", async { answer }).await.unwrap()).await
    }
}

fn size(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn hashed(balancer: Balancer, source: HashSource) -> Balancing {
    Balancing { balancer, hash: vec![HashPolicy { source, terminal: false }], ..Balancing::default() }
}

fn maglev() -> Balancer {
    Balancer::Maglev { size: size(65_537) }
}

fn ring() -> Balancer {
    Balancer::RingHash { function: Default::default(), min_size: size(1_024), max_size: size(8_000_000) }
}

#[tokio::test]
async fn the_same_user_comes_to_the_same_instance_through_whatever_proxy() {
    for balancer in [maglev(), ring()] {
        let service = Service::start(Protocol::Http, 5).await;
        let by_user = hashed(balancer, HashSource::Header("x-user".into()));
        let one = service.caller(by_user.clone(), service.endpoints(&[])).await;
        let mut turned = service.endpoints(&[]);
        turned.rotate_left(2);
        let other = service.caller(by_user.clone(), turned).await;
        let mut instances = Vec::new();
        for user in 0..20 {
            let before = service.requests();
            for caller in [&one, &other, &one] {
                assert_eq!(caller.with("x-user", &format!("user-{user}")).await.status, 200);
            }
            instances.push(service.only_one(&before));
        }
        let mut used = instances.clone();
        used.sort_unstable();
        used.dedup();
        assert!(used.len() > 2, "{used:?}");

        // The first user's instance goes: of the others' only those that it had.
        let gone = instances[0];
        let mut left = service.endpoints(&[]);
        left.remove(gone);
        one.follow(by_user, left).await;
        let mut stayed = 0;
        for (user, instance) in instances.iter().enumerate() {
            let before = service.requests();
            assert_eq!(one.with("x-user", &format!("user-{user}")).await.status, 200);
            let now = service.only_one(&before);
            assert_ne!(now, gone);
            stayed += usize::from(now == *instance);
        }
        let others = instances.iter().filter(|instance| **instance != gone).count();
        // Of Maglev's table a few percent move.
        assert!(stayed + 2 >= others, "{stayed} of {others}");
    }
}

#[tokio::test]
async fn a_client_without_a_cookie_is_given_one() {
    let service = Service::start(Protocol::Http, 5).await;
    let cookie =
        HashSource::Cookie { name: "place".into(), made_for_seconds: Some(60), path: Some("/".into()) };
    let caller = service.caller(hashed(ring(), cookie.clone()), service.endpoints(&[])).await;
    for _ in 0..5 {
        let before = service.requests();
        let first = call(caller.outbound, "/headers").await;
        let made = first.headers.get_all("set-cookie").iter().collect::<Vec<_>>();
        let [made] = made.as_slice() else { panic!("{made:?}") };
        let (pair, attributes) = made.to_str().unwrap().split_once(';').unwrap();
        assert!(pair.starts_with("place=") && attributes == " Max-Age=60; Path=/; HttpOnly", "{made:?}");
        assert!(!first.text().contains("place="), "it is the client's, not the application's");
        for _ in 0..3 {
            let next = caller.with("cookie", &format!("a=b; {pair}")).await;
            assert!(!next.headers.contains_key("set-cookie") && next.text().contains(pair));
        }
        service.only_one(&before);
    }
    // It comes with every answer, also with one of our own.
    caller.follow(hashed(ring(), cookie), vec![]).await;
    let answer = call(caller.outbound, "/headers").await;
    assert!(answer.status == 503 && answer.headers.contains_key("set-cookie"));
}

/// Connections that are no HTTP have only a source address.
#[tokio::test]
async fn connections_of_one_address_come_to_one_instance() {
    let service = Service::start(Protocol::Tcp, 4).await;
    let caller = service.caller(hashed(maglev(), HashSource::SourceIp), service.endpoints(&[])).await;
    let connections = || service.instances.iter().filter(|(_, seen)| seen.connections() > 0).count();
    for (balancing, used) in [(None, 1), (Some(Balancing::default()), 4)] {
        if let Some(balancing) = balancing {
            caller.follow(balancing, service.endpoints(&[])).await;
        }
        for _ in 0..12 {
            let mut stream = TcpStream::connect(caller.outbound).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            assert_eq!(soon("an echo", stream.read_u8()).await.unwrap(), b'x');
        }
        assert_eq!(connections(), used);
    }
}

#[tokio::test]
async fn who_is_busy_is_spared() {
    let service = Service::start(Protocol::Http, 2).await;
    let least = Balancing { balancer: Balancer::LeastRequest { choices: size(2) }, ..Balancing::default() };
    let only = service.endpoints(&[])[..1].to_vec();
    let caller = service.caller(least.clone(), only).await;
    let mut lasting = Vec::new();
    for _ in 0..3 {
        let mut client = http1(caller.outbound).await;
        let (sender, body) = streaming();
        let answer = tokio::spawn(async move {
            let answer = client.send_request(request(Method::POST, "/echo", body)).await;
            whole(answer.unwrap()).await
        });
        lasting.push((sender, answer));
    }
    until("they are there", async || (service.requests() == [3, 0]).then_some(())).await;
    caller.follow(least, service.endpoints(&[])).await;
    for _ in 0..10 {
        assert_eq!(call(caller.outbound, "/headers").await.status, 200);
    }
    assert_eq!(service.requests(), [3, 10], "it is not forgotten how busy the first one is");
    for (sender, answer) in lasting {
        drop(sender);
        assert_eq!(answer.await.unwrap().status, 200);
    }
    until("it is asked again", async || {
        call(caller.outbound, "/headers").await;
        (service.requests()[0] > 3).then_some(())
    })
    .await;
}

fn zones(failover: Vec<Zones>) -> Balancing {
    let failover = failover.into_iter().map(|to| Failover { from: vec![], to });
    let by_zone = ByZone { affinity: vec![], failover: failover.collect(), enough: 5_000 };
    Balancing { locality: Locality::Zones(by_zone), ..Balancing::default() }
}

#[tokio::test]
async fn other_zones_are_used_as_rules_say() {
    let service = Service::start(Protocol::Http, 3).await;
    let all = || service.endpoints(&["east", "west", "north"]);
    let far = || all().split_off(1);
    let caller = service.caller(zones(vec![]), all()).await;
    let served = async |requests: usize| {
        let before = service.requests();
        for _ in 0..requests {
            assert_eq!(call(caller.outbound, "/headers").await.status, 200);
        }
        service.requests().iter().zip(before).map(|(now, before)| now - before).collect::<Vec<_>>()
    };
    assert_eq!(served(6).await, [6, 0, 0]);
    caller.follow(zones(vec![]), far()).await;
    assert_eq!(call(caller.outbound, "/headers").await.status, 503, "no rule leads elsewhere");
    caller.follow(zones(vec![Zones::AnyExcept(vec!["west".into()])]), far()).await;
    assert_eq!(served(6).await, [0, 0, 6]);
    caller.follow(Balancing { locality: Locality::Alike, ..Balancing::default() }, all()).await;
    assert_eq!(served(6).await, [2, 2, 2]);
}

#[tokio::test]
async fn a_rack_has_most_of_its_own_requests() {
    let service = Service::start(Protocol::Http, 3).await;
    let mut endpoints = service.endpoints(&[]);
    for (endpoint, rack) in endpoints.iter_mut().zip(["r1", "r2", "r2"]) {
        endpoint.tags.insert("rack".into(), rack.into());
    }
    let affinity = vec![Affinity { tag: "rack".into(), weight: size(1_000_000) }];
    let by_zone = ByZone { affinity, failover: vec![], enough: 5_000 };
    let near = Balancing { locality: Locality::Zones(by_zone), ..Balancing::default() };
    let caller = service.caller(near.clone(), endpoints.clone()).await;
    let proxy = caller.web.engine.shared().snapshots.load().proxy.clone().unwrap();
    for (rack, instances) in [("r2", [0, 15, 15]), ("r1", [30, 0, 0])] {
        let mut own = (*proxy).clone();
        own.tags.insert("rack".into(), [rack.to_owned()].into());
        caller.web.feed(types::PROXY, "self", &own);
        caller.web.settled().await;
        let before = service.requests();
        for _ in 0..30 {
            assert_eq!(call(caller.outbound, "/headers").await.status, 200);
        }
        let more: Vec<usize> =
            service.requests().iter().zip(before).map(|(now, before)| now - before).collect();
        assert_eq!(more, instances, "{rack}");
    }
}

/// Which instance each of so many keys comes to, by their parameter `user`.
async fn places(service: &Service, balancer: Balancer) -> Vec<usize> {
    let by_user = hashed(balancer, HashSource::QueryParameter("user".into()));
    let caller = service.caller(by_user, service.endpoints(&[])).await;
    let mut places = Vec::new();
    for user in 0..30 {
        let before = service.requests();
        for _ in 0..2 {
            assert_eq!(call(caller.outbound, &format!("/headers?user={user}")).await.status, 200);
        }
        places.push(service.only_one(&before));
    }
    places
}

/// Keys come to other places in a circle of another size, or made in another way.
#[tokio::test]
async fn a_circle_is_as_the_policy_says() {
    let service = Service::start(Protocol::Http, 5).await;
    let ring = |function, min, max| Balancer::RingHash { function, min_size: size(min), max_size: size(max) };
    let usual = places(&service, ring(HashFunction::Xx, 1_024, 8_000_000)).await;
    assert_ne!(places(&service, ring(HashFunction::Murmur2, 1_024, 8_000_000)).await, usual);
    let small = places(&service, ring(HashFunction::Xx, 1, 8_000_000)).await;
    assert_ne!(small, usual);
    assert_eq!(places(&service, ring(HashFunction::Xx, 1_024, 5)).await, small, "a point for each");

    let two = places(&service, Balancer::Maglev { size: size(2) }).await;
    let used = |places: &[usize]| places.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(used(&two) <= 2 && used(&places(&service, maglev()).await) > 2, "{two:?}");
}

#[tokio::test]
async fn after_a_terminal_hash_nothing_counts() {
    let service = Service::start(Protocol::Http, 5).await;
    let header = |name: &str, terminal| HashPolicy { source: HashSource::Header(name.into()), terminal };
    for (terminal, used) in [(true, 1..2), (false, 2..6)] {
        let hash = vec![header("x-user", terminal), header("x-session", false)];
        let both = Balancing { balancer: maglev(), hash, ..Balancing::default() };
        let caller = service.caller(both, service.endpoints(&[])).await;
        let before = service.requests();
        for session in 0..20 {
            let mut request = get("/headers");
            request.headers_mut().insert("x-user", "ann".parse().unwrap());
            request.headers_mut().insert("x-session", session.to_string().parse().unwrap());
            let answer = http1(caller.outbound).await.send_request(request).await.unwrap();
            assert_eq!(whole(answer).await.status, 200);
        }
        let instances = service.requests().iter().zip(before).filter(|(now, before)| *now > before).count();
        assert!(used.contains(&instances), "{terminal} {instances}");
    }
}

/// By lot an instance is drawn twice in a row; in turn never.
#[tokio::test]
async fn instances_are_drawn_or_take_turns() {
    let service = Service::start(Protocol::Http, 2).await;
    for (balancer, twice) in [(Balancer::Random, true), (Balancer::RoundRobin, false)] {
        let caller =
            service.caller(Balancing { balancer, ..Balancing::default() }, service.endpoints(&[])).await;
        let mut drawn = Vec::new();
        for _ in 0..60 {
            let before = service.requests();
            assert_eq!(call(caller.outbound, "/headers").await.status, 200);
            drawn.push(service.only_one(&before));
        }
        assert_eq!(drawn.windows(2).any(|pair| pair[0] == pair[1]), twice, "{drawn:?}");
        assert!(drawn.contains(&0) && drawn.contains(&1));
    }
}

/// Whoever draws one only does not see that it is busy.
#[tokio::test]
async fn so_many_are_compared_as_the_policy_says() {
    for (choices, all_to_other) in [(1, false), (2, true)] {
        let service = Service::start(Protocol::Http, 2).await;
        let balancer = Balancer::LeastRequest { choices: size(choices) };
        let least = Balancing { balancer, ..Balancing::default() };
        let caller = service.caller(least.clone(), service.endpoints(&[])[..1].to_vec()).await;
        let mut client = http1(caller.outbound).await;
        let (_sender, body) = streaming();
        let lasting = tokio::spawn(client.send_request(request(Method::POST, "/echo", body)));
        until("it is there", async || (service.requests() == [1, 0]).then_some(())).await;
        caller.follow(least, service.endpoints(&[])).await;
        for _ in 0..40 {
            assert_eq!(call(caller.outbound, "/headers").await.status, 200);
        }
        assert_eq!(service.requests() == [1, 40], all_to_other, "{:?}", service.requests());
        lasting.abort();
    }
}

#[tokio::test]
async fn a_rule_of_other_zones_is_for_callers_of_some() {
    let service = Service::start(Protocol::Http, 3).await;
    let far = || service.endpoints(&["east", "west", "north"]).split_off(1);
    let caller = service.caller(zones(vec![]), far()).await;
    let rule = |from: &[&str], to| {
        let failover = Failover { from: from.iter().map(|zone| (*zone).to_owned()).collect(), to };
        let by_zone = ByZone { affinity: vec![], failover: vec![failover], enough: 5_000 };
        Balancing { locality: Locality::Zones(by_zone), ..Balancing::default() }
    };
    let only = Zones::Only(vec!["north".into()]);
    for (rule, served) in [
        (rule(&["west"], Zones::Any), None),
        (rule(&["west", "east"], Zones::Any), Some([0, 3, 3])),
        (rule(&[], only), Some([0, 0, 6])),
    ] {
        caller.follow(rule.clone(), far()).await;
        let before = service.requests();
        for _ in 0..6 {
            let status = call(caller.outbound, "/headers").await.status;
            assert_eq!(status, if served.is_some() { 200 } else { 503 }, "{rule:?}");
        }
        let more: Vec<usize> = service.requests().iter().zip(before).map(|(now, it)| now - it).collect();
        assert_eq!(more, served.unwrap_or([0; 3]), "{rule:?}");
    }
}

/// Half of the zone's own are left out.
#[tokio::test]
async fn other_zones_help_below_the_policys_threshold() {
    let service = Service::start(Protocol::Http, 2).await;
    for (enough, helps) in [(5_000, false), (10_000, true)] {
        let mut endpoints = service.endpoints(&["east", "west"]);
        endpoints.push(endpoint(address(), "east"));
        let failover = vec![Failover { from: vec![], to: Zones::Any }];
        let by_zone = ByZone { affinity: vec![], failover, enough };
        let near = Balancing { locality: Locality::Zones(by_zone), ..Balancing::default() };
        let caller = service.caller(near.clone(), endpoints).await;
        let millis = |millis| NonZeroU64::new(millis).unwrap();
        let outliers = OutlierDetection {
            interval_millis: millis(3_600_000),
            ejection_millis: millis(3_600_000),
            max_percent: 100,
            split: false,
            panic_below: 0,
            total_failures: NonZeroU32::new(1),
            gateway_failures: None,
            local_failures: None,
            success_rate: None,
            failure_percentage: None,
        };
        let policies = DestinationPolicies {
            balancing: near,
            outliers: Some(outliers),
            ..DestinationPolicies::default()
        };
        caller.web.feed(types::POLICIES, "backend", &policies);
        caller.web.settled().await;
        let traffic = caller.web.engine.shared().metrics.traffic("outbound", "backend");
        until("one is out", async || {
            call(caller.outbound, "/headers").await;
            (traffic.cell(0).ejections.value() == 1).then_some(())
        })
        .await;
        let before = service.requests();
        for _ in 0..60 {
            assert_eq!(call(caller.outbound, "/headers").await.status, 200);
        }
        let more: Vec<usize> = service.requests().iter().zip(before).map(|(now, it)| now - it).collect();
        assert!(more[0] > 0 && (more[1] > 0) == helps, "{enough} {more:?}");
    }
}

/// A tag that changes is no other endpoint: its connections stay, and what is under way.
#[tokio::test]
async fn a_tag_that_changes_ends_no_connection() {
    let service = Service::start(Protocol::Http, 1).await;
    let caller = service.caller(Balancing::default(), service.endpoints(&[])).await;
    let mut client = http1(caller.outbound).await;
    for n in 0..5 {
        let mut endpoints = service.endpoints(&[]);
        endpoints[0].tags.insert("version".into(), n.to_string());
        endpoints[0].name = format!("backend-{n}");
        caller.follow(Balancing::default(), endpoints).await;
        let (sender, body) = streaming();
        let answer = client.send_request(request(Method::POST, "/echo", body));
        drop(sender);
        assert_eq!(whole(soon("an answer", answer).await.unwrap()).await.status, 200);
    }
    assert_eq!(service.instances[0].1.connections(), 1);
    let last = client.send_request(request(Method::POST, "/echo", text("bye"))).await;
    assert_eq!(whole(last.unwrap()).await.text(), "bye");
}

#[tokio::test]
async fn a_routes_requests_are_hashed_by_what_it_says() {
    let service = Service::start(Protocol::Http, 5).await;
    let by_user = hashed(maglev(), HashSource::Header("x-user".into()));
    let caller = service.caller(by_user, service.endpoints(&[])).await;
    let hash = vec![HashPolicy { source: HashSource::Header("x-cart".into()), terminal: false }];
    let policies = Some(RoutePolicies { hash: Some(hash), ..RoutePolicies::default() });
    let routes = HttpRoutes {
        matches: vec![HttpMatch::default()],
        rules: vec![HttpRule { policies, ..HttpRule::default() }],
    };
    caller.web.feed(types::ROUTES, "backend", &Routes::Http(routes));
    caller.web.settled().await;
    let mut used = Vec::new();
    for cart in 0..20 {
        let before = service.requests();
        for user in 0..4 {
            let mut request = get("/status/200");
            for (name, value) in [("x-cart", format!("cart-{cart}")), ("x-user", format!("user-{user}"))] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            let answer = soon("an answer", http1(caller.outbound).await.send_request(request)).await.unwrap();
            assert_eq!(whole(answer).await.status, 200);
        }
        used.push(service.only_one(&before));
    }
    used.sort_unstable();
    used.dedup();
    assert!(used.len() > 2, "{used:?}");
}
