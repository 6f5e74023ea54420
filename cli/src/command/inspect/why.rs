//! Which policies decide what a sidecar does, as a table.

use super::{list, name};
use crate::output::{self, text};
use serde_json::Value;

/// One row for each configuration: of what, for whom, what it says, and the policies it came from, the strongest first.
pub(super) fn rules(said: &Value) -> String {
    let rows = list(said, "/rules").iter().flat_map(|of| {
        let kind = text(of, "/type");
        all(of).into_iter().map(move |(what, rule)| vec![kind.clone(), what, conf(rule), origins(rule)])
    });
    output::table(&["KIND", "FOR", "CONFIGURATION", "POLICIES"], rows.collect())
}

/// The Dataplanes that a policy selects.
pub(super) fn selected(items: &[Value]) -> String {
    let zone = |item: &Value| {
        let label = item.get("labels").and_then(|labels| labels.get(meridian_core::labels::ZONE));
        label.and_then(Value::as_str).unwrap_or(output::NOTHING).to_owned()
    };
    let rows = items.iter().map(|item| vec![text(item, "/mesh"), name(item), zone(item)]);
    output::table(&["MESH", "NAME", "ZONE"], rows.collect())
}

fn all(of: &Value) -> Vec<(String, &Value)> {
    let mut rows = Vec::new();
    for rule in list(of, "/toResourceRules") {
        let section = text(rule, "/resourceSectionName");
        let target = match rule.pointer("/resourceMeta").map(|meta| (text(meta, "/type"), name(meta))) {
            Some((kind, _)) if kind == "Mesh" => "calls to anybody".to_owned(),
            Some((kind, name)) if section == output::NOTHING || section.is_empty() => {
                format!("calls to {kind} {name}")
            }
            Some((kind, name)) => format!("calls to {kind} {name}, port {section}"),
            None => output::NOTHING.to_owned(),
        };
        rows.push((target, rule));
    }
    for rule in list(of, "/toRules") {
        rows.push((format!("calls to {}", matchers(rule)), rule));
    }
    for (field, who) in [("/inboundRules", caller as fn(&Value) -> String), ("/fromRules", matchers)] {
        for inbound in list(of, field) {
            let port = text(inbound, "/inbound/port");
            let rules = list(inbound, "/rules").iter();
            rows.extend(rules.map(|rule| (format!("port {port}, from {}", who(rule)), rule)));
        }
    }
    rows.extend(of.get("proxyRule").map(|rule| ("the sidecar".to_owned(), rule)));
    rows
}

fn caller(rule: &Value) -> String {
    rule.get("match")
        .filter(|matched| !matched.is_null())
        .map_or_else(|| "anybody".to_owned(), Value::to_string)
}

fn matchers(rule: &Value) -> String {
    let matchers = list(rule, "/matchers").iter().map(|matcher| {
        let not = if matcher.get("not").and_then(Value::as_bool) == Some(true) { "not " } else { "" };
        format!("{not}{}={}", text(matcher, "/key"), text(matcher, "/value"))
    });
    let all: Vec<String> = matchers.collect();
    if all.is_empty() { "anybody".to_owned() } else { all.join(" and ") }
}

/// Kuma gives a list in some places: of routes with hostnames, one for each.
fn conf(rule: &Value) -> String {
    match rule.get("conf") {
        Some(Value::Array(confs)) if confs.len() == 1 => confs.iter().map(Value::to_string).collect(),
        Some(conf) => conf.to_string(),
        None => output::NOTHING.to_owned(),
    }
}

fn origins(rule: &Value) -> String {
    let mut names = Vec::new();
    for origin in list(rule, "/origin") {
        let name = name(origin.get("resourceMeta").unwrap_or(origin));
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_sort_of_rule_is_a_row() {
        let policy = json!({"name": "quick-hash", "labels": {"kuma.io/display-name": "quick"}});
        let origin =
            json!([{"resourceMeta": policy, "ruleIndex": 0}, {"resourceMeta": policy, "ruleIndex": 1}]);
        let said = json!({"rules": [
            {
                "type": "MeshTimeout",
                "toResourceRules": [
                    {"resourceMeta": {"type": "Mesh", "name": "default"}, "resourceSectionName": "", "conf": [{"idleTimeout": "1h0m0s"}], "origin": origin},
                    {"resourceMeta": {"type": "MeshService", "name": "backend"}, "resourceSectionName": "80", "conf": [{"idleTimeout": "2s"}], "origin": origin},
                ],
                "inboundRules": [{"inbound": {"port": 8080}, "rules": [{"conf": [{"idleTimeout": "3s"}], "origin": origin}]}],
            },
            {
                "type": "MeshTrafficPermission",
                "fromRules": [{"inbound": {"port": 8080}, "rules": [{
                    "matchers": [{"key": "kuma.io/service", "value": "web", "not": true}],
                    "conf": {"action": "Deny"}, "origin": [policy],
                }]}],
            },
            {"type": "MeshPassthrough", "proxyRule": {"conf": {"passthroughMode": "None"}, "origin": [policy]}},
        ]});
        let table = rules(&said);
        let lines: Vec<&str> = table.lines().skip(1).collect();
        for (line, parts) in lines.iter().zip([
            ["MeshTimeout", "calls to anybody", r#"{"idleTimeout":"1h0m0s"}"#],
            ["MeshTimeout", "calls to MeshService backend, port 80", r#"{"idleTimeout":"2s"}"#],
            ["MeshTimeout", "port 8080, from anybody", r#"{"idleTimeout":"3s"}"#],
            ["MeshTrafficPermission", "port 8080, from not kuma.io/service=web", r#"{"action":"Deny"}"#],
            ["MeshPassthrough", "the sidecar", r#"{"passthroughMode":"None"}"#],
        ]) {
            assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
            assert!(line.trim_end().ends_with("quick"), "{line}");
        }
        assert_eq!(lines.len(), 5, "{table}");
    }

    #[test]
    fn selected_sidecars_by_the_name_that_their_zone_gave_them() {
        let labels = json!({"kuma.io/display-name": "web-1", "kuma.io/zone": "east"});
        let table = selected(&[json!({"mesh": "default", "name": "web-1-hash", "labels": labels})]);
        let line = table.lines().nth(1).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["default", "web-1", "east"]);
    }
}
