//! The proxy's own answers to gRPC calls: a client of gRPC reads a status in trailers, and makes something vague of
//! HTTP's. Statuses as <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md> maps them, which is
//! what Envoy says as well.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use std::fmt::Write as _;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// In the extensions of an answer: it is the proxy's own, and says this.
#[derive(Clone)]
pub(crate) struct Own(pub(crate) String);

/// Whether a request is a call of gRPC (gRPC-Web is another protocol).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(is_grpc_type)
}

/// Whether a Content-Type is gRPC's, whatever messages it has.
pub fn is_grpc_type(kind: &HeaderValue) -> bool {
    let grpc = b"application/grpc";
    kind.as_bytes().split_at_checked(grpc.len()).is_some_and(|(kind, rest)| {
        kind.eq_ignore_ascii_case(grpc) && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
    })
}

/// An answer to a call of gRPC: one of the proxy's own is put in its terms, all others stay as they are. `emptied`: the
/// body without its bytes.
pub fn in_grpc<B>(response: Response<B>, emptied: impl FnOnce(B) -> B) -> Response<B> {
    let Some(Own(text)) = response.extensions().get::<Own>() else { return response };
    let message = escaped(text.trim_end());
    let (mut parts, body) = response.into_parts();
    let status = HeaderValue::from(status(parts.status));
    parts.status = StatusCode::OK;
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    parts.headers.insert(GRPC_STATUS.clone(), status);
    if let Ok(message) = HeaderValue::from_str(&message) {
        parts.headers.insert(GRPC_MESSAGE.clone(), message);
    }
    Response::from_parts(parts, emptied(body))
}

fn status(http: StatusCode) -> u16 {
    match http {
        StatusCode::BAD_REQUEST => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => 14,
        _ => 2,
    }
}

/// gRPC's own percent encoding: everything but printable ASCII, and the percent sign.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut escaped, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(char::from(byte)),
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Body, denied, plain};
    use crate::denial::Reason;

    fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
        response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn calls_are_told_by_their_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("Application/GRPC ; a=b", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn own_answers_are_put_in_terms_of_grpc_and_others_are_not() {
        use http_body::Body as _;
        for (http, grpc) in
            [(400, "13"), (403, "7"), (404, "12"), (429, "14"), (503, "14"), (504, "14"), (418, "2")]
        {
            let said = in_grpc(plain(StatusCode::from_u16(http).unwrap(), "50 % of \u{e4}\n"), Body::emptied);
            assert_eq!((said.status(), header(&said, "grpc-status")), (StatusCode::OK, Some(grpc)));
            assert_eq!(header(&said, "grpc-message"), Some("50 %25 of %C3%A4"));
            assert!(said.body().is_end_stream());
        }
        let said = in_grpc(denied(&Reason::NO_PERMISSION), Body::emptied);
        assert_eq!(header(&said, "grpc-status"), Some("7"));
        assert!(header(&said, "x-meridian-denied").is_some());

        let mut others = Response::new(Body::full("the application's"));
        *others.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(in_grpc(others, Body::emptied).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
