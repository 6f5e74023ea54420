//! What operators do to zones and meshes.

use crate::client::encode;
use crate::connection::Connection;
use crate::failure::Result;
use crate::output::{self, Format};
use http::Method;
use serde_json::Value;

/// Shut a zone out, or take a global control plane that the zone has refused
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Zone {
    /// Revoke a zone's intermediates and client certificates; its open connections end
    ///
    /// At the global control plane. The zone comes back by enrolling anew, with a zone token.
    Revoke {
        /// Name of the zone
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Apply the deletions of a zone's resources that global holds back because nothing vouches for them
    ///
    /// At the global control plane (the replica that the zone is connected to). `get zones` and `inspect zones` say how many
    /// wait; a zone whose store was lost looks just like one whose resources were deleted.
    ConfirmDeletions {
        /// Name of the zone
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Take the global control plane that this zone refuses (another store, or an older revision), with its deletions
    ///
    /// At the zone's control plane: --address http://127.0.0.1:5681 on its host.
    AcceptGlobal {
        #[command(flatten)]
        connection: Connection,
    },
}

/// Rotate a mesh's root
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Mesh {
    /// Replace a mesh's root certificate, step by step and without a failed request; or show how far that is
    RotateCa {
        /// Name of the mesh
        mesh: String,
        /// Go back; possible until the old root is taken out
        #[arg(long, conflicts_with = "status")]
        abort: bool,
        /// Only show how far it is
        #[arg(long)]
        status: bool,
        /// How to show the answer
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: Format,
        #[command(flatten)]
        connection: Connection,
    },
}

pub(crate) async fn zone(zone: Zone) -> Result<()> {
    let (connection, path, done) = match &zone {
        Zone::Revoke { name, connection } => {
            (connection, format!("/zones/{}/_revoke", encode(name)), format!("Zone {name} revoked"))
        }
        Zone::ConfirmDeletions { name, connection } => (
            connection,
            format!("/zones/{}/_confirm-deletions", encode(name)),
            format!("The deletions of zone {name} are applied"),
        ),
        Zone::AcceptGlobal { connection } => {
            (connection, "/_accept-global".to_owned(), "The global control plane is accepted".to_owned())
        }
    };
    let answer = connection.client()?.post(&path, &Value::Object(serde_json::Map::new())).await?;
    output::print(&done);
    show(&answer.json().unwrap_or_default(), Format::Yaml);
    Ok(())
}

pub(crate) async fn mesh(mesh: Mesh) -> Result<()> {
    let Mesh::RotateCa { mesh, abort, status, output, connection } = mesh;
    let path = format!("/meshes/{}/_rotate-ca", encode(&mesh));
    let (method, path) = match (status, abort) {
        (true, _) => (Method::GET, path),
        (false, true) => (Method::POST, format!("{path}?abort=true")),
        (false, false) => (Method::POST, path),
    };
    let answer = connection.client()?.send(method, &path, None).await?.success()?;
    show(&answer.json()?, output);
    Ok(())
}

fn show(answer: &Value, format: Format) {
    if answer.as_object().is_none_or(|fields| !fields.is_empty()) && !answer.is_null() {
        output::print(&if format == Format::Json { output::json(answer) } else { output::yaml(answer) });
    }
}
