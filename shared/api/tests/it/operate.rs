use crate::harness::Server;
use serde_json::json;

#[tokio::test]
async fn tokens_are_text() {
    let server = Server::start().await;
    for (path, body, part) in [
        ("/tokens", json!({"name": "web", "mesh": "default"}), "Dataplane"),
        ("/tokens/dataplane", json!({"name": "web", "tags": {"kuma.io/service": ["web"]}}), "Dataplane"),
        ("/tokens/zone", json!({"zone": "east", "scope": ["cp"], "validFor": "24h"}), "Zone"),
        ("/tokens/user", json!({"name": "kim", "groups": ["a"]}), "User"),
    ] {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text.starts_with(part), "{answer:?}");
        assert_eq!(answer.headers["content-type"], "text/plain");
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
    for body in [json!({"zone": "east", "scop": ["cp"]}), json!([]), json!({"zone": 1})] {
        let answer = server.post("/tokens/zone", body).await;
        assert_eq!(
            (answer.status, answer.json()["title"].as_str()),
            (400, Some("Invalid request")),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn roots_are_rotated_aborted_and_looked_at() {
    let server = Server::start().await;
    let path = "/meshes/default/_rotate-ca";
    let started = server.post(path, json!({})).await;
    assert_eq!((started.status, started.json()["did"].as_str()), (202, Some("Start")));
    assert_eq!(server.post(&format!("{path}?abort=true"), json!({})).await.json()["did"], "Abort");
    assert_eq!(server.get(path).await.json(), json!({"mesh": "default", "did": "Show"}));
}

#[tokio::test]
async fn what_a_role_has_not_says_so() {
    let server = Server::start().await;
    for path in ["/zones/east/_revoke", "/_accept-global"] {
        let answer = server.post(path, json!({})).await;
        assert_eq!(
            (answer.status, answer.json()["title"].as_str()),
            (405, Some("Operation not allowed")),
            "{path}"
        );
    }
    assert_eq!(server.get("/_zone").await.status, 405);
}

#[tokio::test]
async fn the_index_and_the_configuration() {
    let server = Server::start().await;
    let index = server.get("/").await.json();
    assert_eq!((&index["product"], &index["instanceId"]), (&json!("Meridian"), &json!("instance")));
    assert_eq!(index["clusterId"], server.store.store_id().to_string());
    assert_eq!(server.get("/config").await.json(), json!({"mode": "test"}));
}
