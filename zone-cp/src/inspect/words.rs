//! Names and units of what proxies are told, for people.
//!
//! A field that has no name here is called by its own, in words, and has the unit that it ends in: a new one is readable
//! before anybody thinks of this table.

use meridian_proxy_config::{Protocol, types};
use serde_json::Value;
use std::time::Duration;

/// Names of fields, by the end of their path.
const FIELDS: [(&str, &str); 23] = [
    ("connectionTimeouts/connectMillis", "connect timeout"),
    ("connectionTimeouts/idleMillis", "idle timeout of connections"),
    ("connectionTimeouts/maxAgeMillis", "age of connections at most"),
    ("connectionTimeouts/requestHeadMillis", "timeout of requests' heads"),
    ("streamTimeouts/requestMillis", "request timeout"),
    ("streamTimeouts/idleMillis", "idle timeout of requests"),
    ("streamTimeouts/maxMillis", "duration of requests at most"),
    ("retry/max", "retries at most"),
    ("retry/perTryMillis", "timeout of each try"),
    ("retry/on", "retried on"),
    ("retry/methods", "retried methods"),
    ("backOff/baseMillis", "first wait before a retry"),
    ("backOff/maxMillis", "wait before a retry at most"),
    ("connectAttempts", "connection attempts"),
    ("atOnce/connections", "connections at once"),
    ("atOnce/pending", "requests that wait at once"),
    ("atOnce/requests", "requests at once"),
    ("atOnce/retries", "retries at once"),
    ("rateLimits/requests", "rate limit of requests"),
    ("callerTimeouts", "timeouts by caller"),
    ("permission/rules", "permission"),
    ("policies/faults", "faults"),
    ("policies/filter/action", "request filter's action"),
];

/// Exceptions that are named; of the others the number is said.
const NAMED: usize = 3;

/// What a change in the calls of these protocols is about, and which destinations it is not about.
pub(super) fn calls_in_general(protocols: &[Protocol], all: bool, except: &[&str]) -> String {
    let names: Vec<&str> = protocols.iter().map(|protocol| protocol_name(*protocol)).collect();
    let mut text = if all { "all calls".to_owned() } else { format!("{} calls", names.join(" and ")) };
    if !except.is_empty() {
        let named: Vec<String> = except.iter().take(NAMED).map(|name| destination(name)).collect();
        text.push_str(&format!(" except to {}", named.join(", ")));
        if except.len() > NAMED {
            text.push_str(&format!(" and {} more", except.len().saturating_sub(NAMED)));
        }
    }
    text
}

pub(super) fn calls_to(name: &str) -> String {
    format!("calls to {}", destination(name))
}

/// `mesh/zone/service/port`, or `mesh//service/port` for a `kuma.io/service` in all zones.
fn destination(name: &str) -> String {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [_, "", service, port] => format!("{service}:{port} ({service}.mesh)"),
        [_, "*", service, port] => format!("{service}:{port} of all zones (MeshMultiZoneService)"),
        [_, zone, service, port] => format!("{service}:{port} of zone {zone}"),
        _ => name.to_owned(),
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tls => "tls",
        Protocol::Tcp => "tcp",
    }
}

/// What a resource is about.
pub(super) fn subject(type_: &str, name: &str, body: Option<&Value>) -> String {
    let text = |field: &str| body.and_then(|body| body.get(field)?.as_str()).unwrap_or_default();
    match type_ {
        types::PROXY => "the sidecar".to_owned(),
        types::INBOUND => match text("service") {
            "" => format!("calls to this sidecar's inbound {name}"),
            service => format!("calls to this sidecar's inbound {name} ({service})"),
        },
        types::OUTBOUND => format!("the name or address {name}"),
        types::DESTINATION => format!("the service {}", destination(name)),
        types::ENDPOINTS => format!("instances of {}", destination(name)),
        types::EXTERNAL => format!("what is outside of the mesh: {} {name}", text("kind")),
        types::BUNDLE => format!("whom mesh {name} believes"),
        other => format!("{other} {name}"),
    }
}

/// What a field is called.
pub(super) fn field(fields: &[String]) -> String {
    let path = fields.join("/");
    let known = FIELDS.iter().find(|(end, _)| {
        path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('/'))
    });
    if let Some((_, name)) = known {
        return (*name).to_owned();
    }
    // `policies` only says where it stands.
    let shown = fields.iter().filter(|name| *name != "policies");
    shown.map(|name| spaced(without_unit(name))).collect::<Vec<_>>().join(", ")
}

/// A value with its unit.
pub(super) fn value(fields: &[String], value: &Value) -> String {
    let name = fields.last().map_or("", String::as_str);
    match value {
        Value::Null => "not set".to_owned(),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => match number.as_u64() {
            Some(number) => with_unit(name, number),
            None => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let said: Vec<String> = items.iter().map(|item| self::value(fields, item)).collect();
            format!("[{}]", said.join(", "))
        }
        Value::Object(inner) => match rule(value) {
            Some(text) => text,
            None if inner.is_empty() => "anybody".to_owned(),
            None => {
                let said = inner.iter().map(|(name, value)| {
                    format!(
                        "{} {}",
                        spaced(without_unit(name)),
                        self::value(std::slice::from_ref(name), value)
                    )
                });
                said.collect::<Vec<_>>().join(", ")
            }
        },
    }
}

/// A rule of a permission.
fn rule(value: &Value) -> Option<String> {
    let (action, policy) = (value.get("action")?.as_str()?, value.get("policy")?.as_str()?);
    let caller = value.get("caller")?;
    let said = self::value(&[], caller);
    Some(format!("{} {said} (policy {policy})", spaced(action)))
}

const UNITS: [&str; 3] = ["Millis", "Seconds", "Bytes"];

fn without_unit(name: &str) -> &str {
    UNITS.iter().find_map(|unit| name.strip_suffix(unit)).filter(|rest| !rest.is_empty()).unwrap_or(name)
}

fn with_unit(name: &str, number: u64) -> String {
    if name.ends_with("Millis") || name == "delay" {
        return duration(Duration::from_millis(number));
    }
    if name.ends_with("Seconds") {
        return duration(Duration::from_secs(number));
    }
    match name {
        "perMillion" => format!("{}%", hundredths(number / 100)),
        "panicBelow" => format!("{}%", hundredths(number)),
        "deviationsThousandths" => format!("{}/1000", number),
        "percent" | "maxPercent" => format!("{number}%"),
        "bandwidth" => format!("{number} bytes a second"),
        _ if name.ends_with("Bytes") => format!("{number} bytes"),
        _ => number.to_string(),
    }
}

/// A number of hundredths: `12.5`.
fn hundredths(number: u64) -> String {
    let text = format!("{}.{:02}", number / 100, number % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// As policies say it: `1m30s`; none is no limit.
fn duration(time: Duration) -> String {
    if time.is_zero() {
        return "0s (none)".to_owned();
    }
    let mut millis = time.as_millis();
    let mut text = String::new();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    text
}

/// `maxConfigAge` -> `max config age`.
fn spaced(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            out.push(' ');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(text: &str) -> Vec<String> {
        text.split('/').map(str::to_owned).collect()
    }

    #[test]
    fn values_have_their_units() {
        for (name, number, text) in [
            ("requestMillis", json!(15_000), "15s"),
            ("requestMillis", json!(90_250), "1m30s250ms"),
            ("requestMillis", json!(0), "0s (none)"),
            ("maxConfigAgeSeconds", json!(3_600), "1h"),
            ("maxBodyBytes", json!(10), "10 bytes"),
            ("perMillion", json!(5_000), "0.5%"),
            ("panicBelow", json!(5_000), "50%"),
            ("max", json!(3), "3"),
            ("omitPrevious", json!(true), "yes"),
        ] {
            assert_eq!(value(&path(name), &number), text, "{name}");
        }
    }

    #[test]
    fn fields_are_named_and_unknown_ones_spelled_out() {
        for (fields, name) in [
            ("streamTimeouts/requestMillis", "request timeout"),
            ("policies/streamTimeouts/idleMillis", "idle timeout of requests"),
            ("outliers/ejectionMillis", "outliers, ejection"),
            ("policies/somethingNew/perHourBytes", "something new, per hour"),
        ] {
            assert_eq!(field(&path(fields)), name);
        }
    }

    #[test]
    fn a_rule_is_a_sentence() {
        let rule =
            json!({ "action": "allow", "caller": { "tags": { "kuma.io/service": "web" } }, "policy": "p" });
        assert_eq!(value(&path("permission/rules"), &rule), "allow tags kuma.io/service web (policy p)");
        let everybody = json!({ "action": "allowWithShadowDeny", "caller": {}, "policy": "p" });
        assert_eq!(value(&[], &everybody), "allow with shadow deny anybody (policy p)");
    }
}
