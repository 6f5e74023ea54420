//! Hostile workloads and hostile peers: stolen certificates, forged names, tricks of HTTP, and crowds.

use crate::intruder::{Stolen, answered, preface, request, say, server_name};
use crate::policies::{EVERYTHING, external_service};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{APP_UID, Backing, Mesh, OTHER_UID, Workload, curl_until};
use meridian_testkit::process::Program;
use meridian_testkit::wait::{DEADLINE, until};
use std::time::Duration;

#[tokio::test]
async fn a_stolen_certificate_is_nobody_elses() -> Result<()> {
    let mut mesh = Mesh::start("stolen", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let mut backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let stolen = Stolen::from(&batch, mesh.lab.directory()).await?;
    for url in ["http://backend.mesh/", "http://other.example.com/"] {
        curl_until(&web, &[url], "an answer before", |said| said.ends_with("200")).await?;
    }
    // Nobody tells web that they are gone.
    mesh.zone_mut("east")?.control_plane.kill().await?;
    backend.kill().await?;
    let egress = mesh.zone_mut("east")?.egress.as_mut().context("no egress")?;
    egress.kill().await?;
    let egress_host = egress.host.clone();
    for (host, listen, alpn, url) in [
        (&backend.host, "15006", "mesh-h1,mesh-h2", "http://backend.mesh/"),
        (&egress_host, "10002", "mesh-ext", "http://other.example.com/"),
    ] {
        let mut impostor = stolen.impersonate(host, listen, alpn)?;
        impostor.wait_for_log("ACCEPT", DEADLINE).await?;
        let said = until("the impostor to be called", DEADLINE, || async {
            let said = web.curl(&[url]).await?;
            ensure!(impostor.log().contains("alert"), "{said}: {}", impostor.log());
            Ok(said)
        })
        .await?;
        ensure!(!said.ends_with("200"), "{said}");
        impostor.kill().await?;
    }
    // It was who they are that kept them out: the true one is called there again.
    backend.start().await?;
    curl_until(&web, &["http://backend.mesh/"], "the true one", |said| said.ends_with("200")).await?;
    Ok(())
}

#[tokio::test]
async fn a_hostile_peer_with_a_true_certificate_gets_what_is_its_own() -> Result<()> {
    let mut mesh = Mesh::start("peer", Backing::Sqlite, &["east", "west"]).await?;
    for (name, address) in [("mine", "other.example.com"), ("yours", "partner.example.net")] {
        mesh.apply(&mes(name, address, "80", "")).await?;
    }
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let _far = mesh.workload("west", &Workload::http("far-1", "far")).await?;
    let mine = server_name(&web, "sni.extsvc.default.east.mine.").await?;
    let yours = server_name(&web, "sni.extsvc.default.east.yours.").await?;
    mesh.apply(&format!(
        "type: MeshTrafficPermission\nmesh: default\nname: by-server-name\nspec:\n  targetRef: {{kind: Mesh}}\n  rules:\n  - default:\n      allow:\n      \
         - spiffeID: {{type: Exact, value: 'spiffe://default/web'}}\n        sni: {{type: Exact, value: '{mine}'}}\n"
    ))
    .await?;
    curl_until(&web, &["http://mine.extsvc.mesh.local/"], "what is its own", |said| said.ends_with("200"))
        .await?;
    curl_until(&web, &["http://yours.extsvc.mesh.local/"], "another's", |said| said.ends_with("403")).await?;

    let stolen = Stolen::from(&web, mesh.lab.directory()).await?;
    let stranger = mesh.lab_host_outside("east").await?;
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?.host.ip();
    let egress = format!("{egress}:10002");
    let (own, other) = ("default/extsvc//mine", "default/extsvc//yours");
    let asked = preface(own, "mine.extsvc.mesh.local", 80);
    until("the attacker's tools to work", DEADLINE, || async {
        let said = say(&stranger, &egress, Some(&stolen), &mine, "mesh-ext", &asked).await?;
        ensure!(answered(&said), "nothing came back: {said}");
        Ok(())
    })
    .await?;

    let yours_asked = preface(other, "yours.extsvc.mesh.local", 80);
    let long = [&[0xff, 0xff][..], &[b'{'; 70_000]].concat();
    let two = preface(own, "yours.extsvc.mesh.local", 80);
    for (what, certificate, sni, alpn, bytes) in [
        ("another's entry by its name", Some(&stolen), yours.as_str(), "mesh-ext", yours_asked.as_slice()),
        ("another's entry under the own name", Some(&stolen), &mine, "mesh-ext", &yours_asked),
        ("the own entry with another's host", Some(&stolen), &mine, "mesh-ext", &two),
        (
            "an unlisted entry",
            Some(&stolen),
            &mine,
            "mesh-ext",
            &preface("default/extsvc//nothing", "a.example", 80),
        ),
        (
            "an entry of another mesh",
            Some(&stolen),
            &mine,
            "mesh-ext",
            &preface("other/extsvc//mine", "a.example", 80),
        ),
        ("any address", Some(&stolen), &mine, "mesh-ext", &preface("*", "192.0.2.10", 80)),
        ("too long a preface", Some(&stolen), &mine, "mesh-ext", &long),
        (
            "no preface",
            Some(&stolen),
            &mine,
            "mesh-ext",
            b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
        ),
        ("no certificate", None, &mine, "mesh-ext", &asked),
        ("a wrong protocol", Some(&stolen), &mine, "http/1.1", &asked),
        ("no protocol", Some(&stolen), &mine, "", &asked),
        ("another mesh's name", Some(&stolen), "sni.extsvc.other.east.mine.xport", "mesh-ext", &asked),
    ] {
        let said = say(&stranger, &egress, certificate, sni, alpn, bytes).await?;
        ensure!(!said.contains("200 OK"), "{what}: {said}");
    }

    // Inside: the name that opens an entry opens no inbound; then, permitted, only the mesh's own protocols do.
    let inbound = format!("{}:8080", backend.host.ip());
    let plain = request("backend.mesh");
    until("the refusal to be read", DEADLINE, || async {
        let said = say(&stranger, &inbound, Some(&stolen), &mine, "mesh-h1", plain.as_bytes()).await?;
        ensure!(said.starts_with("HTTP/1.1 403"), "{said}");
        Ok(())
    })
    .await?;
    mesh.apply(EVERYTHING).await?;
    until("the permission", DEADLINE, || async {
        let said = say(&stranger, &inbound, Some(&stolen), "x.example", "mesh-h1", plain.as_bytes()).await?;
        ensure!(answered(&said), "{said}");
        Ok(())
    })
    .await?;
    let by_name = server_name(&web, "sni.msvc.default.west.far.").await?;
    let ingress = mesh.zone("west")?.ingress.as_ref().context("no ingress")?.host.ip();
    let ingress = format!("{ingress}:10001");
    until("the way through the ingress", DEADLINE, || async {
        let said = say(&stranger, &ingress, Some(&stolen), &by_name, "mesh-h1", plain.as_bytes()).await?;
        ensure!(answered(&said), "{said}");
        Ok(())
    })
    .await?;
    let foreign = foreign(&mesh).await?;
    for (target, name) in [(&inbound, "x.example"), (&ingress, by_name.as_str())] {
        for (what, certificate, alpn) in [
            ("a wrong protocol", Some(&stolen), "http/1.1"),
            ("TCP's protocol", Some(&stolen), "mesh-tcp"),
            ("the egress's protocol", Some(&stolen), "mesh-ext"),
            ("no protocol", Some(&stolen), ""),
            ("no certificate", None, "mesh-h1"),
            ("another mesh's certificate", Some(&foreign), "mesh-h1"),
        ] {
            let said = say(&stranger, target, certificate, name, alpn, plain.as_bytes()).await?;
            ensure!(said.is_empty(), "{what} at {target}: {said}");
        }
    }
    let said = say(&stranger, &egress, Some(&foreign), &mine, "mesh-ext", &asked).await?;
    ensure!(said.is_empty(), "another mesh's certificate: {said}");
    Ok(())
}

/// A certificate that says what web's says, of a root of the attacker's own.
async fn foreign(mesh: &Mesh) -> Result<Stolen> {
    let path = |name: &str| mesh.lab.directory().join(format!("foreign-{name}")).display().to_string();
    let (leaf, chain, key) = (path("leaf"), path("chain"), path("key"));
    let line = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=root -days 2 -keyout {key}.ca -out {chain} && \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=web -keyout {key} -out {leaf}.csr && \
         printf 'subjectAltName=URI:spiffe://default/web,URI:kuma://kuma.io/service/web,URI:kuma://kuma.io/zone/east,URI:meridian://dataplane/web-1' > {leaf}.ext && \
         openssl x509 -req -in {leaf}.csr -CA {chain} -CAkey {key}.ca -CAcreateserial -days 1 -extfile {leaf}.ext -out {leaf}"
    );
    mesh.global.host.run(&["sh", "-c", &line]).await?;
    Ok(Stolen { leaf, chain, key })
}

/// A MeshExternalService for HTTP on port 80.
pub(crate) fn mes(name: &str, address: &str, port: &str, tls: &str) -> String {
    format!(
        "type: MeshExternalService\nmesh: default\nname: {name}\nspec:\n  match: {{type: HostnameGenerator, port: 80, protocol: http}}\n  \
         endpoints:\n  - {{address: {address}, port: {port}}}\n  allowedAddresses: [192.0.2.0/24, 198.51.100.0/24, '2001:db8::/32']\n{tls}"
    )
}

#[tokio::test]
async fn every_request_is_held_to_its_entry() -> Result<()> {
    let mut mesh = Mesh::start("requests", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    mesh.apply(&external_service("partner", "partner.example.net:80", "http")).await?;
    mesh.apply(&external_service("grpc", "api.example.com:80", "http2")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let app = mesh.programs.app.display().to_string();
    curl_until(&web, &["http://other.example.com/"], "the entry", |said| said.ends_with("200")).await?;
    let say = async |text: &str| -> Result<String> {
        // An address that nobody lists: what is said decides.
        let (_, said) = web.app(&[&app, "tcp-client", "--target", "192.0.2.66:80", "--send", text]).await?;
        Ok(said)
    };
    let good = "GET /good HTTP/1.1\r\nHost: other.example.com\r\n\r\n";
    ensure!(say(good).await?.contains("200 OK"), "the attacker's tools do not work");
    for host in ["OTHER.Example.COM", "other.example.com.", "other.example.com:80"] {
        let said = say(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
        ensure!(said.contains("200 OK"), "{host}: {said}");
    }
    for second in [
        "GET /bad HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: partner.example.net\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: other.example.com\r\nHost: evil.example.net\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: other.example.com:8080\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: other.example.com@evil.example.net\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: evil.example.net@other.example.com\r\n\r\n",
        "GET http://evil.example.net/bad HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
        "GET http://other.example.com/bad HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
        "GET http://evil.example.net/bad HTTP/1.1\r\n\r\n",
        "GET /bad HTTP/1.1\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: other.example.com, evil.example.net\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: 192.0.2.66\r\n\r\n",
        "CONNECT evil.example.net:80 HTTP/1.1\r\nHost: evil.example.net:80\r\n\r\n",
        "CONNECT other.example.com:80 HTTP/1.1\r\nHost: other.example.com:80\r\n\r\nGET /bad HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let alone = say(second).await?;
        let listed = second.contains("Host: partner.example.net");
        ensure!(listed || !alone.contains("200 OK"), "{second:?}: {alone}");
        let after = say(&format!("{good}{second}")).await?;
        ensure!(
            !after.contains("/bad") && after.matches("200 OK").count() <= 1,
            "after a good one, {second:?}: {after}"
        );
        // What follows a refused CONNECT can't be read as a request: the connection is reset.
        ensure!(second.starts_with("CONNECT") || after.contains("/good"), "{second:?}: {after}");
    }
    // An upgrade to HTTP/2 would hide what is asked next: it is left out, and the request answered without.
    let said = web.curl(&["--http2", "http://other.example.com/up"]).await?;
    ensure!(said.ends_with("200") && !said.to_lowercase().contains("h2c"), "{said}");

    // HTTP/2 with prior knowledge to an address that nobody lists: its name is heard, and each request is held.
    let h2 = ["--http2-prior-knowledge", "--connect-to", "::192.0.2.66:80"];
    let h2 = async |urls: &[&str]| web.curl(&[&h2[..], urls].concat()).await;
    let said = h2(&["http://other.example.com/"]).await?;
    ensure!(said.ends_with("200") && said.contains("other.example.com"), "{said}");
    ensure!(h2(&["http://api.example.com/"]).await?.ends_with("200"), "an http2 entry");
    let said = h2(&["-i", "http://evil.example.net/"]).await?;
    ensure!(said.contains("x-meridian-denied: not-listed") && said.ends_with("403"), "{said}");
    let two = ["http://other.example.com/", "-H", "Host: evil.example.net"];
    ensure!(!h2(&two).await?.ends_with("200"), "another :authority");
    Ok(())
}

#[tokio::test]
async fn nothing_gets_around_a_sidecar_from_its_own_host() -> Result<()> {
    let mut mesh = Mesh::start("around", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let near = mesh.workload("east", &Workload::http("near-1", "near")).await?;
    let far = mesh.workload("west", &Workload::http("far-1", "far")).await?;
    for url in ["http://near.mesh/", "http://far.mesh/"] {
        curl_until(&web, &[url], "the mesh", |said| said.ends_with("200")).await?;
    }
    let app = mesh.programs.app.display().to_string();
    let own = web.host.ip();
    let near = near.host.ip();
    let far = far.host.ip();
    let mut targets: Vec<String> = [15001, 15006, 15053]
        .iter()
        .flat_map(|port| [format!("127.0.0.1:{port}"), format!("{own}:{port}"), format!("127.0.0.6:{port}")])
        .collect();
    // Pods, the zones' proxies and the control planes, dialled directly; their sidecars' ports; virtual addresses.
    targets.extend(
        [near, far]
            .iter()
            .flat_map(|ip| [8080, 15001, 15006, 15053, 9902].map(|port| format!("{ip}:{port}"))),
    );
    targets.extend(
        [
            "10.1.0.20:10001",
            "10.2.0.20:10001",
            "10.1.0.30:10002",
            "10.2.0.30:10002",
            "10.1.0.10:5678",
            "10.1.0.10:5681",
            "10.1.0.10:5680",
            "10.0.0.10:5685",
            "10.0.0.10:5682",
        ]
        .map(str::to_owned),
    );
    targets.extend(
        ["240.0.0.1:80", "241.255.255.254:80", "243.1.2.3:443", "255.255.255.255:80"].map(str::to_owned),
    );
    for uid in [APP_UID, OTHER_UID] {
        for target in &targets {
            for text in [request("evil.example.net"), request("127.0.0.1"), request("near")] {
                let (_, said) =
                    web.as_user(uid, &[&app, "tcp-client", "--target", target, "--send", &text]).await?;
                ensure!(!said.contains("200 OK"), "uid {uid}, {target}: {said}");
            }
        }
        let directory = web.host.directory().join("proxy");
        for file in ["config.json", "identities/default.json"] {
            let (read, _) = web.as_user(uid, &["cat", &directory.join(file).display().to_string()]).await?;
            ensure!(!read, "uid {uid} reads {file}");
        }
    }
    curl_until(&web, &["http://near.mesh/"], "the sidecar goes on", |said| said.ends_with("200")).await?;
    // A stranger at the sidecar's own ports.
    let stranger = mesh.lab_host_outside("east").await?;
    for port in [15001, 15006, 15053, 9902] {
        let url = format!("http://{own}:{port}/metrics");
        ensure!(
            stranger.run(&["curl", "-sS", "--max-time", "3", &url]).await.is_err(),
            "port {port} answers strangers"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_crowd_that_never_ends_its_sentence_shuts_nobody_out() -> Result<()> {
    let mut mesh = Mesh::start("crowd", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let near = mesh.workload("east", &Workload::http("near-1", "near")).await?;
    let _far = mesh.workload("west", &Workload::http("far-1", "far")).await?;
    let urls = ["http://near.mesh/", "http://far.mesh/", "http://other.example.com/"];
    for url in urls {
        curl_until(&web, &[url], "an answer before", |said| said.ends_with("200")).await?;
    }
    let app = mesh.programs.app.display().to_string();
    let ingress = mesh.zone("west")?.ingress.as_ref().context("no ingress")?;
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?;
    let stranger = mesh.lab_host_outside("east").await?;
    // Silence, the beginning of a ClientHello, the beginning of a request.
    let hello = r"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for (proxy, port) in [(&near, 8080), (ingress, 10001), (egress, 10002)] {
        let process = proxy.process.as_ref().context("it does not run")?;
        let (before, _) = process.usage()?;
        let mut crowds = Vec::new();
        for (index, send) in ["", hello, "GET / HTTP/1.1\r\nHost: a"].iter().enumerate() {
            let line = format!(
                "ulimit -n 20000; exec {app} crowd --target {}:{port} --count 1500 --send \"$1\"",
                proxy.host.ip()
            );
            let name = format!("crowd-{}-{index}", proxy.host.name());
            crowds.push(stranger.spawn(Program::new(&name, ["sh", "-c", &line, "sh", *send]))?);
        }
        for crowd in &mut crowds {
            crowd.wait_for_log("open:", Duration::from_secs(30)).await?;
        }
        for url in urls {
            curl_until(&web, &[url], "an answer beside the crowd", |said| said.ends_with("200")).await?;
        }
        let (during, _) = process.usage()?;
        ensure!(during < before + 64 * 1024, "{}: {before} KiB, then {during} KiB", proxy.host.name());
        println!("{}: {before} KiB, beside 4,500 beginnings {during} KiB", proxy.host.name());
    }
    Ok(())
}
