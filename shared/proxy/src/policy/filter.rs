//! What requests must not contain, compiled, and the search of a request's head. Bodies are searched as they stream
//! ([`BodyExaminer`]).

use http::{HeaderMap, Request, StatusCode};
use meridian_proxy_config::{self as config, FilterAction, RequestPart, RuleSet};
use meridian_request_filter::Scanner;
use regex_automata::{meta::Regex, util::syntax};
use smallvec::SmallVec;
use std::{fmt, sync::Arc};

mod body;
mod decode;
mod text;

pub use body::{BodyExaminer, Framing};

/// How large a compiled pattern may be, as when the policy was applied.
const PATTERN_SIZE: usize = 256 << 10;
/// Of a pattern's lazily built automaton, a worker: what a policy says must not fill a proxy's memory.
const PATTERN_CACHE: usize = 256 << 10;

#[derive(Debug)]
pub struct RequestFilter {
    policy: String,
    pub action: FilterAction,
    pub on_limit: FilterAction,
    pub status: StatusCode,
    pub max_body: u64,
    log4shell: bool,
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    name: Arc<str>,
    regex: Regex,
    parts: Vec<RequestPart>,
}

/// What was found, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: What,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No pattern is searched for in it.
    Method,
    Part(RequestPart),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Log4shell,
    /// By name.
    Pattern(Arc<str>),
    /// It can't be examined.
    Unexaminable(Unexaminable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unexaminable {
    TooLong,
    /// Expands beyond all measure.
    Bomb,
    Encoding,
    Charset,
    /// It is said to be of several.
    Types,
    Damaged,
}

impl RequestFilter {
    /// # Errors
    /// A pattern can't be understood or is too large, or the status is none.
    pub fn compile(config: &config::RequestFilter) -> Result<Self, String> {
        let compiled = |pattern: &config::FilterPattern| {
            let regex = compile(&pattern.regex)?;
            Ok(Pattern { name: pattern.name.as_str().into(), regex, parts: pattern.places.clone() })
        };
        Ok(Self {
            policy: config.policy.clone(),
            action: config.action,
            on_limit: config.on_limit,
            status: StatusCode::from_u16(config.status)
                .map_err(|_| format!("status {} is none", config.status))?,
            max_body: config.max_body_bytes,
            log4shell: config.rule_sets.contains(&RuleSet::Log4shell),
            patterns: config.patterns.iter().map(compiled).collect::<Result<_, String>>()?,
        })
    }

    /// What becomes of a request with this in it.
    pub fn action(&self, what: &What) -> FilterAction {
        match what {
            What::Unexaminable(_) => self.on_limit,
            What::Log4shell | What::Pattern(_) => self.action,
        }
    }

    /// For reports: the policy and what it found.
    pub fn rule(&self, finding: &Finding) -> String {
        if self.policy.is_empty() { finding.to_string() } else { format!("{}: {finding}", self.policy) }
    }

    /// Whether a part is searched at all.
    pub fn searches(&self, part: RequestPart) -> bool {
        self.log4shell || self.patterns_of(part).next().is_some()
    }

    /// What is found in a request's method, target or headers.
    pub fn head<B>(&self, request: &Request<B>) -> Option<Finding> {
        let (method, uri) = (request.method().as_str().as_bytes(), request.uri());
        let (path, query) = (uri.path().as_bytes(), uri.query().map(str::as_bytes));
        // Who logs a request logs its line whole: what begins in the method or the path may end in the query.
        let line: SmallVec<[&[u8]; 5]> = [method, b" ", path]
            .into_iter()
            .chain(query.into_iter().flat_map(|query| [&b"?"[..], query]))
            .collect();
        if self.log4shell && lookups(&line, b"") {
            let place = if lookups(&[method], b"") {
                Place::Method
            } else if lookups(&[path], b"") {
                Place::Part(RequestPart::Path)
            } else {
                Place::Part(RequestPart::Query)
            };
            return Some(Finding { what: What::Log4shell, place });
        }
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        self.target(RequestPart::Path, path)
            .or_else(|| self.target(RequestPart::Query, query?))
            .or_else(|| self.values(RequestPart::Headers, &[authority?]))
            .or_else(|| self.fields(request.headers(), RequestPart::HeaderNames, RequestPart::Headers))
    }

    /// What is found in the fields after a body.
    pub fn trailers(&self, trailers: &HeaderMap) -> Option<Finding> {
        self.fields(trailers, RequestPart::Trailers, RequestPart::Trailers)
    }

    fn fields(&self, fields: &HeaderMap, names: RequestPart, values: RequestPart) -> Option<Finding> {
        fields.keys().find_map(|name| {
            let all: SmallVec<[&[u8]; 4]> =
                fields.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
            self.values(names, &[name.as_str().as_bytes()]).or_else(|| self.values(values, &all))
        })
    }

    /// Patterns see a target as it is written and as it is meant.
    fn target(&self, part: RequestPart, text: &[u8]) -> Option<Finding> {
        let found = self.pattern(part, text);
        let decoded = || {
            let escaped = text.iter().any(|byte| matches!(byte, b'%' | b'+'));
            let wanted = escaped && self.patterns_of(part).next().is_some();
            wanted.then(|| unescape(text, part == RequestPart::Query))
        };
        found
            .or_else(|| self.pattern(part, &decoded()?))
            .map(|what| Finding { what, place: Place::Part(part) })
    }

    /// The values of one name. Who reads them joins them, so a lookup may go on from one to the next.
    fn values(&self, part: RequestPart, values: &[&[u8]]) -> Option<Finding> {
        let lookup = (self.log4shell && lookups(values, b",")).then_some(What::Log4shell);
        lookup
            .or_else(|| values.iter().find_map(|value| self.pattern(part, value)))
            .map(|what| Finding { what, place: Place::Part(part) })
    }

    fn pattern(&self, part: RequestPart, text: &[u8]) -> Option<What> {
        let found = self.patterns_of(part).find(|pattern| pattern.regex.is_match(text))?;
        Some(What::Pattern(found.name.clone()))
    }

    fn patterns_of(&self, part: RequestPart) -> impl Iterator<Item = &Pattern> {
        self.patterns.iter().filter(move |pattern| pattern.parts.contains(&part))
    }
}

/// Bytes need not be UTF-8, and `.` takes any of them: else one wrong byte would hide what it stands in. A pattern
/// that needs Unicode has it, and then finds text only.
fn compile(pattern: &str) -> Result<Regex, String> {
    let config = Regex::config().nfa_size_limit(Some(PATTERN_SIZE)).hybrid_cache_capacity(PATTERN_CACHE);
    let build = |unicode| {
        let syntax = syntax::Config::new().utf8(false).unicode(unicode);
        Regex::builder()
            .configure(config.clone())
            .syntax(syntax)
            .build(pattern)
            .map_err(|error| format!("pattern {pattern:?}: {error}"))
    };
    build(false).or_else(|_| build(true))
}

/// Whether texts, read one after the other, hold a lookup.
fn lookups(texts: &[&[u8]], between: &[u8]) -> bool {
    // Most texts hold nothing that could begin one.
    let begins = |byte: &u8| matches!(byte, b'$' | b'%' | b'\\' | b'&');
    if !texts.iter().any(|text| text.iter().any(begins)) {
        return false;
    }
    let mut scanner = Scanner::new();
    for (i, text) in texts.iter().enumerate() {
        if i > 0 {
            scanner.feed(between);
        }
        scanner.feed(text);
    }
    scanner.finish().is_some()
}

/// Undoes percent-encoding, and of forms the plus.
fn unescape(text: &[u8], form: bool) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        let (byte, after) = match rest {
            [] => return out,
            [b'%', high, low, after @ ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            [b'+', after @ ..] if form => (b' ', after),
            [byte, after @ ..] => (*byte, after),
        };
        out.push(byte);
        rest = after;
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.place {
            Place::Method => "the method",
            Place::Part(part) => name(part),
        };
        match &self.what {
            What::Log4shell => write!(f, "log4shell in {part}"),
            What::Pattern(name) => write!(f, "{name} in {part}"),
            What::Unexaminable(why) => write!(f, "{part} {why}"),
        }
    }
}

fn name(part: RequestPart) -> &'static str {
    match part {
        RequestPart::Path => "the path",
        RequestPart::Query => "the query",
        RequestPart::HeaderNames => "the names of headers",
        RequestPart::Headers => "the headers",
        RequestPart::Body => "the body",
        RequestPart::Trailers => "the trailers",
    }
}

impl fmt::Display for Unexaminable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "is longer than what is examined",
            Self::Bomb => "expands too far",
            Self::Encoding => "is encoded in a way that is not known",
            Self::Charset => "is of a character set that is not read",
            Self::Types => "is said to be of several types",
            Self::Damaged => "is damaged",
        })
    }
}

#[cfg(test)]
mod tests;
