//! Heads of messages: what a proxy must change in them, and what it must refuse.

use super::{Body, grpc::Own};
use crate::{denial::Reason, exchange::Cause, policy::at_once::Limit};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
    uri::{Authority, PathAndQuery, Scheme},
};

static DENIED: HeaderName = HeaderName::from_static("x-meridian-denied");
/// Names the limit that was reached, in an answer of a proxy's own.
pub static OVERLOADED: HeaderName = HeaderName::from_static("x-meridian-overloaded");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A request that no proxy may pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("more than one Host")]
    ManyHosts,
    #[error("Host is no host")]
    BadHost,
    #[error("Host and the request's target differ")]
    HostMismatch,
    #[error("no Host")]
    NoHost,
    #[error("CONNECT")]
    Connect,
    #[error("Transfer-Encoding must be chunked, once, and beside no Content-Length")]
    Framing,
}

/// Whom a request is for: the target's authority, else Host. They must agree where both are.
///
/// # Errors
/// Why the request can't be passed on.
pub fn authority<B>(request: &Request<B>) -> Result<Option<Authority>, Malformed> {
    if request.method() == Method::CONNECT {
        return Err(Malformed::Connect);
    }
    if !is_plainly_framed(request.headers()) {
        return Err(Malformed::Framing);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::ManyHosts);
    }
    let host = host
        .map(|value| Authority::try_from(value.as_bytes()).map_err(|_| Malformed::BadHost))
        .transpose()?;
    // RFC 9110, 4.2.4: user information in an authority hides who is meant.
    if host.as_ref().or(request.uri().authority()).is_some_and(|host| host.as_str().contains('@')) {
        return Err(Malformed::BadHost);
    }
    match (request.uri().authority(), host) {
        // RFC 9112 3.2.2: for a proxy the target counts; two different ones are a way to deceive someone.
        (Some(target), Some(host)) if *target != host => Err(Malformed::HostMismatch),
        (Some(target), _) => Ok(Some(target.clone())),
        (None, Some(host)) => Ok(Some(host)),
        (None, None) if request.version() >= Version::HTTP_11 => Err(Malformed::NoHost),
        (None, None) => Ok(None),
    }
}

/// Whether there is one way to tell where the body ends. Other codings than chunked were meant for this connection:
/// without them nobody could read the body (RFC 9112, 6.1), and who tells lengths in two ways means to deceive someone.
fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => {
            coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
                && !headers.contains_key(CONTENT_LENGTH)
        }
        (Some(_), Some(_)) => false,
    }
}

/// As people write it.
pub fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Whether an HTTP/1.1 request asks for another protocol (WebSocket, say).
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    is_upgrade_of(request.version(), request.headers())
}

/// The same of its head.
pub(crate) fn is_upgrade_of(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11 && upgrades_out_of_http(headers) && has_token(headers, "upgrade")
}

/// Whether `Upgrade` names a protocol, and none that carries HTTP again (`h2c`, `TLS/1.0`, `HTTP/2.0`): requests over
/// that would pass unseen, and each of them has to be held to what was allowed. Such an upgrade is left out of the
/// request, which is then answered without it (RFC 9110, 7.8).
pub fn upgrades_out_of_http(headers: &HeaderMap) -> bool {
    let again = |protocol: &str| {
        let name = protocol.split('/').next().unwrap_or_default().trim().to_ascii_lowercase();
        name.is_empty() || name.starts_with("h2") || name.starts_with("h3") || name == "http" || name == "tls"
    };
    let mut values = headers.get_all(UPGRADE).iter().peekable();
    values.peek().is_some()
        && values.all(|value| value.to_str().is_ok_and(|text| !text.split(',').any(again)))
}

/// Whether the client waits for a word before it sends its body.
pub fn expects_continue<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request
            .headers()
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|found| found.trim().eq_ignore_ascii_case(token)))
}

/// What `Connection` names, but `TE`, which is looked at by itself.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| *name != TE)
        .collect()
}

/// Takes out of a request what its sender meant for its own connection: before anything of ours is written, which a sender
/// could otherwise name and so have removed. What frames the body stays, and the wish to change the protocol.
pub fn receive<B>(request: &mut Request<B>) {
    if !request.headers().contains_key(CONNECTION) {
        return;
    }
    let upgrade = is_upgrade(request);
    let headers = request.headers_mut();
    for name in named(headers) {
        if ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE].contains(&name) {
            headers.remove(name);
        }
    }
    headers.remove(CONNECTION);
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Removes what is meant for one connection only. `upgrade`: keeps the request to change the protocol.
fn strip(headers: &mut HeaderMap, upgrade: bool) {
    for name in named(headers) {
        if !(upgrade && name == UPGRADE) {
            headers.remove(name);
        }
    }
    for name in [&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &TRANSFER_ENCODING] {
        headers.remove(name);
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

/// Removes from a request what is meant for the connection that it came over.
pub fn strip_request(headers: &mut HeaderMap, upgrade: bool) {
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|found| found.trim().eq_ignore_ascii_case("trailers")));
    strip(headers, upgrade);
    headers.remove(PROXY_AUTHORIZATION);
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes a request fit for the next connection. HTTP/2 carries `authority` in the target, HTTP/1.1 in Host.
pub fn prepare<B>(request: &mut Request<B>, authority: &Authority, http2: bool, upgrade: bool) {
    strip_request(request.headers_mut(), upgrade);
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    if http2 {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority.clone());
        request.headers_mut().remove(HOST);
        *request.version_mut() = Version::HTTP_2;
    } else {
        // Whom it is for now, which may be another than it came for.
        let is_said =
            request.headers().get(HOST).is_some_and(|host| host.as_bytes() == authority.as_str().as_bytes());
        if !is_said
            && let Ok(host) =
                HeaderValue::from_maybe_shared(Bytes::copy_from_slice(authority.as_str().as_bytes()))
        {
            request.headers_mut().insert(HOST, host);
        }
        *request.version_mut() = Version::HTTP_11;
    }
    // The parts come from a valid URI; should they not fit together, the request keeps its own.
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// Makes a response fit for the previous connection.
pub fn strip_response<B>(response: &mut Response<B>) {
    let upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    strip(response.headers_mut(), upgrade);
    response.headers_mut().remove(PROXY_AUTHENTICATE);
    *response.version_mut() = Version::HTTP_11;
}

/// Whether an answer of that status never has a body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5).
pub fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

/// A refusal: 403.
pub fn denied(reason: &Reason) -> Response<Body> {
    refused(StatusCode::FORBIDDEN, reason)
}

/// A refusal, with the reason where a program finds it and where a person does.
pub fn refused(status: StatusCode, reason: &Reason) -> Response<Body> {
    let mut response = plain(status, &format!("refused by the mesh: {reason}\n"));
    let value = HeaderValue::from_str(reason.as_str()).unwrap_or(HeaderValue::from_static("denied"));
    response.headers_mut().insert(DENIED.clone(), value);
    because(response, &Cause::DENIED)
}

/// The answer where too much is under way.
pub fn overloaded(limit: Limit) -> Response<Body> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, &format!("too much is under way: {limit}\n"));
    response.headers_mut().insert(OVERLOADED.clone(), HeaderValue::from_static(limit.as_str()));
    because(response, &Cause::OVERFLOW)
}

/// Says in an answer of the proxy's own why it is given: for logs.
pub fn because(mut response: Response<Body>, cause: &'static Cause) -> Response<Body> {
    response.body_mut().because(cause);
    response
}

/// The answer to a request that can't be passed on.
pub fn malformed(error: Malformed) -> Response<Body> {
    if error == Malformed::Connect {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported\n");
    }
    let mut response = plain(StatusCode::BAD_REQUEST, &format!("{error}\n"));
    if error == Malformed::Framing {
        // Where the next request begins is anybody's guess.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer of the proxy's own.
pub fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::full(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.extensions_mut().insert(Own(text.to_owned()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn one_host_and_the_same_as_the_target() {
        let host =
            |uri, headers: &[_]| authority(&request(uri, headers)).map(|found| found.map(|a| a.to_string()));
        assert_eq!(host("/", &[("host", "a:80")]), Ok(Some("a:80".into())));
        assert_eq!(host("http://a/", &[("host", "a")]), Ok(Some("a".into())));
        assert_eq!(host("http://a/", &[("host", "b")]), Err(Malformed::HostMismatch));
        assert_eq!(host("/", &[("host", "a"), ("host", "a")]), Err(Malformed::ManyHosts));
        assert_eq!(host("/", &[("host", "a b")]), Err(Malformed::BadHost));
        assert_eq!(host("/", &[]), Err(Malformed::NoHost));
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut request = request(
            "/a?b",
            &[
                ("host", "web"),
                ("connection", "keep-alive, X-Mine"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip, trailers"),
                ("trailer", "grpc-status"),
                ("upgrade", "h2c"),
                ("x-stays", "1"),
            ],
        );
        prepare(&mut request, &Authority::from_static("web"), true, false);
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["te", "trailer", "x-stays"]);
        assert_eq!(request.headers()[TE], "trailers");
        assert_eq!(request.uri(), "http://web/a?b");
    }

    #[test]
    fn an_upgrade_keeps_only_itself() {
        let mut request = request(
            "/chat",
            &[("host", "web"), ("connection", "Upgrade, X-Mine"), ("x-mine", "1"), ("upgrade", "websocket")],
        );
        assert!(is_upgrade(&request));
        prepare(&mut request, &Authority::from_static("web"), false, true);
        assert_eq!(request.headers()[CONNECTION], "upgrade");
        assert_eq!(request.headers()[UPGRADE], "websocket");
        assert!(!request.headers().contains_key("x-mine"));
    }

    #[test]
    fn no_upgrade_leads_to_http_again() {
        let asks = |protocol: &str| {
            is_upgrade(&request("/", &[("host", "web"), ("connection", "upgrade"), ("upgrade", protocol)]))
        };
        assert!(asks("websocket") && asks("postgres, echo/1"));
        for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.2", "h2", ""] {
            assert!(!asks(protocol), "{protocol}");
        }
    }
}
