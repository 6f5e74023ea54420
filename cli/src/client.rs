//! The REST API, over one connection that is kept while the command runs.

use crate::connection::Address;
use crate::failure::{Exit, Failure, Result};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer read: the largest page of the largest resources.
const MAX_ANSWER: usize = 1 << 30;
/// For TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Client {
    address: Address,
    token: Option<String>,
    tls: Option<Arc<rustls::ClientConfig>>,
    timeout: Duration,
    open: Option<SendRequest<Full<Bytes>>>,
}

/// What the control plane said.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl Client {
    pub(crate) fn new(
        address: Address,
        token: Option<String>,
        tls: Option<rustls::ClientConfig>,
        timeout: Duration,
    ) -> Self {
        Self { address, token, tls: tls.map(Arc::new), timeout, open: None }
    }

    /// The JSON of a path (query included).
    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, None).await?.success()?.json()
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::POST, path, Some(body)).await?.success()
    }

    /// Any answer, errors included.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let wait = self.timeout;
        let address = self.address.to_string();
        tokio::time::timeout(wait, self.exchange(method, path, body)).await.unwrap_or_else(|_| {
            Err(Failure::new(Exit::Unavailable, format!("{address} did not answer within {wait:?}"))
                .next("The request may or may not have been carried out. --api-timeout waits longer."))
        })
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let kept = self.open.take().filter(|open| !open.is_closed());
        let mut open = match kept {
            Some(open) => open,
            None => self.connect().await?,
        };
        let broken = |error: hyper::Error| {
            Failure::of(Exit::Unavailable, format!("the connection to {} broke", self.address), &error)
        };
        open.ready().await.map_err(broken)?;
        let response = open.send_request(self.request(method, path, body)?).await.map_err(broken)?;
        let status = response.status();
        let collected = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let bytes = collected
            .map_err(|error| {
                Failure::new(Exit::Unavailable, format!("the answer of {} broke off: {error}", self.address))
            })?
            .to_bytes();
        self.open = Some(open);
        Ok(Answer { status, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.authority())
            .header(header::USER_AGENT, concat!("meridian/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            let mut value = header::HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Failure::usage("the token can't stand in a header"))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        request.body(Full::new(bytes)).map_err(|error| Failure::usage(format!("path `{path}`: {error}")))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let target = (self.address.host.as_str(), self.address.port);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|error| self.unreachable(&error))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.handshake(TokioIo::new(stream)).await };
        let name = ServerName::try_from(self.address.host.clone()).map_err(|_| {
            Failure::usage(format!("`{}` is no name that a certificate could have", self.address.host))
        })?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
        self.handshake(TokioIo::new(stream.map_err(|error| self.not_verified(&error))?)).await
    }

    async fn handshake<S>(&self, stream: TokioIo<S>) -> Result<SendRequest<Full<Bytes>>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (open, connection) = http1::handshake(stream).await.map_err(|error| {
            Failure::of(Exit::Unavailable, format!("{} does not speak HTTP", self.address), &error)
        })?;
        // Its errors come out of `send_request` as well.
        tokio::spawn(connection);
        Ok(open)
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        Failure::new(Exit::Unavailable, format!("can't reach a control plane at {}: {error}", self.address))
            .next("Is it running there? --address (or MERIDIAN_API_ADDRESS) names another one.")
    }

    fn not_verified(&self, error: &std::io::Error) -> Failure {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let why = match inner.and_then(meridian_pki::TrustError::of) {
            Some(trust) => trust.to_string(),
            None => error.to_string(),
        };
        Failure::new(Exit::Unavailable, format!("{} can't be verified, so nothing was sent: {why}", self.address))
            .next("Compare --ca-cert-file or --ca-fingerprint with DATA_DIR/ca.crt of that control plane, and --address with its --tls-san.")
    }
}

impl Answer {
    /// The same answer if it says success, else what the control plane found wrong.
    pub(crate) fn success(self) -> Result<Self> {
        if self.status.is_success() { Ok(self) } else { Err(self.failure()) }
    }

    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text)
            .map_err(|error| Failure::new(Exit::Failed, format!("the answer is no JSON: {error}")))
    }

    /// Titles, details and fields of an error answer.
    pub(crate) fn failure(&self) -> Failure {
        let body: Value = serde_json::from_str(&self.text).unwrap_or_default();
        let title = body.get("title").and_then(Value::as_str);
        let mut failure = Failure::new(
            self.exit(),
            title.map_or_else(|| format!("the control plane answered {}", self.status), str::to_owned),
        );
        if let Some(detail) = body.get("detail").and_then(Value::as_str).filter(|detail| !detail.is_empty()) {
            failure = failure.detail(detail);
        }
        for parameter in body.get("invalid_parameters").and_then(Value::as_array).into_iter().flatten() {
            let part = |name: &str| parameter.get(name).and_then(Value::as_str).unwrap_or_default();
            let field =
                Some(part("field")).filter(|field| !field.is_empty()).map(|field| format!("{field}: "));
            failure = failure.detail(format!("{}{}", field.unwrap_or_default(), part("reason")));
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                failure.next("Give a user token with --token-file (or MERIDIAN_API_TOKEN_FILE).")
            }
            StatusCode::FORBIDDEN => failure.next(
                "The token's user is not in a group that may do this; an administrator's token is needed.",
            ),
            _ => failure,
        }
    }

    fn exit(&self) -> Exit {
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Permission,
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Exit::Data
            }
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Exit::Unavailable
            }
            _ => Exit::Failed,
        }
    }
}

/// One segment of a path, or a query's value.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `?a=b&c=d`, or nothing.
pub(crate) fn query(parameters: &[(&str, String)]) -> String {
    let pairs: Vec<String> =
        parameters.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}
