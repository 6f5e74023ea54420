use super::open_telemetry::{self, BackendRef};
use super::policy;
use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::url::Url;
use crate::validate::{self, MUST_BE_DEFINED, MUST_NOT_BE_EMPTY, only_one};
use crate::{Context, Flow, IntOrString, Kind, KindInfo, Spec, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where spans of requests go, and of how many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshTrace {
    /// The proxies that trace. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// At most one; an empty list: no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<Backend>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// On every span.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<Tag>>,
}

/// The field that its type names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Backend {
    #[serde(rename = "type")]
    pub type_: BackendType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<Zipkin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datadog: Option<Datadog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetry>,
}

text_enum! {
    /// What takes the spans.
    BackendType, default BackendType::Other(String::new()), {
        Zipkin = "Zipkin",
        Datadog = "Datadog",
        OpenTelemetry = "OpenTelemetry",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Zipkin {
    pub url: String,
    /// Whether trace ids have 128 bits instead of 64.
    #[serde(rename = "traceId128bit")]
    pub trace_id_128bit: bool,
    pub api_version: ZipkinVersion,
    /// Whether caller and called share one span.
    pub shared_span_context: bool,
}

impl Default for Zipkin {
    fn default() -> Self {
        Self {
            url: String::new(),
            trace_id_128bit: false,
            api_version: ZipkinVersion::default(),
            shared_span_context: true,
        }
    }
}

text_enum! {
    /// What Zipkin's collector reads.
    ZipkinVersion, default ZipkinVersion::HttpJson, {
        HttpJson = "httpJson",
        HttpProto = "httpProto",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Datadog {
    /// `http://HOST:PORT`
    pub url: String,
    /// Whether inbound and outbound spans belong to services of their own.
    pub split_service: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    /// `HOST` or `HOST:PORT`; this or `backendRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendRef>,
}

/// Percent of requests; 100 if unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Sampling {
    /// Of all that the other two take: a cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overall: Option<IntOrString>,
    /// Of those whose caller asks for it (`x-client-trace-id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IntOrString>,
    /// Of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<IntOrString>,
}

/// A tag with a value of its own, or a header's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tag {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub literal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderTag>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HeaderTag {
    pub name: String,
    /// Where the request has no such header. Unset: no tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshtraces",
    short: "mtr",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: false, rules: false }),
    doc: "Where spans of requests go, and of how many.",
    fields: &[("targetRef", Executed), ("default", Executed)],
    ..KindInfo::new::<MeshTrace>()
};

impl MeshTrace {
    pub const KIND: Kind = Kind::new("MeshTrace");
}

impl Spec for MeshTrace {
    const KIND: Kind = MeshTrace::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        policy::check_top(self.target_ref.as_ref(), &policy::TOP, false, out);
        match self.default.backends.as_deref() {
            None | Some([]) => {}
            Some([backend]) => backend.check("spec.default.backends[0]", out),
            Some(_) => out.push("spec.default.backends", "must have zero or one backend defined"),
        }
        if let Some(sampling) = &self.default.sampling {
            sampling.check(out);
        }
        for (i, tag) in self.default.tags.iter().flatten().enumerate() {
            tag.check(&format!("spec.default.tags[{i}]"), out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        for (i, backend) in self.default.backends.iter().flatten().enumerate() {
            let scheme = backend.zipkin.as_ref().and_then(|zipkin| Some(Url::parse(&zipkin.url)?.scheme));
            if scheme.is_some_and(|scheme| !scheme.is_empty() && scheme != "http") {
                out.push(format!(
                    "spec.default.backends[{i}].zipkin.url has no effect: collectors are spoken to over plain http"
                ));
            }
        }
    }
}

impl Backend {
    fn check(&self, path: &str, out: &mut Violations) {
        let (field, given) = match &self.type_ {
            BackendType::Zipkin => ("zipkin", self.zipkin.is_some()),
            BackendType::Datadog => ("datadog", self.datadog.is_some()),
            BackendType::OpenTelemetry => ("openTelemetry", self.open_telemetry.is_some()),
            BackendType::Other(_) => {
                return out.push(format!("{path}.type"), validate::one_of("type", BackendType::VALUES));
            }
        };
        if !given {
            out.push(format!("{path}.{field}"), MUST_BE_DEFINED);
        }
        if let Some(zipkin) = &self.zipkin {
            check_url(&format!("{path}.zipkin.url"), &zipkin.url, out);
            if !zipkin.api_version.is_known() {
                out.push(
                    format!("{path}.zipkin.apiVersion"),
                    validate::one_of("apiVersion", ZipkinVersion::VALUES),
                );
            }
        }
        if let Some(datadog) = &self.datadog {
            datadog.check(&format!("{path}.datadog.url"), out);
        }
        if let Some(OpenTelemetry { endpoint, backend_ref }) = &self.open_telemetry {
            let destination = open_telemetry::Destination {
                endpoint: endpoint.as_deref(),
                backend_ref: backend_ref.as_ref(),
            };
            destination.check(&format!("{path}.openTelemetry"), out);
        }
    }
}

fn check_url<'a>(path: &str, url: &'a str, out: &mut Violations) -> Option<Url<'a>> {
    if url.is_empty() {
        out.push(path, MUST_NOT_BE_EMPTY);
        return None;
    }
    let parsed = Url::parse(url);
    if parsed.is_none() {
        out.push(path, "must be a valid url");
    }
    parsed
}

impl Datadog {
    fn check(&self, path: &str, out: &mut Violations) {
        let Some(url) = check_url(path, &self.url, out) else { return };
        if url.scheme != "http" {
            out.push(path, "scheme must be http");
        }
        if url.port.is_none() {
            out.push(path, "port must be defined");
        }
        if !url.path.is_empty() {
            out.push(path, "path must not be defined");
        }
    }
}

impl Sampling {
    fn check(&self, out: &mut Violations) {
        for (name, share) in [("client", &self.client), ("random", &self.random), ("overall", &self.overall)]
        {
            let path = format!("spec.default.sampling.{name}");
            match share.as_ref().map(IntOrString::number) {
                Some(None) => out.push(path, "string is not a number"),
                Some(Some(share)) if !(0.0..=100.0).contains(&share) => {
                    out.push(path, "must be between 0 and 100");
                }
                _ => {}
            }
        }
    }
}

impl Tag {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.name.is_empty() {
            out.push(format!("{path}.name"), MUST_NOT_BE_EMPTY);
        }
        if self.literal.is_some() == self.header.is_some() {
            out.push(path, only_one("tag", &["header", "literal"]));
        }
        if self.header.as_ref().is_some_and(|header| header.name.is_empty()) {
            out.push(format!("{path}.header.name"), MUST_NOT_BE_EMPTY);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::policy_tests::wrong;
    use crate::kinds::tests::{right, warnings};

    fn of(default: &str) -> String {
        format!("{{type: MeshTrace, name: spans, mesh: m, spec: {{default: {{{default}}}}}}}")
    }

    #[test]
    fn spans_go_to_a_backend() {
        let all = of(
            "backends: [{type: Zipkin, zipkin: {url: 'http://jaeger:9411/api/v2/spans', apiVersion: httpProto}}], sampling: {overall: 80, client: '0.5'}, tags: [{name: team, literal: core}, {name: env, header: {name: x-env, default: prod}}]",
        );
        right(&all);
        assert_eq!(warnings(&all), [""; 0]);
        right(&of("backends: [], tags: []"));
        let tls = of("backends: [{type: Zipkin, zipkin: {url: 'https://jaeger:9411/api/v2/spans'}}]");
        right(&tls);
        assert_eq!(
            warnings(&tls),
            ["spec.default.backends[0].zipkin.url has no effect: collectors are spoken to over plain http"]
        );
        right(&of("backends: [{type: Datadog, datadog: {url: 'http://datadog:8126', splitService: true}}]"));
        right(&of("backends: [{type: OpenTelemetry, openTelemetry: {endpoint: 'otel:4317'}}]"));
    }

    #[test]
    fn what_is_unset_is_stored_as_it_counts() {
        let document = of("backends: [{type: Zipkin, zipkin: {url: 'http://jaeger:9411'}}]");
        let document = crate::document::parse_text(&document).unwrap();
        let spec = crate::document::check(&document, None).unwrap().resource.spec;
        assert_eq!(
            spec["default"]["backends"][0]["zipkin"],
            serde_json::json!({
                "url": "http://jaeger:9411", "apiVersion": "httpJson", "sharedSpanContext": true, "traceId128bit": false,
            })
        );
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        wrong(
            &of("backends: [{}, {}], sampling: {overall: x, client: 101, random: -1}"),
            &[
                "spec.default.backends: must have zero or one backend defined",
                "spec.default.sampling.client: must be between 0 and 100",
                "spec.default.sampling.random: must be between 0 and 100",
                "spec.default.sampling.overall: string is not a number",
            ],
        );
        let backends = [
            ("{type: Zipkin}", ".zipkin: must be defined"),
            ("{type: Zipkin, zipkin: {}}", ".zipkin.url: must not be empty"),
            ("{type: Zipkin, zipkin: {url: not_valid}}", ".zipkin.url: must be a valid url"),
            (
                "{type: Zipkin, zipkin: {url: 'http://a:1', apiVersion: httpJsonV1}}",
                ".zipkin.apiVersion: \"apiVersion\" must be one of [\"httpJson\", \"httpProto\"]",
            ),
            ("{type: Datadog, datadog: {url: 'https://a:1'}}", ".datadog.url: scheme must be http"),
            ("{type: Datadog, datadog: {url: 'http://a'}}", ".datadog.url: port must be defined"),
            ("{type: Datadog, datadog: {url: 'http://a:1/x'}}", ".datadog.url: path must not be defined"),
            (
                "{type: OpenTelemetry, openTelemetry: {endpoint: 'http://a:1'}}",
                ".openTelemetry.endpoint: must be in host:port format, not a URL",
            ),
            ("{}", ".type: \"type\" must be one of [\"Zipkin\", \"Datadog\", \"OpenTelemetry\"]"),
        ];
        for (backend, reason) in backends {
            wrong(&of(&format!("backends: [{backend}]")), &[&format!("spec.default.backends[0]{reason}")]);
        }
        wrong(
            &of("tags: [{literal: a}, {name: a}, {name: b, header: {}}]"),
            &[
                "spec.default.tags[0].name: must not be empty",
                "spec.default.tags[1]: tag must have only one type defined: header, literal",
                "spec.default.tags[2].header.name: must not be empty",
            ],
        );
    }
}
