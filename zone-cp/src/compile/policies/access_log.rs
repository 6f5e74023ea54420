//! MeshAccessLog.

use super::Collectors;
use meridian_core::kinds::mesh_access_log::{Backend, BackendType, Conf, Format, FormatType, KeyValue};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_policy::caller_match;
use meridian_proxy_config::{
    AccessLog, CallerMatch, DestinationPolicies, InboundPolicies, LogBackend, LogForm, LogLine,
};
use serde::de::Error;

/// For calls to a destination: its backends get every line.
///
/// # Errors
/// A backend refers to nothing; the others are told.
pub(super) fn destination(
    conf: &Conf,
    collectors: &Collectors,
    into: &mut DestinationPolicies,
) -> Result<(), serde_json::Error> {
    let mut missing = None;
    into.access_logs = logs(&CallerMatch::default(), conf, collectors, &mut missing);
    missing.map_or(Ok(()), |reason| Err(serde_json::Error::custom(reason)))
}

/// For calls that come in: the backends of every rule that matches the caller.
///
/// # Errors
/// As [`destination`].
pub(super) fn inbound(
    confs: &[(Option<RuleMatch>, Conf)],
    collectors: &Collectors,
    into: &mut InboundPolicies,
) -> Result<(), serde_json::Error> {
    let mut missing = None;
    let mut of = |(matched, conf): &(Option<RuleMatch>, Conf)| {
        logs(&matched.as_ref().map(caller_match).unwrap_or_default(), conf, collectors, &mut missing)
    };
    into.access_logs = confs.iter().flat_map(&mut of).collect();
    missing.map_or(Ok(()), |reason| Err(serde_json::Error::custom(reason)))
}

fn logs(
    caller: &CallerMatch,
    conf: &Conf,
    collectors: &Collectors,
    missing: &mut Option<String>,
) -> Vec<AccessLog> {
    let of = |one| backend(one, collectors).map_err(|reason| *missing = Some(reason)).ok().flatten();
    let backends = conf.backends.iter().flatten().filter_map(of);
    backends.map(|backend| AccessLog { caller: caller.clone(), backend }).collect()
}

/// `None`: it names nothing that could be told.
///
/// # Errors
/// What it refers to is not there.
fn backend(backend: &Backend, collectors: &Collectors) -> Result<Option<LogBackend>, String> {
    if backend.type_ == BackendType::OpenTelemetry
        && let Some(open_telemetry) = &backend.open_telemetry
    {
        let (endpoint, backend_ref) =
            (open_telemetry.endpoint.as_deref(), open_telemetry.backend_ref.as_ref());
        return Ok(Some(LogBackend::OpenTelemetry {
            collector: collectors.find(endpoint, backend_ref)?,
            attributes: pairs(open_telemetry.attributes.as_deref()),
            body: open_telemetry.body.clone(),
        }));
    }
    Ok(lines(backend))
}

/// A backend that is told lines of text.
fn lines(backend: &Backend) -> Option<LogBackend> {
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
        BackendType::OpenTelemetry | BackendType::Other(_) => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::policies::collectors::tests::collectors;
    use serde_json::{Value, json};

    fn compiled(backends: Value) -> (Value, Option<String>) {
        let mut policies = DestinationPolicies::default();
        let collectors = collectors(&[("main", 0, json!({"a": "b"}), json!({"protocol": "http"}))]);
        let conf = serde_json::from_value(json!({ "backends": backends })).unwrap();
        let problem = destination(&conf, &collectors, &mut policies).err().map(|error| error.to_string());
        (serde_json::to_value(policies).unwrap()["accessLogs"].clone(), problem)
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
            {"type": "OpenTelemetry", "openTelemetry": {"backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"a": "c"}}}},
            {"type": "OpenTelemetry", "openTelemetry": {"backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"a": "b"}}}},
        ]);
        let expected = json!([
            {"backend": {"file": {"path": "/l"}}},
            {"backend": {"tcp": {"address": "logs:5000", "line": {"form": {"plain": "x"}}}}},
            {"backend": {"tcp": {"address": "logs:5000", "line": {"form": {"json": [["a", "%PROTOCOL%"]]}, "omitEmpty": true}}}},
            {"backend": {"openTelemetry": {"collector": {"endpoint": "otel:4317"}, "attributes": [["k", "v"]], "body": {"a": 1}}}},
            {"backend": {"openTelemetry": {"collector": {"endpoint": "[::1]:1"}}}},
            {"backend": {"openTelemetry": {"collector": {"endpoint": "127.0.0.1:4317", "httpPath": ""}}}},
        ]);
        let missing = "no MeshOpenTelemetryBackend has the labels {a: c}".to_owned();
        assert_eq!(compiled(backends), (expected, Some(missing)));
        assert_eq!(compiled(json!([])), (Value::Null, None));
    }

    #[test]
    fn every_rule_has_its_own_callers() {
        let web = json!({"spiffeID": {"type": "Exact", "value": "spiffe://m/web"}});
        let conf = |path: &str| {
            serde_json::from_value(json!({"backends": [{"type": "File", "file": {"path": path}}]})).unwrap()
        };
        let mut policies = InboundPolicies::default();
        let confs = [(serde_json::from_value(web).unwrap(), conf("/web")), (None, conf("/all"))];
        inbound(&confs, &Collectors::default(), &mut policies).unwrap();
        let expected = json!([
            {"caller": {"spiffeExact": "spiffe://m/web"}, "backend": {"file": {"path": "/web"}}},
            {"backend": {"file": {"path": "/all"}}},
        ]);
        assert_eq!(serde_json::to_value(policies.access_logs).unwrap(), expected);
    }
}
