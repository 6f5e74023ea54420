//! Outlier detection: which endpoints of a cluster are left out, and until when.
//!
//! A state machine without a clock and without a task of its own: callers say what happened and what time it is, in
//! ticks of the worker's timer. What an interval's end would do (judging rates, forgiving) is done by the first event
//! after it, as of that end, so that a proxy at rest does nothing. Each worker judges by what it saw itself.

use crate::timer::Timer;
use meridian_proxy_config::{FailurePercentage, OutlierDetection, SuccessRate};
use std::{
    cell::{Cell, RefCell},
    num::NonZeroU32,
    rc::Rc,
    time::Duration,
};

mod rates;
use rates::Rate;

/// No endpoint is left out for longer at a time, unless the first time already is longer (Envoy's bound).
const LONGEST: Duration = Duration::from_secs(300);

/// When an endpoint is an outlier; compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Ticks.
    interval: u64,
    ejection: u64,
    longest: u64,
    max_percent: usize,
    split: bool,
    total: Option<NonZeroU32>,
    gateway: Option<NonZeroU32>,
    local: Option<NonZeroU32>,
    success_rate: Option<SuccessRate>,
    failure_percentage: Option<FailurePercentage>,
}

/// What came of a request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was answered with this HTTP status.
    Status(u16),
    /// Of what is no HTTP, no more is known.
    Connected,
    /// The proxy itself could not do it: no connection, a lost one, no answer in time.
    Local,
}

impl Event {
    /// A gRPC status, as the HTTP status that stands for it.
    pub fn grpc(status: u32) -> Self {
        Self::Status(match status {
            2 | 13 | 15 => 500,
            4 => 504,
            12 => 501,
            14 => 503,
            _ => 200,
        })
    }
}

/// What is known of one endpoint.
#[derive(Default)]
pub struct Record {
    /// Failures in a row.
    total: Cell<u32>,
    gateway: Cell<u32>,
    local: Cell<u32>,
    /// In this interval.
    answers: Rate,
    attempts: Rate,
    out_until: Cell<u64>,
    /// How often it was out of late.
    times: Cell<u32>,
}

/// What is known of a cluster's endpoints.
#[derive(Default)]
pub struct Detector {
    records: RefCell<Vec<Rc<Record>>>,
    /// When the present interval ends; 0: none has begun.
    interval_ends: Cell<u64>,
    /// From then on no endpoint is out.
    all_back: Cell<u64>,
}

impl OutlierPolicy {
    pub fn compile(config: &OutlierDetection) -> Self {
        let ticks = |millis| Timer::ticks(Duration::from_millis(millis)).max(1);
        let ejection = ticks(config.ejection_millis.get());
        let whole = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            interval: ticks(config.interval_millis.get()),
            ejection,
            longest: ejection.max(Timer::ticks(LONGEST)),
            max_percent: whole(config.max_percent),
            split: config.split,
            total: config.total_failures,
            gateway: config.gateway_failures,
            local: config.local_failures,
            success_rate: config.success_rate,
            failure_percentage: config.failure_percentage,
        }
    }

    /// Whether one more endpoint may be left out, when so many of all are.
    fn allows(&self, out: usize, all: usize) -> bool {
        let within = out.saturating_add(1).saturating_mul(100) <= self.max_percent.saturating_mul(all);
        within || (out == 0 && self.max_percent > 0)
    }
}

impl Record {
    pub fn is_out(&self, now: u64) -> bool {
        self.out_until.get() > now
    }

    /// Takes an event in; whether it makes the endpoint an outlier.
    fn note(&self, policy: &OutlierPolicy, event: Event) -> bool {
        if policy.split {
            let failed = event == Event::Local;
            self.attempts.count(failed);
            let out = row(&self.local, failed, policy.local);
            return match event {
                Event::Status(status) => self.answered(policy, status),
                Event::Connected | Event::Local => out,
            };
        }
        match event {
            Event::Status(status) => self.answered(policy, status),
            Event::Connected => self.answered(policy, 200),
            Event::Local => self.answered(policy, 503),
        }
    }

    fn answered(&self, policy: &OutlierPolicy, status: u16) -> bool {
        let failed = status >= 500;
        self.answers.count(failed);
        let total = row(&self.total, failed, policy.total);
        let gateway = row(&self.gateway, matches!(status, 502..=504), policy.gateway);
        total || gateway
    }

    /// How often it was out of late, at a time: each interval in use takes one time away.
    fn times(&self, policy: &OutlierPolicy, at: u64) -> u32 {
        let rested = at.saturating_sub(self.out_until.get()).checked_div(policy.interval).unwrap_or_default();
        self.times.get().saturating_sub(u32::try_from(rested).unwrap_or(u32::MAX))
    }
}

/// Counts failures in a row; whether there are as many as must be. They are then counted anew.
fn row(count: &Cell<u32>, failed: bool, limit: Option<NonZeroU32>) -> bool {
    let now = if failed { count.get().saturating_add(1) } else { 0 };
    let reached = limit.is_some_and(|limit| now >= limit.get());
    count.set(if reached { 0 } else { now });
    reached
}

impl Detector {
    /// The cluster's endpoints from now on.
    pub fn watch(&self, records: Vec<Rc<Record>>) {
        *self.records.borrow_mut() = records;
    }

    /// Whether no endpoint is out: nearly always.
    pub fn is_idle(&self, now: u64) -> bool {
        now >= self.all_back.get()
    }

    /// Takes in what came of a request or connection to an endpoint; how many endpoints are out by it.
    pub fn note(&self, policy: &OutlierPolicy, record: &Record, event: Event, now: u64) -> usize {
        let by_rates = self.close_interval(policy, now);
        let out = record.note(policy, event) && self.eject(policy, record, now, now);
        by_rates + usize::from(out)
    }

    /// Judges rates if an interval has ended.
    fn close_interval(&self, policy: &OutlierPolicy, now: u64) -> usize {
        // A policy may have come with a shorter one.
        let ends = self.interval_ends.get().min(now.saturating_add(policy.interval));
        self.interval_ends.set(ends);
        if now < ends {
            return 0;
        }
        self.interval_ends.set(now.saturating_add(policy.interval));
        let records: Vec<_> = self.records.borrow().clone();
        let outliers = rates::outliers(policy, &records, now);
        for record in &records {
            record.answers.reset();
            record.attempts.reset();
        }
        outliers.into_iter().filter(|record| self.eject(policy, record, ends, now)).count()
    }

    /// Leaves an endpoint out as of `at`, which is now or was a moment ago, if one more may be.
    fn eject(&self, policy: &OutlierPolicy, record: &Record, at: u64, now: u64) -> bool {
        let records = self.records.borrow();
        let known = records.iter().any(|known| std::ptr::eq(known.as_ref(), record));
        let out = records.iter().filter(|record| record.is_out(now)).count();
        if !known || record.is_out(now) || !policy.allows(out, records.len()) {
            return false;
        }
        let most = policy.longest.div_ceil(policy.ejection.max(1));
        let times = u64::from(record.times(policy, at)).saturating_add(1).min(most);
        let until = at.saturating_add(policy.ejection.saturating_mul(times).min(policy.longest));
        if until <= now {
            return false;
        }
        record.times.set(u32::try_from(times).unwrap_or(u32::MAX));
        record.out_until.set(until);
        self.all_back.set(self.all_back.get().max(until));
        true
    }
}

#[cfg(test)]
mod tests;
