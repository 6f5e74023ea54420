//! Callers are held to what policies say of their calls to the outside, each to its own.

use super::*;
use meridian_proxy_config::{DestinationPolicies, policies_of_callers};
use serde_json::{Value, json};
use std::time::Duration;

/// `web`'s Dataplane is selected by policies that say this of entries of a protocol.
fn say(egress: &mut Egress, of: &str, policies: Value) {
    let policies: DestinationPolicies = serde_json::from_value(policies).unwrap();
    egress.put(types::POLICIES, &policies_of_callers("set", of), &policies);
    let caller = Caller {
        mesh: MESH.into(),
        dataplane: "web-1".into(),
        mode: CallerMode::None,
        entries: vec![],
        policies: "set".into(),
    };
    egress.put(types::CALLER, "default/web-1", &caller);
    egress.publish();
}

fn everybody(protocol: Protocol, address: SocketAddr) -> Entry {
    let permission = Permission {
        rules: vec![PermissionRule {
            action: Action::Allow,
            caller: CallerMatch::default(),
            policy: "all".into(),
        }],
    };
    Entry { permission, ..entry(protocol, address) }
}

/// HTTP/1.1: the n-th request (1..) is answered with the status that `answer` gives, and its own body; requests are
/// counted. `/slow` takes half a second.
async fn moody(answer: fn(usize) -> u16) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counted = counted.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let status = answer(counted.fetch_add(1, Ordering::Relaxed) + 1);
                async move {
                    if request.uri().path() == "/slow" {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap();
                    let mut response = http::Response::new(http_body_util::Full::new(body.to_bytes()));
                    *response.status_mut() = status.try_into().unwrap();
                    Ok::<_, std::convert::Infallible>(response)
                }
            });
            tokio::task::spawn_local(async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            });
        }
    });
    (address, count)
}

async fn status(stream: &mut TlsStream<Socket>, path: &str) -> String {
    get(stream, "api.example", path).await.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_request_has_the_time_that_its_callers_policies_give_it() {
    local(async {
        let (server, _) = moody(|_| 200).await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&everybody(Protocol::Http, server));
        let mut web = egress.call("web", "api", "api.example", 443).await;
        let mut other = egress.call("other", "api", "api.example", 443).await;
        assert_eq!(status(&mut web, "/slow").await, "200");
        // On the connection that there is.
        say(&mut egress, "*/http", json!({"streamTimeouts": {"requestMillis": 100}}));
        assert_eq!(status(&mut web, "/slow").await, "504");
        assert_eq!(status(&mut web, "/").await, "200");
        assert_eq!(status(&mut other, "/slow").await, "200", "selected by no policy");
        // What is said of the entry is said instead of what holds for others.
        say(&mut egress, "api", json!({"streamTimeouts": {"requestMillis": 5000}}));
        assert_eq!(status(&mut web, "/slow").await, "200");
    })
    .await;
}

fn retry(max: u32, rest: Value) -> Value {
    let mut retry = json!({"max": max, "backOff": {"baseMillis": 1, "maxMillis": 1}, "on": ["gatewayError"]});
    retry.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    json!({ "retry": retry })
}

#[tokio::test]
async fn a_request_is_sent_again_with_its_body_where_a_policy_says_so() {
    local(async {
        let (server, count) = moody(|n| if n % 3 == 0 { 200 } else { 503 }).await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&everybody(Protocol::Http, server));
        let mut web = egress.call("web", "api", "api.example", 443).await;
        let post = "POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 5\r\n\r\nhello";
        web.write_all(post.as_bytes()).await.unwrap();
        assert!(response(&mut web).await.starts_with("HTTP/1.1 503 "), "nobody asked for more");
        assert_eq!(count.swap(0, Ordering::Relaxed), 1);

        say(&mut egress, "*/http", retry(2, json!({})));
        web.write_all(post.as_bytes()).await.unwrap();
        let answer = response(&mut web).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer}");
        assert_eq!(count.swap(0, Ordering::Relaxed), 3);

        say(&mut egress, "*/http", retry(1, json!({})));
        assert_eq!(status(&mut web, "/").await, "503", "once more is not enough");
        assert_eq!(count.swap(0, Ordering::Relaxed), 2);
        say(&mut egress, "*/http", retry(2, json!({"methods": ["POST"]})));
        assert_eq!(status(&mut web, "/").await, "503");
        assert_eq!(count.swap(0, Ordering::Relaxed), 1);
        say(&mut egress, "*/http", retry(2, json!({"perTryMillis": 100})));
        count.store(2, Ordering::Relaxed);
        assert_eq!(status(&mut web, "/slow").await, "504", "each took too long");
        assert_eq!(count.load(Ordering::Relaxed), 5);
    })
    .await;
}

#[tokio::test]
async fn what_a_caller_has_under_way_is_limited_and_takes_nothing_from_others() {
    local(async {
        let (server, count) = moody(|_| 200).await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&everybody(Protocol::Http, server));
        say(&mut egress, "*/http", json!({"atOnce": {"requests": 1}}));
        let mut one = egress.call("web", "api", "api.example", 443).await;
        let mut two = egress.call("web", "api", "api.example", 443).await;
        let mut other = egress.call("other", "api", "api.example", 443).await;
        one.write_all(b"GET /slow HTTP/1.1\r\nHost: api.example\r\n\r\n").await.unwrap();
        until(|| count.load(Ordering::Relaxed) == 1, || "the first request".to_owned()).await;
        let refused = get(&mut two, "api.example", "/").await;
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("max-requests"), "{refused}");
        assert_eq!(status(&mut other, "/").await, "200");
        assert!(response(&mut one).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(status(&mut two, "/").await, "200", "there is room again");
    })
    .await;
}

#[tokio::test]
async fn connections_are_limited_and_end_when_nothing_moves() {
    local(async {
        let (server, _) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&everybody(Protocol::Tcp, server));
        let limits = json!({"atOnce": {"connections": 1}, "connectionTimeouts": {"idleMillis": 300}});
        say(&mut egress, "*/tcp", limits);
        let mut one = egress.call("web", "api", "api.example", 443).await;
        let mut got = [0; 5];
        one.write_all(b"hello").await.unwrap();
        within(one.read_exact(&mut got)).await.unwrap();
        let mut two = egress.call("web", "api", "api.example", 443).await;
        assert!(rest(&mut two).await.1, "one is all that there may be");
        assert!(rest(&mut one).await.1, "nothing moved");
        let mut three = egress.call("web", "api", "api.example", 443).await;
        three.write_all(b"hello").await.unwrap();
        within(three.read_exact(&mut got)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_callers_connection_without_a_request_is_closed() {
    local(async {
        let (server, _) = moody(|_| 200).await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&everybody(Protocol::Http, server));
        say(&mut egress, "*/http", json!({"connectionTimeouts": {"idleMillis": 200}}));
        let mut web = egress.call("web", "api", "api.example", 443).await;
        assert_eq!(status(&mut web, "/slow").await, "200", "a request is not nothing");
        let (got, _) = rest(&mut web).await;
        assert_eq!(got, b"");
    })
    .await;
}

#[tokio::test]
async fn what_is_said_of_an_entry_holds_for_whoever_calls_it() {
    local(async {
        let (server, count) = moody(|_| 200).await;
        let mut egress = Egress::start(Resolver::default()).await;
        let with = |policies: Value| {
            let policies = serde_json::from_value(policies).unwrap();
            Entry { policies, ..everybody(Protocol::Http, server) }
        };
        egress.entry(&with(json!({})));
        let mut web = egress.call("web", "api", "api.example", 443).await;
        let mut other = egress.call("other", "api", "api.example", 443).await;
        assert_eq!(status(&mut web, "/").await, "200");
        // The connections stay: they lead where they led.
        let of_web = json!({"caller": {"spiffeExact": "spiffe://default/web"}});
        let mut limit = of_web.clone();
        limit["rate"] = json!({"num": 1, "intervalMillis": 3_600_000});
        limit["status"] = json!(429);
        egress.entry(&with(json!({"rateLimits": {"requests": [limit]}})));
        assert_eq!(status(&mut web, "/").await, "200");
        assert_eq!(status(&mut web, "/").await, "429");
        assert_eq!(status(&mut other, "/").await, "200");
        let mut fault = of_web;
        fault["faults"] = json!([{"perMillion": 1_000_000, "effect": {"abort": 501}}]);
        egress.entry(&with(json!({"faults": [fault]})));
        let before = count.load(Ordering::Relaxed);
        assert_eq!(status(&mut web, "/").await, "501");
        assert_eq!(count.load(Ordering::Relaxed), before, "nobody was asked");
        assert_eq!(status(&mut other, "/").await, "200");
        let connections = json!({"num": 1, "intervalMillis": 3_600_000});
        egress.entry(&with(json!({"rateLimits": {"connections": connections}})));
        let mut one = egress.call("web", "api", "api.example", 443).await;
        assert_eq!(status(&mut one, "/").await, "200");
        let mut two = egress.call("web", "api", "api.example", 443).await;
        drop(two.write_all(b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await);
        assert!(rest(&mut two).await.1, "one connection an hour");
    })
    .await;
}
