use crate::escapes::{Byte, Escapes, Out, begins};
use crate::lookups::Lookups;
use crate::{Finding, MAX_ESCAPE_LEVELS, MAX_HELD};

/// Reads one text: a path, a header's value, a body.
#[derive(Default)]
pub struct Scanner {
    levels: [Level; MAX_ESCAPE_LEVELS + 1],
    read: u64,
    found: Option<Finding>,
}

/// The text after so many levels of escapes are undone, and what undoes the next.
#[derive(Default)]
struct Level {
    lookups: Lookups,
    escapes: Escapes,
}

impl Scanner {
    pub fn new() -> Self {
        Self::default()
    }

    /// What is found in a whole text.
    pub fn scan(text: &[u8]) -> Option<Finding> {
        let mut scanner = Self::new();
        scanner.feed(text);
        scanner.finish()
    }

    /// Reads on. Whatever was found first stays found.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Option<Finding> {
        while self.found.is_none() {
            if self.undecided_since().is_none() {
                // Nothing has begun: go to where something may.
                let plain =
                    bytes.iter().position(|byte| *byte == b'$' || begins(*byte)).unwrap_or(bytes.len());
                self.read += plain as u64;
                bytes = bytes.get(plain..).unwrap_or_default();
            }
            let Some((value, rest)) = bytes.split_first() else { break };
            self.found = push(&mut self.levels, Byte { value: *value, origin: self.read });
            self.read += 1;
            bytes = rest;
            if self.found.is_none() && self.read - self.decided() > MAX_HELD {
                self.found = Some(Finding::TooLong);
            }
        }
        self.found
    }

    /// The input has ended.
    pub fn finish(&mut self) -> Option<Finding> {
        let mut levels = self.levels.as_mut_slice();
        while let Some((level, next)) = levels.split_first_mut() {
            let mut out = Out::new();
            level.escapes.finish(&mut out);
            for byte in out {
                self.found = self.found.or_else(|| push(next, byte));
            }
            levels = next;
        }
        self.found
    }

    /// So many bytes from the beginning of the input can't belong to a finding any more: they may be passed on.
    pub fn decided(&self) -> u64 {
        self.undecided_since().unwrap_or(self.read)
    }

    fn undecided_since(&self) -> Option<u64> {
        self.levels.iter().flat_map(|level| [level.lookups.since(), level.escapes.since()]).flatten().min()
    }
}

fn push(levels: &mut [Level], byte: Byte) -> Option<Finding> {
    let (level, next) = levels.split_first_mut()?;
    if let Some(finding) = level.lookups.push(byte) {
        return Some(finding);
    }
    if next.is_empty() {
        return None;
    }
    let mut out = Out::new();
    level.escapes.push(byte, &mut out);
    out.into_iter().find_map(|byte| push(next, byte))
}
