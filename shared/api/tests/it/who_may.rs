use crate::harness::{Server, external};
use meridian_api::Role;
use meridian_api::access::{Access, Grant};
use meridian_api::server::Bounds;
use serde_json::json;

const USER: [(&str, &str); 1] = [("authorization", "Bearer user")];

#[tokio::test]
async fn without_credentials_only_the_open_endpoints_answer() {
    let server = Server::start().await;
    for path in ["/", "/ready", "/healthy"] {
        assert_eq!(server.call("GET", path, &[], "").await.status, 200, "{path}");
    }
    let closed = [
        "/meshes",
        "/zones",
        "/secrets",
        "/config",
        "/who-am-i",
        "/global-insight",
        "/_resources",
        "/policies",
        "/openapi.yaml",
        "/_rejections",
        "/meshes/default/_denials",
        "/dataplanes/_overview",
    ];
    for path in closed {
        let answer = server.call("GET", path, &[], "").await;
        assert_eq!(answer.status, 401, "{path}: {answer:?}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert_eq!(answer.json()["title"], "Could not authenticate a user");
    }
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_an_error_and_not_anonymity() {
    let access = Access { local_is_admin: true, ..Access::default() };
    let server = Server::with(Role::Global, access, Bounds::default()).await;
    assert_eq!(server.call("GET", "/meshes", &[], "").await.status, 200, "local is admin here");
    for header in ["Bearer stolen", "Basic YWRtaW46YWRtaW4=", "admin", "Bearer"] {
        let answer = server.call("GET", "/meshes", &[("authorization", header)], "").await;
        assert_eq!(answer.status, 401, "{header}: {answer:?}");
    }
}

#[tokio::test]
async fn users_read_all_but_secrets_and_write_nothing() {
    let server = Server::start().await;
    server.mesh("default").await;
    for path in
        ["/meshes/default", "/meshes/default/dataplanes", "/zones/_overview", "/config", "/openapi.yaml"]
    {
        assert_eq!(server.call("GET", path, &USER, "").await.status, 200, "{path}");
    }
    let refused = [
        ("GET", "/meshes/default/secrets"),
        ("GET", "/secrets"),
        ("GET", "/global-secrets"),
        ("GET", "/meshes/default/secrets/x"),
        ("PUT", "/meshes/default/external-services/es"),
        ("DELETE", "/meshes/default"),
        ("POST", "/tokens/dataplane"),
        ("POST", "/tokens/zone"),
        ("POST", "/tokens/user"),
        ("POST", "/meshes/default/_rotate-ca"),
        ("POST", "/zones/east/_revoke"),
        ("POST", "/_accept-global"),
    ];
    for (method, path) in refused {
        let answer = server.call(method, path, &USER, &external("es", "h:80").to_string()).await;
        assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
        assert_eq!(answer.json()["title"], "Access Denied");
    }
    assert_eq!(server.get("/meshes/default/external-services").await.json()["total"], 0);
}

#[tokio::test]
async fn lists_of_who_may_what_are_configurable() {
    let kim = Grant { users: vec!["kim".to_owned()], groups: vec![] };
    let access = Access { generate_dp_token: kim, ..Access::default() };
    let server = Server::with(Role::Global, access, Bounds::default()).await;
    assert_eq!(server.call("POST", "/tokens/dataplane", &USER, "{}").await.status, 200);
    assert_eq!(server.call("POST", "/tokens/zone", &USER, "{}").await.status, 403);
}

#[tokio::test]
async fn who_am_i() {
    let server = Server::start().await;
    let me = server.call("GET", "/who-am-i", &USER, "").await.json();
    assert_eq!(me, json!({"name": "kim", "groups": ["mesh-system:authenticated"]}));
}
