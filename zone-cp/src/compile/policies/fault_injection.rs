use meridian_core::IntOrString;
use meridian_core::kinds::mesh_fault_injection::{Conf, Fault as ConfFault};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_policy::caller_match;
use meridian_proxy_config::{CallerMatch, Effect, Fault, FaultRule, InboundPolicies};
use std::collections::BTreeMap;
use std::num::NonZeroU64;

/// An abort with a status that is no answer (1xx) still has to be one.
const NO_ANSWER: u16 = 500;

/// MeshFaultInjection at an inbound: its `rules`, each by itself, the most specific first; every one that matches a
/// caller counts.
pub(crate) fn inbound(confs: &[(Option<RuleMatch>, Conf)], into: &mut InboundPolicies) {
    let rule = |(matched, conf): &(Option<RuleMatch>, Conf)| {
        let faults: Vec<Fault> = conf.http.iter().flatten().flat_map(effects).collect();
        let caller = matched.as_ref().map(caller_match).unwrap_or_default();
        (!faults.is_empty()).then_some(FaultRule { caller, faults, first_only: false })
    };
    into.faults = confs.iter().filter_map(rule).collect();
}

/// A `from` item by the caller's tags: as in Kuma, a stronger list of faults replaces a weaker one, with none of its own
/// too.
pub(crate) fn by_tags(tags: &BTreeMap<String, String>, conf: &Conf) -> Option<FaultRule> {
    let faults = conf.http.as_ref()?.iter().flat_map(effects).collect();
    let caller = CallerMatch { tags: tags.clone(), ..CallerMatch::default() };
    Some(FaultRule { caller, faults, first_only: true })
}

/// What one fault does, in the order in which it is done; what never happens is left out.
fn effects(fault: &ConfFault) -> impl Iterator<Item = Fault> {
    let delay = fault.delay.as_ref().and_then(|delay| {
        let millis = super::millis(delay.value);
        made(Effect::Delay(millis), delay.percentage.as_ref()).filter(|_| millis > 0)
    });
    let abort = fault.abort.as_ref().and_then(|abort| {
        let status = u16::try_from(abort.http_status).ok().filter(|status| (200..=599).contains(status));
        made(Effect::Abort(status.unwrap_or(NO_ANSWER)), abort.percentage.as_ref())
    });
    let bandwidth = fault.response_bandwidth.as_ref().and_then(|bandwidth| {
        // Nothing at all would never end: zero is the least there is.
        let bytes = NonZeroU64::new(bandwidth.bytes_per_second()?).unwrap_or(NonZeroU64::MIN);
        made(Effect::Bandwidth(bytes), bandwidth.percentage.as_ref())
    });
    [delay, abort, bandwidth].into_iter().flatten()
}

fn made(effect: Effect, percentage: Option<&IntOrString>) -> Option<Fault> {
    let percent = percentage.and_then(IntOrString::number).unwrap_or_default().clamp(0.0, 100.0);
    // 0 to 1,000,000.
    let per_million = (percent * 10_000.0).round() as u32;
    (per_million > 0).then_some(Fault { per_million, effect })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compiled(confs: &[(Value, Value)]) -> Value {
        let read = |(matched, http): &(Value, Value)| {
            let matched = serde_json::from_value(matched.clone()).unwrap();
            (matched, serde_json::from_value(json!({ "http": http })).unwrap())
        };
        let mut policies = InboundPolicies::default();
        inbound(&confs.iter().map(read).collect::<Vec<_>>(), &mut policies);
        serde_json::to_value(policies).unwrap()
    }

    #[test]
    fn each_field_arrives_in_the_order_in_which_it_acts() {
        let faults = json!([
            { "abort": { "httpStatus": 503, "percentage": 50 }, "delay": { "value": "1.5s", "percentage": "0.5" } },
            { "responseBandwidth": { "limit": "10 kbps", "percentage": 100 } },
        ]);
        let expected = json!({ "faults": [{ "caller": {}, "faults": [
            { "perMillion": 5_000, "effect": { "delay": 1_500 } },
            { "perMillion": 500_000, "effect": { "abort": 503 } },
            { "perMillion": 1_000_000, "effect": { "bandwidth": 10_240 } },
        ] }] });
        assert_eq!(compiled(&[(Value::Null, faults)]), expected);
    }

    #[test]
    fn what_never_happens_is_not_sent() {
        let faults = json!([
            { "abort": { "httpStatus": 503 } },
            { "abort": { "httpStatus": 503, "percentage": 0 } },
            { "delay": { "value": "0s", "percentage": 100 } },
        ]);
        assert_eq!(compiled(&[(Value::Null, faults)]), json!({}));
    }

    #[test]
    fn what_would_be_no_answer_is_one() {
        let faults = json!([
            { "abort": { "httpStatus": 101, "percentage": 100 } },
            { "responseBandwidth": { "limit": "0kbps", "percentage": 100 } },
        ]);
        let found = compiled(&[(Value::Null, faults)]);
        assert_eq!(found.pointer("/faults/0/faults/0/effect"), Some(&json!({ "abort": 500 })));
        assert_eq!(found.pointer("/faults/0/faults/1/effect"), Some(&json!({ "bandwidth": 1 })));
    }

    #[test]
    fn every_rule_stays_with_its_caller() {
        let abort = json!([{ "abort": { "httpStatus": 500, "percentage": 1 } }]);
        let under = json!({
            "spiffeID": { "type": "Prefix", "value": "spiffe://m/a" },
            "sni": { "type": "Exact", "value": "db.mesh" },
        });
        let found = compiled(&[(under, abort.clone()), (Value::Null, abort)]);
        let caller = json!({ "spiffePrefix": "spiffe://m/a", "sni": "db.mesh" });
        assert_eq!(found.pointer("/faults/0/caller"), Some(&caller));
        assert_eq!(found.pointer("/faults/1/caller"), Some(&json!({})));
    }
}
