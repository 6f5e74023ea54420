//! A control plane without mesh behind it, and a client that sends what it is told to.

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use meridian_api::access::{ADMIN, Access, User};
use meridian_api::report::ZoneReport;
use meridian_api::server::{Bounds, serve};
use meridian_api::{Api, Effects, Hooks, Problem, ProxyConfigRequest, Role, RotateCa, TokenRequest, Write};
use meridian_core::Resource;
use meridian_store::{KeyRing, Options, Store};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Tokens are names here: `admin`, `user`; others are not good.
#[derive(Default)]
pub(crate) struct FakeHooks {
    pub(crate) reports: Mutex<Vec<ZoneReport>>,
}

impl Hooks for FakeHooks {
    fn authenticate(&self, token: &str) -> Result<User, String> {
        match token {
            "admin" => Ok(User::authenticated("jo", vec![ADMIN.to_owned()])),
            "user" => Ok(User::authenticated("kim", vec![])),
            _ => Err("the token is revoked".to_owned()),
        }
    }

    fn before_put<'a>(&'a self, write: Write<'a>) -> BoxFuture<'a, Result<Effects, Problem>> {
        let warned = write.resource.labels.contains_key("warn");
        Box::pin(async move {
            let warnings = if warned { vec!["from the hook".to_owned()] } else { vec![] };
            Ok(Effects { changes: vec![], warnings })
        })
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<ZoneReport>, Problem>> {
        Box::pin(async { Ok(self.reports.lock().unwrap().clone()) })
    }

    fn issue_token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<String, Problem>> {
        Box::pin(async move { Ok(format!("{request:?}")) })
    }

    fn rotate_ca<'a>(
        &'a self,
        _user: &'a User,
        mesh: &'a str,
        what: RotateCa,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(async move { Ok(json!({"mesh": mesh, "did": format!("{what:?}")})) })
    }

    fn proxy_config<'a>(
        &'a self,
        dataplane: &'a Resource,
        asked: ProxyConfigRequest,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        let ProxyConfigRequest { shadow, diff } = asked;
        let text = format!("{} shadow {shadow} diff {diff}", dataplane.key.name);
        Box::pin(async move { Ok(json!({"asked": text})) })
    }

    fn config(&self) -> Value {
        json!({"mode": "test"})
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) hooks: Arc<FakeHooks>,
    pub(crate) store: Store,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Fields and reasons of an error.
    #[track_caller]
    pub(crate) fn invalid(&self) -> Vec<(String, String)> {
        let body = self.json();
        let of = |item: &Value, field: &str| item[field].as_str().unwrap_or_default().to_owned();
        body["invalid_parameters"]
            .as_array()
            .map(|items| items.iter().map(|item| (of(item, "field"), of(item, "reason"))).collect())
            .unwrap_or_default()
    }

    pub(crate) fn etag(&self) -> String {
        self.headers[http::header::ETAG].to_str().unwrap().to_owned()
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Role::Global, Access::default(), Bounds::default()).await
    }

    pub(crate) async fn zone() -> Self {
        Self::with(Role::Zone { name: "east".to_owned() }, Access::default(), Bounds::default()).await
    }

    pub(crate) async fn with(role: Role, access: Access, bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyRing::load_or_create(&dir.path().join("key")).unwrap();
        let url = format!("sqlite:{}", dir.path().join("test.db").display());
        let store = Store::open(Options::new(url, keys, "test")).await.unwrap();
        let hooks = Arc::new(FakeHooks::default());
        let api =
            Api { store: store.clone(), role, access, hooks: hooks.clone(), instance: "instance".to_owned() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, None, api.router(), bounds, stop.clone()));
        Self { address, hooks, store, _stop: stop.drop_guard(), _dir: dir }
    }

    /// As an administrator.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[("authorization", "Bearer admin")], "").await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, &[("authorization", "Bearer admin")], &body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[("authorization", "Bearer admin")], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[("authorization", "Bearer admin")], &body.to_string()).await
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", "cp.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    /// The mesh that most tests need.
    pub(crate) async fn mesh(&self, name: &str) {
        let answer = self.put(&format!("/meshes/{name}"), json!({"type": "Mesh", "name": name})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

/// An ExternalService.
pub(crate) fn external(name: &str, address: &str) -> Value {
    json!({
        "type": "ExternalService",
        "mesh": "default",
        "name": name,
        "tags": {"kuma.io/service": name, "kuma.io/protocol": "http"},
        "networking": {"address": address},
    })
}
