//! One scraper's connection: HTTP/1.1, `GET` of the paths that the policy names.

use crate::metrics::gather::{Gatherer, Publication};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// For the head of a request, and so for the pause between two. Servers scrape seldom: what is kept open for them all the
/// time keeps others out.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// For a scrape whose server does not say how long it waits: Prometheus' own default.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);
/// For any scrape: who says more is not believed.
const LONGEST_LIMIT: Duration = Duration::from_secs(30);
/// Of what a server says it waits: the page still has to travel.
const SHARE: f64 = 0.8;
const WAITS: &str = "x-prometheus-scrape-timeout-seconds";

/// What the connections to one port share.
#[derive(Clone)]
pub(super) struct Scrapers {
    pub(super) port: u16,
    pub(super) closing: CancellationToken,
    pub(super) publication: watch::Receiver<Option<Arc<Publication>>>,
    pub(super) gatherer: Gatherer,
    pub(super) connections: Arc<Semaphore>,
    pub(super) gathering: Arc<Semaphore>,
}

impl Scrapers {
    /// Serves a connection, unless there are too many.
    pub(super) fn begin(&self, stream: TcpStream) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            return tracing::debug!("too many scrapers");
        };
        crate::io::tune(&stream);
        let scrapers = self.clone();
        tokio::spawn(async move {
            let closing = scrapers.closing.clone();
            let handler = service_fn(move |request| {
                let scrapers = scrapers.clone();
                async move { Ok::<_, Infallible>(scrapers.answer(&request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), handler);
            if let Some(Err(error)) = closing.run_until_cancelled(serving).await {
                tracing::debug!(%error, "a scraper's connection");
            }
            drop(permit);
        });
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let publication = self.publication.borrow().clone();
        let named = publication.filter(|publication| {
            let mut paths = publication.config.prometheus.iter();
            paths.any(|it| it.port.get() == self.port && it.path == request.uri().path())
        });
        let Some(publication) = named else { return plain(StatusCode::NOT_FOUND, "no metrics here\n") };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "GET\n");
        }
        let deadline = Instant::now() + limit(request.headers().get(WAITS));
        let waiting = tokio::time::timeout_at(deadline, self.gathering.acquire());
        let Ok(Ok(_turn)) = waiting.await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many scrapes\n");
        };
        let page = self.gatherer.gather(&publication, deadline).await.text();
        let mut response = Response::new(Full::new(page.into()));
        let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        response
    }
}

fn limit(waits: Option<&HeaderValue>) -> Duration {
    let said = waits.and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let said = said.filter(|seconds| *seconds > 0.0).map(|seconds| seconds * SHARE);
    let said = said.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    said.unwrap_or(DEFAULT_LIMIT).min(LONGEST_LIMIT)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_how_long_it_waits() {
        let of = |text: &'static str| limit(Some(&HeaderValue::from_static(text)));
        assert_eq!(limit(None), DEFAULT_LIMIT);
        assert_eq!(of("5"), Duration::from_secs(4));
        for odd in ["0", "-1", "NaN", "soon", "1e400"] {
            assert_eq!(of(odd), DEFAULT_LIMIT, "{odd}");
        }
        assert_eq!(of("1e9"), LONGEST_LIMIT);
    }
}
