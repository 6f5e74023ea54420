//! Finds lookups of log4j that reach out (`${jndi:...}`, CVE-2021-44228) in the bytes of strangers, however they are
//! spelled. Pure and streaming: fed byte by byte or whole, it finds the same.
//!
//! Text may be escaped several times over, and which of its readers undoes an escape is not known. So each level is read on
//! its own: undoing an escape may close a lookup that stays open for a logger that does not undo it.
//!
//! Matching by regular expressions was rejected: lookups nest without limit, and no such expression follows that.

mod escapes;
mod lookups;
mod name;
mod scanner;

pub use scanner::Scanner;

/// Levels of escapes that are undone. Percent-encoding inside of JSON inside of percent-encoding is three.
pub const MAX_ESCAPE_LEVELS: usize = 3;
/// Lookups inside of lookups. Known attacks nest three to five deep.
pub const MAX_DEPTH: usize = 32;
/// Bytes of one outermost lookup after its inner ones are resolved. What log4j is asked to look up is a name.
pub const MAX_LOOKUP: usize = 4 << 10;
/// Bytes of input that are undecided at one time, which is what a proxy has to hold back.
pub const MAX_HELD: u64 = 64 << 10;
/// Bytes read again within one outermost lookup: resolving costs no more than this, whatever the nesting.
pub const MAX_WORK: usize = 256 << 10;

/// Why input is not to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finding {
    /// A lookup by JNDI.
    Jndi,
    /// Nested beyond [`MAX_DEPTH`] or [`MAX_WORK`].
    TooDeep,
    /// A lookup beyond [`MAX_LOOKUP`], or undecided beyond [`MAX_HELD`].
    TooLong,
}
