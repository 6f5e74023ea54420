//! Scripts of policies on requests and their answers.
//!
//! A worker has one state of Lua for each script, made when a request first needs it. A request goes through the scripts
//! of its [`Chain`] in order, and its answer through the same ones the other way. What a script waits for is awaited here;
//! while it computes, it holds up its worker, about as long as its budget.
//!
//! A script that fails ends as in Envoy: it is counted and logged, and the message goes on as the script has left it. But
//! a request that the script might have answered is refused: who brings a script beyond its limits must not pass it by.

use crate::{
    policy::lua::{Chain, Script},
    snapshot::Snapshot,
};
use meridian_lua::{Alive, Failure, Level, Log, Program, Vm};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

mod call;
mod passage;

pub use passage::{Passage, Stopped};

/// Bytes that scripts of one worker hold of bodies that they have read, all requests together.
const MAX_HELD: usize = 64 << 20;
/// A worker logs so often that scripts fail.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Calls of scripts under way, of one worker. They hold memory at both ends.
const MAX_CALLS: usize = 256;
/// How long a script that had no time or memory to begin waits for its next attempt: one that never begins takes no more
/// than a twentieth of its worker's time.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// States of one script on one worker, with those that were full and live on for requests under way: so often a script
/// may hold its memory.
const MAX_STATES: usize = 4;
/// Calls of scripts one after the other, each made for the one before it. Who asks a service that asks another is at two;
/// what asks itself is a circle.
const MAX_HOPS: u32 = 4;

/// A worker's scripts.
#[derive(Default)]
pub struct Scripts {
    /// By their program's address: a slot keeps the program, so that no other can take its place.
    states: RefCell<HashMap<usize, Slot>>,
    held: Rc<Cell<usize>>,
    calls: Rc<Cell<usize>>,
    told: Cell<Option<Instant>>,
}

struct Slot {
    _program: Arc<Program>,
    state: State,
    /// Full ones, whose place another has taken.
    replaced: Vec<Alive>,
}

enum State {
    /// It is made at the next request.
    None,
    Ready(Rc<Vm>),
    Failed(Failure, Instant),
}

impl Scripts {
    /// The state of a script.
    ///
    /// # Errors
    /// It could not be made, then or now: the script's own text fails, which another attempt does not change, or it had
    /// no time or memory, which is tried again later.
    fn state(&self, script: &Script) -> Result<Rc<Vm>, Failure> {
        let mut states = self.states.borrow_mut();
        let address = Arc::as_ptr(&script.program).addr();
        let slot = states.entry(address).or_insert_with(|| Slot {
            _program: script.program.clone(),
            state: State::None,
            replaced: Vec::new(),
        });
        match &slot.state {
            State::Ready(state) if state.make_room() => return Ok(state.clone()),
            // What it keeps fills its memory: it begins anew.
            State::Ready(full) => {
                if self.tells() {
                    tracing::warn!(policy = %script.policy, "a script's memory is full of what it keeps; it begins anew");
                }
                slot.replaced.push(full.alive());
            }
            State::Failed(failure, at) if failure.budget.is_none() || at.elapsed() < RESTART_PAUSE => {
                return Err(failure.clone());
            }
            State::Failed(..) | State::None => {}
        }
        slot.state = State::None;
        slot.replaced.retain(Alive::is_alive);
        if slot.replaced.len() >= MAX_STATES {
            return Err(Failure::memory());
        }
        let started = Vm::start(&script.program, log(&script.policy)).map(Rc::new);
        slot.state = match &started {
            Ok(state) => State::Ready(state.clone()),
            Err(failure) => State::Failed(failure.clone(), Instant::now()),
        };
        started
    }

    /// Whether a failure is to be told of: they are counted, and what an operator reads must not be theirs alone.
    fn tells(&self) -> bool {
        let now = Instant::now();
        let due = self.told.get().is_none_or(|told| now.saturating_duration_since(told) >= TELL_INTERVAL);
        if due {
            self.told.set(Some(now));
        }
        due
    }

    /// Forgets scripts that the configuration has no more, and all that they kept.
    pub fn refresh(&self, snapshot: &Snapshot) {
        let mut states = self.states.borrow_mut();
        if states.is_empty() {
            return;
        }
        let incoming = snapshot.inbounds.values().filter_map(|inbound| inbound.scripts.as_ref());
        let outgoing = snapshot.clusters.values().filter_map(|cluster| cluster.scripts.as_ref());
        let scripts = incoming.chain(outgoing).flat_map(|chain| chain.iter());
        let known: HashSet<usize> = scripts.map(|script| Arc::as_ptr(&script.program).addr()).collect();
        states.retain(|address, _| known.contains(address));
    }
}

/// Scripts log under the name of their policy.
fn log(policy: &str) -> Log {
    let policy = policy.to_owned();
    Rc::new(move |level, text| match level {
        Level::Trace => {
            text.inspect(|text| tracing::trace!(target: "script", %policy, "{text}"));
            tracing::enabled!(target: "script", tracing::Level::TRACE)
        }
        Level::Debug => {
            text.inspect(|text| tracing::debug!(target: "script", %policy, "{text}"));
            tracing::enabled!(target: "script", tracing::Level::DEBUG)
        }
        Level::Info => {
            text.inspect(|text| tracing::info!(target: "script", %policy, "{text}"));
            tracing::enabled!(target: "script", tracing::Level::INFO)
        }
        Level::Warn => {
            text.inspect(|text| tracing::warn!(target: "script", %policy, "{text}"));
            tracing::enabled!(target: "script", tracing::Level::WARN)
        }
        Level::Error => {
            text.inspect(|text| tracing::error!(target: "script", %policy, "{text}"));
            tracing::enabled!(target: "script", tracing::Level::ERROR)
        }
    })
}
