//! Headers as several policies match and modify them.

use crate::Violations;
use crate::enums::text_enum;
use crate::validate::{self, MUST_NOT_BE_EMPTY};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A condition on one header.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HeaderMatch {
    /// Unset: Exact.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<HeaderMatchType>,
    /// In lower case.
    pub name: String,
    /// Of all types but Present and Absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

text_enum! {
    /// How a header is compared.
    HeaderMatchType, default HeaderMatchType::Exact, {
        Exact = "Exact",
        Present = "Present",
        RegularExpression = "RegularExpression",
        Absent = "Absent",
        Prefix = "Prefix",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HeaderKeyValue {
    pub name: String,
    pub value: String,
}

/// Headers to give a request or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HeadersToAdd {
    /// Replaces what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<HeaderKeyValue>>,
    /// Beside what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<Vec<HeaderKeyValue>>,
}

impl HeaderMatch {
    pub(crate) fn check(&self, path: &str, out: &mut Violations) {
        check_header_name(&format!("{path}.name"), &self.name, out);
        if self.type_.as_ref().is_some_and(|type_| !type_.is_known()) {
            out.push(format!("{path}.type"), validate::one_of("type", HeaderMatchType::VALUES));
        }
        if self.type_ == Some(HeaderMatchType::RegularExpression) {
            let pattern = self.value.as_deref().unwrap_or_default();
            validate::whole_regex(&format!("{path}.value"), pattern, out);
        }
    }
}

/// Checks conditions on headers: at most 16, since each may hold a compiled pattern.
pub(crate) fn check_matches(path: &str, matches: &[HeaderMatch], out: &mut Violations) {
    if matches.len() > MAX_ITEMS {
        return out.push(path, format!("must have at most {MAX_ITEMS} items"));
    }
    for (i, matched) in matches.iter().enumerate() {
        matched.check(&format!("{path}[{i}]"), out);
    }
}

/// Headers that belong to a connection, to the form of the body, or to whom a request is for: changed, they would let two
/// servers understand one message in two ways. No policy changes them.
const OF_CONNECTION: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header (in lower case) is none for a policy to change.
pub fn is_of_connection(name: &str) -> bool {
    OF_CONNECTION.contains(&name)
}

/// Checks lists of headers to set or add, and names to remove: at most 16 a list, no name in two places.
pub(crate) fn check_modifier(
    path: &str,
    lists: &[(&'static str, &[HeaderKeyValue])],
    remove: &[String],
    out: &mut Violations,
) {
    let mut seen = BTreeSet::new();
    let mut check_name = |path: String, name: &str, out: &mut Violations| {
        check_header_name(&path, name, out);
        if !seen.insert(name.to_ascii_lowercase()) {
            out.push(path, "duplicate header name");
        }
    };
    let lengths =
        lists.iter().map(|(list, headers)| (*list, headers.len())).chain([("remove", remove.len())]);
    for (list, _) in lengths.filter(|(_, length)| *length > MAX_ITEMS) {
        out.push(format!("{path}.{list}"), format!("must have at most {MAX_ITEMS} items"));
    }
    for (list, headers) in lists {
        for (i, header) in headers.iter().enumerate() {
            check_name(format!("{path}.{list}[{i}].name"), &header.name, out);
            check_value(&format!("{path}.{list}[{i}].value"), &header.value, out);
        }
    }
    for (i, name) in remove.iter().enumerate() {
        check_name(format!("{path}.remove[{i}]"), name, out);
    }
}

/// A value that a header can have: one that ends the line would write headers of its own.
fn check_value(path: &str, value: &str, out: &mut Violations) {
    if value.bytes().any(|b| b != b'\t' && b.is_ascii_control()) {
        out.push(path, "must not hold control characters");
    }
}

/// In Kuma's CRDs.
const MAX_ITEMS: usize = 16;
const MAX_NAME: usize = 256;

/// A header's name: RFC 9110's token, in lower case as HTTP/2 has it.
pub(crate) fn check_header_name(path: &str, name: &str, out: &mut Violations) {
    let is_token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() {
        out.push(path, MUST_NOT_BE_EMPTY);
    } else if name.len() > MAX_NAME || !name.bytes().all(is_token) {
        out.push(path, "must be a header's name in lower case, of at most 256 characters");
    }
}
