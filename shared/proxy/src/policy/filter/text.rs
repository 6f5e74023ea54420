//! One text that comes in pieces: a body, a gRPC message.

use super::{RequestFilter, Unexaminable, What};
use meridian_proxy_config::{FilterAction, RequestPart};
use meridian_request_filter::Scanner;
use regex_automata::Input;
use std::{cell::OnceCell, rc::Rc};

/// The longest match of a pattern that is sure to be found in a text that comes in pieces. Signatures are far shorter,
/// and so much of each request is held back.
const WINDOW: usize = 4 << 10;
/// What a pattern may look at on either side of a match (`\b`): a character.
const CONTEXT: usize = 4;

pub(super) struct Text {
    search: Search,
    seen: Seen,
    limit: u64,
    read: u64,
}

/// What a body's texts were found to contain, where that does not end it. Once there is something they are examined
/// no further, but for their limits.
pub(super) type Seen = Rc<OnceCell<What>>;

/// What a text is searched for.
#[derive(Default)]
struct Search {
    /// A few KiB, which futures are not to carry.
    scanner: Option<Box<Scanner>>,
    window: Option<Window>,
}

/// What patterns have not been run over, or not in whole.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    /// Where to begin; before it is only what is looked at.
    from: usize,
    /// Bytes that are gone.
    gone: u64,
}

impl Text {
    /// `limit`: so many bytes are examined.
    pub(super) fn new(filter: &RequestFilter, limit: u64, seen: &Seen) -> Self {
        let patterns = filter.patterns_of(RequestPart::Body).next().is_some();
        let search = match seen.get() {
            Some(_) => Search::default(),
            None => Search {
                scanner: filter.log4shell.then(Box::default),
                window: patterns.then(Window::default),
            },
        };
        Self { search, seen: seen.clone(), limit, read: 0 }
    }

    /// Reads on.
    ///
    /// # Errors
    /// What was found and is to be blocked, or that the text is too long.
    pub(super) fn feed(&mut self, filter: &RequestFilter, bytes: &[u8]) -> Result<(), What> {
        let room = usize::try_from(self.limit.saturating_sub(self.read)).unwrap_or(usize::MAX);
        let within = bytes.get(..room).unwrap_or(bytes);
        self.read = self.read.saturating_add(bytes.len() as u64);
        let found = self.search.feed(filter, within);
        self.judge(filter, found)?;
        if within.len() == bytes.len() {
            return Ok(());
        }
        self.finish(filter)?;
        Err(What::Unexaminable(Unexaminable::TooLong))
    }

    /// The text has ended.
    ///
    /// # Errors
    /// What was found at its end and is to be blocked.
    pub(super) fn finish(&mut self, filter: &RequestFilter) -> Result<(), What> {
        let found = self.search.finish(filter);
        self.judge(filter, found)
    }

    fn judge(&mut self, filter: &RequestFilter, found: Result<(), What>) -> Result<(), What> {
        match found {
            Err(what) if filter.action == FilterAction::Observe => {
                // Of several the first is reported.
                self.seen.set(what).ok();
                self.search = Search::default();
                Ok(())
            }
            found => found,
        }
    }

    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// So many bytes can't belong to a finding any more.
    pub(super) fn decided(&self) -> u64 {
        let Search { scanner, window } = &self.search;
        let scanner = scanner.as_ref().map_or(self.read, |scanner| scanner.decided());
        let window = window.as_ref().map_or(self.read, |window| window.gone + window.from as u64);
        scanner.min(window)
    }
}

impl Search {
    fn feed(&mut self, filter: &RequestFilter, bytes: &[u8]) -> Result<(), What> {
        if self.scanner.as_mut().is_some_and(|scanner| scanner.feed(bytes).is_some()) {
            return Err(What::Log4shell);
        }
        self.window.as_mut().map_or(Ok(()), |window| window.feed(filter, bytes))
    }

    fn finish(&mut self, filter: &RequestFilter) -> Result<(), What> {
        if self.scanner.as_mut().is_some_and(|scanner| scanner.finish().is_some()) {
            return Err(What::Log4shell);
        }
        self.window.as_mut().map_or(Ok(()), |window| window.search(filter, window.bytes.len()))
    }
}

impl Window {
    fn feed(&mut self, filter: &RequestFilter, bytes: &[u8]) -> Result<(), What> {
        for piece in bytes.chunks(WINDOW) {
            self.bytes.extend_from_slice(piece);
            if self.bytes.len() - self.from < 2 * WINDOW {
                continue;
            }
            // A match that begins before the last window has ended by now, or is longer than one.
            self.search(filter, self.bytes.len() - CONTEXT)?;
            self.from = self.bytes.len() - WINDOW - CONTEXT;
            let gone = self.from - CONTEXT;
            self.bytes.drain(..gone);
            self.from -= gone;
            self.gone += gone as u64;
        }
        Ok(())
    }

    fn search(&self, filter: &RequestFilter, to: usize) -> Result<(), What> {
        let input = Input::new(&self.bytes).span(self.from..to.max(self.from));
        let mut patterns = filter.patterns_of(RequestPart::Body);
        match patterns.find(|pattern| pattern.regex.is_match(input.clone())) {
            Some(found) => Err(What::Pattern(found.name.clone())),
            None => Ok(()),
        }
    }
}
