//! A real Prometheus scrapes sidecars through their capture: in plaintext, with a provided certificate, and as a
//! workload of the mesh.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, START, Workload, curl_until};
use meridian_testkit::net::Host;
use meridian_testkit::process::Program;
use meridian_testkit::wait::until;
use std::time::Duration;

/// In a namespace of its own, so that it is nobody else's.
const API: &str = "127.0.0.1:9095";
/// It asks every second, and a shared machine may be slow.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the provided certificate is for.
const NAME: &str = "backend.metrics.example.com";

/// What a Prometheus knows of an expression: the labels and value of each series.
async fn asked(prometheus: &Host, expression: &str) -> Result<Vec<(serde_json::Value, f64)>> {
    let query = format!("query={expression}");
    let url = format!("http://{API}/api/v1/query");
    let text = prometheus.run(&["curl", "-sS", "-G", "--data-urlencode", &query, &url]).await?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    let series =
        answer.pointer("/data/result").and_then(serde_json::Value::as_array).with_context(|| text.clone())?;
    let series = series.iter().map(|series| {
        let value =
            series.pointer("/value/1").and_then(serde_json::Value::as_str).context("no value")?.parse()?;
        Ok((series.get("metric").cloned().unwrap_or_default(), value))
    });
    series.collect()
}

/// Once an expression has one series, whose value satisfies.
async fn becomes(prometheus: &Host, expression: &str, is: fn(f64) -> bool) -> Result<serde_json::Value> {
    until(expression, DEADLINE, || async {
        let series = asked(prometheus, expression).await?;
        let [(labels, value)] = &series[..] else { anyhow::bail!("{series:?}") };
        ensure!(is(*value), "{series:?}");
        Ok(labels.clone())
    })
    .await
}

/// What promtool says of a page.
async fn checked(host: &Host, page: &[&str]) -> Result<String> {
    let file = host.write("page", &(page.join("\n") + "\n"))?.display().to_string();
    let check = format!("promtool check metrics <'{file}' 2>&1 || true");
    host.run(&["sh", "-c", &check]).await
}

fn policy(service: &str, backends: &str) -> String {
    format!(
        "type: MeshMetric\nmesh: default\nname: a-{service}\nspec:\n  targetRef: {{kind: MeshSubset, tags: {{kuma.io/service: {service}}}}}\n  \
         default: {{backends: [{backends}]}}\n"
    )
}

#[tokio::test]
async fn a_prometheus_scrapes_in_plaintext_and_under_tls() -> Result<()> {
    let mut mesh = Mesh::start("prometheus", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let directory = mesh.lab.directory().to_owned();
    let (certificate, key) = mesh.internet.ca.issue(&[NAME])?;
    let [certificate, key] = [("metrics.crt", certificate), ("metrics.key", key)].map(|(name, text)| {
        let path = directory.join(name);
        std::fs::write(&path, text).map(|()| path.display().to_string())
    });
    let (certificate, key) = (certificate?, key?);
    let flags = ["--metrics-cert-file", &certificate, "--metrics-key-file", &key];
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = Workload::http("backend-1", "backend").with_flags(&flags);
    let backend = mesh.workload("east", &backend).await?;
    mesh.apply(&policy("web", "{type: Prometheus, prometheus: {}}")).await?;
    let secured = "{type: Prometheus, prometheus: {tls: {mode: ProvidedTLS}}}, \
                   {type: Prometheus, prometheus: {port: 5671, tls: {mode: ActiveMTLSBackend}}}";
    mesh.apply(&policy("backend", secured)).await?;
    let url = "http://backend.mesh/asked";
    curl_until(&web, &[url], "an answer", |said| said.ends_with("200")).await?;

    let prometheus = mesh.lab_host_outside("east").await?;
    // A workload's papers, which only its own user may read: the Prometheus is root here.
    let identity = std::fs::read_to_string(web.host.directory().join("proxy/identities/default.json"))?;
    let identity: serde_json::Value = serde_json::from_str(&identity)?;
    let paper = |name: &str, field: &str| -> Result<String> {
        let text =
            identity.get(field).and_then(|text| text.as_str()).with_context(|| format!("no {field}"))?;
        Ok(prometheus.write(name, text)?.display().to_string())
    };
    let (member, member_key) = (paper("member.crt", "chain")?, paper("member.key", "key")?);
    let ca = prometheus.write("ca.pem", &mesh.internet.ca.pem())?.display().to_string();
    let job = |name: &str, target: &str, tls: &str| {
        let scheme = if tls.is_empty() { "http" } else { "https" };
        format!(
            "- job_name: {name}\n  scheme: {scheme}\n  tls_config: {{{tls}}}\n  static_configs: [{{targets: ['{target}']}}]\n"
        )
    };
    let (plain, provided) = (format!("{}:5670", web.host.ip()), format!("{}:5670", backend.host.ip()));
    let in_mesh = format!("{}:5671", backend.host.ip());
    let jobs = [
        job("plain", &plain, ""),
        job("provided", &provided, &format!("ca_file: {ca}, server_name: {NAME}")),
        job(
            "member",
            &in_mesh,
            &format!("cert_file: {member}, key_file: {member_key}, insecure_skip_verify: true"),
        ),
        job("stranger", &in_mesh, "insecure_skip_verify: true"),
        job("downgraded", &provided, ""),
    ];
    let config =
        format!("global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n{}", jobs.concat());
    let config = prometheus.write("prometheus.yml", &config)?.display().to_string();
    let data = prometheus.directory().join("prometheus").display().to_string();
    let program = Program::new("prometheus", ["prometheus"])
        .arg(format!("--config.file={config}"))
        .arg(format!("--storage.tsdb.path={data}"))
        .arg(format!("--web.listen-address={API}"));
    let mut server = prometheus.spawn(program)?;
    server.wait_for_log("Server is ready to receive web requests", START).await?;

    for job in ["plain", "provided", "member"] {
        becomes(&prometheus, &format!("up{{job=\"{job}\"}}"), |up| up == 1.0).await?;
    }
    for job in ["stranger", "downgraded"] {
        becomes(&prometheus, &format!("up{{job=\"{job}\"}}"), |up| up == 0.0).await?;
    }
    let called = "envoy_cluster_upstream_rq_total{job=\"plain\",envoy_cluster_name=~\"backend.*\"}";
    let labels = becomes(&prometheus, called, |count| count >= 1.0).await?;
    for (label, value) in [("mesh", "default"), ("kuma_io_zone", "east"), ("kuma_io_service", "web")] {
        ensure!(labels.get(label).is_some_and(|found| found == value), "{labels}");
    }
    for job in ["provided", "member"] {
        let served = format!(
            "meridian_proxy_requests_total{{job=\"{job}\",direction=\"inbound\",class=\"2xx\",dataplane=\"backend-1\"}}"
        );
        becomes(&prometheus, &served, |count| count >= 1.0).await?;
    }
    let slow = "histogram_quantile(0.5, meridian_proxy_request_duration_seconds_bucket{job=\"provided\"})";
    becomes(&prometheus, slow, |seconds| seconds > 0.0).await?;

    // What is wrong with a page goes to promtool's standard error, conventions of names among it. Envoy's are what they are.
    let page = prometheus.run(&["curl", "-sSf", &format!("http://{plain}/metrics")]).await?;
    let (envoys, ours): (Vec<&str>, Vec<&str>) = page.lines().partition(|line| line.contains("envoy_"));
    ensure!(ours.len() > 50 && envoys.len() > 20, "{page}");
    let found = checked(&prometheus, &ours).await?;
    ensure!(found.is_empty(), "{found}");
    let found = checked(&prometheus, &page.lines().collect::<Vec<_>>()).await?;
    let is_convention = |line: &str| line.starts_with("envoy_") && !line.contains("parsing");
    ensure!(found.lines().all(is_convention), "{found}");
    server.terminate(START).await?;
    Ok(())
}
