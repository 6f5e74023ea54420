//! How long connections and streams may take.

use crate::timer::{Sleep, Timer};
use http::StatusCode;
use meridian_proxy_config::{ConnectionTimeouts, StreamTimeouts};
use pin_project_lite::pin_project;
use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// How long a connection may take to be there (Kuma's default).
pub const CONNECT: Duration = Duration::from_secs(5);
/// Nothing either way for so long ends a TCP connection (Kuma's default).
pub const TCP_IDLE: Duration = Duration::from_secs(3_600);
/// How long a server may take to begin its answer to a request without a body; not for gRPC, whose streams may be
/// silent (Kuma's default).
const ANSWER: Duration = Duration::from_secs(15);

/// Of connections to one destination or application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub connect: Duration,
    /// Of TCP connections, and of those that have changed their protocol.
    pub tcp_idle: Option<Duration>,
    /// Of HTTP connections without a request; `None`: the pool's own.
    pub http_idle: Option<Duration>,
    pub max_age: Option<Duration>,
    /// From the first byte of an HTTP/1.1 request that comes in to the end of its head.
    pub request_head: Option<Duration>,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self::from(&ConnectionTimeouts::default())
    }
}

impl From<&ConnectionTimeouts> for ConnectionLimits {
    fn from(config: &ConnectionTimeouts) -> Self {
        let idle = config.idle_millis.map(Duration::from_millis);
        Self {
            connect: config.connect_millis.map_or(CONNECT, |millis| Duration::from_millis(millis.get())),
            tcp_idle: Some(idle.unwrap_or(TCP_IDLE)).filter(|limit| !limit.is_zero()),
            http_idle: idle.filter(|limit| !limit.is_zero()),
            max_age: limit(config.max_age_millis),
            request_head: limit(config.request_head_millis),
        }
    }
}

fn limit(millis: Option<u64>) -> Option<Duration> {
    millis.filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// Of one request and its answer, in ticks of the worker's timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamLimits {
    request: Option<u64>,
    /// `request` ends with the answer's head, and is for requests without a body.
    head: bool,
    idle: Option<u64>,
    max: Option<u64>,
}

impl StreamLimits {
    /// At an inbound: what no policy limits has no limit.
    pub fn inbound(config: &StreamTimeouts) -> Self {
        let ticks = |millis| limit(millis).map(Timer::ticks);
        Self {
            request: ticks(config.request_millis),
            head: false,
            idle: ticks(config.idle_millis),
            max: ticks(config.max_millis),
        }
    }

    /// At an outbound: an answer must begin in time, unless a policy says otherwise.
    pub fn outbound(config: &StreamTimeouts, grpc: bool) -> Self {
        let given = Self::inbound(config);
        match config.request_millis {
            Some(_) => given,
            None => Self { request: (!grpc).then(|| Timer::ticks(ANSWER)), head: true, ..given },
        }
    }

    /// How long a stream of another protocol may be silent, and how long it may last.
    pub fn tunnel(&self) -> (Option<Duration>, Option<Duration>) {
        let span = |ticks: Option<u64>| ticks.map(Timer::span);
        (span(self.idle).or(Some(TCP_IDLE)), span(self.max))
    }

    /// The clock of a stream that begins; `None` if nothing limits it. `whole`: the request has no body;
    /// `tries`: each attempt has a limit of its own ([`Clock::begin_try`]).
    pub fn begin(&self, timer: &Timer, whole: bool, tries: bool) -> Option<Rc<Clock>> {
        let request = self.request.filter(|_| whole || !self.head);
        let limits = Self { request, ..*self };
        if !tries {
            limits.request.or(limits.idle).or(limits.max)?;
        }
        let now = timer.now();
        Some(Rc::new(Clock {
            timer: timer.clone(),
            limits,
            times: Times {
                began: now,
                moved: Cell::new(now),
                sent: Cell::new(whole.then_some(now)),
                answered: Cell::new(false),
                attempt: Cell::new(None),
            },
            watcher: RefCell::default(),
        }))
    }

    /// At which tick a stream is late, and by which limit.
    fn due(&self, times: &Times) -> Option<(u64, Late)> {
        // One tick more: the first was not a whole one.
        let at =
            |from: u64, limit: Option<u64>, late| Some((from.saturating_add(limit?).saturating_add(1), late));
        let ends = !(self.head && times.answered.get());
        let request =
            times.sent.get().filter(|_| ends).and_then(|sent| at(sent, self.request, Late::Request));
        let idle = at(times.moved.get(), self.idle, Late::Idle);
        let max = at(times.began, self.max, Late::Max);
        let waiting = times.attempt.get().filter(|_| !times.answered.get());
        let attempt = waiting
            .zip(times.sent.get())
            .and_then(|((began, limit), sent)| at(began.max(sent), Some(limit), Late::Try));
        [request, idle, max, attempt].into_iter().flatten().min_by_key(|(tick, _)| *tick)
    }
}

/// Which limit was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    Request,
    Idle,
    Max,
    /// Of the present attempt.
    Try,
}

/// What has happened on a stream, in ticks.
struct Times {
    began: u64,
    /// When a byte last went either way.
    moved: Cell<u64>,
    /// When the request was complete.
    sent: Cell<Option<u64>>,
    /// The answer's head has come.
    answered: Cell<bool>,
    /// When the present attempt began, and how long it may take.
    attempt: Cell<Option<(u64, u64)>>,
}

/// Holds one request and its answer to their limits. Bodies tell it what moves; whoever waits asks it.
pub struct Clock {
    timer: Timer,
    limits: StreamLimits,
    times: Times,
    watcher: RefCell<Option<Waker>>,
}

impl Clock {
    /// Bytes went either way.
    pub fn moved(&self) {
        self.times.moved.set(self.timer.now());
    }

    /// The request is complete.
    pub fn sent(&self) {
        if self.times.sent.get().is_none() {
            self.times.sent.set(Some(self.timer.now()));
            // Whoever waits has a deadline now.
            if let Some(watcher) = self.watcher.take() {
                watcher.wake();
            }
        }
    }

    /// An attempt begins; in ticks, how long it may take.
    pub fn begin_try(&self, limit: u64) {
        self.times.attempt.set(Some((self.timer.now(), limit)));
    }

    /// The attempt is over, without an answer that counts.
    pub fn end_try(&self) {
        self.times.attempt.set(None);
    }

    /// The answer's head has come.
    pub fn answered(&self) {
        self.times.answered.set(true);
        self.moved();
    }

    /// What a client is told: whether it was itself that was slow.
    pub fn status(&self) -> StatusCode {
        match self.times.sent.get() {
            Some(_) => StatusCode::GATEWAY_TIMEOUT,
            None => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Waits for a future, but no longer than the limits allow. Resolves to the limit that came first otherwise.
    pub fn hold<F: Future>(&self, future: F) -> Held<'_, F> {
        Held { clock: self, future, alarm: None }
    }

    /// Ready when a limit is exceeded. `alarm` is kept by whoever polls: it is set for the earliest tick at which that
    /// can be, and set anew only when it has rung.
    pub fn poll_late(&self, cx: &mut Context<'_>, alarm: &mut Option<Sleep>) -> Poll<Late> {
        if self.times.sent.get().is_none() {
            *self.watcher.borrow_mut() = Some(cx.waker().clone());
        }
        loop {
            let Some((tick, late)) = self.limits.due(&self.times) else {
                *alarm = None;
                return Poll::Pending;
            };
            if self.timer.now() >= tick {
                return Poll::Ready(late);
            }
            let set = match alarm.take() {
                Some(set) if set.deadline() <= tick => set,
                _ => self.timer.sleep_until(tick),
            };
            let set = alarm.insert(set);
            if Pin::new(set).poll(cx).is_pending() {
                return Poll::Pending;
            }
            *alarm = None;
        }
    }
}

pin_project! {
    /// A future that is held to its limits. By hand: an `async fn` would have the space of the future twice.
    pub struct Held<'a, F> {
        clock: &'a Clock,
        #[pin]
        future: F,
        alarm: Option<Sleep>,
    }
}

impl<F: Future> Future for Held<'_, F> {
    type Output = Result<F::Output, Late>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.future.poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => this.clock.poll_late(cx, this.alarm).map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(began: u64, moved: u64, sent: Option<u64>, answered: bool) -> Times {
        Times {
            began,
            moved: Cell::new(moved),
            sent: Cell::new(sent),
            answered: Cell::new(answered),
            attempt: Cell::new(None),
        }
    }

    fn timeouts(request: Option<u64>, idle: Option<u64>, max: Option<u64>) -> StreamTimeouts {
        StreamTimeouts { request_millis: request, idle_millis: idle, max_millis: max }
    }

    #[test]
    fn the_first_limit_counts() {
        let limits = StreamLimits::inbound(&timeouts(Some(1_000), Some(500), Some(3_000)));
        for (now, expected) in [
            (times(0, 0, None, false), Some((6, Late::Idle))),
            (times(0, 20, None, false), Some((26, Late::Idle))),
            (times(0, 20, Some(10), true), Some((21, Late::Request))),
            (times(0, 29, Some(28), true), Some((31, Late::Max))),
        ] {
            assert_eq!(limits.due(&now), expected);
        }
    }

    #[test]
    fn an_attempt_has_its_own_limit_until_it_is_answered() {
        let limits = StreamLimits::inbound(&timeouts(Some(1_000), None, None));
        let tried = |sent, began, answered| {
            let times = times(0, 0, sent, answered);
            times.attempt.set(Some((began, 3)));
            limits.due(&times)
        };
        assert_eq!(tried(None, 0, false), None, "the client is not done");
        assert_eq!(tried(Some(0), 0, false), Some((4, Late::Try)));
        assert_eq!(tried(Some(2), 1, false), Some((6, Late::Try)));
        assert_eq!(tried(Some(0), 9, false), Some((11, Late::Request)));
        assert_eq!(tried(Some(0), 0, true), Some((11, Late::Request)));
    }

    #[test]
    fn zero_is_no_limit_and_unset_is_as_it_was() {
        let none = timeouts(Some(0), Some(0), Some(0));
        assert_eq!(StreamLimits::outbound(&none, false).due(&times(0, 0, Some(0), false)), None);
        let unset = StreamTimeouts::default();
        let outbound = StreamLimits::outbound(&unset, false);
        assert_eq!(outbound.due(&times(0, 0, Some(0), false)), Some((151, Late::Request)));
        assert_eq!(outbound.due(&times(0, 0, Some(0), true)), None, "only to the head");
        assert_eq!(StreamLimits::outbound(&unset, true).due(&times(0, 0, Some(0), false)), None);
        assert_eq!(StreamLimits::inbound(&unset), StreamLimits::default());
    }

    #[test]
    fn a_body_puts_off_only_what_is_not_a_policys() {
        let timer = Timer::default();
        let begin = |config: &StreamTimeouts, whole| {
            StreamLimits::outbound(config, false).begin(&timer, whole, false).is_some()
        };
        assert!(begin(&StreamTimeouts::default(), true));
        assert!(!begin(&StreamTimeouts::default(), false));
        assert!(begin(&timeouts(Some(100), None, None), false));
    }

    #[test]
    fn connections_have_todays_limits_unless_told_otherwise() {
        let limits = ConnectionLimits::default();
        assert_eq!((limits.connect, limits.tcp_idle), (CONNECT, Some(TCP_IDLE)));
        assert_eq!((limits.http_idle, limits.max_age), (None, None));
        let never = ConnectionTimeouts { idle_millis: Some(0), ..ConnectionTimeouts::default() };
        assert_eq!(ConnectionLimits::from(&never).tcp_idle, None);
    }
}
