//! Passthrough off: what is not listed does not leave, by any way; what is listed does, and only as listed.

use crate::policies::{EVERYTHING, external_service, permission};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{APP_UID, Backing, Mesh, OTHER_UID, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use std::time::Duration;

#[tokio::test]
async fn nothing_unlisted_leaves_by_any_way() -> Result<()> {
    let mut mesh = Mesh::start("deny", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let app = mesh.programs.app.display().to_string();
    let outside = mesh.lab_host_outside("east").await?;
    // A copy has no file capabilities, which users without any may not execute.
    let ping = mesh.lab.directory().join("ping").display().to_string();
    outside.run(&["sh", "-c", &format!("cp \"$(command -v ping)\" {ping}")]).await?;

    let refused =
        curl_until(&web, &["-i", "http://192.0.2.66/"], "HTTP by address", |said| said.ends_with("403"))
            .await?;
    ensure!(refused.contains("x-meridian-denied: not-listed"), "{refused}");
    let ways: [&[&str]; 10] = [
        &[
            "curl",
            "-sS",
            "-f",
            "--max-time",
            "3",
            "--resolve",
            "evil.example.net:80:192.0.2.66",
            "http://evil.example.net/",
        ],
        &["curl", "-sSk", "-f", "--max-time", "3", "https://192.0.2.66/"],
        &[
            "curl",
            "-sSk",
            "-f",
            "--max-time",
            "3",
            "--resolve",
            "evil.example.net:443:192.0.2.66",
            "https://evil.example.net/",
        ],
        &["curl", "-gsS", "-f", "--max-time", "3", "http://[2001:db8::66]/"],
        &[&app, "tcp-client", "--target", "192.0.2.66:7000"],
        &[&app, "udp-client", "--target", "192.0.2.66:7000"],
        &[&ping, "-c", "1", "-W", "2", "192.0.2.66"],
        &[&ping, "-6", "-c", "1", "-W", "2", "2001:db8::66"],
        &["curl", "-sS", "-f", "--max-time", "3", "http://10.9.0.9/"],
        &["curl", "-gsS", "-f", "--max-time", "3", "http://[fd00:9::9]:7000/"],
    ];
    // The laboratory itself lets all of it through (the last way has nobody at its end, anywhere).
    for words in ways.iter().take(ways.len() - 1) {
        let output = outside.output_as(APP_UID, words).await?;
        ensure!(output.status.success(), "{words:?} does not work even without a mesh: {output:?}");
    }
    for uid in [APP_UID, OTHER_UID, 0] {
        for words in ways {
            let (succeeded, said) = web.as_user(uid, words).await?;
            ensure!(!succeeded, "uid {uid}: {words:?} came through: {said}");
        }
        // Foreign DNS, asked directly, is answered by the sidecar: an unlisted name does not exist.
        let (_, said) = web.as_user(uid, &["getent", "hosts", "evil.example.net"]).await?;
        ensure!(!said.contains("192.0.2.66"), "uid {uid}: {said}");
    }
    let asked = mesh.internet.processes.first().map(|dns| dns.log()).unwrap_or_default();
    ensure!(!asked.contains("evil.example.net"), "the query left the mesh: {asked}");
    Ok(())
}

#[tokio::test]
async fn listed_ones_are_reached_as_listed_and_not_otherwise() -> Result<()> {
    let mut mesh = Mesh::start("allow", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    for (name, address, protocol) in [
        ("api", "api.example.com:443", "tcp"),
        ("plain", "other.example.com:80", "http"),
        ("loop", "rebind-loopback.example.com:80", "http"),
        ("meta", "rebind-metadata.example.com:80", "http"),
        ("private", "rebind-private.example.com:80", "http"),
        ("vip", "rebind-vip.example.com:80", "http"),
    ] {
        mesh.apply(&external_service(name, address, protocol)).await?;
    }
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let ca = mesh.internet.host.directory().join("ca.pem").display().to_string();
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?.host.ip().to_string();
    let through_egress =
        |said: &str| said.ends_with("200") && said.contains(&format!(r#""peer":"{egress}""#));

    curl_until(
        &web,
        &["--cacert", &ca, "https://api.example.com/"],
        "https by its real name",
        through_egress,
    )
    .await?;
    curl_until(&web, &["http://other.example.com/"], "http by its real name", through_egress).await?;
    curl_until(&web, &["http://plain.mesh/"], "http by its mesh name", |said| said.ends_with("200")).await?;
    // An application that holds the old address: SNI and Host decide.
    let old = ["--cacert", &ca, "--resolve", "api.example.com:443:192.0.2.10", "https://api.example.com/"];
    curl_until(&web, &old, "https at the address it held", through_egress).await?;
    curl_until(
        &web,
        &["-H", "Host: other.example.com", "http://192.0.2.10/"],
        "http at the address it held",
        through_egress,
    )
    .await?;

    // Another host's name on a listed connection.
    let wrong_host = web.curl(&["-H", "Host: evil.example.net", "http://other.example.com/"]).await?;
    ensure!(wrong_host.ends_with("403"), "{wrong_host}");
    for words in [
        // SNI of an unlisted name, of another listed name, and none.
        vec![
            "curl",
            "-sSk",
            "--max-time",
            "3",
            "--connect-to",
            "evil.example.net:443:api.example.com:443",
            "https://evil.example.net/",
        ],
        vec![
            "curl",
            "-sSk",
            "--max-time",
            "3",
            "--connect-to",
            "other.example.com:443:api.example.com:443",
            "https://other.example.com/",
        ],
        vec![
            "sh",
            "-c",
            "curl -sSk --max-time 3 https://$(getent ahostsv4 api.example.com | head -1 | cut -d' ' -f1)/",
        ],
    ] {
        let (succeeded, said) = web.app(&words).await?;
        ensure!(!succeeded, "{words:?} came through: {said}");
    }
    for name in ["loopback", "metadata", "private", "vip"] {
        let said = web.curl(&["-i", &format!("http://rebind-{name}.example.com/")]).await?;
        ensure!(said.contains("x-meridian-denied: address-refused"), "{name}: {said}");
    }
    until("the egress's refusals with their caller", DEADLINE, || async {
        let denials = mesh.get(&mesh.global, "/meshes/default/_denials").await?.to_string();
        ensure!(denials.contains("address-refused") && denials.contains("spiffe://default/web"), "{denials}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn one_caller_may_and_another_may_not() -> Result<()> {
    let mut mesh = Mesh::start("callers", Backing::Sqlite, &["east"]).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    mesh.apply(&permission("web-to-plain", "plain", &["web"])).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    curl_until(&web, &["http://other.example.com/"], "the permitted caller", |said| said.ends_with("200"))
        .await?;
    curl_until(&batch, &["http://other.example.com/"], "the other caller", |said| said.ends_with("403"))
        .await?;
    // The egress enforces, not only the sidecar: and without one nothing is dialled directly.
    mesh.zone_mut("east")?.egress.as_mut().context("no egress")?.kill().await?;
    let refused = |said: &str| !said.ends_with("200");
    curl_until(&web, &["http://other.example.com/"], "no egress, no way out", refused).await?;
    Ok(())
}

#[tokio::test]
async fn an_external_service_of_another_zone_leaves_from_there() -> Result<()> {
    let mut mesh = Mesh::start("pinned", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(
        "type: ExternalService\nmesh: default\nname: pinned\ntags: {kuma.io/service: pinned, kuma.io/protocol: http, kuma.io/zone: west}\n\
         networking:\n  address: pinned.example.com:80\n  allowedAddresses: [198.51.100.0/24]\n",
    )
    .await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let west = mesh.zone("west")?.egress.as_ref().context("no egress")?.host.ip().to_string();
    let said =
        curl_until(&web, &["http://pinned.example.com/"], "the pinned service", |said| said.ends_with("200"))
            .await?;
    ensure!(said.contains(&format!(r#""peer":"{west}""#)), "it did not leave from west: {said}");
    Ok(())
}

#[tokio::test]
async fn a_dead_sidecar_stops_its_application_and_a_restarted_one_serves_from_its_disk() -> Result<()> {
    let mut mesh = Mesh::start("dead", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let mut web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    curl_until(&web, &["http://backend.mesh/"], "an answer", |said| said.ends_with("200")).await?;
    curl_until(&web, &["http://other.example.com/"], "the way out", |said| said.ends_with("200")).await?;
    let (kept, address) = (web.host.directory().join("proxy"), backend.host.ip().to_string());
    until("the configuration to be on disk", DEADLINE, || async {
        ensure!(holds(&kept, &address)?, "no file in {} names {address}", kept.display());
        Ok(())
    })
    .await?;
    web.kill().await?;
    for url in ["http://192.0.2.10/", "http://192.0.2.66/", "http://backend.mesh/"] {
        let said = web.curl(&[url]).await?;
        ensure!(!said.ends_with("200"), "{url} was answered without a sidecar: {said}");
    }
    mesh.zone_mut("east")?.control_plane.kill().await?;
    mesh.global.kill().await?;
    web.start().await?;
    curl_until(&web, &["http://backend.mesh/"], "the last good configuration", |said| said.ends_with("200"))
        .await?;
    curl_until(&web, &["http://192.0.2.66/"], "still refused", |said| said.ends_with("403")).await?;
    still_out(&web).await
}

async fn still_out(web: &Proxy) -> Result<()> {
    curl_until(web, &["http://other.example.com/"], "the way out", |said| said.ends_with("200")).await?;
    Ok(())
}

/// Whether a file in the folder contains `text`.
fn holds(folder: &std::path::Path, text: &str) -> Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && String::from_utf8_lossy(&std::fs::read(path)?).contains(text) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What follows `endpoints:` for TLS to the internet's server.
fn tls(rest: &str) -> String {
    format!("  tls:\n    enabled: true\n{rest}")
}

/// A PEM as an inline data source.
fn inline(pem: &str) -> String {
    format!("{{inlineString: {}}}", serde_json::Value::from(pem))
}

#[tokio::test]
async fn the_egress_originates_tls_as_the_entry_says() -> Result<()> {
    let mut mesh = Mesh::start("originate", Backing::Sqlite, &["east"]).await?;
    let (client, client_key) = mesh.internet.ca.issue(&["egress.example.org"])?;
    let directory = mesh.internet.host.directory().to_owned();
    let file = |name: &str| directory.join(name).display().to_string();
    // A second server that wants a client's certificate.
    let [certificate, key, ca_file] = ["server.pem", "server.key", "ca.pem"].map(file);
    let words = [
        "https",
        "--name",
        "internet",
        "--listen",
        "0.0.0.0:8443",
        "--cert",
        &certificate,
        "--key",
        &key,
        "--client-ca",
        &ca_file,
    ];
    let programs = mesh.programs.clone();
    mesh.internet.serve(&programs, "https-mutual", &words).await?;
    let ca = inline(&mesh.internet.ca.pem());
    let wrong_ca = inline(&meridian_testkit::certificates::Authority::new("somebody")?.pem());
    let mut documents = String::new();
    for (name, pem) in
        [("the-ca", mesh.internet.ca.pem()), ("the-certificate", client), ("the-key", client_key)]
    {
        mesh.internet.host.write(name, &pem)?;
        let encoded = base64(&mesh, name).await?;
        documents.push_str(&format!("type: Secret\nmesh: default\nname: {name}\ndata: {encoded}\n---\n"));
    }
    let verification = |fields: &str| tls(&format!("    verification: {{{fields}}}\n"));
    let san = |kind: &str, value: &str| {
        verification(&format!("caCert: {ca}, subjectAltNames: [{{type: {kind}, value: {value}}}]"))
    };
    let mutual =
        "caCert: {secret: the-ca}, clientCert: {secret: the-certificate}, clientKey: {secret: the-key}";
    let version = |min: &str, max: &str| {
        tls(&format!("    version: {{min: {min}, max: {max}}}\n    verification: {{caCert: {ca}}}\n"))
    };
    let cases = [
        ("inline", "443", verification(&format!("caCert: {ca}")), "200"),
        ("secret", "443", verification("caCert: {secret: the-ca}"), "200"),
        ("no-ca", "443", tls(""), "403"),
        ("wrong-ca", "443", verification(&format!("caCert: {wrong_ca}")), "403"),
        ("san", "443", san("Exact", "partner.example.net"), "200"),
        ("san-prefix", "443", san("Prefix", "partner.example."), "200"),
        ("wrong-san", "443", san("Exact", "nobody.example.net"), "403"),
        ("name", "443", verification(&format!("caCert: {ca}, serverName: partner.example.net")), "200"),
        ("wrong-name", "443", verification(&format!("caCert: {ca}, serverName: nobody.example.net")), "403"),
        (
            "name-not-widened",
            "443",
            verification(&format!(
                "caCert: {ca}, serverName: nobody.example.net, subjectAltNames: [{{type: Exact, value: other.example.com}}]"
            )),
            "403",
        ),
        ("newest", "443", version("TLS13", "TLS13"), "200"),
        ("older", "443", version("TLS12", "TLS12"), "200"),
        ("mutual", "8443", verification(mutual), "200"),
        ("not-mutual", "8443", verification(&format!("caCert: {ca}")), "503"),
    ];
    for (name, port, tls, _) in &cases {
        documents.push_str(&crate::attack::mes(name, "other.example.com", port, tls));
        documents.push_str("---\n");
    }
    mesh.apply(&documents).await?;
    mesh.apply(
        "type: MeshTrafficPermission\nmesh: default\nname: web-only\nspec:\n  targetRef: {kind: MeshExternalService, labels: {kuma.io/display-name: inline}}\n  from:\n  \
         - targetRef: {kind: MeshService, name: web}\n    default: {action: Allow}\n",
    )
    .await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    // One caller may, another may not; and what names nobody is for nobody.
    curl_until(&web, &["http://inline.extsvc.mesh.local/"], "the permitted caller", |said| {
        said.ends_with("200")
    })
    .await?;
    for (caller, name) in [(&batch, "inline"), (&web, "secret")] {
        let said = caller.curl(&["-i", &format!("http://{name}.extsvc.mesh.local/")]).await?;
        ensure!(said.contains("x-meridian-denied: no-permission") && said.ends_with("403"), "{name}: {said}");
    }
    mesh.apply(EVERYTHING).await?;
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?.host.ip().to_string();
    for (name, _, _, expected) in &cases {
        let said = curl_until(&web, &["-i", &format!("http://{name}.extsvc.mesh.local/")], name, |said| {
            said.ends_with(expected) && !said.contains("no-permission")
        })
        .await?;
        match *expected {
            "200" => {
                let server_name = if *name == "name" { "partner.example.net" } else { "other.example.com" };
                ensure!(said.contains(&format!(r#""serverName":"{server_name}""#)), "{name}: {said}");
                ensure!(said.contains(&format!(r#""peer":"{egress}""#)), "{name}: {said}");
            }
            "403" => ensure!(said.contains("x-meridian-denied: server-certificate"), "{name}: {said}"),
            _ => {}
        }
    }
    // The application can't hide behind a session of its own.
    let (_, said) = web
        .app(&[
            "curl",
            "-ksS",
            "--max-time",
            "3",
            "--connect-to",
            "::inline.extsvc.mesh.local:80",
            "https://inline.extsvc.mesh.local/",
        ])
        .await?;
    ensure!(!said.contains("internet"), "{said}");
    // Without the egress, nothing.
    mesh.zone_mut("east")?.egress.as_mut().context("no egress")?.kill().await?;
    let gone = web.curl(&["-i", "http://inline.extsvc.mesh.local/"]).await?;
    ensure!(!gone.ends_with("200"), "{gone}");
    Ok(())
}

async fn base64(mesh: &Mesh, name: &str) -> Result<String> {
    let file = mesh.internet.host.directory().join(name).display().to_string();
    mesh.internet.host.run(&["base64", "-w", "0", &file]).await
}

/// Globally reachable by IANA's registry, and nobody's host: AS112's addresses.
const PUBLIC: &str = "192.31.196.10";

fn passthrough(selected: &str, rest: &str) -> String {
    format!(
        "type: MeshPassthrough\nmesh: default\nname: through\nspec:\n  targetRef: {{{selected}}}\n  default: {{{rest}}}\n"
    )
}

#[tokio::test]
async fn passthrough_is_for_whom_it_selects_and_ends_when_it_is_taken_away() -> Result<()> {
    let mut mesh = Mesh::start("through", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.internet.host.run(&["ip", "addr", "add", &format!("{PUBLIC}/32"), "dev", "lo"]).await?;
    mesh.lab.route("192.31.196.0/24", &mesh.internet.host).await?;
    let programs = mesh.programs.clone();
    let record = format!("public.example.net={PUBLIC}");
    mesh.internet
        .serve_names(&programs, &[&record, "mixed.example.net=10.0.0.10", &record.replace("public", "mixed")])
        .await?;
    let one = "kind: Dataplane, labels: {kuma.io/display-name: web-1}";
    let entries = format!(
        "passthroughMode: Matched, appendMatch: [{{type: Domain, value: public.example.net, port: 443, protocol: tls}}, \
         {{type: Domain, value: public.example.net, port: 80, protocol: http}}, {{type: Domain, value: mixed.example.net, port: 80, protocol: http}}, \
         {{type: IP, value: {PUBLIC}, port: 7000, protocol: tcp}}]"
    );
    mesh.apply(&passthrough(one, &entries)).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let app = mesh.programs.app.display().to_string();
    let target = format!("{PUBLIC}:7000");
    let tcp = [app.as_str(), "tcp-client", "--target", &target];
    let [http, mixed, https] =
        ["http://public.example.net/", "http://mixed.example.net/", "https://public.example.net/"];
    for url in [http, mixed] {
        curl_until(&web, &[url], url, |said| said.ends_with("200")).await?;
    }
    curl_until(&web, &["-k", https], "by SNI", |said| said.ends_with("200")).await?;
    let (succeeded, said) = web.app(&tcp).await?;
    ensure!(succeeded && said.contains("until the end"), "by address: {said}");
    // Not by another name, port or protocol; and not for who is not selected.
    let other_sni =
        ["-k", "--resolve", &format!("evil.example.net:443:{PUBLIC}"), "https://evil.example.net/"];
    ensure!(!web.curl(&other_sni).await?.ends_with("200"), "by another SNI");
    ensure!(!web.curl(&["-H", "Host: evil.example.net", http]).await?.ends_with("200"), "by another Host");
    ensure!(!web.curl(&["-k", &format!("https://{PUBLIC}/")]).await?.ends_with("200"), "without SNI");
    ensure!(
        !batch.curl(&["--resolve", &format!("public.example.net:80:{PUBLIC}"), http]).await?.ends_with("200"),
        "another caller"
    );
    ensure!(!batch.app(&tcp).await?.0, "another caller by address");

    // Taken away: the open connection is cut; and by the egress also when the sidecar does nothing.
    let hold = [app.as_str(), "hold", "--kind", "tcp", "--target", &target];
    let mut held = web.spawn_app("held", &hold)?;
    held.wait_for_log("open", DEADLINE).await?;
    mesh.meridian(&["delete", "meshpassthrough", "through"]).await?;
    held.wait_for_log("closed:", DEADLINE).await?;
    mesh.apply(&passthrough(one, &entries)).await?;
    let mut held = until("the entry to be back", DEADLINE, || async {
        let mut held = web.spawn_app("held-again", &hold)?;
        held.wait_for_log("open", Duration::from_secs(2)).await?;
        Ok(held)
    })
    .await?;
    let sidecar = web.process.as_ref().context("no sidecar")?;
    sidecar.signal(nix::sys::signal::Signal::SIGSTOP)?;
    mesh.meridian(&["delete", "meshpassthrough", "through"]).await?;
    let egress = &mesh.zone("east")?.egress.as_ref().context("no egress")?.host;
    let cut = until("the egress to cut it on its own", DEADLINE, || async {
        let open = egress.run(&["ss", "-Htn", "state", "established", "dst", PUBLIC]).await?;
        ensure!(open.trim().is_empty(), "{open}");
        Ok(())
    })
    .await;
    sidecar.signal(nix::sys::signal::Signal::SIGCONT)?;
    cut?;
    held.wait_for_log("closed:", DEADLINE).await?;

    // All: any public address, but no other; None: nothing.
    mesh.apply(&passthrough(one, "passthroughMode: All")).await?;
    curl_until(&web, &[&format!("http://{PUBLIC}/")], "all", |said| said.ends_with("200")).await?;
    for address in ["10.0.0.10:5682", "127.0.0.1:80", "169.254.169.254", "10.1.0.10:5678", "192.0.2.66"] {
        ensure!(
            !web.curl(&[&format!("http://{address}/")]).await?.ends_with("200"),
            "{address} is not public"
        );
    }
    mesh.apply(&passthrough(one, "passthroughMode: None")).await?;
    curl_until(&web, &[&format!("http://{PUBLIC}/")], "none", |said| said.ends_with("403")).await?;
    Ok(())
}

#[tokio::test]
async fn wildcards_and_ranges_let_out_what_they_mean_and_no_more() -> Result<()> {
    let mut mesh = Mesh::start("ranges", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.internet.host.run(&["ip", "addr", "add", &format!("{PUBLIC}/32"), "dev", "lo"]).await?;
    mesh.lab.route("192.31.196.0/24", &mesh.internet.host).await?;
    let programs = mesh.programs.clone();
    let records = [
        format!("a.cdn.example.net={PUBLIC}"),
        format!("deep.er.cdn.example.net={PUBLIC}"),
        format!("cdn.example.net={PUBLIC}"),
        format!("evilcdn.example.net={PUBLIC}"),
        "metadata.cdn.example.net=169.254.169.254".to_owned(),
        "private.cdn.example.net=10.0.0.10".to_owned(),
    ];
    mesh.internet.serve_names(&programs, &records.each_ref().map(String::as_str)).await?;
    let entries = "appendMatch: [{type: Domain, value: '*.cdn.example.net', port: 80, protocol: http}, \
                   {type: Domain, value: '*.cdn.example.net', port: 443, protocol: tls}, \
                   {type: CIDR, value: 192.0.2.0/24, port: 7000, protocol: tcp}, \
                   {type: CIDR, value: 10.0.0.0/8, port: 10002, protocol: tcp}, \
                   {type: CIDR, value: 127.0.0.0/8, port: 80, protocol: http}]";
    let one = "kind: Dataplane, labels: {kuma.io/display-name: web-1}";
    mesh.apply(&passthrough(one, entries)).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?.host.ip().to_string();
    let through_egress =
        |said: &str| said.ends_with("200") && said.contains(&format!(r#""peer":"{egress}""#));

    // By name, at any depth, in any case: each gets an address of the sidecar's, and leaves by the egress.
    for url in ["http://a.cdn.example.net/", "http://Deep.Er.CDN.example.net/", "https://a.cdn.example.net/"]
    {
        curl_until(&web, &["-k", url], url, through_egress).await?;
    }
    let (_, lent) = web.app(&["getent", "ahostsv4", "a.cdn.example.net"]).await?;
    ensure!(lent.starts_with("244."), "{lent}");
    // An application that holds the real address: SNI and Host decide.
    let old = ["-k", "--resolve", &format!("a.cdn.example.net:443:{PUBLIC}"), "https://a.cdn.example.net/"];
    curl_until(&web, &old, "at the address it held", through_egress).await?;

    // What only looks like it has no address, is asked of nobody, and gets out by no other way either.
    for name in ["cdn.example.net", "evilcdn.example.net", "a.cdn.example.net.evil.example.net"] {
        let (found, said) = web.app(&["getent", "ahostsv4", name]).await?;
        ensure!(!found, "{name} has an address: {said}");
        for (scheme, port) in [("http", 80), ("https", 443)] {
            for address in [PUBLIC, lent.split_whitespace().next().unwrap_or_default()] {
                let resolve = format!("{name}:{port}:{address}");
                let said = web.curl(&["-k", "--resolve", &resolve, &format!("{scheme}://{name}/")]).await?;
                ensure!(!said.ends_with("200"), "{scheme} {name} at {address}: {said}");
            }
        }
    }
    let asked = mesh.internet.processes.first().map(|dns| dns.log()).unwrap_or_default();
    ensure!(asked.contains("a.cdn.example.net") && !asked.contains("evil"), "{asked}");
    // Another Host on the way of a listed name; and names that lead inside.
    let said = web.curl(&["-i", "-H", "Host: evil.example.net", "http://a.cdn.example.net/"]).await?;
    ensure!(said.contains("x-meridian-denied: not-listed"), "{said}");
    for name in ["metadata", "private"] {
        let said = web.curl(&["-i", &format!("http://{name}.cdn.example.net/")]).await?;
        ensure!(said.contains("x-meridian-denied: address-refused"), "{name}: {said}");
    }

    // A range: documentation addresses are opened by it; loopback and the mesh's own parts are not.
    let app = mesh.programs.app.display().to_string();
    let (succeeded, said) = web.app(&[&app, "tcp-client", "--target", "192.0.2.10:7000"]).await?;
    ensure!(succeeded && said.contains("until the end"), "an address of the range: {said}");
    let (succeeded, said) = web.app(&[&app, "tcp-client", "--target", "198.51.100.10:7000"]).await?;
    ensure!(!succeeded, "beside the range: {said}");
    web.app(&[&app, "tcp-client", "--target", &format!("{egress}:10002")]).await?;
    until("the refusal to lead to the egress itself", DEADLINE, || async {
        let denials = mesh.get(&mesh.global, "/meshes/default/_denials").await?.to_string();
        ensure!(denials.contains("one of this zone's own proxies"), "{denials}");
        Ok(())
    })
    .await?;
    ensure!(web.curl(&["http://192.0.2.10/"]).await?.ends_with("403"), "another port of the range");
    let local = web.curl(&["-i", "-H", "Host: 127.0.0.1", &format!("http://{PUBLIC}/")]).await?;
    ensure!(local.contains("x-meridian-denied: address-refused"), "{local}");

    // Not for who is not selected.
    let (succeeded, said) = batch.app(&[&app, "tcp-client", "--target", "192.0.2.10:7000"]).await?;
    ensure!(!succeeded, "another caller: {said}");
    let resolve = format!("a.cdn.example.net:80:{PUBLIC}");
    let said = batch.curl(&["--resolve", &resolve, "http://a.cdn.example.net/"]).await?;
    ensure!(said.ends_with("403"), "another caller: {said}");

    // Taken away: what was open is cut.
    let hold = [app.as_str(), "hold", "--kind", "tcp", "--target", "192.0.2.10:7000"];
    let mut held = web.spawn_app("held", &hold)?;
    held.wait_for_log("open", DEADLINE).await?;
    mesh.meridian(&["delete", "meshpassthrough", "through"]).await?;
    held.wait_for_log("closed:", DEADLINE).await?;
    curl_until(&web, &["--resolve", &resolve, "http://a.cdn.example.net/"], "refused again", |said| {
        said.ends_with("403")
    })
    .await?;
    Ok(())
}
