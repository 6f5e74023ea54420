//! URLs as fields of policies have them: Kuma asks less of them than RFC 3986, and takes `HOST:PORT` too.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The parts of a URL, or of a host and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Url<'a> {
    /// Empty if there is none.
    pub(crate) scheme: &'a str,
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
    /// All that follows, with its `/`, `?` or `#`.
    pub(crate) path: &'a str,
}

const SCHEMES: [&str; 8] = ["", "ftp", "tcp", "udp", "ws", "wss", "http", "https"];

impl<'a> Url<'a> {
    /// `None` for what Kuma takes for no URL; among these is a single word, without scheme, port and dot.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
        let (host, port) = host_and_port(authority)?;
        let bare = scheme.is_empty() && port.is_none() && !host.contains('.');
        let known = SCHEMES.contains(&scheme);
        let clean = !text.chars().any(|c| c.is_whitespace() || c.is_control());
        (known && clean && !bare).then_some(Self { scheme, host, port, path })
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]:PORT`; the host is an address or a name.
pub(crate) fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (text, None),
    };
    is_host(host).then_some((host, port))
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
    };
    host.parse::<Ipv4Addr>().is_ok() || host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_parts() {
        let of = |text| Url::parse(text).map(|url| (url.scheme, url.host, url.port, url.path));
        assert_eq!(of("http://a.b-c:9411/api/v2?x=1"), Some(("http", "a.b-c", Some(9411), "/api/v2?x=1")));
        assert_eq!(of("logs:5000"), Some(("", "logs", Some(5000), "")));
        assert_eq!(of("tcp://[2001:db8::1]:80"), Some(("tcp", "[2001:db8::1]", Some(80), "")));
        assert_eq!(of("https://me:secret@192.0.2.1"), Some(("https", "192.0.2.1", None, "")));
        assert_eq!(of("example.com"), Some(("", "example.com", None, "")));
    }

    #[test]
    fn what_is_no_url() {
        for text in [
            "",
            "word",
            "not_valid_url",
            "http://",
            "http://a:port",
            "http://a:65536",
            "gopher://a.b",
            "http://a b",
            "http://a..b",
            "http://a/x y",
            "http://[::1",
            "http://2001:db8::1/",
            "#x",
            "/x.y",
        ] {
            assert_eq!(Url::parse(text), None, "{text:?}");
        }
    }
}
