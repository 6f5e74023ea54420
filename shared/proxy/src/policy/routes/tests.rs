use super::*;
use http::uri::Authority;
use meridian_proxy_config::{
    HeaderChange, HeaderMatch, HeaderValueMatch, PathChange, QueryMatch, Redirect, Rewrite,
};

fn rules(matches: Vec<HttpMatch>) -> Rules {
    let count = matches.iter().map(|matched| matched.rule + 1).max().unwrap_or_default();
    let rule = |n| HttpRule { name: format!("{n}"), ..HttpRule::default() };
    Rules::compile(&HttpRoutes { matches, rules: (0..count).map(rule).collect() }).unwrap()
}

fn by_path(path: PathMatch) -> HttpMatch {
    HttpMatch { path: Some(path), ..HttpMatch::default() }
}

fn found(rules: &Rules, method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<Found> {
    let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    rules.find(&method, &uri.parse().unwrap(), &HeaderMap::from_iter(headers)).map(|(found, _)| found)
}

fn prefix(path: &str, uri: &str) -> Option<usize> {
    found(&rules(vec![by_path(PathMatch::Prefix(path.into()))]), "GET", uri, &[]).map(|found| found.prefix)
}

#[test]
fn a_prefix_is_whole_segments_of_the_path_as_it_came() {
    for uri in ["/foo", "/foo/", "/foo/x", "/foo?q=1", "http://a/foo/x", "/foo//x"] {
        assert_eq!(prefix("/foo", uri), Some(4), "{uri}");
    }
    for uri in ["/", "/foobar", "/fo", "/x/foo", "/FOO", "/%66oo", "/x/../foo", "//foo", "/?/foo"] {
        assert_eq!(prefix("/foo", uri), None, "{uri}");
    }
    for uri in ["/", "/x", "http://a", "/?q"] {
        assert_eq!(prefix("/", uri), Some(0), "{uri}");
    }
    assert_eq!(prefix("/", "*"), None, "OPTIONS * has no path");
}

#[test]
fn exact_and_regex_are_the_whole_path_without_its_query() {
    let exact = rules(vec![by_path(PathMatch::Exact("/a".into()))]);
    assert!(found(&exact, "GET", "/a?b=c", &[]).is_some());
    assert!(found(&exact, "GET", "/a/", &[]).is_none());
    let regex = rules(vec![by_path(PathMatch::Regex("/v[0-9]+|/x".into()))]);
    for (uri, fits) in [("/v12", true), ("/v12?a", true), ("/x", true), ("/v", false), ("/v1/x", false)] {
        assert_eq!(found(&regex, "GET", uri, &[]).is_some(), fits, "{uri}");
    }
}

#[test]
fn all_conditions_hold_and_the_first_match_decides() {
    let query = |name: &str, value| QueryMatch { name: name.into(), value };
    let header = HeaderMatch { name: "x-user".into(), value: HeaderValueMatch::Prefix("a".into()) };
    let one = HttpMatch {
        method: Some("POST".into()),
        headers: vec![header],
        query: vec![
            query("q", QueryValueMatch::Exact("1".into())),
            query("r", QueryValueMatch::Regex("[ab]*".into())),
        ],
        rule: 1,
        ..by_path(PathMatch::Prefix("/a".into()))
    };
    let all = rules(vec![one, HttpMatch::default()]);
    let rule = |method, uri, headers: &[_]| found(&all, method, uri, headers).unwrap().rule;
    assert_eq!(rule("POST", "/a?q=1&r=ab", &[("x-user", "anna")]), 1);
    assert_eq!(rule("POST", "/a?r&q=1&q=2", &[("x-user", "anna")]), 1, "the first of a name counts");
    for (method, uri, user) in [
        ("GET", "/a?q=1&r=ab", "anna"),
        ("POST", "/b?q=1&r=ab", "anna"),
        ("POST", "/a?q=2&q=1&r=ab", "anna"),
        ("POST", "/a?q=%31&r=ab", "anna"),
        ("POST", "/a?q=1", "anna"),
        ("POST", "/a?q=1&r=c", "anna"),
        ("POST", "/a?q=1&r=ab", "bob"),
    ] {
        assert_eq!(rule(method, uri, &[("x-user", user)]), 0, "{method} {uri} {user}");
    }
    assert_eq!(found(&rules(vec![]), "GET", "/", &[]), None);
}

#[test]
fn what_names_no_rule_or_is_no_pattern_is_refused() {
    let lost = HttpRoutes { matches: vec![HttpMatch::default()], rules: vec![] };
    assert!(Rules::compile(&lost).err().unwrap().contains("no rule 0"));
    let broken =
        HttpRoutes { matches: vec![by_path(PathMatch::Regex("(".into()))], rules: vec![HttpRule::default()] };
    assert!(Rules::compile(&broken).err().unwrap().contains("pattern"));
    for name in ["host", "connection", "content-length", "transfer-encoding", ":path", "a b", "keep-alive"] {
        assert!(HeaderChanges::compile(&[HeaderChange::Remove(name.into())]).is_err(), "{name}");
    }
    assert!(HeaderChanges::compile(&[HeaderChange::Set("a".into(), "b\r\nc: d".into())]).is_err());
    for status in [200, 404, 99] {
        assert!(RedirectTo::compile(&Redirect { status, ..Redirect::default() }).is_err());
    }
}

#[test]
fn headers_change_in_order() {
    let mut headers = HeaderMap::from_iter(
        [("a", "1"), ("b", "1"), ("c", "1")].map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())),
    );
    let text = |text: &str| text.to_owned();
    let changes = [
        HeaderChange::Set(text("a"), text("2")),
        HeaderChange::Add(text("b"), text("2")),
        HeaderChange::Remove(text("c")),
        HeaderChange::Remove(text("none")),
    ];
    HeaderChanges::compile(&changes).unwrap().apply(&mut headers);
    let values = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((values("a"), values("b"), values("c")), (vec!["2"], vec!["1", "2"], vec![]));
}

fn rewritten(change: PathChange, uri: &str, prefix: usize) -> String {
    let rewrite = Rewrite { hostname: None, path: Some(change) };
    let rewrite = RewriteTo::compile(&rewrite).unwrap();
    rewrite.target(&uri.parse().unwrap(), prefix).unwrap().to_string()
}

#[test]
fn a_new_path_keeps_the_query_and_has_no_slash_too_many() {
    let prefix = |with: &str, uri: &str, taken| rewritten(PathChange::Prefix(with.into()), uri, taken);
    assert_eq!(prefix("/hello/", "/prefix/world", 7), "/hello/world");
    assert_eq!(prefix("/hello", "/prefix/world?q=1", 7), "/hello/world?q=1");
    assert_eq!(prefix("/hello/", "/prefix", 7), "/hello/");
    assert_eq!(prefix("/", "/prefix/world", 7), "/world");
    assert_eq!(prefix("/", "/prefix", 7), "/");
    assert_eq!(prefix("", "/prefix/world", 7), "/world");
    assert_eq!(prefix("/hello", "/world", 0), "/hello/world");
    assert_eq!(prefix("/hello", "/", 0), "/hello/");
    let full = |with: &str, uri: &str| rewritten(PathChange::Full(with.into()), uri, 0);
    assert_eq!(full("/new", "/old?q=1"), "/new?q=1");
    assert_eq!(full("new", "/old"), "/new");
    assert_eq!(full("/new?a=b", "/old?q=1"), "/new?a=b");
    assert_eq!(full("/a b#\u{e9}\"<>", "/old"), "/a%20b%23%C3%A9%22%3C%3E");
    assert_eq!(full("/new", "http://host/old"), "http://host/new");
}

fn location(redirect: Redirect, uri: &str, asked: &str) -> String {
    let redirect = RedirectTo::compile(&Redirect { status: 302, ..redirect }).unwrap();
    redirect.location(&uri.parse().unwrap(), &Authority::try_from(asked).unwrap(), 2)
}

#[test]
fn a_redirect_keeps_what_it_does_not_change() {
    let of = Redirect::default;
    assert_eq!(location(of(), "/a?b=c", "shop:8080"), "http://shop:8080/a?b=c");
    assert_eq!(location(of(), "*", "shop"), "http://shop/");
    let https = Redirect { scheme: Some("https".into()), ..of() };
    assert_eq!(location(https.clone(), "/a", "shop:80"), "https://shop/a");
    assert_eq!(location(https.clone(), "/a", "shop:8080"), "https://shop:8080/a");
    let host = Redirect { hostname: Some("www.example.com".into()), ..of() };
    assert_eq!(location(host, "/a", "shop:8080"), "http://www.example.com/a");
    let port = Redirect { port: Some(443), ..https };
    assert_eq!(location(port, "/a", "shop:8080"), "https://shop/a");
    let path = Redirect { path: Some(PathChange::Prefix("/b".into())), port: Some(81), ..of() };
    assert_eq!(location(path, "/a/x?q", "[::1]:8080"), "http://[::1]:81/b/x?q");
}
