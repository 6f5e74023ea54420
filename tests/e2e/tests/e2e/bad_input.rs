//! Bad input is answered with what, where and what next, and changes nothing.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use meridian_testkit::mesh::{Backing, Mesh, Workload};
use meridian_testkit::process::Program;
use meridian_testkit::wait;

/// What is wrong, by whose token, the body, further words for curl, the status, and what the answer must name.
type Case<'a> = (&'a str, &'a str, String, &'a [&'a str], u16, &'a [&'a str]);

#[tokio::test]
async fn the_documented_error_and_nothing_changed() -> Result<()> {
    let mesh = Mesh::start("bad", Backing::Sqlite, &[]).await?;
    let before = mesh.get(&mesh.global, "/meshes").await?;
    for (yaml, expected) in [
        ("type: Mesh\nname: [", "line 2"),
        ("type: Mesh\nname: m1\ncolour: red\n", "colour"),
        ("type: Mesh\nname: m1\nmtls: 7\n", "mtls"),
        (
            "type: MeshTrafficPermission\nmesh: default\nname: p\nspec:\n  targetRef: {kind: Nothing}\n",
            "kind",
        ),
        ("type: Mosh\nname: m1\n", "Mosh"),
        ("type: Timeout\nmesh: default\nname: t\n", "MeshTimeout"),
        ("type: Mesh\nname: UPPER\n", "name"),
        ("type: Mesh\nname: good\n---\ntype: Mesh\nname: bad\ncolour: red\n", "colour"),
        (
            "type: MeshPassthrough\nmesh: default\nname: p\nspec:\n  default:\n    passthroughMode: Matched\n    appendMatch:\n    \
             - {type: Domain, value: '*example.com', protocol: tls, port: 443}\n",
            "partial wildcard",
        ),
    ] {
        let Err(error) = mesh.apply(yaml).await else { anyhow::bail!("accepted: {yaml}") };
        ensure!(format!("{error:#}").contains(expected), "{yaml} gave: {error:#}");
    }
    let after = mesh.get(&mesh.global, "/meshes").await?;
    ensure!(before == after, "something changed: {before} {after}");

    ensure!(mesh.get(&mesh.global, "/meshes/default/external-services").await?["total"] == 0);
    Ok(())
}

/// A request at the global control plane, and what its answer must have.
struct Request<'a> {
    what: &'a str,
    words: Vec<String>,
    status: u16,
    said: &'a [&'a str],
}

const PATH: &str = "/meshes/default/external-services/api";

#[tokio::test]
async fn requests_are_answered_in_kumas_form_and_change_nothing() -> Result<()> {
    let mesh = Mesh::start("bad-requests", Backing::Sqlite, &[]).await?;
    mesh.apply(&external("default", "api", "one.example.com:80")).await?;
    let before = mesh.get(&mesh.global, PATH).await?;
    let admin = std::fs::read_to_string(mesh.global.data().join("admin-token"))?.trim().to_owned();
    let user = mesh.meridian(&["generate", "user-token", "--name", "ann", "--valid-for", "1h"]).await?;
    let revoked = mesh.meridian(&["generate", "user-token", "--name", "bob", "--valid-for", "1h"]).await?;
    mesh.apply(&revocation("GlobalSecret", None, "user-token-revocations", &revoked)?).await?;
    let zone = ["generate", "zone-token", "--zone", "east", "--scope", "cp", "--valid-for", "1h"];
    let zone = mesh.meridian(&zone).await?;
    let short = mesh.meridian(&["generate", "user-token", "--name", "eve", "--valid-for", "1s"]).await?;
    let write = |what, token: &str, body: String, more: &[&str], status, said| {
        let file = mesh.global.host.write("body", &body)?;
        let body = format!("@{}", file.display());
        let mut words = vec!["-X", "PUT", "--data-binary", body.as_str()];
        words.extend(more);
        let header = format!("authorization: Bearer {}", token.trim());
        words.extend(["-H", &header]);
        let words = words.into_iter().map(str::to_owned).collect();
        anyhow::Ok(Request { what, words, status, said })
    };
    let two = || external("default", "api", "two.example.com:80");
    let huge = || format!("{}# {}", two(), "x".repeat(2 << 20));
    let wide = || two().replace("two.example.com:80", "two.example.com:80, colour: red");
    let typed = || two().replace("two.example.com:80", "[7]");
    let cases: [Case<'_>; 16] = [
        ("bad YAML", &admin, "type: [".into(), &[], 400, &["/std-errors"]),
        ("an unknown field", &admin, wide(), &[], 400, &["networking.colour"]),
        ("a wrong type", &admin, typed(), &[], 400, &["networking.address"]),
        (
            "an unknown kind",
            &admin,
            two().replace("ExternalService", "Mosh"),
            &[],
            400,
            &[r#""type""#, "Mosh"],
        ),
        ("another kind", &admin, "type: Mesh\nname: api\n".into(), &[], 400, &[r#""field":"type""#]),
        (
            "another name",
            &admin,
            external("default", "other", "two.example.com:80"),
            &[],
            400,
            &[r#""field":"name""#],
        ),
        (
            "another mesh",
            &admin,
            external("other", "api", "two.example.com:80"),
            &[],
            400,
            &[r#""field":"mesh""#],
        ),
        ("an oversized body", &admin, huge(), &[], 413, &["/std-errors", "larger than 1048576 bytes"]),
        ("an old version", &admin, two(), &["-H", "if-match: \"0\""], 412, &["Precondition failed"]),
        ("no version", &admin, two(), &["-H", "if-match: soon"], 400, &["If-Match"]),
        ("nonsense for a token", "nonsense", two(), &[], 401, &["/std-errors"]),
        ("a zone's token", &zone, two(), &[], 401, &["/std-errors", "this is a zone token"]),
        ("a user who is no administrator", &user, two(), &[], 403, &["Access Denied"]),
        ("a revoked token", &revoked, two(), &[], 401, &["revoked"]),
        ("an expired token", &short, two(), &[], 401, &["expired"]),
        ("nobody", "", two(), &[], 401, &["/std-errors"]),
    ];
    wait::until("the short token's end", wait::DEADLINE, || async { ended(&short) }).await?;
    for (what, token, body, more, status, said) in cases {
        let request = write(what, token, body, more, status, said)?;
        answered(&mesh, &request).await?;
    }
    let after = mesh.get(&mesh.global, PATH).await?;
    ensure!(before == after, "something changed: {before} {after}");
    ensure!(mesh.get(&mesh.global, "/meshes/default/external-services").await?["total"] == 1);
    Ok(())
}

/// Asks until the answer is the expected one (a token expires, a revocation reaches the verifier), and no longer than
/// that. What was meant to be refused is refused each time, so asking again changes nothing either.
async fn answered(mesh: &Mesh, request: &Request<'_>) -> Result<()> {
    let url = format!("http://127.0.0.1:5681{PATH}");
    wait::until(request.what, wait::DEADLINE, || async {
        let mut line = vec!["curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}"];
        line.extend(request.words.iter().map(String::as_str));
        line.push(&url);
        let said = mesh.global.host.run(&line).await?;
        let all = request.said.iter().all(|part| said.contains(part));
        ensure!(all && said.ends_with(&request.status.to_string()), "{}: {said}", request.what);
        Ok(())
    })
    .await
}

fn external(mesh: &str, name: &str, address: &str) -> String {
    format!(
        "type: ExternalService\nmesh: {mesh}\nname: {name}\ntags: {{kuma.io/service: api}}\nnetworking: {{address: {address}}}\n"
    )
}

/// The secret that revokes a token: Kuma's list of its ids.
fn revocation(kind: &str, mesh: Option<&str>, name: &str, token: &str) -> Result<String> {
    let claims = token.split('.').nth(1).context("no token")?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let data = STANDARD
        .encode(claims.get("jti").and_then(serde_json::Value::as_str).context("the token has no id")?);
    let mesh = mesh.map(|mesh| format!("mesh: {mesh}\n")).unwrap_or_default();
    Ok(format!("type: {kind}\n{mesh}name: {name}\ndata: {data}\n"))
}

#[tokio::test]
async fn a_zone_takes_no_proxy_with_a_token_that_is_not_its_own() -> Result<()> {
    let mesh = Mesh::start("bad-tokens", Backing::Sqlite, &["east"]).await?;
    let token = |words: &'static [&'static str]| {
        let mesh = &mesh;
        async move {
            let mut line = vec!["generate"];
            line.extend(words);
            line.extend(["--valid-for", "1h"]);
            mesh.meridian(&line).await
        }
    };
    let expired = ["generate", "dataplane-token", "--name", "web-1", "--valid-for", "1s"];
    let expired = mesh.meridian(&expired).await?;
    let expiring = expired.clone();
    let revoked = token(&["dataplane-token", "--name", "web-1", "--tag", "kuma.io/service=web"]).await?;
    let list = "dataplane-token-revocations-default";
    mesh.apply(&revocation("Secret", Some("default"), list, &revoked)?).await?;
    mesh.apply("type: Mesh\nname: other\n").await?;
    let dataplanes = [
        (
            "a user's",
            token(&["user-token", "--name", "ann"]).await?,
            "this is a user token, a dataplane token is needed",
        ),
        (
            "a zone's",
            token(&["zone-token", "--zone", "east", "--scope", "ingress"]).await?,
            "a sidecar needs a dataplane token",
        ),
        ("an expired", expired, "expired"),
        ("a revoked", revoked, "revoked"),
        ("another name's", token(&["dataplane-token", "--name", "web-2"]).await?, "for the Dataplane web-2"),
        (
            "another service's",
            token(&["dataplane-token", "--tag", "kuma.io/service=backend"]).await?,
            "does not allow the tag kuma.io/service: web",
        ),
        (
            "another mesh's",
            token(&["dataplane-token", "--mesh", "other", "--name", "web-1"]).await?,
            "for mesh other",
        ),
        ("an unbound", token(&["dataplane-token"]).await?, "binds neither"),
    ];
    let ingresses = [
        (
            "a dataplane's",
            token(&["dataplane-token", "--name", "way-in"]).await?,
            "ingress and egress need a zone token",
        ),
        (
            "another zone's",
            token(&["zone-token", "--zone", "west", "--scope", "ingress"]).await?,
            "for zone west",
        ),
        (
            "another scope's",
            token(&["zone-token", "--zone", "east", "--scope", "egress"]).await?,
            "it is for no ZoneIngress",
        ),
        (
            "a control plane's",
            token(&["zone-token", "--zone", "east", "--scope", "cp"]).await?,
            "allows no ZoneIngress",
        ),
    ];
    wait::until("the expired token's end", wait::DEADLINE, || async { ended(&expiring) }).await?;
    let host = mesh.lab_host_outside("east").await?;
    let control_plane = &mesh.zone("east")?.control_plane;
    let ca = host.write("ca.crt", &std::fs::read_to_string(control_plane.data().join("ca.crt"))?)?;
    let resource = host.write("dataplane.yaml", &Workload::http("web-1", "web").resource(host.ip()))?;
    let refused = |role: &'static [&'static str], whose: &'static str, token: &str, reason: &'static str| {
        let token = host.write("token", token)?;
        let words = [mesh.programs.meridian.display().to_string()]
            .into_iter()
            .chain(role.iter().map(|word| (*word).to_owned()));
        let program = Program::new(&whose.replace([' ', '\''], "-"), words)
            .arg("--cp-address")
            .arg(format!("https://{}:5678", control_plane.host.ip()))
            .arg("--ca-cert-file")
            .arg(ca.display().to_string())
            .arg("--data-dir")
            .arg(host.directory().join(whose.replace([' ', '\''], "-")).display().to_string());
        let program = match role {
            ["dataplane"] => program
                .arg("--dataplane-file")
                .arg(resource.display().to_string())
                .arg("--dataplane-token-file")
                .arg(token.display().to_string()),
            _ => program.arg("--token-file").arg(token.display().to_string()),
        };
        anyhow::Ok((host.spawn(program)?, format!("{whose} token: {reason}"), reason))
    };
    for (whose, token, reason) in dataplanes {
        let (mut process, what, reason) = refused(&["dataplane"], whose, &token, reason)?;
        process.wait_for_log(reason, wait::DEADLINE).await.context(what)?;
        process.kill().await?;
    }
    for (whose, token, reason) in ingresses {
        let role = &["zone-ingress", "--name", "way-in", "--address", "10.1.0.250"];
        let (mut process, what, reason) = refused(role, whose, &token, reason)?;
        process.wait_for_log(reason, wait::DEADLINE).await.context(what)?;
        process.kill().await?;
    }
    ensure!(mesh.get(control_plane, "/meshes/default/dataplanes").await?["total"] == 0);
    let ingresses = mesh.get(control_plane, "/zoneingresses").await?;
    ensure!(ingresses["total"] == 1, "{ingresses}");
    Ok(())
}

/// Fails while the token is still valid by its `exp`.
fn ended(token: &str) -> Result<()> {
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1).context("no JWT")?)?;
    let claims: serde_json::Value = serde_json::from_slice(&claims)?;
    let ends = claims.get("exp").and_then(serde_json::Value::as_u64).context("no exp")?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    ensure!(now > ends, "valid until {ends}, it is {now}");
    Ok(())
}
