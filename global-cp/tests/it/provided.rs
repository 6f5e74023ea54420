//! A mesh whose user provides its root.

use super::harness::{Answer, Replica};
use super::zone::Zone;
use base64::{Engine, engine::general_purpose::STANDARD};
use meridian_pki::{RootCa, SpkiHash, certificates_from_pem};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// A CA as somebody has it who has nothing to do with the mesh.
struct Ca {
    certificate: String,
    key: String,
    hash: String,
}

impl Ca {
    fn new() -> Self {
        let root = RootCa::generate("corp", OffsetDateTime::now_utc()).unwrap();
        let authority = root.authority();
        Self {
            certificate: authority.certificate_pem(),
            key: authority.key().to_pem().to_string(),
            hash: authority.key().spki_hash().to_string(),
        }
    }
}

async fn secret(global: &Replica, mesh: &str, name: &str, text: &str) {
    let mut body = json!({"type": "Secret", "mesh": mesh, "name": name, "data": STANDARD.encode(text)});
    if name.ends_with("-key") {
        body["labels"] = json!({"kuma.io/kds-sync": "disabled"});
    }
    Replica::written(&global.put(&format!("/meshes/{mesh}/secrets/{name}"), body).await);
}

async fn secrets(global: &Replica, mesh: &str, ca: &Ca) {
    secret(global, mesh, "ca-cert", &ca.certificate).await;
    secret(global, mesh, "ca-key", &ca.key).await;
}

fn backend(backend: Value) -> Value {
    json!({"enabledBackend": "ca", "backends": [backend]})
}

fn provided() -> Value {
    let conf = json!({"cert": {"secret": "ca-cert"}, "key": {"secret": "ca-key"}});
    backend(json!({"name": "ca", "type": "provided", "conf": conf}))
}

async fn mesh(global: &Replica, name: &str, mtls: Option<Value>) -> Answer {
    let mut body = json!({"type": "Mesh", "name": name});
    if let Some(mtls) = mtls {
        body["mtls"] = mtls;
    }
    global.put(&format!("/meshes/{name}"), body).await
}

async fn roots(global: &Replica, mesh: &str) -> Value {
    global.get(&format!("/meshes/{mesh}/_rotate-ca")).await.json()["roots"].clone()
}

#[tokio::test]
async fn zones_are_signed_by_it_and_nobody_sees_its_key() {
    let global = Replica::start().await;
    let ca = Ca::new();
    Replica::written(&mesh(&global, "corp", None).await);
    secrets(&global, "corp", &ca).await;
    let written = mesh(&global, "corp", Some(provided())).await;
    Replica::written(&written);
    assert!(!written.text.contains("rotate-ca"), "{written:?}");
    assert_eq!(roots(&global, "corp").await, json!([ca.hash]));

    let zone = Zone::start("east", &global).await;
    let signed = zone.disk.intermediate(&global, "corp").await.unwrap();
    let of_root = SpkiHash::of_certificate(&signed.roots[0]).unwrap().to_string();
    assert_eq!(of_root, ca.hash);
    let bundle = zone.until_holds("TrustBundle", "corp//default").await;
    let pem = bundle["spec"]["roots"][0].as_str().unwrap();
    assert_eq!(certificates_from_pem(pem).unwrap(), certificates_from_pem(&ca.certificate).unwrap());
    let seen = zone.until_holds("Mesh", "//corp").await;
    assert_eq!(seen["spec"]["mtls"]["backends"][0]["conf"], provided()["backends"][0]["conf"]);
    assert_eq!(zone.names("Secret"), Vec::<String>::new());
    // Whoever else names it: the root's key stays where it is.
    let mut entry = super::harness::external("api", Some("ca-key"));
    entry["mesh"] = json!("corp");
    Replica::written(&global.put("/meshes/corp/external-services/api", entry.clone()).await);
    zone.until_holds("ExternalService", "corp//api").await;
    assert_eq!(zone.names("Secret"), Vec::<String>::new());
    entry["networking"]["tls"]["caCert"]["secret"] = json!("ca-cert");
    Replica::written(&global.put("/meshes/corp/external-services/api", entry).await);
    zone.until_holds("Secret", "corp//ca-cert").await;
    assert_eq!(zone.names("Secret"), ["corp//ca-cert"]);
    // Written again, nothing is asked of what it came from, which may be gone.
    Replica::written(&global.delete("/meshes/corp/secrets/ca-key").await);
    let mut permissive = provided();
    permissive["backends"][0]["mode"] = json!("PERMISSIVE");
    Replica::written(&mesh(&global, "corp", Some(permissive)).await);
    zone.disk.intermediate(&global, "corp").await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_a_root_is_refused_at_the_write() {
    let global = Replica::start().await;
    let (ca, other) = (Ca::new(), Ca::new());
    Replica::written(&mesh(&global, "corp", None).await);
    let refused = async |reason: &str| {
        let answer = mesh(&global, "corp", Some(provided())).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.text.contains(reason) && answer.text.contains("mtls.backends[0].conf"), "{answer:?}");
        assert!(!answer.text.contains(ca.key.lines().nth(1).unwrap()), "no key in an error");
    };
    refused("there is no Secret ca-cert in mesh corp").await;
    secret(&global, "corp", "ca-cert", &ca.certificate).await;
    refused("there is no Secret ca-key in mesh corp").await;
    let key = json!({"type": "Secret", "mesh": "corp", "name": "ca-key", "data": STANDARD.encode(&ca.key)});
    Replica::written(&global.put("/meshes/corp/secrets/ca-key", key).await);
    refused("must have the label kuma.io/kds-sync: disabled").await;
    secret(&global, "corp", "ca-key", &other.key).await;
    refused("does not belong to the certificate").await;
    secret(&global, "corp", "ca-key", &ca.key).await;
    secret(&global, "corp", "ca-cert", &ca.key).await;
    refused("not a usable certificate").await;
    secret(&global, "corp", "ca-cert", &ca.certificate).await;
    Replica::written(&mesh(&global, "corp", Some(provided())).await);
}

#[tokio::test]
async fn roots_are_changed_by_rotation_and_by_nothing_else() {
    let global = Replica::start().await;
    let (first, second) = (Ca::new(), Ca::new());
    let builtin = backend(json!({"name": "ca", "type": "builtin"}));
    Replica::written(&mesh(&global, "corp", Some(builtin.clone())).await);
    let made = roots(&global, "corp").await;
    let rotated = async |expected: &dyn Fn(&Value) -> bool| {
        assert_eq!(global.post("/meshes/corp/_rotate-ca", json!({})).await.status, 202);
        let path = "/meshes/corp/_rotate-ca";
        global.until("the end", path, |state| state["phase"] == "idle" && expected(&state["roots"])).await;
    };

    secrets(&global, "corp", &first).await;
    let written = mesh(&global, "corp", Some(provided())).await;
    Replica::written(&written);
    assert!(written.text.contains("meridian mesh rotate-ca corp"), "{written:?}");
    assert_eq!(roots(&global, "corp").await, made, "nobody's trust is taken away by a write");
    rotated(&|roots| *roots == json!([first.hash])).await;

    let again = global.post("/meshes/corp/_rotate-ca", json!({})).await;
    assert_eq!(again.status, 409, "{again:?}");
    assert!(again.text.contains("write another certificate and key first"), "{again:?}");
    // A new pair in the same secrets waits for the same command.
    secrets(&global, "corp", &second).await;
    assert_eq!(roots(&global, "corp").await, json!([first.hash]));
    rotated(&|roots| *roots == json!([second.hash])).await;

    let written = mesh(&global, "corp", Some(builtin)).await;
    assert!(written.text.contains("meridian mesh rotate-ca corp"), "{written:?}");
    rotated(&|roots| *roots != json!([second.hash]) && roots.as_array().is_some_and(|it| it.len() == 1))
        .await;
}
