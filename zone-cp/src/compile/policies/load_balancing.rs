use meridian_core::kinds::mesh_load_balancing_strategy::{
    AffinityTag, Conf, CrossZone, Failover as Rule, HashFunction as Function, HashPolicy as Hashed,
    HashPolicyType, LoadBalancer, LoadBalancerType, LocalityAwareness, ToZonesType, table_size,
};
use meridian_proxy_config::{
    Affinity, Balancer, ByZone, DestinationPolicies, Failover, HashFunction, HashPolicy, HashSource,
    Locality, Zones,
};
use std::num::NonZeroU32;

/// Kuma's: with half of its endpoints a zone still takes everything. In hundredths of a percent.
const ENOUGH: u32 = 5_000;
/// Kuma's: the last of the tags weighs so much, each one before it ten times as much; what belongs to none weighs 1.
const LAST_WEIGHT: u32 = 9;
// Envoy's, where Kuma says nothing of its own.
const CHOICES: u32 = 2;
const LEAST_RING: u32 = 1_024;
const LARGEST_RING: u32 = 8_000_000;
const TABLE: u32 = 65_537;

/// MeshLoadBalancingStrategy towards a destination.
pub(crate) fn destination(conf: &Conf, into: &mut DestinationPolicies) {
    let balancer = conf.load_balancer.as_ref();
    let into = &mut into.balancing;
    into.locality = conf.locality_awareness.as_ref().map(locality).unwrap_or_default();
    into.balancer = balancer.map(chosen).unwrap_or_default();
    let hashes = conf.hash_policies.as_ref().or_else(|| older_place(balancer?));
    into.hash = hashes.into_iter().flatten().filter_map(hash).collect();
}

fn locality(conf: &LocalityAwareness) -> Locality {
    if conf.disabled == Some(true) {
        return Locality::Alike;
    }
    if conf.local_zone.is_none() && conf.cross_zone.is_none() {
        return Locality::Tiers;
    }
    let tags = conf.local_zone.as_ref().and_then(|zone| zone.affinity_tags.as_deref()).unwrap_or_default();
    let rules = conf.cross_zone.as_ref().and_then(|zones| zones.failover.as_deref()).unwrap_or_default();
    Locality::Zones(ByZone {
        affinity: affinity(tags),
        failover: rules.iter().filter_map(failover).collect(),
        enough: conf.cross_zone.as_ref().and_then(enough).unwrap_or(ENOUGH),
    })
}

fn affinity(tags: &[AffinityTag]) -> Vec<Affinity> {
    let weight = |(after, tag): (u32, &AffinityTag)| {
        let usual = 10_u32.saturating_pow(after).saturating_mul(LAST_WEIGHT);
        let weight = NonZeroU32::new(tag.weight.unwrap_or(usual))?;
        Some(Affinity { tag: tag.key.clone(), weight })
    };
    let mut affinity: Vec<Affinity> = (0..).zip(tags.iter().rev()).filter_map(weight).collect();
    affinity.reverse();
    affinity
}

/// None of a rule that takes no zone.
fn failover(rule: &Rule) -> Option<Failover> {
    let zones = || rule.to.zones.clone().unwrap_or_default();
    let to = match rule.to.type_ {
        ToZonesType::Any => Zones::Any,
        ToZonesType::Only => Zones::Only(zones()),
        ToZonesType::AnyExcept => Zones::AnyExcept(zones()),
        ToZonesType::None | ToZonesType::Other(_) => return None,
    };
    Some(Failover { from: rule.from.as_ref().map(|from| from.zones.clone()).unwrap_or_default(), to })
}

fn enough(zones: &CrossZone) -> Option<u32> {
    let percent = zones.failover_threshold.as_ref()?.percentage.as_ref()?.number()?;
    // In range by its check; the cast saturates.
    Some(((percent * 100.0).round() as u32).clamp(1, 10_000))
}

fn chosen(conf: &LoadBalancer) -> Balancer {
    let count =
        |given: Option<u32>, usual: u32| NonZeroU32::new(given.unwrap_or(usual)).unwrap_or(NonZeroU32::MIN);
    match conf.type_ {
        LoadBalancerType::RoundRobin | LoadBalancerType::Other(_) => Balancer::RoundRobin,
        LoadBalancerType::Random => Balancer::Random,
        LoadBalancerType::LeastRequest => {
            let choices = conf.least_request.as_ref().and_then(|least| least.choice_count);
            Balancer::LeastRequest { choices: count(choices, CHOICES) }
        }
        LoadBalancerType::RingHash => {
            let ring = conf.ring_hash.clone().unwrap_or_default();
            let function = match ring.hash_function {
                Some(Function::MurmurHash2) => HashFunction::Murmur2,
                None | Some(Function::XxHash | Function::Other(_)) => HashFunction::Xx,
            };
            let max_size = count(ring.max_ring_size, LARGEST_RING);
            // A largest size below what is usual at least is what the user gave.
            let min_size = count(ring.min_ring_size, LEAST_RING).min(max_size);
            Balancer::RingHash { function, min_size, max_size }
        }
        LoadBalancerType::Maglev => {
            let size = conf.maglev.as_ref().and_then(|maglev| maglev.table_size);
            Balancer::Maglev { size: count(size.map(table_size), TABLE) }
        }
    }
}

/// Where hash policies stood before they came to stand beside `loadBalancer`.
fn older_place(conf: &LoadBalancer) -> Option<&Vec<Hashed>> {
    match conf.type_ {
        LoadBalancerType::RingHash => conf.ring_hash.as_ref()?.hash_policies.as_ref(),
        LoadBalancerType::Maglev => conf.maglev.as_ref()?.hash_policies.as_ref(),
        _ => None,
    }
}

/// None of what never gives a hash.
fn hash(conf: &Hashed) -> Option<HashPolicy> {
    let source = match conf.type_ {
        HashPolicyType::Header => HashSource::Header(conf.header.as_ref()?.name.to_ascii_lowercase()),
        HashPolicyType::QueryParameter => {
            HashSource::QueryParameter(conf.query_parameter.as_ref()?.name.clone())
        }
        HashPolicyType::Connection | HashPolicyType::SourceIp => {
            conf.connection.as_ref()?.source_ip.filter(|by_address| *by_address)?;
            HashSource::SourceIp
        }
        HashPolicyType::Cookie => {
            let cookie = conf.cookie.as_ref()?;
            HashSource::Cookie {
                name: cookie.name.clone(),
                // Rounded up: what is shorter than a second must not become "until it is closed".
                made_for_seconds: cookie.ttl.map(|ttl| super::millis(ttl).div_ceil(1_000)),
                path: cookie.path.clone(),
            }
        }
        HashPolicyType::FilterState | HashPolicyType::Other(_) => return None,
    };
    Some(HashPolicy { source, terminal: conf.terminal.unwrap_or(false) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What a `default` becomes, as it is sent.
    fn compiled(conf: Value) -> Value {
        let mut policies = DestinationPolicies::default();
        destination(&serde_json::from_value(conf).unwrap(), &mut policies);
        serde_json::to_value(policies.balancing).unwrap()
    }

    #[test]
    fn what_is_unset_is_as_without_a_policy() {
        for conf in [
            json!({}),
            json!({ "loadBalancer": { "type": "RoundRobin" } }),
            json!({ "localityAwareness": {} }),
            json!({ "localityAwareness": { "disabled": false } }),
            json!({ "hashPolicies": [{ "type": "Connection", "connection": { "sourceIP": false } }] }),
            json!({ "hashPolicies": [{ "type": "FilterState", "filterState": { "key": "k" } }] }),
        ] {
            assert_eq!(compiled(conf.clone()), json!({}), "{conf}");
        }
    }

    #[test]
    fn zones_come_by_rules() {
        let locality = |conf: Value| compiled(json!({ "localityAwareness": conf }))["locality"].take();
        let disabled = json!({ "disabled": true, "localZone": {}, "crossZone": {} });
        assert_eq!(locality(disabled), "alike");
        assert_eq!(locality(json!({ "localZone": {} })), json!({ "zones": { "enough": 5000 } }));
        let rules = json!({ "crossZone": {
            "failover": [
                { "from": { "zones": ["a"] }, "to": { "type": "Only", "zones": ["b", "c"] } },
                { "to": { "type": "None" } },
                { "to": { "type": "AnyExcept", "zones": ["d"] } },
                { "to": { "type": "Any" } },
            ],
            "failoverThreshold": { "percentage": "66.6" },
        } });
        let expected = json!({ "zones": {
            "failover": [
                { "from": ["a"], "to": { "only": ["b", "c"] } }, { "to": { "anyExcept": ["d"] } }, { "to": "any" },
            ],
            "enough": 6660,
        } });
        assert_eq!(locality(rules), expected);
        for (percentage, share) in [(json!(1), 1_00), (json!(100), 10_000), (json!("0.001"), 1)] {
            let conf = json!({ "crossZone": { "failoverThreshold": { "percentage": percentage } } });
            assert_eq!(locality(conf)["zones"]["enough"], share);
        }
    }

    #[test]
    fn tags_weigh_as_is_said_or_ten_times_as_much_as_the_next() {
        let weights = |tags: Value| -> Vec<u64> {
            let conf = json!({ "localityAwareness": { "localZone": { "affinityTags": tags } } });
            let zones = compiled(conf)["locality"]["zones"].take();
            for (told, tag) in zones["affinity"].as_array().unwrap().iter().zip(tags.as_array().unwrap()) {
                assert_eq!(told["tag"], tag["key"]);
            }
            zones["affinity"].as_array().unwrap().iter().map(|it| it["weight"].as_u64().unwrap()).collect()
        };
        let unweighted = |n: usize| Value::Array((0..n).map(|i| json!({ "key": i.to_string() })).collect());
        assert_eq!(weights(unweighted(1)), [9]);
        assert_eq!(weights(unweighted(3)), [900, 90, 9]);
        assert_eq!(weights(unweighted(12))[0], u64::from(u32::MAX), "it has an end");
        assert_eq!(weights(json!([{ "key": "a", "weight": 7 }, { "key": "b", "weight": 3 }])), [7, 3]);
    }

    #[test]
    fn balancers_and_what_is_usual_of_them() {
        for (conf, expected) in [
            (json!({ "type": "Random" }), json!("random")),
            (json!({ "type": "LeastRequest" }), json!({ "leastRequest": { "choices": 2 } })),
            (
                json!({ "type": "LeastRequest", "leastRequest": { "choiceCount": 5 } }),
                json!({ "leastRequest": { "choices": 5 } }),
            ),
            (
                json!({ "type": "RingHash" }),
                json!({ "ringHash": { "function": "xx", "minSize": 1024, "maxSize": 8_000_000 } }),
            ),
            (
                json!({ "type": "RingHash", "ringHash": { "hashFunction": "MurmurHash2", "maxRingSize": 100 } }),
                json!({ "ringHash": { "function": "murmur2", "minSize": 100, "maxSize": 100 } }),
            ),
            (
                json!({ "type": "RingHash", "ringHash": { "hashFunction": "XXHash", "minRingSize": 7, "maxRingSize": 9 } }),
                json!({ "ringHash": { "function": "xx", "minSize": 7, "maxSize": 9 } }),
            ),
            (json!({ "type": "Maglev" }), json!({ "maglev": { "size": 65537 } })),
            (
                json!({ "type": "Maglev", "maglev": { "tableSize": 101 }, "ringHash": { "minRingSize": 5 } }),
                json!({ "maglev": { "size": 101 } }),
            ),
        ] {
            assert_eq!(compiled(json!({ "loadBalancer": conf }))["balancer"], expected);
        }
    }

    #[test]
    fn hashes_stand_beside_the_balancer_or_in_it() {
        let header = |name: &str| json!([{ "type": "Header", "header": { "name": name } }]);
        let source =
            |conf: Value| compiled(conf).pointer("/hash/0/source/header").cloned().unwrap_or(Value::Null);
        let ring = json!({ "type": "RingHash", "ringHash": { "hashPolicies": header("X-Old") } });
        assert_eq!(source(json!({ "loadBalancer": ring })), "x-old");
        assert_eq!(source(json!({ "loadBalancer": ring, "hashPolicies": header("x-new") })), "x-new");
        let other = json!({ "type": "Maglev", "ringHash": { "hashPolicies": header("x-old") } });
        assert_eq!(source(json!({ "loadBalancer": other })), Value::Null, "it is another balancer's");
        let all = json!([
            { "type": "Cookie", "terminal": true, "cookie": { "name": "c", "ttl": "1500ms", "path": "/a" } },
            { "type": "Cookie", "cookie": { "name": "d", "ttl": "0s" } },
            { "type": "Cookie", "cookie": { "name": "e" } },
            { "type": "SourceIP", "connection": { "sourceIP": true } },
            { "type": "Connection", "connection": { "sourceIP": true } },
            { "type": "QueryParameter", "queryParameter": { "name": "Q" } },
            { "type": "Header", "header": { "name": "X-A" } },
        ]);
        let expected = json!([
            { "source": { "cookie": { "name": "c", "madeForSeconds": 2, "path": "/a" } }, "terminal": true },
            { "source": { "cookie": { "name": "d", "madeForSeconds": 0 } } },
            { "source": { "cookie": { "name": "e" } } },
            { "source": "sourceIp" },
            { "source": "sourceIp" },
            { "source": { "queryParameter": "Q" } },
            { "source": { "header": "x-a" } },
        ]);
        for conf in [
            json!({ "hashPolicies": all }),
            json!({ "loadBalancer": { "type": "RingHash", "ringHash": { "hashPolicies": all } } }),
            json!({ "loadBalancer": { "type": "Maglev", "maglev": { "hashPolicies": all } } }),
        ] {
            assert_eq!(compiled(conf.clone())["hash"], expected, "{conf}");
        }
    }
}
