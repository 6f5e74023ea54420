//! Which instance of a service is taken: of which zone first, and by which rule.

mod checks;
mod warnings;

use super::policy::Targeted;
use crate::duration::PolicyDuration;
use crate::enums::text_enum;
use crate::registry::Standing::{Executed, Warned};
use crate::{Flow, IntOrString, Kind, KindInfo, TargetRef, TargetRefs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which instance of a service is taken: of which zone first, and by which rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshLoadBalancingStrategy {
    /// The proxies that call. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality_awareness: Option<LocalityAwareness>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// What RingHash and Maglev choose by. All that a MeshHTTPRoute may be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_policies: Option<Vec<HashPolicy>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LocalityAwareness {
    /// All zones alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_zone: Option<LocalZone>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_zone: Option<CrossZone>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LocalZone {
    /// Instances with the caller's value of a tag are preferred; the first tag is the strongest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_tags: Option<Vec<AffinityTag>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AffinityTag {
    pub key: String,
    /// More than zero; of all tags or of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct CrossZone {
    /// Which zones come after the caller's, in order; a zone that none names gets nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<Vec<Failover>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_threshold: Option<FailoverThreshold>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Failover {
    /// Zones of callers. Unset: every zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<FromZones>,
    pub to: ToZones,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FromZones {
    pub zones: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ToZones {
    #[serde(rename = "type")]
    pub type_: ToZonesType,
    /// Of Only and AnyExcept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<String>>,
}

text_enum! {
    /// Which zones are taken when the caller's can't do it.
    ToZonesType, default ToZonesType::Other(String::new()), {
        None = "None",
        Only = "Only",
        Any = "Any",
        AnyExcept = "AnyExcept",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FailoverThreshold {
    /// Percent of the zone's instances that must be healthy for it to take all traffic; more than zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LoadBalancer {
    #[serde(rename = "type")]
    pub type_: LoadBalancerType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_robin: Option<Plain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_request: Option<LeastRequest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_hash: Option<RingHash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<Plain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maglev: Option<Maglev>,
}

text_enum! {
    /// How an instance is chosen.
    LoadBalancerType, default LoadBalancerType::Other(String::new()), {
        RoundRobin = "RoundRobin",
        LeastRequest = "LeastRequest",
        RingHash = "RingHash",
        Random = "Random",
        Maglev = "Maglev",
    }
}

/// A choice that has nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plain {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LeastRequest {
    /// Of how many instances, drawn by lot, the least busy is taken; at least 2. Unset: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_count: Option<u32>,
    /// How much requests under way count where weights differ; zero: not at all. Unset: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_request_bias: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RingHash {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_function: Option<HashFunction>,
    /// 1 to 8000000. Unset: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ring_size: Option<u32>,
    /// 1 to 8000000, which it is if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ring_size: Option<u32>,
    /// The older place of the policies beside `loadBalancer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_policies: Option<Vec<HashPolicy>>,
}

text_enum! {
    /// What hashes.
    HashFunction, default HashFunction::XxHash, {
        XxHash = "XXHash",
        MurmurHash2 = "MurmurHash2",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Maglev {
    /// A prime, 1 to 5000011. Unset: 65537.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_size: Option<u32>,
    /// The older place of the policies beside `loadBalancer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_policies: Option<Vec<HashPolicy>>,
}

/// What a request's hash is made of: the part that its type names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HashPolicy {
    #[serde(rename = "type")]
    pub type_: HashPolicyType,
    /// If this gives a hash, what follows is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Cookie>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_parameter: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_state: Option<FilterState>,
}

text_enum! {
    /// Where a hash comes from. SourceIP is Connection's older name.
    HashPolicyType, default HashPolicyType::Other(String::new()), {
        Header = "Header",
        Cookie = "Cookie",
        Connection = "Connection",
        SourceIp = "SourceIP",
        QueryParameter = "QueryParameter",
        FilterState = "FilterState",
    }
}

/// A header or a query parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Named {
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Cookie {
    pub name: String,
    /// A cookie that is not there is made, for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<PolicyDuration>,
    /// Of a cookie that is made: begins with `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Connection {
    /// By the caller's address.
    #[serde(rename = "sourceIP", skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FilterState {
    pub key: String,
}

/// A proxy has one ring or table for each destination: beyond so many places (Mersenne's prime 2^17 - 1, half a MiB of a
/// table, two of a ring) the memory of many destinations would pay for evenness that nobody can measure.
pub const LARGEST_TABLE: u32 = 131_071;

/// The size that a Maglev table gets: the next prime, as otherwise instances would not reach every place of it.
pub fn table_size(asked: u32) -> u32 {
    (asked..LARGEST_TABLE).find(|size| is_prime(*size)).unwrap_or(LARGEST_TABLE)
}

fn is_prime(number: u32) -> bool {
    let divisors =
        (2..number).take_while(|divisor| divisor.checked_mul(*divisor).is_some_and(|it| it <= number));
    number > 1 && divisors.into_iter().all(|divisor| !number.is_multiple_of(divisor))
}

const ALIKE: &str = "the instances among which it chooses weigh the same";
const NO_FILTERS: &str = "the proxies have no filters that would set a state: it never gives a hash";

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshloadbalancingstrategies",
    short: "mlbs",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: true, rules: false }),
    doc: "Which instance of a service is taken: of which zone first, and by which rule.",
    fields: &[
        ("targetRef", Executed),
        ("to", Executed),
        ("to[].default.loadBalancer.leastRequest.activeRequestBias", Warned(ALIKE)),
        ("to[].default.loadBalancer.ringHash.hashPolicies[].filterState", Warned(NO_FILTERS)),
        ("to[].default.loadBalancer.maglev.hashPolicies[].filterState", Warned(NO_FILTERS)),
        ("to[].default.hashPolicies[].filterState", Warned(NO_FILTERS)),
    ],
    ..KindInfo::new::<MeshLoadBalancingStrategy>()
};

impl MeshLoadBalancingStrategy {
    pub const KIND: Kind = Kind::new("MeshLoadBalancingStrategy");
}

#[cfg(test)]
mod tests;
