//! MeshAccessLog: a line for each request or connection, made when it has ended.
//!
//! Formats are read once, when the policy comes, into programs; which headers they name is known then, so that a
//! request keeps a reference to those values alone. A line is one allocation, and goes to a queue ([`crate::telemetry`]).

mod program;
mod record;
mod render;
mod time;

use crate::{
    exchange::Facts,
    telemetry::{LineKey, Of, Sender, Sinks},
};
use http::HeaderValue;
use meridian_core::log_format::LogFormat;
use meridian_proxy_config::{
    self as config, CallerIdentity, CallerMatch, Collector, LogBackend, LogForm, LogLine, Proxy,
};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    resource::v1::Resource,
};
use program::{Program, Wanted};
use record::Template;
use smallvec::SmallVec;
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// Kuma's own lines.
const HTTP_LINE: &str = "[%START_TIME%] %KUMA_MESH% \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-B3-TRACEID?X-DATADOG-TRACEID)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \
    \"%KUMA_SOURCE_SERVICE%\" \"%KUMA_DESTINATION_SERVICE%\" \"%KUMA_SOURCE_ADDRESS_WITHOUT_PORT%\" \
    \"%UPSTREAM_HOST%\"";
const TCP_LINE: &str = "[%START_TIME%] %RESPONSE_FLAGS% %KUMA_MESH% \
    %KUMA_SOURCE_ADDRESS_WITHOUT_PORT%(%KUMA_SOURCE_SERVICE%)->%UPSTREAM_HOST%(%KUMA_DESTINATION_SERVICE%) \
    took %DURATION%ms, sent %BYTES_SENT% bytes, received: %BYTES_RECEIVED% bytes";

/// All that is told of requests to one destination or inbound.
pub type AccessLogs = Arc<[Arc<AccessLog>]>;

/// One backend.
pub struct AccessLog {
    caller: CallerMatch,
    wanted: Wanted,
    form: Form,
    target: Target,
}

/// What is written of HTTP, and of TCP.
enum Form {
    Plain { http: Program, tcp: Program },
    Json(Vec<(String, Program)>),
    Record { attributes: Vec<(String, Program)>, http: Template, tcp: Template },
}

/// Started by the first entry: until then a policy costs nothing but its program.
enum Target {
    Lines(LineKey, OnceLock<Option<Arc<Sender<Vec<u8>>>>>),
    Records(Collector, OnceLock<Option<Arc<Sender<Of<LogRecord>>>>>),
}

/// The values of the headers that one log names.
#[derive(Default)]
pub struct Headers {
    pub(crate) request: Values,
    pub(crate) response: Values,
    pub(crate) trailers: Values,
}

pub(crate) type Values = SmallVec<[Option<HeaderValue>; 4]>;

/// Compiles what policies say.
pub fn compile(logs: &[config::AccessLog]) -> AccessLogs {
    logs.iter().map(|log| Arc::new(AccessLog::compile(log))).collect()
}

/// Those of an inbound's logs that are for a caller.
pub fn of_caller(logs: &AccessLogs, caller: &CallerIdentity, sni: Option<&str>) -> AccessLogs {
    if logs.iter().all(|log| log.caller == CallerMatch::default()) {
        return logs.clone();
    }
    logs.iter().filter(|log| log.caller.matches(caller, sni)).cloned().collect()
}

/// A text that was not checked when it was written stands for itself.
fn program(text: &str, wanted: &mut Wanted) -> Program {
    match LogFormat::parse(text) {
        Ok(format) => Program::compile(&format, wanted),
        Err(_) => Program::text(text),
    }
}

impl AccessLog {
    fn compile(log: &config::AccessLog) -> Self {
        let mut wanted = Wanted::default();
        let (form, target, omit_empty) = match &log.backend {
            LogBackend::File { path, line } => {
                let target = Target::Lines(LineKey::File(PathBuf::from(path)), OnceLock::new());
                (line_form(line, &mut wanted), target, line.omit_empty)
            }
            LogBackend::Tcp { address, line } => {
                let target = Target::Lines(LineKey::Tcp(address.clone()), OnceLock::new());
                (line_form(line, &mut wanted), target, line.omit_empty)
            }
            LogBackend::OpenTelemetry { collector, attributes, body } => {
                let target = Target::Records(collector.clone(), OnceLock::new());
                let mut template = |line: &str| match body {
                    Some(body) => Template::compile(body, &mut |text| program(text, &mut wanted)),
                    None => Template::Text(program(line, &mut wanted)),
                };
                let (http, tcp) = (template(HTTP_LINE), template(TCP_LINE));
                let attributes = fields(attributes, &mut wanted);
                (Form::Record { attributes, http, tcp }, target, false)
            }
        };
        wanted.omit_empty = omit_empty;
        Self { caller: log.caller.clone(), wanted, form, target }
    }

    /// The values that it needs of a request's head.
    pub(crate) fn request(&self, headers: &http::HeaderMap) -> Values {
        program::values(&self.wanted.request, headers)
    }

    pub(crate) fn response(&self, headers: &http::HeaderMap) -> Values {
        program::values(&self.wanted.response, headers)
    }

    pub(crate) fn trailers(&self, headers: &http::HeaderMap) -> Values {
        program::values(&self.wanted.trailers, headers)
    }

    /// Hands over what is to be said of something that has ended.
    pub(crate) fn tell(&self, sinks: &Sinks, facts: &Facts, headers: &Headers) {
        match &self.target {
            Target::Lines(key, sender) => {
                if let Some(sender) = sender.get_or_init(|| sinks.lines(key)) {
                    let line = self.line(facts, headers).into_bytes();
                    let bytes = line.len();
                    sender.offer(line, bytes);
                }
            }
            Target::Records(collector, sender) => {
                if let Some(sender) = sender.get_or_init(|| sinks.records(collector)) {
                    let (entry, bytes) = self.record(facts, headers);
                    sender.offer(Of { proxy: facts.scene.proxy.clone(), entry }, bytes);
                }
            }
        }
    }

    /// With its line feed.
    fn line(&self, facts: &Facts, headers: &Headers) -> String {
        let view = render::View { facts, headers, omit_empty: self.wanted.omit_empty };
        let mut line = String::with_capacity(LINE);
        match &self.form {
            Form::Plain { http, tcp } => {
                let program = if facts.request.is_some() { http } else { tcp };
                render::text(program, &view, &mut line);
            }
            Form::Json(fields) => render::json(fields, &view, &mut line),
            Form::Record { .. } => {}
        }
        if !line.ends_with('\n') {
            line.push('\n');
        }
        line
    }

    /// With how large it is, about.
    fn record(&self, facts: &Facts, headers: &Headers) -> (LogRecord, usize) {
        let view = render::View { facts, headers, omit_empty: false };
        let Form::Record { attributes, http, tcp } = &self.form else {
            return (LogRecord::default(), 0);
        };
        let mut bytes = RECORD;
        let body = if facts.request.is_some() { http } else { tcp };
        let body = body.fill(&view, &mut bytes);
        let attribute = |(key, program): &(String, Program)| {
            let mut text = String::new();
            render::text(program, &view, &mut text);
            bytes += key.len() + text.len();
            key_value(key, &text)
        };
        let attributes = attributes.iter().map(attribute).collect();
        let nanos = |at: ::time::OffsetDateTime| u64::try_from(at.unix_timestamp_nanos()).unwrap_or_default();
        let record = LogRecord {
            time_unix_nano: nanos(facts.at),
            observed_time_unix_nano: nanos(::time::OffsetDateTime::now_utc()),
            body: Some(body),
            attributes,
            trace_id: facts.trace_id.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            ..LogRecord::default()
        };
        (record, bytes)
    }
}

// What Kuma's line takes, mostly.
const LINE: usize = 384;
// What a record takes beside its texts, about.
const RECORD: usize = 64;

fn line_form(line: &LogLine, wanted: &mut Wanted) -> Form {
    match &line.form {
        None => Form::Plain { http: program(HTTP_LINE, wanted), tcp: program(TCP_LINE, wanted) },
        Some(LogForm::Plain(text)) => Form::Plain { http: program(text, wanted), tcp: program(text, wanted) },
        Some(LogForm::Json(pairs)) => Form::Json(fields(pairs, wanted)),
    }
}

/// Of two with one name the last holds.
fn fields(pairs: &[(String, String)], wanted: &mut Wanted) -> Vec<(String, Program)> {
    let mut fields: Vec<(String, Program)> = Vec::new();
    for (key, text) in pairs {
        fields.retain(|(other, _)| other != key);
        fields.push((key.clone(), program(text, wanted)));
    }
    fields
}

/// The proxy that says it.
pub(crate) fn resource_of(proxy: &Proxy, service: &str) -> Resource {
    let attributes = [
        ("service.name", service),
        ("service.instance.id", &proxy.name),
        ("kuma.mesh", &proxy.mesh),
        ("kuma.zone", &proxy.zone),
    ];
    Resource {
        attributes: attributes.iter().map(|(key, value)| key_value(key, value)).collect(),
        ..Resource::default()
    }
}

pub(crate) fn key_value(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests;
