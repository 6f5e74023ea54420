//! How much an inbound lets in: token buckets that all workers of a proxy share.
//!
//! A bucket is one number, the time at which it will be full again; a token moves it on. So there is no lock, nothing
//! that refills, and nothing to do at rest. Rejected: a bucket a worker with its share of the rate, which would turn
//! callers away that happen to sit on one worker.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use meridian_proxy_config::{CallerIdentity, CallerMatch, Rate, RateLimits, RequestLimit};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// What one inbound lets in.
#[derive(Default)]
pub struct Rates {
    requests: Vec<Arc<RequestLimiter>>,
    connections: Option<Arc<Bucket>>,
}

/// What holds for some callers, together.
pub struct RequestLimiter {
    caller: CallerMatch,
    bucket: Option<Arc<Bucket>>,
    pub status: StatusCode,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

pub struct Bucket {
    rate: Rate,
    pace: Pace,
    start: Instant,
    /// Nanoseconds after `start`.
    full_at: AtomicU64,
}

/// A rate in nanoseconds: how long a token takes to come, and an empty bucket to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    token: u64,
    bucket: u64,
}

impl Rates {
    /// A rate that was there before for the same callers keeps its bucket, as full as it is.
    pub fn compile(config: &RateLimits, previous: Option<&Self>) -> Self {
        let keep = |rate: &Rate, old: Option<&Arc<Bucket>>| {
            let old = old.filter(|bucket| bucket.rate == *rate).cloned();
            old.unwrap_or_else(|| Arc::new(Bucket::new(*rate, Instant::now())))
        };
        let request = |limit: &RequestLimit| {
            let old = previous.and_then(|old| old.requests.iter().find(|old| old.caller == limit.caller));
            let old = old.and_then(|old| old.bucket.as_ref());
            Arc::new(RequestLimiter {
                caller: limit.caller.clone(),
                bucket: limit.rate.as_ref().map(|rate| keep(rate, old)),
                status: StatusCode::from_u16(limit.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS),
                set: headers(&limit.set_headers),
                add: headers(&limit.add_headers),
            })
        };
        let old = previous.and_then(|old| old.connections.as_ref());
        Self {
            requests: config.requests.iter().map(request).collect(),
            connections: config.connections.as_ref().map(|rate| keep(rate, old)),
        }
    }

    /// The limit of a caller's requests: the first that matches. `None`: no limit.
    pub fn of(&self, caller: &CallerIdentity, sni: Option<&str>) -> Option<&Arc<RequestLimiter>> {
        let first = self.requests.iter().find(|limit| limit.caller.matches(caller, sni));
        first.filter(|limit| limit.bucket.is_some())
    }

    /// Whether there is a rate of new connections.
    pub fn of_connections(&self) -> bool {
        self.connections.is_some()
    }

    /// Whether one more connection is within the rate; it then counts.
    pub fn admit_connection(&self, now: Instant) -> bool {
        self.connections.as_ref().is_none_or(|bucket| bucket.take(now))
    }
}

impl RequestLimiter {
    /// Whether one more request is within the rate; it then counts.
    pub fn admit(&self, now: Instant) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| bucket.take(now))
    }

    /// Gives the headers of an answer beyond the rate what a policy says of them.
    pub fn mark(&self, answer: &mut HeaderMap) {
        for (name, value) in &self.set {
            answer.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            answer.append(name, value.clone());
        }
    }
}

impl Bucket {
    fn new(rate: Rate, start: Instant) -> Self {
        Self { rate, pace: Pace::from(rate), start, full_at: AtomicU64::new(0) }
    }

    /// Takes a token, if there is one.
    fn take(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.start).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let take = |full_at| self.pace.take(full_at, now);
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Some 146 years: sums of a clock's time and an interval stay numbers.
const LONGEST: u64 = u64::MAX / 4;

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Self {
        let num = u64::from(rate.num.get());
        let interval = rate.interval_millis.get().saturating_mul(1_000_000).min(LONGEST);
        // Rounded before it is multiplied: the burst is exact, and the rate is by less than a token's nanosecond too
        // high.
        let token = (interval / num).max(1);
        Self { token, bucket: token.saturating_mul(num) }
    }
}

impl Pace {
    /// When a bucket will be full again after one more token is taken; `None` if there is none.
    fn take(self, full_at: u64, now: u64) -> Option<u64> {
        let next = full_at.max(now).saturating_add(self.token);
        (next.saturating_sub(now) <= self.bucket).then_some(next)
    }
}

/// What can be headers of an answer whose body is ours: policies were checked when they were written, and one header
/// less is better than an inbound that refuses everybody.
fn headers(pairs: &[(String, String)]) -> Vec<(HeaderName, HeaderValue)> {
    let framing = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    let parse = |(name, value): &(String, String)| {
        Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    pairs.iter().filter_map(parse).filter(|(name, _)| !framing.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proxy_config::CallerIdentity;
    use proptest::prelude::*;
    use std::{num::NonZeroU32, num::NonZeroU64, time::Duration};

    fn rate(num: u32, interval_millis: u64) -> Rate {
        Rate {
            num: NonZeroU32::new(num).unwrap(),
            interval_millis: NonZeroU64::new(interval_millis).unwrap(),
        }
    }

    fn limit(caller: CallerMatch, rate: Option<Rate>) -> RequestLimit {
        RequestLimit { caller, rate, status: 429, set_headers: vec![], add_headers: vec![] }
    }

    fn web() -> CallerMatch {
        CallerMatch { spiffe_exact: Some("spiffe://m/web".into()), ..CallerMatch::default() }
    }

    fn identity(service: &str) -> CallerIdentity {
        CallerIdentity { spiffe: vec![format!("spiffe://m/{service}")], ..CallerIdentity::default() }
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_a_token_at_a_time() {
        let start = Instant::now();
        let bucket = Bucket::new(rate(3, 300), start);
        let at = |millis| bucket.take(start + Duration::from_millis(millis));
        assert_eq!([at(0), at(0), at(0), at(0)], [true, true, true, false]);
        assert_eq!([at(99), at(100), at(100)], [false, true, false]);
        assert_eq!([at(250), at(250)], [true, false]);
        // However long nobody came, it holds no more.
        assert_eq!([at(9_000), at(9_000), at(9_000), at(9_000)], [true, true, true, false]);
    }

    #[test]
    fn a_rate_that_no_clock_can_tell_is_the_finest_that_it_can() {
        assert_eq!(Pace::from(rate(3, 1_000)), Pace { token: 333_333_333, bucket: 999_999_999 });
        assert_eq!(Pace::from(rate(u32::MAX, 51)), Pace { token: 1, bucket: u64::from(u32::MAX) });
        let endless = Pace::from(rate(1, u64::MAX));
        assert_eq!(endless, Pace { token: LONGEST, bucket: LONGEST });
        let full_at = endless.take(0, 1).unwrap();
        assert_eq!(endless.take(full_at, 2), None, "the one token is gone");
    }

    #[test]
    fn workers_share_a_bucket() {
        let start = Instant::now();
        let bucket = Bucket::new(rate(500, 1_000_000), start);
        let taken: usize = std::thread::scope(|scope| {
            let worker = || (0..500).filter(|_| bucket.take(start)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 500);
    }

    #[test]
    fn the_first_that_matches_decides_even_if_it_limits_nothing() {
        let config = RateLimits {
            requests: vec![limit(web(), None), limit(CallerMatch::default(), Some(rate(1, 1_000)))],
            connections: None,
        };
        let limits = Rates::compile(&config, None);
        assert!(limits.of(&identity("web"), None).is_none());
        assert!(limits.of(&identity("api"), None).is_some());
        assert!(limits.of(&CallerIdentity::default(), None).is_some());
        assert!(!limits.of_connections() && limits.admit_connection(Instant::now()));
    }

    #[test]
    fn only_a_rate_that_changes_begins_anew() {
        let all = CallerMatch::default;
        let of = |web_rate, connections| RateLimits {
            requests: vec![limit(web(), Some(web_rate)), limit(all(), Some(rate(1, 60_000)))],
            connections: Some(connections),
        };
        let now = Instant::now();
        let takes = |limits: &Rates| {
            let of = |who| limits.of(&identity(who), None).unwrap().admit(now);
            [of("web"), of("api"), limits.admit_connection(now)]
        };
        let first = Rates::compile(&of(rate(1, 60_000), rate(1, 60_000)), None);
        assert_eq!(takes(&first), [true; 3]);
        let same = Rates::compile(&of(rate(1, 60_000), rate(1, 60_000)), Some(&first));
        assert_eq!(takes(&same), [false; 3]);
        let other = Rates::compile(&of(rate(2, 60_000), rate(1, 60_000)), Some(&same));
        assert_eq!(takes(&other), [true, false, false]);
        let connections = Rates::compile(&of(rate(2, 60_000), rate(1, 50_000)), Some(&other));
        assert_eq!(takes(&connections), [true, false, true]);
    }

    #[test]
    fn an_answer_has_the_headers_that_it_can_have() {
        let mut config = limit(CallerMatch::default(), Some(rate(1, 1_000)));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        config.set_headers = vec![
            pair("content-type", "a/b"),
            pair("content-length", "9"),
            pair("b ad", "x"),
            pair("c", "\n"),
        ];
        config.add_headers = vec![pair("x", "1"), pair("x", "2"), pair("connection", "close")];
        let limits = Rates::compile(&RateLimits { requests: vec![config], connections: None }, None);
        let mut answer = HeaderMap::from_iter([(header::CONTENT_TYPE, "text/plain".parse().unwrap())]);
        limits.of(&CallerIdentity::default(), None).unwrap().mark(&mut answer);
        let found: Vec<_> =
            answer.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(found, [("content-type", "a/b"), ("x", "1"), ("x", "2")]);
    }

    proptest! {
        /// In no span of time does a bucket give more than it holds and what came in that span.
        #[test]
        fn a_bucket_never_gives_too_much(
            num in 1u32..50,
            interval in 51u64..5_000,
            steps in prop::collection::vec(0u64..400, 1..200),
        ) {
            let pace = Pace::from(rate(num, interval));
            let (mut now, mut full_at) = (0u64, 0u64);
            let mut taken: Vec<u64> = Vec::new();
            for step in steps {
                now += step * 1_000_000;
                if let Some(next) = pace.take(full_at, now) {
                    full_at = next;
                    taken.push(now);
                }
            }
            for (i, first) in taken.iter().enumerate() {
                for (count, last) in (1u64..).zip(&taken[i..]) {
                    prop_assert!(count <= u64::from(num) + (last - first) / pace.token);
                }
            }
        }

        /// Whoever keeps to the rate is never turned away.
        #[test]
        fn who_keeps_to_the_rate_is_let_in(num in 1u32..50, interval in 51u64..5_000, count in 1u64..300) {
            let pace = Pace::from(rate(num, interval));
            let mut full_at = 0;
            for i in 0..count {
                full_at = pace.take(full_at, i * pace.token).unwrap();
            }
        }
    }
}
