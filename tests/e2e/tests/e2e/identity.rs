//! Who somebody is: nobody speaks for another mesh or another zone, and certificates are renewed by their age.

use crate::attack::mes;
use crate::intruder::{Stolen, answered, preface, request, say, server_name};
use crate::outages::{finish, load};
use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_store::{KeyRing, Options, Store};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::Value;

const OTHER_MESH: &str = "\
type: Mesh
name: other
mtls: {enabledBackend: builtin, backends: [{name: builtin, type: builtin}]}
networking: {outbound: {passthrough: false}}
";

#[tokio::test]
async fn neither_a_second_mesh_nor_a_taken_zone_speaks_for_others() -> Result<()> {
    let mut mesh = Mesh::start("names", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(OTHER_MESH).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&EVERYTHING.replace("mesh: default", "mesh: other")).await?;
    mesh.apply(&mes("plain", "other.example.com", "80", "")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let mut backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    // The same names in the second mesh.
    let theirs = mesh.workload("east", &Workload::http("web-2", "web").in_mesh("other")).await?;
    let their_backend =
        mesh.workload("west", &Workload::http("backend-2", "backend").in_mesh("other")).await?;
    for url in ["http://backend.mesh/", "http://plain.extsvc.mesh.local/"] {
        curl_until(&web, &[url], "an answer before", |said| said.ends_with("200")).await?;
    }

    let ours = Stolen::from(&web, mesh.lab.directory()).await?;
    let foreign = Stolen::of_mesh("other", &theirs, mesh.lab.directory()).await?;
    let stranger = mesh.lab_host_outside("east").await?;
    let plain = request("backend.mesh");
    let inbound = |proxy: &Proxy| format!("{}:8080", proxy.host.ip());
    let home = inbound(&their_backend);
    until("the certificate to count", DEADLINE, || async {
        let said = say(&stranger, &home, Some(&foreign), "x.example", "mesh-h1", plain.as_bytes()).await?;
        ensure!(answered(&said), "in its own mesh the certificate counts: {said}");
        Ok(())
    })
    .await?;
    let ingress = mesh.zone("west")?.ingress.as_ref().context("no ingress")?.host.ip();
    let ingress = format!("{ingress}:10001");
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?.host.ip();
    let egress = format!("{egress}:10002");
    let by_name = server_name(&web, "sni.msvc.default.west.backend.").await?;
    let outside = server_name(&web, "sni.extsvc.default.east.plain.").await?;
    let asked = preface("default/extsvc//plain", "plain.extsvc.mesh.local", 80);
    until("the certificate to count", DEADLINE, || async {
        let said = say(&stranger, &egress, Some(&ours), &outside, "mesh-ext", &asked).await?;
        ensure!(answered(&said), "our own certificate at the egress: {said}");
        Ok(())
    })
    .await?;
    for (what, target, name, alpn, bytes) in [
        ("the sidecar", inbound(&backend), "x.example", "mesh-h1", plain.as_bytes()),
        ("the ingress", ingress.clone(), by_name.as_str(), "mesh-h1", plain.as_bytes()),
        ("the egress", egress, &outside, "mesh-ext", &asked),
    ] {
        let said = say(&stranger, &target, Some(&foreign), name, alpn, bytes).await?;
        ensure!(said.is_empty(), "a second mesh's certificate at {what}: {said}");
    }
    let (_, said) =
        theirs.app(&["curl", "-sS", "--max-time", "5", &format!("http://{}/", inbound(&backend))]).await?;
    ensure!(!said.contains("backend-1"), "the second mesh reaches the first: {said}");

    // Whoever has east's intermediate makes leaves of any name. East's own count; those that claim west do not.
    let taken = TakenZone::open(&mut mesh, "east").await?;
    let honest = taken.leaf(&mesh, "honest", "web", "east").await?;
    let liar = taken.leaf(&mesh, "liar", "backend", "west").await?;
    for (what, target, name) in
        [("the sidecar", inbound(&backend), "x.example"), ("the ingress", ingress, by_name.as_str())]
    {
        for own in [&ours, &honest] {
            until("the certificate to count", DEADLINE, || async {
                let said = say(&stranger, &target, Some(own), name, "mesh-h1", plain.as_bytes()).await?;
                ensure!(answered(&said), "east's own leaf at {what}: {said}");
                Ok(())
            })
            .await?;
        }
        let said = say(&stranger, &target, Some(&liar), name, "mesh-h1", plain.as_bytes()).await?;
        ensure!(said.is_empty(), "a leaf of east's that claims west, at {what}: {said}");
    }

    // In the place of west's backend, which nobody tells web is gone.
    mesh.zone_mut("west")?.control_plane.kill().await?;
    backend.kill().await?;
    let mut impostor = liar.impersonate(&backend.host, "15006", "mesh-h1,mesh-h2")?;
    impostor.wait_for_log("ACCEPT", DEADLINE).await?;
    let said = until("the impostor to be called", DEADLINE, || async {
        let said = web.curl(&["http://backend.mesh/"]).await?;
        ensure!(impostor.log().contains("alert"), "{said}: {}", impostor.log());
        Ok(said)
    })
    .await?;
    ensure!(!said.ends_with("200"), "{said}");
    impostor.kill().await?;
    backend.start().await?;
    curl_until(&web, &["http://backend.mesh/"], "the true one", |said| said.ends_with("200")).await.map(drop)
}

/// What the disk of a taken zone control plane gives: the intermediate of the default mesh, with its key.
struct TakenZone {
    certificate: String,
    key: String,
}

impl TakenZone {
    async fn open(mesh: &mut Mesh, zone: &str) -> Result<Self> {
        let control_plane = &mut mesh.zone_mut(zone)?.control_plane;
        control_plane.kill().await?;
        let data = control_plane.data();
        let keys = KeyRing::load_or_create(&data.join("encryption-key"))?;
        let url = format!("sqlite:{}", data.join("zone.db").display());
        let store = Store::open(Options::new(url, keys, "intruder")).await?;
        let kept = store.private_get("intermediates", "default").await?.context("no intermediate")?;
        drop(store);
        let kept: Value = serde_json::from_slice(&kept)?;
        let text = |name| kept.get(name).and_then(Value::as_str).map(str::to_owned).context("no such part");
        let taken = Self { certificate: text("certificate")?, key: text("key")? };
        mesh.zone_mut(zone)?.control_plane.start().await?;
        Ok(taken)
    }

    /// A leaf of this intermediate that says what it likes.
    async fn leaf(&self, mesh: &Mesh, file: &str, service: &str, zone: &str) -> Result<Stolen> {
        let path = |name: &str| mesh.lab.directory().join(format!("{file}-{name}")).display().to_string();
        let (leaf, chain, key) = (path("leaf"), path("chain"), path("key"));
        std::fs::write(&chain, &self.certificate)?;
        std::fs::write(path("ca-key"), &self.key)?;
        let extensions = format!(
            "subjectAltName=URI:spiffe://default/{service},URI:kuma://kuma.io/service/{service},URI:kuma://kuma.io/zone/{zone}\n\
             keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
        );
        std::fs::write(path("extensions"), extensions)?;
        let line = format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={service} -keyout {key} -out {leaf}.csr && \
             openssl x509 -req -in {leaf}.csr -CA {chain} -CAkey {} -set_serial 77 -days 1 -extfile {} -out {leaf} && chmod 644 {key}",
            path("ca-key"),
            path("extensions"),
        );
        mesh.global.host.run(&["sh", "-c", &line]).await?;
        Ok(Stolen { leaf, chain, key })
    }
}

#[tokio::test]
async fn leaves_are_renewed_by_their_age_under_load_without_global() -> Result<()> {
    let mut mesh = Mesh::start("renewal", Backing::Sqlite, &["east"]).await?;
    mesh.apply(
        "type: Mesh\nname: default\nnetworking: {outbound: {passthrough: false}}\nmtls:\n  enabledBackend: builtin\n  \
         backends: [{name: builtin, type: builtin, dpCert: {rotation: {expiration: 8s}}}]\n",
    )
    .await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let (_, load) = load(&mesh, &web, "backend").await?;
    mesh.global.kill().await?;
    let mut seen = vec![leaf(&web)?, leaf(&backend)?];
    for round in 0..3 {
        for (proxy, before) in [&web, &backend].into_iter().zip(&mut seen) {
            *before = until("another leaf", DEADLINE, || async {
                let now = leaf(proxy)?;
                ensure!(now != *before, "round {round}: {} still has the same leaf", proxy.name);
                Ok(now)
            })
            .await?;
        }
    }
    // By now the first leaves have expired. Renewed at half of its life, no leaf is asked for over and over.
    for proxy in [&web, &backend] {
        // A leaf is kept before it is told of.
        let issued = until("four leaves", DEADLINE, || async {
            let issued = proxy.log().matches(" until=").count();
            ensure!(issued >= 4, "{}: {issued} leaves:\n{}", proxy.name, proxy.log());
            Ok(issued)
        })
        .await?;
        ensure!(issued <= 12, "{}: {issued} leaves:\n{}", proxy.name, proxy.log());
    }
    let summary = finish(load).await?;
    ensure!(summary.get("failed").and_then(Value::as_u64) == Some(0), "{summary}");
    Ok(())
}

/// The leaf that a proxy has now, as it keeps it.
fn leaf(proxy: &Proxy) -> Result<String> {
    let kept = std::fs::read(proxy.host.directory().join("proxy/identities/default.json"))?;
    let kept: Value = serde_json::from_slice(&kept)?;
    Ok(kept.get("chain").and_then(Value::as_str).context("no chain")?.to_owned())
}
