//! Reads the text format 0.0.4, and OpenMetrics as far as it can be said in that: units, exemplars, times of
//! creation and marks of the end are left out.

use super::{Exposition, Kind, Part, Sample};
use std::collections::{BTreeMap, HashMap};

/// A page that can't be understood is not given in part: a number that is missing looks like one that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Malformed {
    line: usize,
    what: &'static str,
}

/// What `# TYPE` and `# HELP` said of a name.
#[derive(Default)]
struct Declared {
    kind: Option<Type>,
    help: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Of(Kind),
    /// OpenMetrics: one sample that is always 1, `NAME_info`.
    Info,
    /// OpenMetrics: a family that no kind here has room for. Its samples stand alone.
    Loose,
}

/// Reads a page of one's own; for any other there is [`parse_up_to`].
///
/// # Errors
/// The first line that is none of the format's.
pub fn parse(text: &str) -> Result<Exposition, Malformed> {
    parse_up_to(text, usize::MAX)
}

/// Reads a page of at most so many samples. Its bytes don't bound its memory: a sample of four bytes takes a kilobyte once
/// it has its labels.
///
/// # Errors
/// The first line that is none of the format's, or has a sample too many: nothing after it is read.
pub fn parse_up_to(text: &str, most: usize) -> Result<Exposition, Malformed> {
    let mut declared: HashMap<&str, Declared> = HashMap::new();
    let mut out = Exposition::default();
    let mut left = most;
    for (index, line) in text.lines().enumerate() {
        let wrong = |what| Malformed { line: index + 1, what };
        let line = line.trim_matches([' ', '\t', '\r']);
        if let Some(comment) = line.strip_prefix('#') {
            comment_line(comment, &mut declared, &out).map_err(wrong)?;
        } else if !line.is_empty() {
            left = left.checked_sub(1).ok_or_else(|| wrong("there are more samples than are taken"))?;
            let (name, sample) = sample_line(line).map_err(wrong)?;
            put(name, sample, &declared, &mut out);
        }
    }
    Ok(out)
}

fn comment_line<'a>(
    comment: &'a str,
    declared: &mut HashMap<&'a str, Declared>,
    so_far: &Exposition,
) -> Result<(), &'static str> {
    let mut words = comment.trim_start_matches([' ', '\t']).splitn(3, [' ', '\t']);
    let (keyword, name, rest) = (words.next(), words.next(), words.next().unwrap_or_default());
    let (Some("HELP" | "TYPE"), Some(name)) = (keyword, name) else { return Ok(()) };
    if !is_name(name, true) {
        return Err("this is no name of a metric");
    }
    let entry = declared.entry(name).or_default();
    if keyword == Some("HELP") {
        entry.help = unescape(rest);
        return Ok(());
    }
    let late = ["", "_bucket", "_sum", "_count", "_total"].iter();
    let late = late.map(|suffix| format!("{name}{suffix}")).any(|name| so_far.families.contains_key(&name));
    if late || entry.kind.is_some() {
        return Err("a type comes after its samples, or twice");
    }
    entry.kind = Some(match rest.trim() {
        "counter" => Type::Of(Kind::Counter),
        "gauge" | "stateset" => Type::Of(Kind::Gauge),
        "histogram" => Type::Of(Kind::Histogram),
        "summary" => Type::Of(Kind::Summary),
        "untyped" | "unknown" => Type::Of(Kind::Untyped),
        "info" => Type::Info,
        "gaugehistogram" => Type::Loose,
        _ => return Err("this is no type of a metric"),
    });
    Ok(())
}

/// Where a sample belongs.
struct Place<'a> {
    family: &'a str,
    kind: Kind,
    help: &'a str,
    part: Part,
}

/// Puts a sample where its name belongs.
fn put(name: &str, sample: Sample, declared: &HashMap<&str, Declared>, out: &mut Exposition) {
    if let Some(Place { family, kind, help, part }) = place(name, declared) {
        out.push(family, kind, help, Sample { part, ..sample });
    }
}

/// `None`: it says nothing that can be said here.
fn place<'a>(name: &'a str, declared: &'a HashMap<&str, Declared>) -> Option<Place<'a>> {
    let kind_of = |name: &str| declared.get(name).and_then(|entry| entry.kind);
    let at = |family: &'a str, said_of: &str, kind, part| {
        let help = declared.get(said_of).map_or("", |entry| entry.help.as_str());
        Some(Place { family, kind, help, part })
    };
    match kind_of(name) {
        // Only its parts say something.
        Some(Type::Of(Kind::Histogram)) => return None,
        Some(Type::Of(kind)) => return at(name, name, kind, Part::Value),
        Some(Type::Info | Type::Loose) | None => {}
    }
    for part in [Part::Bucket, Part::Sum, Part::Count] {
        let Some(family) = name.strip_suffix(part.suffix()) else { continue };
        match kind_of(family) {
            Some(Type::Of(kind @ Kind::Histogram)) => return at(family, family, kind, part),
            Some(Type::Of(kind @ Kind::Summary)) if part != Part::Bucket => {
                return at(family, family, kind, part);
            }
            _ => {}
        }
    }
    for (suffix, of, kind) in
        [("_total", Type::Of(Kind::Counter), Kind::Counter), ("_info", Type::Info, Kind::Gauge)]
    {
        if let Some(family) = name.strip_suffix(suffix)
            && kind_of(family) == Some(of)
        {
            return at(name, family, kind, Part::Value);
        }
    }
    // When a series began: nothing here says it.
    let began = name.strip_suffix("_created").and_then(kind_of);
    let is_made = matches!(began, Some(Type::Of(Kind::Counter | Kind::Histogram | Kind::Summary)));
    if is_made { None } else { at(name, name, Kind::Untyped, Part::Value) }
}

fn sample_line(line: &str) -> Result<(&str, Sample), &'static str> {
    let end = line.find(['{', ' ', '\t']).ok_or("a sample has no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err("this is no name of a metric");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    // What follows a `#` is an exemplar.
    let rest = rest.split('#').next().unwrap_or_default();
    let mut words = rest.split_ascii_whitespace();
    let value = words.next().and_then(number).ok_or("a sample has no value")?;
    let timestamp = words.next().map(|word| timestamp(word).ok_or("this is no time")).transpose()?;
    if words.next().is_some() {
        return Err("there is more after the sample");
    }
    Ok((name, Sample { part: Part::Value, labels, value, timestamp }))
}

/// After the opening brace; what follows the closing one is the second part.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), &'static str> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, after) = rest.split_once('=').ok_or("labels do not end")?;
        let name = name.trim_end_matches([' ', '\t']);
        if !is_name(name, false) {
            return Err("this is no name of a label");
        }
        let quoted = after.trim_start_matches([' ', '\t']).strip_prefix('"');
        let quoted = quoted.ok_or("a label's value is not quoted")?;
        let end = closing_quote(quoted).ok_or("a label's value does not end")?;
        let (value, after) = quoted.split_at(end);
        if labels.insert(name.to_owned(), unescape(value)).is_some() {
            return Err("a label is there twice");
        }
        rest = after.strip_prefix('"').unwrap_or_default();
        if !rest.trim_start_matches([' ', '\t']).starts_with([',', '}']) {
            return Err("labels do not end");
        }
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, char)| {
        let ends = char == '"' && !escaped;
        escaped = char == '\\' && !escaped;
        ends.then_some(index)
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (char, if char == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some(escaped @ ('\\' | '"'))) => out.push(escaped),
            ('\\', Some(other)) => out.extend(['\\', other]),
            (char, _) => out.push(char),
        }
    }
    out
}

fn number(word: &str) -> Option<f64> {
    // Rust's own parser takes the words that Prometheus has for what is no number, in any case, and `infinity`.
    word.parse().ok()
}

/// Milliseconds of the text format are whole; seconds of OpenMetrics have a point, or are too few to be milliseconds.
fn timestamp(word: &str) -> Option<i64> {
    /// 1970-04-26 in milliseconds, the year 5138 in seconds.
    const EARLIEST_MILLIS: u64 = 10_000_000_000;
    if let Ok(whole) = word.parse::<i64>() {
        let millis = if whole.unsigned_abs() < EARLIEST_MILLIS { whole.checked_mul(1_000)? } else { whole };
        return Some(millis);
    }
    let seconds: f64 = word.parse().ok()?;
    seconds.is_finite().then_some((seconds * 1e3) as i64)
}

fn is_name(text: &str, of_metric: bool) -> bool {
    let mut bytes = text.bytes();
    let begins = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || (of_metric && byte == b':');
    bytes.next().is_some_and(begins) && bytes.all(|byte| begins(byte) || byte.is_ascii_digit())
}
