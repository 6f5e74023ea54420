//! MeshHTTPRoute and MeshTCPRoute, as a user sees them: by one apply, across zones, without a restart.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};

/// A route for calls to `backend`.
fn route(kind: &str, rules: &str) -> String {
    format!(
        "type: {kind}\nmesh: default\nname: backend\nspec:\n  to:\n  - targetRef: {{kind: MeshService, name: backend}}\n    rules:\n{rules}"
    )
}

/// Which application answered.
fn app(said: &str) -> Result<String> {
    let seen: serde_json::Value = serde_json::from_str(said.lines().next().unwrap_or_default())
        .with_context(|| format!("no answer of an application: {said}"))?;
    let name = seen.get("app").and_then(serde_json::Value::as_str);
    Ok(name.unwrap_or_default().to_owned())
}

async fn reaches(from: &Proxy, words: &[&str], name: &str) -> Result<()> {
    curl_until(from, words, name, |said| app(said).is_ok_and(|app| app == name)).await?;
    Ok(())
}

/// How many of so many requests each of the two answered.
async fn shares(from: &Proxy, url: &str, requests: usize) -> Result<(usize, usize)> {
    let mut second = 0;
    for _ in 0..requests {
        let name = app(&from.curl(&[url]).await?)?;
        ensure!(name == "backend-1" || name == "v2-1", "{name}");
        second += usize::from(name == "v2-1");
    }
    Ok((requests - second, second))
}

#[tokio::test]
async fn requests_go_where_routes_say() -> Result<()> {
    let mut mesh = Mesh::start("routes", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _v2 = mesh.workload("east", &Workload::http("v2-1", "v2")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let url = "http://backend.mesh/";
    reaches(&web, &[url], "backend-1").await?;
    reaches(&web, &["http://v2.mesh/"], "v2-1").await?;

    mesh.apply(&route(
        "MeshHTTPRoute",
        "    - matches: [{headers: [{name: x-version, value: '2'}]}]\n      default: {backendRefs: [{kind: MeshService, name: v2}]}\n",
    ))
    .await?;
    for name in [url, "http://backend.svc.west.mesh.local:8080/"] {
        reaches(&web, &["-H", "x-version: 2", name], "v2-1").await?;
        reaches(&web, &[name], "backend-1").await?;
    }

    // Shares are exact, not likely.
    let split = |first: u32, second: u32| {
        route(
            "MeshHTTPRoute",
            &format!(
                "    - matches: [{{path: {{type: PathPrefix, value: /}}}}]\n      default: {{backendRefs: [{{kind: MeshService, name: backend, weight: {first}}}, {{kind: MeshService, name: v2, weight: {second}}}]}}\n"
            ),
        )
    };
    mesh.apply(&split(0, 1)).await?;
    reaches(&web, &[url], "v2-1").await?;
    mesh.apply(&split(90, 10)).await?;
    reaches(&web, &[url], "backend-1").await?;
    ensure!(shares(&web, url, 100).await? == (90, 10));

    // Whose backend is not there is refused, and says so.
    mesh.apply(&route(
        "MeshHTTPRoute",
        "    - matches: [{path: {type: Exact, value: /gone}}]\n      default: {backendRefs: [{kind: MeshService, name: v3}]}\n",
    ))
    .await?;
    curl_until(&web, &["http://backend.mesh/gone"], "no backend", |said| {
        said.contains("there is no MeshService v3") && said.ends_with("500")
    })
    .await?;
    mesh.meridian(&["delete", "meshhttproute", "backend"]).await?;
    reaches(&web, &["http://backend.mesh/gone"], "backend-1").await
}

#[tokio::test]
async fn requests_are_changed_redirected_and_mirrored() -> Result<()> {
    let mut mesh = Mesh::start("filters", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let audit = mesh.workload("east", &Workload::http("audit-1", "audit")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    reaches(&web, &["http://backend.mesh/"], "backend-1").await?;
    reaches(&web, &["http://audit.mesh/"], "audit-1").await?;
    mesh.apply(&route(
        "MeshHTTPRoute",
        "    - matches: [{path: {type: PathPrefix, value: /old}}]
      default:
        filters:
        - {type: RequestRedirect, requestRedirect: {scheme: https, hostname: www.example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}}
    - matches: [{path: {type: PathPrefix, value: /api}}]
      default:
        filters:
        - {type: URLRewrite, urlRewrite: {hostname: inner.example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-route, value: api}]}}
        - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-by, value: route}]}}
    - matches: [{path: {type: PathPrefix, value: /copied}}]
      default:
        filters:
        - {type: RequestMirror, requestMirror: {backendRef: {kind: MeshService, name: audit}}}
",
    ))
    .await?;
    let said = curl_until(&web, &["-i", "http://backend.mesh/old/x?q=1"], "a redirect", |said| {
        said.ends_with("301")
    })
    .await?;
    ensure!(said.contains("location: https://www.example.com/new/x?q=1"), "{said}");
    let said = web.curl(&["-i", "http://backend.mesh/api/items"]).await?;
    for part in ["x-by: route", "\"path\":\"/v1/items\"", "\"x-route\":\"api\"", "inner.example.com"] {
        ensure!(said.contains(part), "{part} is not in: {said}");
    }
    let copies = async || -> Result<u64> {
        let text = audit.host.run(&["curl", "-sS", "-f", "http://127.0.0.1:9902/metrics"]).await?;
        let series = "meridian_proxy_requests_total{direction=\"inbound\",name=\"audit\",class=\"2xx\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        Ok(line.unwrap_or("0").parse()?)
    };
    let before = copies().await?;
    for _ in 0..5 {
        let said = web.curl(&["-d", "a body", "http://backend.mesh/copied"]).await?;
        ensure!(app(&said)? == "backend-1", "{said}");
    }
    until("the copies", DEADLINE, || async {
        let now = copies().await?;
        ensure!(now == before + 5, "{before} before, {now} now");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn connections_are_shared_out_too() -> Result<()> {
    let mut mesh = Mesh::start("tcpsplit", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    // Opaque to the mesh, so that the client can see who answers.
    let tcp = |name, service| Workload { protocol: "tcp".to_owned(), ..Workload::http(name, service) };
    let _v2 = mesh.workload("east", &tcp("v2-1", "v2")).await?;
    let _backend = mesh.workload("west", &tcp("backend-1", "backend")).await?;
    let url = "http://backend.mesh/";
    reaches(&web, &[url], "backend-1").await?;
    reaches(&web, &["http://v2.mesh/"], "v2-1").await?;
    let split = |first: u32, second: u32| {
        route(
            "MeshTCPRoute",
            &format!(
                "    - default: {{backendRefs: [{{kind: MeshService, name: backend, weight: {first}}}, {{kind: MeshService, name: v2, weight: {second}}}]}}\n"
            ),
        )
    };
    mesh.apply(&split(0, 1)).await?;
    reaches(&web, &[url], "v2-1").await?;
    mesh.apply(&split(3, 1)).await?;
    reaches(&web, &[url], "backend-1").await?;
    ensure!(shares(&web, url, 12).await? == (9, 3));
    mesh.meridian(&["delete", "meshtcproute", "backend"]).await?;
    until("the service alone", DEADLINE, || async {
        ensure!(shares(&web, url, 4).await? == (4, 0));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn requests_are_sent_out_of_the_mesh_and_back_into_it() -> Result<()> {
    let mut mesh = Mesh::start("routesout", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&crate::attack::mes("plain", "other.example.com", "80", "")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let outside = "http://plain.extsvc.mesh.local";
    reaches(&web, &["http://backend.mesh/"], "backend-1").await?;
    curl_until(&web, &[outside], "what is outside", |said| said.ends_with("200")).await?;
    let own = app(&web.curl(&[outside]).await?)?;

    // Half of a service's calls leave the mesh, with another name.
    mesh.apply(&route(
        "MeshHTTPRoute",
        "    - matches: [{path: {type: PathPrefix, value: /half}}]\n      default: {backendRefs: [{kind: MeshService, name: backend}, {kind: MeshExternalService, name: plain}]}\n    \
         - matches: [{path: {type: PathPrefix, value: /out}}]\n      default: {backendRefs: [{kind: MeshExternalService, name: plain}]}\n",
    ))
    .await?;
    let said = curl_until(&web, &["http://backend.mesh/out"], "the way out", |said| {
        app(said).is_ok_and(|app| app == own)
    })
    .await?;
    ensure!(said.contains("other.example.com"), "{said}");
    let mut left = 0;
    for _ in 0..8 {
        left += usize::from(app(&web.curl(&["http://backend.mesh/half"]).await?)? == own);
    }
    ensure!(left == 4, "{left} of 8");

    // What is outside has routes of its own.
    mesh.apply(
        "type: MeshHTTPRoute
mesh: default
name: plain
spec:
  to:
  - targetRef: {kind: MeshExternalService, name: plain}
    rules:
    - matches: [{path: {type: PathPrefix, value: /in}}]
      default: {backendRefs: [{kind: MeshService, name: backend}]}
    - matches: [{path: {type: PathPrefix, value: /api}}]
      default:
        filters:
        - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-route, value: api}]}}
",
    )
    .await?;
    reaches(&web, &[&format!("{outside}/in")], "backend-1").await?;
    let said = web.curl(&[&format!("{outside}/api/items")]).await?;
    for part in ["\"path\":\"/v1/items\"", "\"x-route\":\"api\""] {
        ensure!(said.contains(part), "{part} is not in: {said}");
    }
    // Whom the destination does not name stays in, whatever routes say.
    mesh.apply(&EVERYTHING.replace("{kind: Mesh}\n  from", "{kind: MeshService, name: backend}\n  from"))
        .await?;
    curl_until(&web, &["-i", "http://backend.mesh/out"], "the refusal", |said| {
        said.ends_with("403") && said.contains("x-meridian-denied: no-permission")
    })
    .await?;
    reaches(&web, &[&format!("{outside}/in")], "backend-1").await
}
