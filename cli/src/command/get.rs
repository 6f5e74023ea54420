use super::kind;
use crate::client::{Client, query};
use crate::connection::Connection;
use crate::failure::Result;
use crate::output::{self, Format, NOTHING, age, text};
use meridian_core::{Kind, Scope, labels};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// Largest page that the API gives.
const PAGE: u64 = 1_000;

/// Show resources
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Get {
    /// Kind, in any spelling: meshservices, meshservice, msvc
    #[arg(value_parser = kind::parse)]
    kind: Kind,
    /// Only this one
    name: Option<String>,
    /// Mesh [default: default]
    #[arg(short, long, value_name = "MESH", conflicts_with = "all_meshes")]
    mesh: Option<String>,
    /// Those of every mesh
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_meshes: bool,
    /// Those whose name contains this
    #[arg(long, value_name = "PART", conflicts_with = "name")]
    name_contains: Option<String>,
    /// Those with this label
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "name")]
    label: Vec<(String, String)>,
    /// Those with this tag
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "name")]
    tag: Vec<(String, String)>,
    /// At most so many, from --offset on [default: all]
    #[arg(long, value_name = "N", conflicts_with = "name", value_parser = clap::value_parser!(u64).range(1..=PAGE))]
    size: Option<u64>,
    /// Leave out the first ones
    #[arg(long, value_name = "N", conflicts_with = "name", default_value_t = 0)]
    offset: u64,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(get: Get) -> Result<()> {
    let mut client = get.connection.client()?;
    let shown = if let Some(name) = &get.name {
        let one = client.get(&kind::path(get.kind, get.mesh.as_deref(), name)).await?;
        match get.output {
            Format::Json => output::json(&one),
            Format::Yaml => output::yaml(&one),
            Format::Table => table(get.kind, &[one], OffsetDateTime::now_utc()),
        }
    } else {
        let items = get.items(&mut client).await?;
        match get.output {
            Format::Json => output::json(&json!({"total": items.len(), "items": items})),
            Format::Yaml => output::yaml_documents(&items),
            Format::Table => table(get.kind, &items, OffsetDateTime::now_utc()),
        }
    };
    output::print(&shown);
    Ok(())
}

impl Get {
    async fn items(&self, client: &mut Client) -> Result<Vec<Value>> {
        let mesh = self.mesh.as_deref().unwrap_or(meridian_core::document::DEFAULT_MESH);
        let path = kind::list_path(self.kind, (!self.all_meshes).then_some(mesh));
        let mut parameters = Vec::new();
        if let Some(part) = &self.name_contains {
            parameters.push(("name".to_owned(), part.clone()));
        }
        parameters
            .extend(self.label.iter().map(|(key, value)| (format!("filter[labels.{key}]"), value.clone())));
        parameters.extend(self.tag.iter().map(|(key, value)| ("tag".to_owned(), format!("{key}:{value}"))));
        all(client, &path, &parameters, self.offset, self.size).await
    }
}

/// Every item of a list, page by page; at most `limit`.
pub(crate) async fn all(
    client: &mut Client,
    path: &str,
    parameters: &[(String, String)],
    mut offset: u64,
    limit: Option<u64>,
) -> Result<Vec<Value>> {
    let mut items = Vec::new();
    loop {
        let mut pairs: Vec<(&str, String)> =
            parameters.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        pairs.push(("size", limit.unwrap_or(PAGE).to_string()));
        pairs.push(("offset", offset.to_string()));
        let mut page = client.get(&format!("{path}{}", query(&pairs))).await?;
        let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
        let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) else { return Ok(items) };
        offset += more.len() as u64;
        let last = more.is_empty() || offset >= total || limit.is_some();
        items.extend(more);
        if last {
            return Ok(items);
        }
    }
}

fn table(kind: Kind, items: &[Value], now: OffsetDateTime) -> String {
    let label = |item: &Value, key: &str| {
        item.get("labels")
            .and_then(|labels| labels.get(key))
            .and_then(Value::as_str)
            .unwrap_or(NOTHING)
            .to_owned()
    };
    let in_mesh = kind.info().scope == Scope::Mesh;
    let rows = items
        .iter()
        .map(|item| {
            let mesh = in_mesh.then(|| text(item, "/mesh"));
            let rest = [text(item, "/name"), label(item, labels::DISPLAY_NAME), label(item, labels::ZONE)];
            let changed = age(&text(item, "/modificationTime"), now);
            mesh.into_iter().chain(rest).chain([changed]).collect()
        })
        .collect();
    let header = ["MESH", "NAME", "DISPLAY NAME", "ZONE", "CHANGED"];
    output::table(if in_mesh { &header } else { &header[1..] }, rows)
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_table_has_a_line_a_resource() {
        let now = datetime!(2026-01-01 01:00 UTC);
        let items = [
            json!({"type": "MeshService", "mesh": "default", "name": "web-x4", "modificationTime": "2026-01-01T00:00:00Z",
                "labels": {"kuma.io/display-name": "web", "kuma.io/zone": "east"}}),
            json!({"type": "MeshService", "mesh": "default", "name": "plain"}),
        ];
        let text = table(kind::parse("meshservices").unwrap(), &items, now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["MESH", "NAME", "DISPLAY", "NAME", "ZONE", "CHANGED"]
        );
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["default", "web-x4", "web", "east", "60m"]
        );
        assert!(!table(kind::parse("zones").unwrap(), &items, now).contains("MESH"));
    }
}
