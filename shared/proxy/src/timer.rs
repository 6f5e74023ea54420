//! A coarse timer: time in ticks of 100 ms, no system call and no tokio timer for each request.
//!
//! A tokio timer armed for each request costs a wake-up of the driver and several system calls at low load. Here a
//! wait is one entry in a map; one task ticks while there are entries and ends when there are none, so that an idle
//! proxy does nothing.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::Instant;

/// Resolution of the workers' time-outs.
const TICK: Duration = Duration::from_millis(100);

/// One a worker; clones share it. Must be used inside a runtime that can `spawn_local`.
#[derive(Clone, Default)]
pub struct Timer(Rc<Inner>);

#[derive(Default)]
struct Inner {
    start: Cell<Option<Instant>>,
    now: Cell<u64>,
    ticking: Cell<bool>,
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<(u64, u64), Waker>>,
}

impl Timer {
    /// Ticks since the timer was first used; at most one tick late while anything waits.
    pub fn now(&self) -> u64 {
        if !self.0.ticking.get() {
            self.0.refresh();
        }
        self.0.now.get()
    }

    /// How many ticks a duration takes, rounded up.
    pub fn ticks(duration: Duration) -> u64 {
        u64::try_from(duration.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX)
    }

    /// How long so many ticks are.
    pub fn span(ticks: u64) -> Duration {
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Waits for at least `duration`, and at most two ticks (200 ms) more.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.after(duration))
    }

    /// The tick at which at least `duration` will have passed.
    pub fn after(&self, duration: Duration) -> u64 {
        self.now().saturating_add(Self::ticks(duration)).saturating_add(1)
    }

    /// Waits for a tick.
    pub fn sleep_until(&self, tick: u64) -> Sleep {
        Sleep { timer: self.0.clone(), key: (tick, self.0.id()) }
    }

    /// `None` when `duration` passed first.
    pub async fn timeout<T>(&self, duration: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut sleep = pin!(self.sleep(duration));
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            sleep.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

/// Ends at a tick. Costs nothing before it is polled.
pub struct Sleep {
    timer: Rc<Inner>,
    key: (u64, u64),
}

impl Sleep {
    /// The tick at which it ends.
    pub fn deadline(&self) -> u64 {
        self.key.0
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.now.get() >= self.key.0 {
            return Poll::Ready(());
        }
        self.timer.wait(self.key, cx.waker());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timer.waiting.borrow_mut().remove(&self.key);
    }
}

impl Inner {
    fn id(&self) -> u64 {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        id
    }

    fn refresh(&self) {
        let start = self.start.get().unwrap_or_else(Instant::now);
        self.start.set(Some(start));
        let elapsed = start.elapsed().as_millis() / TICK.as_millis();
        self.now.set(u64::try_from(elapsed).unwrap_or(u64::MAX));
    }

    fn wait(self: &Rc<Self>, key: (u64, u64), waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.get_mut(&key) {
            Some(present) => present.clone_from(waker),
            None => drop(waiting.insert(key, waker.clone())),
        }
        drop(waiting);
        if !self.ticking.replace(true) {
            drop(tokio::task::spawn_local(tick(self.clone())));
        }
    }

    fn due(&self) -> Vec<Waker> {
        let mut waiting = self.waiting.borrow_mut();
        let later = waiting.split_off(&(self.now.get().saturating_add(1), 0));
        std::mem::replace(&mut *waiting, later).into_values().collect()
    }
}

async fn tick(inner: Rc<Inner>) {
    while !inner.waiting.borrow().is_empty() {
        tokio::time::sleep(TICK).await;
        inner.refresh();
        for waker in inner.due() {
            waker.wake();
        }
    }
    inner.ticking.set(false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    fn run(test: impl Future<Output = ()>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn a_sleep_ends_after_its_time_and_within_two_ticks() {
        run(async {
            let timer = Timer::default();
            let start = Instant::now();
            timer.sleep(Duration::from_millis(250)).await;
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(250) && took <= Duration::from_millis(500), "{took:?}");
        });
    }

    #[test]
    fn a_timeout_gives_the_value_or_none() {
        run(async {
            let timer = Timer::default();
            assert_eq!(timer.timeout(Duration::from_secs(1), async { 7 }).await, Some(7));
            assert_eq!(timer.timeout(Duration::from_secs(1), std::future::pending::<()>()).await, None);
        });
    }

    #[test]
    fn nothing_ticks_when_nothing_waits() {
        run(async {
            let timer = Timer::default();
            assert_eq!(timer.timeout(Duration::from_secs(60), async {}).await, Some(()));
            tokio::time::sleep(Duration::from_millis(350)).await;
            assert!(!timer.0.ticking.get());
            assert!(timer.0.waiting.borrow().is_empty());
        });
    }
}
