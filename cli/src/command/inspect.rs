use super::get::all;
use super::kind;
use crate::client::{Client, encode};
use crate::connection::Connection;
use crate::failure::{Exit, Failure, Result};
use crate::output::{self, Format, NOTHING, behind, text, until};
use meridian_core::Kind;
use serde_json::{Value, json};
use time::OffsetDateTime;

mod config;
mod why;

/// Show what runs, and how it is
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Inspect {
    /// Sidecars: whether they are there, how far behind, what they could not take
    Dataplanes {
        /// Mesh [default: all of them]
        #[arg(short, long, value_name = "MESH")]
        mesh: Option<String>,
        #[command(flatten)]
        show: Show,
    },
    /// One sidecar: in full, or what its policies add up to
    Dataplane {
        /// Name
        name: String,
        /// Mesh
        #[arg(short, long, value_name = "MESH", default_value = "default")]
        mesh: String,
        /// What to show of it
        #[arg(long = "type", value_enum, value_name = "TYPE", default_value_t)]
        part: Part,
        /// With --type config: what policies that are only tried out (label kuma.io/effect: shadow) would change
        #[arg(long)]
        shadow: bool,
        #[command(flatten)]
        show: Show,
    },
    /// The sidecars that a policy selects
    Policy {
        /// Kind, in any spelling: meshtimeouts, meshtimeout, mt
        #[arg(value_parser = kind::parse)]
        kind: Kind,
        /// Name
        name: String,
        /// Mesh
        #[arg(short, long, value_name = "MESH", default_value = "default")]
        mesh: String,
        #[command(flatten)]
        show: Show,
    },
    /// Zones: whether they are connected, how far behind, what they refuse
    Zones {
        #[command(flatten)]
        show: Show,
    },
}

/// What there is to know of one sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// How it is
    #[default]
    Overview,
    /// What policies add up to for it, and which they are
    Policies,
    /// What its zone's control plane tells it
    Config,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Show {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(inspect: Inspect) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    if let Inspect::Policy { kind, .. } = &inspect
        && kind.info().targets.is_none()
    {
        return Err(Failure::usage(format!("{kind} is no kind of policy: it selects nothing"))
            .next("`meridian get` shows it."));
    }
    if let Inspect::Dataplane { shadow: true, part, .. } = &inspect
        && *part != Part::Config
    {
        return Err(Failure::usage("--shadow goes with --type config"));
    }
    let (show, path) = match &inspect {
        Inspect::Dataplanes { mesh: None, show } => (show, "/dataplanes/_overview".to_owned()),
        Inspect::Dataplanes { mesh: Some(mesh), show } => {
            (show, format!("/meshes/{}/dataplanes/_overview", encode(mesh)))
        }
        Inspect::Dataplane { name, mesh, show, .. } => {
            (show, format!("/meshes/{}/dataplanes/{}/_overview", encode(mesh), encode(name)))
        }
        Inspect::Policy { kind, name, mesh, show } => {
            (show, format!("{}/_resources/dataplanes", kind::path(*kind, Some(mesh), name)))
        }
        Inspect::Zones { show } => (show, "/zones/_overview".to_owned()),
    };
    let mut client = show.connection.client()?;
    if matches!(inspect, Inspect::Dataplane { .. }) {
        let one = one(&mut client, &inspect, &path).await?;
        if let Inspect::Dataplane { part: Part::Policies, mesh, .. } = &inspect {
            // Its name here: the one that was asked for may be that of its zone.
            let path = format!("/meshes/{}/dataplanes/{}/_rules", encode(mesh), encode(&text(&one, "/name")));
            let said = client.get(&path).await?;
            output::print(&match show.output {
                Format::Json => output::json(&said),
                Format::Yaml => output::yaml(&said),
                Format::Table => why::rules(&said),
            });
            return Ok(());
        }
        if let Inspect::Dataplane { part: Part::Config, shadow, mesh, .. } = &inspect {
            let path = format!("/meshes/{}/dataplanes/{}", encode(mesh), encode(&text(&one, "/name")));
            output::print(&config::run(&mut client, &path, *shadow, show.output).await?);
            return Ok(());
        }
        output::print(&match show.output {
            Format::Json => output::json(&one),
            Format::Yaml => output::yaml(&one),
            Format::Table => dataplane(&one, now),
        });
        return Ok(());
    }
    let items = all(&mut client, &path, &[], 0, None).await?;
    output::print(&match (show.output, &inspect) {
        (Format::Json, _) => output::json(&json!({"total": items.len(), "items": items})),
        (Format::Yaml, _) => output::yaml_documents(&items),
        (Format::Table, Inspect::Zones { .. }) => zones(&items),
        (Format::Table, Inspect::Policy { .. }) => why::selected(&items),
        (Format::Table, _) => dataplanes(&items, now),
    });
    Ok(())
}

/// The overview at `path`; at global a Dataplane goes by another name than the one that its zone and the table call it.
async fn one(client: &mut Client, inspect: &Inspect, path: &str) -> Result<Value> {
    let missing = match client.get(path).await {
        Err(failure) if failure.exit == Exit::Failed => failure,
        answer => return answer,
    };
    let Inspect::Dataplane { name: wanted, mesh, .. } = inspect else { return Err(missing) };
    let items = all(client, &format!("/meshes/{}/dataplanes/_overview", encode(mesh)), &[], 0, None).await?;
    let mut same: Vec<Value> = items.into_iter().filter(|item| name(item) == *wanted).collect();
    match (same.pop(), same.len()) {
        (None, _) => Err(missing),
        (Some(only), 0) => Ok(only),
        (Some(last), _) => {
            same.push(last);
            let names: Vec<String> = same
                .iter()
                .map(|item| format!("{} in {}", text(item, "/name"), text(item, "/zone")))
                .collect();
            Err(Failure::usage(format!("several zones have a Dataplane {wanted}: {}", names.join(", ")))
                .next("Name one of these in full."))
        }
    }
}

fn dataplanes(items: &[Value], now: OffsetDateTime) -> String {
    let rows = items
        .iter()
        .map(|item| {
            vec![
                text(item, "/mesh"),
                name(item),
                text(item, "/zone"),
                services(item),
                text(item, "/status"),
                behind(item.get("behindMillis").and_then(Value::as_u64)),
                until(&text(item, "/certificates/0/expires"), now),
                text(item, "/outboundEnforcement"),
                problems(item),
            ]
        })
        .collect();
    let header = [
        "MESH",
        "NAME",
        "ZONE",
        "SERVICES",
        "STATUS",
        "BEHIND",
        "CERTIFICATE ENDS",
        "ENFORCEMENT",
        "PROBLEMS",
    ];
    output::table(&header, rows)
}

fn zones(items: &[Value]) -> String {
    let rows = items
        .iter()
        .map(|item| {
            vec![
                text(item, "/name"),
                text(item, "/status"),
                behind(item.get("behindMillis").and_then(Value::as_u64)),
                text(item, "/revision"),
                text(item, "/replica"),
                text(item, "/zoneInsight/subscriptions/0/version/kumaCp/version"),
                zone_problems(item),
            ]
        })
        .collect();
    output::table(&["NAME", "STATUS", "BEHIND", "REVISION", "REPLICA", "VERSION", "PROBLEMS"], rows)
}

/// One Dataplane on a page: what it is, how it is, and everything wrong with it.
fn dataplane(item: &Value, now: OffsetDateTime) -> String {
    let mut lines = vec![
        format!("Dataplane    {}/{}", text(item, "/mesh"), name(item)),
        format!("Zone         {}", text(item, "/zone")),
        format!("Status       {}", text(item, "/status")),
        format!("Address      {}", text(item, "/dataplane/networking/address")),
        format!(
            "Revision     {} (behind {})",
            text(item, "/revision"),
            behind(item.get("behindMillis").and_then(Value::as_u64))
        ),
        format!("Enforcement  {}", text(item, "/outboundEnforcement")),
    ];
    for inbound in list(item, "/dataplane/networking/inbound") {
        let service =
            inbound.get("tags").and_then(|tags| tags.get("kuma.io/service")).and_then(Value::as_str);
        let protocol =
            inbound.get("tags").and_then(|tags| tags.get("kuma.io/protocol")).and_then(Value::as_str);
        let (service, protocol) = (service.unwrap_or(NOTHING), protocol.unwrap_or("tcp"));
        lines.push(format!("Inbound      {} {service} ({protocol})", text(inbound, "/port")));
    }
    for inbound in list(item, "/inbounds") {
        let ready =
            if inbound.get("ready").and_then(Value::as_bool) == Some(true) { "ready" } else { "NOT ready" };
        lines.push(format!("Probe        {} {ready}", text(inbound, "/name")));
    }
    for certificate in list(item, "/certificates") {
        let expires = text(certificate, "/expires");
        let root: String = text(certificate, "/root").chars().take(16).collect();
        lines.push(format!(
            "Certificate  mesh {}, ends {} ({expires}), root {root}",
            text(certificate, "/mesh"),
            until(&expires, now)
        ));
    }
    for condition in list(item, "/conditions").iter().filter_map(Value::as_str) {
        lines.push(format!("Condition    {condition}"));
    }
    for problem in list(item, "/problems").iter().filter_map(Value::as_str) {
        lines.push(format!("Problem      {problem}"));
    }
    for rejected in list(item, "/rejected") {
        lines.push(format!(
            "Rejected     {} {}: {}",
            text(rejected, "/type"),
            text(rejected, "/name"),
            text(rejected, "/reason")
        ));
    }
    lines.join("\n")
}

fn name(item: &Value) -> String {
    let display = item.get("labels").and_then(|labels| labels.get(meridian_core::labels::DISPLAY_NAME));
    display.and_then(Value::as_str).map_or_else(|| text(item, "/name"), str::to_owned)
}

fn services(item: &Value) -> String {
    let mut services: Vec<&str> = list(item, "/dataplane/networking/inbound")
        .iter()
        .filter_map(|inbound| inbound.get("tags")?.get("kuma.io/service")?.as_str())
        .collect();
    services.sort_unstable();
    services.dedup();
    if services.is_empty() { NOTHING.to_owned() } else { services.join(",") }
}

fn problems(item: &Value) -> String {
    let not_ready = list(item, "/inbounds")
        .iter()
        .filter(|inbound| inbound.get("ready").and_then(Value::as_bool) == Some(false));
    let counts = [
        (list(item, "/rejected").len(), "rejected"),
        (list(item, "/conditions").len(), "conditions"),
        (not_ready.count(), "not ready"),
    ];
    let said: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if said.is_empty() { NOTHING.to_owned() } else { said.join(", ") }
}

fn zone_problems(item: &Value) -> String {
    let mut said = Vec::new();
    let refused = text(item, "/refused");
    if refused != NOTHING {
        said.push(format!("refuses global: {refused} (see `meridian zone accept-global`)"));
    }
    if let Some(withheld) = item.get("withheld").and_then(Value::as_u64).filter(|withheld| *withheld > 0) {
        said.push(format!("{withheld} deletions wait for `meridian zone accept-global`"));
    }
    if let Some(withheld) = item.get("withheldHere").and_then(Value::as_u64).filter(|withheld| *withheld > 0)
    {
        said.push(format!("{withheld} deletions wait for `meridian zone confirm-deletions`"));
    }
    let rejections = list(item, "/rejections").len();
    if rejections > 0 {
        said.push(format!("{rejections} rejected"));
    }
    if item.get("revokedAt").is_some() {
        said.push("revoked".to_owned());
    }
    if said.is_empty() { NOTHING.to_owned() } else { said.join("; ") }
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn web() -> Value {
        json!({"type": "DataplaneOverview", "mesh": "default", "name": "web-1-x", "zone": "east", "status": "online",
            "labels": {"kuma.io/display-name": "web-1"}, "revision": 12, "behindMillis": 200,
            "outboundEnforcement": "strict", "conditions": ["port 80 is taken by web"],
            "problems": ["metrics on 10.1.0.101:5670: Address in use"],
            "rejected": [{"type": "Inbound", "name": "http", "reason": "unknown field `deny`"}],
            "inbounds": [{"name": "http", "ready": false}],
            "certificates": [{"mesh": "default", "expires": "2026-01-02T00:00:00Z", "root": "ab12"}],
            "dataplane": {"networking": {"address": "10.1.0.101",
                "inbound": [{"port": 8080, "tags": {"kuma.io/service": "web", "kuma.io/protocol": "http"}}]}}})
    }

    #[test]
    fn a_dataplane_in_a_line_and_in_full() {
        let now = datetime!(2026-01-01 00:00 UTC);
        let line = dataplanes(&[web()], now).lines().nth(1).unwrap().to_owned();
        for part in [
            "default",
            "web-1 ",
            "east",
            "online",
            "0.2s",
            "in 24h",
            "strict",
            "1 rejected, 1 conditions, 1 not ready",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let page = dataplane(&web(), now);
        for part in [
            "8080 web (http)",
            "http NOT ready",
            "unknown field `deny`",
            "port 80 is taken",
            "5670: Address in use",
            "root ab12",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }

    #[test]
    fn a_zone_that_refuses_global_says_what_to_do() {
        let zone = json!({"name": "east", "status": "online", "behindMillis": 61000, "refused": "older revision", "withheld": 12});
        let emptied = json!({"name": "south", "status": "online", "withheldHere": 7});
        let text = zones(&[zone, json!({"name": "west", "status": "offline"}), emptied]);
        assert!(
            text.contains(
                "refuses global: older revision (see `meridian zone accept-global`); 12 deletions wait"
            ),
            "{text}"
        );
        assert!(text.contains("7 deletions wait for `meridian zone confirm-deletions`"), "{text}");
        assert!(text.lines().nth(2).unwrap().contains("offline"), "{text}");
    }
}
