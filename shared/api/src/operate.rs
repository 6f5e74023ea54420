//! Tokens, and what operators do to zones and meshes.

use crate::Api;
use crate::access::Action;
use crate::hooks::{RotateCa, TokenRequest};
use crate::problem::{Problem, Source};
use crate::request::Asked;
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// `POST /tokens/dataplane`; Kuma's `/tokens` is the same.
pub(crate) async fn dataplane_token(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    token(api, request, Action::GenerateDataplaneToken, TokenRequest::Dataplane).await
}

/// `POST /tokens/zone`.
pub(crate) async fn zone_token(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    token(api, request, Action::GenerateZoneToken, TokenRequest::Zone).await
}

/// `POST /tokens/user`.
pub(crate) async fn user_token(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    token(api, request, Action::GenerateUserToken, TokenRequest::User).await
}

async fn token<T: DeserializeOwned>(
    api: Api,
    request: Request<Body>,
    action: Action,
    of: fn(T) -> TokenRequest,
) -> Result<Response, Problem> {
    let (asked, payload) = Asked::with_body(&api, request, action).await?;
    asked.only(&[])?;
    let body = payload.read().await?;
    // An object first: serde takes a list for a struct, too.
    let wanted: T = serde_json::from_slice::<Map<String, Value>>(&body)
        .and_then(|fields| serde_json::from_value(Value::Object(fields)))
        .map_err(|error| {
            Problem::bad_request("Invalid request", format!("The body is not valid: {error}"))
        })?;
    let token = api.hooks.issue_token(&of(wanted)).await?;
    // A token is nothing to keep in a cache.
    let headers = [(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, token).into_response())
}

/// `POST /meshes/{mesh}/_rotate-ca`, `?abort=true` to go back.
pub(crate) async fn rotate_ca(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Operate).await?;
    asked.only(&["abort"])?;
    let what = if asked.flag("abort")? { RotateCa::Abort } else { RotateCa::Start };
    let shown = api.hooks.rotate_ca(&asked.user, asked.part(0), what).await?;
    Ok((StatusCode::ACCEPTED, Json(shown)).into_response())
}

/// `GET /meshes/{mesh}/_rotate-ca`: how far it is.
pub(crate) async fn show_rotation(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&[])?;
    Ok(Json(api.hooks.rotate_ca(&asked.user, asked.part(0), RotateCa::Show).await?).into_response())
}

/// `POST /zones/{zone}/_revoke`.
pub(crate) async fn revoke_zone(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Operate).await?;
    asked.only(&[])?;
    if asked.part(0).is_empty() {
        return Err(Problem::invalid(Source::Path, "zone", "must not be empty"));
    }
    Ok(Json(api.hooks.revoke_zone(&asked.user, asked.part(0)).await?).into_response())
}

/// `POST /zones/{zone}/_confirm-deletions`.
pub(crate) async fn confirm_deletions(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Operate).await?;
    asked.only(&[])?;
    Ok(Json(api.hooks.confirm_deletions(&asked.user, asked.part(0)).await?).into_response())
}

/// `POST /_accept-global`.
pub(crate) async fn accept_global(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Operate).await?;
    asked.only(&[])?;
    Ok(Json(api.hooks.accept_global(&asked.user).await?).into_response())
}
