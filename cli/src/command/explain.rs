use super::inspect::list;
use crate::client::{encode, query};
use crate::connection::Connection;
use crate::failure::Result;
use crate::output::{self, Format, NOTHING, text};
use serde_json::Value;

const EXAMPLE: &str = "\
Examples:
  meridian explain web backend.mesh:80
  meridian explain web-1 http://backend.mesh/users --method POST --header x-canary:yes
  meridian explain web-1 https://api.example.com";

/// What would happen to a call, and which policies decide it
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Explain {
    /// Who calls: a Dataplane, or a service (its first instance)
    source: String,
    /// What is called: a service, HOST, HOST:PORT or a URL
    destination: String,
    /// Mesh
    #[arg(short, long, value_name = "MESH", default_value = "default")]
    mesh: String,
    /// Path of the request, query included [default: that of the URL, else /]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Method of the request [default: GET]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// A header of the request; may be given several times
    #[arg(long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// As if the policies that are only tried out (label kuma.io/effect: shadow) were in force
    #[arg(long)]
    shadow: bool,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(explain: Explain) -> Result<()> {
    let mut client = explain.connection.client()?;
    let answer = client.get(&explain.path()).await?;
    output::print(&match explain.output {
        Format::Json => output::json(&answer),
        Format::Yaml => output::yaml(&answer),
        Format::Table => shown(&answer),
    });
    Ok(())
}

impl Explain {
    fn path(&self) -> String {
        let mut parameters = vec![("source", self.source.clone()), ("destination", self.destination.clone())];
        parameters.extend(self.path.clone().map(|path| ("path", path)));
        parameters.extend(self.method.clone().map(|method| ("method", method)));
        parameters.extend(self.headers.iter().map(|header| ("header", header.clone())));
        parameters.extend(self.shadow.then(|| ("shadow", "true".to_owned())));
        format!("/meshes/{}/_explain{}", encode(&self.mesh), query(&parameters))
    }
}

/// The verdict in a line, and each step with who decides it.
fn shown(answer: &Value) -> String {
    let verdict = match answer.get("allowed").and_then(Value::as_bool) {
        Some(true) => "allowed",
        Some(false) => "DENIED",
        None => "not to be known here",
    };
    let services: Vec<&str> = list(answer, "/source/services").iter().filter_map(Value::as_str).collect();
    let first = format!(
        "{} ({}; zone {}) calls {}: {verdict}",
        text(answer, "/source/name"),
        if services.is_empty() { NOTHING.to_owned() } else { services.join(", ") },
        text(answer, "/source/zone"),
        text(answer, "/destination/asked"),
    );
    let rows = list(answer, "/steps").iter().map(|step| {
        let mark = match step.get("outcome").and_then(Value::as_str) {
            Some("denied") => "no",
            Some("unknown") => "?",
            _ => "yes",
        };
        vec![text(step, "/step"), mark.to_owned(), text(step, "/text"), deciders(step)]
    });
    let table = output::table(&["STEP", "GOES ON", "WHAT", "DECIDED BY"], rows.collect());
    format!("{first}\n\n{table}")
}

/// `MeshTimeout quick (item 0)`; the kind is left out where the step is named after it.
fn deciders(step: &Value) -> String {
    let kind = text(step, "/step");
    let one = |decider: &Value| {
        let items: Vec<String> = list(decider, "/items").iter().map(Value::to_string).collect();
        let of = text(decider, "/type");
        let kind = if of == kind { String::new() } else { format!("{of} ") };
        let items = match items.as_slice() {
            [] => String::new(),
            [one] => format!(" (item {one})"),
            several => format!(" (items {})", several.join(", ")),
        };
        format!("{kind}{}{items}", text(decider, "/name"))
    };
    let all: Vec<String> = list(step, "/policies").iter().map(one).collect();
    if all.is_empty() { NOTHING.to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_in_full() {
        let answer = json!({
            "source": {"name": "web-1", "zone": "east", "services": ["web"]},
            "destination": {"asked": "backend.mesh:80"},
            "allowed": false,
            "steps": [
                {"step": "destination", "outcome": "passed", "text": "MeshService backend of zone west, port 9000 (http)"},
                {
                    "step": "MeshTimeout", "outcome": "passed", "text": "http request timeout 1s",
                    "policies": [
                        {"type": "MeshTimeout", "name": "quick", "items": [0]},
                        {"type": "MeshTimeout", "name": "all", "items": [0, 2]},
                    ],
                },
                {
                    "step": "identity", "outcome": "passed", "text": "mTLS (STRICT)",
                    "policies": [{"type": "Mesh", "name": "default"}],
                },
                {
                    "step": "MeshTrafficPermission", "outcome": "denied",
                    "text": "refused by all 3 instances: no rule allows spiffe://default/web",
                },
            ],
        });
        insta::assert_snapshot!("a_call_in_full", shown(&answer));
        let unknown = json!({"source": {"name": "web-1", "zone": "east"}, "destination": {"asked": "x"}, "steps": [
            {"step": "instances", "outcome": "unknown", "text": "decided by the instances in zone west: ask global, or that zone"},
        ]});
        insta::assert_snapshot!("a_call_that_ends_elsewhere", shown(&unknown));
    }
}
