//! MeshAccessLog: what backends of every type are told of what clients did.

use crate::{
    apps::{
        absolute, call, echo_app, failing_app, get, http_app, http1, http2, raw, request, streaming, text,
        whole,
    },
    collector::Collector,
    traces::http_collector,
    world::{Pair, address, endpoint, soon, until},
};
use bytes::Bytes;
use http::Method;
use hyper::body::Frame;
use meridian_proxy_config::{
    self as config, AccessLog, BackOff, CallerMatch, EndpointSet, HostSelection, HttpMatch, HttpRoutes,
    HttpRule, LogBackend, LogForm, LogLine, PathMatch, Protocol, Retry, RetryOn, RoutePolicies, Routes,
    types,
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

fn log(backend: LogBackend) -> Vec<AccessLog> {
    vec![AccessLog { caller: CallerMatch::default(), backend }]
}

fn plain(format: &str) -> LogLine {
    LogLine { form: Some(LogForm::Plain(format.to_owned())), omit_empty: false }
}

fn file(path: &Path, format: &str) -> Vec<AccessLog> {
    log(LogBackend::File { path: path.to_str().unwrap().to_owned(), line: plain(format) })
}

/// The lines of a file, once there are so many.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    let all = until("the lines", async || {
        let text = read();
        (text.lines().count() >= count).then(|| text.lines().map(str::to_owned).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(all.len(), count, "{all:?}");
    all
}

const FORMAT: &str = "%KUMA_TRAFFIC_DIRECTION% %KUMA_SOURCE_SERVICE%->%KUMA_DESTINATION_SERVICE% %REQ(:METHOD)% \
    %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_CODE_DETAILS% \
    %TRAILER(X-SUM)%";

#[tokio::test]
async fn a_request_is_written_on_both_sides_when_its_answer_has_ended() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let (out, inn) = (dir.path().join("out"), dir.path().join("in"));
    pair.policies(|policies| policies.access_logs = file(&out, FORMAT)).await;
    let format = format!("{FORMAT} %DOWNSTREAM_PEER_URI_SAN% %UPSTREAM_HOST%");
    pair.inbound_policies(|policies| policies.access_logs = file(&inn, &format)).await;

    let mut client = http1(pair.outbound).await;
    let (sender, body) = streaming();
    let mut post = request(Method::POST, "/echo", body);
    post.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    post.headers_mut().insert("te", "trailers".parse().unwrap());
    let response = client.send_request(post);
    sender.send(Frame::data(Bytes::from_static(b"twelve bytes"))).await.unwrap();
    let response = soon("the head", response).await.unwrap();
    assert!(!out.exists() && !inn.exists(), "the answer has not ended");
    let trailers = [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
    sender.send(Frame::trailers(trailers)).await.unwrap();
    drop(sender);
    assert_eq!(whole(response).await.text(), "twelve bytes");
    assert_eq!(lines(&out, 1).await, ["OUTBOUND web->backend POST /echo 200 - 12 12 via_upstream 7"]);
    assert_eq!(
        lines(&inn, 1).await,
        [format!(
            "INBOUND web->backend POST /echo 200 - 12 12 via_upstream 7 spiffe://default/web {application}"
        )]
    );
}

#[tokio::test]
async fn what_goes_wrong_is_written_with_its_letters() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let format = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";
    pair.policies(|policies| {
        policies.access_logs = file(&path, format);
        policies.stream_timeouts.request_millis = Some(300);
    })
    .await;
    assert_eq!(call(pair.outbound, "/hang").await.status, 504);
    pair.permit(&["nobody"]);
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/denied").await.status, 403);
    let set = EndpointSet { endpoints: vec![endpoint(address(), "east")] };
    pair.web.feed(types::ENDPOINTS, "backend", &set);
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/nobody").await.status, 503);
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet::default());
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/empty").await.status, 503);
    raw(pair.outbound, b"GET /hosts HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n").await;
    assert_eq!(
        lines(&path, 5).await,
        [
            "/hang 504 UT upstream_response_timeout",
            "/denied 403 - via_upstream",
            "/nobody 503 UF upstream_reset_before_response_started{connection_failure}",
            "/empty 503 UH no_healthy_upstream",
            "/hosts 400 - bad_request",
        ]
    );
}

#[tokio::test]
async fn repetitions_are_one_line() {
    let unavailable = || http::Response::builder().status(503).body(text("not now")).unwrap();
    for (max, expected) in [(1, "503 URX 2"), (3, "200 - 3")] {
        let (application, _) = failing_app(false, 2, unavailable).await;
        let pair = Pair::start(Protocol::Http, application).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        pair.policies(|policies| {
            policies.access_logs =
                file(&path, "%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%");
            policies.retry = Some(Retry {
                max: max.try_into().unwrap(),
                per_try_millis: None,
                back_off: BackOff { base_millis: 1, max_millis: 10 },
                rate_limited: None,
                on: vec![RetryOn::ServerError],
                methods: vec![],
                request_headers: vec![],
                response_headers: vec![],
                hosts: HostSelection::default(),
            });
        })
        .await;
        call(pair.outbound, "/").await;
        assert_eq!(lines(&path, 1).await, [expected]);
    }
}

#[tokio::test]
async fn an_answer_of_known_length_is_whole_when_that_has_passed() {
    // Over HTTP/2 its end comes after its last byte, which a client of HTTP/1.1 does not wait for.
    let of_length = || {
        let (sender, body) = streaming();
        sender.try_send(Frame::data(Bytes::from_static(b"body"))).unwrap();
        http::Response::builder().status(201).header("content-length", 4).body(body).unwrap()
    };
    let (application, _) = failing_app(true, 1, of_length).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let dir = tempfile::tempdir().unwrap();
    let (out, inn) = (dir.path().join("out"), dir.path().join("in"));
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_SENT%";
    pair.policies(|policies| policies.access_logs = file(&out, format)).await;
    pair.inbound_policies(|policies| policies.access_logs = file(&inn, format)).await;
    assert_eq!(call(pair.outbound, "/").await.text(), "body");
    for path in [&out, &inn] {
        assert_eq!(lines(path, 1).await, ["201 - 4"]);
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_written_too() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let format = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS%";
    pair.policies(|policies| policies.access_logs = file(&path, format)).await;
    let mut client = TcpStream::connect(pair.outbound).await.unwrap();
    client.write_all(b"GET /flood HTTP/1.1\r\nHost: backend\r\n\r\n").await.unwrap();
    soon("a byte", client.read_u8()).await.unwrap();
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // Before there is an answer, only HTTP/2 has a word for it.
    let mut client = http2(pair.outbound).await;
    let asked = client.send_request(absolute(Method::GET, "/hang", text("")));
    until("its arrival", async || (seen.requests() == 2).then_some(())).await;
    drop(asked);
    let mut all = lines(&path, 2).await;
    all.sort();
    assert_eq!(all, ["/flood 200 DC", "/hang 0 DC"]);
}

#[tokio::test]
async fn rules_are_told_apart_by_the_caller_and_all_that_match_are_told() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str, caller: CallerMatch| {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        AccessLog { caller, backend: LogBackend::File { path, line: plain("%REQ(:PATH)%") } }
    };
    let exact = |service: &str| CallerMatch {
        spiffe_exact: Some(format!("spiffe://default/{service}")),
        ..CallerMatch::default()
    };
    pair.inbound_policies(|policies| {
        policies.access_logs =
            vec![of("web", exact("web")), of("api", exact("api")), of("all", CallerMatch::default())];
    })
    .await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    for name in ["web", "all"] {
        assert_eq!(lines(&dir.path().join(name), 1).await, ["/headers"]);
    }
    assert!(!dir.path().join("api").exists());
}

#[tokio::test]
async fn a_change_of_the_policy_holds_for_the_next_request_of_an_open_connection() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    let mut client = http1(pair.outbound).await;
    for path in [None, Some(&first), Some(&second), None] {
        let logs = path.map(|path| file(path, "%REQ(:PATH)%")).unwrap_or_default();
        pair.policies(|policies| policies.access_logs = logs).await;
        whole(client.send_request(get("/headers")).await.unwrap()).await;
        client.ready().await.unwrap();
    }
    for path in [first, second] {
        assert_eq!(lines(&path, 1).await, ["/headers"]);
    }
}

#[tokio::test]
async fn a_file_that_is_rotated_goes_on_under_its_name() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    pair.policies(|policies| policies.access_logs = file(&path, "%REQ(:PATH)%")).await;
    call(pair.outbound, "/status/200").await;
    lines(&path, 1).await;
    std::fs::rename(&path, &old).unwrap();
    call(pair.outbound, "/status/404").await;
    assert_eq!(lines(&path, 1).await, ["/status/404"]);
    assert_eq!(lines(&old, 1).await, ["/status/200"]);
}

#[tokio::test]
async fn a_connection_is_one_line_when_it_has_ended() {
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let dir = tempfile::tempdir().unwrap();
    let (out, inn) = (dir.path().join("out"), dir.path().join("in"));
    let format = "%KUMA_SOURCE_SERVICE%->%KUMA_DESTINATION_SERVICE% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS% %RESPONSE_CODE%";
    pair.policies(|policies| policies.access_logs = file(&out, format)).await;
    pair.inbound_policies(|policies| policies.access_logs = file(&inn, format)).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
    assert!(!out.exists(), "it is open");
    drop(stream);
    for path in [&out, &inn] {
        assert_eq!(lines(path, 1).await, ["web->backend 5 5 - 0"]);
    }
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet::default());
    pair.settled().await;
    assert!(crate::world::is_reset(pair.outbound).await);
    assert_eq!(lines(&out, 2).await[1], "web->backend 0 0 UH 0");
}

#[tokio::test]
async fn an_upgraded_connection_is_written_with_all_its_bytes() {
    let (application, _) = crate::apps::tcp_app(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        drop(tokio::io::copy(&mut read, &mut write).await);
    })
    .await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let format = "%REQ(:PATH)% %RESPONSE_CODE% %BYTES_RECEIVED% %BYTES_SENT%";
    pair.policies(|policies| policies.access_logs = file(&path, format)).await;
    let mut client = TcpStream::connect(pair.outbound).await.unwrap();
    let upgrade = b"GET /chat HTTP/1.1\r\nHost: backend\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    client.write_all(upgrade).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head", client.read_u8()).await.unwrap());
    }
    client.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    soon("the echo", client.read_exact(&mut echo)).await.unwrap();
    assert!(!path.exists(), "it is open");
    drop(client);
    assert_eq!(lines(&path, 1).await, ["/chat 101 4 4"]);
}

/// A listener at an address; the lines of each connection, until one says `close`.
async fn listen(at: SocketAddr) -> tokio::sync::mpsc::Receiver<String> {
    let listener = TcpListener::bind(at).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let close = line.contains("close");
                sender.send(line).await.unwrap();
                if close {
                    break;
                }
            }
        }
    });
    receiver
}

#[tokio::test]
async fn lines_go_to_a_listener_and_find_it_again() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let at = address();
    let form = [("path", "%REQ(:PATH)%"), ("code", "%RESPONSE_CODE%")];
    let form = form.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let line = LogLine { form: Some(LogForm::Json(form)), omit_empty: false };
    pair.policies(|policies| {
        policies.access_logs = log(LogBackend::Tcp { address: at.to_string(), line });
    })
    .await;
    // Nobody listens yet: requests are answered, and what is said of them waits.
    assert_eq!(call(pair.outbound, "/status/200").await.status, 200);
    let mut lines = listen(at).await;
    let mut next = async || {
        let line = soon("a line", lines.recv()).await.unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    assert_eq!(next().await, json!({"path": "/status/200", "code": 200}));
    for path in ["/status/201?close", "/status/202", "/status/203"] {
        call(pair.outbound, path).await;
        assert_eq!(next().await["path"], path);
    }
}

#[tokio::test]
async fn what_has_no_value_is_left_out_where_that_is_asked_for() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let fields = [("code", "%RESPONSE_CODE%"), ("none", "%REQ(X-NONE)%"), ("text", "<%REQ(X-NONE)%>")];
    let fields = fields.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let texts = LogForm::Plain("%RESPONSE_CODE% <%REQ(X-NONE)%>".to_owned());
    let of = |name: &str, form: &LogForm, omit_empty: bool| {
        let line = LogLine { form: Some(form.clone()), omit_empty };
        let path = path(name).to_str().unwrap().to_owned();
        AccessLog { caller: CallerMatch::default(), backend: LogBackend::File { path, line } }
    };
    let json = LogForm::Json(fields);
    pair.policies(|policies| {
        policies.access_logs = vec![
            of("plain", &texts, false),
            of("plain-omitting", &texts, true),
            of("json", &json, false),
            of("json-omitting", &json, true),
        ];
    })
    .await;
    assert_eq!(call(pair.outbound, "/status/204").await.status, 204);
    assert_eq!(lines(&path("plain"), 1).await, ["204 <->"]);
    assert_eq!(lines(&path("plain-omitting"), 1).await, ["204 <>"]);
    let object = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let written = object(&lines(&path("json"), 1).await[0]);
    assert_eq!(written, json!({"code": 204, "none": null, "text": "<->"}));
    let written = object(&lines(&path("json-omitting"), 1).await[0]);
    assert_eq!(written, json!({"code": 204, "text": "<>"}));
}

#[tokio::test]
async fn who_says_nothing_of_the_form_gets_kumas_line() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let collector = Collector::start().await;
    let backends = [
        LogBackend::File { path: path.to_str().unwrap().to_owned(), line: LogLine::default() },
        LogBackend::OpenTelemetry { collector: collector.over_grpc(), attributes: vec![], body: None },
    ];
    pair.policies(|policies| policies.access_logs = backends.into_iter().flat_map(log).collect()).await;
    assert_eq!(call(pair.outbound, "/status/404").await.status, 404);
    assert!(pair.web.engine.shared().sinks.flush(crate::world::DEADLINE).await, "flushed");
    let line = lines(&path, 1).await.remove(0);
    assert!(line.contains("] default \"GET /status/404 HTTP/1.1\" 404 - 0 "), "{line}");
    assert!(line.contains("\"web\" \"backend\""), "{line}");
    let logs = collector.logs();
    let body = logs[0]["body"].as_str().unwrap();
    // Each backend makes its own line; both say the same but for how long the answer took to end.
    assert!(body.contains("] default \"GET /status/404 HTTP/1.1\" 404 - 0 "), "{body}");
    assert_eq!(logs[0]["attributes"], json!({}));
}

#[tokio::test]
async fn a_backend_that_takes_nothing_costs_lines_and_no_request() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    // Each line fills a hundredth of the queue.
    let long = "x".repeat(90_000);
    pair.policies(|policies| {
        policies.access_logs = log(LogBackend::Tcp { address: at.clone(), line: plain(&long) });
    })
    .await;
    let mut client = http1(pair.outbound).await;
    for _ in 0..400 {
        let answer = whole(soon("an answer", client.send_request(get("/status/200"))).await.unwrap()).await;
        assert_eq!(answer.status, 200);
        client.ready().await.unwrap();
    }
    let mut metrics = String::new();
    pair.web.engine.shared().sinks.render(&mut metrics).unwrap();
    let dropped = format!("meridian_proxy_telemetry_dropped_total{{backend=\"tcp:{at}\"}} ");
    let dropped = metrics.lines().find_map(|line| line.strip_prefix(&dropped)).unwrap();
    assert!(dropped.parse::<u64>().unwrap() > 100, "{metrics}");
}

#[tokio::test]
async fn a_collector_gets_records() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let collector = Collector::start().await;
    pair.policies(|policies| {
        policies.access_logs = log(LogBackend::OpenTelemetry {
            collector: collector.over_grpc(),
            attributes: vec![("service.called".into(), "%KUMA_DESTINATION_SERVICE%".into())],
            body: Some(json!({"path": "%REQ(:PATH)%", "code": "%RESPONSE_CODE%", "n": 1})),
        });
    })
    .await;
    assert_eq!(call(pair.outbound, "/status/418").await.status, 418);
    assert!(pair.web.engine.shared().sinks.flush(crate::world::DEADLINE).await, "flushed");
    let logs = collector.logs();
    assert_eq!(logs.len(), 1);
    assert_eq!(
        logs[0],
        json!({
            "resource": {
                "service.name": "web", "service.instance.id": "web-1", "kuma.mesh": "default", "kuma.zone": "east",
            },
            "attributes": {"service.called": "backend"},
            "body": {"path": "/status/418", "code": "418", "n": 1},
        })
    );
}

#[tokio::test]
async fn a_long_body_is_counted_to_its_last_byte() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    pair.policies(|policies| policies.access_logs = file(&path, "%BYTES_RECEIVED% %BYTES_SENT%")).await;
    let big = Bytes::from(vec![b'x'; 3 << 20]);
    let mut client = http1(pair.outbound).await;
    let response = client.send_request(request(Method::POST, "/echo", text(big.clone()))).await.unwrap();
    assert!(whole(response).await.body == big);
    assert_eq!(lines(&path, 1).await, [format!("{0} {0}", big.len())]);
}

#[tokio::test]
async fn records_go_over_http_where_that_is_asked_for() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let (at, posted) = http_collector().await;
    pair.policies(|policies| {
        policies.access_logs = log(LogBackend::OpenTelemetry {
            collector: config::Collector { endpoint: at.to_string(), http_path: Some(String::new()) },
            attributes: vec![],
            body: Some(json!("%REQ(:PATH)%")),
        });
    })
    .await;
    assert_eq!(call(pair.outbound, "/status/201").await.status, 201);
    // The first post is refused, and sent again.
    let (line, content, body) = until("the record", async || posted.0.lock().unwrap().first().cloned()).await;
    assert_eq!((line.as_str(), content.as_str()), ("POST /v1/logs", "application/x-protobuf"));
    let message = ExportLogsServiceRequest::decode(body).unwrap();
    let record = &message.resource_logs[0].scope_logs[0].log_records[0];
    assert!(format!("{:?}", record.body).contains("/status/201"), "{record:?}");
}

#[tokio::test]
async fn a_routes_requests_are_told_to_its_own_backends() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let dir = tempfile::tempdir().unwrap();
    let (all, own) = (dir.path().join("all"), dir.path().join("own"));
    let format = "%REQ(:PATH)% %RESPONSE_CODE%";
    let access_logs = Some(file(&own, format));
    let policies = Some(RoutePolicies { access_logs, ..RoutePolicies::default() });
    let matched = HttpMatch { path: Some(PathMatch::Prefix("/status/204".into())), ..HttpMatch::default() };
    let rules = vec![HttpRule { policies, ..HttpRule::default() }];
    pair.web.feed(types::ROUTES, "backend", &Routes::Http(HttpRoutes { matches: vec![matched], rules }));
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/status/204").await.status, 204);
    assert_eq!(lines(&own, 1).await, ["/status/204 204"], "nobody is told of the service");
    pair.policies(|policies| policies.access_logs = file(&all, format)).await;
    for status in [204, 200] {
        assert_eq!(call(pair.outbound, &format!("/status/{status}")).await.status, status);
    }
    assert_eq!(lines(&all, 1).await, ["/status/200 200"]);
    assert_eq!(lines(&own, 2).await, ["/status/204 204", "/status/204 204"]);
}
