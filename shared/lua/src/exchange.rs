//! One message under the hands of a script.
//!
//! A script's objects outlive the message (they are collected some time, or kept in a global), so they all go through
//! this, which is emptied when the run is over: what they then hold is a shell, and they say so when they are used.

use crate::{
    facts::{Dynamic, Facts},
    respond::{Call, Reply},
    vm::Phase,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, uri::Authority, uri::PathAndQuery};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// The head of a message.
#[derive(Clone, Debug)]
pub struct Head {
    pub start: Start,
    pub headers: HeaderMap,
}

/// What stands before the headers.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Request {
        method: Method,
        path: PathAndQuery,
        authority: Authority,
    },
    Response {
        status: StatusCode,
        /// HTTP/1's, if the script sets one.
        reason: Option<String>,
    },
}

/// What a script waits for.
#[derive(Debug)]
pub(crate) enum Want {
    Body,
    Chunk,
    Trailers,
    Call(Box<Call>),
}

pub(crate) struct Exchange {
    pub(crate) phase: Phase,
    pub(crate) facts: Rc<Facts>,
    pub(crate) dynamic: Rc<Dynamic>,
    /// Gone with the end of the run, or once it went on to where the message goes.
    pub(crate) head: RefCell<Option<Head>>,
    pub(crate) body: RefCell<BodyState>,
    pub(crate) trailers: RefCell<Option<HeaderMap>>,
    pub(crate) want: RefCell<Option<Want>>,
    pub(crate) posts: RefCell<Vec<Call>>,
    /// How many there were, and how many that it waited for.
    pub(crate) posted: Cell<usize>,
    pub(crate) called: Cell<usize>,
    pub(crate) reply: RefCell<Option<Reply>>,
    closed: Cell<bool>,
}

/// What is known of a message's body.
#[derive(Debug)]
pub(crate) enum BodyState {
    /// There is one, and nobody has asked for it.
    Unread,
    /// It is passed on piece by piece.
    Flowing,
    /// All of it.
    Read { bytes: Bytes, replaced: bool },
    /// There is none.
    Absent,
}

impl Exchange {
    pub(crate) fn new(phase: Phase, has_body: bool, facts: Rc<Facts>, dynamic: Rc<Dynamic>) -> Self {
        Self {
            phase,
            facts,
            dynamic,
            head: RefCell::default(),
            body: RefCell::new(if has_body { BodyState::Unread } else { BodyState::Absent }),
            trailers: RefCell::default(),
            want: RefCell::default(),
            posts: RefCell::default(),
            posted: Cell::new(0),
            called: Cell::new(0),
            reply: RefCell::default(),
            closed: Cell::new(false),
        }
    }

    pub(crate) fn begin(&self, head: Head) {
        *self.head.borrow_mut() = Some(head);
    }

    /// # Errors
    /// The message is no longer this script's.
    pub(crate) fn open(&self) -> mlua::Result<()> {
        if self.closed.get() {
            return Err(mlua::Error::runtime("object used outside of its request"));
        }
        if self.reply.borrow().is_some() {
            return Err(mlua::Error::runtime("the request was answered"));
        }
        Ok(())
    }

    /// Empties it.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        drop(self.head.take());
        *self.body.borrow_mut() = BodyState::Absent;
        drop(self.trailers.take());
        drop(self.want.take());
        drop(self.posts.take());
        drop(self.reply.take());
    }
}
