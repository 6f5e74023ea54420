use super::documents::{self, Document};
use crate::client::{Answer, Client};
use crate::connection::Connection;
use crate::failure::{Failure, Result};
use crate::output;
use http::{Method, StatusCode};
use meridian_core::Scope;
use serde_json::Value;

/// Create or update resources from files
///
/// All documents are first validated on the control plane; only if every one is valid, any is written.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Apply {
    /// File, directory (with those below it) or - for standard input; YAML or JSON, several documents allowed
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Value of a variable that the files use as {{ NAME }}; may be given several times
    #[arg(short = 'v', long = "var", value_name = "NAME=VALUE", value_parser = meridian_proxy::control::variable)]
    variables: Vec<(String, String)>,
    /// Validate on the control plane and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Mesh of documents that name none
    #[arg(short, long, value_name = "MESH")]
    mesh: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(apply: Apply) -> Result<()> {
    let documents = documents::read(&apply.files, apply.mesh.as_deref(), &apply.variables)?;
    let mut client = apply.connection.client()?;
    let valid = validate(&mut client, &documents, apply.dry_run).await?;
    if apply.dry_run {
        output::print(&valid.join("\n"));
        return Ok(());
    }
    write(&mut client, &documents).await
}

/// Asks the control plane about every document; one line each of what would happen. `last`: nothing is written after it,
/// which would tell of the same warnings.
async fn validate(client: &mut Client, documents: &[Document], last: bool) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut refused = Vec::new();
    for document in documents {
        let answer = client
            .send(Method::PUT, &format!("{}?dryRun=true", document.path()), Some(&document.value))
            .await?;
        if is_for_a_mesh_to_come(&answer, document, documents) {
            lines.push(format!("{} valid (after its mesh, dry run)", document.shown()));
            continue;
        }
        if last {
            warn(document, &answer);
        }
        match answer.clone().success() {
            Ok(_) => lines.push(format!("{} {} (dry run)", document.shown(), verb(&answer))),
            Err(failure) => refused.push(failure.at(format!("{} ({})", document.shown(), document.place))),
        }
    }
    let Some(first) = refused.first() else { return Ok(lines) };
    let count = refused.len();
    let what = format!("{count} of {} documents were refused; nothing was changed", documents.len());
    let all = refused.iter().fold(Failure::new(first.exit, what), |all, failure| {
        let text = failure.to_string();
        all.detail(text.strip_prefix("error: ").unwrap_or(&text))
    });
    Err(all)
}

/// The mesh is not there yet, and is made by this very apply: the control plane has checked the document itself, before
/// it missed the mesh.
fn is_for_a_mesh_to_come(answer: &Answer, document: &Document, documents: &[Document]) -> bool {
    let missing = answer.status == StatusCode::NOT_FOUND
        && document.key.kind.info().scope == Scope::Mesh
        && answer.text.contains("Mesh not found");
    missing
        && documents
            .iter()
            .any(|other| other.key.kind.as_str() == "Mesh" && other.key.name == document.key.mesh)
}

async fn write(client: &mut Client, documents: &[Document]) -> Result<()> {
    for (done, document) in documents.iter().enumerate() {
        let written = client.send(Method::PUT, &document.path(), Some(&document.value)).await;
        let answer = written.and_then(|answer| answer.success()).map_err(|failure| {
            let rest: Vec<String> = documents.iter().skip(done).map(Document::shown).collect();
            let failure = failure.at(format!("{} ({})", document.shown(), document.place));
            if done == 0 {
                failure.detail("nothing was changed")
            } else {
                failure
                    .detail(format!(
                        "{done} of {} were written; not written: {}",
                        documents.len(),
                        rest.join(", ")
                    ))
                    .next("Applying the same files again is safe: what is there already stays as it is.")
            }
        })?;
        warn(document, &answer);
        output::print(&format!("{} {}", document.shown(), verb(&answer)));
    }
    Ok(())
}

fn verb(answer: &Answer) -> &'static str {
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    match body.get("unchanged").and_then(Value::as_bool) {
        _ if answer.status == StatusCode::CREATED => "created",
        Some(true) => "unchanged",
        _ => "updated",
    }
}

fn warn(document: &Document, answer: &Answer) {
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    let warnings = body.get("warnings").and_then(Value::as_array);
    for warning in warnings.into_iter().flatten().filter_map(Value::as_str) {
        output::note(&format!("warning: {}: {warning}", document.shown()));
    }
}
