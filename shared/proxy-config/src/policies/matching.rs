use serde::{Deserialize, Serialize};

/// A condition on one header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    pub value: HeaderValueMatch,
}

/// Several values of one header count as one, joined by commas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderValueMatch {
    Exact(String),
    Prefix(String),
    /// The whole value; the syntax is RE2's.
    Regex(String),
    Present,
    Absent,
}
