//! A kind of our own: Kuma has nothing that looks into requests.

use super::policy::{self, PlainRule};
use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What requests to the selected proxies must not contain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshRequestFilter {
    /// The proxies called. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<PlainRule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// Built-in rules. Unset: `log4shell`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_sets: Option<Vec<RuleSet>>,
    /// At most 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patterns: Option<Vec<Pattern>>,
    /// What becomes of a request in which something is found. Unset: Block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What a blocked request is answered with, 400 to 599. Unset: 403.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
}

/// A regular expression that a part of a request must not match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Pattern {
    /// What reports call it.
    pub name: String,
    /// Matches anywhere in the text; case counts unless `(?i)` says otherwise.
    pub regex: String,
    /// Where it is looked for. Unset: everywhere.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub places: Option<Vec<Place>>,
}

/// How bodies are examined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Body {
    /// Of a body, or of each gRPC message, decompressed: so much is examined, up to 64 MiB. Unset: 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// What becomes of a body that can't be examined: longer than `maxBytes`, of an unknown encoding, damaged. Unset: as
    /// `action`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_limit: Option<Action>,
}

text_enum! {
    /// Rules that come with the proxy. `log4shell`: lookups of log4j that reach out, however they are spelled.
    RuleSet, default RuleSet::Other(String::new()), {
        Log4shell = "log4shell",
    }
}

text_enum! {
    /// Block: the request ends there. Observe: it is counted and reported, and passes.
    Action, default Action::Block, {
        Block = "Block",
        Observe = "Observe",
    }
}

text_enum! {
    /// A part of a request.
    Place, default Place::Other(String::new()), {
        Path = "Path",
        Query = "Query",
        HeaderNames = "HeaderNames",
        Headers = "Headers",
        Body = "Body",
        Trailers = "Trailers",
    }
}

/// Each is run over each part of a request: what they cost together stays below what the proxy itself does.
pub const MAX_PATTERNS: usize = 16;
/// Bytes; known signatures are below 200.
pub const MAX_REGEX: usize = 1024;
/// Bytes; it appears in reports.
const MAX_NAME: usize = 63;

pub const DEFAULT_STATUS: u16 = 403;
/// What is logged of a request is far below; common servers (nginx) take no larger bodies either unless told to.
pub const DEFAULT_MAX_BYTES: u64 = 1 << 20;
/// What is longer is a file rather than a document; examining it would cost more than it tells.
pub const MAX_MAX_BYTES: u64 = 64 << 20;

/// A workload's requests are its own proxy's to filter.
const TOP: [TargetKind; 2] = [TargetKind::Mesh, TargetKind::Dataplane];

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshrequestfilters",
    short: "mrf",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: false, rules: true }),
    doc: "What requests to the selected proxies must not contain.",
    fields: &[("targetRef", Executed), ("rules", Executed)],
    ..KindInfo::new::<MeshRequestFilter>()
};

impl MeshRequestFilter {
    pub const KIND: Kind = Kind::new("MeshRequestFilter");
}

impl Spec for MeshRequestFilter {
    const KIND: Kind = MeshRequestFilter::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        policy::check_top(self.target_ref.as_ref(), &TOP, true, out);
        if self.rules.as_ref().is_none_or(Vec::is_empty) {
            out.push("spec.rules", validate::MUST_BE_DEFINED);
        }
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            rule.default.check(&format!("spec.rules[{i}].default"), out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
    }
}

impl Conf {
    fn check(&self, path: &str, out: &mut Violations) {
        let (sets, patterns) = (self.rule_sets.as_deref(), self.patterns.as_deref().unwrap_or_default());
        if sets.is_some_and(<[_]>::is_empty) && patterns.is_empty() {
            out.push(path, "at least one of: 'ruleSets' or 'patterns' should be configured");
        }
        for (i, set) in sets.into_iter().flatten().enumerate() {
            if !set.is_known() {
                out.push(format!("{path}.ruleSets[{i}]"), validate::one_of("ruleSets", RuleSet::VALUES));
            }
        }
        check_patterns(&format!("{path}.patterns"), patterns, out);
        check_action(&format!("{path}.action"), "action", self.action.as_ref(), out);
        validate::in_range(format!("{path}.status"), self.status, 400..=599, out);
        if let Some(body) = &self.body {
            check_action(&format!("{path}.body.onLimit"), "onLimit", body.on_limit.as_ref(), out);
            validate::in_range(format!("{path}.body.maxBytes"), body.max_bytes, 1..=MAX_MAX_BYTES, out);
        }
    }
}

fn check_action(path: &str, field: &str, action: Option<&Action>, out: &mut Violations) {
    if action.is_some_and(|action| !action.is_known()) {
        out.push(path, validate::one_of(field, Action::VALUES));
    }
}

fn check_patterns(path: &str, patterns: &[Pattern], out: &mut Violations) {
    if patterns.len() > MAX_PATTERNS {
        out.push(path, format!("must have at most {MAX_PATTERNS} items"));
    }
    let mut names = BTreeSet::new();
    for (i, pattern) in patterns.iter().enumerate() {
        let path = format!("{path}[{i}]");
        pattern.check(&path, out);
        if !names.insert(&pattern.name) {
            out.push(format!("{path}.name"), format!("name {:?} is already defined", pattern.name));
        }
    }
}

impl Pattern {
    fn check(&self, path: &str, out: &mut Violations) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if self.name.is_empty() {
            out.push(format!("{path}.name"), validate::MUST_NOT_BE_EMPTY);
        } else if self.name.len() > MAX_NAME || !self.name.bytes().all(plain) {
            let reason = format!(
                "must consist of at most {MAX_NAME} alphanumeric characters, dots, dashes and underscores"
            );
            out.push(format!("{path}.name"), reason);
        }
        let regex = format!("{path}.regex");
        match self.regex.len() {
            0 => out.push(regex, validate::MUST_NOT_BE_EMPTY),
            1..=MAX_REGEX => validate::regex(&regex, &self.regex, out),
            _ => out.push(regex, format!("must be at most {MAX_REGEX} bytes long")),
        }
        if self.places.as_ref().is_some_and(Vec::is_empty) {
            out.push(format!("{path}.in"), validate::MUST_NOT_BE_EMPTY);
        }
        for (i, place) in self.places.iter().flatten().enumerate() {
            if !place.is_known() {
                out.push(format!("{path}.in[{i}]"), validate::one_of("in", Place::VALUES));
            }
        }
    }
}
