//! What handlers get of a request: who asks, the parts of the path in order, the query, and a bounded body.

use crate::Api;
use crate::access::{Action, User};
use crate::identify;
use crate::problem::{Problem, Source};
use crate::server::{Bounds, Peer};
use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// A request that was let in.
pub(crate) struct Asked {
    pub(crate) user: User,
    /// The path's variables, in order, decoded.
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) uri: http::Uri,
}

/// A body that was not read yet.
pub(crate) struct Payload {
    body: Body,
    bounds: Bounds,
    announced: Option<usize>,
}

impl Asked {
    /// Reads the head and decides whether `action` is granted. The body is not touched before that.
    pub(crate) async fn new(api: &Api, request: Request<Body>, action: Action) -> Result<Self, Problem> {
        Ok(Self::with_body(api, request, action).await?.0)
    }

    /// The same, and the body to be read later.
    pub(crate) async fn with_body(
        api: &Api,
        request: Request<Body>,
        action: Action,
    ) -> Result<(Self, Payload), Problem> {
        let (asked, payload) = Self::open(api, request).await?;
        identify::allow(api, &asked.user, action)?;
        Ok((asked, payload))
    }

    /// Without a decision: the handler makes it.
    pub(crate) async fn open(api: &Api, request: Request<Body>) -> Result<(Self, Payload), Problem> {
        let (mut parts, body) = request.into_parts();
        let user = identify::user(api, &parts.headers, parts.extensions.get::<Peer>().copied())?;
        let path = path(&mut parts).await?;
        let query = query(&parts)?;
        let bounds = parts.extensions.get::<Bounds>().copied().unwrap_or_default();
        let length = parts.headers.get(header::CONTENT_LENGTH);
        let announced = length.and_then(|value| value.to_str().ok()?.parse().ok());
        let asked = Self { user, path, query, headers: parts.headers, uri: parts.uri };
        Ok((asked, Payload { body, bounds, announced }))
    }

    /// A variable of the path; the route has it.
    pub(crate) fn part(&self, index: usize) -> &str {
        self.path.get(index).map_or("", String::as_str)
    }

    /// The last value of a query parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A query parameter that is `true`, `1` or empty, as opposed to `false`, `0` or absent.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.parameter(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(_) => Err(Problem::invalid(Source::Query, name, "must be true or false")),
        }
    }

    /// Refuses query parameters that the route does not know: a misspelt filter must not select everything.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        let mut unknown = self
            .query
            .iter()
            .filter(|(key, _)| !known.iter().any(|k| *k == key || (k.ends_with('[') && key.starts_with(*k))));
        match unknown.next() {
            None => Ok(()),
            Some((key, _)) => Err(Problem::invalid(Source::Query, key, "unknown query parameter")),
        }
    }
}

impl Payload {
    /// The whole body, within the server's bounds.
    pub(crate) async fn read(self) -> Result<Bytes, Problem> {
        let limit = self.bounds.body;
        let too_large = || {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Could not process a resource",
                format!("The body is larger than {limit} bytes"),
            )
        };
        if self.announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = Limited::new(self.body, limit);
        let read = async {
            let mut all = BytesMut::new();
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => frame.data_ref().into_iter().for_each(|data| all.extend_from_slice(data)),
                    Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
                    Err(error) => {
                        return Err(Problem::bad_request(
                            "Could not process a resource",
                            format!("The body could not be read: {error}"),
                        ));
                    }
                }
            }
            Ok(all.freeze())
        };
        tokio::time::timeout(self.bounds.read, read).await.unwrap_or_else(|_| {
            Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "Could not process a resource",
                "The body took too long to arrive",
            ))
        })
    }
}

async fn path(parts: &mut Parts) -> Result<Vec<String>, Problem> {
    let raw = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|error| Problem::bad_request("Bad Request", error.to_string()))?;
    Ok(raw.iter().map(|(_, value)| value.to_owned()).collect())
}

fn query(parts: &Parts) -> Result<Vec<(String, String)>, Problem> {
    let axum::extract::Query(query) = axum::extract::Query::try_from_uri(&parts.uri)
        .map_err(|error| Problem::bad_request("Bad Request", error.to_string()))?;
    Ok(query)
}
