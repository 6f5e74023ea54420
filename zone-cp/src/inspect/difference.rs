//! What two configurations differ in: as a JSON patch, as Kuma answers, and as sentences.
//!
//! Sentences are about calls, not about resources: what policies say of calls is sent once for the mesh and again only for
//! destinations where it differs, so a change of one resource may be about many destinations, or about none.

use super::config::Config;
use super::words;
use meridian_proxy_config::{Destination, Protocol, policies_for_others, types};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A step of a JSON patch, of those that Kuma uses. `value` of a removal is what is removed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PatchItem {
    op: &'static str,
    path: String,
    value: Value,
}

/// One thing that would be otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    /// JSON pointer into what is sent; of calls, into what holds for them in sum.
    path: String,
    /// Absent before.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Value>,
    /// Absent afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Value>,
    text: String,
}

/// What turns `before` into `after`.
pub(super) fn patch(before: &Config, after: &Config) -> Vec<PatchItem> {
    let mut out = Vec::new();
    let as_value = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    patch_value(&as_value(before), &as_value(after), String::new(), &mut out);
    out
}

fn patch_value(before: &Value, after: &Value, path: String, out: &mut Vec<PatchItem>) {
    let mut push = |op, path: &str, value: &Value| {
        out.push(PatchItem { op, path: path.to_owned(), value: value.clone() });
    };
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                let path = format!("{path}/{}", token(name));
                match after.get(name) {
                    Some(next) => patch_value(value, next, path, out),
                    None => out.push(PatchItem { op: "remove", path, value: value.clone() }),
                }
            }
            for (name, value) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
                out.push(PatchItem {
                    op: "add",
                    path: format!("{path}/{}", token(name)),
                    value: value.clone(),
                });
            }
        }
        _ => {
            push("remove", &path, before);
            push("add", &path, after);
        }
    }
}

/// A name in a JSON pointer.
fn token(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Everything that would be otherwise, in sentences.
pub(super) fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let mut out = calls(before, after);
    let kinds: BTreeSet<&String> =
        before.keys().chain(after.keys()).filter(|type_| *type_ != types::POLICIES).collect();
    let nothing = BTreeMap::new();
    for type_ in kinds {
        let (old, new) = (before.get(type_).unwrap_or(&nothing), after.get(type_).unwrap_or(&nothing));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            resource(type_, name, old.get(name), new.get(name), &mut out);
        }
    }
    out
}

fn resource(type_: &str, name: &str, old: Option<&Value>, new: Option<&Value>, out: &mut Vec<Change>) {
    let path = format!("/{}/{}", token(type_), token(name));
    let subject = words::subject(type_, name, old.or(new));
    match (old, new) {
        (Some(old), Some(new)) => out.extend(differences(&subject, path, Some(old), Some(new))),
        (None, None) => {}
        (old, new) => {
            let text = format!("{subject}: {}", if old.is_none() { "new" } else { "gone" });
            out.push(Change { path, from: old.cloned(), to: new.cloned(), text });
        }
    }
}

/// The difference in what holds for each destination.
fn calls(before: &Config, after: &Config) -> Vec<Change> {
    let of = |config: &Config, name: &str| config.get(types::POLICIES).and_then(|all| all.get(name)).cloned();
    let destinations = destinations(before, after);
    let spoken: BTreeSet<&'static str> = destinations.values().map(|it| policies_for_others(*it)).collect();
    // By what changes: protocols whose calls in general change so, and the destinations that differ.
    let mut general: Vec<(Vec<Protocol>, Vec<Difference>)> = Vec::new();
    for protocol in [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp] {
        let name = policies_for_others(protocol);
        if !destinations.is_empty() && !spoken.contains(name) {
            continue;
        }
        let found = leaves(of(before, name).as_ref(), of(after, name).as_ref());
        match general.iter_mut().find(|(_, same)| *same == found) {
            Some((protocols, _)) => protocols.push(protocol),
            None => general.push((vec![protocol], found)),
        }
    }
    let mut out = Vec::new();
    let mut own: Vec<(&String, Vec<Difference>)> = Vec::new();
    for (protocols, found) in &general {
        let mut except = Vec::new();
        for (name, protocol) in destinations.iter().filter(|(_, protocol)| protocols.contains(protocol)) {
            let in_force =
                |config: &Config| of(config, name).or_else(|| of(config, policies_for_others(*protocol)));
            let differs = leaves(in_force(before).as_ref(), in_force(after).as_ref());
            if differs != *found {
                except.push(name.as_str());
                own.push((name, differs));
            }
        }
        let spoken = destinations.values().filter(|protocol| protocols.contains(protocol)).count();
        if spoken > 0 && spoken == except.len() {
            // It would be about nobody.
            continue;
        }
        let subject = words::calls_in_general(protocols, general.len() == 1, &except);
        let name = protocols.first().map_or("", |protocol| policies_for_others(*protocol));
        out.extend(found.iter().map(|it| it.change(&subject, &policies_path(name))));
    }
    for (name, differs) in own {
        let subject = words::calls_to(name);
        out.extend(differs.iter().map(|it| it.change(&subject, &policies_path(name))));
    }
    out
}

fn policies_path(name: &str) -> String {
    format!("/{}/{}", types::POLICIES, token(name))
}

/// Destinations of either, and what they speak.
fn destinations<'a>(before: &'a Config, after: &'a Config) -> BTreeMap<&'a String, Protocol> {
    let all = [before, after].into_iter().filter_map(|config| config.get(types::DESTINATION)).flatten();
    let read = |(name, body): (&'a String, &Value)| {
        let destination: Destination = serde_json::from_value(body.clone()).ok()?;
        Some((name, destination.protocol))
    };
    all.filter_map(read).collect()
}

fn differences(subject: &str, path: String, old: Option<&Value>, new: Option<&Value>) -> Vec<Change> {
    leaves(old, new).iter().map(|difference| difference.change(subject, &path)).collect()
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq)]
struct Difference {
    /// Names of fields, from the outside in.
    fields: Vec<String>,
    from: Option<Value>,
    to: Option<Value>,
    /// An item of a list, which comes or goes as a whole.
    in_list: bool,
}

impl Difference {
    fn change(&self, subject: &str, path: &str) -> Change {
        let tokens: String = self.fields.iter().map(|name| format!("/{}", token(name))).collect();
        let field = words::field(&self.fields);
        let said = |value: &Option<Value>| match value {
            Some(value) => words::value(&self.fields, value),
            None => "not set".to_owned(),
        };
        let text = match (self.in_list, &self.from, &self.to) {
            (true, None, Some(item)) => format!("{field}: also {}", words::value(&self.fields, item)),
            (true, Some(item), None) => format!("{field}: no longer {}", words::value(&self.fields, item)),
            (true, Some(_), Some(_)) => format!("{field}: in another order"),
            _ => format!("{field} {} -> {}", said(&self.from), said(&self.to)),
        };
        let text = format!("{subject}: {text}");
        Change { path: format!("{path}{tokens}"), from: self.from.clone(), to: self.to.clone(), text }
    }
}

/// The fields in which two bodies differ; an absent one has none.
fn leaves(old: Option<&Value>, new: Option<&Value>) -> Vec<Difference> {
    let mut out = Vec::new();
    let nothing = Value::Object(Map::new());
    differ(Some(old.unwrap_or(&nothing)), Some(new.unwrap_or(&nothing)), &mut Vec::new(), &mut out);
    out
}

fn differ(old: Option<&Value>, new: Option<&Value>, fields: &mut Vec<String>, out: &mut Vec<Difference>) {
    let nothing = Map::new();
    let empty = |value: Option<&Value>| value.is_some_and(is_empty);
    match (old, new) {
        _ if old == new => {}
        _ if (old.is_none() && empty(new)) || (new.is_none() && empty(old)) => out.push(Difference {
            fields: fields.clone(),
            from: old.cloned(),
            to: new.cloned(),
            in_list: false,
        }),
        (Some(Value::Object(_)) | None, Some(Value::Object(_)) | None) => {
            let of = |value: Option<&'_ Value>| {
                value.and_then(Value::as_object).cloned().unwrap_or(nothing.clone())
            };
            let (old, new) = (of(old), of(new));
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                fields.push(name.clone());
                differ(old.get(name), new.get(name), fields, out);
                fields.pop();
            }
        }
        (Some(Value::Array(_)) | None, Some(Value::Array(_)) | None) => {
            let of = |value: Option<&'_ Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
            lists(&of(old), &of(new), fields, out);
        }
        _ => out.push(Difference {
            fields: fields.clone(),
            from: old.cloned(),
            to: new.cloned(),
            in_list: false,
        }),
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// Items come and go; what is left may change places, which matters where the first that matches decides.
fn lists(old: &[Value], new: &[Value], fields: &[String], out: &mut Vec<Difference>) {
    let mut item = |from: Option<Value>, to: Option<Value>| {
        out.push(Difference { fields: fields.to_vec(), from, to, in_list: true });
    };
    let (gone, come) = (without(old, new), without(new, old));
    if gone.is_empty() && come.is_empty() {
        return item(Some(Value::Array(old.to_vec())), Some(Value::Array(new.to_vec())));
    }
    gone.into_iter().for_each(|value| item(Some(value), None));
    come.into_iter().for_each(|value| item(None, Some(value)));
}

/// Items of `these` that `others` lacks; one that is there twice and there once lacks one.
fn without(these: &[Value], others: &[Value]) -> Vec<Value> {
    let mut left: Vec<&Value> = others.iter().collect();
    let mut out = Vec::new();
    for value in these {
        match left.iter().position(|other| *other == value) {
            Some(position) => drop(left.swap_remove(position)),
            None => out.push(value.clone()),
        }
    }
    out
}
