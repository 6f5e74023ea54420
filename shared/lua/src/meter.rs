//! Counts what an invocation uses, and ends it when that is too much.

use crate::limits::{STEPS, TIME};
use nix::time::{ClockId, clock_gettime};
use std::{
    cell::Cell,
    fmt,
    time::{Duration, Instant},
};

/// What a script had used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Steps,
    Time,
    Memory,
}

/// What took no longer counts as if the script had had the processor all the time.
const SHORT: Duration = Duration::from_millis(1);

/// What an invocation has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    steps: u32,
    time: Duration,
}

impl Default for Left {
    fn default() -> Self {
        Self { steps: STEPS, time: TIME }
    }
}

/// Of one state: for the invocation that it is running.
#[derive(Default)]
pub(crate) struct Meter {
    steps: Cell<u32>,
    deadline: Cell<Option<Instant>>,
    /// The processor's time at which the budget is used up.
    until: Cell<Duration>,
    /// Once it is set every step fails: a script that catches the error gets no further.
    exceeded: Cell<Option<Budget>>,
}

impl Meter {
    /// Runs a part of an invocation.
    pub(crate) fn measure<T>(&self, left: &mut Left, run: impl FnOnce() -> T) -> (T, Option<Budget>) {
        let start = Instant::now();
        let used = processor_time();
        self.steps.set(left.steps);
        self.deadline.set(Some(start + left.time));
        self.until.set(used + left.time);
        self.exceeded.set(None);
        let result = run();
        left.steps = self.steps.get();
        let passed = start.elapsed();
        let spent = if passed < SHORT { passed } else { processor_time().saturating_sub(used) };
        left.time = left.time.saturating_sub(spent);
        self.deadline.set(None);
        (result, self.exceeded.take())
    }

    pub(crate) fn step(&self) -> mlua::Result<mlua::VmState> {
        // Outside of an invocation nothing runs but what we wrote.
        let Some(deadline) = self.deadline.get() else { return Ok(mlua::VmState::Continue) };
        if self.exceeded.get().is_none() {
            match self.steps.get().checked_sub(1) {
                None => self.exceeded.set(Some(Budget::Steps)),
                Some(left) => {
                    self.steps.set(left);
                    // Each time: a step may be long (strings of some MiB).
                    let now = Instant::now();
                    if now >= deadline {
                        self.late(now);
                    }
                }
            }
        }
        match self.exceeded.get() {
            None => Ok(mlua::VmState::Continue),
            Some(budget) => Err(mlua::Error::RuntimeError(budget.to_string())),
        }
    }

    /// The budget would be used up, had the script had the processor for itself. Where others had it, the script is not to
    /// blame.
    fn late(&self, now: Instant) {
        let left = self.until.get().saturating_sub(processor_time());
        if left.is_zero() {
            self.exceeded.set(Some(Budget::Time));
        } else {
            self.deadline.set(Some(now + left));
        }
    }
}

/// How long this thread has had a processor. Asking the kernel for it is dearer than looking at the clock.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps => write!(f, "it took more than {STEPS} steps"),
            Self::Time => write!(f, "it took longer than {TIME:?}"),
            Self::Memory => f.write_str("it needed more memory than it may have"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_stays_used_up() {
        let meter = Meter::default();
        assert!(meter.step().is_ok(), "nothing is counted outside of an invocation");
        let mut left = Left { steps: 5, time: Duration::from_secs(60) };
        let (passed, exceeded) = meter.measure(&mut left, || (0..3).filter(|_| meter.step().is_ok()).count());
        assert_eq!((passed, exceeded, left.steps), (3, None, 2));
        let (passed, exceeded) = meter.measure(&mut left, || (0..9).filter(|_| meter.step().is_ok()).count());
        assert_eq!((passed, exceeded), (2, Some(Budget::Steps)));
        let mut left = Left { steps: 100, time: Duration::ZERO };
        let (passed, exceeded) =
            meter.measure(&mut left, || (0..99).filter(|_| meter.step().is_ok()).count());
        assert_eq!((passed, exceeded), (0, Some(Budget::Time)));
    }

    /// Who sleeps stands for who is kept from the processor by others.
    #[test]
    fn the_processor_counts_and_not_the_clock() {
        let meter = Meter::default();
        let budget = Duration::from_millis(20);
        let mut left = Left { steps: u32::MAX, time: budget };
        let waits = || {
            let begun = Instant::now();
            while begun.elapsed() < 3 * budget {
                std::thread::park_timeout(budget);
            }
            meter.step().is_ok()
        };
        assert_eq!(meter.measure(&mut left, waits), (true, None));
        assert!(!left.time.is_zero());
        let works = || while meter.step().is_ok() {};
        assert_eq!(meter.measure(&mut left, works).1, Some(Budget::Time));
        assert!(left.time.is_zero());
    }
}
