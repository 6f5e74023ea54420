use super::*;
use crate::{
    exchange::{Flags, Head, Scene, Subject},
    worker::Direction,
};
use http::{HeaderMap, Request};
use serde_json::{Value as Json, json};
use std::{rc::Rc, time::Duration};

fn scene(direction: Direction) -> Rc<Scene> {
    let proxy = crate::rig::proxy();
    Rc::new(Scene {
        direction,
        remote: "127.0.0.1:4711".parse().unwrap(),
        local: "240.0.0.1:80".parse().unwrap(),
        peer: None,
        proxy: Arc::new(proxy),
        own_address: Some("10.0.0.1".parse().unwrap()),
        connection: 7,
    })
}

fn facts(http: bool) -> Facts {
    let mut facts = Facts::new(scene(Direction::Outbound), Subject::External("backend".into()));
    facts.at = ::time::OffsetDateTime::from_unix_timestamp_nanos(1_772_683_629_012_345_678).unwrap();
    (facts.received, facts.sent) = (12, 34);
    facts.end = Some(Duration::from_millis(56));
    facts.upstream = Some(crate::exchange::Upstream::Application("10.0.0.2:8080".parse().unwrap()));
    if http {
        let request = Request::builder().uri("http://backend.mesh/a?b=c").body(()).unwrap();
        facts.request = Some(Head::of(&request));
        facts.status = Some(200);
        facts.details = "via_upstream";
        facts.grpc_status = Some(3);
        facts.attempted = Some(Duration::from_millis(1));
        facts.answered = Some(Duration::from_millis(21));
        facts.trace_id = Some(0xabc);
    }
    facts
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn log(line: LogLine) -> AccessLog {
    let backend = LogBackend::File { path: "/l".into(), line };
    AccessLog::compile(&config::AccessLog { caller: CallerMatch::default(), backend })
}

fn line(format: &str, facts: &Facts, omit_empty: bool) -> String {
    let log = log(LogLine { form: Some(LogForm::Plain(format.into())), omit_empty });
    let kept = Headers {
        request: log.request(&headers(&[("x-a", "first"), ("x-a", "second"), ("user-agent", "curl/8")])),
        response: log.response(&headers(&[("x-r", "answer")])),
        trailers: log.trailers(&headers(&[("x-t", "sum")])),
    };
    log.line(facts, &kept).trim_end().to_owned()
}

#[test]
fn kumas_lines() {
    let of = |http: bool| {
        let log = log(LogLine::default());
        let kept =
            Headers { request: log.request(&headers(&[("user-agent", "curl/8")])), ..Headers::default() };
        log.line(&facts(http), &Headers { response: log.response(&HeaderMap::new()), ..kept })
    };
    assert_eq!(
        of(true),
        "[2026-03-05T04:07:09.012Z] default \"GET /a?b=c HTTP/1.1\" 200 - 12 34 56 20 \"-\" \"curl/8\" \"-\" \"-\" \
         \"backend.mesh\" \"web\" \"backend\" \"10.0.0.1\" \"10.0.0.2:8080\"\n"
    );
    assert_eq!(
        of(false),
        "[2026-03-05T04:07:09.012Z] - default 10.0.0.1(web)->10.0.0.2:8080(backend) took 56ms, sent 34 bytes, \
         received: 12 bytes\n"
    );
}

#[test]
fn every_placeholder_has_its_value() {
    let http = facts(true);
    for (format, expected) in [
        ("%REQ(X-A)% %REQ(x-b?x-a):3% %REQ(X-B)% %REQ(:METHOD)% %REQ(:SCHEME)%", "first fir - GET http"),
        ("%RESP(x-r)% %RESP(:status)% %TRAILER(X-T)% %TRAILER(x-r)%", "answer 200 sum -"),
        ("%PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS%", "HTTP/1.1 200 via_upstream"),
        ("%DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION% %REQUEST_DURATION%", "56 21 35 -"),
        (
            "%UPSTREAM_CLUSTER% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%",
            "backend 10.0.0.2 8080",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "127.0.0.1:4711 127.0.0.1"),
        ("%DOWNSTREAM_DIRECT_REMOTE_PORT% %DOWNSTREAM_LOCAL_ADDRESS%", "4711 240.0.0.1:80"),
        (
            "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%",
            "InvalidArgument INVALID_ARGUMENT 3",
        ),
        ("%KUMA_MESH% %KUMA_ZONE% %KUMA_WORKLOAD% %KUMA_TRAFFIC_DIRECTION%", "default east web OUTBOUND"),
        (
            "%KUMA_SOURCE_SERVICE% %KUMA_DESTINATION_SERVICE% %KUMA_SOURCE_ADDRESS%",
            "web backend 10.0.0.1:4711",
        ),
        ("%TRACE_ID% %CONNECTION_ID% %HOSTNAME%", "00000000000000000000000000000abc 7 web-1"),
        ("%REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN% %ROUTE_NAME% %ENVIRONMENT(HOME)%", "- - - -"),
        ("%START_TIME(%s)% %UPSTREAM_REQUEST_ATTEMPT_COUNT% 100%%", "1772683629 0 100%"),
    ] {
        assert_eq!(line(format, &http, false), expected, "{format}");
    }
    let tcp = facts(false);
    assert_eq!(line("%RESPONSE_CODE% %PROTOCOL% %REQ(:PATH)% %BYTES_SENT%", &tcp, false), "0 - - 34");
    assert_eq!(line("<%PROTOCOL%|%REQ(X-Q)%>", &tcp, true), "<|>");
}

#[test]
fn flags_say_what_went_wrong() {
    let mut facts = facts(true);
    facts.flags = Flags::CONNECT_FAILURE.and(Flags::DOWNSTREAM_ENDED);
    assert_eq!(
        line("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", &facts, false),
        "UF,DC UpstreamConnectionFailure,DownstreamConnectionTermination"
    );
}

#[test]
fn json_has_types_and_no_way_out_of_a_text() {
    let of = |omit_empty: bool| -> Json {
        let fields = [
            ("code", "%RESPONSE_CODE%"),
            ("ms", "%DURATION%"),
            ("agent", "%REQ(USER-AGENT)%"),
            ("cut", "%REQ(USER-AGENT):3%"),
            ("none", "%REQ(X-NONE)%"),
            ("mixed", "%REQ(X-NONE)%/%RESPONSE_CODE%"),
            ("twice", "1"),
            ("twice", "2"),
        ];
        let fields = fields.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        let log = log(LogLine { form: Some(LogForm::Json(fields)), omit_empty });
        let hostile = headers(&[("user-agent", "a\", \"code\": 1, \"\u{e9}")]);
        let kept = Headers { request: log.request(&hostile), ..Headers::default() };
        serde_json::from_str(&log.line(&facts(true), &kept)).unwrap()
    };
    let expected = json!({
        "code": 200, "ms": 56, "agent": "a\", \"code\": 1, \"é", "cut": "a\",", "none": null,
        "mixed": "-/200", "twice": "2",
    });
    assert_eq!(of(false), expected);
    let omitted = json!({
        "code": 200, "ms": 56, "agent": "a\", \"code\": 1, \"é", "cut": "a\",", "mixed": "/200", "twice": "2",
    });
    assert_eq!(of(true), omitted);
}

#[test]
fn a_cut_leaves_no_half_of_a_letter() {
    let mut facts = facts(true);
    facts.subject = Subject::External("aéb".into());
    for (limit, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (9, "aéb")] {
        let cut = line(&format!("%KUMA_DESTINATION_SERVICE:{limit}%"), &facts, false);
        assert_eq!(cut, expected);
    }
}

#[test]
fn a_record_has_a_body_of_any_shape() {
    let log = |body: Option<Json>| {
        let attributes = vec![("k".to_owned(), "%KUMA_MESH%".to_owned())];
        let collector = config::Collector { endpoint: "a:1".into(), http_path: None };
        let backend = LogBackend::OpenTelemetry { collector, attributes, body };
        AccessLog::compile(&config::AccessLog { caller: CallerMatch::default(), backend })
    };
    let text = |text: &str| AnyValue { value: Some(Value::StringValue(text.into())) };
    let record = |body| log(body).record(&facts(true), &Headers::default()).0;
    let plain = record(None);
    assert!(
        matches!(plain.body.unwrap().value, Some(Value::StringValue(line)) if line.contains("\"GET /a?b=c"))
    );
    assert_eq!(plain.attributes, [key_value("k", "default")]);
    assert_eq!(plain.time_unix_nano, 1_772_683_629_012_345_678);
    assert_eq!(plain.trace_id.len(), 16);
    let kuma = json!({"kvlistValue": {"values": [{"key": "mesh", "value": {"stringValue": "%KUMA_MESH%"}}]}});
    for body in [kuma, json!({"mesh": "%KUMA_MESH%"})] {
        let Some(Value::KvlistValue(list)) = record(Some(body)).body.unwrap().value else { panic!() };
        assert_eq!(list.values, [key_value("mesh", "default")]);
    }
    let Some(Value::ArrayValue(list)) =
        record(Some(json!(["%RESPONSE_CODE%", 5, true, null]))).body.unwrap().value
    else {
        panic!()
    };
    let values = [Some(Value::IntValue(5)), Some(Value::BoolValue(true)), None];
    assert_eq!(list.values[0], text("200"));
    assert_eq!(list.values[1..].iter().map(|value| value.value.clone()).collect::<Vec<_>>(), values);
}

#[test]
fn a_text_that_is_no_format_stands_for_itself() {
    assert_eq!(line("100 % of %PROTOCOL%", &facts(true), false), "100 % of %PROTOCOL%");
}
