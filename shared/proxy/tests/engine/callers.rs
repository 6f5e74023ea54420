//! Rules for some callers, whatever their kind: by identity, by what it begins with, and by the session's server name.

use crate::{
    apps::{call, http_app},
    world::{DEADLINE, Pair, until},
};
use meridian_proxy_config::{
    AccessLog, Action, CallerMatch, CallerTimeouts, Effect, Fault, FaultRule, LogBackend, LogForm, LogLine,
    Permission, PermissionRule, Protocol, Rate, RateLimits, RequestLimit, StreamTimeouts,
};
use std::num::{NonZeroU32, NonZeroU64};

/// Who is meant, and whether it is `web`, which calls by [`crate::world::endpoint`]'s server name.
fn matches() -> [(CallerMatch, bool); 8] {
    let text = |text: &str| Some(text.to_owned());
    let exact = |id| CallerMatch { spiffe_exact: text(id), ..CallerMatch::default() };
    let under = |id| CallerMatch { spiffe_prefix: text(id), ..CallerMatch::default() };
    let by_name = |sni| CallerMatch { sni: text(sni), ..CallerMatch::default() };
    let name = "sni.msvc.default.east.backend.main";
    [
        (exact("spiffe://default/web"), true),
        (exact("spiffe://default"), false),
        (under("spiffe://default"), true),
        (under("spiffe://default/w"), false),
        (by_name(name), true),
        (by_name("sni.msvc.default.east.backend"), false),
        (CallerMatch { sni: text(name), ..exact("spiffe://default/web") }, true),
        (CallerMatch { sni: text("other"), ..exact("spiffe://default/web") }, false),
    ]
}

async fn pair() -> Pair {
    Pair::start(Protocol::Http, http_app(false).await.0).await
}

#[tokio::test]
async fn permissions_are_for_whom_they_name() {
    let pair = pair().await;
    let rule = |action, caller| PermissionRule { action, caller, policy: "mine".into() };
    for (caller, is_web) in matches() {
        for (action, others, allowed) in [
            (Action::Allow, Action::Deny, is_web),
            (Action::AllowWithShadowDeny, Action::Deny, is_web),
            (Action::Deny, Action::Allow, !is_web),
        ] {
            let rules = vec![rule(action, caller.clone()), rule(others, CallerMatch::default())];
            pair.change_inbound(|inbound| inbound.permission = Permission { rules });
            pair.settled().await;
            let expected = if allowed { (200, None) } else { (403, Some("no-permission")) };
            // A session that ends with its permission may take a request with it.
            until(&format!("{expected:?} by {action:?} {caller:?}"), async || {
                let answer = call(pair.outbound, "/status/200").await;
                assert!(answer.status == 503 || (answer.status, answer.denied()) == expected, "{answer:?}");
                (answer.status != 503).then_some(())
            })
            .await;
        }
    }
}

/// Who was late shows whose limit held: the caller's side has a longer one.
#[tokio::test]
async fn timeouts_are_for_whom_they_name() {
    let pair = pair().await;
    let of = |millis| StreamTimeouts { request_millis: Some(millis), ..StreamTimeouts::default() };
    pair.policies(|policies| policies.stream_timeouts = of(1_500)).await;
    for (caller, is_web) in matches() {
        let its = CallerTimeouts { caller: caller.clone(), stream_timeouts: of(100) };
        pair.inbound_policies(|policies| policies.caller_timeouts = vec![its]).await;
        let late = if is_web { "the application" } else { "backend" };
        let answer = call(pair.outbound, "/hang").await;
        assert_eq!(answer.text(), format!("{late} did not answer in time\n"), "{caller:?}");
    }
}

#[tokio::test]
async fn rates_are_for_whom_they_name() {
    let pair = pair().await;
    let one_a_day = Rate { num: NonZeroU32::MIN, interval_millis: NonZeroU64::new(86_400_000).unwrap() };
    for (caller, is_web) in matches() {
        let limit = RequestLimit {
            caller: caller.clone(),
            rate: Some(one_a_day),
            status: 429,
            set_headers: vec![],
            add_headers: vec![],
        };
        let limits = RateLimits { requests: vec![limit], connections: None };
        pair.inbound_policies(|policies| policies.rate_limits = limits).await;
        assert_eq!(call(pair.outbound, "/status/200").await.status, 200, "{caller:?}");
        let second = call(pair.outbound, "/status/200").await.status;
        assert_eq!(second, if is_web { 429 } else { 200 }, "{caller:?}");
    }
}

/// What is for everybody is written after what is for some.
#[tokio::test]
async fn logs_are_of_whom_they_name() {
    let pair = pair().await;
    let folder = tempfile::tempdir().unwrap();
    for (i, (caller, is_web)) in matches().into_iter().enumerate() {
        let [its, all] = ["its", "all"].map(|name| folder.path().join(format!("{i}-{name}")));
        let to = |path: &std::path::Path, caller| {
            let line = LogLine { form: Some(LogForm::Plain("%REQ(:PATH)%".into())), omit_empty: false };
            AccessLog { caller, backend: LogBackend::File { path: path.to_str().unwrap().into(), line } }
        };
        let logs = vec![to(&its, caller.clone()), to(&all, CallerMatch::default())];
        pair.inbound_policies(|policies| policies.access_logs = logs).await;
        assert_eq!(call(pair.outbound, "/status/200").await.status, 200);
        assert!(pair.backend.engine.shared().sinks.flush(DEADLINE).await, "flushed");
        until("the line of all", async || all.exists().then_some(())).await;
        assert_eq!(its.exists(), is_web, "{caller:?}");
    }
}

#[tokio::test]
async fn faults_are_for_whom_they_name() {
    let pair = pair().await;
    for (caller, is_web) in matches() {
        let always = vec![Fault { per_million: 1_000_000, effect: Effect::Abort(418) }];
        let rule = FaultRule { caller: caller.clone(), faults: always, first_only: false };
        pair.inbound_policies(|policies| policies.faults = vec![rule]).await;
        let answer = call(pair.outbound, "/status/200").await.status;
        assert_eq!(answer, if is_web { 418 } else { 200 }, "{caller:?}");
    }
}
