//! A body, or a piece of one, in a script's hands.

use crate::{
    exchange::{BodyState, Exchange},
    limits::MAX_BODY,
};
use bytes::Bytes;
use mlua::{Error, LuaString, Result, UserDataMethods, UserDataRegistry};
use std::rc::Rc;

/// The bytes stay outside of the state, and are copied into it where a script asks for some of them.
pub(crate) struct Buffer {
    exchange: Rc<Exchange>,
    /// Of a body that flows.
    piece: Option<Bytes>,
}

impl Buffer {
    pub(crate) fn whole(exchange: Rc<Exchange>) -> Self {
        Self { exchange, piece: None }
    }

    pub(crate) fn piece(exchange: Rc<Exchange>, piece: Bytes) -> Self {
        Self { exchange, piece: Some(piece) }
    }

    fn read<T>(&self, read: impl FnOnce(&Bytes) -> Result<T>) -> Result<T> {
        self.exchange.open()?;
        if let Some(piece) = &self.piece {
            return read(piece);
        }
        match &*self.exchange.body.borrow() {
            BodyState::Read { bytes, .. } => read(bytes),
            BodyState::Unread | BodyState::Flowing | BodyState::Absent => {
                Err(Error::runtime("there is no body any more"))
            }
        }
    }

    fn set(&self, text: &[u8]) -> Result<usize> {
        self.exchange.open()?;
        if self.piece.is_some() {
            return Err(Error::runtime("a piece of a body can't be changed: use body()"));
        }
        if text.len() > MAX_BODY {
            return Err(Error::runtime(format!("a body has at most {MAX_BODY} bytes")));
        }
        *self.exchange.body.borrow_mut() =
            BodyState::Read { bytes: Bytes::copy_from_slice(text), replaced: true };
        Ok(text.len())
    }
}

pub(crate) fn register(registry: &mut UserDataRegistry<Buffer>) {
    registry.add_method("length", |_, this, ()| this.read(|bytes| Ok(bytes.len())));
    registry.add_method("getBytes", |lua, this, (index, length): (usize, usize)| {
        this.read(|bytes| {
            let end = index.checked_add(length).filter(|end| *end <= bytes.len());
            let part = end.and_then(|end| bytes.get(index..end));
            lua.create_string(part.ok_or_else(|| {
                Error::runtime("index/length must be >= 0 and (index + length) must be <= buffer size")
            })?)
        })
    });
    registry.add_method("setBytes", |_, this, text: LuaString| this.set(&text.as_bytes()));
}
