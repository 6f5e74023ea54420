//! MeshTrace.

use super::access_log::otlp;
use meridian_core::IntOrString;
use meridian_core::kinds::mesh_trace::{
    self, Backend, BackendType, Conf, OpenTelemetry, Sampling, ZipkinVersion,
};
use meridian_proxy_config::{TagValue, Trace, TraceBackend, TraceSampling, TraceTag, ZipkinFormat};

const ALL: u32 = 1_000_000;

/// What a sidecar traces; `None`: nothing.
pub(crate) fn trace(conf: &Conf) -> Option<Trace> {
    let backend = backend(conf.backends.as_ref()?.first()?)?;
    Some(Trace {
        backend,
        sampling: sampling(conf.sampling.as_ref()),
        tags: conf.tags.iter().flatten().filter_map(tag).collect(),
    })
}

fn backend(backend: &Backend) -> Option<TraceBackend> {
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
        BackendType::OpenTelemetry => {
            let OpenTelemetry { endpoint, .. } = backend.open_telemetry.as_ref()?;
            Some(TraceBackend::OpenTelemetry { endpoint: otlp(endpoint.as_deref()?) })
        }
        BackendType::Other(_) => None,
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
    use serde_json::{Value, json};

    fn compiled(conf: Value) -> Value {
        serde_json::to_value(trace(&serde_json::from_value(conf).unwrap())).unwrap()
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
        let reference = json!({"kind": "MeshOpenTelemetryBackend", "labels": {"a": "b"}});
        for conf in [
            json!({}),
            json!({"backends": []}),
            json!({"backends": [{"type": "OpenTelemetry", "openTelemetry": {"backendRef": reference}}]}),
        ] {
            assert_eq!(compiled(conf), Value::Null);
        }
        let datadog = json!({"backends": [{"type": "Datadog", "datadog": {"url": "http://d:8126", "splitService": true}}]});
        assert_eq!(
            compiled(datadog)["backend"],
            json!({"datadog": {"url": "http://d:8126", "splitService": true}})
        );
    }
}
