//! A request's body, examined while it streams: says after each piece how much of it may be passed on.
//!
//! Of an encoded body what is passed on is as it came. A byte of it may go once all that the decoder made of the bytes up
//! to it is decided: who gets no more than these can't decode more than that either.

use super::{
    RequestFilter, Unexaminable, What,
    decode::{Coding, Decoder, coding},
    text::{Seen, Text},
};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use meridian_proxy_config::Protocol;
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

/// How the application reads bodies, by the protocol that it declares: what a stranger's headers say of it may not be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As one text.
    Whole,
    /// As gRPC's messages where the request says that it is gRPC, else as one text.
    Either,
    /// As gRPC's messages, whatever the request says.
    Messages,
}

impl Framing {
    pub fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Grpc => Self::Messages,
            Protocol::Http2 => Self::Either,
            _ => Self::Whole,
        }
    }
}

pub struct BodyExaminer {
    filter: Arc<RequestFilter>,
    seen: Seen,
    whole: Option<Part>,
    messages: Option<Messages>,
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
    encoded: Option<Encoded>,
    sent: u64,
    /// All of it, once it has ended.
    decided: u64,
}

struct Encoded {
    decoder: Decoder<Outlet>,
    /// The bytes as they came: a frame has room for text that no decoder gives out (gzip's name of a file and comment,
    /// zstd's frames to be skipped).
    raw: Text,
    /// Bytes sent, and the length of the text that they make: where the text is not decided yet.
    marks: VecDeque<(u64, u64)>,
    /// Bytes sent of which the text is decided.
    in_text: u64,
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
    /// # Errors
    /// Why the body can't be examined.
    pub fn new(filter: &Arc<RequestFilter>, headers: &HeaderMap, framing: Framing) -> Result<Self, What> {
        let kind = content_type(headers)?;
        if !has_known_charset(kind) {
            return Err(What::Unexaminable(Unexaminable::Charset));
        }
        let coding_of_whole = coding(headers, "content-encoding")?;
        let messages = match framing {
            Framing::Whole => false,
            Framing::Either => kind.is_some_and(crate::codec::is_grpc_type),
            Framing::Messages => true,
        };
        if messages && coding_of_whole.is_some() {
            return Err(What::Unexaminable(Unexaminable::Encoding));
        }
        let seen = Seen::default();
        // What may be read in both ways is examined in both; then the limit is a message's.
        let whole = (framing != Framing::Messages).then(|| {
            let limit = if messages { u64::MAX } else { filter.max_body };
            Part::new(filter, limit, coding_of_whole, &seen)
        });
        let messages = messages.then(|| Messages {
            prefix: Vec::new(),
            coding: coding(headers, "grpc-encoding"),
            message: None,
            done: 0,
        });
        Ok(Self { filter: filter.clone(), seen, whole, messages })
    }

    /// Whether a body of so many bytes is too long for certain.
    pub fn exceeds(&self, length: u64) -> bool {
        let plain = self.whole.as_ref().is_some_and(|part| part.encoded.is_none());
        plain && self.messages.is_none() && length > self.filter.max_body
    }

    /// Reads on.
    ///
    /// # Errors
    /// What was found and is to be blocked, or why the rest can't be examined.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), What> {
        if let Some(part) = &mut self.whole {
            part.feed(bytes)?;
        }
        let Some(messages) = &mut self.messages else { return Ok(()) };
        messages.feed(&self.filter, &self.seen, bytes)
    }

    /// The body has ended.
    ///
    /// # Errors
    /// As of [`Self::feed`].
    pub fn finish(&mut self) -> Result<(), What> {
        if let Some(part) = &mut self.whole {
            part.finish()?;
        }
        match self.messages.as_mut().and_then(|messages| messages.message.as_mut()) {
            Some((part, _)) => part.finish(),
            None => Ok(()),
        }
    }

    /// What was found first, if that is only observed.
    pub fn observed(&self) -> Option<&What> {
        self.seen.get()
    }

    /// So many bytes of the body may be passed on.
    pub fn decided(&mut self) -> u64 {
        let whole = self.whole.as_mut().map_or(u64::MAX, Part::decided);
        let messages = self.messages.as_mut().map_or(u64::MAX, Messages::decided);
        whole.min(messages)
    }
}

impl Messages {
    fn feed(&mut self, filter: &Arc<RequestFilter>, seen: &Seen, mut bytes: &[u8]) -> Result<(), What> {
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
            self.begin(filter, seen, compressed, u64::from(u32::from_be_bytes([a, b, c, d])))?;
        }
    }

    fn begin(
        &mut self,
        filter: &Arc<RequestFilter>,
        seen: &Seen,
        compressed: u8,
        length: u64,
    ) -> Result<(), What> {
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
        // Nothing needs no decoder.
        let coding = coding.filter(|_| length > 0);
        // The prefix is no part of the message's text: patterns may begin where that does.
        self.done += PREFIX as u64;
        self.prefix.clear();
        self.message = Some((Part::new(filter, filter.max_body, coding, seen), length));
        Ok(())
    }

    fn decided(&mut self) -> u64 {
        self.done + self.message.as_mut().map_or(0, |(part, _)| part.decided())
    }
}

impl Part {
    fn new(filter: &Arc<RequestFilter>, limit: u64, coding: Option<Coding>, seen: &Seen) -> Self {
        let text = Text::new(filter, limit, seen);
        let tap = Tap { filter: filter.clone(), text, budget: FREE, stopped: None };
        let tap = Rc::new(RefCell::new(tap));
        let encoded = coding.map(|coding| Encoded {
            decoder: Decoder::new(coding, Outlet(tap.clone())),
            // How long the encoded form may be follows from its text, and from what is held.
            raw: Text::new(filter, u64::MAX, seen),
            marks: VecDeque::new(),
            in_text: 0,
        });
        Self { tap, encoded, sent: 0, decided: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), What> {
        if self.encoded.is_none() {
            self.sent += bytes.len() as u64;
            return self.tap.borrow_mut().text(bytes);
        }
        for piece in bytes.chunks(PIECE) {
            self.piece(piece)?;
            if self.sent.saturating_sub(self.decided()) > MAX_HELD {
                return Err(What::Unexaminable(Unexaminable::TooLong));
            }
        }
        Ok(())
    }

    fn piece(&mut self, piece: &[u8]) -> Result<(), What> {
        let Some(Encoded { decoder, raw, marks, .. }) = &mut self.encoded else { return Ok(()) };
        {
            let mut tap = self.tap.borrow_mut();
            tap.budget += piece.len() as u64 * MAX_RATIO;
            raw.feed(&tap.filter, piece)?;
        }
        let fed = decoder.feed(piece);
        fed.map_err(|error| self.tap.borrow_mut().reason(&error))?;
        self.sent += piece.len() as u64;
        let length = self.tap.borrow().text.read();
        match marks.back_mut().filter(|last| last.1 == length) {
            Some(last) => last.0 = self.sent,
            None => marks.push_back((self.sent, length)),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), What> {
        if let Some(Encoded { decoder, raw, .. }) = &mut self.encoded {
            let ended = decoder.end();
            ended.map_err(|error| self.tap.borrow_mut().reason(&error))?;
            raw.finish(&self.tap.borrow().filter)?;
        }
        self.tap.borrow_mut().finish()?;
        self.decided = self.sent;
        Ok(())
    }

    fn decided(&mut self) -> u64 {
        let decided = self.tap.borrow().text.decided();
        let Some(Encoded { raw, marks, in_text, .. }) = &mut self.encoded else {
            return self.decided.max(decided);
        };
        while let Some((sent, _)) = marks.pop_front_if(|(_, length)| *length <= decided) {
            *in_text = sent;
        }
        self.decided.max(raw.decided().min(*in_text))
    }
}

impl Tap {
    fn text(&mut self, bytes: &[u8]) -> Result<(), What> {
        self.text.feed(&self.filter, bytes)
    }

    fn finish(&mut self) -> Result<(), What> {
        self.text.finish(&self.filter)
    }

    /// Why a decoder stopped.
    fn reason(&mut self, error: &io::Error) -> What {
        let ambiguous = error.kind() == io::ErrorKind::Unsupported;
        let other = if ambiguous { Unexaminable::Encoding } else { Unexaminable::Damaged };
        self.stopped.take().unwrap_or(What::Unexaminable(other))
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

/// The one type that a body is said to be of.
///
/// # Errors
/// There are several: which of them the application goes by is not known.
fn content_type(headers: &HeaderMap) -> Result<Option<&HeaderValue>, What> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    match (values.next(), values.next()) {
        (kind, None) => Ok(kind),
        (_, Some(_)) => Err(What::Unexaminable(Unexaminable::Types)),
    }
}

/// Whether ASCII in the body is ASCII, and nothing else becomes ASCII when it is read or capitalised. What names no
/// character set counts as such. Of whatever form a parameter is, all that is called a character set must be one.
fn has_known_charset(kind: Option<&HeaderValue>) -> bool {
    let Some(value) = kind else { return true };
    let Ok(value) = value.to_str() else { return false };
    value.to_ascii_lowercase().split("charset").skip(1).all(|rest| {
        let around = |character: char| character.is_ascii_whitespace() || matches!(character, '"' | '\'');
        let Some(name) = rest.trim_start().strip_prefix('=') else { return false };
        let name = name.split([';', ',']).next().unwrap_or_default().trim_matches(around);
        CHARSETS.contains(&name)
    })
}

/// Not among them, for a byte of ASCII may be a part of a character: big5, gb18030, gbk, shift_jis. Neither, for a letter
/// has `I` as its capital (log4j's `upper`): iso-8859-3 and -9, latin3 and 5, windows-1254, euc-jp, euc-kr.
const CHARSETS: [&str; 31] = [
    "utf-8",
    "utf8",
    "us-ascii",
    "ascii",
    "iso-8859-1",
    "iso-8859-2",
    "iso-8859-4",
    "iso-8859-5",
    "iso-8859-6",
    "iso-8859-7",
    "iso-8859-8",
    "iso-8859-10",
    "iso-8859-11",
    "iso-8859-13",
    "iso-8859-14",
    "iso-8859-15",
    "iso-8859-16",
    "latin1",
    "latin2",
    "latin4",
    "latin6",
    "windows-1250",
    "windows-1251",
    "windows-1252",
    "windows-1253",
    "windows-1255",
    "windows-1256",
    "windows-1257",
    "windows-1258",
    "gb2312",
    "euc-cn",
];
