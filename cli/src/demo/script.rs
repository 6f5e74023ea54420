//! What the demo shows, step by step, and what each step must come to.

use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Mesh, Proxy, Workload};
use meridian_testkit::process::Process;
use meridian_testkit::wait;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The workloads of the demo.
pub(super) struct Stage {
    web: Proxy,
    backend: Proxy,
}

const PERMISSION: &str = "\
type: MeshTrafficPermission
mesh: default
name: web-to-backend
spec:
  targetRef: {kind: MeshService, name: backend}
  from:
  - targetRef: {kind: MeshService, name: web}
    default: {action: Allow}
";

/// Who may use which external service. It allows nothing by itself: the service must be listed, too.
const EXTERNAL_PERMISSIONS: &str = "\
type: MeshTrafficPermission
mesh: default
name: web-to-api
spec:
  targetRef: {kind: MeshService, name: api}
  from:
  - targetRef: {kind: MeshService, name: web}
    default: {action: Allow}
---
type: MeshTrafficPermission
mesh: default
name: all-to-partner
spec:
  targetRef: {kind: MeshService, name: partner}
  from:
  - targetRef: {kind: Mesh}
    default: {action: Allow}
";

/// An ExternalService. Documentation addresses are no public ones, so the entry names them.
pub(super) fn external_service(name: &str, host: &str, port: u16, protocol: &str) -> String {
    format!(
        "type: ExternalService\nmesh: default\nname: {name}\ntags: {{kuma.io/service: {name}, kuma.io/protocol: {protocol}}}\nnetworking:\n  address: {host}:{port}\n  allowedAddresses: [192.0.2.0/24]\n"
    )
}

pub(super) async fn play(mesh: &mut Mesh) -> Result<Stage> {
    step("A service in each zone: web in east, backend in west, each behind its sidecar.");
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let inspected = wait::until("both to be online, captured, and certified", wait::DEADLINE, || async {
        let said = mesh.meridian(&["inspect", "dataplanes"]).await?;
        let up = said
            .lines()
            .filter(|line| [" online ", " in 2", " strict "].iter().all(|part| line.contains(part)));
        ensure!(up.count() == 2, "{said}");
        Ok(said)
    })
    .await?;
    println!("{}", inspected.trim_end());

    step("web calls backend. Nothing permits it yet.");
    let refused = curl(&web, &["http://backend.mesh/"], |said| said.ends_with("403")).await?;
    show("curl http://backend.mesh/", &refused);

    step("One apply permits it.");
    apply(mesh, PERMISSION).await?;
    let answered = curl(&web, &["http://backend.mesh/"], |said| said.ends_with("200")).await?;
    show("curl http://backend.mesh/", &answered);
    ensure!(answered.contains("backend-1"), "the answer is not backend's: {answered}");

    step("api.example.com is on the allowlist: https, unchanged, end to end.");
    apply(mesh, &external_service("api", "api.example.com", 443, "tcp")).await?;
    apply(mesh, EXTERNAL_PERMISSIONS).await?;
    let ca = mesh.internet.host.directory().join("ca.pem").display().to_string();
    let url = ["--cacert", ca.as_str(), "https://api.example.com/"];
    let answered = curl(&web, &url, |said| said.ends_with("200")).await?;
    show("curl https://api.example.com/", &answered);
    let egress = mesh.zone("east")?.egress.as_ref().context("east has no egress")?.host.ip();
    ensure!(
        answered.contains(&format!(r#""peer":"{egress}""#)),
        "it did not leave through east's egress: {answered}"
    );

    step("evil.example.net is not: by name, and by address with its name.");
    let (_, refused) = web.app(&["curl", "-sS", "--max-time", "5", "http://evil.example.net/"]).await?;
    show("curl http://evil.example.net/", &refused);
    let by_address = ["-H", "Host: evil.example.net", "http://192.0.2.66/"];
    let refused = curl(&web, &by_address, |said| said.ends_with("403")).await?;
    show("curl -H 'Host: evil.example.net' http://192.0.2.66/", &refused);

    change_lives(mesh, &web, &backend).await?;

    step("Who was refused what:");
    let denials = wait::until("the denial to reach the global control plane", wait::DEADLINE, || async {
        let denials = mesh.meridian(&["denials"]).await?;
        ensure!(denials.contains("evil.example.net"), "{denials}");
        Ok(denials)
    })
    .await?;
    println!("{}", denials.trim_end());
    Ok(Stage { web, backend })
}

/// One entry comes and goes; both zones are watched, and a connection is held open across its end.
async fn change_lives(mesh: &Mesh, web: &Proxy, backend: &Proxy) -> Result<()> {
    step(
        "meridian apply of one ExternalService lets partner.example.net through in both zones, without a restart.",
    );
    let app = mesh.programs.app.display().to_string();
    let words = [app.as_str(), "watch", "--connect", "192.0.2.66:80", "--host", "partner.example.net"];
    let mut watches =
        [("east", web.spawn_app("watch", &words)?), ("west", backend.spawn_app("watch", &words)?)];
    for (_, watch) in &mut watches {
        watch.wait_for_log("403", wait::DEADLINE).await?;
    }
    let applied = apply(mesh, &external_service("partner", "partner.example.net", 80, "http")).await?;
    for (zone, watch) in &mut watches {
        report(zone, watch, "200", applied).await?;
    }
    let hold = [app.as_str(), "hold", "--kind", "http", "--target", "partner.example.net:80"];
    let mut held = web.spawn_app("hold", &hold)?;
    held.wait_for_log("open", wait::DEADLINE).await?;

    step("Deleting it stops it again, the open connection included.");
    let before = watches.iter().map(|(_, watch)| watch.log().lines().count()).collect::<Vec<_>>();
    println!("  $ meridian delete externalservice partner");
    mesh.meridian(&["delete", "externalservice", "partner"]).await?;
    let deleted = now()?;
    for ((zone, watch), before) in watches.iter_mut().zip(before) {
        report_after(zone, watch, "403", deleted, before).await?;
    }
    held.wait_for_log("closed:", wait::DEADLINE).await?;
    println!("  the held connection: {}", held.log().lines().last().unwrap_or_default());
    Ok(())
}

impl Stage {
    /// What to try while the demo stays up.
    pub(super) fn hints(&self, mesh: &Mesh) {
        let global = mesh.global.host.namespace();
        let token = mesh.global.data().join("admin-token").display().to_string();
        let meridian = mesh.programs.meridian.display();
        println!("\nThe mesh stays up until Ctrl-C. In another terminal, as the same user, try:");
        println!(
            "  m() {{ ip netns exec {global} {meridian} \"$@\" --address http://127.0.0.1:5681 --token-file {token}; }}"
        );
        println!(
            "  m get meshservices; m inspect zones; m denials; m delete meshtrafficpermission web-to-backend"
        );
        for proxy in [&self.web, &self.backend] {
            println!(
                "  # as the application of {}: mount its resolver first, then any call\n  ip netns exec {} unshare -m sh -c \
                 'mount --bind {}/resolv.conf /etc/resolv.conf; setpriv --reuid 1000 --clear-groups curl -sS http://backend.mesh/'",
                proxy.name,
                proxy.host.namespace(),
                proxy.host.directory().display()
            );
        }
        println!("  logs and files: {}", mesh.lab.directory().display());
    }
}

fn step(text: &str) {
    println!("\n» {text}");
}

fn show(command: &str, said: &str) {
    println!("  web $ {command}");
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        println!("  < {line}");
    }
}

/// Applies YAML, showing it, and gives the time of the API's answer.
async fn apply(mesh: &Mesh, yaml: &str) -> Result<u128> {
    println!("  $ meridian apply -f - <<END");
    for line in yaml.lines() {
        println!("  | {line}");
    }
    let said = mesh.apply(yaml).await?;
    let at = now()?;
    for line in said.trim().lines() {
        println!("  < {line}");
    }
    Ok(at)
}

async fn curl(proxy: &Proxy, words: &[&str], expected: impl Fn(&str) -> bool) -> Result<String> {
    meridian_testkit::mesh::curl_until(proxy, words, "the expected answer", expected).await
}

pub(super) fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())
}

async fn report(zone: &str, watch: &mut Process, answer: &str, since: u128) -> Result<()> {
    report_after(zone, watch, answer, since, 0).await
}

/// Says when the watch first saw `answer` among its lines after `skip`.
async fn report_after(zone: &str, watch: &Process, answer: &str, since: u128, skip: usize) -> Result<()> {
    let at = wait::until(&format!("{zone} to answer {answer}"), Duration::from_secs(10), || async {
        first_seen(&watch.log(), answer, skip).with_context(|| format!("its watch says:\n{}", watch.log()))
    })
    .await?;
    // The command's own return is included; the change may be live before it has returned.
    let millis = at.saturating_sub(since) as f64 / 1000.0;
    let when = if at <= since {
        "before the command returned".to_owned()
    } else {
        format!("{millis:.1} ms after the command returned")
    };
    println!("  {zone}: {answer} {when}");
    Ok(())
}

pub(super) fn first_seen(log: &str, answer: &str, skip: usize) -> Option<u128> {
    log.lines().skip(skip).find_map(|line| {
        let (at, said) = line.split_once(' ')?;
        said.starts_with(answer).then(|| at.parse().ok()).flatten()
    })
}
