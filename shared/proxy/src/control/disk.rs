//! What a proxy keeps: the last configuration, and its certificates with their keys. Readable by its user alone.

use meridian_delta::{Encoded, Position};
use meridian_pki::{Identity, PrivateKey, certificates_from_pem, certificates_to_pem};
use meridian_proxy_config::sni;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) struct Disk {
    directory: PathBuf,
}

/// The configuration of an earlier process.
pub(super) struct Saved {
    pub(super) position: Option<Position>,
    pub(super) resources: Vec<Arc<Encoded>>,
    /// Milliseconds since 1970.
    pub(super) saved_at: u64,
}

#[derive(Serialize, Deserialize)]
struct File<Text> {
    position: Option<Position>,
    saved_at: u64,
    resources: Vec<Entry<Text>>,
}

#[derive(Serialize, Deserialize)]
struct Entry<Text> {
    r#type: Text,
    name: Text,
    /// JSON as it came: its version is a hash of the very bytes.
    body: Text,
}

#[derive(Serialize, Deserialize)]
struct KeptIdentity {
    mesh: String,
    chain: String,
    key: String,
}

impl Disk {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory.join("identities"))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// What could not be read is as if it were not there: the control plane sends it again.
    pub(super) fn config(&self) -> Option<Saved> {
        let path = self.directory.join("config.json");
        let text = fs::read(&path).ok()?;
        let file: File<String> = serde_json::from_slice(&text)
            .inspect_err(|error| tracing::error!(path = %path.display(), %error, "unreadable"))
            .ok()?;
        let resources = file
            .resources
            .into_iter()
            .filter_map(|entry| Encoded::new(entry.r#type, entry.name, entry.body).ok())
            .collect();
        Some(Saved { position: file.position, resources, saved_at: file.saved_at })
    }

    pub(super) fn save_config(
        &self,
        position: Option<Position>,
        resources: &[Arc<Encoded>],
    ) -> io::Result<()> {
        let resources = resources
            .iter()
            .filter_map(|resource| {
                Some(Entry {
                    r#type: &*resource.type_,
                    name: &*resource.name,
                    body: std::str::from_utf8(&resource.body).ok()?,
                })
            })
            .collect();
        let file = File { position, saved_at: super::stream::now_millis(), resources };
        self.write("config.json", &file)
    }

    /// Certificates by mesh; an expired one is left where it is and not used.
    pub(super) fn identities(&self) -> Vec<(String, Identity)> {
        let Ok(files) = fs::read_dir(self.directory.join("identities")) else { return Vec::new() };
        files.filter_map(|file| read_identity(&file.ok()?.path())).collect()
    }

    pub(super) fn save_identity(
        &self,
        mesh: &str,
        chain: &[CertificateDer<'static>],
        key: &PrivateKey,
    ) -> io::Result<()> {
        let kept = KeptIdentity {
            mesh: mesh.to_owned(),
            chain: certificates_to_pem(chain),
            key: key.to_pem().to_string(),
        };
        self.write(&format!("identities/{}.json", sni::label(mesh)), &kept)
    }

    pub(super) fn remove_identity(&self, mesh: &str) {
        drop(fs::remove_file(self.directory.join(format!("identities/{}.json", sni::label(mesh)))));
    }

    /// Whole or not at all: a crash leaves the old file.
    fn write(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        let path = self.directory.join(name);
        let partial = path.with_extension("partial");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        // It may be megabytes, which are not to be in memory once more.
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, content)?;
        writer.into_inner()?.sync_data()?;
        fs::rename(&partial, &path)
    }
}

fn read_identity(path: &Path) -> Option<(String, Identity)> {
    if path.extension()? != "json" {
        return None;
    }
    let kept: KeptIdentity = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let chain = certificates_from_pem(&kept.chain).ok()?;
    let key = PrivateKey::from_pem(&kept.key).ok()?;
    let identity = Identity::new(chain, &key)
        .inspect_err(|error| tracing::error!(path = %path.display(), %error, "unusable"))
        .ok()?;
    Some((kept.mesh, identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_kept_comes_back_and_is_for_its_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path()).unwrap();
        assert!(disk.config().is_none());
        let resource = Encoded::new("Inbound", "web", br#"{"a":1.0}"#.to_vec()).unwrap();
        disk.save_config(None, std::slice::from_ref(&resource)).unwrap();
        let saved = disk.config().unwrap();
        assert_eq!(saved.resources, [resource]);
        let mode = fs::metadata(directory.path().join("config.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn half_a_file_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path()).unwrap();
        fs::write(directory.path().join("config.json"), "{\"position\":null,").unwrap();
        assert!(disk.config().is_none());
    }
}
