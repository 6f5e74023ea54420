//! `matching/**`: which policies select a Dataplane or an egress's destination, and what they add up to.

use crate::case::{self, Failure, Place};
use crate::compare::{self, judge};
use crate::report::{Outcome, Report};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_policy::{
    Destinations, Parsed, Policy, ResourceRules, Routes, Section, Subject, egress_rules, from_rules,
    inbound_rules, sort, to_rules,
};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(dir: &Path, report: &mut Report) -> Result<(), Failure> {
    for path in case::files(&dir.join("matching"), ".policies.yaml")? {
        let documents = case::documents(&path)?;
        let base = path.to_string_lossy().replace(".policies.yaml", "");
        let group = case::name(&dir.join("matching"), path.parent().unwrap_or(dir));
        for (golden, place) in goldens(&base)? {
            let name = case::name(dir, &golden);
            let outcome = if case::has_unknown_kind(&documents) {
                Outcome::NotYet
            } else {
                of_case(&base, &documents, &case::golden(&golden)?, place)?
            };
            report.add("matching", &group, name, outcome);
        }
    }
    Ok(())
}

/// The golden file of a case, or one for each place.
fn goldens(base: &str) -> Result<Vec<(std::path::PathBuf, Place)>, Failure> {
    let own = Path::new(base).with_file_name(format!(
        "{}.golden.yaml",
        Path::new(base).file_name().unwrap_or_default().to_string_lossy()
    ));
    if own.exists() {
        return Ok(vec![(own, Place::Plain)]);
    }
    let files = case::files(Path::new(base), ".golden.yaml")?;
    let place = |path: &Path| Place::of(&path.file_name().unwrap_or_default().to_string_lossy());
    Ok(files.into_iter().map(|path| (path.clone(), place(&path))).collect())
}

fn of_case(base: &str, documents: &[Value], golden: &Value, place: Place) -> Result<Outcome, Failure> {
    let file = |ending: &str| format!("{base}.{ending}.yaml");
    if Path::new(&file("es")).exists() {
        let service = case::documents(Path::new(&file("es")))?.pop().ok_or("no ExternalService")?;
        return of_egress(documents, &service, golden);
    }
    let dataplane = case::documents(Path::new(&file("dataplane")))?.pop().ok_or("no Dataplane")?;
    // The Dataplane is in its zone, wherever the policies are from.
    let home = if place == Place::Global { Place::Zone("zone-uni") } else { place };
    let dataplane = case::dataplane(&dataplane, home)?;
    let mut destinations = Vec::new();
    if Path::new(&file("mes")).exists() {
        destinations = case::documents(Path::new(&file("mes")))?;
    }
    let policies = case::policies(documents, place, Some(&dataplane.resource.key.mesh))?;
    Ok(judge(&expected(golden), &found(golden, &dataplane, &policies, &destinations)))
}

fn of_egress(documents: &[Value], service: &Value, golden: &Value) -> Result<Outcome, Failure> {
    let policies = case::policies(documents, Place::Plain, service["mesh"].as_str())?;
    let tags = serde_json::from_value(service["tags"].clone())?;
    let rules = egress_rules(&policies, &tags);
    let expected = json!({
        "rules": compare::golden_subsets(&golden["Rules"][":0"]),
        "inbound": golden["InboundRules"].get(":0").map(compare::golden_inbound),
    });
    let found = json!({
        "rules": compare::our_subsets(&rules.from),
        "inbound": rules.rules.as_deref().map(compare::our_inbound),
    });
    Ok(judge(&expected, &found))
}

fn expected(golden: &Value) -> Value {
    if let Some(items) = golden.get("items") {
        return items.as_array().into_iter().flatten().map(compare::display).collect();
    }
    let by_inbound = |of: fn(&Value) -> Value, rules: &Value| -> Value {
        let rules = rules.as_object().into_iter().flatten();
        Value::Object(rules.map(|(inbound, rules)| (inbound.clone(), of(rules))).collect())
    };
    if golden["Rules"].is_object() {
        return json!({
            "from": by_inbound(compare::golden_subsets, &golden["Rules"]),
            "inbound": by_inbound(compare::golden_inbound, &golden["InboundRules"]),
        });
    }
    json!({
        "to": compare::golden_subsets(&golden["Rules"]),
        "resources": compare::golden_resources(&golden["ResourceRules"]),
    })
}

fn found(
    golden: &Value,
    dataplane: &Parsed<Dataplane>,
    all: &[Arc<Policy>],
    destinations: &[Value],
) -> Value {
    let subject =
        Subject { key: &dataplane.resource.key, labels: &dataplane.resource.labels, spec: &dataplane.spec };
    let routes = Routes::new(all);
    let policies = case::subject_of(all);
    let select = |section: Section<'_>| {
        let selected = policies.iter().filter(|policy| policy.selects(&routes, &subject, section));
        sort(selected.cloned().collect())
    };
    if golden.get("items").is_some() {
        let names = |policy: &Arc<Policy>| {
            let resource = &policy.resource;
            compare::display(&json!({ "name": resource.key.name, "labels": resource.labels }))
        };
        return select(Section::Whole).iter().map(names).collect();
    }
    if golden["Rules"].is_object() {
        let (mut from, mut inbound) = (Map::new(), Map::new());
        for section in subject.sections() {
            let selected = select(section);
            if !selected.is_empty() {
                let address = address(&dataplane.spec, section);
                from.insert(address.clone(), compare::our_subsets(&from_rules(&selected)));
                inbound.insert(address, compare::our_inbound(&inbound_rules(&selected)));
            }
        }
        return json!({ "from": from, "inbound": inbound });
    }
    let resources: Vec<_> =
        destinations.iter().filter_map(|it| case::resource(it, Place::Plain)).map(Arc::new).collect();
    let selected = select(Section::Whole);
    json!({
        "to": compare::our_subsets(&to_rules(&selected, &routes)),
        "resources": compare::our_resources(&ResourceRules::new(&selected, &Destinations::new(&resources))),
    })
}

/// Where an inbound or a listener is.
fn address(dataplane: &Dataplane, section: Section<'_>) -> String {
    let (own, port) = match section {
        Section::Inbound(inbound) => (&inbound.address, inbound.port),
        Section::Listener(listener) => (&listener.address, listener.port),
        Section::Whole => return String::new(),
    };
    let whole = dataplane.networking.as_ref().map_or("", |networking| &networking.address);
    format!("{}:{port}", if own.is_empty() { whole } else { own })
}
