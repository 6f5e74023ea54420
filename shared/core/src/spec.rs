use crate::{Key, Kind, Violations};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// What surrounds a spec while it is checked.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub key: &'a Key,
    pub labels: &'a BTreeMap<String, String>,
}

/// The typed body of one kind.
///
/// Order of a check: the document's shape (unknown fields, wrong types), then [`Spec::complete`], then
/// [`Spec::validate`]; the result of serialising it again is what is stored.
pub trait Spec: Serialize + DeserializeOwned + JsonSchema {
    const KIND: Kind;

    /// Fills in what the user left out and is stored nevertheless; says so in `warnings` where it may surprise.
    fn complete(&mut self, _context: &Context<'_>, _warnings: &mut Vec<String>) {}

    /// Adds all that is wrong, not only the first.
    fn validate(&self, context: &Context<'_>, out: &mut Violations);

    /// What is accepted, but deserves a word: beyond what [`crate::Standing`] says of single fields.
    fn warnings(&self, _context: &Context<'_>, _out: &mut Vec<String>) {}
}
