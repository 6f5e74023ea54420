use super::open_telemetry::{self, BackendRef};
use super::policy::{self, Lists, ONLY_MESH, Rule, Targeted};
use crate::enums::text_enum;
use crate::log_format::LogFormat;
use crate::registry::Standing::Executed;
use crate::url::Url;
use crate::validate::{self, MUST_BE_DEFINED, MUST_NOT_BE_EMPTY};
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a line for each connection or request goes, and what it says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshAccessLog {
    /// The proxies that log. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For calls that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Targeted<Conf>>>,
    /// For calls that go out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
    /// For calls that come in, by caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// Each gets every line; an empty list: no log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<Backend>>,
}

/// The field that its type names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Backend {
    #[serde(rename = "type")]
    pub type_: BackendType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetry>,
}

text_enum! {
    /// What takes the lines.
    BackendType, default BackendType::Other(String::new()), {
        Tcp = "Tcp",
        File = "File",
        OpenTelemetry = "OpenTelemetry",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tcp {
    /// `HOST:PORT`
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct File {
    /// On the proxy's host.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    /// `HOST` or `HOST:PORT`; this or `backendRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendRef>,
    /// Values may have placeholders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Vec<KeyValue>>,
    /// Any JSON, with placeholders. Unset: the default line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
}

/// How a line looks. Unset: Kuma's line for HTTP or for TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Format {
    #[serde(rename = "type")]
    pub type_: FormatType,
    /// Text with placeholders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Vec<KeyValue>>,
    /// Placeholders without a value are left out, instead of being `-` or null.
    pub omit_empty_values: bool,
}

text_enum! {
    /// What a line is.
    FormatType, default FormatType::Other(String::new()), {
        Plain = "Plain",
        Json = "Json",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshaccesslogs",
    short: "mal",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: true, rules: true }),
    doc: "Where a line for each connection or request goes, and what it says.",
    fields: &[("targetRef", Executed), ("from", Executed), ("to", Executed), ("rules", Executed)],
    ..KindInfo::new::<MeshAccessLog>()
};

impl MeshAccessLog {
    pub const KIND: Kind = Kind::new("MeshAccessLog");
}

impl Spec for MeshAccessLog {
    const KIND: Kind = MeshAccessLog::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let lists = Lists::new(self.from.as_ref(), self.to.as_ref(), self.rules.as_ref());
        policy::check_top(self.target_ref.as_ref(), &policy::TOP, lists.inbound(), out);
        lists.check(out);
        policy::check_targets("from", self.from.as_ref(), &ONLY_MESH, out, Conf::check);
        policy::check_targets("to", self.to.as_ref(), &policy::TO_OR_ROUTE, out, Conf::check);
        policy::check_rules(self.rules.as_ref(), out, |rule, path, out| rule.default.check(path, out));
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        policy::warn_of_destinations(self.to.as_ref(), out);
        for (list, items) in [("from", &self.from), ("to", &self.to)] {
            for (i, item) in items.iter().flatten().enumerate() {
                item.default.warn(&format!("spec.{list}[{i}].default"), out);
            }
        }
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            rule.default.warn(&format!("spec.rules[{i}].default"), out);
        }
    }
}

impl Conf {
    fn warn(&self, path: &str, out: &mut Vec<String>) {
        for (i, backend) in self.backends.iter().flatten().enumerate() {
            let port = |tcp: &Tcp| Url::parse(&tcp.address).and_then(|url| url.port);
            if backend.tcp.as_ref().is_some_and(|tcp| port(tcp).is_none()) {
                out.push(format!("{path}.backends[{i}].tcp.address has no effect: it names no port"));
            }
            for (field, text) in backend.texts() {
                let format = LogFormat::parse(text).unwrap_or_default();
                for name in format.without_value() {
                    let path = format!("{path}.backends[{i}].{field}");
                    out.push(format!("{path}: %{name}% has no value here, and is written as '-'"));
                }
            }
        }
    }

    fn check(&self, path: &str, out: &mut Violations) {
        let path = format!("{path}.backends");
        match &self.backends {
            None => out.push(path, MUST_BE_DEFINED),
            Some(backends) => {
                for (i, backend) in backends.iter().enumerate() {
                    backend.check(&format!("{path}[{i}]"), out);
                }
            }
        }
    }
}

impl Backend {
    /// All that may have placeholders, with its field.
    fn texts(&self) -> Vec<(String, &str)> {
        let mut texts = Vec::new();
        let tcp = self.tcp.as_ref().and_then(|tcp| Some(("tcp", tcp.format.as_ref()?)));
        let file = self.file.as_ref().and_then(|file| Some(("file", file.format.as_ref()?)));
        for (field, format) in tcp.into_iter().chain(file) {
            texts.extend(format.plain.as_deref().map(|text| (format!("{field}.format.plain"), text)));
            let json = format.json.iter().flatten().enumerate();
            texts.extend(
                json.map(|(i, pair)| (format!("{field}.format.json[{i}].value"), pair.value.as_str())),
            );
        }
        if let Some(open_telemetry) = &self.open_telemetry {
            let attributes = open_telemetry.attributes.iter().flatten().enumerate();
            texts.extend(
                attributes
                    .map(|(i, pair)| (format!("openTelemetry.attributes[{i}].value"), pair.value.as_str())),
            );
            let body = open_telemetry.body.iter().flat_map(strings);
            texts.extend(body.map(|text| ("openTelemetry.body".to_owned(), text)));
        }
        texts
    }

    fn check_texts(&self, path: &str, out: &mut Violations) {
        for (field, text) in self.texts() {
            match LogFormat::parse(text) {
                Ok(format) => {
                    for name in format.unknown() {
                        let reason = format!("%{name}% is no placeholder of Envoy's or Kuma's");
                        out.push(format!("{path}.{field}"), reason);
                    }
                }
                Err(error) => out.push(format!("{path}.{field}"), error.to_string()),
            }
        }
    }

    fn check(&self, path: &str, out: &mut Violations) {
        let (field, given) = match &self.type_ {
            BackendType::Tcp => ("tcp", self.tcp.is_some()),
            BackendType::File => ("file", self.file.is_some()),
            BackendType::OpenTelemetry => ("openTelemetry", self.open_telemetry.is_some()),
            BackendType::Other(_) => {
                return out.push(format!("{path}.type"), validate::one_of("type", BackendType::VALUES));
            }
        };
        if !given {
            out.push(format!("{path}.{field}"), MUST_BE_DEFINED);
        }
        if let Some(tcp) = &self.tcp {
            if Url::parse(&tcp.address).is_none() {
                out.push(format!("{path}.tcp.address"), "tcp backend requires valid address");
            }
            check_format(&format!("{path}.tcp"), tcp.format.as_ref(), out);
        }
        if let Some(file) = &self.file {
            if !validate::is_file_path(&file.path) {
                out.push(format!("{path}.file.path"), "file backend requires a valid path");
            }
            check_format(&format!("{path}.file"), file.format.as_ref(), out);
        }
        if let Some(open_telemetry) = &self.open_telemetry {
            open_telemetry.check(&format!("{path}.openTelemetry"), out);
        }
        self.check_texts(path, out);
    }
}

/// Every text in a JSON value; names of fields are not among them.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(fields) => fields.values().flat_map(strings).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

impl OpenTelemetry {
    fn check(&self, path: &str, out: &mut Violations) {
        let destination = open_telemetry::Destination {
            endpoint: self.endpoint.as_deref(),
            backend_ref: self.backend_ref.as_ref(),
        };
        destination.check(path, out);
        for (i, attribute) in self.attributes.iter().flatten().enumerate() {
            let path = format!("{path}.attributes[{i}]");
            attribute.check_empty(&path, out);
            if !attribute.key.is_empty() && !is_attribute_key(&attribute.key) {
                out.push(
                    format!("{path}.key"),
                    "must begin with a lower case letter, and consist of lower case alphanumeric characters, and '.' and '_' between them",
                );
            }
        }
    }
}

/// OpenTelemetry's names: `service.version`.
fn is_attribute_key(key: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    key.starts_with(|c: char| c.is_ascii_lowercase()) && key.split(['.', '_']).all(is_part)
}

fn check_format(path: &str, format: Option<&Format>, out: &mut Violations) {
    let Some(format) = format else { return };
    let path = format!("{path}.format");
    match &format.type_ {
        FormatType::Plain => match format.plain.as_deref() {
            None => out.push(format!("{path}.plain"), MUST_BE_DEFINED),
            Some("") => out.push(format!("{path}.plain"), MUST_NOT_BE_EMPTY),
            Some(_) => {}
        },
        FormatType::Json => match &format.json {
            None => out.push(format!("{path}.json"), MUST_BE_DEFINED),
            Some(pairs) => {
                for (i, pair) in pairs.iter().enumerate() {
                    pair.check(&format!("{path}.json[{i}]"), out);
                }
            }
        },
        FormatType::Other(_) => {
            out.push(format!("{path}.type"), validate::one_of("type", FormatType::VALUES));
        }
    }
}

impl KeyValue {
    fn check_empty(&self, path: &str, out: &mut Violations) {
        for (name, text) in [("key", &self.key), ("value", &self.value)] {
            if text.is_empty() {
                out.push(format!("{path}.{name}"), format!("{name} cannot be empty"));
            }
        }
    }

    fn check(&self, path: &str, out: &mut Violations) {
        self.check_empty(path, out);
        let pair = format!("{{\"{}\": \"{}\"}}", self.key, self.value);
        if serde_json::from_str::<Value>(&pair).is_err() {
            out.push(path, "is not a valid JSON object");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::policy_tests::wrong;
    use crate::kinds::tests::{right, warnings};

    fn of(spec: &str) -> String {
        format!("{{type: MeshAccessLog, name: lines, mesh: m, spec: {{{spec}}}}}")
    }

    fn to(backend: &str) -> String {
        of(&format!("to: [{{targetRef: {{kind: Mesh}}, default: {{backends: [{{{backend}}}]}}}}]"))
    }

    #[test]
    fn lines_go_to_backends() {
        let all = of(
            "from: [{targetRef: {kind: Mesh}, default: {backends: [{type: File, file: {path: /tmp/in.log, format: {type: Plain, plain: '%START_TIME%', omitEmptyValues: true}}}]}}], to: [{targetRef: {kind: MeshHTTPRoute, name: r}, default: {backends: []}}]",
        );
        right(&all);
        assert_eq!(warnings(&all), [""; 0]);
        right(&to(
            "type: Tcp, tcp: {address: 'logs:5000', format: {type: Json, json: [{key: start, value: '%START_TIME%'}]}}",
        ));
        right(&to(
            "type: OpenTelemetry, openTelemetry: {endpoint: 'otel:4317', body: {kvlistValue: {values: []}}, attributes: [{key: service.version_2, value: '%KUMA_MESH%'}]}",
        ));
        right(&of(
            "rules: [{matches: [{spiffeID: {type: Exact, value: 'spiffe://m/a'}}], default: {backends: [{type: File, file: {path: /dev/stdout}}]}}]",
        ));
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        wrong(&of(""), &["spec: at least one of 'from', 'to' or 'rules' has to be defined"]);
        wrong(
            &of("from: [{targetRef: {kind: MeshSubset}}], rules: [{default: {backends: [{type: Fax}]}}]"),
            &[
                "spec: fields 'to' and 'from' must be empty when 'rules' is defined",
                "spec.from[0].targetRef.kind: value 'MeshSubset' is not supported",
                "spec.from[0].default.backends: must be defined",
                "spec.rules[0].default.backends[0].type: \"type\" must be one of [\"Tcp\", \"File\", \"OpenTelemetry\"]",
            ],
        );
        wrong(&to("type: Tcp"), &["spec.to[0].default.backends[0].tcp: must be defined"]);
        let formats = [
            ("{type: Plain}", "plain: must be defined"),
            ("{type: Plain, plain: ''}", "plain: must not be empty"),
            ("{type: Json}", "json: must be defined"),
            ("{type: Json, json: [{value: v}]}", "json[0].key: key cannot be empty"),
            ("{type: Json, json: [{key: k}]}", "json[0].value: value cannot be empty"),
            ("{type: Json, json: [{key: k, value: '\"'}]}", "json[0]: is not a valid JSON object"),
            ("{}", "type: \"type\" must be one of [\"Plain\", \"Json\"]"),
        ];
        for (format, reason) in formats {
            wrong(
                &to(&format!("type: File, file: {{path: log, format: {format}}}")),
                &[
                    "spec.to[0].default.backends[0].file.path: file backend requires a valid path",
                    &format!("spec.to[0].default.backends[0].file.format.{reason}"),
                ],
            );
        }
        wrong(
            &to("type: Tcp, tcp: {address: no_address}"),
            &["spec.to[0].default.backends[0].tcp.address: tcp backend requires valid address"],
        );
    }

    #[test]
    fn placeholders_are_looked_at() {
        let file = |format: &str| to(&format!("type: File, file: {{path: /tmp/a, format: {format}}}"));
        wrong(
            &file("{type: Plain, plain: '%REQ(:PATH% 100%'}"),
            &[
                "spec.to[0].default.backends[0].file.format.plain: a % at byte 0 begins no placeholder: write %% for a percent sign",
            ],
        );
        wrong(
            &to(
                "type: OpenTelemetry, openTelemetry: {endpoint: 'a:1', body: {a: [{b: '%DURATION(x)%'}]}, attributes: [{key: k, value: '%REQ%'}]}",
            ),
            &[
                "spec.to[0].default.backends[0].openTelemetry.attributes[0].value: REQ needs the name of a header",
                "spec.to[0].default.backends[0].openTelemetry.body: DURATION takes no arguments",
            ],
        );
        wrong(
            &file(
                "{type: Json, json: [{key: a, value: '%RESPONSE_CODE%'}, {key: b, value: '%RESPONSE_COED% %FILTER_STATE(k)%'}]}",
            ),
            &[
                "spec.to[0].default.backends[0].file.format.json[1].value: %RESPONSE_COED% is no placeholder of Envoy's or Kuma's",
            ],
        );
        let no_port = to("type: Tcp, tcp: {address: logs.example}");
        right(&no_port);
        assert_eq!(
            warnings(&no_port),
            ["spec.to[0].default.backends[0].tcp.address has no effect: it names no port"]
        );
        let unknown = file("{type: Json, json: [{key: a, value: '%START_TIME(%s)% %ENVIRONMENT(HOME)%'}]}");
        right(&unknown);
        assert_eq!(
            warnings(&unknown),
            [
                "spec.to[0].default.backends[0].file.format.json[0].value: %ENVIRONMENT% has no value here, and is written as '-'",
            ]
        );
    }

    #[test]
    fn open_telemetry_goes_to_one_place() {
        let cases = [
            ("", "openTelemetry: openTelemetry must have exactly one defined: endpoint, backendRef"),
            (
                "endpoint: 'a:1', backendRef: {}",
                "openTelemetry: openTelemetry must have only one type defined: endpoint, backendRef",
            ),
            ("endpoint: 'http://a:1'", "openTelemetry.endpoint: must be in host:port format, not a URL"),
            ("endpoint: 'a:1/v1/logs'", "openTelemetry.endpoint: must be in host:port format, not a URL"),
            (
                "backendRef: {kind: MeshOpenTelemetryBackend}",
                "openTelemetry.backendRef: backendRef must have exactly one defined: labels",
            ),
            (
                "backendRef: {kind: MeshService, labels: {app: otel}}",
                "openTelemetry.backendRef.kind: value 'MeshService' is not supported",
            ),
            (
                "endpoint: 'a:1', attributes: [{key: '', value: v}]",
                "openTelemetry.attributes[0].key: key cannot be empty",
            ),
            (
                "endpoint: 'a:1', attributes: [{key: a..b, value: v}]",
                "openTelemetry.attributes[0].key: must begin with a lower case letter, and consist of lower case alphanumeric characters, and '.' and '_' between them",
            ),
        ];
        for (fields, reason) in cases {
            wrong(
                &to(&format!("type: OpenTelemetry, openTelemetry: {{{fields}}}")),
                &[&format!("spec.to[0].default.backends[0].{reason}")],
            );
        }
    }
}
