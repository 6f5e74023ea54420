//! What a rule changes in a request and its answer.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri,
    uri::{Authority, PathAndQuery},
};
use meridian_core::kinds::http_headers::is_of_connection;
use meridian_proxy_config::{HeaderChange, PathChange, Redirect, Rewrite};

/// Changes of headers, in order.
#[derive(Debug, Default)]
pub struct HeaderChanges(Vec<Change>);

#[derive(Debug)]
enum Change {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl HeaderChanges {
    /// # Errors
    /// A name or value is none, or must not be changed.
    pub fn compile(changes: &[HeaderChange]) -> Result<Self, String> {
        let name = |text: &String| match HeaderName::try_from(text.as_str()) {
            // The control plane leaves them out; a proxy holds to it.
            Ok(name) if is_of_connection(name.as_str()) => Err(format!("header {text} must not be changed")),
            Ok(name) => Ok(name),
            Err(_) => Err(format!("header name {text:?}")),
        };
        let value = |text: &String| {
            HeaderValue::try_from(text.as_str()).map_err(|_| format!("header value {text:?}"))
        };
        let change = |change: &HeaderChange| {
            Ok(match change {
                HeaderChange::Set(key, text) => Change::Set(name(key)?, value(text)?),
                HeaderChange::Add(key, text) => Change::Add(name(key)?, value(text)?),
                HeaderChange::Remove(key) => Change::Remove(name(key)?),
            })
        };
        changes.iter().map(change).collect::<Result<_, String>>().map(Self)
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for change in &self.0 {
            match change {
                Change::Set(name, value) => drop(headers.insert(name.clone(), value.clone())),
                Change::Add(name, value) => drop(headers.append(name.clone(), value.clone())),
                Change::Remove(name) => drop(headers.remove(name)),
            }
        }
    }
}

/// A change of a path. What stands in a policy and can't stand in a path is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    Full(String),
    /// Without a slash at its end.
    Prefix {
        /// In place of the prefix alone.
        whole: String,
        /// Before what follows the prefix, which begins with a slash.
        before: String,
    },
}

impl PathEdit {
    pub fn compile(change: &PathChange) -> Self {
        match change {
            PathChange::Full(path) => Self::Full(absolute(path)),
            PathChange::Prefix(path) => {
                let whole = absolute(path);
                Self::Prefix { before: whole.trim_end_matches('/').to_owned(), whole }
            }
        }
    }

    /// The new path with its query: the request's, unless the policy's path has one of its own. `prefix`: bytes of the
    /// path that the match's prefix took.
    pub fn apply(&self, uri: &Uri, prefix: usize) -> String {
        let path = match self {
            Self::Full(path) => path.clone(),
            Self::Prefix { whole, before } => match uri.path().get(prefix..).unwrap_or_default() {
                "" => whole.clone(),
                rest => format!("{before}{rest}"),
            },
        };
        match uri.query() {
            Some(query) if !path.contains('?') => format!("{path}?{query}"),
            _ => path,
        }
    }
}

/// What may stand in a target, beginning with a slash.
fn absolute(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        match byte {
            b'!' | b'$'..=b';' | b'=' | b'?'..=b'[' | b']' | b'_' | b'a'..=b'z' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What is changed in a request's target.
#[derive(Debug, Default)]
pub struct RewriteTo {
    pub host: Option<Authority>,
    path: Option<PathEdit>,
}

impl RewriteTo {
    /// # Errors
    /// The host is none.
    pub fn compile(rewrite: &Rewrite) -> Result<Self, String> {
        let host = rewrite.hostname.as_deref().map(authority).transpose()?;
        Ok(Self { host, path: rewrite.path.as_ref().map(PathEdit::compile) })
    }

    /// The new target; `None`: as it is.
    pub fn target(&self, uri: &Uri, prefix: usize) -> Option<Uri> {
        let path = self.path.as_ref()?.apply(uri, prefix);
        let mut parts = uri.clone().into_parts();
        // What was escaped when it was compiled, and what came with a request: together they fit.
        parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
        Uri::from_parts(parts).ok()
    }
}

fn authority(host: &str) -> Result<Authority, String> {
    Authority::try_from(host).map_err(|_| format!("host {host:?}"))
}

/// Where a client is sent.
#[derive(Debug)]
pub struct RedirectTo {
    pub status: StatusCode,
    scheme: Option<&'static str>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<PathEdit>,
}

impl RedirectTo {
    /// # Errors
    /// The status redirects nobody, or host or scheme is none.
    pub fn compile(redirect: &Redirect) -> Result<Self, String> {
        let status = StatusCode::from_u16(redirect.status).ok().filter(StatusCode::is_redirection);
        let scheme = match redirect.scheme.as_deref() {
            None => None,
            Some("http") => Some("http"),
            Some("https") => Some("https"),
            Some(other) => return Err(format!("scheme {other:?}")),
        };
        let host = redirect.hostname.as_deref().map(authority).transpose()?;
        Ok(Self {
            status: status.ok_or_else(|| format!("status {} is no redirect", redirect.status))?,
            scheme,
            host: host.map(|host| host.host().to_owned()),
            port: redirect.port,
            path: redirect.path.as_ref().map(PathEdit::compile),
        })
    }

    /// The value of `Location`. `asked`: whom the request is for; `prefix`: bytes of its path that a prefix took.
    pub fn location(&self, uri: &Uri, asked: &Authority, prefix: usize) -> String {
        let had = if uri.scheme_str() == Some("https") { "https" } else { "http" };
        let scheme = self.scheme.unwrap_or(had);
        // A port belongs to the host that was asked for, and the default one to its scheme.
        let kept = asked.port_u16().filter(|port| {
            self.host.is_none() && !(self.scheme.is_some_and(|new| new != had) && is_default(had, *port))
        });
        let port = self.port.or(kept).filter(|port| !is_default(scheme, *port));
        let host = self.host.as_deref().unwrap_or(asked.host());
        let path = match &self.path {
            Some(edit) => edit.apply(uri, prefix),
            // `OPTIONS *` has none.
            None => match uri.path_and_query().map_or("/", PathAndQuery::as_str) {
                path if path.starts_with('/') => path.to_owned(),
                _ => "/".to_owned(),
            },
        };
        match port {
            Some(port) => format!("{scheme}://{host}:{port}{path}"),
            None => format!("{scheme}://{host}{path}"),
        }
    }
}

fn is_default(scheme: &str, port: u16) -> bool {
    matches!((scheme, port), ("http", 80) | ("https", 443))
}
