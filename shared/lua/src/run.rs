//! One invocation, step by step.

use crate::{
    body::Buffer,
    exchange::{BodyState, Exchange, Head, Want},
    headers::Headers,
    log::line,
    meter::{Budget, Left, Meter},
    respond::{Call, Reply, answered},
};
use bytes::Bytes;
use http::HeaderMap;
use mlua::{AnyUserData, Lua, MultiValue, Thread, Value};
use std::{fmt, rc::Rc};

/// A call of a script's function. Dropped, it is over.
pub struct Run {
    lua: Lua,
    thread: Thread,
    /// Until it has begun.
    handle: Option<AnyUserData>,
    exchange: Rc<Exchange>,
    meter: Rc<Meter>,
    left: Left,
    /// How the answer to its call is to look.
    duplicates: bool,
}

/// What an invocation has come to.
#[derive(Debug)]
pub enum Step {
    /// It has returned.
    Done,
    /// This is the answer to the request, which goes no further.
    Respond(Reply),
    /// It waits for the whole body.
    Body,
    /// It waits for the next piece of the body: the message goes on, and its head can't be changed any more.
    Chunk,
    /// It waits for what follows the body: the message goes on, and its head can't be changed any more.
    Trailers,
    /// It waits for an answer.
    Call(Call),
}

/// What it had waited for.
pub enum Answer {
    /// To begin with: nothing.
    Begin,
    /// `None`: there was none.
    Body(Option<Bytes>),
    /// `None`: that was all.
    Chunk(Option<Bytes>),
    /// `None`: there are none.
    Trailers(Option<HeaderMap>),
    Called(Reply),
}

/// Why an invocation ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Set: a limit of ours.
    pub budget: Option<Budget>,
    message: String,
}

impl Run {
    pub(crate) fn new(
        lua: Lua,
        thread: Thread,
        handle: AnyUserData,
        exchange: Rc<Exchange>,
        meter: Rc<Meter>,
    ) -> Self {
        Self { lua, thread, handle: Some(handle), exchange, meter, left: Left::default(), duplicates: false }
    }

    /// Goes on until the script waits or has ended.
    ///
    /// # Errors
    /// It failed; it is over.
    pub fn resume(&mut self, answer: Answer) -> Result<Step, Failure> {
        let args = self.args(answer).map_err(|error| Failure::of(&error, None))?;
        let (resumed, exceeded) =
            self.meter.measure(&mut self.left, || self.thread.resume::<MultiValue>(args));
        // What it yields is nothing to us: what it waits for was noted.
        drop(resumed.map_err(|error| Failure::of(&error, exceeded))?);
        if let Some(reply) = self.exchange.reply.take() {
            return Ok(Step::Respond(reply));
        }
        if !self.thread.is_resumable() {
            return Ok(Step::Done);
        }
        match self.exchange.want.take() {
            Some(Want::Body) => Ok(Step::Body),
            Some(Want::Chunk) => Ok(self.flow(Step::Chunk)),
            Some(Want::Trailers) => Ok(self.flow(Step::Trailers)),
            Some(Want::Call(call)) => {
                self.duplicates = call.duplicates;
                Ok(Step::Call(*call))
            }
            None => Err(Failure { budget: None, message: "script performed an unexpected yield".to_owned() }),
        }
    }

    /// The calls that it has made and does not wait for, since it was last asked.
    pub fn posts(&self) -> Vec<Call> {
        self.exchange.posts.take()
    }

    /// The message's head, as the script has left it. It can't change it any more.
    pub fn take_head(&self) -> Option<Head> {
        self.exchange.head.take()
    }

    /// What the body is from now on, if the script has replaced it.
    pub fn take_body(&self) -> Option<Bytes> {
        match &*self.exchange.body.borrow() {
            BodyState::Read { bytes, replaced: true } => Some(bytes.clone()),
            _ => None,
        }
    }

    /// The trailers, as the script has left them.
    pub fn take_trailers(&self) -> Option<HeaderMap> {
        self.exchange.trailers.take()
    }

    fn flow(&self, step: Step) -> Step {
        let mut body = self.exchange.body.borrow_mut();
        if matches!(*body, BodyState::Unread) {
            *body = BodyState::Flowing;
        }
        step
    }

    fn args(&mut self, answer: Answer) -> mlua::Result<MultiValue> {
        let exchange = || self.exchange.clone();
        let value = match answer {
            Answer::Begin => self.handle.take().map_or(Value::Nil, Value::UserData),
            Answer::Body(bytes) => {
                let state =
                    bytes.map_or(BodyState::Absent, |bytes| BodyState::Read { bytes, replaced: false });
                *self.exchange.body.borrow_mut() = state;
                return Ok(MultiValue::new());
            }
            Answer::Chunk(Some(piece)) => {
                Value::UserData(self.lua.create_any_userdata(Buffer::piece(exchange(), piece))?)
            }
            Answer::Trailers(Some(trailers)) => {
                *self.exchange.trailers.borrow_mut() = Some(trailers);
                Value::UserData(
                    self.lua.create_any_userdata(Headers { exchange: exchange(), trailers: true })?,
                )
            }
            Answer::Chunk(None) | Answer::Trailers(None) => Value::Nil,
            Answer::Called(reply) => {
                let (headers, body) = answered(&self.lua, &reply, self.duplicates)?;
                let body = body.map_or(Value::Nil, Value::String);
                return Ok(MultiValue::from_iter([Value::Table(headers), body]));
            }
        };
        Ok(MultiValue::from_iter([value]))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.exchange.close();
    }
}

impl Failure {
    pub(crate) fn missing() -> Self {
        Self { budget: None, message: "the script has no such function".to_owned() }
    }

    /// There is no memory for it.
    pub fn memory() -> Self {
        Self { budget: Some(Budget::Memory), message: Budget::Memory.to_string() }
    }

    pub(crate) fn of(error: &mlua::Error, exceeded: Option<Budget>) -> Self {
        let memory = matches!(root(error), mlua::Error::MemoryError(_)).then_some(Budget::Memory);
        let budget = exceeded.or(memory);
        let message = match budget {
            Some(budget) => budget.to_string(),
            None => {
                let text = match root(error) {
                    mlua::Error::RuntimeError(text) => text.clone(),
                    other => other.to_string(),
                };
                // Where it was thrown is in the message; the rest of the way there is in nobody's interest.
                line(text.split("\nstack traceback").next().unwrap_or_default())
            }
        };
        Self { budget, message }
    }
}

fn root(error: &mlua::Error) -> &mlua::Error {
    match error {
        mlua::Error::CallbackError { cause, .. } | mlua::Error::WithContext { cause, .. } => root(cause),
        other => other,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
