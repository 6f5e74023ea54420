//! The configuration file of this command line.

use crate::connection::Address;
use crate::failure::{Failure, Result};
use crate::output::{self, NOTHING};
use crate::settings::{ControlPlane, Settings};
use std::path::PathBuf;

/// Control planes that this command line knows by name
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Config {
    /// Configuration file [default: ~/.config/meridian/config.yaml]
    #[arg(long, env = "MERIDIAN_CLIENT_CONFIG", value_name = "FILE", global = true)]
    client_config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Show the file
    View,
    /// Add, list, remove and choose control planes
    #[command(subcommand)]
    ControlPlanes(ControlPlanes),
}

#[derive(Clone, Debug, clap::Subcommand)]
enum ControlPlanes {
    /// Add one, and use it from now on
    Add {
        /// How to call it
        #[arg(long)]
        name: String,
        /// http://HOST:5681 or https://HOST:5682
        #[arg(long, value_name = "URL")]
        address: String,
        /// File with a user token
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// CA that signed its certificate (PEM)
        #[arg(long, value_name = "FILE", conflicts_with = "ca_fingerprint")]
        ca_cert_file: Option<PathBuf>,
        /// SHA-256 fingerprint of that CA
        #[arg(long, value_name = "HEX")]
        ca_fingerprint: Option<String>,
        /// Replace one of the same name
        #[arg(long)]
        overwrite: bool,
    },
    /// List them
    List,
    /// Forget one
    Remove {
        /// Its name
        #[arg(long)]
        name: String,
    },
    /// Use this one from now on
    Switch {
        /// Its name
        #[arg(long)]
        name: String,
    },
}

pub(crate) fn run(config: Config) -> Result<()> {
    let path = Settings::path(config.client_config.as_deref());
    let mut settings = Settings::load(&path)?;
    let said = match config.command {
        Command::View => {
            serde_saphyr::to_string(&settings).map_err(|error| Failure::usage(error.to_string()))?
        }
        Command::ControlPlanes(ControlPlanes::List) => list(&settings),
        Command::ControlPlanes(change) => {
            let said = change.apply(&mut settings)?;
            settings.save(&path)?;
            said
        }
    };
    output::print(&said);
    Ok(())
}

impl ControlPlanes {
    fn apply(self, settings: &mut Settings) -> Result<String> {
        match self {
            Self::List => Ok(list(settings)),
            Self::Add { name, address, token_file, ca_cert_file, ca_fingerprint, overwrite } => {
                Address::parse(&address)?;
                let exists = settings.control_planes.iter().any(|entry| entry.name == name);
                if exists && !overwrite {
                    return Err(Failure::usage(format!("there is a control plane `{name}` already"))
                        .next("--overwrite replaces it."));
                }
                settings.control_planes.retain(|entry| entry.name != name);
                let entry = ControlPlane {
                    name: name.clone(),
                    address: Some(address),
                    token_file,
                    ca_cert_file,
                    ca_fingerprint,
                };
                settings.control_planes.push(entry);
                settings.current = Some(name.clone());
                Ok(format!("control plane {name} added; it is used from now on"))
            }
            Self::Remove { name } => {
                settings.pick(Some(&name))?;
                settings.control_planes.retain(|entry| entry.name != name);
                settings.current = settings.current.take().filter(|current| *current != name);
                Ok(format!("control plane {name} removed"))
            }
            Self::Switch { name } => {
                settings.pick(Some(&name))?;
                settings.current = Some(name.clone());
                Ok(format!("control plane {name} is used from now on"))
            }
        }
    }
}

fn list(settings: &Settings) -> String {
    let rows = settings
        .control_planes
        .iter()
        .map(|entry| {
            let current = if settings.current.as_ref() == Some(&entry.name) { "*" } else { "" };
            vec![
                current.to_owned(),
                entry.name.clone(),
                entry.address.clone().unwrap_or_else(|| NOTHING.to_owned()),
            ]
        })
        .collect();
    output::table(&["USED", "NAME", "ADDRESS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(settings: &mut Settings, name: &str, overwrite: bool) -> Result<String> {
        let address = "https://g.example:5682".to_owned();
        let (token_file, ca_cert_file) = (Some("/t".into()), Some("/c".into()));
        ControlPlanes::Add {
            name: name.into(),
            address,
            token_file,
            ca_cert_file,
            ca_fingerprint: None,
            overwrite,
        }
        .apply(settings)
    }

    #[test]
    fn control_planes_are_kept_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/config.yaml");
        let mut settings = Settings::load(&path).unwrap();
        add(&mut settings, "prod", false).unwrap();
        add(&mut settings, "test", false).unwrap();
        assert!(add(&mut settings, "prod", false).unwrap_err().to_string().contains("--overwrite"));
        add(&mut settings, "prod", true).unwrap();
        settings.save(&path).unwrap();
        let mut settings = Settings::load(&path).unwrap();
        assert_eq!(settings.control_planes.len(), 2);
        assert_eq!(settings.pick(None).unwrap().unwrap().name, "prod");
        ControlPlanes::Switch { name: "test".into() }.apply(&mut settings).unwrap();
        ControlPlanes::Remove { name: "test".into() }.apply(&mut settings).unwrap();
        assert_eq!(settings.pick(None).unwrap(), None);
        let unknown = ControlPlanes::Switch { name: "gone".into() }.apply(&mut settings).unwrap_err();
        assert!(unknown.to_string().contains("known: prod"), "{unknown}");
        assert!(list(&settings).contains("https://g.example:5682"));
    }
}
