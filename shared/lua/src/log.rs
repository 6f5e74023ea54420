//! What scripts say.

use crate::limits::{LOG_RATE, MAX_MESSAGE};
use std::{cell::Cell, rc::Rc, time::Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Where messages go: `None` asks whether a message of this level would be kept at all.
pub type Log = Rc<dyn Fn(Level, Option<&str>) -> bool>;

/// The messages of one state, at a bounded rate.
pub(crate) struct Logger {
    log: Log,
    left: Cell<f64>,
    since: Cell<Instant>,
    dropped: Cell<u64>,
}

impl Logger {
    pub(crate) fn new(log: Log) -> Self {
        let left = Cell::new(f64::from(LOG_RATE));
        Self { log, left, since: Cell::new(Instant::now()), dropped: Cell::new(0) }
    }

    pub(crate) fn say(&self, level: Level, message: &[u8]) {
        if !(self.log)(level, None) {
            return;
        }
        if !self.take(Instant::now()) {
            return self.dropped.set(self.dropped.get().saturating_add(1));
        }
        let text = line(&String::from_utf8_lossy(message.get(..MAX_MESSAGE).unwrap_or(message)));
        let dropped = self.dropped.replace(0);
        let text = if dropped > 0 { format!("{text} ({dropped} messages were left out)") } else { text };
        (self.log)(level, Some(&text));
    }

    fn take(&self, now: Instant) -> bool {
        let rate = f64::from(LOG_RATE);
        let came = now.saturating_duration_since(self.since.replace(now)).as_secs_f64() * rate;
        let left = (self.left.get() + came).min(rate);
        let granted = left >= 1.0;
        self.left.set(if granted { left - 1.0 } else { left });
        granted
    }
}

/// One line of at most [`MAX_MESSAGE`] bytes: what comes from a request must not write lines of its own.
pub(crate) fn line(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() + c.len_utf8() > MAX_MESSAGE {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, time::Duration};

    #[test]
    fn a_burst_and_then_a_rate() {
        let logger = Logger::new(Rc::new(|_, _| true));
        let start = logger.since.get();
        let taken = |at: Instant| (0..1_000).filter(|_| logger.take(at)).count();
        assert_eq!(taken(start), LOG_RATE as usize);
        assert_eq!(taken(start + Duration::from_millis(500)), LOG_RATE as usize / 2);
        assert_eq!(taken(start + Duration::from_secs(900)), LOG_RATE as usize);
    }

    #[test]
    fn a_message_is_one_line() {
        let said: Rc<RefCell<Vec<String>>> = Rc::default();
        let keep = said.clone();
        let logger = Logger::new(Rc::new(move |level, text| {
            keep.borrow_mut().extend(text.map(|text| format!("{level:?} {text}")));
            level != Level::Debug
        }));
        logger.say(Level::Debug, b"nobody listens");
        logger.say(Level::Warn, b"a\nb\x1b\xff");
        logger.say(Level::Info, &[b'x'; 5_000]);
        let said = said.borrow();
        assert_eq!(said[0], "Warn a b \u{fffd}");
        assert_eq!((said.len(), said[1].len()), (2, "Info ".len() + MAX_MESSAGE));
    }
}
