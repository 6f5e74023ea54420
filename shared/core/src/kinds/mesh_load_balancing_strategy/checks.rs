//! What makes a MeshLoadBalancingStrategy valid.

use super::{
    AffinityTag, Conf, Failover, FailoverThreshold, HashFunction, HashPolicy, HashPolicyType, LeastRequest,
    LoadBalancer, LoadBalancerType, LocalityAwareness, MeshLoadBalancingStrategy, RingHash, ToZonesType,
    warnings,
};
use crate::kinds::policy;
use crate::validate::{
    self, GREATER_THAN_ZERO, MUST_BE_DEFINED, MUST_NOT_BE_EMPTY, NUMBER_EXPECTED, positive_count,
};
use crate::{Context, IntOrString, Kind, Spec, TargetKind, TargetRef, Violations};

const MAX_RING: u32 = 8_000_000;
const MAX_TABLE: u32 = 5_000_011;

impl Spec for MeshLoadBalancingStrategy {
    const KIND: Kind = MeshLoadBalancingStrategy::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let top = self.target_ref.as_ref();
        policy::check_top(top, &policy::TOP, false, out);
        let gateway = policy::top_kind(top) == TargetKind::MeshGateway;
        for (i, item) in self.to.iter().flatten().enumerate() {
            let path = format!("spec.to[{i}]");
            item.target_ref.check(&format!("{path}.targetRef"), &policy::TO_OR_ROUTE, false, out);
            if gateway && item.target_ref.kind != TargetKind::Mesh && item.default.load_balancer.is_some() {
                // Kuma names the kind of the policy's own reference here.
                out.push(
                    format!("{path}.targetRef.kind"),
                    "value 'MeshGateway' is not supported, only Mesh is allowed if loadBalancer is set",
                );
            }
            item.default.check(&format!("{path}.default"), &item.target_ref, out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        policy::warn_of_destinations(self.to.as_ref(), out);
        warnings::warn(self.to.as_ref(), out);
    }
}

impl Conf {
    fn check(&self, path: &str, to: &TargetRef, out: &mut Violations) {
        let (locality, balancer) = (self.locality_awareness.as_ref(), self.load_balancer.as_ref());
        if to.kind == TargetKind::MeshHttpRoute {
            for (name, given) in
                [("localityAwareness", locality.is_some()), ("loadBalancer", balancer.is_some())]
            {
                if given {
                    out.push(
                        format!("{path}.{name}"),
                        "field is not allowed when targetRef.kind is MeshHTTPRoute, only hashPolicies is supported",
                    );
                }
            }
        } else {
            if let Some(locality) = locality {
                locality.check(&format!("{path}.localityAwareness"), to, out);
            }
            if let Some(balancer) = balancer {
                balancer.check(&format!("{path}.loadBalancer"), out);
            }
        }
        check_hash_policies(path, self.hash_policies.as_ref(), out);
    }
}

impl LocalityAwareness {
    fn check(&self, path: &str, to: &TargetRef, out: &mut Violations) {
        let tags = self.local_zone.iter().filter_map(|zone| zone.affinity_tags.as_ref()).flatten();
        let tags: Vec<&AffinityTag> = tags.collect();
        let weighted = tags.iter().filter(|tag| tag.weight.is_some()).count();
        let tags_path = format!("{path}.localZone.affinityTags");
        for (i, tag) in tags.iter().enumerate() {
            if tag.key.is_empty() {
                out.push(format!("{tags_path}[{i}].key"), MUST_NOT_BE_EMPTY);
            }
            positive_count(&format!("{tags_path}[{i}].weight"), tag.weight, out);
        }
        if weighted > 0 && weighted < tags.len() {
            out.push(tags_path, "all or none affinity tags should have weight");
        }
        let Some(cross_zone) = &self.cross_zone else { return };
        let path = format!("{path}.crossZone");
        if to.kind == TargetKind::MeshService && (to.has_labels() || to.section_name().is_some()) {
            // So named it is one zone's MeshService; by its name alone it may be all that share the name.
            out.push(path.as_str(), "must not be set: MeshService traffic is local");
        }
        for (i, failover) in cross_zone.failover.iter().flatten().enumerate() {
            failover.check(&format!("{path}.failover[{i}]"), out);
        }
        if let Some(threshold) = &cross_zone.failover_threshold {
            threshold.check(&format!("{path}.failoverThreshold.percentage"), out);
        }
    }
}

impl Failover {
    fn check(&self, path: &str, out: &mut Violations) {
        if let Some(from) = &self.from {
            let path = format!("{path}.from.zones");
            if from.zones.is_empty() {
                out.push(path.as_str(), MUST_NOT_BE_EMPTY);
            }
            check_zones(&path, &from.zones, out);
        }
        let zones = self.to.zones.as_deref().unwrap_or_default();
        let path = format!("{path}.to");
        match &self.to.type_ {
            ToZonesType::Other(_) => {
                out.push(format!("{path}.type"), validate::one_of("type", ToZonesType::VALUES));
            }
            ToZonesType::None | ToZonesType::Any if !zones.is_empty() => {
                out.push(format!("{path}.zones"), format!("must be empty when type is {}", self.to.type_));
            }
            ToZonesType::Only | ToZonesType::AnyExcept if zones.is_empty() => {
                out.push(
                    format!("{path}.zones"),
                    format!("must not be empty when type is {}", self.to.type_),
                );
            }
            ToZonesType::Only | ToZonesType::AnyExcept => check_zones(&format!("{path}.zones"), zones, out),
            ToZonesType::None | ToZonesType::Any => {}
        }
    }
}

fn check_zones(path: &str, zones: &[String], out: &mut Violations) {
    for (i, _) in zones.iter().enumerate().filter(|(_, zone)| zone.is_empty()) {
        out.push(format!("{path}[{i}]"), MUST_NOT_BE_EMPTY);
    }
}

impl FailoverThreshold {
    fn check(&self, path: &str, out: &mut Violations) {
        let percentage = self.percentage.clone().unwrap_or(IntOrString::Int(0));
        if percentage.number().is_some_and(|number| number <= 0.0) {
            return out.push(path, GREATER_THAN_ZERO);
        }
        validate::percentage(path, &percentage, NUMBER_EXPECTED, out);
    }
}

impl LoadBalancer {
    fn check(&self, path: &str, out: &mut Violations) {
        if !self.type_.is_known() {
            out.push(format!("{path}.type"), validate::one_of("type", LoadBalancerType::VALUES));
        }
        if let Some(least) = &self.least_request {
            least.check(&format!("{path}.leastRequest"), out);
        }
        if let Some(ring) = &self.ring_hash {
            ring.check(&format!("{path}.ringHash"), out);
        }
        if let Some(maglev) = &self.maglev {
            let path = format!("{path}.maglev");
            validate::in_range(format!("{path}.tableSize"), maglev.table_size, 1..=MAX_TABLE, out);
            check_hash_policies(&path, maglev.hash_policies.as_ref(), out);
        }
    }
}

impl LeastRequest {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.choice_count.is_some_and(|count| count < 2) {
            out.push(format!("{path}.choiceCount"), "must be greater than: 1");
        }
        let path = format!("{path}.activeRequestBias");
        match self.active_request_bias.as_ref().map(IntOrString::number) {
            Some(None) => out.push(path, NUMBER_EXPECTED),
            Some(Some(bias)) if bias < 0.0 => out.push(path, "must be greater or equal then: 0"),
            _ => {}
        }
    }
}

impl RingHash {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.hash_function.as_ref().is_some_and(|function| !function.is_known()) {
            out.push(format!("{path}.hashFunction"), validate::one_of("hashFunction", HashFunction::VALUES));
        }
        validate::in_range(format!("{path}.minRingSize"), self.min_ring_size, 1..=MAX_RING, out);
        validate::in_range(format!("{path}.maxRingSize"), self.max_ring_size, 1..=MAX_RING, out);
        if let (Some(min), Some(max)) = (self.min_ring_size, self.max_ring_size)
            && min > max
        {
            out.push(format!("{path}.minRingSize"), "must not be greater than maxRingSize");
        }
        check_hash_policies(path, self.hash_policies.as_ref(), out);
    }
}

fn check_hash_policies(path: &str, policies: Option<&Vec<HashPolicy>>, out: &mut Violations) {
    for (i, policy) in policies.into_iter().flatten().enumerate() {
        policy.check(&format!("{path}.hashPolicies[{i}]"), out);
    }
}

impl HashPolicy {
    fn check(&self, path: &str, out: &mut Violations) {
        let (field, given) = match &self.type_ {
            HashPolicyType::Header => ("header", self.header.is_some()),
            HashPolicyType::Cookie => ("cookie", self.cookie.is_some()),
            HashPolicyType::Connection | HashPolicyType::SourceIp => {
                ("connection", self.connection.is_some())
            }
            HashPolicyType::QueryParameter => ("queryParameter", self.query_parameter.is_some()),
            HashPolicyType::FilterState => ("filterState", self.filter_state.is_some()),
            HashPolicyType::Other(_) => {
                return out.push(format!("{path}.type"), validate::one_of("type", HashPolicyType::VALUES));
            }
        };
        if !given {
            out.push(format!("{path}.{field}"), MUST_BE_DEFINED);
        }
        let names = [
            ("header.name", self.header.as_ref().map(|header| &header.name)),
            ("cookie.name", self.cookie.as_ref().map(|cookie| &cookie.name)),
            ("queryParameter.name", self.query_parameter.as_ref().map(|parameter| &parameter.name)),
            ("filterState.key", self.filter_state.as_ref().map(|state| &state.key)),
        ];
        for (field, _) in names.iter().filter(|(_, name)| name.is_some_and(String::is_empty)) {
            out.push(format!("{path}.{field}"), MUST_NOT_BE_EMPTY);
        }
        let tokens = [
            ("header.name", self.header.as_ref().map(|header| &header.name)),
            ("cookie.name", self.cookie.as_ref().map(|cookie| &cookie.name)),
        ];
        for (field, _) in tokens.iter().filter(|(_, name)| name.is_some_and(|name| !is_token(name))) {
            out.push(format!("{path}.{field}"), "must be a token: letters, digits and !#$%&'*+-.^_`|~");
        }
        let cookie_path = self.cookie.as_ref().and_then(|cookie| cookie.path.as_deref());
        if cookie_path.is_some_and(|cookie_path| !cookie_path.starts_with('/')) {
            out.push(format!("{path}.cookie.path"), "must be an absolute path");
        }
        if cookie_path.is_some_and(|cookie_path| !cookie_path.bytes().all(is_of_cookie)) {
            out.push(format!("{path}.cookie.path"), "must be of printable ASCII, without a semicolon");
        }
    }
}

/// An HTTP token (RFC 9110); an empty one has its own reason.
fn is_token(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// What an attribute of a cookie may be made of (RFC 6265): it would end, or begin a header of its own, elsewhere.
fn is_of_cookie(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b';'
}
