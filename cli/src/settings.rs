//! The user's configuration file: control planes by name, and which one is meant when none is named.

use crate::failure::{Exit, Failure, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    pub(crate) control_planes: Vec<ControlPlane>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct ControlPlane {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    /// Tokens stay in files of their own: this one is shown, copied and kept in repositories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_cert_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_fingerprint: Option<String>,
}

impl Settings {
    /// The file named, or the user's.
    pub(crate) fn path(named: Option<&Path>) -> PathBuf {
        if let Some(path) = named {
            return path.to_owned();
        }
        let home =
            |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = home("XDG_CONFIG_HOME").or_else(|| home("HOME").map(|home| home.join(".config")));
        base.unwrap_or_default().join("meridian/config.yaml")
    }

    /// A file that is not there has no control planes.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(Failure::new(Exit::Input, format!("can't read {}: {error}", path.display())));
            }
        };
        serde_saphyr::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_saphyr::to_string(self).map_err(|error| Failure::usage(error.to_string()))?;
        let written =
            path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
        written
            .map_err(|error| Failure::new(Exit::Failed, format!("can't write {}: {error}", path.display())))
    }

    /// The entry of that name, or the current one; an error if the name is unknown.
    pub(crate) fn pick(&self, name: Option<&str>) -> Result<Option<&ControlPlane>> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        let found = self.control_planes.iter().find(|entry| entry.name == name);
        found.map(Some).ok_or_else(|| {
            let known: Vec<&str> = self.control_planes.iter().map(|entry| entry.name.as_str()).collect();
            Failure::usage(format!("there is no control plane `{name}` in the configuration file"))
                .detail(format!(
                    "known: {}",
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                ))
                .next("Add it with `meridian config control-planes add --name NAME --address URL`.")
        })
    }
}
