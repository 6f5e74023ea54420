use super::unset;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// How an endpoint of a destination is chosen: of which endpoints first, and by which rule among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Balancing {
    #[serde(skip_serializing_if = "unset")]
    pub locality: Locality,
    #[serde(skip_serializing_if = "unset")]
    pub balancer: Balancer,
    /// What a hash is made of, for those balancers that go by one; in this order. Without a hash they go by lot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hash: Vec<HashPolicy>,
}

/// Which endpoints come first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Locality {
    /// As the destination's tiers are; the next one only when nothing of the one before is usable.
    #[default]
    Tiers,
    /// All alike, whatever their zone.
    Alike,
    Zones(ByZone),
}

/// The caller's zone first, then others by rules. Of a destination that is one zone's, only `affinity` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ByZone {
    /// In the caller's zone: an endpoint belongs to the first of these tags of which it has a value of the caller's;
    /// those that belong to none weigh 1 together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<Affinity>,
    /// Other zones: a zone belongs to the first rule that takes it, and comes when those before have too few usable
    /// endpoints. A zone that no rule takes is not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Failover>,
    /// Hundredths of a percent, 1 to 10,000: with a smaller share of usable endpoints, a tier takes only its share of
    /// this share, and the rest goes to the next tiers.
    pub enough: u32,
}

/// The weight of all endpoints together that belong to a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Affinity {
    pub tag: String,
    pub weight: NonZeroU32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Failover {
    /// Zones of callers for whom the rule is. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    pub to: Zones,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Zones {
    Any,
    Only(Vec<String>),
    AnyExcept(Vec<String>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Balancer {
    #[default]
    RoundRobin,
    Random,
    /// Of so many endpoints, drawn by lot, the one with the fewest requests (or connections) under way.
    LeastRequest {
        choices: NonZeroU32,
    },
    /// The next point on a ring. `min_size`: points at least, `max_size`: at most; the proxy has a bound of its own.
    RingHash {
        function: HashFunction,
        min_size: NonZeroU32,
        max_size: NonZeroU32,
    },
    /// `size`: a prime; the proxy has a bound of its own.
    Maglev {
        size: NonZeroU32,
    },
}

/// Places the points of a ring. What is asked for on the ring is always hashed by `Xx`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashFunction {
    #[default]
    Xx,
    Murmur2,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HashPolicy {
    pub source: HashSource,
    /// Once there is a hash, the policies after this one are not asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

/// Connections that are not HTTP have only a source address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum HashSource {
    /// By its name in lower case.
    Header(String),
    Cookie {
        name: String,
        /// Set: a cookie that is not there is made and given to the client, for so long; 0: until it is closed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        made_for_seconds: Option<u64>,
        /// Of a cookie that is made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    SourceIp,
    QueryParameter(String),
}
