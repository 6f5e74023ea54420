use crate::client::{encode, query};
use crate::connection::Connection;
use crate::failure::Result;
use crate::output::{self, Format, age, text};
use serde_json::Value;
use time::OffsetDateTime;

/// Show who was refused what, by whom and why
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Denials {
    /// Mesh
    #[arg(short, long, value_name = "MESH", default_value = "default")]
    mesh: String,
    /// Those of this zone
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Those whose caller contains this
    #[arg(long, value_name = "PART")]
    caller: Option<String>,
    /// Those whose destination contains this
    #[arg(long, value_name = "PART")]
    destination: Option<String>,
    /// Those whose reason contains this
    #[arg(long, value_name = "PART")]
    reason: Option<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(denials: Denials) -> Result<()> {
    let mut client = denials.connection.client()?;
    let filters: Vec<(&str, String)> = [
        ("zone", &denials.zone),
        ("caller", &denials.caller),
        ("destination", &denials.destination),
        ("reason", &denials.reason),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.clone().map(|value| (name, value)))
    .collect();
    let answer =
        client.get(&format!("/meshes/{}/_denials{}", encode(&denials.mesh), query(&filters))).await?;
    match denials.output {
        Format::Json => output::print(&output::json(&answer)),
        Format::Yaml => output::print(&output::yaml(&answer)),
        Format::Table => {
            output::print(&table(&answer, OffsetDateTime::now_utc()));
            let overflow = answer.get("overflow").and_then(Value::as_u64).unwrap_or(0);
            if overflow > 0 {
                output::note(&format!("{overflow} more were counted, beyond the rows that a zone keeps"));
            }
        }
    }
    Ok(())
}

fn table(answer: &Value, now: OffsetDateTime) -> String {
    let rows = answer.get("items").and_then(Value::as_array).into_iter().flatten();
    let rows = rows
        .map(|row| {
            let destination = match text(row, "/port").as_str() {
                "0" | output::NOTHING => text(row, "/destination"),
                port => format!("{}:{port}", text(row, "/destination")),
            };
            vec![
                age(&text(row, "/last"), now),
                text(row, "/count"),
                text(row, "/zone"),
                text(row, "/caller"),
                destination,
                text(row, "/reason"),
                text(row, "/by"),
                text(row, "/rule"),
            ]
        })
        .collect();
    output::table(
        &["LAST", "COUNT", "ZONE", "CALLER", "DESTINATION", "REASON", "REFUSED BY", "NEAREST RULE"],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use time::macros::datetime;

    #[test]
    fn a_denial_says_who_what_and_why() {
        let answer = json!({"total": 1, "items": [{"mesh": "default", "zone": "east", "caller": "spiffe://default/web",
            "destination": "evil.example.net", "port": 443, "reason": "not-listed", "rule": "", "count": 7,
            "last": "2026-01-01T00:00:00Z", "by": "sidecar web-1"}]});
        let text = table(&answer, datetime!(2026-01-01 00:00:30 UTC));
        let row = text.lines().nth(1).unwrap();
        for part in [
            "30s",
            "7",
            "east",
            "spiffe://default/web",
            "evil.example.net:443",
            "not-listed",
            "sidecar web-1",
        ] {
            assert!(row.contains(part), "{part} in {row}");
        }
    }
}
