//! An HTTP application that tells what it saw.
//!
//! `/` and any other path: JSON of the request. `/echo`: the body (and trailers) back as it comes. `/ticks`: a line
//! every 50 ms, without end. `/trailers`: a trailer after the body. `/status/N`: that status. `/slow/N`: after N ms.
//! `/every/N`: of all such requests each N-th is answered 200, the others 503. `/only/NAME`: 200 from the application of
//! that name, 503 from others. `/websocket`: echo.

use super::{announce, websocket};
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

pub(super) type Body = BoxBody<Bytes, hyper::Error>;

pub(super) fn tls_config(
    cert: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<Arc<rustls::ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for root in CertificateDer::pem_file_iter(path)? {
                roots.add(root?)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

pub(super) async fn serve(
    listen: SocketAddr,
    name: String,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    announce(listen);
    let name: Arc<str> = name.into();
    loop {
        let (stream, peer) = listener.accept().await?;
        let (name, tls) = (Arc::clone(&name), tls.clone());
        tokio::spawn(async move {
            let _ = connection(stream, peer, name, tls).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    name: Arc<str>,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<()> {
    match tls {
        None => requests(stream, peer, name, String::new()).await,
        Some(config) => {
            let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
            let server_name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
            requests(stream, peer, name, server_name).await
        }
    }
}

async fn requests<S>(stream: S, peer: SocketAddr, name: Arc<str>, server_name: String) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (name, server_name) = (Arc::clone(&name), server_name.clone());
        async move {
            if request.uri().path() == "/echo" {
                return echo(request).await;
            }
            if let Some(millis) = number(request.uri().path(), "/slow/") {
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            Ok::<_, hyper::Error>(answer(request, peer, &name, &server_name))
        }
    });
    auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(|error| anyhow::anyhow!(error))
}

fn answer(request: Request<Incoming>, peer: SocketAddr, name: &str, server_name: &str) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/ticks" => Response::new(ticks()),
        "/trailers" => with_trailers(),
        "/websocket" => websocket::accept(request)
            .map(|()| Full::new(Bytes::new()).map_err(|never| match never {}).boxed()),
        path if path.starts_with("/only/") => {
            status(if path.strip_prefix("/only/") == Some(name) { 200 } else { 503 })
        }
        path => match (number(path, "/status/"), number(path, "/every/")) {
            (Some(code), _) => status(u16::try_from(code).unwrap_or_default()),
            (None, Some(n)) => {
                static COUNT: AtomicU64 = AtomicU64::new(0);
                let is_its_turn = (COUNT.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(n);
                status(if is_its_turn { 200 } else { 503 })
            }
            (None, None) => Response::new(full(describe(&request, peer, name, server_name))),
        },
    }
}

fn number(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}

fn status(code: u16) -> Response<Body> {
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
    response
}

/// The body as it comes. The answer starts with its first piece, so that a client that waits for `100 Continue` gets it.
async fn echo(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let mut body = request.into_body();
    let Some(first) = body.frame().await else { return Ok(Response::new(full(String::new()))) };
    let first = futures::stream::iter([Ok(first?)]);
    let rest = http_body_util::BodyStream::new(body);
    Ok(Response::new(BodyExt::boxed(StreamBody::new(futures::StreamExt::chain(first, rest)))))
}

fn describe(request: &Request<Incoming>, peer: SocketAddr, name: &str, server_name: &str) -> String {
    let headers: BTreeMap<&str, String> = request
        .headers()
        .iter()
        .map(|(key, value)| (key.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let seen = serde_json::json!({
        "app": name,
        "peer": peer.ip().to_string(),
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "authority": request.uri().authority().map(ToString::to_string),
        "version": format!("{:?}", request.version()),
        "serverName": server_name,
        "headers": headers,
    });
    format!("{seen}\n")
}

fn ticks() -> Body {
    let stream = futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Some((Ok(Frame::data(Bytes::from_static(b"tick\n"))), ()))
    });
    BodyExt::boxed(StreamBody::new(stream))
}

fn with_trailers() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("42"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"body\n"))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))));
    response.headers_mut().insert("trailer", http::HeaderValue::from_static("x-sum"));
    response
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}
