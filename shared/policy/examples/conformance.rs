//! Runs a folder of cases (`validation.json`) taken from Kuma's tests against the parser and the validators:
//! `cargo run -p meridian-policy --example conformance -- DIR [REPORT.json]`.
//!
//! A case passes if the document is taken or refused as Kuma does, with the same violations. Two reasons are ours alone
//! and documented (docs/differences.md): a field that Kuma would drop ("unknown field"), and what nothing executes
//! yet ("not supported yet"). A case that differs by nothing else is counted apart, with the reason.

use meridian_core::{KindInfo, Violation, document};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

#[derive(Deserialize)]
struct Case {
    kind: String,
    name: String,
    #[serde(default)]
    spec: Option<Value>,
    #[serde(default)]
    resource: Option<Value>,
    violations: Vec<Expected>,
}

#[derive(Clone, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Expected {
    field: String,
    message: String,
}

enum Outcome {
    Passed,
    /// Differs by documented reasons only.
    Differs(Vec<Violation>),
    NotYet,
    Failed {
        missing: Vec<Expected>,
        unexpected: Vec<Violation>,
    },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(dir) = arguments.next() else {
        eprintln!("usage: conformance DIR [REPORT.json]");
        return ExitCode::from(64);
    };
    let report = arguments.next().unwrap_or_else(|| "target/conformance.json".to_owned());
    match run(Path::new(&dir), Path::new(&report)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::from(66)
        }
    }
}

fn run(dir: &Path, report: &Path) -> Result<bool, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(dir.join("validation.json"))?;
    let cases: Vec<Case> = serde_json::from_str(&text)?;
    let mut groups: BTreeMap<&str, Vec<(&Case, Outcome)>> = BTreeMap::new();
    for case in &cases {
        groups.entry(&case.kind).or_default().push((case, judge(case)));
    }
    let mut totals = [0usize; 4];
    let mut groups_report = Map::new();
    for (kind, results) in &groups {
        let counts = count(results);
        for (total, count) in totals.iter_mut().zip(counts) {
            *total += count;
        }
        println!("validation/{kind}: {}", line(counts));
        results.iter().for_each(|(case, outcome)| print(case, outcome));
        let cases: Vec<Value> = results.iter().map(|(case, outcome)| describe(case, outcome)).collect();
        groups_report.insert((*kind).to_owned(), json!({ "counts": summary(counts), "cases": cases }));
    }
    println!("validation: {}", line(totals));
    let document = json!({ "validation": { "counts": summary(totals), "groups": groups_report } });
    if let Some(parent) = report.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(report, serde_json::to_vec_pretty(&document)?)?;
    println!("report: {}", report.display());
    let [_, failed, _, _] = totals;
    Ok(failed == 0)
}

fn judge(case: &Case) -> Outcome {
    if KindInfo::by_name(&case.kind).is_none() {
        return Outcome::NotYet;
    }
    let found = match document::check(&document_of(case), None) {
        Ok(_) => Vec::new(),
        Err(problem) if problem.violations.is_empty() => {
            vec![Violation { field: String::new(), reason: problem.detail }]
        }
        Err(problem) => problem.violations,
    };
    let mut missing: Vec<Expected> = case.violations.clone();
    let mut unexpected = Vec::new();
    for violation in found {
        let same = |e: &Expected| e.field == violation.field && e.message.trim() == violation.reason.trim();
        match missing.iter().position(same) {
            Some(position) => drop(missing.remove(position)),
            None => unexpected.push(violation),
        }
    }
    let documented =
        |v: &Violation| v.reason.starts_with("unknown field") || v.reason.starts_with("not supported yet");
    match (missing.is_empty(), unexpected.is_empty()) {
        (true, true) => Outcome::Passed,
        (true, false) if unexpected.iter().all(documented) => Outcome::Differs(unexpected),
        _ => Outcome::Failed { missing, unexpected },
    }
}

/// The whole document: a case may give a spec only.
fn document_of(case: &Case) -> Value {
    if let Some(resource) = &case.resource {
        return resource.clone();
    }
    let spec = case.spec.clone().unwrap_or_else(|| json!({}));
    let legacy =
        KindInfo::by_name(&case.kind).is_some_and(|info| info.format == meridian_core::Format::Legacy);
    let global = KindInfo::by_name(&case.kind).is_some_and(|info| info.scope == meridian_core::Scope::Global);
    let mut fields = Map::new();
    match (legacy, spec) {
        (true, Value::Object(spec)) => fields.extend(spec),
        (_, spec) => drop(fields.insert("spec".into(), spec)),
    }
    fields.insert("type".into(), case.kind.clone().into());
    fields.insert("name".into(), "case".into());
    if !global {
        fields.insert("mesh".into(), "default".into());
    }
    Value::Object(fields)
}

fn count(results: &[(&Case, Outcome)]) -> [usize; 4] {
    let of = |wanted: fn(&Outcome) -> bool| results.iter().filter(|(_, outcome)| wanted(outcome)).count();
    [
        of(|outcome| matches!(outcome, Outcome::Passed)),
        of(|outcome| matches!(outcome, Outcome::Failed { .. })),
        of(|outcome| matches!(outcome, Outcome::Differs(_))),
        of(|outcome| matches!(outcome, Outcome::NotYet)),
    ]
}

fn line([passed, failed, differs, not_yet]: [usize; 4]) -> String {
    let mut line = format!("{passed} passed, {failed} failed");
    if differs > 0 {
        line.push_str(&format!(", {differs} differ as documented"));
    }
    if not_yet > 0 {
        line.push_str(&format!(", {not_yet} not yet"));
    }
    line
}

fn summary([passed, failed, differs, not_yet]: [usize; 4]) -> Value {
    json!({ "passed": passed, "failed": failed, "differ": differs, "notYet": not_yet })
}

fn print(case: &Case, outcome: &Outcome) {
    match outcome {
        Outcome::Passed | Outcome::NotYet => {}
        Outcome::Differs(unexpected) => {
            println!("  differs: {}", case.name);
            unexpected.iter().for_each(|violation| println!("    + {violation}"));
        }
        Outcome::Failed { missing, unexpected } => {
            println!("  FAILED: {}", case.name);
            let missing: BTreeSet<&Expected> = missing.iter().collect();
            missing.iter().for_each(|expected| println!("    - {}: {}", expected.field, expected.message));
            unexpected.iter().for_each(|violation| println!("    + {violation}"));
        }
    }
}

fn describe(case: &Case, outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Passed => json!({ "name": case.name, "outcome": "passed" }),
        Outcome::NotYet => json!({ "name": case.name, "outcome": "notYet" }),
        Outcome::Differs(more) => json!({ "name": case.name, "outcome": "differs", "unexpected": more }),
        Outcome::Failed { missing, unexpected } => {
            let missing: Vec<Value> =
                missing.iter().map(|e| json!({ "field": e.field, "reason": e.message })).collect();
            json!({ "name": case.name, "outcome": "failed", "missing": missing, "unexpected": unexpected })
        }
    }
}
