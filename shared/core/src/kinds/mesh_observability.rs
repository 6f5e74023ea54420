//! The backends of logs, traces and metrics that a Mesh may name. Nothing executes them; what Kuma would refuse is
//! refused all the same.

use super::mesh::{LoggingBackend, Mesh, MetricsBackend, TracingBackend};
use crate::{Violations, validate};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

type Conf = Option<BTreeMap<String, Value>>;

impl Mesh {
    pub(super) fn check_observability(&self, out: &mut Violations) {
        if let Some(logging) = &self.logging {
            let names = check_each("logging", &logging.backends, |b| &b.name, LoggingBackend::check, out);
            if !logging.default_backend.is_empty() && !names.contains(&logging.default_backend) {
                out.push("logging.defaultBackend", "has to be set to one of the logging backend in mesh");
            }
        }
        if let Some(tracing) = &self.tracing {
            let names = check_each("tracing", &tracing.backends, |b| &b.name, TracingBackend::check, out);
            if !tracing.default_backend.is_empty() && !names.contains(&tracing.default_backend) {
                out.push("tracing.defaultBackend", "has to be set to one of the tracing backend in mesh");
            }
        }
        if let Some(metrics) = &self.metrics {
            let names = check_each("metrics", &metrics.backends, |b| &b.name, MetricsBackend::check, out);
            if !metrics.enabled_backend.is_empty() && !names.contains(&metrics.enabled_backend) {
                out.push("metrics.enabledBackend", "has to be set to one of the backends in the mesh");
            }
        }
    }
}

fn check_each<T>(
    section: &str,
    backends: &[T],
    name: impl Fn(&T) -> &String,
    check: impl Fn(&T, &str, &mut Violations),
    out: &mut Violations,
) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (i, backend) in backends.iter().enumerate() {
        let path = format!("{section}.backends[{i}]");
        check(backend, &path, out);
        let name = name(backend);
        if !names.insert(name.clone()) {
            out.push(format!("{path}.name"), format!("{name:?} name is already used for another backend"));
        }
    }
    names
}

fn text<'a>(conf: &'a Conf, field: &str) -> &'a str {
    conf.as_ref().and_then(|conf| conf.get(field)).and_then(Value::as_str).unwrap_or_default()
}

impl LoggingBackend {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.name.is_empty() {
            out.push(format!("{path}.name"), "cannot be empty");
        }
        match self.type_.as_str() {
            "file" if text(&self.conf, "path").is_empty() => {
                out.push(format!("{path}.config.path"), "cannot be empty");
            }
            "file" => {}
            "tcp" => {
                let address = text(&self.conf, "address");
                if address.is_empty() {
                    out.push(format!("{path}.config.address"), "cannot be empty");
                } else if !is_host_and_port(address) {
                    out.push(format!("{path}.config.address"), "has to be in format of HOST:PORT");
                }
            }
            _ => out
                .push(format!("{path}.type"), "unknown backend type. Available backends: \"tcp\", \"file\""),
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    !host.is_empty() && !port.is_empty() && (bracketed || !host.contains(':'))
}

impl TracingBackend {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.name.is_empty() {
            out.push(format!("{path}.name"), "cannot be empty");
        }
        if self.sampling.is_some_and(|sampling| !(0.0..=100.0).contains(&sampling)) {
            out.push(format!("{path}.sampling"), "has to be in [0.0 - 100.0] range");
        }
        match self.type_.as_str() {
            "zipkin" => self.check_zipkin(&format!("{path}.config"), out),
            "datadog" => {
                if text(&self.conf, "address").is_empty() {
                    out.push(format!("{path}.config.address"), "cannot be empty");
                }
                let port = self.conf.as_ref().and_then(|conf| conf.get("port")).and_then(Value::as_u64);
                let port = port.and_then(|port| u32::try_from(port).ok()).unwrap_or_default();
                validate::port(&format!("{path}.config.port"), port, out);
            }
            _ => out.push(
                format!("{path}.type"),
                "unknown backend type. Available backends: \"zipkin\", \"datadog\"",
            ),
        }
    }

    fn check_zipkin(&self, path: &str, out: &mut Violations) {
        let version = text(&self.conf, "apiVersion");
        if !["", "httpJsonV1", "httpJson", "httpProto"].contains(&version) {
            let reason = "has invalid value. Allowed values: httpJsonV1, httpJson, httpProto";
            out.push(format!("{path}.apiVersion"), reason);
        }
        let url = text(&self.conf, "url");
        if url.is_empty() {
            return out.push(format!("{path}.url"), "cannot be empty");
        }
        let authority = match url.split_once("://") {
            Some((_, rest)) => rest.split('/').next().unwrap_or_default(),
            None if url.starts_with('/') => "",
            None => return out.push(format!("{path}.url"), "invalid URL"),
        };
        let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
        if port.parse::<u16>().is_err() {
            out.push(format!("{path}.url"), "port has to be explicitly specified");
        }
    }
}

impl MetricsBackend {
    pub(super) fn check(&self, path: &str, out: &mut Violations) {
        if self.type_ != "prometheus" {
            let reason = "unknown backend type. Available backends: \"prometheus\"";
            return out.push(format!("{path}.type"), reason);
        }
        let conf = |field: &str| self.conf.as_ref().and_then(|conf| conf.get(field));
        if let (Some(skip), Some(tls)) = (conf("skipMTLS"), conf("tls")) {
            let mode = tls.get("mode").and_then(Value::as_str).unwrap_or("activeMTLSBackend");
            let same = match skip.as_bool() {
                Some(true) => mode == "disabled",
                _ => mode == "activeMTLSBackend",
            };
            if !same {
                let reason = "skipMTLS and tls configuration cannot be defined together";
                return out.push(format!("{path}.conf"), reason);
            }
        }
        let mut names = BTreeSet::new();
        for (i, item) in conf("aggregate").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
            if !names.insert(name) {
                out.push(
                    format!("{path}.conf.aggregate[{i}].name"),
                    format!("duplicate entry: {name}, values have to be unique"),
                );
            }
        }
    }
}
