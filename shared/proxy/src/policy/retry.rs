//! When a request is sent once more, and after how long.

use super::matching::HeaderMatcher;
use crate::timer::Timer;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use meridian_proxy_config::{DestinationPolicies, HostSelection, ResetFormat, Retry, RetryOn};
use std::{collections::BTreeMap, time::Duration};

/// Repetitions that may be under way at a time whatever else is: with few requests a share of them is nothing.
pub const BUDGET_LEAST: usize = 3;
/// Beyond, repetitions may be this share of the requests that wait for an answer, in percent (Envoy's default). A
/// service that is down as a whole is not brought down further by being asked several times.
const BUDGET_PERCENT: usize = 20;

static ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// Connections tried for one at most, whatever a policy says: beyond, a destination that refuses each would keep a proxy
/// busy with one client's connection.
pub const MAX_CONNECT_ATTEMPTS: usize = 16;
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether one more repetition is within the budget.
pub fn affordable(waiting: usize, repeating: usize) -> bool {
    repeating < BUDGET_LEAST.max(waiting * BUDGET_PERCENT / 100)
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'a> {
    Answered(StatusCode, &'a HeaderMap),
    /// No endpoint could be reached.
    Unreachable,
    /// The server says that it did not touch the request.
    Refused,
    /// Anything else that ended it before an answer.
    Lost,
}

#[derive(Debug)]
pub struct RetryPolicy {
    pub max: u32,
    /// In ticks.
    pub per_try: Option<u64>,
    pub hosts: HostSelection,
    base: Duration,
    longest: Duration,
    resets: Vec<(HeaderName, ResetFormat)>,
    longest_reset: Duration,
    on: Vec<RetryOn>,
    methods: Vec<Method>,
    request: Vec<HeaderMatcher>,
    response: Vec<HeaderMatcher>,
}

impl RetryPolicy {
    /// # Errors
    /// A name or pattern can't be understood.
    pub fn compile(config: &Retry) -> Result<Self, String> {
        let method =
            |name: &String| Method::from_bytes(name.as_bytes()).map_err(|_| format!("method {name:?}"));
        let headers = |of: &[_]| of.iter().map(HeaderMatcher::compile).collect::<Result<Vec<_>, _>>();
        let limited = config.rate_limited.as_ref();
        let resets = limited.map(|limited| limited.headers.as_slice()).unwrap_or_default();
        let reset = |header: &meridian_proxy_config::ResetHeader| {
            let name = HeaderName::try_from(header.name.as_str());
            Ok((name.map_err(|_| format!("header name {:?}", header.name))?, header.format))
        };
        Ok(Self {
            max: config.max.get(),
            per_try: config
                .per_try_millis
                .filter(|millis| *millis > 0)
                .map(|millis| Timer::ticks(Duration::from_millis(millis))),
            hosts: config.hosts.clone(),
            base: Duration::from_millis(config.back_off.base_millis),
            longest: Duration::from_millis(config.back_off.max_millis),
            resets: resets.iter().map(reset).collect::<Result<_, String>>()?,
            longest_reset: Duration::from_millis(limited.map_or(0, |limited| limited.max_millis)),
            on: config.on.clone(),
            methods: config.methods.iter().map(method).collect::<Result<_, _>>()?,
            request: headers(&config.request_headers)?,
            response: headers(&config.response_headers)?,
        })
    }

    /// Whether a request may be repeated at all.
    pub fn covers(&self, method: &Method, headers: &HeaderMap) -> bool {
        (self.methods.is_empty() && self.request.is_empty())
            || self.methods.contains(method)
            || self.request.iter().any(|matcher| matcher.matches(headers))
    }

    /// Whether what came of an attempt is a reason for another.
    pub fn repeats(&self, attempt: Attempt<'_>) -> bool {
        self.on.iter().any(|on| holds(*on, attempt))
            || matches!(attempt, Attempt::Answered(_, headers) if self.response.iter().any(|m| m.matches(headers)))
    }

    /// Whether a repetition should rather go elsewhere than to an endpoint with these tags; `been`: the request was there.
    pub fn avoids(&self, tags: &BTreeMap<String, String>, been: bool) -> bool {
        let has = |(name, value): (&String, &String)| tags.get(name) == Some(value);
        let tagged = |omitted: &BTreeMap<_, _>| !omitted.is_empty() && omitted.iter().all(has);
        (self.hosts.omit_previous && been) || self.hosts.omit_tagged.iter().any(tagged)
    }

    /// How long to wait before repetition number `n` (1..). `share`: a random number, 0 to 1. `now`: seconds since 1970.
    pub fn wait(&self, n: u32, headers: Option<&HeaderMap>, now: u64, share: f64) -> Duration {
        if let Some(said) = headers.and_then(|headers| self.said(headers, now)) {
            // Those who were told the same do not come back in the same moment.
            return said + said.mul_f64(share / 2.0).min(Duration::from_secs(1));
        }
        let window = self.base.saturating_mul(1 << n.saturating_sub(1).min(20)).min(self.longest);
        window.mul_f64(share)
    }

    /// When an answer says to come again.
    fn said(&self, headers: &HeaderMap, now: u64) -> Option<Duration> {
        self.resets.iter().find_map(|(name, format)| {
            let number: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let seconds = match format {
                ResetFormat::Seconds => number,
                ResetFormat::UnixTimestamp => number.saturating_sub(now),
            };
            Some(Duration::from_secs(seconds)).filter(|wait| *wait <= self.longest_reset)
        })
    }
}

fn holds(on: RetryOn, attempt: Attempt<'_>) -> bool {
    match (on, attempt) {
        (RetryOn::ServerError, Attempt::Answered(status, _)) => status.as_u16() >= 500,
        (RetryOn::GatewayError, Attempt::Answered(status, _)) => (502..=504).contains(&status.as_u16()),
        (RetryOn::Conflict, Attempt::Answered(status, _)) => status == StatusCode::CONFLICT,
        (RetryOn::Status(wanted), Attempt::Answered(status, _)) => status.as_u16() == wanted,
        (RetryOn::RateLimited, Attempt::Answered(_, headers)) => headers.contains_key(&ENVOY_RATELIMITED),
        (RetryOn::GrpcStatus(wanted), Attempt::Answered(_, headers)) => {
            let status = headers.get(&GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
            status == Some(wanted)
        }
        (RetryOn::ServerError | RetryOn::GatewayError, _) => true,
        (RetryOn::Reset, Attempt::Lost | Attempt::Refused) => true,
        (RetryOn::RefusedStream, Attempt::Refused) => true,
        (RetryOn::ConnectFailure, Attempt::Unreachable) => true,
        _ => false,
    }
}

/// How often a connection is tried, if a policy says so.
pub fn connect_attempts(policies: &DestinationPolicies) -> Option<usize> {
    let said = policies.connect_attempts?;
    Some(usize::try_from(said.get()).map_or(MAX_CONNECT_ATTEMPTS, |said| said.min(MAX_CONNECT_ATTEMPTS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proxy_config::{BackOff, RateLimitedBackOff, ResetHeader};
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    fn config(on: &[RetryOn]) -> Retry {
        Retry {
            max: 3.try_into().unwrap(),
            per_try_millis: None,
            back_off: BackOff { base_millis: 25, max_millis: 250 },
            rate_limited: None,
            on: on.to_vec(),
            methods: vec![],
            request_headers: vec![],
            response_headers: vec![],
            hosts: HostSelection::default(),
        }
    }

    fn policy(on: &[RetryOn]) -> RetryPolicy {
        RetryPolicy::compile(&config(on)).unwrap()
    }

    #[test]
    fn conditions() {
        let none = HeaderMap::new();
        let grpc: HeaderMap = [(GRPC_STATUS.clone(), "14".parse().unwrap())].into_iter().collect();
        let limited: HeaderMap = [(ENVOY_RATELIMITED.clone(), "true".parse().unwrap())].into_iter().collect();
        let status = |code| Attempt::Answered(StatusCode::from_u16(code).unwrap(), &none);
        for (on, attempt, expected) in [
            (RetryOn::ServerError, status(500), true),
            (RetryOn::ServerError, status(499), false),
            (RetryOn::ServerError, Attempt::Lost, true),
            (RetryOn::ServerError, Attempt::Unreachable, true),
            (RetryOn::GatewayError, status(500), false),
            (RetryOn::GatewayError, status(503), true),
            (RetryOn::GatewayError, Attempt::Lost, true),
            (RetryOn::Reset, Attempt::Lost, true),
            (RetryOn::Reset, Attempt::Unreachable, false),
            (RetryOn::Reset, status(503), false),
            (RetryOn::ConnectFailure, Attempt::Unreachable, true),
            (RetryOn::ConnectFailure, Attempt::Lost, false),
            (RetryOn::RefusedStream, Attempt::Refused, true),
            (RetryOn::RefusedStream, Attempt::Lost, false),
            (RetryOn::Conflict, status(409), true),
            (RetryOn::Status(418), status(418), true),
            (RetryOn::Status(418), status(500), false),
            (RetryOn::GrpcStatus(14), Attempt::Answered(StatusCode::OK, &grpc), true),
            (RetryOn::GrpcStatus(13), Attempt::Answered(StatusCode::OK, &grpc), false),
            (RetryOn::GrpcStatus(14), Attempt::Lost, false),
            (RetryOn::RateLimited, Attempt::Answered(StatusCode::TOO_MANY_REQUESTS, &limited), true),
            (RetryOn::RateLimited, status(429), false),
        ] {
            assert_eq!(policy(&[on]).repeats(attempt), expected, "{on:?} {attempt:?}");
        }
    }

    #[test]
    fn methods_and_request_headers_are_alternatives() {
        let header = meridian_proxy_config::HeaderMatch {
            name: "x-again".into(),
            value: meridian_proxy_config::HeaderValueMatch::Present,
        };
        let with = Retry { methods: vec!["GET".into()], request_headers: vec![header], ..config(&[]) };
        let policy = RetryPolicy::compile(&with).unwrap();
        let marked: HeaderMap = [("x-again".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        assert!(policy.covers(&Method::GET, &HeaderMap::new()));
        assert!(policy.covers(&Method::POST, &marked));
        assert!(!policy.covers(&Method::POST, &HeaderMap::new()));
    }

    #[test]
    fn a_repetition_avoids_where_it_was_and_what_has_all_of_some_tags() {
        let tags = |of: &[(&str, &str)]| -> BTreeMap<String, String> {
            of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let omitting = |previous, tagged: &[&[(&str, &str)]]| {
            let omit_tagged = tagged.iter().map(|of| tags(of)).collect();
            let hosts = HostSelection { omit_previous: previous, omit_tagged, ..HostSelection::default() };
            RetryPolicy::compile(&Retry { hosts, ..config(&[]) }).unwrap()
        };
        let old = tags(&[("version", "1"), ("zone", "east")]);
        for (policy, been, avoided) in [
            (omitting(false, &[]), true, false),
            (omitting(true, &[]), true, true),
            (omitting(true, &[]), false, false),
            (omitting(false, &[&[("version", "1")]]), false, true),
            (omitting(false, &[&[("version", "1"), ("zone", "west")]]), false, false),
            (omitting(false, &[&[("version", "2")], &[("zone", "east")]]), false, true),
            (omitting(false, &[&[]]), false, false),
        ] {
            assert_eq!(policy.avoids(&old, been), avoided, "{:?}", policy.hosts);
        }
    }

    #[test]
    fn a_server_says_when_to_come_again() {
        let header = |name: &str, format| ResetHeader { name: name.into(), format };
        let headers =
            vec![header("x-reset", ResetFormat::UnixTimestamp), header("retry-after", ResetFormat::Seconds)];
        let limited = Some(RateLimitedBackOff { headers, max_millis: 10_000 });
        let policy = RetryPolicy::compile(&Retry { rate_limited: limited, ..config(&[]) }).unwrap();
        let wait = |name: &'static str, value: &str| {
            let headers = [(HeaderName::from_static(name), value.parse().unwrap())].into_iter().collect();
            policy.wait(1, Some(&headers), 1_000, 0.0)
        };
        assert_eq!(wait("retry-after", "7"), Duration::from_secs(7));
        assert_eq!(wait("x-reset", "1004"), Duration::from_secs(4));
        assert_eq!(wait("x-reset", "10"), Duration::ZERO);
        // Too long, or no number: as if nothing was said.
        assert_eq!(wait("retry-after", "11"), Duration::ZERO);
        assert_eq!(wait("retry-after", "soon"), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn waits_grow_and_end(n in 1u32..40, share in 0.0f64..1.0) {
            let policy = policy(&[]);
            let wait = policy.wait(n, None, 0, share);
            prop_assert!(wait <= Duration::from_millis(250));
            prop_assert!(wait <= Duration::from_millis(25) * (1 << n.min(10)));
        }

        #[test]
        fn a_budget_is_a_share_of_what_waits(waiting in 0usize..10_000, repeating in 0usize..10_000) {
            let allowed = affordable(waiting, repeating);
            prop_assert_eq!(allowed, repeating < 3 || repeating < waiting / 5);
        }
    }

    #[test]
    fn connections_are_tried_a_bounded_number_of_times() {
        let said = |attempts| {
            connect_attempts(&DestinationPolicies { connect_attempts: attempts, ..Default::default() })
        };
        assert_eq!(said(None), None);
        for (attempts, expected) in [(1, 1), (16, 16), (17, 16), (u32::MAX, 16)] {
            assert_eq!(said(NonZeroU32::new(attempts)), Some(expected));
        }
    }
}
