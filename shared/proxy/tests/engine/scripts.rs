//! Lua on requests and answers: what a client and an application see of it.

use crate::{
    apps::{
        Answer, absolute, call, failing_app, get, http_app, http1, http2, raw, request, streaming, text,
        whole,
    },
    world::{Pair, endpoint, resource, soon, until},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Frame;
use meridian_proxy_config::{
    DestinationPolicies, DestinationTls, EndpointSet, FilterAction, Outbound, Protocol, RequestFilter,
    RetryOn, RuleSet, Script, Target, types,
};
use std::net::SocketAddr;

fn script(source: &str) -> Script {
    Script { policy: "mine".into(), source: source.into() }
}

fn on_request(body: &str) -> Vec<Script> {
    vec![script(&format!("function envoy_on_request(h)\n{body}\nend"))]
}

fn on_response(body: &str) -> Vec<Script> {
    vec![script(&format!("function envoy_on_response(h)\n{body}\nend"))]
}

async fn inbound(protocol: Protocol, application: SocketAddr, scripts: Vec<Script>) -> Pair {
    let pair = Pair::start(protocol, application).await;
    pair.inbound_policies(|policies| policies.scripts = scripts).await;
    pair
}

/// A service of the mesh at port 8080, as the application would call it.
fn by_name(service: &str) -> Outbound {
    Outbound {
        bind: None,
        vips: vec!["240.0.0.7".parse().unwrap()],
        port: 8080,
        hostnames: vec![format!("{service}.mesh")],
        target: Target::Destination(format!("default//{service}/8080")),
    }
}

async fn send(pair: &Pair, request: Request<crate::apps::Payload>) -> Answer {
    let mut client = http1(pair.outbound).await;
    whole(soon("an answer", client.send_request(request)).await.unwrap()).await
}

/// Failures and answers of scripts at backend's inbound.
fn counted(pair: &Pair) -> (u64, u64) {
    let traffic = pair.backend.engine.shared().metrics.traffic("inbound", "backend");
    (traffic.cell(0).scripts_failed.value(), traffic.cell(0).scripts_answered.value())
}

/// An application that reads each request to its end before it gives the body back.
async fn patient(http2: bool) -> SocketAddr {
    failing_app(http2, 0, || Response::new(text(""))).await.0
}

#[tokio::test]
async fn a_header_is_added_on_both_sides_and_both_ways() {
    let (application, _) = http_app(false).await;
    let pair = inbound(
        Protocol::Http,
        application,
        on_request(
            r#"
            local peer = h:connection():ssl():uriSanPeerCertificate()[1]
            h:headers():add("x-peer", peer .. " " .. h:streamInfo():protocol())
            h:headers():replace("Host", "other.mesh")
            "#,
        ),
    )
    .await;
    pair.policies(|policies| {
        policies.scripts = vec![
            script(r#"function envoy_on_request(h) h:headers():add("x-order", "1") end function envoy_on_response(h) h:headers():add("x-back", "1") end"#),
            script(r#"function envoy_on_request(h) h:headers():add("x-order", "2") end function envoy_on_response(h) h:headers():add("x-back", "2") end"#),
        ];
    })
    .await;
    let answer = call(pair.outbound, "/headers").await;
    let lines: Vec<&str> = answer.text().lines().collect();
    for line in ["x-peer: spiffe://default/web HTTP/2", "x-order: 1", "x-order: 2", "host: other.mesh"] {
        assert!(lines.contains(&line), "{line}: {lines:?}");
    }
    let back: Vec<_> = answer.headers.get_all("x-back").iter().collect();
    assert_eq!(back, ["2", "1"], "answers go the other way");
}

#[tokio::test]
async fn the_documented_script_blocks() {
    let (application, seen) = http_app(false).await;
    let script = r#"
        for name, value in pairs(h:headers()) do
            if string.find(string.lower(value), "${jndi:", 1, true) then
                h:respond({[":status"] = "403", ["x-why"] = name}, "blocked")
            end
        end
    "#;
    let pair = inbound(Protocol::Http, application, on_request(script)).await;
    let mut bad = get("/headers");
    bad.headers_mut().insert("user-agent", "${jndi:ldap://x}".parse().unwrap());
    let answer = send(&pair, bad).await;
    assert_eq!((answer.status, answer.text()), (403, "blocked"));
    assert_eq!(answer.headers["x-why"], "user-agent");
    assert_eq!((call(pair.outbound, "/headers").await.status, seen.requests()), (200, 1));
    assert_eq!(counted(&pair), (0, 1));
}

#[tokio::test]
async fn a_body_is_replaced_with_its_length() {
    for (protocol, http2) in [(Protocol::Http, false), (Protocol::Http2, true)] {
        let pair = inbound(
            protocol,
            patient(http2).await,
            vec![script(
                r#"
                function envoy_on_request(h)
                    local body = h:body()
                    body:setBytes(string.upper(body:getBytes(0, body:length())) .. "!")
                end
                function envoy_on_response(h)
                    local body = h:body()
                    body:setBytes("<" .. body:getBytes(0, body:length()) .. ">")
                end
                "#,
            )],
        )
        .await;
        let mut posted = request(Method::POST, "/", text("hello"));
        posted.headers_mut().insert("expect", "100-continue".parse().unwrap());
        let answer = send(&pair, posted).await;
        assert_eq!((answer.status, answer.text()), (200, "<HELLO!>"), "{protocol:?}");
        // Without a body there is none to replace.
        assert_eq!(counted(&pair), (0, 0));
        assert_eq!(send(&pair, get("/")).await.status, 200);
        assert_eq!(counted(&pair).0, 2);
    }
}

/// What a script leaves of a message is one message, however it lies.
#[tokio::test]
async fn a_length_that_is_a_lie_changes_nothing() {
    let lie = r#"
        h:headers():replace("content-length", "3")
        h:headers():add("transfer-encoding", "chunked")
        h:body():setBytes("0123456789")
    "#;
    let pair = inbound(Protocol::Http, patient(false).await, on_request(lie)).await;
    let text = raw(
        pair.outbound,
        b"POST / HTTP/1.1\r\nhost: backend.mesh\r\ncontent-length: 5\r\n\r\nhelloGET /x HTTP/1.1\r\nhost: backend.mesh\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.contains("0123456789"), "{text}");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let (application, seen) = http_app(false).await;
    let pair = inbound(Protocol::Http, application, on_request("h:body()")).await;
    // Over HTTP/2: an answer before the body's end closes an HTTP/1.1 connection, and crosses with what is sent.
    let post = async |body| {
        let mut client = http2(pair.outbound).await;
        let response = client.send_request(absolute(Method::POST, "/echo", body));
        soon("an answer", response).await.unwrap().status().as_u16()
    };
    let long = Bytes::from(vec![b'x'; (1 << 20) + 1]);
    assert_eq!((post(text(long.clone())).await, seen.requests()), (413, 0));
    let (sender, streamed) = streaming();
    tokio::spawn(async move { while sender.send(Frame::data(long.slice(..1 << 16))).await.is_ok() {} });
    assert_eq!((post(streamed).await, seen.requests()), (413, 0));
    let fits = Bytes::from(vec![b'x'; 1 << 20]);
    assert_eq!(send(&pair, request(Method::POST, "/echo", text(fits.clone()))).await.body, fits);
    // Of an answer as well.
    pair.inbound_policies(|policies| policies.scripts = on_response("h:body()")).await;
    assert_eq!(call(pair.outbound, "/flood").await.status, 500);
}

#[tokio::test]
async fn a_body_flows_past_a_script_with_its_trailers() {
    let (application, _) = http_app(true).await;
    let pair = inbound(
        Protocol::Http2,
        application,
        on_request(
            r#"
            h:headers():add("x-before", "yes")
            local length = 0
            for piece in h:bodyChunks() do length += piece:length() end
            h:trailers():replace("x-sum", h:trailers() and length or "no")
            "#,
        ),
    )
    .await;
    let (sender, body) = streaming();
    let mut client = http2(pair.outbound).await;
    let mut response =
        soon("the head", client.send_request(absolute(Method::POST, "/echo", body))).await.unwrap();
    // A conversation: each piece comes back before the next one is sent.
    for piece in ["one", "two", "three"] {
        sender.send(Frame::data(Bytes::from_static(piece.as_bytes()))).await.unwrap();
        let frame = soon("the echo", http_body_util::BodyExt::frame(&mut response)).await.unwrap().unwrap();
        assert_eq!(frame.data_ref().unwrap(), piece);
    }
    let trailers: HeaderMap = [("x-sum".parse().unwrap(), "?".parse().unwrap())].into_iter().collect();
    sender.send(Frame::trailers(trailers)).await.unwrap();
    drop(sender);
    let trailers = whole(response).await.trailers.unwrap();
    assert_eq!(trailers["x-sum"], "11");
    assert_eq!(counted(&pair), (0, 0));
}

#[tokio::test]
async fn who_may_answer_is_not_passed_by() {
    let (application, seen) = http_app(false).await;
    let pair =
        inbound(Protocol::Http, application, on_request("h:headers():add('x-a', '1') error('oh')")).await;
    let answer = call(pair.outbound, "/headers").await;
    assert!(answer.text().contains("x-a: 1"), "as the script has left it");
    assert_eq!((answer.status, counted(&pair)), (200, (1, 0)));
    for deciding in [
        "while true do end h:respond({[':status'] = '403'}, '')",
        "error('oh') h:respond({[':status'] = '403'}, '')",
        "string.rep('x', 2 ^ 30) h:respond({[':status'] = '403'}, '')",
    ] {
        pair.inbound_policies(|policies| policies.scripts = on_request(deciding)).await;
        let answer = call(pair.outbound, "/headers").await;
        assert_eq!((answer.status, answer.denied()), (503, Some("script-failed")), "{deciding}");
    }
    assert_eq!((seen.requests(), counted(&pair)), (1, (4, 0)));
    let report = pair.backend.engine.shared().denials.snapshot();
    let rows: Vec<_> =
        report.denials.iter().map(|row| (row.reason.as_str(), row.rule.as_str(), row.count)).collect();
    assert_eq!(rows, [("script-failed", "mine", 3)]);
}

/// While a script computes, others wait no longer than its budget.
#[tokio::test]
async fn one_endless_script_holds_up_nobody() {
    let (application, _) = http_app(false).await;
    let pair = inbound(
        Protocol::Http,
        application,
        on_request("if h:headers():get(':path') == '/status/200' then while true do end end"),
    )
    .await;
    let (slow, fast) = tokio::join!(call(pair.outbound, "/status/200"), call(pair.outbound, "/headers"));
    assert_eq!((slow.status, fast.status, counted(&pair)), (200, 200, (1, 0)));
}

/// A state that a script has filled begins anew.
#[tokio::test]
async fn a_script_that_keeps_everything_begins_anew() {
    let (application, _) = http_app(false).await;
    let keeps = r#"
        kept = kept or {}
        table.insert(kept, string.rep("x", 1e6) .. #kept)
        h:headers():add("x-kept", #kept)
    "#;
    let pair = inbound(Protocol::Http, application, on_request(keeps)).await;
    let mut ones = 0;
    for _ in 0..40 {
        let answer = call(pair.outbound, "/headers").await;
        assert_eq!(answer.status, 200);
        ones += usize::from(answer.text().lines().any(|line| line == "x-kept: 1"));
    }
    assert!(ones >= 2, "{ones}");
}

/// A sidecar's script asks another service of the mesh, as the sidecar.
#[tokio::test]
async fn another_service_decides() {
    let (application, seen) = http_app(false).await;
    let (authority, asked) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.web.feed(types::ENDPOINTS, "auth", &EndpointSet { endpoints: vec![endpoint(authority, "east")] });
    let mut auth = crate::world::destination(Protocol::Http, &[]);
    auth.tls = DestinationTls::Off;
    auth.service = "auth".into();
    auth.tiers = vec![vec!["auth".into()]];
    pair.web.feed(types::DESTINATION, "default//auth/8080", &auth);
    pair.web.feed(types::OUTBOUND, "auth", &by_name("auth"));
    let asks = |cluster: &str, path: &str, timeout: u32| {
        on_request(&format!(
            r#"
            local headers, body = h:httpCall("{cluster}", {{
                [":method"] = "GET", [":path"] = "{path}", [":authority"] = "auth.mesh", ["x-who"] = h:headers():get("x-user"),
            }}, nil, {timeout})
            if headers[":status"] ~= "200" then
                h:respond({{[":status"] = "401"}}, body)
            end
            h:headers():add("x-auth", (string.match(body, "x%-who: (%w+)")))
            "#
        ))
    };
    let ask = async |scripts: Vec<Script>| {
        pair.policies(|policies| policies.scripts = scripts).await;
        let mut request = get("/headers");
        request.headers_mut().insert("x-user", "me".parse().unwrap());
        send(&pair, request).await
    };
    for cluster in ["auth", "auth:8080", "auth.mesh:8080"] {
        let answer = ask(asks(cluster, "/headers", 5_000)).await;
        assert!(answer.text().contains("x-auth: me"), "{cluster}: {}", answer.text());
    }
    let told = (seen.requests(), asked.requests());
    for (cluster, path) in
        [("auth", "/status/403"), ("auth", "/hang"), ("nobody", "/headers"), ("auth", "/flood")]
    {
        let answer = ask(asks(cluster, path, 200)).await;
        let expected = if path == "/status/403" { "body" } else { "upstream failure" };
        assert_eq!((answer.status, answer.text()), (401, expected), "{cluster} {path}");
    }
    assert_eq!((seen.requests(), asked.requests() - told.1), (told.0, 3));
    // One that nobody waits for.
    let before = asked.requests();
    let post = r#"h:httpCall("auth", {[":method"] = "GET", [":path"] = "/headers", [":authority"] = "a"}, nil, 5000, true)"#;
    assert_eq!(ask(on_request(post)).await.status, 200);
    until("the call", async || (asked.requests() > before).then_some(())).await;
}

/// A script whose own service it asks is asked in turn, so often and no more.
#[tokio::test]
async fn a_script_that_calls_itself_comes_to_an_end() {
    let (application, seen) = http_app(false).await;
    let asks = r#"
        local headers = h:httpCall("backend", {[":method"] = "GET", [":path"] = "/headers", [":authority"] = "backend.mesh"}, nil, 3000)
        h:headers():add("x-asked", headers[":status"])
    "#;
    let pair = inbound(Protocol::Http, application, on_request(asks)).await;
    let itself = crate::world::destination(Protocol::Http, &["backend"]);
    pair.backend.feed(types::DESTINATION, "default//backend/8080", &itself);
    let endpoints = EndpointSet { endpoints: vec![endpoint(pair.inbound, "east")] };
    pair.backend.feed(types::ENDPOINTS, "backend", &endpoints);
    pair.backend.feed(types::OUTBOUND, "backend", &by_name("backend"));
    let mut policies = pair.backend.inbound(Protocol::Http, pair.inbound, pair.application);
    policies.permission = crate::world::allow(&["web", "backend"]);
    policies.policies.scripts = on_request(asks);
    pair.backend.feed(types::INBOUND, "main", &policies);
    pair.settled().await;
    let answer = call(pair.outbound, "/headers").await;
    assert!(answer.text().contains("x-asked: 200"), "{}", answer.text());
    // The request, and four that come of it; the fifth is refused.
    assert_eq!((seen.requests(), counted(&pair)), (5, (1, 0)));
    // Who says so of his own request is refused.
    let forged = async |hops: &str| {
        let mut request = get("/headers");
        request.headers_mut().insert("x-meridian-script-hops", hops.parse().unwrap());
        send(&pair, request).await.status
    };
    assert_eq!((forged("5").await, forged("x").await, seen.requests()), (508, 508, 5));
    assert_eq!((forged("4").await, seen.requests()), (200, 6));
}

/// A machine that was slow for a moment does not turn a script off.
#[tokio::test]
async fn a_script_that_had_no_time_to_begin_begins_later() {
    let (application, _) = http_app(false).await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let late = format!(
        "if os.time() < {} then while true do end end
        function envoy_on_request(h) h:headers():add('x-begun', 'yes') end",
        now + 2
    );
    let pair = inbound(Protocol::Http, application, vec![script(&late)]).await;
    let begun = async || call(pair.outbound, "/headers").await.text().contains("x-begun: yes");
    assert!(!begun().await);
    until("the script", async || begun().await.then_some(())).await;
}

/// Requests that wait hold their states: there are no more than a few of them.
#[tokio::test]
async fn full_states_that_live_on_are_few() {
    let (application, _) = http_app(true).await;
    let keeps = r#"
        local kept = string.rep("x", 65e5)
        h:body()
        if #kept == 0 then h:respond({[":status"] = "403"}) end
    "#;
    let pair = inbound(Protocol::Http2, application, on_request(keeps)).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    let mut client = http2(pair.outbound).await;
    let (mut senders, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (sender, body) = streaming();
        sender.send(Frame::data(Bytes::from_static(b"x"))).await.unwrap();
        senders.push(sender);
        answers.push(tokio::spawn(client.send_request(absolute(Method::POST, "/echo", body))));
        client.ready().await.unwrap();
    }
    let again = async |expected: u16| {
        until("another answer", async || {
            (call(pair.outbound, "/headers").await.status == expected).then_some(())
        })
        .await;
    };
    again(503).await;
    drop(senders);
    for answer in answers {
        assert_eq!(soon("an answer", answer).await.unwrap().unwrap().status(), 200);
    }
    again(200).await;
}

/// What a script makes of a method or a status leaves no length of a body that does not come.
#[tokio::test]
async fn the_next_answer_is_not_taken_for_a_body() {
    let (application, _) = http_app(false).await;
    let pair =
        inbound(Protocol::Http, application, on_request("h:headers():replace(':method', 'HEAD')")).await;
    let two = b"GET /headers HTTP/1.1\r\nhost: backend.mesh\r\n\r\nGET /headers HTTP/1.1\r\nhost: backend.mesh\r\nconnection: close\r\n\r\n";
    let both = async || raw(pair.outbound, two).await;
    assert_eq!(both().await.matches("content-length: 0").count(), 2);
    let fewer = on_response("h:headers():replace(':status', '204')");
    pair.inbound_policies(|policies| policies.scripts = fewer).await;
    let text = both().await;
    assert_eq!((text.matches("HTTP/1.1 204").count(), text.matches("x-app").count()), (2, 2), "{text}");
    assert!(!text.contains("uri /headers"), "{text}");
}

/// The filter sees what the client has sent; scripts come after it.
#[tokio::test]
async fn a_filter_comes_first() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let filter = RequestFilter {
        policy: "no-lookups".into(),
        rule_sets: vec![RuleSet::Log4shell],
        patterns: vec![],
        action: FilterAction::Block,
        status: 403,
        max_body_bytes: 1 << 20,
        on_limit: FilterAction::Block,
    };
    pair.inbound_policies(|policies| {
        policies.filter = Some(filter);
        policies.scripts = on_request("local body = h:body() body:setBytes('harmless')");
    })
    .await;
    let attack = request(Method::POST, "/echo", text("${jndi:ldap://x}"));
    let answer = send(&pair, attack).await;
    assert_eq!((answer.status, answer.denied(), seen.requests()), (403, Some("request-filter"), 0));
    let answer = send(&pair, request(Method::POST, "/echo", text("hello"))).await;
    assert_eq!((answer.status, answer.text()), (200, "harmless"));
}

#[tokio::test]
async fn what_is_repeated_is_what_the_script_made() {
    let busy = || Response::builder().status(503).body(text("busy")).unwrap();
    let (application, seen) = failing_app(false, 2, busy).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| {
        policies.retry = Some(crate::retries::retry(3, &[RetryOn::ServerError]));
        policies.scripts = on_request("h:body():setBytes('again')");
    })
    .await;
    let answer = send(&pair, request(Method::POST, "/", text("once"))).await;
    assert_eq!((answer.status, answer.text(), seen.requests()), (200, "again", 3));
}

#[tokio::test]
async fn an_upgrade_goes_through_scripts() {
    let (application, _) = http_app(false).await;
    let pair = inbound(
        Protocol::Http,
        application,
        vec![script("function envoy_on_request(h) h:headers():add('a', 'b') end function envoy_on_response(h) h:headers():add('c', 'd') end")],
    )
    .await;
    let asked = raw(
        pair.outbound,
        b"GET /upgrade HTTP/1.1\r\nhost: backend.mesh\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\nhello",
    )
    .await;
    assert!(asked.starts_with("HTTP/1.1 101") && asked.ends_with("hello"), "{asked}");
}

/// A script changes under requests: those under way keep theirs.
/// One of them may have been there to refuse; what else the policies say stays as it was.
#[tokio::test]
async fn calls_whose_scripts_cannot_be_understood_are_refused() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    let broken = DestinationPolicies { scripts: vec![script("function (")], ..Default::default() };
    let refused = pair.web.engine.apply(&[resource(types::POLICIES, "backend", &broken)], &[]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 503);
    assert_eq!(seen.requests(), 1);
    pair.policies(|_| {}).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
}

#[tokio::test]
async fn a_script_is_exchanged_and_its_state_goes() {
    let (application, _) = http_app(false).await;
    let count = "n = (n or 0) + 1 h:headers():add('x-n', n)";
    let pair = inbound(Protocol::Http, application, on_request(count)).await;
    let n = async || {
        let answer = call(pair.outbound, "/headers").await;
        answer.text().lines().find_map(|line| line.strip_prefix("x-n: ").map(str::to_owned))
    };
    assert_eq!((n().await.as_deref(), n().await.as_deref()), (Some("1"), Some("2")));
    // Something else changes: the state stays.
    pair.inbound_policies(|policies| {
        policies.scripts = on_request(count);
        policies.stream_timeouts.max_millis = Some(60_000);
    })
    .await;
    assert_eq!(n().await.as_deref(), Some("3"));
    pair.inbound_policies(|policies| policies.scripts = vec![]).await;
    assert_eq!(n().await, None);
    pair.inbound_policies(|policies| policies.scripts = on_request(count)).await;
    assert_eq!(n().await.as_deref(), Some("1"));
}

/// Prints what a script on headers adds to a request between two sidecars of one process. Run it by hand, in release.
#[tokio::test]
#[ignore = "measures, and asserts nothing"]
async fn what_a_script_costs() {
    const REQUESTS: u32 = 5_000;
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let round = async || {
        let mut client = http1(pair.outbound).await;
        let start = std::time::Instant::now();
        for _ in 0..REQUESTS {
            client.ready().await.unwrap();
            drop(whole(client.send_request(get("/status/204")).await.unwrap()).await);
        }
        start.elapsed() / REQUESTS
    };
    round().await;
    let without = round().await;
    let header = "if h:headers():get('x-none') == nil then h:headers():add('x-new', 'yes') end";
    pair.inbound_policies(|policies| policies.scripts = on_request(header)).await;
    round().await;
    let with = round().await;
    println!(
        "a request {without:?}, with a script {with:?}: {:.2}",
        with.as_secs_f64() / without.as_secs_f64()
    );
}
