//! A replica, and its REST API as an administrator sees it.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use meridian_global_cp::{Bound, Config, run_with};
use meridian_pki::link::ServerTrust;
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Replica {
    pub(crate) bound: Bound,
    pub(crate) config: Config,
    data: Arc<tempfile::TempDir>,
    token: String,
    shutdown: CancellationToken,
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

impl Replica {
    /// With a store of its own.
    pub(crate) async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), None).await
    }

    /// With that store, in that directory.
    pub(crate) async fn start_in(data: Arc<tempfile::TempDir>, store: Option<String>) -> Self {
        let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let config = Config {
            data_dir: Some(data.path().to_owned()),
            store_url: store,
            encryption_key_file: None,
            api_http: any,
            api_https: any,
            sync_listen: any,
            diagnostics: any,
            ..Config::default()
        };
        Self::with(config, data).await
    }

    pub(crate) async fn with(config: Config, data: Arc<tempfile::TempDir>) -> Self {
        let shutdown = CancellationToken::new();
        let (ready, bound) = oneshot::channel();
        let settings = config.clone().resolve().unwrap();
        let task = tokio::spawn(run_with(settings, ready, shutdown.clone()));
        let Ok(bound) = bound.await else { panic!("it did not start: {:?}", task.await) };
        let token = std::fs::read_to_string(data.path().join("admin-token")).unwrap();
        Self { bound, config, data, token, shutdown, task: Some(task) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    pub(crate) fn data(&self) -> Arc<tempfile::TempDir> {
        Arc::clone(&self.data)
    }

    pub(crate) fn trust(&self) -> ServerTrust {
        ServerTrust::from_pem(&std::fs::read_to_string(self.path("ca.crt")).unwrap()).unwrap()
    }

    /// Ends it in order.
    pub(crate) async fn stop(mut self) -> Arc<tempfile::TempDir> {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap().unwrap();
        }
        self.data()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Some(&self.token), "").await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, Some(&self.token), &body.to_string()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, Some(&self.token), &body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, Some(&self.token), "").await
    }

    #[track_caller]
    pub(crate) fn written(answer: &Answer) {
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    }

    /// `/metrics`, as Prometheus would.
    pub(crate) async fn scrape(&self) -> String {
        let answer = Self::at(self.bound.diagnostics, "GET", "/metrics", None, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text
    }

    pub(crate) async fn call(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
        Self::at(self.bound.api_http, method, path, token, body).await
    }

    async fn at(address: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", "cp.test");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, text: String::from_utf8(body.to_vec()).unwrap() }
    }

    pub(crate) async fn zone_token(&self, zone: &str) -> String {
        let answer =
            self.post("/tokens/zone", json!({"zone": zone, "scope": ["cp"], "validFor": "1h"})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text
    }

    /// Waits until what is at `path` satisfies `holds`.
    pub(crate) async fn until(&self, what: &str, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let look = async || {
            let answer = self.get(path).await;
            anyhow::ensure!(answer.status == 200 && holds(&answer.json()), "{}", answer.text);
            Ok(answer.json())
        };
        until(what, DEADLINE, look).await.unwrap()
    }
}

impl Drop for Replica {
    /// As a kill: nobody says goodbye.
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

pub(crate) fn external(name: &str, tls_secret: Option<&str>) -> Value {
    let mut body = json!({
        "type": "ExternalService", "mesh": "default", "name": name,
        "tags": {"kuma.io/service": name, "kuma.io/protocol": "http"},
        "networking": {"address": format!("{name}.test:443")},
    });
    if let Some(secret) = tls_secret {
        body["networking"]["tls"] = json!({"enabled": true, "caCert": {"secret": secret}});
    }
    body
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
