//! Policies come and go while requests are under way, and nobody who calls notices.

use crate::outages::finish;
use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::process::Process;
use meridian_testkit::wait::{DEADLINE, until};
use std::collections::BTreeSet;

/// Changes of policies, and after how many the memory is looked at for the first time: pools, series and buffers are
/// there by then.
const CHANGES: usize = 500;
const WARM_UP: usize = 100;
/// The order of changes follows from it alone.
const SEED: u64 = 0x6d65_7269_6469_616e;
/// What a sidecar may hold in the end: half as much again as when it was warm, and this many KiB, for what an allocator keeps.
const SLACK_KIB: u64 = 8 << 10;

/// A kind of policy whose effect nobody may notice, by its plural, with a spec in which `$` stands for a number from 1 to 4.
const BENIGN: [(&str, &str, &str); 14] = [
    (
        "MeshTimeout",
        "meshtimeouts",
        "{to: [{targetRef: {kind: Mesh}, default: {connectionTimeout: 1$s, idleTimeout: 1$m, http: {requestTimeout: 2$s, \
         streamIdleTimeout: 3$s}}}], from: [{targetRef: {kind: Mesh}, default: {http: {requestTimeout: 2$s}}}]}",
    ),
    (
        "MeshRetry",
        "meshretries",
        "{to: [{targetRef: {kind: Mesh}, default: {http: {numRetries: $, retryOn: [GatewayError, ConnectFailure, RefusedStream]}}}]}",
    ),
    (
        "MeshCircuitBreaker",
        "meshcircuitbreakers",
        "{to: [{targetRef: {kind: MeshService, name: backend}, default: {connectionLimits: {maxConnections: $000, \
         maxPendingRequests: $000, maxRequests: $000}}}], \
         from: [{targetRef: {kind: Mesh}, default: {connectionLimits: {maxRequests: $000}}}]}",
    ),
    (
        "MeshRateLimit",
        "meshratelimits",
        "{targetRef: {kind: Dataplane}, rules: [{default: {local: {http: {requestRate: {num: $00000, interval: 1s}}}}}]}",
    ),
    (
        "MeshFaultInjection",
        "meshfaultinjections",
        "{targetRef: {kind: Dataplane}, rules: [{default: {http: [{delay: {value: $ms, percentage: 50}}]}}]}",
    ),
    (
        "MeshRequestFilter",
        "meshrequestfilters",
        "{targetRef: {kind: Mesh}, rules: [{default: {ruleSets: [log4shell]}}]}",
    ),
    (
        "MeshHTTPRoute",
        "meshhttproutes",
        "{targetRef: {kind: Mesh}, to: [{targetRef: {kind: MeshService, name: backend}, \
         rules: [{matches: [{path: {type: PathPrefix, value: /}}], default: {filters: [{type: RequestHeaderModifier, \
         requestHeaderModifier: {set: [{name: x-churn, value: v$}]}}]}}]}]}",
    ),
    (
        "MeshLoadBalancingStrategy",
        "meshloadbalancingstrategies",
        "{to: [{targetRef: {kind: MeshService, name: backend}, default: {loadBalancer: {type: LeastRequest, leastRequest: {choiceCount: 1$}}}}]}",
    ),
    (
        "MeshHealthCheck",
        "meshhealthchecks",
        "{to: [{targetRef: {kind: MeshService, name: backend}, default: {interval: 1$s, timeout: 5s, unhealthyThreshold: 3, \
         healthyThreshold: 1, tcp: {}}}]}",
    ),
    (
        "MeshAccessLog",
        "meshaccesslogs",
        "{targetRef: {kind: Mesh}, to: [{targetRef: {kind: Mesh}, default: {backends: [{type: File, file: {path: /dev/null, \
         format: {type: Plain, plain: '$ %START_TIME%'}}}]}}], from: [{targetRef: {kind: Mesh}, default: {backends: [{type: File, \
         file: {path: /dev/null}}]}}]}",
    ),
    (
        "MeshTrace",
        "meshtraces",
        "{targetRef: {kind: Mesh}, default: {backends: [{type: OpenTelemetry, openTelemetry: {endpoint: '127.0.0.1:$'}}], sampling: {overall: 50}}}",
    ),
    (
        "MeshMetric",
        "meshmetrics",
        "{targetRef: {kind: Mesh}, default: {applications: [{port: 8080, path: /}], backends: [{type: Prometheus, \
         prometheus: {port: 567$}}, {type: OpenTelemetry, openTelemetry: {endpoint: '127.0.0.1:$', refreshInterval: $s}}]}}",
    ),
    (
        "MeshPassthrough",
        "meshpassthroughs",
        "{targetRef: {kind: Mesh}, default: {passthroughMode: Matched, appendMatch: [{type: Domain, value: host$.example, \
         port: 443, protocol: tls}]}}",
    ),
    (
        "MeshTrafficPermission",
        "meshtrafficpermissions",
        "{targetRef: {kind: Mesh}, from: [{targetRef: {kind: MeshService, name: caller$}, default: {action: Allow}}]}",
    ),
];

#[tokio::test]
async fn five_hundred_changes_of_policies_cost_no_request() -> Result<()> {
    let mut mesh = Mesh::start("churn", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let loads = [load(&mesh, &web, "http1", &[]).await?, load(&mesh, &web, "http2", &["--http2"]).await?];

    let mut changes = Changes::new(&mesh)?;
    for _ in 0..WARM_UP {
        changes.one().await?;
    }
    let warm = memory(&web, &backend)?;
    for _ in WARM_UP..CHANGES {
        changes.one().await?;
    }
    caught_up(&mesh).await?;

    for load in loads {
        let said = finish(load).await?;
        println!("{said}");
        ensure!(said["failed"] == 0 && said["sent"].as_u64() > Some(100), "{said}");
    }
    for (warm, end) in warm.into_iter().zip(memory(&web, &backend)?) {
        println!("{warm} KiB after {WARM_UP} changes, {end} KiB after {CHANGES}");
        ensure!(end <= warm * 3 / 2 + SLACK_KIB, "{warm} KiB became {end} KiB");
    }
    Ok(())
}

/// Metrics are there for whom a policy names, from outside of the mesh too, and go with it.
#[tokio::test]
async fn metrics_are_scraped_as_a_policy_says() -> Result<()> {
    let mut mesh = Mesh::start("metric", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    curl_until(&web, &["http://backend.mesh/"], "an answer", |said| said.ends_with("200")).await?;
    let outside = mesh.lab_host_outside("east").await?;
    let scrape = async |port: u16| {
        let url = format!("http://{}:{port}/metrics", web.host.ip());
        outside.run(&["curl", "-sS", "--fail", "--max-time", "5", &url]).await
    };
    let policy = |port: u16| {
        format!(
            "type: MeshMetric\nmesh: default\nname: all\nspec:\n  targetRef: {{kind: Mesh}}\n  default: {{applications: [{{name: app, port: 8080, path: /}}], \
             backends: [{{type: Prometheus, prometheus: {{port: {port}}}}}]}}\n"
        )
    };
    ensure!(scrape(5670).await.is_err(), "there are metrics before the policy");
    mesh.apply(&policy(5670)).await?;
    until("metrics", DEADLINE, || async {
        let page = scrape(5670).await?;
        let line = |name: &str, labels: &[&str], value: &str| {
            let is_it =
                |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
            let line = page.lines().find(is_it).with_context(|| format!("no {name} {labels:?} in {page}"))?;
            ensure!(line.ends_with(value), "{line}");
            Ok(())
        };
        let who = ["mesh=\"default\"", "kuma_io_service=\"web\"", "kuma_io_zone=\"east\""];
        line("envoy_server_live{", &who, " 1")?;
        line("envoy_cluster_upstream_rq_xx{", &["envoy_cluster_name=\"backend\"", "class=\"2\""], " 1")?;
        // What it answers there is no page of metrics.
        line("meridian_proxy_application_up{", &["application=\"app\""], " 0")
    })
    .await?;
    mesh.apply(&policy(5671)).await?;
    until("metrics at the other port", DEADLINE, || scrape(5671)).await?;
    ensure!(scrape(5670).await.is_err(), "the first port is still open");
    mesh.meridian(&["delete", "meshmetric", "all"]).await?;
    until("no metrics", DEADLINE, || async {
        ensure!(scrape(5671).await.is_err(), "the port is still open");
        Ok(())
    })
    .await
}

/// A steady load on `backend`.
async fn load(mesh: &Mesh, web: &Proxy, name: &str, words: &[&str]) -> Result<Process> {
    let url = "http://backend.mesh/";
    curl_until(web, &[url], name, |said| said.ends_with("200")).await?;
    let app = mesh.programs.app.display().to_string();
    let line = [&[app.as_str(), "load", "--url", url, "--rate", "40"], words].concat();
    let mut load = web.spawn_app(&format!("load-{name}"), &line)?;
    load.wait_for_log("load runs", DEADLINE).await?;
    Ok(load)
}

fn memory(web: &Proxy, backend: &Proxy) -> Result<Vec<u64>> {
    let of = |proxy: &Proxy| Ok(proxy.process.as_ref().context("a sidecar is down")?.usage()?.0);
    [web, backend].into_iter().map(of).collect()
}

/// Waits until both sidecars have what was written last.
async fn caught_up(mesh: &Mesh) -> Result<()> {
    until("the sidecars", DEADLINE, || async {
        let overviews = mesh.get(&mesh.global, "/meshes/default/dataplanes/_overview").await?;
        let items = overviews.get("items").and_then(|items| items.as_array()).context("no items")?;
        let behind: Vec<_> = items.iter().filter(|item| item["behindMillis"] != 0).collect();
        ensure!(items.len() == 2 && behind.is_empty(), "{overviews}");
        Ok(())
    })
    .await
}

/// Random writes and deletes of benign policies.
struct Changes<'a> {
    mesh: &'a Mesh,
    token: String,
    random: u64,
    there: BTreeSet<(usize, u64)>,
}

impl<'a> Changes<'a> {
    fn new(mesh: &'a Mesh) -> Result<Self> {
        let token = std::fs::read_to_string(mesh.global.data().join("admin-token"))?;
        Ok(Self { mesh, token: token.trim().to_owned(), random: SEED, there: BTreeSet::new() })
    }

    /// xorshift64: enough to have no order.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    /// Writes one of two policies of a kind, or deletes it if it is there, now and then.
    async fn one(&mut self) -> Result<()> {
        let kind = usize::try_from(self.below(BENIGN.len() as u64))?;
        let (name, number, delete) = (self.below(2), self.below(4) + 1, self.below(2) == 0);
        let (type_, plural, spec) = BENIGN.get(kind).context("no such kind")?;
        let path = format!("/meshes/default/{plural}/churn-{name}");
        if delete && self.there.remove(&(kind, name)) {
            return self.send("DELETE", &path, "").await;
        }
        self.there.insert((kind, name));
        let spec = spec.replace('$', &number.to_string());
        let body = format!("{{type: {type_}, mesh: default, name: churn-{name}, spec: {spec}}}");
        self.send("PUT", &path, &body).await
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Result<()> {
        let header = format!("authorization: Bearer {}", self.token);
        let url = format!("http://127.0.0.1:5681{path}");
        let mut words = vec!["curl", "-sS", "--max-time", "10", "-X", method, "-H", &header];
        words.extend(["-w", " %{http_code}", "-H", "content-type: application/yaml"]);
        if !body.is_empty() {
            words.extend(["--data-binary", body]);
        }
        words.push(&url);
        let said = self.mesh.global.host.run(&words).await?;
        ensure!(said.ends_with(" 200") || said.ends_with(" 201"), "{method} {path} {body}: {said}");
        Ok(())
    }
}
