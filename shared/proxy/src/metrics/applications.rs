//! Asks one application for its metrics. It is trusted with nothing: neither to answer, nor to end.

use super::exposition::Malformed;
use crate::{capture, io::tune};
use bytes::Bytes;
use http::{
    HeaderValue, Request,
    header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use meridian_proxy_config::metrics::ApplicationMetrics;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};

/// Bytes of one page. The largest in the wild have a few megabytes.
const MAX_PAGE: usize = 4 << 20;

/// The form that is asked for; OpenMetrics is understood where an application knows nothing else.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("text/plain;version=0.0.4,application/openmetrics-text;q=0.5");

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("its path is none: {0}")]
    Path(#[from] http::Error),
    #[error("it answers {0}")]
    Status(http::StatusCode),
    #[error("it answers in a form that is not text")]
    Form,
    #[error("its page is too large")]
    TooLarge,
    #[error("its page is not UTF-8")]
    Encoding,
    #[error("its page is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("it took longer than {0:?}")]
    Late(Duration),
}

/// An application's page.
///
/// # Errors
/// Why there is none by `deadline`.
pub async fn scrape(
    application: &ApplicationMetrics,
    captured: bool,
    deadline: Instant,
) -> Result<String, Failure> {
    let limit = deadline.saturating_duration_since(Instant::now());
    tokio::time::timeout_at(deadline, page(application, captured, limit))
        .await
        .unwrap_or(Err(Failure::Late(limit)))
}

async fn page(application: &ApplicationMetrics, captured: bool, limit: Duration) -> Result<String, Failure> {
    let stream = connect(application.address, captured).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(&application.path)
        .header(HOST, application.address.to_string())
        .header(ACCEPT, ACCEPTED)
        .header(USER_AGENT, "meridian")
        .header("x-prometheus-scrape-timeout-seconds", limit.as_secs_f64().to_string())
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != http::StatusCode::OK {
            return Err(Failure::Status(response.status()));
        }
        if !is_text(response.headers().get(CONTENT_TYPE)) {
            return Err(Failure::Form);
        }
        let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => Failure::Http(*error),
            Err(_) => Failure::TooLarge,
        })?;
        String::from_utf8(body.to_bytes().into()).map_err(|_| Failure::Encoding)
    };
    // The connection ends with the exchange, whoever is first.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        page = &mut exchange => page,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

/// Applications that say nothing mean text.
fn is_text(content_type: Option<&HeaderValue>) -> bool {
    let Some(content_type) = content_type.and_then(|value| value.to_str().ok()) else { return true };
    let form = content_type.split(';').next().unwrap_or_default().trim();
    ["text/plain", "application/openmetrics-text"].iter().any(|known| form.eq_ignore_ascii_case(known))
}

/// Under capture, what the proxy sends to its own host's addresses comes back to it as inbound traffic, unless it
/// comes from an address of its own.
async fn connect(address: SocketAddr, captured: bool) -> io::Result<TcpStream> {
    let stream = if captured && !address.ip().to_canonical().is_loopback() {
        let (socket, source) = match address.ip() {
            IpAddr::V4(_) => (TcpSocket::new_v4()?, capture::APPLICATION_SOURCE_V4),
            IpAddr::V6(_) => (TcpSocket::new_v6()?, capture::APPLICATION_SOURCE_V6),
        };
        // Without it (IPv6 and no rules installed) the connection is an ordinary one.
        let _ = socket.bind(SocketAddr::new(source, 0));
        socket.connect(address).await?
    } else {
        TcpStream::connect(address).await?
    };
    tune(&stream);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_are_text_are_known() {
        let of = |text: &'static str| is_text(Some(&HeaderValue::from_static(text)));
        assert!(
            is_text(None)
                && of("text/plain; version=0.0.4")
                && of("Application/OpenMetrics-Text;version=1.0.0")
        );
        assert!(!of("text/html") && !of("application/vnd.google.protobuf; proto=x"));
    }
}
