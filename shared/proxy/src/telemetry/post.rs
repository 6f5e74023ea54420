//! Bodies to an HTTP collector: Zipkin's, Datadog's, and OpenTelemetry's over HTTP.

use super::{
    deliver::{Export, Failure},
    tcp::connect,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// A collector that has not answered after so long is tried anew.
const POST_LIMIT: Duration = Duration::from_secs(10);
/// An answer is read so far, for its reason, and no further.
const MAX_ANSWER: usize = 64 << 10;

/// Makes one body of many entries, and says how many its collector counts in it.
type Encode<T> = fn(&[T]) -> Result<(Vec<u8>, usize), String>;

/// How a collector is spoken to.
pub(crate) struct Post {
    uri: Uri,
    method: Method,
    content_type: &'static str,
    /// That says how many entries there are in a body.
    count_header: Option<&'static str>,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

/// Entries on their way to a collector.
pub(super) struct Posted<T> {
    pub(super) post: Post,
    pub(super) encode: Encode<T>,
}

/// `http://HOST[:PORT][/PATH]`; without a scheme it is the same.
///
/// # Errors
/// What can't be posted to.
pub(crate) fn http_uri(url: &str) -> Result<Uri, String> {
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = whole.parse().map_err(|error| format!("{url}: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(uri),
        _ => Err(format!("{url}: collectors are spoken to over plain http")),
    }
}

impl Post {
    pub(crate) fn new(uri: Uri, content_type: &'static str) -> Self {
        Self { uri, method: Method::POST, content_type, count_header: None, sender: None }
    }

    /// By PUT, and with how many entries there are in a header.
    pub(super) fn counting(self, header: &'static str) -> Self {
        Self { method: Method::PUT, count_header: Some(header), ..self }
    }

    /// Sends a body of so many entries, within [`POST_LIMIT`].
    ///
    /// # Errors
    /// The collector did not take it.
    pub(crate) async fn send(&mut self, body: Vec<u8>, count: usize) -> Result<(), Failure> {
        let posted = tokio::time::timeout(POST_LIMIT, self.post(body, count)).await;
        posted.unwrap_or_else(|_| Err(Failure::Again(format!("no answer within {POST_LIMIT:?}"))))
    }

    /// A connection that can take a request: the last one, if it can.
    async fn connection(&mut self) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let host = self.uri.host().unwrap_or_default();
        let address = format!("{host}:{}", self.uri.port_u16().unwrap_or(80));
        let stream = connect(&address).await.map_err(Failure::again)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Failure::again)?;
        drop(tokio::spawn(connection));
        Ok(sender)
    }

    async fn post(&mut self, body: Vec<u8>, count: usize) -> Result<(), Failure> {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(path)
            .header(header::HOST, authority.rsplit('@').next().unwrap_or_default())
            .header(header::CONTENT_TYPE, self.content_type)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Rejected(error.to_string()))?;
        if let Some(name) = self.count_header {
            request.headers_mut().insert(name, HeaderValue::from(count));
        }
        let mut sender = self.connection().await?;
        let response = sender.send_request(request).await.map_err(Failure::again)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        // Of an answer that was not read to its end, the rest would be taken for the next one.
        self.sender = answer.is_ok().then_some(sender);
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(Failure::again(status)),
            _ if status.is_server_error() => Err(Failure::again(status)),
            _ => Err(Failure::Rejected(status.to_string())),
        }
    }
}

impl<T: Send + Sync + 'static> Export for Posted<T> {
    type Entry = T;

    async fn send(&mut self, batch: &[T]) -> Result<(), Failure> {
        let (body, count) = (self.encode)(batch).map_err(Failure::Rejected)?;
        self.post.send(body, count).await
    }
}
