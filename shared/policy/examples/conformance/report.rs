//! What is printed and what is written.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const DIFFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/differences.md");

pub(crate) enum Outcome {
    Passed,
    /// Differs by documented reasons only.
    Differs(Value),
    NotYet,
    Failed(Value),
}

pub(crate) struct Report {
    /// Names of cases in docs/differences.md.
    documented: Vec<String>,
    /// By area (`validation`), then by group (`Mesh`).
    areas: BTreeMap<String, BTreeMap<String, Vec<(String, Outcome)>>>,
}

impl Report {
    pub(crate) fn new() -> std::io::Result<Self> {
        let text = std::fs::read_to_string(DIFFERENCES)?;
        let documented = text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Ok(Self { documented, areas: BTreeMap::new() })
    }

    pub(crate) fn add(&mut self, area: &str, group: &str, name: String, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Failed(detail) if self.documented.contains(&name) => Outcome::Differs(detail),
            outcome => outcome,
        };
        let groups = self.areas.entry(area.to_owned()).or_default();
        groups.entry(group.to_owned()).or_default().push((name, outcome));
    }

    /// Prints and writes all of it; whether nothing failed.
    pub(crate) fn finish(&self, path: &Path) -> Result<bool, Box<dyn std::error::Error>> {
        let mut document = Map::new();
        let mut failed = 0;
        for (area, groups) in &self.areas {
            let mut totals = [0usize; 4];
            let mut described = Map::new();
            for (group, cases) in groups {
                let counts = count(cases);
                totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
                println!("{area}/{group}: {}", line(counts));
                cases.iter().for_each(|(name, outcome)| print(name, outcome));
                let cases: Vec<Value> = cases.iter().map(|(name, outcome)| describe(name, outcome)).collect();
                described.insert(group.clone(), json!({ "counts": summary(counts), "cases": cases }));
            }
            println!("{area}: {}", line(totals));
            failed += totals[1];
            document.insert(area.clone(), json!({ "counts": summary(totals), "groups": described }));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(&Value::Object(document))?)?;
        println!("report: {}", path.display());
        Ok(failed == 0)
    }
}

fn count(results: &[(String, Outcome)]) -> [usize; 4] {
    let of = |wanted: fn(&Outcome) -> bool| results.iter().filter(|(_, outcome)| wanted(outcome)).count();
    [
        of(|outcome| matches!(outcome, Outcome::Passed)),
        of(|outcome| matches!(outcome, Outcome::Failed(_))),
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

fn print(name: &str, outcome: &Outcome) {
    let (word, detail) = match outcome {
        Outcome::Passed | Outcome::NotYet => return,
        Outcome::Differs(detail) => ("differs", detail),
        Outcome::Failed(detail) => ("FAILED", detail),
    };
    println!("  {word}: {name}");
    for line in detail.as_array().into_iter().flatten().filter_map(Value::as_str) {
        println!("    {line}");
    }
}

fn describe(name: &str, outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Passed => json!({ "name": name, "outcome": "passed" }),
        Outcome::NotYet => json!({ "name": name, "outcome": "notYet" }),
        Outcome::Differs(diff) => json!({ "name": name, "outcome": "differs", "diff": diff }),
        Outcome::Failed(diff) => json!({ "name": name, "outcome": "failed", "diff": diff }),
    }
}
