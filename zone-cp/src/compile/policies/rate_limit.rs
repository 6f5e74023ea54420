use meridian_core::kinds::http_headers::HeaderKeyValue;
use meridian_core::kinds::mesh_rate_limit::{Conf, LocalHttp, Rate as ConfRate};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_policy::caller_match;
use meridian_proxy_config::{InboundPolicies, Rate, RateLimits, RequestLimit};
use std::num::{NonZeroU32, NonZeroU64};

/// Kuma's: too many requests.
const STATUS: u16 = 429;

/// MeshRateLimit at an inbound: what its `rules` add up to for each kind of caller, the first that matches decides.
pub(crate) fn inbound(confs: &[(Option<RuleMatch>, Conf)], into: &mut InboundPolicies) {
    let mut limits = RateLimits::default();
    for (matched, conf) in confs {
        let Some(local) = &conf.local else { continue };
        if let Some(http) = &local.http {
            limits.requests.push(request_limit(matched.as_ref(), http));
        }
        if let (None, Some(tcp)) = (matched, &local.tcp) {
            let given = tcp.connection_rate.as_ref().filter(|_| tcp.disabled != Some(true));
            limits.connections = given.and_then(rate);
        }
    }
    // What is last and limits nobody says what is so anyway.
    while limits.requests.pop_if(|limit| limit.rate.is_none()).is_some() {}
    into.rate_limits = limits;
}

fn request_limit(matched: Option<&RuleMatch>, http: &LocalHttp) -> RequestLimit {
    let answer = http.on_rate_limit.clone().unwrap_or_default();
    let status = answer.status.and_then(|status| u16::try_from(status).ok());
    let headers = answer.headers.unwrap_or_default();
    let given = http.request_rate.as_ref().filter(|_| http.disabled != Some(true));
    RequestLimit {
        caller: matched.map(caller_match).unwrap_or_default(),
        rate: given.and_then(rate),
        status: status.filter(|status| (400..=599).contains(status)).unwrap_or(STATUS),
        set_headers: pairs(headers.set),
        add_headers: pairs(headers.add),
    }
}

/// `None` for a rate that no check would have let pass.
fn rate(conf: &ConfRate) -> Option<Rate> {
    Some(Rate {
        num: NonZeroU32::new(conf.num)?,
        interval_millis: NonZeroU64::new(super::millis(conf.interval))?,
    })
}

fn pairs(headers: Option<Vec<HeaderKeyValue>>) -> Vec<(String, String)> {
    headers.into_iter().flatten().map(|header| (header.name, header.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compiled(confs: &[(Value, Value)]) -> Value {
        let read = |(matched, conf): &(Value, Value)| {
            let matched = serde_json::from_value(matched.clone()).unwrap();
            (matched, serde_json::from_value(json!({ "local": conf })).unwrap())
        };
        let mut policies = InboundPolicies::default();
        inbound(&confs.iter().map(read).collect::<Vec<_>>(), &mut policies);
        serde_json::to_value(policies).unwrap()
    }

    #[test]
    fn each_field_arrives() {
        let http = json!({
            "requestRate": { "num": 5, "interval": "50.5ms" },
            "onRateLimit": { "status": 503, "headers": {
                "set": [{ "name": "a", "value": "1" }], "add": [{ "name": "b", "value": "2" }] } },
        });
        let tcp = json!({ "connectionRate": { "num": 2, "interval": "1s" } });
        let found = compiled(&[(Value::Null, json!({ "http": http, "tcp": tcp }))]);
        let expected = json!({ "rateLimits": {
            "requests": [{
                "caller": {}, "rate": { "num": 5, "intervalMillis": 51 }, "status": 503,
                "setHeaders": [["a", "1"]], "addHeaders": [["b", "2"]],
            }],
            "connections": { "num": 2, "intervalMillis": 1000 },
        } });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_unset_is_kumas_default() {
        let rate = json!({ "num": 1, "interval": "1m" });
        for (status, expected) in
            [(Value::Null, 429), (json!(200), 429), (json!(400), 400), (json!(600), 429)]
        {
            let http = json!({ "requestRate": rate, "onRateLimit": { "status": status } });
            let found = compiled(&[(Value::Null, json!({ "http": http }))]);
            assert_eq!(found.pointer("/rateLimits/requests/0/status"), Some(&json!(expected)), "{status}");
        }
    }

    #[test]
    fn disabled_for_some_shields_them_from_the_rule_for_all() {
        let web = json!({ "spiffeID": { "type": "Exact", "value": "spiffe://m/web" } });
        let limit = json!({ "http": { "requestRate": { "num": 1, "interval": "1s" } } });
        let off = json!({ "http": { "disabled": true, "requestRate": { "num": 1, "interval": "1s" } } });
        let found = compiled(&[(web, off.clone()), (Value::Null, limit)]);
        let requests = found.pointer("/rateLimits/requests").unwrap();
        assert_eq!(requests[0], json!({ "caller": { "spiffeExact": "spiffe://m/web" }, "status": 429 }));
        assert_eq!(requests[1]["rate"]["num"], 1);
        let off_for_all = json!({ "http": off["http"], "tcp": { "disabled": true } });
        assert_eq!(compiled(&[(Value::Null, off_for_all)]), json!({}));
    }

    #[test]
    fn connections_are_held_to_the_rule_for_everybody() {
        let of = |num| json!({ "tcp": { "connectionRate": { "num": num, "interval": "1s" } } });
        let sni = json!({ "sni": { "type": "Exact", "value": "db.mesh" } });
        let found = compiled(&[(sni, of(1)), (Value::Null, of(2))]);
        assert_eq!(found, json!({ "rateLimits": { "connections": { "num": 2, "intervalMillis": 1000 } } }));
    }
}
