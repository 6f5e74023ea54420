//! Whether what an open lookup contains can still become `jndi:`, where parts of it are known to the logger's host only.
//!
//! Read byte by byte, each at a constant cost: content that was read before is never read again.

/// The letters before the colon.
const NAME: [u8; 4] = *b"jndi";
/// What may follow `jndi:`, if neither the name nor its colon is in the text: else `${${a}:-${b}}` would be a finding.
const SCHEMES: [u64; 8] = [
    word(b"ldap"),
    word(b"ldaps"),
    word(b"rmi"),
    word(b"dns"),
    word(b"iiop"),
    word(b"nis"),
    word(b"corba"),
    word(b"http"),
];

/// How far the name may have been read, as sets of numbers of letters (bit 0: none, bit 4: all), by how many of these
/// letters are in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// All that were read.
    literal: u8,
    /// Some; gaps are the others.
    some: u8,
    /// None.
    none: u8,
}

/// The content of one open lookup.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    progress: Progress,
    /// A gap may have been all up to the colon: what was read since.
    scheme: Option<u64>,
}

impl Name {
    pub(crate) fn new() -> Self {
        Self { progress: Progress { literal: 1, some: 0, none: 0 }, scheme: None }
    }

    /// Whether the content is a lookup by JNDI with this byte.
    pub(crate) fn read(&mut self, byte: u8) -> bool {
        let byte = byte.to_ascii_lowercase();
        let Progress { literal, some, none } = self.progress;
        let named = byte == b':' && (literal | some) & COMPLETE != 0;
        let scheme = byte == b':' && self.scheme.is_some_and(|scheme| SCHEMES.contains(&scheme));
        let colon = byte == b':' && (none & COMPLETE != 0 || self.scheme == Some(0));
        self.scheme = if colon { Some(0) } else { self.scheme.and_then(|scheme| longer(scheme, byte)) };
        let letters = |set| step(set, byte);
        // A letter after a gap that was all so far is the first one of the text.
        self.progress = Progress {
            literal: letters(literal),
            some: letters(some) | letters(none) & !1,
            none: letters(none) & 1,
        };
        // Space after a gap that may be the whole name says nothing of its letters.
        if byte.is_ascii_whitespace() {
            self.progress.some = letters(some);
            self.progress.none = letters(none);
        }
        named || scheme
    }

    /// What may have been read once a gap ends that begins here: any letters that follow. `None`: the gap itself makes it
    /// a lookup by JNDI, being all that a whole name still needs (`${sys:path.separator}`).
    pub(crate) fn gap(&self) -> Option<Progress> {
        let Progress { literal, some, none } = self.progress;
        if literal & COMPLETE != 0 {
            return None;
        }
        Some(Progress { literal: 0, some: onwards(literal & !1 | some), none: onwards(literal & 1 | none) })
    }

    /// A gap ends.
    pub(crate) fn skip(&mut self, after: Progress) {
        self.progress.some |= after.some;
        self.progress.none |= after.none;
        if after.some | after.none != 0 {
            self.scheme = Some(0);
        }
    }
}

/// All letters are read.
const COMPLETE: u8 = 1 << NAME.len();

/// Where a set of positions is after a byte: a letter leads on, and around the name there may be space.
fn step(set: u8, byte: u8) -> u8 {
    if byte.is_ascii_whitespace() {
        return set & (1 | COMPLETE);
    }
    let mut next = 0;
    for (i, letter) in NAME.iter().enumerate() {
        if byte == *letter {
            next |= (set & 1 << i) << 1;
        }
    }
    next
}

/// All positions from the first of a set on.
fn onwards(set: u8) -> u8 {
    match set.trailing_zeros() {
        8 => 0,
        first => (COMPLETE << 1) - (1 << first),
    }
}

const fn word(letters: &[u8]) -> u64 {
    let (mut word, mut rest) = (0, letters);
    while let [letter, after @ ..] = rest {
        word = word << 8 | *letter as u64;
        rest = after;
    }
    word
}

/// A word with one letter more, unless no word is as long.
fn longer(word: u64, letter: u8) -> Option<u64> {
    let longer = word << 8 | u64::from(letter);
    (letter.is_ascii_alphabetic() && longer >> 40 == 0).then_some(longer)
}
