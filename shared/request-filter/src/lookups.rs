//! Resolves log4j's lookups from the innermost outwards, as log4j does before it decides what to look up.

use crate::escapes::Byte;
use crate::name::{Name, Progress};
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
    /// The open lookups, the outermost first.
    open: Vec<Open>,
    /// Where in the input the outermost began.
    since: Option<u64>,
    /// The last byte was `$`; where it came from. It is not part of `text` before it is known to begin nothing.
    dollar: Option<u64>,
    /// To be read next, the last first: what was resolved is read as if it had stood there.
    queue: Vec<Symbol>,
    work: usize,
}

struct Open {
    /// Where in `text` it begins.
    start: usize,
    name: Name,
    /// It contains what only the logger's host knows, so that what becomes of it is not known either.
    gap: bool,
}

enum Symbol {
    Byte(Byte),
    /// A lookup inside of the one at `depth` ends that only the logger's host can resolve. Its default, which was read
    /// before, is one of the values it may have.
    Gap {
        depth: usize,
        after: Progress,
    },
}

/// What becomes of a lookup.
struct Resolved {
    value: Vec<u8>,
    /// Or anything else.
    gap: bool,
}

impl Lookups {
    pub(crate) fn push(&mut self, byte: Byte) -> Option<Finding> {
        self.queue.push(Symbol::Byte(byte));
        while let Some(symbol) = self.queue.pop() {
            let found = match symbol {
                Symbol::Byte(byte) => self.step(byte),
                Symbol::Gap { depth, after } => {
                    self.skip(depth, after);
                    None
                }
            };
            if found.is_some() {
                return found;
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
        match (byte.value, self.dollar.take()) {
            (b'{', Some(origin)) => {
                self.since.get_or_insert(origin);
                self.open.push(Open { start: self.text.len(), name: Name::new(), gap: false });
                (self.open.len() > MAX_DEPTH).then_some(Finding::TooDeep)
            }
            (value, dollar) => {
                let before = dollar.and_then(|_| self.append(b'$'));
                before.or_else(|| match value {
                    b'}' if !self.open.is_empty() => self.close(),
                    b'$' => {
                        self.dollar = Some(byte.origin);
                        None
                    }
                    value => self.append(value),
                })
            }
        }
    }

    fn append(&mut self, value: u8) -> Option<Finding> {
        let open = self.open.last_mut()?;
        self.text.push(value);
        if open.name.read(value) {
            return Some(Finding::Jndi);
        }
        (self.text.len() > MAX_LOOKUP).then_some(Finding::TooLong)
    }

    fn skip(&mut self, depth: usize, after: Progress) {
        if let Some(open) = depth.checked_sub(1).and_then(|at| self.open.get_mut(at)) {
            open.name.skip(after);
            open.gap = true;
        }
    }

    fn close(&mut self) -> Option<Finding> {
        let closed = self.open.pop()?;
        let content = self.text.split_off(closed.start.min(self.text.len()));
        let origin = self.since.unwrap_or_default();
        if self.open.is_empty() {
            self.since = None;
        }
        let Resolved { value, gap } = resolve(&content);
        if gap || closed.gap {
            // Outside of all lookups it is no matter what it becomes.
            if let Some(outer) = self.open.last() {
                let Some(after) = outer.name.gap() else { return Some(Finding::Jndi) };
                self.queue.push(Symbol::Gap { depth: self.open.len(), after });
            }
        }
        self.work += value.len();
        self.queue.extend(value.into_iter().rev().map(|value| Symbol::Byte(Byte { value, origin })));
        (self.work > MAX_WORK).then_some(Finding::TooDeep)
    }
}

/// What a lookup becomes; never longer than its content. What only the logger's host knows (its environment) is a gap, and
/// may be missing: then it is its default, or nothing.
fn resolve(content: &[u8]) -> Resolved {
    let split = content.windows(2).position(|pair| pair == b":-");
    let (name, default) = match split.and_then(|at| content.split_at_checked(at)) {
        Some((name, rest)) => (name, rest.get(2..).unwrap_or_default()),
        None => (content, &b""[..]),
    };
    let name = name.trim_ascii_start();
    match known(name) {
        Some(value) => Resolved { value, gap: false },
        // Nothing has no name, or a name that is only a colon.
        None => Resolved { value: default.to_vec(), gap: !matches!(name, b"" | b":") },
    }
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
