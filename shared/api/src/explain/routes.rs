//! Which rule of the routes to a service takes a request.
//!
//! By Kuma's order of what they match (an exact path, then the longest prefix, then a pattern; then a method, and more
//! conditions on headers and the query), and among equal ones the strongest policy's first. What happens is decided by its
//! twins: the order by `zone-cp/src/compile/policies/http_route.rs`, whether a match fits by
//! `shared/proxy/src/policy/routes.rs`. What changes there must change here.

use super::question::Question;
use regex::Regex;
use serde_json::Value;

/// The rule that takes the request, in a merged configuration of MeshHTTPRoutes.
pub(super) fn chosen<'a>(conf: &'a Value, question: &Question) -> Option<&'a Value> {
    let rules = conf.get("rules")?.as_array()?.iter();
    let taken = rules.enumerate().filter_map(|(position, rule)| {
        let matches = rule.get("matches")?.as_array()?.iter();
        let best = matches.filter(|it| holds(it, question)).map(weight).max()?;
        Some((best, std::cmp::Reverse(position), rule))
    });
    taken.max_by_key(|(weight, position, _)| (*weight, *position)).map(|(_, _, rule)| rule)
}

/// The more, the earlier it is asked.
fn weight(matched: &Value) -> (u8, usize, bool, usize, usize) {
    let path = matched.get("path");
    let value = path.and_then(|path| path.get("value")?.as_str()).unwrap_or_default();
    let kind = match path.and_then(|path| path.get("type")?.as_str()) {
        Some("Exact") => 3,
        Some("PathPrefix") => 2,
        Some(_) => 1,
        None => 0,
    };
    let count = |name: &str| matched.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    (kind, value.len(), matched.get("method").is_some(), count("headers"), count("queryParams"))
}

fn holds(matched: &Value, question: &Question) -> bool {
    let (path, query) = question.path.split_once('?').unwrap_or((&question.path, ""));
    let list = |name: &str| matched.get(name).and_then(Value::as_array).into_iter().flatten();
    let method = matched.get("method").and_then(Value::as_str);
    matched.get("path").is_none_or(|it| path_holds(it, path))
        && method.is_none_or(|method| method == question.method)
        && list("headers").all(|it| named_holds(it, &question.headers))
        && list("queryParams").all(|it| named_holds(it, &pairs(query)))
}

fn path_holds(matched: &Value, path: &str) -> bool {
    let value = matched.get("value").and_then(Value::as_str).unwrap_or_default();
    match matched.get("type").and_then(Value::as_str) {
        Some("Exact") => path == value,
        Some("PathPrefix") => {
            let prefix = value.trim_end_matches('/');
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some("RegularExpression") => fits(value, path),
        _ => false,
    }
}

/// A header or a query parameter.
fn named_holds(matched: &Value, given: &[(String, String)]) -> bool {
    let text = |field: &str| matched.get(field).and_then(Value::as_str).unwrap_or_default();
    let name = text("name");
    let found = given.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
    match (text("type"), found) {
        ("Absent", found) => found.is_none(),
        (_, None) => false,
        ("Present", _) => true,
        ("Prefix", Some(value)) => value.starts_with(text("value")),
        ("RegularExpression", Some(value)) => fits(text("value"), value),
        (_, Some(value)) => value == text("value"),
    }
}

/// Patterns cover the whole text, as in Kuma. One that does not compile was refused when it was written.
fn fits(pattern: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(text))
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(method: &str, path: &str, headers: &[(&str, &str)]) -> Question {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Question {
            asked: String::new(),
            host: "backend.mesh".into(),
            port: None,
            path: path.into(),
            method: method.into(),
            headers: headers.iter().map(owned).collect(),
        }
    }

    #[test]
    fn the_most_specific_match_takes_a_request() {
        let path = |type_: &str, value: &str| json!({"path": {"type": type_, "value": value}});
        let rule = |name: &str, matches: Value| json!({"name": name, "matches": matches});
        let conf = json!({"rules": [
            rule("pattern", json!([path("RegularExpression", "/v[0-9]+/.*")])),
            rule("short", json!([path("PathPrefix", "/v1")])),
            rule("long", json!([path("PathPrefix", "/v1/users/")])),
            rule("exact", json!([path("Exact", "/v1/users/me")])),
            rule("canary", json!([{
                "path": {"type": "PathPrefix", "value": "/v1"}, "method": "POST",
                "headers": [{"type": "Exact", "name": "x-canary", "value": "yes"}],
                "queryParams": [{"type": "Exact", "name": "a", "value": "b"}],
            }])),
        ]});
        for (question, expected) in [
            (asked("GET", "/v1/users/me", &[]), Some("exact")),
            (asked("GET", "/v1/users/you", &[]), Some("long")),
            (asked("GET", "/v1/users", &[]), Some("long")),
            (asked("GET", "/v1", &[]), Some("short")),
            (asked("GET", "/v2/x", &[]), Some("pattern")),
            (asked("GET", "/v11", &[]), None),
            (asked("POST", "/v1/x?a=b", &[("x-canary", "yes")]), Some("canary")),
            (asked("POST", "/v1/x?a=c", &[("x-canary", "yes")]), Some("short")),
        ] {
            let found = chosen(&conf, &question).map(|rule| rule["name"].as_str().unwrap());
            assert_eq!(found, expected, "{question:?}");
        }
    }
}
