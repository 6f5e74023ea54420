//! The table of routes: a loop over the registry, and a list of what is not a kind.

use crate::overview::OVERVIEWS;
use crate::problem::Problem;
use crate::resources::At;
use crate::{Api, explain, insight, inspect, operate, system};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use http::{Request, StatusCode};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::unsupported;
use meridian_core::{KindInfo, Scope};
use std::future::Future;

/// Kinds with names of their own.
const SERVICES: [&str; 3] = ["MeshService", "MeshMultiZoneService", "MeshExternalService"];

pub(crate) fn router(api: Api) -> Router {
    let mut router = Router::new();
    for (path, methods) in fixed(&api) {
        router = router.route(path, methods);
    }
    for info in meridian_core::kinds().iter().filter(|info| !info.internal) {
        for plural in std::iter::once(&info.plural).chain(info.aliases) {
            router = kind(router, &api, info, plural);
        }
    }
    router.fallback(unknown).method_not_allowed_fallback(wrong_method)
}

fn fixed(api: &Api) -> Vec<(&'static str, MethodRouter)> {
    vec![
        ("/", get(on(api, system::index))),
        ("/ready", get(on(api, system::ready))),
        ("/healthy", get(on(api, system::healthy))),
        ("/who-am-i", get(on(api, system::who_am_i))),
        ("/config", get(on(api, system::config))),
        ("/_resources", get(on(api, system::kinds))),
        ("/policies", get(on(api, system::policies))),
        ("/openapi.yaml", get(on(api, system::openapi))),
        ("/global-insight", get(on(api, insight::global))),
        ("/_rejections", get(on(api, insight::rejected))),
        ("/meshes/{first}/_rejections", get(on(api, insight::rejected))),
        ("/meshes/{first}/_denials", get(on(api, insight::denials))),
        ("/meshes/{first}/_explain", get(on(api, explain::explain))),
        ("/_kri/{first}", get(on(api, inspect::services::by_kri))),
        ("/_zone", get(on(api, insight::zone))),
        ("/tokens", post(on(api, operate::dataplane_token))),
        ("/tokens/dataplane", post(on(api, operate::dataplane_token))),
        ("/tokens/zone", post(on(api, operate::zone_token))),
        ("/tokens/user", post(on(api, operate::user_token))),
        (
            "/meshes/{first}/_rotate-ca",
            post(on(api, operate::rotate_ca)).get(on(api, operate::show_rotation)),
        ),
        ("/zones/{first}/_revoke", post(on(api, operate::revoke_zone))),
        ("/zones/{first}/_confirm-deletions", post(on(api, operate::confirm_deletions))),
        ("/_accept-global", post(on(api, operate::accept_global))),
    ]
}

/// The routes of one kind under one of its names.
fn kind(mut router: Router, api: &Api, info: &'static KindInfo, plural: &str) -> Router {
    let at = At { info, across: false };
    let everywhere = At { info, across: true };
    let one = put(on(api, move |api, request| at.put(api, request)))
        .merge(get(on(api, move |api, request| at.get(api, request))))
        .merge(delete(on(api, move |api, request| at.delete(api, request))));
    let all = get(on(api, move |api, request| at.list(api, request)));
    let base = match info.scope {
        Scope::Mesh => {
            let across = get(on(api, move |api, request| everywhere.list(api, request)));
            router = router.route(&format!("/{plural}"), across);
            format!("/meshes/{{first}}/{plural}")
        }
        Scope::Global => format!("/{plural}"),
    };
    let name = if info.scope == Scope::Mesh { "{second}" } else { "{first}" };
    router = router.route(&base, all).route(&format!("{base}/{name}"), one);
    if info.kind == Dataplane::KIND {
        router = of_dataplane(router, api, at, &format!("{base}/{name}"));
    }
    if info.kind == MeshService::KIND {
        let offering = get(on(api, move |api, request| inspect::services::dataplanes(at, api, request)));
        router = router.route(&format!("{base}/{name}/_dataplanes"), offering);
    }
    if SERVICES.contains(&info.kind.as_str()) {
        let names = get(on(api, move |api, request| inspect::services::names(at, api, request)));
        router = router.route(&format!("{base}/{name}/_hostnames"), names);
    }
    if info.targets.is_some() {
        let selected = get(on(api, move |api, request| inspect::dataplanes(at, api, request)));
        router = router.route(&format!("{base}/{name}/_resources/dataplanes"), selected);
    }
    let Some(overview) = OVERVIEWS.into_iter().find(|overview| overview.kind == info.kind.as_str()) else {
        return router;
    };
    let one = || get(on(api, move |api, request| overview.one(at, api, request)));
    let all = |at: At| get(on(api, move |api, request| overview.list(at, api, request)));
    if info.scope == Scope::Mesh {
        router = router.route(&format!("/{plural}+insights"), all(everywhere));
        router = router.route(&format!("/{plural}/_overview"), all(everywhere));
    }
    router
        .route(&format!("{base}/_overview"), all(at))
        .route(&format!("{base}/{name}/_overview"), one())
        .route(&format!("{base}+insights"), all(at))
        .route(&format!("{base}+insights/{name}"), one())
}

/// What is asked of one Dataplane.
fn of_dataplane(router: Router, api: &Api, at: At, path: &str) -> Router {
    use inspect::proxies;
    let rules = get(on(api, move |api, request| inspect::rules(at, api, request)));
    let config = get(on(api, move |api, request| proxies::config(at, api, request)));
    let layout = get(on(api, move |api, request| proxies::layout(at, api, request)));
    let policies = get(on(api, move |api, request| proxies::policies(at, api, request)));
    let inbound = get(on(api, move |api, request| proxies::inbound_policies(at, api, request)));
    let outbound = get(on(api, move |api, request| proxies::outbound_policies(at, api, request)));
    let routes = get(on(api, move |api, request| proxies::outbound_routes(at, api, request)));
    let route = get(on(api, move |api, request| proxies::route_policies(at, api, request)));
    router
        .route(&format!("{path}/_rules"), rules)
        .route(&format!("{path}/_config"), config)
        .route(&format!("{path}/_layout"), layout)
        .route(&format!("{path}/_policies"), policies)
        .route(&format!("{path}/_inbounds/{{kri}}/_policies"), inbound)
        .route(&format!("{path}/_outbounds/{{kri}}/_policies"), outbound)
        .route(&format!("{path}/_outbounds/{{kri}}/_routes"), routes)
        .route(&format!("{path}/_outbounds/{{kri}}/_routes/{{route}}/_policies"), route)
}

/// A handler as axum takes it.
fn on<F, Fut>(
    api: &Api,
    handler: F,
) -> impl Fn(Request<Body>) -> std::pin::Pin<Box<dyn Future<Output = Response> + Send>>
+ Clone
+ Send
+ Sync
+ 'static
where
    F: Fn(Api, Request<Body>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Problem>> + Send + 'static,
{
    let api = api.clone();
    move |request| {
        let answer = handler(api.clone(), request);
        Box::pin(async move { answer.await.unwrap_or_else(IntoResponse::into_response) })
    }
}

async fn unknown(request: Request<Body>) -> Problem {
    let path = request.uri().path();
    let plural = path
        .strip_prefix("/meshes/")
        .map_or_else(|| path.trim_start_matches('/').split('/').next(), |rest| rest.split('/').nth(1));
    if let Some(kind) = plural.and_then(unsupported::by_plural) {
        return Problem::bad_request("Kind is not supported", kind.advice());
    }
    Problem::new(StatusCode::NOT_FOUND, "Not Found", format!("There is nothing at {path}"))
}

async fn wrong_method(request: Request<Body>) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "Method Not Allowed",
        format!("{} does not go with {}", request.method(), request.uri().path()),
    )
}
