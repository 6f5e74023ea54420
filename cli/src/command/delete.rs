use super::{documents, kind};
use crate::connection::Connection;
use crate::failure::{Failure, Result};
use crate::output;
use http::Method;
use meridian_core::Kind;

/// Delete a resource, or all that files list
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Delete {
    /// Kind, in any spelling: externalservice, external-services, es
    #[arg(value_parser = kind::parse, required_unless_present = "files", requires = "name")]
    kind: Option<Kind>,
    /// Name
    name: Option<String>,
    /// Delete the resources of these files instead (file, directory or -)
    #[arg(short = 'f', long = "file", value_name = "FILE", conflicts_with = "kind")]
    files: Vec<String>,
    /// Mesh
    #[arg(short, long, value_name = "MESH")]
    mesh: Option<String>,
    /// Only check that it could be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(delete: Delete) -> Result<()> {
    let mut client = delete.connection.client()?;
    for (shown, path) in delete.targets()? {
        let path = if delete.dry_run { format!("{path}?dryRun=true") } else { path };
        let answer = client.send(Method::DELETE, &path, None).await?;
        answer.success().map_err(|failure| failure.at(&shown))?;
        output::print(&format!(
            "{shown} {}",
            if delete.dry_run { "can be deleted (dry run)" } else { "deleted" }
        ));
    }
    Ok(())
}

impl Delete {
    /// What is meant, and its path; of files, in the reverse of the order in which they are applied.
    fn targets(&self) -> Result<Vec<(String, String)>> {
        if let (Some(kind), Some(name)) = (self.kind, &self.name) {
            let mesh = self.mesh.as_deref().unwrap_or(meridian_core::document::DEFAULT_MESH);
            return Ok(vec![(kind::shown(kind, mesh, name), kind::path(kind, Some(mesh), name))]);
        }
        if self.files.is_empty() {
            return Err(Failure::usage("name a kind and a resource, or files with -f"));
        }
        let documents = documents::read(&self.files, self.mesh.as_deref(), &[])?;
        Ok(documents.iter().rev().map(|document| (document.shown(), document.path())).collect())
    }
}
