//! `tests/fields`: for each field of each kind of policy, the tests that see what it does.
//!
//! A line is a field (`{a,b}`: of each of these) and its tests, as `SUITE/FILE::NAME`. A test of `e2e` sees a field as it is
//! applied, from the API to the client. Others see it in two halves: what it is compiled to, and what that does to a client,
//! an application or a receiver. In place of tests a line may say in a sentence why there is nothing to see. A field that
//! nothing executes has no line: its reason is in the registry.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use meridian_core::{KindInfo, Standing, document};
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod schema;

/// Which half of a field's way a suite sees.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    Compiled,
    Seen,
    Both,
}

/// Suites: name, where their files are, and what they see.
const SUITES: [(&str, &str, Half); 5] = [
    ("zone", "zone-cp/src", Half::Compiled),
    ("policy", "shared/policy/src/tests", Half::Compiled),
    ("engine", "shared/proxy/tests/engine", Half::Seen),
    ("egress", "shared/proxy/src/egress", Half::Seen),
    ("e2e", "tests/e2e/tests/e2e", Half::Both),
];

fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(below)
}

/// Field -> tests, or a reason.
fn lines(info: &KindInfo) -> BTreeMap<String, Value> {
    let file = path(&format!("shared/core/tests/fields/{}.yaml", info.kind));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let value =
        document::parse_text(&text).unwrap_or_else(|problem| panic!("{}: {problem:?}", file.display()));
    let mut lines = BTreeMap::new();
    for (fields, line) in value.as_object().unwrap() {
        for field in each(fields) {
            assert!(lines.insert(field.clone(), line.clone()).is_none(), "{}: {field} twice", info.kind);
        }
    }
    lines
}

/// What a field with alternatives in braces stands for.
fn each(fields: &str) -> Vec<String> {
    let Some((before, rest)) = fields.split_once('{') else { return vec![fields.to_owned()] };
    let (options, after) = rest.split_once('}').unwrap_or_else(|| panic!("{fields}: a brace is open"));
    options.split(',').flat_map(|option| each(&format!("{before}{option}{after}"))).collect()
}

/// What is wrong with a test that a line names, or which half it sees.
fn half_of(test: &str) -> Result<Half, String> {
    let parts = test.split_once('/').and_then(|(suite, rest)| Some((suite, rest.split_once("::")?)));
    let Some((suite, (file, name))) = parts else { return Err(format!("{test} is no SUITE/FILE::NAME")) };
    let suite = SUITES.iter().find(|(known, ..)| *known == suite);
    let Some((_, folder, half)) = suite else { return Err(format!("{test}: no such suite")) };
    let text = std::fs::read_to_string(path(folder).join(format!("{file}.rs")));
    let text = text.map_err(|error| format!("{test}: {error}"))?;
    let function =
        format!(r"#\[(tokio::)?test[^\n]*\]\n(\s*#\[[^\n]*\n)*\s*(async )?fn {}\(", regex::escape(name));
    if Regex::new(&function).unwrap().is_match(&text) {
        Ok(*half)
    } else {
        Err(format!("{test}: no such test"))
    }
}

/// What is wrong with a field's line.
fn wrong(line: &Value) -> Vec<String> {
    let Some(tests) = line.as_array() else {
        let sentence = line.as_str().is_some_and(|reason| reason.split_whitespace().count() > 3);
        return if sentence { vec![] } else { vec!["neither tests nor a reason".to_owned()] };
    };
    let found = tests.iter().map(|test| half_of(test.as_str().unwrap_or_default()));
    let (halves, mut wrong): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
    let sees = |half| halves.iter().any(|found| *found == Ok(half) || *found == Ok(Half::Both));
    if wrong.is_empty() && !sees(Half::Compiled) {
        wrong.push(Err("no test sees what it is compiled to".to_owned()));
    }
    if wrong.is_empty() && !sees(Half::Seen) {
        wrong.push(Err("no test sees what it does".to_owned()));
    }
    wrong.into_iter().filter_map(Result::err).collect()
}

#[test]
fn each_field_has_a_test_of_what_it_does() {
    let mut problems = Vec::new();
    for info in schema::policies() {
        let mut lines = lines(info);
        for (field, _) in schema::fields(info) {
            let is_executed = schema::standing(info, &field) == Standing::Executed;
            match lines.remove(&field) {
                None if is_executed => problems.push(format!("{} {field}: no line", info.kind)),
                None => {}
                Some(_) if !is_executed => {
                    problems.push(format!("{} {field}: nothing executes it", info.kind))
                }
                Some(line) => {
                    problems
                        .extend(wrong(&line).iter().map(|wrong| format!("{} {field}: {wrong}", info.kind)));
                }
            }
        }
        problems.extend(lines.keys().map(|field| format!("{} {field}: no such field", info.kind)));
    }
    assert!(problems.is_empty(), "shared/core/tests/fields:\n{}", problems.join("\n"));
}

/// The list is held to what it says of itself.
#[test]
fn a_line_that_shows_nothing_is_wrong() {
    let seen = "engine/timeouts::zero_means_no_limit";
    let compiled = "zone/compile/policies/timeout::callers_have_streams_of_their_own";
    for (line, reason) in [
        (serde_json::json!([seen, compiled]), None),
        (serde_json::json!("there is one form of it only"), None),
        (serde_json::json!("later"), Some("neither tests nor a reason")),
        (serde_json::json!([seen]), Some("no test sees what it is compiled to")),
        (serde_json::json!([compiled]), Some("no test sees what it does")),
        (serde_json::json!([seen, "zone/compile/policies/timeout::of_streams"]), Some("no such test")),
        (serde_json::json!(["engine/nowhere::zero_means_no_limit"]), Some("No such file")),
        (serde_json::json!(["zero_means_no_limit"]), Some("is no SUITE/FILE::NAME")),
    ] {
        let found = wrong(&line);
        assert_eq!(found.len(), usize::from(reason.is_some()), "{line} {found:?}");
        assert!(reason.is_none_or(|reason| found.concat().contains(reason)), "{line} {found:?}");
    }
    assert_eq!(each("{a,b}[].{c,d}"), ["a[].c", "a[].d", "b[].c", "b[].d"]);
}
