//! What a sidecar is told, asked over REST while the sidecar holds it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_holds_and_what_a_policy_that_is_tried_out_would_change() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::new();
    global.seed(dir.path()).await;
    let zone = Zone::start(dir.path()).await;
    let mut proxy = Proxy::connect(&zone, &global.token("web-1", "web").text, &web());
    let held = proxy.has("Inbound", "8080").await;
    let port = zone.bound.api_http.port();
    let config = async |query: &str| -> serde_json::Value {
        let path = format!("/meshes/default/dataplanes/web-1/_config{query}");
        let answer = rest(port, "GET", &path, "", "").await;
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default()
    };
    let held: serde_json::Value = serde_json::from_slice(&held.body).unwrap();
    until("it is shown as it is held", async || config("").await["xds"]["Inbound"]["8080"] == held).await;

    let limit = json!({
        "type": "MeshRateLimit", "mesh": "default", "name": "try", "labels": {"kuma.io/effect": "shadow"},
        "spec": {"targetRef": {"kind": "Dataplane"}, "rules": [{"default": {"local": {"http": {"requestRate": {"num": 5, "interval": "1s"}}}}}]},
    });
    let path = "/meshes/default/meshratelimits/try";
    // More than once: by then nothing else happens that would have the zone look again.
    for _ in 0..3 {
        let written = rest(port, "PUT", path, "", &limit.to_string()).await;
        assert!(written.starts_with("HTTP/1.1 201"), "{written}");
        until("it says what would change", async || {
            let answer = config("?shadow=true&include=diff").await;
            let changes = answer["changes"].as_array().into_iter().flatten();
            changes.filter_map(|it| it["text"].as_str()).any(|text| {
                text.starts_with("calls to this sidecar's inbound 8080 (web): rate limit of requests: also")
            })
        })
        .await;
        assert_eq!(config("").await["xds"]["Inbound"]["8080"], held, "it is in force nowhere");
        let deleted = rest(port, "DELETE", path, "", "").await;
        assert!(deleted.starts_with("HTTP/1.1 200"), "{deleted}");
        let gone = async || config("?shadow=true&include=diff").await["changes"] == json!([]);
        until("nothing would change", gone).await;
    }
    proxy.leave().await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn global_asks_the_zone_that_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let at_zone = dir.path().join("zone");
    std::fs::create_dir(&at_zone).unwrap();
    let global = RealGlobal::start(dir.path()).await;
    let zone = Zone::start_with(&at_zone, global.joined()).await;
    let resource = dataplane("east", "web-1", "web", "192.0.2.1", 8080, "http");
    let change = Change::Put { resource, expect: Expect::Any };
    zone.store.write(&Author::new("jo", "api"), vec![change]).await.unwrap();

    let name = meridian_core::names::hashed("default", "web-1", "east", "");
    let path = format!("/meshes/default/dataplanes/{name}/_config?include=diff");
    until("global answers with what the zone says", async || {
        let answer = global.ask("GET", &path, "").await;
        let body: serde_json::Value =
            serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default();
        body["xds"]["Inbound"]["8080"]["service"] == "web" && body["changes"] == json!([])
    })
    .await;

    zone.stop().await;
    until("a zone that is away is told, and how to ask it", async || {
        let answer = global.ask("GET", &path, "").await;
        answer.starts_with("HTTP/1.1 503") && answer.contains("meridian inspect dataplane web-1")
    })
    .await;
    global.stop().await;
}
