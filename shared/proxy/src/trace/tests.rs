use super::*;
use meridian_proxy_config::{Collector, TraceSampling, TraceTag, ZipkinFormat};

const ALL: TraceSampling = TraceSampling { overall: MILLION, client: MILLION, random: MILLION };

fn tracer(backend: TraceBackend) -> Tracer {
    let tag = |name: &str, value: TagValue| TraceTag { name: name.to_owned(), value };
    let header = |name: &str, default: Option<&str>| TagValue::Header {
        name: name.to_owned(),
        default: default.map(str::to_owned),
    };
    let tags = vec![
        tag("team", TagValue::Literal("core".to_owned())),
        tag("env", header("x-env", Some("prod"))),
        tag("absent", header("x-absent", None)),
        tag("odd", header("no header", Some("default"))),
    ];
    Tracer::compile(Arc::new(Trace { backend, sampling: ALL, tags }))
}

fn otel() -> TraceBackend {
    let collector = Collector { endpoint: "otel:4317".to_owned(), http_path: None };
    TraceBackend::OpenTelemetry { collector }
}

fn zipkin(shared_spans: bool) -> TraceBackend {
    let url = "http://zipkin:9411/api/v2/spans".to_owned();
    TraceBackend::Zipkin { url, format: ZipkinFormat::Json, wide_trace_ids: false, shared_spans }
}

fn datadog() -> TraceBackend {
    TraceBackend::Datadog { url: "http://datadog:8126".to_owned(), split_service: false }
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_trace_begins_in_w3cs_form_and_the_backends_own() {
    let b3 = ["traceparent", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid", "x-request-id"];
    let datadog_names = [
        "traceparent",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "x-datadog-trace-id",
        "x-request-id",
    ];
    for (backend, expected, wide) in [
        (otel(), &["traceparent", "x-request-id"][..], true),
        (zipkin(true), &b3[..], false),
        (datadog(), &datadog_names[..], false),
    ] {
        let mut headers = HeaderMap::new();
        let started = tracer(backend).begin(Direction::Outbound, &mut headers);
        assert_eq!(names(&headers), expected);
        assert_eq!(started.context.trace >> 64 != 0, wide);
        assert!(started.context.sampled && started.context.parent.is_none());
    }
}

#[test]
fn a_trace_goes_on_below_who_sent_it() {
    let tracer = tracer(otel());
    let mut headers = HeaderMap::new();
    let client = tracer.begin(Direction::Outbound, &mut headers).context;
    let server = tracer.begin(Direction::Inbound, &mut headers).context;
    assert_eq!((server.trace, server.parent), (client.trace, Some(client.span)));
    assert_ne!(server.span, client.span);
    // What the application sees is the server's span.
    let seen = context::read(&headers, Forms::W3C);
    assert_eq!(seen.ids.unwrap().span, server.span);
}

#[test]
fn with_zipkin_both_sides_share_a_span_unless_told_otherwise() {
    for shares in [true, false] {
        let tracer = tracer(zipkin(shares));
        let mut headers = HeaderMap::new();
        let client = tracer.begin(Direction::Outbound, &mut headers);
        let server = tracer.begin(Direction::Inbound, &mut headers);
        assert_eq!(client.context.span == server.context.span, shares);
        assert_eq!((client.shared, server.shared), (false, shares));
        let parent = if shares { None } else { Some(client.context.span) };
        assert_eq!(server.context.parent, parent);
        // Called by nobody who traces, the server begins.
        assert!(!tracer.begin(Direction::Inbound, &mut HeaderMap::new()).shared);
    }
}

#[test]
fn the_forms_that_came_go_on() {
    let mut headers = HeaderMap::new();
    headers.insert("b3", HeaderValue::from_static("000000000000000a-000000000000000b-0"));
    headers.insert("x-request-id", HeaderValue::from_static("mine"));
    let started = tracer(otel()).begin(Direction::Outbound, &mut headers);
    assert_eq!(names(&headers), ["b3", "traceparent", "x-request-id"]);
    assert_eq!(headers["x-request-id"], "mine");
    assert_eq!(
        (started.context.trace, started.context.parent, started.context.sampled),
        (10, Some(11), false)
    );
    assert!(headers["b3"].to_str().unwrap().ends_with("-0-000000000000000b"));
    assert!(started.tags.is_empty(), "nobody needs them");
}

#[test]
fn tags_are_the_policys_and_the_requests() {
    let mut headers = HeaderMap::new();
    headers.insert("x-env", HeaderValue::from_static("test"));
    let tags = tracer(otel()).begin(Direction::Outbound, &mut headers).tags;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(tags, [pair("team", "core"), pair("env", "test"), pair("odd", "default")]);
    let tags = tracer(otel()).begin(Direction::Outbound, &mut HeaderMap::new()).tags;
    assert_eq!(tags[1], pair("env", "prod"));
}
