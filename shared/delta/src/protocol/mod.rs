//! The two ends of a stream as state machines: messages and the time go in, messages come out. No I/O, no tokio, no
//! clock, so that every interleaving can be tested.

use std::time::{Duration, Instant};

mod guard;
mod parts;
mod publisher;
mod refusals;
mod staleness;
mod subscriber;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use parts::{PART, SMALL_PART};
pub(crate) use publisher::{Next, PublisherSession, TooOld};
pub(crate) use subscriber::SubscriberSession;

use crate::data::Malformed;

/// A publisher says something at least this often.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// A subscriber with nothing new to say says so at least this often: it answers every second heartbeat.
pub const QUIET: Duration = Duration::from_secs(10);

/// A peer that was silent for this long is dead: three heartbeats.
pub const SILENCE: Duration = Duration::from_secs(15);

/// A rejected resource is sent again after this, doubled at each further rejection of the same version...
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// ...up to this.
pub const RETRY_LAST: Duration = Duration::from_secs(300);

/// How many resources a subscriber may say that it holds.
const MAX_HELD: usize = 250_000;

/// The longest reason of a rejection, in bytes.
const MAX_REASON: usize = 1024;

/// The last beat that is not after `latest`.
fn on_beat(beat: Instant, latest: Instant) -> Instant {
    let since = latest.saturating_duration_since(beat);
    let late = since.as_nanos() % HEARTBEAT.as_nanos();
    latest - Duration::from_nanos(u64::try_from(late).unwrap_or(0))
}

fn shorten(text: &mut String) {
    if text.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The peer broke the protocol; the stream ends.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    #[error("the peer speaks version {found} of the protocol, this process version {}", crate::PROTOCOL)]
    Protocol { found: u32 },
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the peer sent {0}")]
    Unexpected(&'static str),
    #[error("the peer says that it holds more than {0} resources")]
    TooMany(usize),
}
