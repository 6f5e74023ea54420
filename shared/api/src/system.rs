//! What is not about resources: the index, health, who am I, the configuration, kinds, OpenAPI.

use crate::access::Action;
use crate::identify;
use crate::problem::Problem;
use crate::request::Asked;
use crate::resources::description;
use crate::{Api, Role};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode, header};
use serde_json::{Value, json};

/// The version of Kuma whose API this is.
const BASED_ON_KUMA: &str = "2.14";

/// `GET /`: open.
pub(crate) async fn index(api: Api, _request: Request<Body>) -> Result<Response, Problem> {
    let mode = match &api.role {
        Role::Global => "global",
        Role::Zone { .. } => "zone",
    };
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let body = json!({
        "hostname": hostname.trim(),
        "tagline": "Meridian",
        "product": "Meridian",
        "version": env!("CARGO_PKG_VERSION"),
        "instanceId": api.instance,
        "clusterId": api.store.store_id().to_string(),
        "gui": "",
        "basedOnKuma": BASED_ON_KUMA,
        "mode": mode,
    });
    Ok(Json(body).into_response())
}

/// `GET /ready`: open. Ready means that the store answers.
pub(crate) async fn ready(api: Api, _request: Request<Body>) -> Result<Response, Problem> {
    if api.store.feed().borrow().known {
        Ok((StatusCode::OK, "ready\n").into_response())
    } else {
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Not ready", "The store is out of reach"))
    }
}

/// `GET /healthy`: open. The process answers.
pub(crate) async fn healthy(_api: Api, _request: Request<Body>) -> Result<Response, Problem> {
    Ok((StatusCode::OK, "healthy\n").into_response())
}

/// `GET /who-am-i`.
pub(crate) async fn who_am_i(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let (asked, _) = Asked::open(&api, request).await?;
    if asked.user.is_anonymous() {
        identify::allow(&api, &asked.user, Action::Read)?;
    }
    Ok(Json(json!(asked.user)).into_response())
}

/// `GET /config`.
pub(crate) async fn config(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    Asked::new(&api, request, Action::ViewConfig).await?;
    Ok(Json(api.hooks.config()).into_response())
}

/// `GET /_resources`.
pub(crate) async fn kinds(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    Asked::new(&api, request, Action::Read).await?;
    let kinds = meridian_core::kinds().iter().filter(|info| !info.internal);
    let resources: Vec<Value> = kinds.map(|info| description(info, &api.role)).collect();
    Ok(Json(json!({"resources": resources})).into_response())
}

/// `GET /policies`: Kuma's older list, policies only.
pub(crate) async fn policies(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    Asked::new(&api, request, Action::Read).await?;
    let policies: Vec<Value> = meridian_core::kinds()
        .iter()
        .filter(|info| !info.internal && info.targets.is_some())
        .map(|info| description(info, &api.role))
        .collect();
    Ok(Json(json!({"policies": policies})).into_response())
}

/// `GET /openapi.yaml`: made from the registry.
pub(crate) async fn openapi(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    Asked::new(&api, request, Action::Read).await?;
    let document = meridian_core::openapi::openapi();
    let text = serde_saphyr::to_string(&document).map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}
