use crate::problem::{Problem, Source};
use crate::request::Asked;
use std::net::IpAddr;

/// What is called, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// As it was written.
    pub(super) asked: String,
    /// Lower case, without a trailing dot.
    pub(super) host: String,
    /// Unset: the destination's only or lowest one.
    pub(super) port: Option<u16>,
    pub(super) path: String,
    pub(super) method: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
}

impl Question {
    pub(super) fn of(asked: &Asked) -> Result<Self, Problem> {
        let given = |name: &str| asked.parameter(name).filter(|value| !value.is_empty());
        let invalid = |field: &str, reason: &str| Problem::invalid(Source::Query, field, reason);
        let wanted = "must be a service, HOST, HOST:PORT or a URL";
        let text = given("destination").ok_or_else(|| invalid("destination", wanted))?;
        let (host, port, path) = destination(text).ok_or_else(|| invalid("destination", wanted))?;
        let path = given("path").map_or(path, str::to_owned);
        if !path.starts_with('/') {
            return Err(invalid("path", "must begin with /"));
        }
        let mut headers = Vec::new();
        for (_, value) in asked.query.iter().filter(|(name, _)| name == "header") {
            let (name, value) =
                value.split_once(':').ok_or_else(|| invalid("header", "must be NAME:VALUE"))?;
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        let method = given("method").unwrap_or("GET").to_ascii_uppercase();
        Ok(Self { asked: text.to_owned(), host, port, path, method, headers })
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether the host is a single word, which is the name of a service.
    pub(super) fn is_word(&self) -> bool {
        !self.host.contains(['.', ':'])
    }

    /// `host:port`, as far as it was said.
    pub(super) fn shown(&self) -> String {
        self.port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }
}

/// Host, port and path.
fn destination(text: &str) -> Option<(String, Option<u16>, String)> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let default = match scheme {
        "" | "tcp" => None,
        "http" | "ws" | "grpc" => Some(80),
        "https" | "wss" => Some(443),
        _ => return None,
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let bare_v6 = authority.parse::<IpAddr>().is_ok();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !bare_v6 && !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let clean = !host.is_empty() && !host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/');
    clean.then(|| (host, port.or(default), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_as_people_write_them() {
        for (text, host, port, path) in [
            ("backend", "backend", None, "/"),
            ("Backend.mesh:80", "backend.mesh", Some(80), "/"),
            ("https://api.example.com/v1/x", "api.example.com", Some(443), "/v1/x"),
            ("http://api.example.com.:8080", "api.example.com", Some(8080), "/"),
            ("192.0.2.1:53", "192.0.2.1", Some(53), "/"),
            ("[2001:db8::1]:53", "2001:db8::1", Some(53), "/"),
            ("2001:db8::1", "2001:db8::1", None, "/"),
        ] {
            let expected = Some((host.to_owned(), port, path.to_owned()));
            assert_eq!(destination(text), expected, "{text}");
        }
        for text in ["", ":80", "a b", "x:y", "x:70000", "ftp://x", "http:///x"] {
            assert_eq!(destination(text), None, "{text}");
        }
    }
}
