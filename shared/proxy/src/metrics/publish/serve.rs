//! One scraper's connection: HTTP/1.1, `GET` of the paths that the policy names.

use super::security::{self, Security};
use crate::{
    io::Socket,
    metrics::gather::{Gatherer, Publication},
    tls::{TlsError, Trust},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use meridian_pki::link::HTTP1;
use std::{convert::Infallible, future::pending, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
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
/// A connection's: a scraper that reads nothing would keep its place, and its page, for ever. One that comes again and again
/// opens another after it, at no time in the middle of a scrape.
const LIFE: Duration = Duration::from_secs(120);
/// For the rest of a scrape that is under way at its connection's end: as long as the longest is gathered, and as long again
/// for its page to travel.
const REST: Duration = Duration::from_secs(60);
/// Of what a server says it waits: the page still has to travel.
const SHARE: f64 = 0.8;
const WAITS: &str = "x-prometheus-scrape-timeout-seconds";

/// What the connections to one port share.
#[derive(Clone)]
pub(super) struct Scrapers {
    pub(super) port: u16,
    pub(super) security: Security,
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
            if let Some(Err(error)) = closing.run_until_cancelled(scrapers.connection(stream)).await {
                tracing::debug!(%error, "a scraper's session");
            }
            drop(permit);
        });
    }

    /// Serves a connection to its end; in a session of the mesh, as long as its peer is believed.
    async fn connection(&self, stream: TcpStream) -> Result<(), TlsError> {
        let socket = Socket::new(stream);
        let reset = socket.reset();
        match &self.security {
            Security::Plaintext => self.serve(socket, pending()).await,
            Security::Provided(provided) => {
                let stream = security::accept_provided(provided, socket).await?;
                self.serve(stream, pending()).await;
            }
            Security::Mesh(mesh) => {
                let shared = &self.gatherer.shared;
                let (stream, peer) = shared.tls.accept_any(mesh, &[HTTP1], socket).await?;
                let leaving = security::once(shared, &peer, |trust| trust != Trust::Believed);
                tokio::select! {
                    () = security::once(shared, &peer, |trust| trust == Trust::Revoked) => reset.arm(),
                    () = self.serve(stream, leaving) => {}
                }
            }
        }
        Ok(())
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        leaving: impl Future<Output = ()>,
    ) {
        let handler = service_fn(|request| async move { Ok(self.answer(&request).await) });
        if let Err(error) = serve(stream, handler, leaving).await {
            tracing::debug!(%error, "a scraper's connection");
        }
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

/// Serves a connection to its end, or the end of its [`LIFE`], or until it has to leave.
async fn serve<I, S, F>(stream: I, handler: S, leaving: impl Future<Output = ()>) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), handler);
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = tokio::time::sleep(LIFE) => {}
        () = leaving => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::time::timeout(REST, serving).await.unwrap_or_else(|_| {
        tracing::debug!("a scraper does not read");
        Ok(())
    })
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        task::JoinHandle,
    };

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

    const ASKS: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Answers with so many bytes.
    fn serving(stream: DuplexStream, bytes: usize) -> JoinHandle<hyper::Result<()>> {
        let handler = service_fn(move |_| async move {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'a'; bytes]))))
        });
        tokio::spawn(serve(stream, handler, pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_scraper_that_does_not_read_is_left() {
        let (mut scraper, stream) = tokio::io::duplex(1_024);
        let serving = serving(stream, 1 << 20);
        scraper.write_all(ASKS).await.unwrap();
        let ended = tokio::time::timeout(LIFE + REST + Duration::from_secs(1), serving).await;
        ended.expect("it holds its place").unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_scraper_that_comes_again_and_again_loses_no_page() {
        let (mut scraper, stream) = tokio::io::duplex(1_024);
        let serving = serving(stream, 4);
        let began = Instant::now();
        let mut pages = 0;
        let mut page = [0; 1_024];
        while scraper.write_all(ASKS).await.is_ok() {
            match scraper.read(&mut page).await {
                Ok(0) | Err(_) => break,
                Ok(read) => assert!(page[..read].ends_with(b"aaaa")),
            }
            pages += 1;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert!((12..=13).contains(&pages), "{pages}");
        assert!(began.elapsed() <= LIFE + Duration::from_secs(10));
        serving.await.unwrap().unwrap();
    }
}
