//! Checks that several kinds share, in Kuma's words.

use crate::duration::PolicyDuration;
use crate::{IntOrString, Violations, labels, names};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Protocols that the tag `kuma.io/protocol` and `appProtocol` may name.
pub(crate) const PROTOCOLS: [&str; 5] = ["grpc", "http", "http2", "kafka", "tcp"];

pub(crate) const MUST_BE_DEFINED: &str = "must be defined";
pub(crate) const MUST_NOT_BE_DEFINED: &str = "must not be defined";
pub(crate) const MUST_NOT_BE_EMPTY: &str = "must not be empty";
/// Of an `IntOrString`.
pub(crate) const NUMBER_EXPECTED: &str = "string must be a valid number";
pub(crate) const NOT_A_PERCENTAGE: &str = "must be in inclusive range [0.0, 100.0]";

pub(crate) fn percentage(path: &str, value: &IntOrString, not_a_number: &str, out: &mut Violations) {
    match value.number() {
        None => out.push(path, not_a_number),
        Some(number) if !(0.0..=100.0).contains(&number) => out.push(path, NOT_A_PERCENTAGE),
        Some(_) => {}
    }
}

/// Whether `text` is a regular expression that can be executed: in linear time, within a bound of memory.
pub(crate) fn regex(path: &str, text: &str, out: &mut Violations) {
    if regex::RegexBuilder::new(text).size_limit(REGEX_BYTES).build().is_err() {
        out.push(path, "invalid regex");
    }
}

/// The same for one that a whole text must match, compiled as proxies do: a comment must not swallow what is put around it.
pub(crate) fn whole_regex(path: &str, text: &str, out: &mut Violations) {
    let mut alone = Violations::default();
    regex(path, text, &mut alone);
    if alone.is_empty() {
        regex(path, &format!("^(?:{text})$"), &mut alone);
    }
    out.extend(alone);
}

/// Of one compiled expression; ten times what usual ones take.
const REGEX_BYTES: usize = 256 * 1024;

/// What Kuma asks of ports in the newer kinds.
pub(crate) const INVALID_PORT: &str = "port must be a valid (1-65535)";

/// What Kuma asks of protobuf kinds' ports.
pub(crate) fn port(path: &str, port: u32, out: &mut Violations) {
    if !is_port(port) {
        out.push(path, "port must be in the range [1, 65535]");
    }
}

pub(crate) fn is_port(port: u32) -> bool {
    (1..=65535).contains(&port)
}

pub(crate) fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || names::is_hostname(text)
}

/// `networking.address` of proxies: one that others can connect to.
pub(crate) fn proxy_address(path: &str, address: &str, out: &mut Violations) {
    if address.is_empty() {
        return out.push(path, "address can't be empty");
    }
    if address == "0.0.0.0" || address == "::" {
        out.push(path, "must not be 0.0.0.0 or ::");
    }
    if !is_address(address) {
        out.push(path, "address has to be valid IP address or domain name");
    }
}

/// Whether `admin` would listen where `port` of `address` does: Kuma's admin interface is on 127.0.0.1.
pub(crate) fn clashes_on_loopback(admin: u32, address: &str, port: u32) -> bool {
    let loopback =
        address.parse::<IpAddr>().is_ok_and(|ip| ip == IpAddr::from([127, 0, 0, 1]) || ip.is_unspecified());
    loopback && admin == port
}

pub(crate) fn one_of(field: &str, values: &[&str]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("{field:?} must be one of [{}]", values.join(", "))
}

/// What is asked of a set of tags.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tags {
    pub(crate) require_service: bool,
    pub(crate) require_any: bool,
    /// The tags select; a value may be `*`.
    pub(crate) selector: bool,
}

impl Tags {
    pub(crate) fn check(self, path: &str, tags: &BTreeMap<String, String>, out: &mut Violations) {
        if self.require_any && tags.is_empty() {
            out.push(path, "must have at least one tag");
        }
        for (name, value) in tags {
            if name.is_empty() {
                out.push(path, "tag name must be non-empty");
            }
            let tag = format!("{path}[{name:?}]");
            if !name.bytes().all(|b| is_tag_byte(b) || b == b'/') {
                out.push(
                    tag.clone(),
                    "tag name must consist of alphanumeric characters, dots, dashes, slashes and underscores",
                );
            }
            if value.is_empty() {
                out.push(tag.clone(), "tag value must be non-empty");
            }
            match self.selector {
                false if !value.bytes().all(is_tag_byte) => out.push(
                    tag,
                    "tag value must consist of alphanumeric characters, dots, dashes and underscores",
                ),
                true if value != "*" && !value.bytes().all(|b| is_tag_byte(b) || b == b'/') => out.push(
                    tag,
                    "tag value must consist of alphanumeric characters, dots, dashes, slashes and underscores or be \"*\"",
                ),
                _ => {}
            }
        }
        if self.require_service && !tags.contains_key(labels::SERVICE) {
            out.push(path, format!("mandatory tag {:?} is missing", labels::SERVICE));
        }
    }
}

fn is_tag_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')
}

/// The tag `kuma.io/protocol`, if it is there.
pub(crate) fn protocol_tag(path: &str, tags: &BTreeMap<String, String>, out: &mut Violations) {
    let name = labels::PROTOCOL;
    if let Some(value) = tags.get(name).filter(|value| !PROTOCOLS.contains(&value.as_str())) {
        let allowed = PROTOCOLS.join(", ");
        out.push(
            format!("{path}[{name:?}]"),
            format!("tag {name:?} has an invalid value {value:?}. Allowed values: {allowed}"),
        );
    }
}

/// A duration that may be zero, which mostly means "never".
pub(crate) fn not_negative(path: &str, value: Option<PolicyDuration>, out: &mut Violations) {
    if value.is_some_and(PolicyDuration::is_negative) {
        out.push(path, "must not be negative when defined");
    }
}

/// A duration that may be left out, but not be zero.
pub(crate) fn positive_duration(path: &str, value: Option<PolicyDuration>, out: &mut Violations) {
    if value.is_some_and(|value| value.get().is_zero()) {
        out.push(path, POSITIVE_WHEN_DEFINED);
    }
}

/// A count that may be left out, but not be zero.
pub(crate) fn positive_count(path: &str, value: Option<u32>, out: &mut Violations) {
    if value == Some(0) {
        out.push(path, GREATER_THAN_ZERO);
    }
}

/// A number within bounds, if there is one.
pub(crate) fn in_range<N: PartialOrd + std::fmt::Display + Copy>(
    path: impl Into<String>,
    value: Option<N>,
    range: std::ops::RangeInclusive<N>,
    out: &mut Violations,
) {
    if value.is_some_and(|value| !range.contains(&value)) {
        out.push(path, format!("must be in inclusive range [{}, {}]", range.start(), range.end()));
    }
}

pub(crate) fn at_least_one(fields: &[&str]) -> String {
    format!("must have at least one defined: {}", fields.join(", "))
}

/// Of `what`, which must say exactly one of these and says none.
pub(crate) fn exactly_one(what: &str, fields: &[&str]) -> String {
    format!("{what} must have exactly one defined: {}", fields.join(", "))
}

/// Of `what`, which must say exactly one of these and says several.
pub(crate) fn only_one(what: &str, fields: &[&str]) -> String {
    format!("{what} must have only one type defined: {}", fields.join(", "))
}

/// A file of the host on which a proxy runs.
pub(crate) fn is_file_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains('\0')
}

pub(crate) const GREATER_THAN_ZERO: &str = "must be greater than 0";
pub(crate) const POSITIVE_WHEN_DEFINED: &str = "must be greater than zero when defined";
