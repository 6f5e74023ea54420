//! Conditions on requests and answers, compiled.

use http::{HeaderMap, HeaderName};
use meridian_proxy_config::{HeaderMatch, HeaderValueMatch};
use regex::Regex;

/// How large a compiled pattern may be: what a policy says must not fill a proxy's memory.
const PATTERN_SIZE: usize = 256 << 10;
/// What a pattern in use may keep beside that on each worker; with less it is matched a little slower.
const CACHE_SIZE: usize = 64 << 10;

/// A condition on one header.
#[derive(Debug)]
pub struct HeaderMatcher {
    name: HeaderName,
    value: ValueMatcher,
}

#[derive(Debug)]
enum ValueMatcher {
    Exact(String),
    Prefix(String),
    Regex(Regex),
    Present,
    Absent,
}

/// A pattern that the whole of a text must match.
///
/// # Errors
/// The pattern can't be understood, or is too large.
pub fn whole(pattern: &str) -> Result<Regex, String> {
    let build = |unicode: bool| {
        regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
            .size_limit(PATTERN_SIZE)
            .dfa_size_limit(CACHE_SIZE)
            .unicode(unicode)
            .build()
    };
    build(false).or_else(|_| build(true)).map_err(|error| format!("pattern {pattern:?}: {error}"))
}

impl HeaderMatcher {
    /// # Errors
    /// The name is none, or the pattern can't be understood.
    pub fn compile(config: &HeaderMatch) -> Result<Self, String> {
        let name = HeaderName::try_from(config.name.as_str())
            .map_err(|_| format!("header name {:?}", config.name))?;
        let value = match &config.value {
            HeaderValueMatch::Exact(value) => ValueMatcher::Exact(value.clone()),
            HeaderValueMatch::Prefix(value) => ValueMatcher::Prefix(value.clone()),
            HeaderValueMatch::Regex(pattern) => ValueMatcher::Regex(whole(pattern)?),
            HeaderValueMatch::Present => ValueMatcher::Present,
            HeaderValueMatch::Absent => ValueMatcher::Absent,
        };
        Ok(Self { name, value })
    }

    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.name).iter().map(|value| value.to_str().unwrap_or_default());
        let Some(first) = values.next() else { return matches!(self.value, ValueMatcher::Absent) };
        match values.next() {
            None => self.value.matches(first),
            Some(second) => {
                let rest = [first, second].into_iter().chain(values);
                self.value.matches(&rest.collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl ValueMatcher {
    /// A value that is there.
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Regex(regex) => regex.is_match(value),
            Self::Present => true,
            Self::Absent => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_match_as_a_whole() {
        let headers: HeaderMap = [("a", "one"), ("b", "x"), ("b", "y")]
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
            .into_iter()
            .fold(HeaderMap::new(), |mut map, (name, value): (HeaderName, http::HeaderValue)| {
                map.append(name, value);
                map
            });
        let matches = |name: &str, value| {
            HeaderMatcher::compile(&HeaderMatch { name: name.into(), value }).unwrap().matches(&headers)
        };
        use HeaderValueMatch as V;
        assert!(matches("a", V::Exact("one".into())) && !matches("a", V::Exact("on".into())));
        assert!(matches("a", V::Prefix("on".into())) && !matches("a", V::Prefix("ne".into())));
        assert!(matches("a", V::Regex("o.e".into())) && !matches("a", V::Regex("n".into())));
        assert!(matches("a", V::Regex("x|one".into())) && !matches("a", V::Regex("on|x".into())));
        assert!(matches("b", V::Exact("x,y".into())) && !matches("b", V::Exact("x".into())));
        assert!(matches("b", V::Present) && !matches("b", V::Absent));
        assert!(
            !matches("c", V::Present) && matches("c", V::Absent) && !matches("c", V::Exact(String::new()))
        );
    }

    #[test]
    fn a_pattern_is_small_and_valid() {
        assert!(whole("(").is_err());
        assert!(whole("(a{1000}){1000}").is_err());
        assert!(whole("caf\u{e9}").unwrap().is_match("caf\u{e9}"));
    }
}
