use super::LARGEST_TABLE;
use crate::kinds::policy_tests::wrong;
use crate::kinds::tests::{right, warnings};

fn of(spec: &str) -> String {
    format!("{{type: MeshLoadBalancingStrategy, name: near, mesh: m, spec: {{{spec}}}}}")
}

fn to(target: &str, default: &str) -> String {
    of(&format!("to: [{{targetRef: {{{target}}}, default: {{{default}}}}}]"))
}

#[test]
fn near_instances_first() {
    right(&of("targetRef: {kind: Dataplane, labels: {app: web}}, to: []"));
    right(&of(""));
    let near = to(
        "kind: MeshMultiZoneService, name: db",
        "localityAwareness: {localZone: {affinityTags: [{key: k8s/node, weight: 9}, {key: rack, weight: 1}]}, crossZone: {failover: [{from: {zones: [east]}, to: {type: Only, zones: [west]}}, {to: {type: None}}], failoverThreshold: {percentage: '66.6'}}}, loadBalancer: {type: Maglev, maglev: {tableSize: 65537}}, hashPolicies: [{type: Cookie, terminal: true, cookie: {name: s, ttl: 1h, path: /}}, {type: SourceIP, connection: {sourceIP: true}}]",
    );
    right(&near);
    assert!(warnings(&near).is_empty());
    assert_eq!(
        warnings(&near.replace("MeshMultiZoneService", "MeshExternalService")),
        ["spec.to[0] has no effect: it holds inside the mesh, and this destination is outside of it"]
    );
    right(&to("kind: Mesh", "loadBalancer: {type: RingHash, ringHash: {hashFunction: MurmurHash2}}"));
    right(&to("kind: Mesh", "loadBalancer: {type: LeastRequest, leastRequest: {choiceCount: 2}}"));
    right(&to("kind: MeshHTTPRoute, name: r", "hashPolicies: [{type: Header, header: {name: x-user}}]"));
}

#[test]
fn zones_and_tags() {
    wrong(
        &to(
            "kind: MeshService, name: db",
            "localityAwareness: {localZone: {affinityTags: [{key: '', weight: 0}, {key: rack}]}, crossZone: {failover: [{from: {zones: []}, to: {type: None, zones: [a]}}, {from: {zones: [a, '']}, to: {type: Only}}, {to: {type: AnyExcept, zones: ['']}}, {to: {type: Most}}], failoverThreshold: {percentage: 0}}}",
        ),
        &[
            "spec.to[0].default.localityAwareness.localZone.affinityTags[0].key: must not be empty",
            "spec.to[0].default.localityAwareness.localZone.affinityTags[0].weight: must be greater than 0",
            "spec.to[0].default.localityAwareness.localZone.affinityTags: all or none affinity tags should have weight",
            "spec.to[0].default.localityAwareness.crossZone.failover[0].from.zones: must not be empty",
            "spec.to[0].default.localityAwareness.crossZone.failover[0].to.zones: must be empty when type is None",
            "spec.to[0].default.localityAwareness.crossZone.failover[1].from.zones[1]: must not be empty",
            "spec.to[0].default.localityAwareness.crossZone.failover[1].to.zones: must not be empty when type is Only",
            "spec.to[0].default.localityAwareness.crossZone.failover[2].to.zones[0]: must not be empty",
            "spec.to[0].default.localityAwareness.crossZone.failover[3].to.type: \"type\" must be one of [\"None\", \"Only\", \"Any\", \"AnyExcept\"]",
            "spec.to[0].default.localityAwareness.crossZone.failoverThreshold.percentage: must be greater than 0",
        ],
    );
    wrong(
        &to("kind: MeshService, labels: {app: db}", "localityAwareness: {crossZone: {}}"),
        &["spec.to[0].default.localityAwareness.crossZone: must not be set: MeshService traffic is local"],
    );
    for (percentage, reason) in
        [("all", "string must be a valid number"), ("'100.1'", "must be in inclusive range [0.0, 100.0]")]
    {
        wrong(
            &to(
                "kind: Mesh",
                &format!(
                    "localityAwareness: {{crossZone: {{failoverThreshold: {{percentage: {percentage}}}}}}}"
                ),
            ),
            &[&format!(
                "spec.to[0].default.localityAwareness.crossZone.failoverThreshold.percentage: {reason}"
            )],
        );
    }
}

#[test]
fn balancers() {
    wrong(
        &to(
            "kind: Mesh",
            "loadBalancer: {type: LeastRequest, leastRequest: {choiceCount: 1, activeRequestBias: '-0.1'}}",
        ),
        &[
            "spec.to[0].default.loadBalancer.leastRequest.choiceCount: must be greater than: 1",
            "spec.to[0].default.loadBalancer.leastRequest.activeRequestBias: must be greater or equal then: 0",
        ],
    );
    wrong(
        &to(
            "kind: Mesh",
            "loadBalancer: {type: RingHash, ringHash: {hashFunction: MD5, minRingSize: 9, maxRingSize: 8}, maglev: {tableSize: 0}}",
        ),
        &[
            "spec.to[0].default.loadBalancer.ringHash.hashFunction: \"hashFunction\" must be one of [\"XXHash\", \"MurmurHash2\"]",
            "spec.to[0].default.loadBalancer.ringHash.minRingSize: must not be greater than maxRingSize",
            "spec.to[0].default.loadBalancer.maglev.tableSize: must be in inclusive range [1, 5000011]",
        ],
    );
    wrong(
        &to("kind: Mesh", "loadBalancer: {}"),
        &[
            "spec.to[0].default.loadBalancer.type: \"type\" must be one of [\"RoundRobin\", \"LeastRequest\", \"RingHash\", \"Random\", \"Maglev\"]",
        ],
    );
}

#[test]
fn what_is_hashed() {
    wrong(
        &to(
            "kind: Mesh",
            "loadBalancer: {type: Maglev, maglev: {hashPolicies: [{type: FilterState}]}}, hashPolicies: [{type: Header, header: {}}, {type: Cookie, cookie: {name: c, path: sub}}, {type: Connection}, {type: Lot}]",
        ),
        &[
            "spec.to[0].default.loadBalancer.maglev.hashPolicies[0].filterState: must be defined",
            "spec.to[0].default.hashPolicies[0].header.name: must not be empty",
            "spec.to[0].default.hashPolicies[1].cookie.path: must be an absolute path",
            "spec.to[0].default.hashPolicies[2].connection: must be defined",
            "spec.to[0].default.hashPolicies[3].type: \"type\" must be one of [\"Header\", \"Cookie\", \"Connection\", \"SourceIP\", \"QueryParameter\", \"FilterState\"]",
        ],
    );
}

#[test]
fn what_routes_and_gateways_leave_no_place_for() {
    wrong(
        &to("kind: MeshHTTPRoute, name: r", "localityAwareness: {}, loadBalancer: {type: Random}"),
        &[
            "spec.to[0].default.localityAwareness: field is not allowed when targetRef.kind is MeshHTTPRoute, only hashPolicies is supported",
            "spec.to[0].default.loadBalancer: field is not allowed when targetRef.kind is MeshHTTPRoute, only hashPolicies is supported",
        ],
    );
    wrong(
        &of(
            "targetRef: {kind: MeshGateway, name: g}, to: [{targetRef: {kind: MeshService, name: a}, default: {loadBalancer: {type: Random}}}]",
        ),
        &[
            "spec.to[0].targetRef.kind: value 'MeshGateway' is not supported, only Mesh is allowed if loadBalancer is set",
        ],
    );
}

#[test]
fn names_that_would_begin_a_header_of_their_own() {
    wrong(
        &to(
            "kind: Mesh",
            "hashPolicies: [{type: Header, header: {name: 'x user'}}, {type: Cookie, cookie: {name: 'a=b;', path: '/; Secure'}}, {type: Cookie, cookie: {name: c, path: \"/\\r\\na: b\"}}]",
        ),
        &[
            "spec.to[0].default.hashPolicies[0].header.name: must be a token: letters, digits and !#$%&'*+-.^_`|~",
            "spec.to[0].default.hashPolicies[1].cookie.name: must be a token: letters, digits and !#$%&'*+-.^_`|~",
            "spec.to[0].default.hashPolicies[1].cookie.path: must be of printable ASCII, without a semicolon",
            "spec.to[0].default.hashPolicies[2].cookie.path: must be of printable ASCII, without a semicolon",
        ],
    );
}

#[test]
fn what_comes_otherwise_than_one_may_think_is_said() {
    let stays = "spec.to[0].default.localityAwareness keeps calls in the caller's zone: only crossZone.failover leads to others";
    let tags = "localityAwareness: {localZone: {affinityTags: [{key: rack}]}";
    for (target, default, expected) in [
        ("kind: Mesh", format!("{tags}}}"), vec![stays]),
        ("kind: MeshService, name: db", format!("{tags}}}"), vec![stays]),
        ("kind: MeshService, labels: {app: db}", format!("{tags}}}"), vec![]),
        ("kind: Mesh", format!("{tags}, disabled: true}}"), vec![]),
        ("kind: Mesh", format!("{tags}, crossZone: {{}}}}"), vec![]),
        ("kind: Mesh", "loadBalancer: {type: RingHash, ringHash: {minRingSize: 131071}}".into(), vec![]),
        (
            "kind: Mesh",
            "loadBalancer: {type: RingHash, ringHash: {minRingSize: 131072}}".into(),
            vec![
                "spec.to[0].default.loadBalancer.ringHash.minRingSize is 131072, but a ring has at most 131071 places",
            ],
        ),
        ("kind: Mesh", "loadBalancer: {type: Maglev, maglev: {tableSize: 65537}}".into(), vec![]),
        (
            "kind: Mesh",
            "loadBalancer: {type: Maglev, maglev: {tableSize: 100}}".into(),
            vec![
                "spec.to[0].default.loadBalancer.maglev.tableSize is 100, but the table has 101 places: the next prime",
            ],
        ),
        (
            "kind: Mesh",
            "loadBalancer: {type: Maglev, maglev: {tableSize: 5000011}}".into(),
            vec![
                "spec.to[0].default.loadBalancer.maglev.tableSize is 5000011, but the table has 131071 places: tables have no more places",
            ],
        ),
        (
            "kind: Mesh",
            "hashPolicies: [{type: FilterState, filterState: {key: k}}]".into(),
            vec![
                "spec.to[0].default.hashPolicies[0].filterState has no effect: the proxies have no filters that would set a state: it never gives a hash",
            ],
        ),
    ] {
        let document = to(target, &default);
        right(&document);
        assert_eq!(warnings(&document), expected, "{target} {default}");
    }
}

#[test]
fn tables_have_a_prime_number_of_places() {
    for (asked, size) in [
        (0, 2),
        (1, 2),
        (2, 2),
        (4, 5),
        (100, 101),
        (65_537, 65_537),
        (131_072, LARGEST_TABLE),
        (u32::MAX, LARGEST_TABLE),
    ] {
        assert_eq!(super::table_size(asked), size, "{asked}");
    }
    assert!(super::is_prime(LARGEST_TABLE));
}
