use crate::harness::{Replica, mode};
use crate::zone::{Zone, dataplane, hashed};
use meridian_global_cp::{Config, admin_token};
use meridian_pki::link::{H2, HTTP1, ServerTrust, client_config};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_new_store_begins_with_a_strict_mesh_and_an_admin_token() {
    let global = Replica::start().await;
    assert_eq!(mode(&global.path("admin-token")), 0o600);
    assert_eq!(mode(&global.path("encryption-key")), 0o600);
    let mesh = global.get("/meshes/default").await.json();
    assert_eq!(mesh["mtls"]["backends"][0]["type"], "builtin");
    assert_eq!(mesh["routing"]["zoneEgress"], true);
    assert_eq!(mesh["networking"]["outbound"]["passthrough"], false);
    assert_eq!(global.get("/meshes/default/_overview").await.json()["egressEnforcement"], "egress");
    assert_eq!(global.get("/hostnamegenerators").await.json()["total"], 6);
    let me = global.get("/who-am-i").await.json();
    assert_eq!(me["name"], "mesh-system:admin");
    let raw = std::fs::read(global.path("global.db")).unwrap();
    let found = |needle: &[u8]| raw.windows(needle.len()).any(|window| window == needle);
    assert!(!found(b"PRIVATE KEY"), "keys are sealed");
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back_with_a_restart() {
    let global = Replica::start().await;
    Replica::written(&global.delete("/meshes/default").await);
    assert_eq!(global.get("/meshes/default").await.status, 404);
    let global = Replica::start_in(global.stop().await, None).await;
    assert_eq!(global.get("/meshes").await.json()["total"], 0);
}

#[tokio::test]
async fn a_mesh_goes_with_what_was_written_for_it_and_not_under_its_proxies() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    east.publish(&dataplane("web")).await;
    let path = format!("/meshes/default/dataplanes/{}", hashed("east", &dataplane("web")));
    global.until("the Dataplane", &path, |_| true).await;
    let refused = global.delete("/meshes/default").await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.text.contains("1 dataplanes attached"), "{refused:?}");
    east.withdraw("Dataplane", "default/east/web");
    global.until("no Dataplane", "/dataplanes", |list| list["total"] == 0).await;
    let api = crate::harness::external("api", None);
    Replica::written(&global.put("/meshes/default/external-services/api", api).await);
    Replica::written(&global.delete("/meshes/default").await);
    assert_eq!(global.get("/external-services").await.json()["total"], 0);
    east.until_lacks("TrustBundle", "default//default").await;
    east.until_lacks("TokenKey", "//dataplane.default.1").await;
    assert_eq!(global.post("/tokens/dataplane", json!({"name": "web", "mesh": "default"})).await.status, 400);
    // A mesh of the same name is another one.
    Replica::written(&global.put("/meshes/default", json!({"type": "Mesh", "name": "default"})).await);
    assert_eq!(global.post("/tokens/dataplane", json!({"name": "web", "mesh": "default"})).await.status, 200);
}

#[tokio::test]
async fn tokens_of_the_wrong_kind_expired_and_revoked_are_refused() {
    use base64::{
        Engine,
        engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    };
    let global = Replica::start().await;
    let user = |body| {
        let global = &global;
        async move { global.post("/tokens/user", body).await.text }
    };
    let admin = user(json!({"name": "jo", "groups": ["mesh-system:admin"], "validFor": "1h"})).await;
    let reader = user(json!({"name": "kim", "validFor": "1h"})).await;
    let expired = user(json!({"name": "kim", "validFor": "1ns"})).await;
    let zone = global.zone_token("east").await;
    let status = |token: &str, method: &'static str, path: &'static str| {
        let (global, token) = (&global, token.to_owned());
        async move { global.call(method, path, Some(&token), "{}").await.status }
    };
    assert_eq!(status(&admin, "GET", "/meshes/default/secrets").await, 200);
    assert_eq!(status(&reader, "GET", "/meshes").await, 200);
    assert_eq!(status(&reader, "GET", "/meshes/default/secrets").await, 403);
    assert_eq!(status(&reader, "DELETE", "/meshes/default").await, 403);
    assert_eq!(status(&expired, "GET", "/meshes").await, 401);
    assert_eq!(status(&zone, "GET", "/meshes").await, 401);
    let claims = URL_SAFE_NO_PAD.decode(reader.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let list = STANDARD.encode(format!("other, {}", claims["jti"].as_str().unwrap()));
    let secret = json!({"type": "GlobalSecret", "name": "user-token-revocations", "data": list});
    Replica::written(&global.put("/global-secrets/user-token-revocations", secret).await);
    let refused = async || {
        anyhow::ensure!(status(&reader, "GET", "/meshes").await == 401, "still good");
        Ok(())
    };
    meridian_testkit::wait::until("the revocation", meridian_testkit::wait::DEADLINE, refused).await.unwrap();
    assert_eq!(status(&admin, "GET", "/meshes").await, 200);
    Replica::written(&global.delete("/global-secrets/user-token-revocations").await);
    let good = async || {
        anyhow::ensure!(status(&reader, "GET", "/meshes").await == 200, "still revoked");
        Ok(())
    };
    meridian_testkit::wait::until("its end", meridian_testkit::wait::DEADLINE, good).await.unwrap();
}

#[tokio::test]
async fn another_admin_token_from_store_and_key() {
    let global = Replica::start().await;
    let config = Config { data_dir: global.config.data_dir.clone(), ..Config::default() };
    let data = global.stop().await;
    let token = admin_token(config).await.unwrap();
    let global = Replica::start_in(data, None).await;
    assert_eq!(global.call("GET", "/secrets", Some(&token), "").await.status, 200);
}

#[tokio::test]
async fn https_with_the_exported_ca_and_with_no_other() {
    let global = Replica::start().await;
    let ask = |trust: ServerTrust| {
        let address = global.bound.api_https;
        async move {
            let config = client_config(trust, None, &[HTTP1])?;
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = rustls_pki_types::ServerName::try_from("localhost")?;
            let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            anyhow::Ok(text)
        }
    };
    assert!(ask(global.trust()).await.unwrap().starts_with("HTTP/1.1 200"));
    let other = Replica::start().await;
    assert!(ask(other.trust()).await.is_err(), "another CA");
    let _ = H2;
}

#[tokio::test]
async fn no_secret_in_the_configuration() {
    let global = Replica::start().await;
    let config = global.get("/config").await;
    assert_eq!(config.json()["store"], json!({"type": "sqlite"}));
    assert!(!config.text.contains("PRIVATE"));
}

#[tokio::test]
async fn diagnostics() {
    let global = Replica::start().await;
    let _east = Zone::start("east", &global).await;
    let ask = |path: &'static str| {
        let address = global.bound.diagnostics;
        async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        }
    };
    for path in ["/ready", "/healthy"] {
        assert!(ask(path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(ask("/metrics").await.contains("meridian_zone_connected{zone=\"east\"} 1"));
}

#[tokio::test]
async fn the_page_of_metrics_is_what_is_scraped() {
    let global = Replica::start().await;
    let _east = crate::zone::Zone::start("east", &global).await;
    let scraped = global.scrape().await;
    let named: BTreeSet<&str> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let page = include_str!("../../../docs/metrics.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Global")).unwrap();
    let told: BTreeSet<&str> = section.split('`').filter(|word| word.starts_with("meridian_")).collect();
    assert_eq!(told, named);
}
