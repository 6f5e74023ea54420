//! What a sidecar is told, and what policies that are tried out would change of it.

use super::list;
use crate::client::Client;
use crate::failure::Result;
use crate::output::{self, Format, text};
use serde_json::Value;

/// Asks for it and shows it. `path` is the Dataplane's.
pub(super) async fn run(client: &mut Client, path: &str, shadow: bool, format: Format) -> Result<String> {
    let query = if shadow { "?shadow=true&include=diff" } else { "" };
    let answer = client.get(&format!("{path}/_config{query}")).await?;
    Ok(match format {
        Format::Json => output::json(&answer),
        Format::Yaml => output::yaml(&answer),
        Format::Table if shadow => changes(&answer),
        Format::Table => output::yaml(answer.get("xds").unwrap_or(&Value::Null)),
    })
}

/// One sentence a line.
fn changes(answer: &Value) -> String {
    let tried: Vec<String> = list(answer, "/shadowPolicies").iter().map(|it| text(it, "/kri")).collect();
    if tried.is_empty() {
        return "No policy of the mesh is tried out (label kuma.io/effect: shadow).".to_owned();
    }
    let mut lines = vec![format!("Tried out: {}", tried.join(", ")), String::new()];
    let changes = list(answer, "/changes");
    if changes.is_empty() {
        lines.push("Nothing would change for this sidecar.".to_owned());
    } else {
        lines.push("What would change for this sidecar:".to_owned());
        lines.extend(changes.iter().map(|change| format!("  {}", text(change, "/text"))));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_sentences() {
        let answer = json!({
            "shadowPolicies": [{"kri": "kri_mt_default___quick_"}],
            "changes": [{"text": "all calls: request timeout 15s -> 1s"}],
        });
        insta::assert_snapshot!("what_would_change", changes(&answer));
        let none = json!({"shadowPolicies": [{"kri": "kri_mt_default___quick_"}], "changes": []});
        assert!(changes(&none).ends_with("Nothing would change for this sidecar."));
        assert!(changes(&json!({"shadowPolicies": []})).starts_with("No policy"));
    }
}
