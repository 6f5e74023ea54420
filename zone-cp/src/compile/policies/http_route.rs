//! MeshHTTPRoute: merged rules, turned into matches in the order in which a request is held against them.

use super::retry::header_matches;
use meridian_core::IntOrString;
use meridian_core::kinds::backend_ref::BackendRef;
use meridian_core::kinds::http_headers::is_of_connection;
use meridian_core::kinds::mesh_http_route::{
    Filter, HeaderModifier, Match, PathMatch, PathMatchType, PathRewrite, PathRewriteType, QueryParamsMatch,
    QueryParamsMatchType, RequestRedirect, RuleConf,
};
use meridian_proxy_config::{
    BackendTarget, HeaderChange, HttpMatch, HttpRule, Mirror, PathChange, PathMatch as Path, QueryMatch,
    QueryValueMatch, Redirect,
};
use std::cmp::Reverse;

/// A redirect that does not say which (Kuma's default).
const FOUND: u16 = 302;

/// How a match stands among others, the first first: by its path's form, its path's length (of an exact one nothing
/// depends on it), whether it names a method, how many headers and how many parameters.
type Rank = (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>);

/// The matches of all rules (from strong to weak) in Kuma's order; of equals the stronger comes first.
pub(super) fn matches<'a>(rules: impl Iterator<Item = (u32, &'a [Match])>) -> Vec<HttpMatch> {
    let each = rules.flat_map(|(rule, matches)| matches.iter().map(move |matched| (rule, matched)));
    let mut all: Vec<(Rank, HttpMatch)> =
        each.filter_map(|(rule, matched)| Some((rank(matched), one(rule, matched)?))).collect();
    all.sort_by_key(|(rank, _)| *rank);
    all.into_iter().map(|(_, matched)| matched).collect()
}

fn rank(matched: &Match) -> Rank {
    let (form, length) = match &matched.path {
        Some(PathMatch { type_: PathMatchType::Exact, .. }) => (0, 0),
        Some(PathMatch { type_: PathMatchType::PathPrefix, value }) => (1, value.len()),
        Some(PathMatch { value, .. }) => (2, value.len()),
        None => (3, 0),
    };
    let (headers, query) = (matched.headers.len(), matched.query_params.len());
    (form, Reverse(length), matched.method.is_none(), Reverse(headers), Reverse(query))
}

/// `None`: it has a condition of a kind that nobody knows (an older version's), and without it would fit too much.
fn one(rule: u32, matched: &Match) -> Option<HttpMatch> {
    let path = matched.path.as_ref().map(|path| {
        let value = path.value.clone();
        match path.type_ {
            PathMatchType::Exact => Some(Path::Exact(value)),
            PathMatchType::PathPrefix => Some(Path::Prefix(value)),
            PathMatchType::RegularExpression => Some(Path::Regex(value)),
            PathMatchType::Other(_) => None,
        }
    });
    let headers = header_matches(Some(&matched.headers));
    if headers.len() != matched.headers.len() {
        return None;
    }
    Some(HttpMatch {
        path: match path {
            Some(path) => Some(path?),
            None => None,
        },
        method: matched.method.as_ref().map(|method| method.as_str().to_owned()),
        headers,
        query: matched.query_params.iter().map(query).collect::<Option<_>>()?,
        rule,
    })
}

fn query(param: &QueryParamsMatch) -> Option<QueryMatch> {
    let value = match param.type_ {
        QueryParamsMatchType::Exact => QueryValueMatch::Exact(param.value.clone()),
        QueryParamsMatchType::RegularExpression => QueryValueMatch::Regex(param.value.clone()),
        QueryParamsMatchType::Other(_) => return None,
    };
    Some(QueryMatch { name: param.name.clone(), value })
}

/// What a rule does, but for its backends and policies. `target`: what a reference means.
pub(super) fn rule(name: String, conf: &RuleConf, target: impl Fn(&BackendRef) -> BackendTarget) -> HttpRule {
    let mut rule = HttpRule { name, ..HttpRule::default() };
    // A filter has the one field that its type names.
    for filter in conf.filters.iter().flatten() {
        let Filter { type_: _, request_header_modifier, response_header_modifier, .. } = filter;
        rule.request_headers.extend(request_header_modifier.iter().flat_map(changes));
        rule.response_headers.extend(response_header_modifier.iter().flat_map(changes));
        if let Some(to) = &filter.request_redirect {
            rule.redirect = Some(redirect(to));
        }
        if let Some(to) = &filter.url_rewrite {
            rule.rewrite.hostname = to.hostname.clone().or(rule.rewrite.hostname.take());
            rule.rewrite.path = to.path.as_ref().and_then(path_change).or(rule.rewrite.path.take());
        }
        if let Some(mirror) = &filter.request_mirror {
            let per_million = share(mirror.percentage.as_ref());
            rule.mirrors.push(Mirror { per_million, to: target(&mirror.backend_ref) });
        }
    }
    rule.mirrors.retain(|mirror| mirror.per_million > 0);
    rule
}

fn changes(modifier: &HeaderModifier) -> Vec<HeaderChange> {
    let set = modifier.set.iter().map(|it| HeaderChange::Set(it.name.clone(), it.value.clone()));
    let add = modifier.add.iter().map(|it| HeaderChange::Add(it.name.clone(), it.value.clone()));
    let all = set.chain(add).chain(modifier.remove.iter().cloned().map(HeaderChange::Remove));
    let name = |change: &HeaderChange| match change {
        HeaderChange::Set(name, _) | HeaderChange::Add(name, _) | HeaderChange::Remove(name) => name.clone(),
    };
    all.filter(|change| !is_of_connection(&name(change))).collect()
}

fn redirect(to: &RequestRedirect) -> Redirect {
    Redirect {
        scheme: to.scheme.as_ref().map(|scheme| scheme.as_str().to_owned()),
        hostname: to.hostname.clone(),
        port: to.port.and_then(|port| u16::try_from(port).ok()),
        path: to.path.as_ref().and_then(path_change),
        status: to.status_code.and_then(|code| u16::try_from(code).ok()).unwrap_or(FOUND),
    }
}

fn path_change(path: &PathRewrite) -> Option<PathChange> {
    match path.type_ {
        PathRewriteType::ReplaceFullPath => path.replace_full_path.clone().map(PathChange::Full),
        PathRewriteType::ReplacePrefixMatch => path.replace_prefix_match.clone().map(PathChange::Prefix),
        PathRewriteType::Other(_) => None,
    }
}

/// Of a million; unset: all.
fn share(percentage: Option<&IntOrString>) -> u32 {
    let percent = percentage.map_or(Some(100.0), IntOrString::number).unwrap_or_default();
    // 0 to 1,000,000.
    (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn order(given: Vec<Value>) -> Vec<u32> {
        let parsed: Vec<Match> = given.into_iter().map(|it| serde_json::from_value(it).unwrap()).collect();
        let rules = parsed.iter().enumerate();
        matches(rules.map(|(n, one)| (u32::try_from(n).unwrap(), std::slice::from_ref(one))))
            .iter()
            .map(|matched| matched.rule)
            .collect()
    }

    fn path(type_: &str, value: &str) -> Value {
        json!({"path": {"type": type_, "value": value}})
    }

    #[test]
    fn the_more_exact_comes_first() {
        let with = |mut base: Value, name: &str, value: Value| {
            base[name] = value;
            base
        };
        let header = |name: &str| json!({"name": name, "type": "Present"});
        let prefix = || path("PathPrefix", "/a");
        let given = vec![
            json!({}),
            path("RegularExpression", "/a.*/long"),
            prefix(),
            path("PathPrefix", "/a/b"),
            path("Exact", "/a"),
            with(prefix(), "method", json!("GET")),
            with(prefix(), "headers", json!([header("x"), header("y")])),
            with(prefix(), "headers", json!([header("x")])),
            with(prefix(), "queryParams", json!([{"type": "Exact", "name": "q", "value": "1"}])),
            with(json!({}), "method", json!("GET")),
            path("Exact", "/longer"),
            path("RegularExpression", "/b"),
        ];
        assert_eq!(order(given), [4, 10, 3, 5, 6, 7, 8, 2, 1, 11, 9, 0]);
    }

    #[test]
    fn each_condition_is_said_in_the_proxys_words() {
        let said = |given: Value| {
            let matched: Match = serde_json::from_value(given).unwrap();
            serde_json::to_value(matches([(0, std::slice::from_ref(&matched))].into_iter()).remove(0))
                .unwrap()
        };
        let path = |type_: &str| said(json!({"path": {"type": type_, "value": "/a"}}))["path"].clone();
        assert_eq!(path("Exact"), json!({"exact": "/a"}));
        assert_eq!(path("PathPrefix"), json!({"prefix": "/a"}));
        assert_eq!(path("RegularExpression"), json!({"regex": "/a"}));
        assert_eq!(said(json!({"method": "PATCH"}))["method"], "PATCH");
        let header = |type_: &str| said(json!({"headers": [{"type": type_, "name": "X-A", "value": "b"}]}));
        for (type_, value) in [
            ("Exact", json!({"exact": "b"})),
            ("Prefix", json!({"prefix": "b"})),
            ("RegularExpression", json!({"regex": "b"})),
            ("Present", json!("present")),
            ("Absent", json!("absent")),
        ] {
            assert_eq!(header(type_)["headers"][0]["value"], value, "{type_}");
            assert!(header(type_)["headers"][0]["name"].as_str().unwrap().eq_ignore_ascii_case("x-a"));
        }
        let query = |type_: &str| said(json!({"queryParams": [{"type": type_, "name": "q", "value": "b"}]}));
        assert_eq!(query("Exact")["query"], json!([{"name": "q", "value": {"exact": "b"}}]));
        assert_eq!(query("RegularExpression")["query"], json!([{"name": "q", "value": {"regex": "b"}}]));
    }

    #[test]
    fn a_new_path_is_said_in_the_proxys_words() {
        let path = json!({"type": "ReplaceFullPath", "replaceFullPath": "/new"});
        let filter = json!({"type": "URLRewrite", "urlRewrite": {"path": path}});
        let conf: RuleConf = serde_json::from_value(json!({ "filters": [filter] })).unwrap();
        let rule = rule("n".into(), &conf, |_| BackendTarget::Missing(String::new()));
        assert_eq!(serde_json::to_value(rule.rewrite).unwrap(), json!({"path": {"full": "/new"}}));
    }

    #[test]
    fn each_redirect_is_said_in_the_proxys_words() {
        let said = |redirect: Value| {
            let filter = json!({"type": "RequestRedirect", "requestRedirect": redirect});
            let conf: RuleConf = serde_json::from_value(json!({ "filters": [filter] })).unwrap();
            let nobody = |_: &BackendRef| BackendTarget::Missing(String::new());
            serde_json::to_value(rule("n".into(), &conf, nobody)).unwrap()["redirect"].take()
        };
        let path = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"});
        let given = json!({"scheme": "https", "hostname": "www", "path": path, "statusCode": 308});
        let expected =
            json!({"scheme": "https", "hostname": "www", "path": {"prefix": "/new"}, "status": 308});
        assert_eq!(said(given), expected);
    }

    #[test]
    fn each_filter_is_said_in_the_proxys_words() {
        let conf: RuleConf = serde_json::from_value(json!({"filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                "set": [{"name": "a", "value": "1"}, {"name": "host", "value": "evil"}],
                "add": [{"name": "b", "value": "2"}], "remove": ["c", "transfer-encoding"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                "set": [{"name": "d", "value": "3"}], "add": [{"name": "e", "value": "4"}], "remove": ["server"]}},
            {"type": "RequestRedirect", "requestRedirect": {"port": 8443, "path": {
                "type": "ReplaceFullPath", "replaceFullPath": "/moved"}}},
            {"type": "URLRewrite", "urlRewrite": {"hostname": "inner", "path": {
                "type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
            {"type": "RequestMirror", "requestMirror": {"percentage": "12.5",
                "backendRef": {"kind": "MeshService", "name": "audit"}}},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"kind": "MeshService", "name": "all"}}},
            {"type": "RequestMirror", "requestMirror": {"percentage": 0,
                "backendRef": {"kind": "MeshService", "name": "none"}}},
        ]}))
        .unwrap();
        let target = |it: &BackendRef| BackendTarget::Destination(it.name.clone().unwrap_or_default());
        let expected = json!({
            "name": "n",
            "requestHeaders": [{"set": ["a", "1"]}, {"add": ["b", "2"]}, {"remove": "c"}],
            "responseHeaders": [{"set": ["d", "3"]}, {"add": ["e", "4"]}, {"remove": "server"}],
            "redirect": {"port": 8443, "path": {"full": "/moved"}, "status": 302},
            "rewrite": {"hostname": "inner", "path": {"prefix": "/"}},
            "mirrors": [
                {"perMillion": 125_000, "to": {"destination": "audit"}},
                {"perMillion": 1_000_000, "to": {"destination": "all"}},
            ],
        });
        assert_eq!(serde_json::to_value(rule("n".into(), &conf, target)).unwrap(), expected);
    }
}
