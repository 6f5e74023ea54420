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
    let written = rest(port, "PUT", "/meshes/default/meshratelimits/try", "", &limit.to_string()).await;
    assert!(written.starts_with("HTTP/1.1 201"), "{written}");
    until("it says what would change", async || {
        let answer = config("?shadow=true&include=diff").await;
        let texts: Vec<&str> =
            answer["changes"].as_array().into_iter().flatten().filter_map(|it| it["text"].as_str()).collect();
        texts.iter().any(|text| {
            text.starts_with("calls to this sidecar's inbound 8080 (web): rate limit of requests: also")
        })
    })
    .await;
    assert_eq!(config("").await["xds"]["Inbound"]["8080"], held, "it is in force nowhere");
    proxy.leave().await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn global_asks_the_zone_that_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let (at_global, at_zone) = (dir.path().join("global"), dir.path().join("zone"));
    std::fs::create_dir(&at_zone).unwrap();
    let (api, sync) = (free_address(), free_address());
    let config = meridian_global_cp::Config {
        data_dir: Some(at_global.clone()),
        api_http: Some(api),
        api_https: Some(free_address()),
        sync_listen: Some(sync),
        diagnostics: Some(free_address()),
        ..Default::default()
    };
    let stop_global = CancellationToken::new();
    let global = tokio::spawn(meridian_global_cp::run(config, stop_global.clone()));
    until("global is there", async || tokio::net::TcpStream::connect(api).await.is_ok()).await;
    let admin = std::fs::read_to_string(at_global.join("admin-token")).unwrap();
    let body = r#"{"zone": "east", "scope": ["cp"], "validFor": "1h"}"#;
    let answer = rest(api.port(), "POST", "/tokens/zone", &admin, body).await;
    let token = answer.split("\r\n\r\n").nth(1).unwrap().trim().to_owned();
    std::fs::write(dir.path().join("token"), token).unwrap();
    let zone = Zone::start_with(&at_zone, |config| {
        config.global_address = Some(format!("https://127.0.0.1:{}", sync.port()));
        config.ca_cert_file = Some(at_global.join("ca.crt"));
        config.zone_token_file = Some(dir.path().join("token"));
    })
    .await;
    let resource = dataplane("east", "web-1", "web", "192.0.2.1", 8080, "http");
    let change = Change::Put { resource, expect: Expect::Any };
    zone.store.write(&Author::new("jo", "api"), vec![change]).await.unwrap();

    let name = meridian_core::names::hashed("default", "web-1", "east", "");
    let path = format!("/meshes/default/dataplanes/{name}/_config?include=diff");
    until("global answers with what the zone says", async || {
        let answer = rest(api.port(), "GET", &path, &admin, "").await;
        let body: serde_json::Value =
            serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default();
        body["xds"]["Inbound"]["8080"]["service"] == "web" && body["changes"] == json!([])
    })
    .await;

    zone.stop().await;
    until("a zone that is away is told, and how to ask it", async || {
        let answer = rest(api.port(), "GET", &path, &admin, "").await;
        answer.starts_with("HTTP/1.1 503") && answer.contains("meridian inspect dataplane web-1")
    })
    .await;
    stop_global.cancel();
    global.await.unwrap().unwrap();
}
