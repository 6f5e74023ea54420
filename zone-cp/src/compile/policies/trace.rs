//! MeshTrace.

use super::Collectors;
use meridian_core::IntOrString;
use meridian_core::kinds::mesh_trace::{
    self, Backend, BackendType, Conf, OpenTelemetry, Sampling, ZipkinVersion,
};
use meridian_proxy_config::{TagValue, Trace, TraceBackend, TraceSampling, TraceTag, ZipkinFormat};

const ALL: u32 = 1_000_000;

/// What a sidecar traces; `None`: nothing.
///
/// # Errors
/// The backend refers to what is not there.
pub(super) fn trace(conf: &Conf, collectors: &Collectors) -> Result<Option<Trace>, String> {
    let first = conf.backends.as_ref().and_then(|backends| backends.first());
    let backend = first.map(|first| backend(first, collectors)).transpose()?.flatten();
    Ok(backend.map(|backend| Trace {
        backend,
        sampling: sampling(conf.sampling.as_ref()),
        tags: conf.tags.iter().flatten().filter_map(tag).collect(),
    }))
}

fn backend(backend: &Backend, collectors: &Collectors) -> Result<Option<TraceBackend>, String> {
    if backend.type_ == BackendType::OpenTelemetry
        && let Some(OpenTelemetry { endpoint, backend_ref }) = &backend.open_telemetry
    {
        let collector = collectors.find(endpoint.as_deref(), backend_ref.as_ref())?;
        return Ok(Some(TraceBackend::OpenTelemetry { collector }));
    }
    Ok(of_url(backend))
}

/// A backend that is posted to.
fn of_url(backend: &Backend) -> Option<TraceBackend> {
    match backend.type_ {
        BackendType::Zipkin => {
            let zipkin = backend.zipkin.as_ref()?;
            let format = match zipkin.api_version {
                ZipkinVersion::HttpProto => ZipkinFormat::Protobuf,
                ZipkinVersion::HttpJson | ZipkinVersion::Other(_) => ZipkinFormat::Json,
            };
            Some(TraceBackend::Zipkin {
                url: zipkin.url.clone(),
                format,
                wide_trace_ids: zipkin.trace_id_128bit,
                shared_spans: zipkin.shared_span_context,
            })
        }
        BackendType::Datadog => {
            let datadog = backend.datadog.as_ref()?;
            Some(TraceBackend::Datadog { url: datadog.url.clone(), split_service: datadog.split_service })
        }
        BackendType::OpenTelemetry | BackendType::Other(_) => None,
    }
}

fn sampling(sampling: Option<&Sampling>) -> TraceSampling {
    let millionths = |percent: Option<&IntOrString>| {
        let percent = percent.and_then(IntOrString::number);
        // 0 to 1,000,000.
        percent.map_or(ALL, |percent| (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32)
    };
    let of = |field: fn(&Sampling) -> Option<&IntOrString>| millionths(sampling.and_then(field));
    TraceSampling {
        overall: of(|it| it.overall.as_ref()),
        client: of(|it| it.client.as_ref()),
        random: of(|it| it.random.as_ref()),
    }
}

fn tag(tag: &mesh_trace::Tag) -> Option<TraceTag> {
    let value = match (&tag.literal, &tag.header) {
        (Some(literal), _) => TagValue::Literal(literal.clone()),
        (None, Some(header)) => {
            TagValue::Header { name: header.name.to_ascii_lowercase(), default: header.default.clone() }
        }
        (None, None) => return None,
    };
    Some(TraceTag { name: tag.name.clone(), value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::policies::collectors::tests::collectors;
    use serde_json::{Value, json};

    fn compiled(conf: Value) -> Value {
        let collectors = collectors(&[("main", 0, json!({"a": "b"}), json!({"endpoint": {"port": 1}}))]);
        match trace(&serde_json::from_value(conf).unwrap(), &collectors) {
            Ok(trace) => serde_json::to_value(trace).unwrap(),
            Err(reason) => json!(reason),
        }
    }

    #[test]
    fn what_is_said_is_taken_over() {
        let conf = json!({
            "backends": [{"type": "Zipkin", "zipkin": {"url": "http://j:1/a", "apiVersion": "httpProto"}}],
            "sampling": {"random": "12.5", "overall": 0},
            "tags": [
                {"name": "team", "literal": "core"},
                {"name": "env", "header": {"name": "X-Env", "default": "prod"}},
                {"name": "v", "header": {"name": "x-v"}},
            ],
        });
        let expected = json!({
            "backend": {"zipkin": {"url": "http://j:1/a", "format": "protobuf", "wideTraceIds": false, "sharedSpans": true}},
            "sampling": {"overall": 0, "client": 1_000_000, "random": 125_000},
            "tags": [
                {"name": "team", "value": {"literal": "core"}},
                {"name": "env", "value": {"header": {"name": "x-env", "default": "prod"}}},
                {"name": "v", "value": {"header": {"name": "x-v"}}},
            ],
        });
        assert_eq!(compiled(conf), expected);
    }

    #[test]
    fn without_a_backend_nothing_is_traced() {
        for conf in [json!({}), json!({"backends": []})] {
            assert_eq!(compiled(conf), Value::Null);
        }
        let by_labels = |labels: Value| {
            let reference = json!({"kind": "MeshOpenTelemetryBackend", "labels": labels});
            let backend = json!({"type": "OpenTelemetry", "openTelemetry": {"backendRef": reference}});
            compiled(json!({ "backends": [backend] }))
        };
        assert_eq!(
            by_labels(json!({"a": "b"}))["backend"],
            json!({"openTelemetry": {"collector": {"endpoint": "127.0.0.1:1"}}})
        );
        assert_eq!(by_labels(json!({"a": "c"})), "no MeshOpenTelemetryBackend has the labels {a: c}");
        let datadog = json!({"backends": [{"type": "Datadog", "datadog": {"url": "http://d:8126", "splitService": true}}]});
        assert_eq!(
            compiled(datadog)["backend"],
            json!({"datadog": {"url": "http://d:8126", "splitService": true}})
        );
    }
}
