//! `rules/**`: what policies add up to once they are known to select, and in which order.

use crate::case::{self, Failure, Place};
use crate::compare::{self, judge};
use crate::report::{Outcome, Report};
use meridian_policy::{
    Destinations, Policy, ResourceRules, Routes, from_rules, inbound_rules, proxy_conf, sort, to_items,
    to_rules,
};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

type Judge = fn(&[Value], &[Arc<Policy>], &Value) -> Outcome;

const GROUPS: [(&str, Judge); 5] =
    [("from", from), ("to", to), ("single", single), ("inbound", inbound), ("sort", order)];

pub(crate) fn run(dir: &Path, report: &mut Report) -> Result<(), Failure> {
    for (group, judge) in GROUPS {
        for path in case::files(&dir.join("rules").join(group), ".input.yaml")? {
            let documents = case::documents(&path)?;
            let golden = path.to_string_lossy().replace(".input.yaml", ".golden.yaml");
            let outcome = if case::has_unknown_kind(&documents) {
                Outcome::NotYet
            } else {
                let policies = case::policies(&documents, Place::Plain, None)?;
                judge(&documents, &policies, &case::golden(Path::new(&golden))?)
            };
            report.add("rules", group, case::name(dir, &path), outcome);
        }
    }
    for path in case::files(&dir.join("rules/resourcerules"), ".input.yaml")? {
        let documents = case::documents(&path)?;
        let goldens = path.to_string_lossy().replace(".input.yaml", "");
        for golden in case::files(Path::new(&goldens), ".golden.yaml")? {
            let place = Place::of(&golden.file_name().unwrap_or_default().to_string_lossy());
            let outcome = if case::has_unknown_kind(&documents) {
                Outcome::NotYet
            } else {
                resources(&documents, place, &case::golden(&golden)?)?
            };
            report.add("rules", "resourcerules", case::name(dir, &golden), outcome);
        }
    }
    Ok(())
}

/// The policies of these cases stand in their order already; the inbound's address is always the same.
fn from(_: &[Value], policies: &[Arc<Policy>], golden: &Value) -> Outcome {
    const INBOUND: &str = "127.0.0.1:80";
    let expected = json!({
        "from": compare::golden_subsets(&golden["Rules"][INBOUND]),
        "inbound": compare::golden_inbound(&golden["InboundRules"][INBOUND]),
    });
    let found = json!({
        "from": compare::our_subsets(&from_rules(policies)),
        "inbound": compare::our_inbound(&inbound_rules(&sort(policies.to_vec()))),
    });
    judge(&expected, &found)
}

fn to(_: &[Value], policies: &[Arc<Policy>], golden: &Value) -> Outcome {
    let rules = to_rules(&case::subject_of(policies), &Routes::new(policies));
    judge(&compare::golden_subsets(&golden["Rules"]), &compare::our_subsets(&rules))
}

fn single(_: &[Value], policies: &[Arc<Policy>], golden: &Value) -> Outcome {
    let rule = |conf: &Value, origins: Vec<Value>| json!({ "subset": [], "conf": conf, "origins": origins });
    let found: Vec<Value> =
        proxy_conf(policies).iter().map(|merged| rule(&merged.confs[0], compare::policies(merged))).collect();
    judge(&compare::golden_subsets(&golden["Rules"]), &found.into())
}

fn inbound(_: &[Value], policies: &[Arc<Policy>], golden: &Value) -> Outcome {
    let found = compare::our_inbound(&inbound_rules(&sort(policies.to_vec())));
    judge(&compare::golden_inbound(&golden["rules"]), &found)
}

fn order(_: &[Value], policies: &[Arc<Policy>], golden: &Value) -> Outcome {
    let expected = |entry: &Value| json!([compare::display(&entry["Meta"]), entry["RuleIndex"]]);
    let expected: Value = golden.as_array().into_iter().flatten().map(expected).collect();
    let found = to_items(policies);
    let name = |policy: &meridian_core::Resource| {
        compare::display(&json!({ "name": policy.key.name, "labels": policy.labels }))
    };
    judge(&expected, &found.iter().map(|item| json!([name(item.policy()), item.index()])).collect())
}

fn resources(documents: &[Value], place: Place, golden: &Value) -> Result<Outcome, Failure> {
    let policies = case::subject_of(&case::policies(documents, place, None)?);
    let destinations: Vec<_> =
        documents.iter().filter_map(|it| case::resource(it, place)).map(Arc::new).collect();
    let found = ResourceRules::new(&policies, &Destinations::new(&destinations));
    Ok(judge(&compare::golden_resources(golden), &compare::our_resources(&found)))
}
