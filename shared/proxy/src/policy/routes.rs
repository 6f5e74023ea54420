//! Routes, compiled: which rule a request is for, and what the rule changes in it. No I/O, and nothing of clusters: those
//! are the snapshot's ([`crate::snapshot::Routing`]).
//!
//! Paths and queries are compared as they came, neither decoded nor normalised, and sent on so: what a rule is held
//! against is what the server sees. Rejected: to normalise first, as Kuma has Envoy do; servers differ in what they take as equal,
//! and a path that is changed for one of them is another path for the next. Routes guard nothing.

mod changes;
mod turns;

pub use changes::{HeaderChanges, PathEdit, RedirectTo, RewriteTo};
pub use turns::Turns;

use super::{
    balance::Hashing,
    matching::{HeaderMatcher, whole},
    retry::RetryPolicy,
};
use crate::access_log::{self, AccessLogs};
use http::{HeaderMap, Method, Uri};
use meridian_proxy_config::{
    self as config, HttpMatch, HttpRoutes, HttpRule, PathMatch, QueryValueMatch, RouteBackend, RoutePolicies,
    Routes, StreamTimeouts,
};
use regex::Regex;
use std::sync::Arc;

/// Patterns of the routes of one destination: each may take 256 KiB, of several policies together.
const MAX_PATTERNS: usize = 512;

/// What the routes of a destination say.
pub enum Compiled {
    Http(Rules),
    Tcp(Vec<RouteBackend>),
}

pub struct Rules {
    matches: Vec<Matcher>,
    pub rules: Vec<Rule>,
}

/// What becomes of the requests that a rule is for.
pub struct Rule {
    pub name: String,
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    pub redirect: Option<RedirectTo>,
    pub rewrite: RewriteTo,
    pub mirrors: Vec<config::Mirror>,
    /// `None`: the destination itself.
    pub backends: Option<Vec<RouteBackend>>,
    /// `None`: the destination's.
    pub policies: Option<Policies>,
}

/// What holds for a rule's requests in place of what holds for the destination's.
pub struct Policies {
    pub timeouts: StreamTimeouts,
    pub retry: Option<Arc<RetryPolicy>>,
    pub logs: Option<AccessLogs>,
    pub hashing: Option<Arc<Hashing>>,
}

/// The rule that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub rule: usize,
    /// How many bytes of the path the prefix took that matched; 0 where none was asked for.
    pub prefix: usize,
}

#[derive(Debug)]
struct Matcher {
    path: PathMatcher,
    method: Option<Method>,
    headers: Vec<HeaderMatcher>,
    query: Vec<(String, QueryMatcher)>,
    rule: usize,
}

#[derive(Debug)]
enum PathMatcher {
    Any,
    Exact(String),
    /// Without a slash at its end: empty for `/`.
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum QueryMatcher {
    Exact(String),
    Regex(Regex),
}

impl Compiled {
    /// # Errors
    /// A name, pattern or value can't be understood, or a match names a rule that is not there.
    pub fn compile(routes: &Routes) -> Result<Self, String> {
        match routes {
            Routes::Http(routes) => Rules::compile(routes).map(Self::Http),
            Routes::Tcp(backends) => Ok(Self::Tcp(backends.clone())),
        }
    }
}

impl Rules {
    fn compile(routes: &HttpRoutes) -> Result<Self, String> {
        let patterns: usize = routes.matches.iter().map(patterns).sum();
        if patterns > MAX_PATTERNS {
            return Err(format!("there are {patterns} patterns, and {MAX_PATTERNS} at most"));
        }
        let matches: Vec<Matcher> = routes.matches.iter().map(Matcher::compile).collect::<Result<_, _>>()?;
        if let Some(matcher) = matches.iter().find(|matcher| matcher.rule >= routes.rules.len()) {
            return Err(format!("there is no rule {}", matcher.rule));
        }
        let rules = routes.rules.iter().map(Rule::compile).collect::<Result<_, _>>()?;
        Ok(Self { matches, rules })
    }

    /// The first match that fits; `None`: the destination itself, unchanged.
    pub fn find(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<(Found, &Rule)> {
        let path = uri.path();
        let (matcher, prefix) = self.matches.iter().find_map(|matcher| {
            let prefix = matcher.path.fits(path)?;
            matcher.fits(method, uri, headers).then_some((matcher, prefix))
        })?;
        Some((Found { rule: matcher.rule, prefix }, self.rules.get(matcher.rule)?))
    }
}

impl Rule {
    fn compile(rule: &HttpRule) -> Result<Self, String> {
        Ok(Self {
            name: rule.name.clone(),
            request: HeaderChanges::compile(&rule.request_headers)?,
            response: HeaderChanges::compile(&rule.response_headers)?,
            redirect: rule.redirect.as_ref().map(RedirectTo::compile).transpose()?,
            rewrite: RewriteTo::compile(&rule.rewrite)?,
            mirrors: rule.mirrors.clone(),
            backends: rule.backends.clone(),
            policies: rule.policies.as_ref().map(Policies::compile).transpose()?,
        })
    }
}

impl Policies {
    fn compile(policies: &RoutePolicies) -> Result<Self, String> {
        let retry = policies.retry.as_ref().map(RetryPolicy::compile).transpose()?.map(Arc::new);
        let hashing = policies.hash.as_ref().map(|hash| Hashing::compile(hash)).transpose()?.map(Arc::new);
        let logs = policies.access_logs.as_ref().map(|logs| access_log::compile(logs));
        Ok(Self { timeouts: policies.stream_timeouts, retry, logs, hashing })
    }
}

/// Patterns among the conditions of a match.
fn patterns(matched: &HttpMatch) -> usize {
    let headers = matched.headers.iter().filter(|it| matches!(it.value, config::HeaderValueMatch::Regex(_)));
    let query = matched.query.iter().filter(|it| matches!(it.value, QueryValueMatch::Regex(_)));
    usize::from(matches!(matched.path, Some(PathMatch::Regex(_)))) + headers.count() + query.count()
}

impl Matcher {
    fn compile(matched: &HttpMatch) -> Result<Self, String> {
        let path = match &matched.path {
            None => PathMatcher::Any,
            Some(PathMatch::Exact(path)) => PathMatcher::Exact(path.clone()),
            Some(PathMatch::Prefix(path)) => PathMatcher::Prefix(path.trim_end_matches('/').to_owned()),
            Some(PathMatch::Regex(pattern)) => PathMatcher::Regex(whole(pattern)?),
        };
        let method =
            |name: &String| Method::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no method"));
        let query = |param: &config::QueryMatch| {
            let value = match &param.value {
                QueryValueMatch::Exact(value) => QueryMatcher::Exact(value.clone()),
                QueryValueMatch::Regex(pattern) => QueryMatcher::Regex(whole(pattern)?),
            };
            Ok::<_, String>((param.name.clone(), value))
        };
        Ok(Self {
            path,
            method: matched.method.as_ref().map(method).transpose()?,
            headers: matched.headers.iter().map(HeaderMatcher::compile).collect::<Result<_, _>>()?,
            query: matched.query.iter().map(query).collect::<Result<_, _>>()?,
            rule: usize::try_from(matched.rule).map_err(|error| error.to_string())?,
        })
    }

    /// Whether all conditions but the path's hold.
    fn fits(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let param = |(name, wanted): &(String, QueryMatcher)| {
            query_value(uri.query().unwrap_or_default(), name).is_some_and(|value| wanted.fits(value))
        };
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.headers.iter().all(|matcher| matcher.matches(headers))
            && self.query.iter().all(param)
    }
}

impl PathMatcher {
    /// How many bytes of the path a prefix takes.
    fn fits(&self, path: &str) -> Option<usize> {
        match self {
            Self::Any => Some(0),
            Self::Exact(exact) => (path == exact).then_some(0),
            Self::Regex(pattern) => pattern.is_match(path).then_some(0),
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(prefix.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
            }
        }
    }
}

impl QueryMatcher {
    fn fits(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Regex(pattern) => pattern.is_match(value),
        }
    }
}

/// The value of the first parameter of a name; one without `=` has an empty one.
fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests;
