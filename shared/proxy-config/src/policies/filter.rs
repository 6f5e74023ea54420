use serde::{Deserialize, Serialize};

/// What requests must not contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestFilter {
    /// The policy that reports name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule_sets: Vec<RuleSet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<FilterPattern>,
    pub action: FilterAction,
    /// Of a blocked request's answer.
    pub status: u16,
    /// Of a body, or of each gRPC message, decompressed.
    pub max_body_bytes: u64,
    /// For bodies that can't be examined.
    pub on_limit: FilterAction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleSet {
    /// Lookups of log4j that reach out.
    Log4shell,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FilterPattern {
    pub name: String,
    /// Anywhere in the text; the syntax is RE2's.
    pub regex: String,
    #[serde(rename = "in")]
    pub places: Vec<RequestPart>,
}

/// A part of a request that is a text of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RequestPart {
    Path,
    Query,
    HeaderNames,
    /// Each header's value, and the authority.
    Headers,
    Body,
    /// Names and values.
    Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FilterAction {
    Block,
    /// Counted and reported, but let through.
    Observe,
}
