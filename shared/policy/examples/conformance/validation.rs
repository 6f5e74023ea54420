//! The parser and the validators: a document is taken or refused as Kuma does, with the same violations.
//!
//! Three reasons are ours alone and documented: a field that Kuma would drop ("unknown field"), what nothing executes yet
//! ("not supported yet"), and a type of header match that only Kuma's schema refuses. A case that differs by nothing else is
//! counted apart, with the reason.

use crate::report::{Outcome, Report};
use meridian_core::{KindInfo, Violation, document};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

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

pub(crate) fn run(path: &Path, report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    for case in &cases {
        report.add("validation", &case.kind, case.name.clone(), judge(case));
    }
    Ok(())
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
    let reasons = [
        "unknown field",
        "not supported yet",
        r#""type" must be one of ["Exact", "Present", "RegularExpression", "Absent", "Prefix"]"#,
    ];
    let documented = |v: &Violation| reasons.iter().any(|reason| v.reason.starts_with(reason));
    match (missing.is_empty(), unexpected.is_empty()) {
        (true, true) => Outcome::Passed,
        (true, false) if unexpected.iter().all(documented) => Outcome::Differs(lines(&missing, &unexpected)),
        _ => Outcome::Failed(lines(&missing, &unexpected)),
    }
}

fn lines(missing: &[Expected], unexpected: &[Violation]) -> Value {
    let missing = missing.iter().map(|expected| format!("- {}: {}", expected.field, expected.message));
    let unexpected = unexpected.iter().map(|violation| format!("+ {violation}"));
    missing.chain(unexpected).collect()
}

/// The whole document: a case may give a spec only.
fn document_of(case: &Case) -> Value {
    if let Some(resource) = &case.resource {
        return enveloped(case, resource.clone());
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

/// Some of Kuma's tests read a document into a policy's spec, so that type, mesh and name stand beside the spec's fields.
fn enveloped(case: &Case, mut resource: Value) -> Value {
    let format = KindInfo::by_name(&case.kind).map(|info| info.format);
    let flat = format == Some(meridian_core::Format::Spec) && resource.get("spec").is_none();
    let Some(fields) = resource.as_object_mut().filter(|_| flat) else {
        return resource;
    };
    let (envelope, spec): (Map<_, _>, Map<_, _>) = std::mem::take(fields)
        .into_iter()
        .partition(|(name, _)| ["type", "mesh", "name", "labels"].contains(&name.as_str()));
    *fields = envelope;
    fields.insert("spec".into(), Value::Object(spec));
    resource
}
