//! A request's body, examined while it streams: says after each piece how much of it may be passed on.
//!
//! Of an encoded body what is passed on is as it came. A byte of it may go once all that the decoder made of the bytes up
//! to it is decided: who gets no more than these can't decode more than that either.

use super::{
    RequestFilter, Unexaminable, What,
    decode::{Coding, Decoder, coding},
    text::Text,
};
use http::{HeaderMap, header::CONTENT_TYPE};
use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, Write},
    rc::Rc,
    sync::Arc,
};

/// Bytes of an encoded body that are decoded at a time: how finely it can be held back.
const PIECE: usize = 256;
/// A text may be so many times as long as its encoded form. Logs and JSON reach 50; bombs begin at 1,000.
const MAX_RATIO: u64 = 100;
/// Before the ratio counts: short bodies may repeat themselves as they like.
const FREE: u64 = 64 << 10;
/// Bytes held back of an encoded body. Its text is held to 64 KiB by the scanner; this is for bytes that mean nothing.
const MAX_HELD: u64 = 128 << 10;
/// Before each gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

pub struct BodyExaminer {
    filter: Arc<RequestFilter>,
    reading: Reading,
}

enum Reading {
    Whole(Part),
    Messages(Messages),
}

/// gRPC: each message is a text of its own, and is decided when it ends, so that a conversation does not stall.
struct Messages {
    prefix: Vec<u8>,
    coding: Result<Option<Coding>, What>,
    /// The one that has begun, and how much of it is missing.
    message: Option<(Part, u64)>,
    /// Bytes before it.
    done: u64,
}

/// One text in the form in which it is sent.
struct Part {
    tap: Rc<RefCell<Tap>>,
    decoder: Option<Decoder<Outlet>>,
    sent: u64,
    /// Bytes sent, and the length of the text that they make: where the text is not decided yet.
    marks: VecDeque<(u64, u64)>,
    decided: u64,
}

/// Where a decoder's output goes.
struct Tap {
    filter: Arc<RequestFilter>,
    text: Text,
    /// How long the text may be.
    budget: u64,
    stopped: Option<What>,
}

struct Outlet(Rc<RefCell<Tap>>);

impl BodyExaminer {
    /// `messages`: the application reads gRPC where the request says that it is.
    ///
    /// # Errors
    /// Why the body can't be examined.
    pub fn new(filter: &Arc<RequestFilter>, headers: &HeaderMap, messages: bool) -> Result<Self, What> {
        let whole = coding(headers, "content-encoding")?;
        let reading = if messages && is_grpc(headers) {
            if whole.is_some() {
                return Err(What::Unexaminable(Unexaminable::Encoding));
            }
            let coding = coding(headers, "grpc-encoding");
            Reading::Messages(Messages { prefix: Vec::new(), coding, message: None, done: 0 })
        } else {
            if !has_known_charset(headers) {
                return Err(What::Unexaminable(Unexaminable::Charset));
            }
            Reading::Whole(Part::new(filter, filter.max_body, whole))
        };
        Ok(Self { filter: filter.clone(), reading })
    }

    /// Whether a body of so many bytes is too long for certain.
    pub fn exceeds(&self, length: u64) -> bool {
        match &self.reading {
            Reading::Whole(part) => part.decoder.is_none() && length > self.filter.max_body,
            Reading::Messages(_) => false,
        }
    }

    /// Reads on.
    ///
    /// # Errors
    /// What was found.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), What> {
        match &mut self.reading {
            Reading::Whole(part) => part.feed(bytes),
            Reading::Messages(messages) => messages.feed(&self.filter, bytes),
        }
    }

    /// The body has ended.
    ///
    /// # Errors
    /// What was found at its end.
    pub fn finish(&mut self) -> Result<(), What> {
        match &mut self.reading {
            Reading::Whole(part) => part.finish(),
            Reading::Messages(messages) => match &mut messages.message {
                Some((part, _)) => part.finish(),
                None => Ok(()),
            },
        }
    }

    /// So many bytes of the body may be passed on.
    pub fn decided(&mut self) -> u64 {
        match &mut self.reading {
            Reading::Whole(part) => part.decided(),
            Reading::Messages(messages) => {
                messages.done + messages.message.as_mut().map_or(0, |(part, _)| part.decided())
            }
        }
    }
}

impl Messages {
    fn feed(&mut self, filter: &Arc<RequestFilter>, mut bytes: &[u8]) -> Result<(), What> {
        loop {
            if let Some((part, missing)) = &mut self.message {
                let now = usize::try_from(*missing).unwrap_or(usize::MAX).min(bytes.len());
                let (now, rest) = bytes.split_at_checked(now).unwrap_or((bytes, &[]));
                part.feed(now)?;
                *missing -= now.len() as u64;
                bytes = rest;
                if *missing > 0 {
                    return Ok(());
                }
                part.finish()?;
                self.done += part.sent;
                self.message = None;
            }
            let (now, rest) = bytes.split_at_checked(PREFIX - self.prefix.len()).unwrap_or((bytes, &[]));
            self.prefix.extend_from_slice(now);
            bytes = rest;
            let [compressed, a, b, c, d] = *self.prefix.as_slice() else { return Ok(()) };
            self.begin(filter, compressed, u64::from(u32::from_be_bytes([a, b, c, d])))?;
        }
    }

    fn begin(&mut self, filter: &Arc<RequestFilter>, compressed: u8, length: u64) -> Result<(), What> {
        let coding = match compressed {
            0 => None,
            1 => {
                let coding = self.coding.clone()?;
                Some(coding.ok_or(What::Unexaminable(Unexaminable::Encoding))?)
            }
            _ => return Err(What::Unexaminable(Unexaminable::Damaged)),
        };
        if length > filter.max_body {
            return Err(What::Unexaminable(Unexaminable::TooLong));
        }
        let mut part = Part::new(filter, filter.max_body + PREFIX as u64, coding);
        // The prefix is text as well, to one who does not read gRPC after all.
        part.plain(&self.prefix)?;
        self.prefix.clear();
        self.message = Some((part, length));
        Ok(())
    }
}

impl Part {
    fn new(filter: &Arc<RequestFilter>, limit: u64, coding: Option<Coding>) -> Self {
        let text = Text::new(filter, limit);
        let tap = Tap { filter: filter.clone(), text, budget: FREE, stopped: None };
        let tap = Rc::new(RefCell::new(tap));
        let decoder = coding.map(|coding| Decoder::new(coding, Outlet(tap.clone())));
        Self { tap, decoder, sent: 0, marks: VecDeque::new(), decided: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), What> {
        if self.decoder.is_none() {
            return self.plain(bytes);
        }
        for piece in bytes.chunks(PIECE) {
            self.tap.borrow_mut().budget += piece.len() as u64 * MAX_RATIO;
            if let Some(Err(_)) = self.decoder.as_mut().map(|decoder| decoder.feed(piece)) {
                let stopped = self.tap.borrow_mut().stopped.take();
                return Err(stopped.unwrap_or(What::Unexaminable(Unexaminable::Damaged)));
            }
            self.sent += piece.len() as u64;
            self.mark();
            if self.sent - self.decided() > MAX_HELD {
                return Err(What::Unexaminable(Unexaminable::TooLong));
            }
        }
        Ok(())
    }

    /// Bytes that are not encoded.
    fn plain(&mut self, bytes: &[u8]) -> Result<(), What> {
        self.sent += bytes.len() as u64;
        self.tap.borrow_mut().text(bytes)?;
        if self.decoder.is_some() {
            self.mark();
        }
        Ok(())
    }

    fn mark(&mut self) {
        let length = self.tap.borrow().text.read();
        match self.marks.back_mut().filter(|last| last.1 == length) {
            Some(last) => last.0 = self.sent,
            None => self.marks.push_back((self.sent, length)),
        }
    }

    fn finish(&mut self) -> Result<(), What> {
        self.tap.borrow_mut().finish()?;
        self.decided = self.sent;
        Ok(())
    }

    fn decided(&mut self) -> u64 {
        let decided = self.tap.borrow().text.decided();
        if self.decoder.is_none() {
            return self.decided.max(decided);
        }
        while let Some((sent, _)) = self.marks.pop_front_if(|(_, length)| *length <= decided) {
            self.decided = self.decided.max(sent);
        }
        self.decided
    }
}

impl Tap {
    fn text(&mut self, bytes: &[u8]) -> Result<(), What> {
        self.text.feed(&self.filter, bytes)
    }

    fn finish(&mut self) -> Result<(), What> {
        self.text.finish(&self.filter)
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut tap = self.0.borrow_mut();
        if tap.stopped.is_none() {
            let found = tap.text(bytes).err();
            let bomb = tap.text.read() > tap.budget;
            tap.stopped = found.or(bomb.then_some(What::Unexaminable(Unexaminable::Bomb)));
        }
        match tap.stopped {
            None => Ok(bytes.len()),
            Some(_) => Err(io::ErrorKind::Other.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let grpc = b"application/grpc";
    headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().split_at_checked(grpc.len())).is_some_and(
        |(kind, rest)| {
            kind.eq_ignore_ascii_case(grpc) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        },
    )
}

/// Whether ASCII in the body is ASCII: what names no character set counts as such.
fn has_known_charset(headers: &HeaderMap) -> bool {
    let ascii = |name: &str| {
        let begins =
            ["utf-8", "utf8", "us-ascii", "ascii", "iso-8859-", "latin", "windows-125", "gb", "euc-"];
        begins.iter().any(|begin| name.starts_with(begin)) || name == "big5" || name == "shift_jis"
    };
    headers.get_all(CONTENT_TYPE).iter().all(|value| {
        let Ok(value) = value.to_str() else { return false };
        let value = value.to_ascii_lowercase();
        value
            .split(';')
            .skip(1)
            .filter_map(|parameter| parameter.trim().strip_prefix("charset"))
            .all(|rest| ascii(rest.trim_start().trim_start_matches('=').trim_matches(['"', '\'', ' ', '\t'])))
    })
}
