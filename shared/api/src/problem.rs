//! Errors as Kuma's API returns them: RFC 9457-like, all violations at once.
//!
//! A handler returns `Result<_, Problem>`. What the user did wrong is told in full; what went wrong here is told by a
//! trace id, and the cause goes to the log: a database's error text is nobody else's business.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvalidParameter {
    pub field: String,
    pub reason: String,
    /// Where the field is: `body`, `query`, `header` or `path`.
    pub source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Body,
    Query,
    Header,
    Path,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub title: String,
    pub detail: String,
    pub invalid: Vec<InvalidParameter>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    type_: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    invalid_parameters: &'a [InvalidParameter],
}

impl Problem {
    #[must_use]
    pub fn new(status: StatusCode, title: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { status, title: title.into(), detail: detail.into(), invalid: Vec::new() }
    }

    /// 400 with one field named.
    #[must_use]
    pub fn invalid(source: Source, field: impl Into<String>, reason: impl Into<String>) -> Self {
        let mut problem =
            Self::new(StatusCode::BAD_REQUEST, "Could not process a resource", "Resource is not valid");
        problem.invalid.push(InvalidParameter { field: field.into(), reason: reason.into(), source });
        problem
    }

    /// 400 for a body with violations, all of them.
    #[must_use]
    pub fn violations(violations: impl IntoIterator<Item = meridian_core::Violation>) -> Self {
        let mut problem =
            Self::new(StatusCode::BAD_REQUEST, "Could not process a resource", "Resource is not valid");
        problem.invalid = violations
            .into_iter()
            .map(|v| InvalidParameter { field: v.field, reason: v.reason, source: Source::Body })
            .collect();
        problem
    }

    /// 400 for a request that makes no sense.
    #[must_use]
    pub fn bad_request(title: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, title, detail)
    }

    /// 404 for a resource.
    #[must_use]
    pub fn resource_not_found(kind: &str, mesh: &str, name: &str) -> Self {
        let at = if mesh.is_empty() { String::new() } else { format!(" mesh={mesh:?}") };
        Self::new(
            StatusCode::NOT_FOUND,
            "Could not retrieve a resource",
            format!("Resource not found: type={kind:?} name={name:?}{at}"),
        )
    }

    /// 401: no credentials, or none that can be believed.
    #[must_use]
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Could not authenticate a user", detail)
    }

    /// 403: known, but not allowed.
    #[must_use]
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Access Denied", detail)
    }

    /// 405: this control plane does not take such writes.
    #[must_use]
    pub fn not_allowed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Operation not allowed", detail)
    }

    /// 409.
    #[must_use]
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", detail)
    }

    /// 412: the resource is not at the revision that the client named.
    #[must_use]
    pub fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "Precondition failed", detail)
    }

    /// 503: try again; the store is out of reach.
    #[must_use]
    pub fn unavailable(cause: &dyn std::fmt::Display) -> Self {
        tracing::warn!(%cause, "store unavailable");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Service unavailable",
            "The control plane can't reach its store. Nothing was changed; try again.",
        )
    }

    /// 500. The cause is logged, not told.
    #[must_use]
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal Server Error",
            "Internal error. The control plane's log tells more.",
        )
    }

    /// The same problem under another title ("Could not delete a resource").
    #[must_use]
    pub fn titled(mut self, title: &str) -> Self {
        title.clone_into(&mut self.title);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let instance = format!("meridian:trace:{}", uuid::Uuid::new_v4().simple());
        if self.status.is_server_error() {
            tracing::warn!(%instance, status = self.status.as_u16(), title = self.title, "answered with an error");
        }
        let body = Body {
            type_: "/std-errors",
            title: &self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            instance,
            invalid_parameters: &self.invalid,
        };
        let mut response = (self.status, Json(body)).into_response();
        let kind = http::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
        }
        response
    }
}
