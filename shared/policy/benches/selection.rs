//! Which of 1,000 policies select each of 1,000 Dataplanes: comparing with all, and by the index.
//!
//! `cargo bench -p meridian-policy`. It prints and asserts nothing about time; that the index looks at few is a test.
//! A plain program: there is one number to see, and no library is needed for it.

#![expect(clippy::unwrap_used, reason = "a benchmark of resources that it makes itself")]

use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh_timeout::MeshTimeout;
use meridian_core::{Key, Resource};
use meridian_policy::{Parsed, Policy, PolicyIndex, Routes, Section, Subject, sort};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const COUNT: usize = 1_000;
/// Of each way the fastest counts: what disturbs a run only makes it slower.
const RUNS: usize = 5;

/// A name, and what the policy of a number selects.
type Case = (&'static str, fn(usize) -> Value);

fn main() {
    println!("{COUNT} policies of one kind, {COUNT} Dataplanes");
    let cases: [Case; 4] = [
        ("one policy a service, by name", |i| json!({ "kind": "MeshService", "name": format!("s{i}") })),
        (
            "one policy a service, by label",
            |i| json!({ "kind": "Dataplane", "labels": { "kuma.io/zone": "east", "app": format!("s{i}") } }),
        ),
        ("one in ten for the whole mesh", |i| match i % 10 {
            0 => json!({ "kind": "Mesh" }),
            _ => json!({ "kind": "MeshSubset", "tags": { "app": format!("s{i}") } }),
        }),
        ("all for the whole mesh", |_| json!({ "kind": "Mesh" })),
    ];
    let dataplanes: Vec<Parsed<Dataplane>> = (0..COUNT).map(dataplane).collect();
    for (name, target) in cases {
        let policies: Vec<Arc<Policy>> = (0..COUNT).map(|i| policy(i, &target(i))).collect();
        let (linear, index) = (linear(&policies, &dataplanes), indexed(&policies, &dataplanes));
        let ratio = linear.as_secs_f64() / index.as_secs_f64();
        println!("{name:32} linear {linear:>12?}   index {index:>12?}   {ratio:.1} times as fast");
    }
}

fn linear(policies: &[Arc<Policy>], dataplanes: &[Parsed<Dataplane>]) -> Duration {
    let routes = Routes::default();
    fastest(|| {
        for dataplane in dataplanes {
            let subject = subject(dataplane);
            let selecting = policies.iter().filter(|it| it.selects(&routes, &subject, Section::Whole));
            black_box(sort(selecting.cloned().collect()));
        }
    })
}

/// Making the index is part of it.
fn indexed(policies: &[Arc<Policy>], dataplanes: &[Parsed<Dataplane>]) -> Duration {
    let routes = Routes::default();
    fastest(|| {
        let index = PolicyIndex::new(policies);
        for dataplane in dataplanes {
            black_box(index.selecting(MeshTimeout::KIND, &routes, &subject(dataplane), Section::Whole));
        }
    })
}

fn fastest(mut work: impl FnMut()) -> Duration {
    let mut run = || {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..RUNS).map(|_| run()).min().unwrap()
}

fn subject(dataplane: &Parsed<Dataplane>) -> Subject<'_> {
    Subject { key: &dataplane.resource.key, labels: &dataplane.resource.labels, spec: &dataplane.spec }
}

fn policy(i: usize, target: &Value) -> Arc<Policy> {
    let key = Key::global(MeshTimeout::KIND, "default", format!("p{i}"));
    let spec = json!({ "targetRef": target, "to": [{ "targetRef": { "kind": "Mesh" }, "default": {} }] });
    let resource = Resource { key, labels: BTreeMap::new(), spec, status: None };
    Arc::new(Policy::new(Arc::new(resource)).unwrap())
}

fn dataplane(i: usize) -> Parsed<Dataplane> {
    let service = format!("s{i}");
    let tags = json!({ "kuma.io/service": service, "kuma.io/protocol": "http", "app": service });
    let inbounds = json!([{ "port": 8080, "tags": tags }, { "port": 8081, "tags": tags }]);
    let spec = json!({ "networking": { "address": "192.0.2.1", "inbound": inbounds } });
    let key = Key::new(Dataplane::KIND, "default", "east", format!("dp{i}"));
    let labels = BTreeMap::from([("app".to_owned(), service)]);
    Parsed::new(Resource { key, labels, spec, status: None }).unwrap()
}
