//! Names and addresses as outsiders write them, in the one form that may be compared.
//!
//! SNI, Host, `:authority`, a preface and a DNS question all name a destination; whether two of them are equal decides
//! what gets out. So each is parsed into a [`HostName`] or an address here, and nothing compares raw text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Longest DNS name in text, without the trailing dot (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 253;

/// A DNS name: lower case, no trailing dot, at most 253 bytes, and never something that reads as an IPv4 address.
///
/// Underscores are taken: they are in use (`_dmarc`, buckets), and refusing them would only break what works.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

/// What somebody asked for: a name or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asked {
    Name(HostName),
    Ip(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("empty name")]
    Empty,
    #[error("name longer than {MAX_NAME} bytes")]
    TooLong,
    #[error("not a DNS name")]
    Invalid,
    #[error("an address where a name is wanted")]
    Address,
    #[error("invalid port")]
    Port,
}

impl HostName {
    /// Normalises case and one trailing dot.
    pub fn parse(text: &[u8]) -> Result<Self, HostError> {
        let text = text.strip_suffix(b".").unwrap_or(text);
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > MAX_NAME {
            return Err(HostError::TooLong);
        }
        let text = std::str::from_utf8(text).map_err(|_| HostError::Invalid)?.to_ascii_lowercase();
        if !text.split('.').all(is_label) {
            return Err(HostError::Invalid);
        }
        // "127.1" and "0x7f.1" are addresses to some resolvers: a name never ends in a number (WHATWG URL, "ends in
        // a number"), so neither may get past a check for addresses.
        if text.rsplit('.').next().is_some_and(is_number) {
            return Err(HostError::Address);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl FromStr for Asked {
    type Err = HostError;

    /// A name or an address; IPv6 with or without brackets.
    fn from_str(text: &str) -> Result<Self, HostError> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(inside) = bare {
            return inside
                .parse::<Ipv6Addr>()
                .map(|ip| Self::Ip(canonical(ip.into())))
                .map_err(|_| HostError::Invalid);
        }
        match text.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::Ip(canonical(ip))),
            Err(_) => HostName::parse(text.as_bytes()).map(Self::Name),
        }
    }
}

impl Asked {
    /// Reads `host[:port]` as in Host and `:authority`. User information is refused: it is no part of either.
    pub fn from_authority(text: &str) -> Result<(Self, Option<u16>), HostError> {
        if text.contains('@') {
            return Err(HostError::Invalid);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        // Without brackets an IPv6 address and a port can't be told apart.
        if host.contains(':') && !host.starts_with('[') {
            return Err(HostError::Invalid);
        }
        let port = port.filter(|port| !port.is_empty()).map(parse_port).transpose()?;
        Ok((host.parse()?, port))
    }
}

/// IPv4-mapped IPv6 as IPv4, so that one address has one form.
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn parse_port(text: &str) -> Result<u16, HostError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostError::Port);
    }
    text.parse().map_err(|_| HostError::Port)
}

fn is_label(part: &str) -> bool {
    (1..=63).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !part.starts_with('-')
        && !part.ends_with('-')
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    hex || label.bytes().all(|b| b.is_ascii_digit()) || label.parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Result<String, HostError> {
        HostName::parse(text.as_bytes()).map(|name| name.to_string())
    }

    #[test]
    fn case_and_one_trailing_dot_do_not_matter() {
        assert_eq!(name("API.Example.COM."), Ok("api.example.com".into()));
        assert_eq!(name("a..example"), Err(HostError::Invalid));
        assert_eq!(name("a.example.."), Err(HostError::Invalid));
        assert_eq!(name("."), Err(HostError::Empty));
    }

    #[test]
    fn what_reads_as_an_address_is_no_name() {
        for text in ["127.0.0.1", "127.1", "0x7f000001", "1", "example.0x1", "example.42"] {
            assert_eq!(name(text), Err(HostError::Address), "{text}");
        }
        assert_eq!(name("::1"), Err(HostError::Invalid));
        assert_eq!(name("1.example.x1"), Ok("1.example.x1".into()));
    }

    #[test]
    fn odd_bytes_are_refused() {
        for text in ["a b", "a\0b", "exämple", "-a", "a-", "a/b", "*.example.com", "a:80"] {
            assert_eq!(name(text), Err(HostError::Invalid), "{text}");
        }
        assert_eq!(name(&"a".repeat(64)), Err(HostError::Invalid));
        assert_eq!(name(&["abc"; 80].join(".")), Err(HostError::TooLong));
    }

    #[test]
    fn authorities() {
        let read = |text| Asked::from_authority(text).map(|(asked, port)| (asked.to_string(), port));
        assert_eq!(read("Example.com:8080"), Ok(("example.com".into(), Some(8080))));
        assert_eq!(read("example.com."), Ok(("example.com".into(), None)));
        assert_eq!(read("example.com:"), Ok(("example.com".into(), None)));
        assert_eq!(read("[2001:DB8::1]:443"), Ok(("2001:db8::1".into(), Some(443))));
        assert_eq!(read("[::ffff:10.0.0.1]"), Ok(("10.0.0.1".into(), None)));
        for bad in
            ["2001:db8::1", "user@example.com", "example.com:+80", "example.com:99999", "", ":80", "[::1"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_its_own_normal_form(text in "[a-zA-Z0-9_.-]{0,80}") {
            if let Ok(name) = HostName::parse(text.as_bytes()) {
                prop_assert_eq!(HostName::parse(name.as_str().as_bytes()), Ok(name.clone()));
                prop_assert!(name.as_str().parse::<IpAddr>().is_err());
            }
        }
    }
}
