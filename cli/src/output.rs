//! `-o table|yaml|json`, and printing that a closed pipe does not turn into a panic.

use comfy_table::{Table, presets};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};
use std::io::Write;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Yaml,
    Json,
}

/// What a cell shows when there is nothing to show.
pub(crate) const NOTHING: &str = "-";

/// Writes to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let _ = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(newline.as_bytes()))
        .and_then(|()| out.flush());
}

/// To standard error: what is worth knowing and not the result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

pub(crate) fn json(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// YAML of a document in the order in which people read one.
pub(crate) fn yaml(value: &Value) -> String {
    match value {
        Value::Object(fields) => serde_saphyr::to_string(&Ordered(fields)),
        other => serde_saphyr::to_string(other),
    }
    .unwrap_or_default()
}

/// Several documents: each can be applied again.
pub(crate) fn yaml_documents(values: &[Value]) -> String {
    values.iter().map(|value| yaml(value).trim_end().to_owned() + "\n").collect::<Vec<_>>().join("---\n")
}

struct Ordered<'a>(&'a Map<String, Value>);

const FIRST: [&str; 7] = ["type", "mesh", "name", "labels", "creationTime", "modificationTime", "kri"];

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for name in FIRST {
            if let Some(value) = self.0.get(name) {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in self.0.iter().filter(|(name, _)| !FIRST.contains(&name.as_str())) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A string at a JSON pointer, or a dash.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        _ => NOTHING.to_owned(),
    }
}

/// How long ago an RFC 3339 time was: `42s`, `3m`, `5h`, `12d`.
pub(crate) fn age(time: &str, now: OffsetDateTime) -> String {
    match OffsetDateTime::parse(time, &Rfc3339) {
        Ok(then) => span((now - then).whole_seconds().max(0)),
        Err(_) => NOTHING.to_owned(),
    }
}

/// How long until an RFC 3339 time, or `expired`.
pub(crate) fn until(time: &str, now: OffsetDateTime) -> String {
    match OffsetDateTime::parse(time, &Rfc3339) {
        Ok(then) if then > now => format!("in {}", span((then - now).whole_seconds())),
        Ok(_) => "expired".to_owned(),
        Err(_) => NOTHING.to_owned(),
    }
}

/// `0.2s`, as a staleness is said.
pub(crate) fn behind(millis: Option<u64>) -> String {
    match millis {
        None => NOTHING.to_owned(),
        Some(0) => "0s".to_owned(),
        Some(millis) if millis < 60_000 => format!("{:.1}s", millis as f64 / 1000.0),
        Some(millis) => span(i64::try_from(millis / 1000).unwrap_or(i64::MAX)),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use time::macros::datetime;

    #[test]
    fn documents_begin_with_what_names_them_and_keep_everything() {
        let value = json!({"conf": {"a": 1}, "name": "web", "mesh": "m", "type": "T", "kri": "k", "labels": {"team": "a1"}});
        let text = yaml(&value);
        assert!(text.starts_with("type: T\nmesh: m\nname: web\nlabels:\n"), "{text}");
        let two = yaml_documents(&[value.clone(), value.clone()]);
        assert_eq!(meridian_core::document::split(&two).unwrap(), [value.clone(), value]);
    }

    #[test]
    fn times_are_short() {
        let now = datetime!(2026-01-02 00:00 UTC);
        assert_eq!(age("2026-01-01T23:59:18Z", now), "42s");
        assert_eq!(age("2026-01-01T21:00:00Z", now), "3h");
        assert_eq!(age("2025-12-01T00:00:00Z", now), "32d");
        assert_eq!(age("yesterday", now), "-");
        assert_eq!(until("2026-01-02T12:00:00Z", now), "in 12h");
        assert_eq!(until("2026-01-01T12:00:00Z", now), "expired");
        assert_eq!(
            [behind(None), behind(Some(0)), behind(Some(200)), behind(Some(600_000))],
            ["-", "0s", "0.2s", "10m"]
        );
    }

    #[test]
    fn tables_have_no_frame() {
        let text =
            table(&["NAME", "AGE"], vec![vec!["a".into(), "1s".into()], vec!["longer".into(), "2d".into()]]);
        assert_eq!(text, "NAME     AGE\na        1s\nlonger   2d");
    }
}
