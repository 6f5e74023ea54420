//! `docs/policies`: every kind of policy has a page, its examples are accepted, and its table of fields is what the schema
//! says. `UPDATE_DOCS=1 cargo test -p meridian-core --test policy_pages` writes the tables anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use meridian_core::{KindInfo, Standing, document};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

mod schema;

/// What is between them is written by the test.
const BEGIN: &str =
    "<!-- fields: written from the schema; UPDATE_DOCS=1 cargo test -p meridian-core --test policy_pages -->";
const END: &str = "<!-- end of fields -->";

/// A policy whose page is part of the security chapter.
const ELSEWHERE: [&str; 1] = ["MeshTrafficPermission"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policies")
}

/// The kinds that have a page.
fn documented() -> impl Iterator<Item = &'static KindInfo> {
    schema::policies().filter(|info| !ELSEWHERE.contains(&info.kind.as_str()))
}

fn page_of(info: &KindInfo) -> PathBuf {
    folder().join(format!("{}.md", info.kind.as_str().to_ascii_lowercase()))
}

#[test]
fn every_policy_has_a_page_and_every_page_a_policy() {
    let mut wanted: Vec<PathBuf> = documented().map(page_of).collect();
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn every_example_is_accepted() {
    for info in documented() {
        let page = page_of(info);
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks: Vec<&str> = text
            .split("```yaml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap_or_default())
            .collect();
        assert!(!blocks.is_empty(), "{} has no example", page.display());
        for block in blocks {
            for document in block.split("\n---\n") {
                let value = document::parse_text(document)
                    .unwrap_or_else(|problem| panic!("{}: {problem:?}\n{document}", page.display()));
                let checked = document::check(&value, None);
                assert!(checked.is_ok(), "{}: {checked:?}\n{document}", page.display());
            }
        }
        let own = format!("type: {}", info.kind);
        assert!(text.contains(&own), "{} has no example of its own kind", page.display());
    }
}

#[test]
fn the_table_of_fields_is_what_the_schema_says() {
    let mut stale = Vec::new();
    for info in documented() {
        let page = page_of(info);
        let text = std::fs::read_to_string(&page).unwrap();
        let written = with_table(&text, &table(info));
        match std::env::var_os("UPDATE_DOCS") {
            _ if written == text => {}
            Some(_) => std::fs::write(&page, &written).unwrap(),
            None => stale.push(page),
        }
    }
    assert!(stale.is_empty(), "UPDATE_DOCS=1 cargo test -p meridian-core --test policy_pages\n{stale:#?}");
}

/// A page with this table in place of the one that it has, or at its end.
fn with_table(page: &str, table: &str) -> String {
    let part = format!("{BEGIN}\n{table}{END}\n");
    match (page.split_once(BEGIN), page.split_once(END)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{part}{}", after.trim_start_matches('\n')),
        _ => format!("{}\n\n## Fields\n\n{part}", page.trim_end()),
    }
}

fn table(info: &KindInfo) -> String {
    let mut out = "| field | | |\n|---|---|---|\n".to_owned();
    for (path, schema) in schema::fields(info) {
        let form = form(&schema);
        let standing = match schema::standing(info, &path) {
            Standing::Executed => "",
            Standing::Warned(_) => "warned",
            Standing::Refused(_) => "refused",
        };
        let _ = writeln!(out, "| `{path}` | {form} | {standing} |");
    }
    out
}

fn form(schema: &Value) -> String {
    if *schema == Value::Null {
        return "a targetRef".to_owned();
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let texts = values.iter().filter_map(Value::as_str);
        return texts.map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ");
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).filter(|it| *it != "null").collect(),
        Value::String(one) => vec![one.as_str()],
        _ => vec![],
    };
    let words: Vec<&str> = types
        .into_iter()
        .map(|type_| match (type_, schema["format"].as_str()) {
            ("string", Some(format)) if format.contains("duration") => "duration",
            ("string", _) => "text",
            ("integer" | "number", _) => "number",
            ("boolean", _) => "true or false",
            ("object", _) => "map",
            (other, _) => other,
        })
        .collect();
    words.join(" or ")
}
