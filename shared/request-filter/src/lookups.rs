//! Resolves log4j's lookups from the innermost outwards, as log4j does before it decides what to look up.

use crate::escapes::Byte;
use crate::{Finding, MAX_DEPTH, MAX_LOOKUP, MAX_WORK};
use base64::{Engine as _, alphabet, engine};

/// Padding may be missing: a logger's decoder does not insist on it.
const BASE64: engine::GeneralPurpose = engine::GeneralPurpose::new(
    &alphabet::STANDARD,
    engine::GeneralPurposeConfig::new().with_decode_padding_mode(engine::DecodePaddingMode::Indifferent),
);

#[derive(Default)]
pub(crate) struct Lookups {
    /// What the open lookups contain, inner ones resolved.
    text: Vec<u8>,
    /// Where in `text` each open lookup begins, the outermost first.
    open: Vec<usize>,
    /// Where in the input the outermost began.
    since: Option<u64>,
    /// The last byte was `$`; where it came from.
    dollar: Option<u64>,
    /// To be read next, the last first: what was resolved is read as if it had stood there.
    queue: Vec<Byte>,
    work: usize,
}

impl Lookups {
    pub(crate) fn push(&mut self, byte: Byte) -> Option<Finding> {
        self.queue.push(byte);
        while let Some(byte) = self.queue.pop() {
            if let Some(finding) = self.step(byte) {
                return Some(finding);
            }
        }
        if self.open.is_empty() {
            self.work = 0;
        }
        None
    }

    /// Where the undecided part of the input began.
    pub(crate) fn since(&self) -> Option<u64> {
        self.since.or(self.dollar)
    }

    fn step(&mut self, byte: Byte) -> Option<Finding> {
        let dollar = self.dollar.take();
        match (byte.value, dollar) {
            (b'{', Some(origin)) => {
                self.text.pop();
                self.since.get_or_insert(origin);
                self.open.push(self.text.len());
                (self.open.len() > MAX_DEPTH).then_some(Finding::TooDeep)
            }
            (b'}', _) if !self.open.is_empty() => self.close(),
            (value, _) => {
                self.dollar = (value == b'$').then_some(byte.origin);
                if let Some(start) = self.open.last() {
                    self.text.push(value);
                    let content = self.text.get(*start..).unwrap_or_default();
                    if value == b':' && content.trim_ascii().eq_ignore_ascii_case(b"jndi:") {
                        return Some(Finding::Jndi);
                    }
                }
                (self.text.len() > MAX_LOOKUP).then_some(Finding::TooLong)
            }
        }
    }

    fn close(&mut self) -> Option<Finding> {
        let start = self.open.pop()?;
        let content = self.text.split_off(start.min(self.text.len()));
        let origin = self.since.unwrap_or_default();
        if self.open.is_empty() {
            self.since = None;
        }
        let value = resolve(&content);
        self.work += value.len();
        self.queue.extend(value.into_iter().rev().map(|value| Byte { value, origin }));
        (self.work > MAX_WORK).then_some(Finding::TooDeep)
    }
}

/// What a lookup becomes; never longer than its content. What only the logger's host knows (its environment) counts as
/// missing: its default, or nothing.
fn resolve(content: &[u8]) -> Vec<u8> {
    let split = content.windows(2).position(|pair| pair == b":-");
    let (name, default) = match split.and_then(|at| content.split_at_checked(at)) {
        Some((name, rest)) => (name, rest.get(2..).unwrap_or_default()),
        None => (content, &b""[..]),
    };
    known(name.trim_ascii_start()).unwrap_or_else(|| default.to_vec())
}

/// A value that anybody can tell.
fn known(name: &[u8]) -> Option<Vec<u8>> {
    let colon = name.iter().position(|byte| *byte == b':')?;
    let (kind, rest) = name.split_at_checked(colon)?;
    let argument = rest.get(1..)?;
    match kind.trim_ascii().to_ascii_lowercase().as_slice() {
        b"lower" => Some(argument.to_ascii_lowercase()),
        b"upper" => Some(upper(argument)),
        // A format's quoted parts stand for themselves.
        b"date" => Some(argument.iter().copied().filter(|byte| *byte != b'\'').collect()),
        b"base64" => BASE64.decode(argument).ok(),
        _ => None,
    }
}

/// Two letters beyond ASCII have a capital within it: dotless i, long s.
fn upper(argument: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(argument.len());
    let mut rest = argument;
    loop {
        let (capital, after) = match rest {
            [] => return out,
            [0xc4, 0xb1, after @ ..] => (b'I', after),
            [0xc5, 0xbf, after @ ..] => (b'S', after),
            [byte, after @ ..] => (byte.to_ascii_uppercase(), after),
        };
        out.push(capital);
        rest = after;
    }
}
