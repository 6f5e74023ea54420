//! Undoes one level of escapes: `%24`, `%u0024`, `\x24`, `\u0024`, `&#36;`, `&#x24;`.

use smallvec::SmallVec;

/// A byte, and where in the input that which it stands for began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Byte {
    pub(crate) value: u8,
    pub(crate) origin: u64,
}

/// The longest escape is `&#x10FFFF;`; what is longer (`&#0000000036;`) is none to this reader up to this length.
const MAX_ESCAPE: usize = 16;

/// At most one unfinished escape comes out at once.
pub(crate) type Out = SmallVec<[Byte; 4]>;

#[derive(Default)]
pub(crate) struct Escapes {
    pending: SmallVec<[Byte; MAX_ESCAPE]>,
}

enum Escape {
    Partial,
    None,
    Byte(u8),
    Char(char),
}

pub(crate) fn begins(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'&')
}

impl Escapes {
    pub(crate) fn push(&mut self, byte: Byte, out: &mut Out) {
        if self.pending.is_empty() && !begins(byte.value) {
            return out.push(byte);
        }
        self.pending.push(byte);
        while let Some(first) = self.pending.first().copied() {
            let bytes: SmallVec<[u8; MAX_ESCAPE]> = self.pending.iter().map(|byte| byte.value).collect();
            let emit = |value| Byte { value, origin: first.origin };
            match read(&bytes) {
                Escape::Partial => return,
                Escape::None => {
                    out.push(first);
                    self.pending.remove(0);
                }
                Escape::Byte(value) => {
                    out.push(emit(value));
                    self.pending.clear();
                }
                Escape::Char(char) => {
                    out.extend(char.encode_utf8(&mut [0; 4]).bytes().map(emit));
                    self.pending.clear();
                }
            }
        }
    }

    /// At the end of the input an unfinished escape is what it is.
    pub(crate) fn finish(&mut self, out: &mut Out) {
        out.extend(self.pending.drain(..));
    }

    /// Where an unfinished escape began.
    pub(crate) fn since(&self) -> Option<u64> {
        self.pending.first().map(|byte| byte.origin)
    }
}

fn read(bytes: &[u8]) -> Escape {
    match bytes {
        [b'%' | b'\\' | b'&'] | [b'&', b'#'] | [b'&', b'#', b'x' | b'X'] => Escape::Partial,
        [b'%', b'u' | b'U', digits @ ..] | [b'\\', b'u', digits @ ..] => match number(digits, 4) {
            Ok(Some(code)) => Escape::Char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
            Ok(None) => Escape::Partial,
            Err(NoNumber) => Escape::None,
        },
        [b'\\', b'x', digits @ ..] | [b'%', digits @ ..] => match number(digits, 2) {
            Ok(Some(code)) => u8::try_from(code).map_or(Escape::None, Escape::Byte),
            Ok(None) => Escape::Partial,
            Err(NoNumber) => Escape::None,
        },
        [b'&', b'#', b'x' | b'X', digits @ ..] => reference(digits, 16),
        [b'&', b'#', digits @ ..] => reference(digits, 10),
        _ => Escape::None,
    }
}

struct NoNumber;

/// So many hexadecimal digits; `None` while there are fewer.
fn number(digits: &[u8], count: usize) -> Result<Option<u32>, NoNumber> {
    let mut code = 0;
    for digit in digits {
        code = code << 4 | char::from(*digit).to_digit(16).ok_or(NoNumber)?;
    }
    Ok((digits.len() == count).then_some(code))
}

/// Digits up to a semicolon.
fn reference(text: &[u8], radix: u32) -> Escape {
    let (digits, ended) = match text {
        [digits @ .., b';'] => (digits, true),
        digits => (digits, false),
    };
    let mut code: u32 = 0;
    for digit in digits {
        let Some(digit) = char::from(*digit).to_digit(radix) else { return Escape::None };
        code = code.saturating_mul(radix).saturating_add(digit);
    }
    match (ended, digits.is_empty()) {
        (true, false) => Escape::Char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
        (false, _) if text.len() + 3 < MAX_ESCAPE => Escape::Partial,
        _ => Escape::None,
    }
}
