//! MeshTrace: what the application sees, and what collectors of every kind are sent.

use crate::{
    apps::{call, get, http_app, http1, whole},
    collector::{Collector, pairs},
    world::{DEADLINE, Pair, address, soon, until},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use meridian_proxy_config::{
    self as config, Protocol, TagValue, Trace, TraceBackend, TraceSampling, TraceTag, ZipkinFormat, types,
};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::net::TcpListener;

const MILLION: u32 = 1_000_000;

fn trace(backend: TraceBackend, random: u32) -> Trace {
    let tags = vec![TraceTag { name: "team".into(), value: TagValue::Literal("core".into()) }];
    Trace { backend, sampling: TraceSampling { overall: MILLION, client: MILLION, random }, tags }
}

async fn traced(trace: &Trace) -> Pair {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    for sidecar in [&pair.web, &pair.backend] {
        sidecar.feed(types::TRACE, "self", trace);
    }
    pair.settled().await;
    pair
}

/// All that was handed over is written.
async fn flush(pair: &Pair) {
    for sidecar in [&pair.web, &pair.backend] {
        assert!(sidecar.engine.shared().sinks.flush(DEADLINE).await, "flushed");
    }
}

/// What the application was sent under a name.
fn seen(answer: &str, name: &str) -> Option<String> {
    let prefix = format!("{name}: ");
    answer.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

#[tokio::test]
async fn both_sides_of_a_request_are_one_trace_which_the_application_sees() {
    let collector = Collector::start().await;
    let pair = traced(&trace(collector.of_traces(), MILLION)).await;
    let mut client = http1(pair.outbound).await;
    let mut request = get("/headers?q=1");
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    request.headers_mut().insert("tracestate", "vendor=1".parse().unwrap());
    let answer = whole(client.send_request(request).await.unwrap()).await;
    let spans = until("two spans", async || {
        flush(&pair).await;
        let spans = collector.spans();
        (spans.len() == 2).then_some(spans)
    })
    .await;
    let of = |service: &str| -> &Span {
        &spans.iter().find(|(resource, _)| resource["service.name"] == service).unwrap().1
    };
    let (client, server) = (of("web"), of("backend"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&client.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&client.parent_span_id), "00f067aa0ba902b7");
    assert_eq!((&server.trace_id, &server.parent_span_id), (&client.trace_id, &client.span_id));
    let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", hex(&server.span_id));
    assert_eq!(seen(answer.text(), "traceparent"), Some(expected));
    assert_eq!(seen(answer.text(), "tracestate").as_deref(), Some("vendor=1"));
    assert_eq!((client.kind, server.kind), (3, 2), "client and server");
    let tags = pairs(&client.attributes);
    for (name, value) in [
        ("http.method", "GET"),
        ("http.url", "http://backend.mesh/headers?q=1"),
        ("http.status_code", "200"),
        ("kuma.mesh", "default"),
        ("peer.service", "backend"),
        ("team", "core"),
    ] {
        assert_eq!(tags[name], value, "{tags}");
    }
    assert_eq!(tags["guid:x-request-id"], seen(answer.text(), "x-request-id").unwrap());
    assert!(client.start_time_unix_nano <= server.start_time_unix_nano);
    assert!(client.end_time_unix_nano > client.start_time_unix_nano);
}

#[tokio::test]
async fn what_is_not_sampled_is_not_sent_and_says_so_to_those_behind() {
    let collector = Collector::start().await;
    let pair = traced(&trace(collector.of_traces(), 0)).await;
    // Alone it would take everything.
    let all = trace(collector.of_traces(), MILLION);
    pair.backend.feed(types::TRACE, "self", &all);
    pair.settled().await;
    let answer = call(pair.outbound, "/headers").await;
    assert!(seen(answer.text(), "traceparent").unwrap().ends_with("-00"), "{}", answer.text());
    // Whoever asks for a trace gets one.
    let mut asking = get("/headers");
    asking.headers_mut().insert("x-client-trace-id", "1".parse().unwrap());
    let answer = whole(http1(pair.outbound).await.send_request(asking).await.unwrap()).await;
    assert!(seen(answer.text(), "traceparent").unwrap().ends_with("-01"));
    until("two spans", async || {
        flush(&pair).await;
        (collector.spans().len() == 2).then_some(())
    })
    .await;
    pair.web.remove(types::TRACE, "self");
    pair.backend.remove(types::TRACE, "self");
    pair.settled().await;
    let answer = call(pair.outbound, "/headers").await;
    assert_eq!(seen(answer.text(), "traceparent"), None);
    flush(&pair).await;
    assert_eq!(collector.spans().len(), 2);
}

#[tokio::test]
async fn each_share_of_samples_is_its_own() {
    let collector = Collector::start().await;
    let backend = || collector.of_traces();
    let pair = traced(&trace(backend(), MILLION)).await;
    let mut taken = 0;
    for (overall, client, random, asks, expected) in [
        (MILLION, MILLION, 0, true, true),
        (MILLION, MILLION, 0, false, false),
        (MILLION, 0, 0, true, false),
        // What `client` leaves out is one of the others.
        (MILLION, 0, MILLION, true, true),
        (MILLION, 0, MILLION, false, true),
        (0, MILLION, MILLION, true, false),
        (0, MILLION, MILLION, false, false),
    ] {
        let sampling = TraceSampling { overall, client, random };
        for sidecar in [&pair.web, &pair.backend] {
            sidecar.feed(types::TRACE, "self", &Trace { sampling, ..trace(backend(), 0) });
        }
        pair.settled().await;
        let mut request = get("/headers");
        if asks {
            request.headers_mut().insert("x-client-trace-id", "1".parse().unwrap());
        }
        let answer = whole(http1(pair.outbound).await.send_request(request).await.unwrap()).await;
        let flag = if expected { "-01" } else { "-00" };
        assert!(seen(answer.text(), "traceparent").unwrap().ends_with(flag), "{sampling:?} {asks}");
        taken += if expected { 2 } else { 0 };
        until("the spans", async || {
            flush(&pair).await;
            (collector.spans().len() == taken).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn tags_are_words_of_the_policy_and_headers_of_the_request() {
    let collector = Collector::start().await;
    let header = |tag: &str, name: &str, default: Option<&str>| TraceTag {
        name: tag.into(),
        value: TagValue::Header { name: name.into(), default: default.map(str::to_owned) },
    };
    let mut told = trace(collector.of_traces(), MILLION);
    told.tags.extend([
        header("tenant", "x-tenant", Some("nobody")),
        header("stage", "x-stage", Some("production")),
        header("absent", "x-absent", None),
    ]);
    let pair = traced(&told).await;
    let mut request = get("/headers");
    request.headers_mut().insert("x-tenant", "acme".parse().unwrap());
    whole(http1(pair.outbound).await.send_request(request).await.unwrap()).await;
    let spans = until("two spans", async || {
        flush(&pair).await;
        let spans = collector.spans();
        (spans.len() == 2).then_some(spans)
    })
    .await;
    for (_, span) in spans {
        let tags = pairs(&span.attributes);
        for (name, value) in [("team", "core"), ("tenant", "acme"), ("stage", "production")] {
            assert_eq!(tags[name], value, "{tags}");
        }
        assert_eq!(tags.get("absent"), None);
    }
}

#[derive(Clone, Default)]
pub(crate) struct Posted(pub(crate) Arc<Mutex<Vec<(String, String, Bytes)>>>);

/// A collector over HTTP: method and path, content type, and body of what it was sent. It refuses the first.
pub(crate) async fn http_collector() -> (SocketAddr, Posted) {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let posted = Posted::default();
    let kept = posted.clone();
    tokio::spawn(async move {
        let first = Arc::new(AtomicBool::new(true));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (kept, first) = (kept.clone(), first.clone());
            let handler = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let kept = kept.clone();
                let status = if first.swap(false, Ordering::Relaxed) { 503 } else { 202 };
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    if status == 202 {
                        let content = head.headers["content-type"].to_str().unwrap().to_owned();
                        let line = format!("{} {}", head.method, head.uri);
                        kept.0.lock().unwrap().push((line, content, body));
                    }
                    let mut response = http::Response::new(Full::new(Bytes::new()));
                    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handler);
            tokio::spawn(async move { drop(served.await) });
        }
    });
    (at, posted)
}

/// What one request leaves at a collector, by both sidecars, and what the application saw.
async fn posted(
    backend: impl Fn(SocketAddr) -> TraceBackend,
    count: usize,
) -> (Vec<(String, String, Bytes)>, String) {
    let (at, posted) = http_collector().await;
    let pair = traced(&trace(backend(at), MILLION)).await;
    let answer = soon("an answer", call(pair.outbound, "/headers")).await;
    let all = until("the posts", async || {
        flush(&pair).await;
        let all = posted.0.lock().unwrap().clone();
        (all.len() >= count).then_some(all)
    })
    .await;
    (all, answer.text().to_owned())
}

#[tokio::test]
async fn zipkin_gets_one_span_of_two_sides() {
    let backend = |at| TraceBackend::Zipkin {
        url: format!("http://{at}/api/v2/spans"),
        format: ZipkinFormat::Json,
        wide_trace_ids: false,
        shared_spans: true,
    };
    let (posts, answer) = posted(backend, 2).await;
    let spans: Vec<Value> = posts
        .iter()
        .flat_map(|(line, content, body)| {
            assert_eq!((line.as_str(), content.as_str()), ("POST /api/v2/spans", "application/json"));
            serde_json::from_slice::<Vec<Value>>(body).unwrap()
        })
        .collect();
    let of = |kind: &str| spans.iter().find(|span| span["kind"] == kind).unwrap();
    let (client, server) = (of("CLIENT"), of("SERVER"));
    assert_eq!((&client["traceId"], &client["id"]), (&server["traceId"], &server["id"]));
    assert_eq!(client["traceId"].as_str().unwrap().len(), 16);
    assert_eq!((&client["shared"], &server["shared"]), (&Value::Null, &json!(true)));
    assert_eq!(client["localEndpoint"]["serviceName"], "web");
    assert_eq!(client["remoteEndpoint"]["serviceName"], "backend");
    assert_eq!(seen(&answer, "x-b3-traceid").as_deref(), client["traceId"].as_str());
    assert_eq!(seen(&answer, "x-b3-spanid").as_deref(), client["id"].as_str());
    assert_eq!(seen(&answer, "x-b3-sampled").as_deref(), Some("1"));
}

#[tokio::test]
async fn zipkin_gets_a_span_a_side_and_long_ids_where_that_is_asked_for() {
    let backend = |at| TraceBackend::Zipkin {
        url: format!("http://{at}/api/v2/spans"),
        format: ZipkinFormat::Json,
        wide_trace_ids: true,
        shared_spans: false,
    };
    let (posts, answer) = posted(backend, 2).await;
    let spans: Vec<Value> =
        posts.iter().flat_map(|(_, _, body)| serde_json::from_slice::<Vec<Value>>(body).unwrap()).collect();
    let of = |kind: &str| spans.iter().find(|span| span["kind"] == kind).unwrap();
    let (client, server) = (of("CLIENT"), of("SERVER"));
    assert_eq!(client["traceId"].as_str().unwrap().len(), 32);
    assert_eq!(client["traceId"], server["traceId"]);
    assert_ne!(client["id"], server["id"]);
    assert_eq!((&client["parentId"], &server["parentId"]), (&Value::Null, &client["id"]));
    assert_eq!((&client["shared"], &server["shared"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&client["tags"]["team"], &server["tags"]["http.status_code"]),
        (&json!("core"), &json!("200"))
    );
    assert_eq!(seen(&answer, "x-b3-spanid").as_deref(), server["id"].as_str());
}

#[tokio::test]
async fn zipkin_takes_protobuf_as_well() {
    let backend = |at: SocketAddr| TraceBackend::Zipkin {
        url: format!("{at}/spans"),
        format: ZipkinFormat::Protobuf,
        wide_trace_ids: true,
        shared_spans: false,
    };
    let (posts, answer) = posted(backend, 2).await;
    let trace = seen(&answer, "x-b3-traceid").unwrap();
    assert_eq!(trace.len(), 32);
    for (line, content, body) in posts {
        assert_eq!((line.as_str(), content.as_str()), ("POST /spans", "application/x-protobuf"));
        // A list with one span, whose first field is its trace id of 16 bytes.
        let id: String = body
            .iter()
            .skip_while(|byte| **byte != 0x10)
            .skip(1)
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(id, trace);
    }
}

#[tokio::test]
async fn datadog_gets_spans_by_trace() {
    for (split_service, expected) in
        [(true, ["backend_INBOUND", "web_OUTBOUND"]), (false, ["backend", "web"])]
    {
        datadog_gets(split_service, expected).await;
    }
}

async fn datadog_gets(split_service: bool, expected: [&str; 2]) {
    let backend = |at| TraceBackend::Datadog { url: format!("http://{at}"), split_service };
    let (posts, answer) = posted(backend, 2).await;
    let mut services = Vec::new();
    for (line, content, body) in posts {
        assert_eq!((line.as_str(), content.as_str()), ("PUT /v0.4/traces", "application/msgpack"));
        let traces: Vec<Vec<Value>> = rmp_serde::from_slice(&body).unwrap();
        assert_eq!(traces.len(), 1);
        let span = &traces[0][0];
        assert_eq!(Some(span["trace_id"].to_string()), seen(&answer, "x-datadog-trace-id"));
        assert_eq!((&span["error"], &span["meta"]["team"]), (&json!(0), &json!("core")));
        services.push(span["service"].as_str().unwrap().to_owned());
    }
    services.sort();
    assert_eq!(services, expected);
}

#[tokio::test]
async fn spans_go_over_http_where_that_is_asked_for() {
    let backend = |at: SocketAddr| TraceBackend::OpenTelemetry {
        collector: config::Collector { endpoint: at.to_string(), http_path: Some("/base".into()) },
    };
    let (posts, answer) = posted(backend, 2).await;
    let mut services = Vec::new();
    for (line, content, body) in posts {
        assert_eq!((line.as_str(), content.as_str()), ("POST /base/v1/traces", "application/x-protobuf"));
        let message = ExportTraceServiceRequest::decode(body).unwrap();
        let of = &message.resource_spans[0];
        services.push(pairs(&of.resource.as_ref().unwrap().attributes)["service.name"].clone());
        let id: String = of.scope_spans[0].spans[0].trace_id.iter().map(|b| format!("{b:02x}")).collect();
        assert!(seen(&answer, "traceparent").unwrap().contains(&id));
    }
    services.sort_by_key(Value::to_string);
    assert_eq!(services, ["backend", "web"]);
}
