//! MeshAccessLog.

use super::callers::caller;
use meridian_core::kinds::mesh_access_log::{Backend, BackendType, Conf, Format, FormatType, KeyValue};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_proxy_config::{
    AccessLog, CallerMatch, DestinationPolicies, InboundPolicies, LogBackend, LogForm, LogLine,
};

/// Of OTLP over gRPC, where an endpoint names none.
const OTLP_PORT: u16 = 4317;

/// For calls to a destination: its backends get every line.
pub(crate) fn destination(conf: &Conf, into: &mut DestinationPolicies) {
    into.access_logs = logs(&CallerMatch::default(), conf).collect();
}

/// For calls that come in: the backends of every rule that matches the caller.
pub(crate) fn inbound(confs: &[(Option<RuleMatch>, Conf)], into: &mut InboundPolicies) {
    let of = |(matched, conf): &(Option<RuleMatch>, Conf)| {
        logs(&caller(matched.as_ref()), conf).collect::<Vec<_>>()
    };
    into.access_logs = confs.iter().flat_map(of).collect();
}

fn logs<'a>(caller: &'a CallerMatch, conf: &'a Conf) -> impl Iterator<Item = AccessLog> + 'a {
    let backends = conf.backends.iter().flatten().filter_map(backend);
    backends.map(|backend| AccessLog { caller: caller.clone(), backend })
}

/// `None`: it names nothing that could be told.
fn backend(backend: &Backend) -> Option<LogBackend> {
    match backend.type_ {
        BackendType::File => {
            let file = backend.file.as_ref()?;
            Some(LogBackend::File { path: file.path.clone(), line: line(file.format.as_ref()) })
        }
        BackendType::Tcp => {
            let tcp = backend.tcp.as_ref()?;
            // Kuma takes a URL there as well, and dials its host and port.
            let address = tcp.address.rsplit_once("//").map_or(tcp.address.as_str(), |(_, rest)| rest);
            let address = address.split(['/', '?', '#']).next().unwrap_or_default();
            Some(LogBackend::Tcp { address: address.to_owned(), line: line(tcp.format.as_ref()) })
        }
        BackendType::OpenTelemetry => {
            let open_telemetry = backend.open_telemetry.as_ref()?;
            Some(LogBackend::OpenTelemetry {
                endpoint: otlp(open_telemetry.endpoint.as_deref()?),
                attributes: pairs(open_telemetry.attributes.as_deref()),
                body: open_telemetry.body.clone(),
            })
        }
        BackendType::Other(_) => None,
    }
}

fn line(format: Option<&Format>) -> LogLine {
    let Some(format) = format else { return LogLine::default() };
    let form = match format.type_ {
        FormatType::Plain => format.plain.clone().map(LogForm::Plain),
        FormatType::Json => Some(LogForm::Json(pairs(format.json.as_deref()))),
        FormatType::Other(_) => None,
    };
    LogLine { form, omit_empty: format.omit_empty_values }
}

fn pairs(pairs: Option<&[KeyValue]>) -> Vec<(String, String)> {
    pairs.unwrap_or_default().iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

/// An OpenTelemetry endpoint with its port.
pub(super) fn otlp(endpoint: &str) -> String {
    let has_port = endpoint.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { endpoint.to_owned() } else { format!("{endpoint}:{OTLP_PORT}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compiled(backends: Value) -> Value {
        let mut policies = DestinationPolicies::default();
        destination(&serde_json::from_value(json!({ "backends": backends })).unwrap(), &mut policies);
        serde_json::to_value(policies).unwrap()["accessLogs"].clone()
    }

    #[test]
    fn backends_are_taken_over() {
        let json_format =
            json!({"type": "Json", "json": [{"key": "a", "value": "%PROTOCOL%"}], "omitEmptyValues": true});
        let backends = json!([
            {"type": "File", "file": {"path": "/l"}},
            {"type": "Tcp", "tcp": {"address": "tcp://logs:5000", "format": {"type": "Plain", "plain": "x"}}},
            {"type": "Tcp", "tcp": {"address": "logs:5000", "format": json_format}},
            {"type": "OpenTelemetry", "openTelemetry": {
                "endpoint": "otel", "attributes": [{"key": "k", "value": "v"}], "body": {"a": 1},
            }},
            {"type": "OpenTelemetry", "openTelemetry": {"endpoint": "[::1]:1"}},
            {"type": "OpenTelemetry", "openTelemetry": {"backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"a": "b"}}}},
        ]);
        let expected = json!([
            {"backend": {"file": {"path": "/l"}}},
            {"backend": {"tcp": {"address": "logs:5000", "line": {"form": {"plain": "x"}}}}},
            {"backend": {"tcp": {"address": "logs:5000", "line": {"form": {"json": [["a", "%PROTOCOL%"]]}, "omitEmpty": true}}}},
            {"backend": {"openTelemetry": {"endpoint": "otel:4317", "attributes": [["k", "v"]], "body": {"a": 1}}}},
            {"backend": {"openTelemetry": {"endpoint": "[::1]:1"}}},
        ]);
        assert_eq!(compiled(backends), expected);
        assert_eq!(compiled(json!([])), Value::Null);
    }

    #[test]
    fn every_rule_has_its_own_callers() {
        let web = json!({"spiffeID": {"type": "Exact", "value": "spiffe://m/web"}});
        let conf = |path: &str| {
            serde_json::from_value(json!({"backends": [{"type": "File", "file": {"path": path}}]})).unwrap()
        };
        let mut policies = InboundPolicies::default();
        let confs = [(serde_json::from_value(web).unwrap(), conf("/web")), (None, conf("/all"))];
        inbound(&confs, &mut policies);
        let expected = json!([
            {"caller": {"spiffeExact": "spiffe://m/web"}, "backend": {"file": {"path": "/web"}}},
            {"backend": {"file": {"path": "/all"}}},
        ]);
        assert_eq!(serde_json::to_value(policies.access_logs).unwrap(), expected);
    }
}
