//! What the installer leaves for the sidecar: how this host's traffic is captured. Only root can read the rules, and the
//! sidecar is not root.
//!
//! One file a network namespace, named by it, since namespaces may share a file system. It is believed if root owns
//! it, nobody else may write it, and it was written in the reader's namespace. It is told for overviews and decides
//! nothing: whoever could forge it could as well take the rules away.

use super::CaptureError;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Notice {
    network_namespace: u64,
    enforcement: String,
}

/// Where it lies for the network namespace of the calling thread, if nobody says otherwise.
pub fn notice_file() -> PathBuf {
    PathBuf::from(format!("/run/meridian/capture-{}.json", namespace()))
}

pub(super) fn leave(path: &Path, enforcement: &str) -> Result<(), CaptureError> {
    let notice = Notice { network_namespace: namespace(), enforcement: enforcement.to_owned() };
    let written = || {
        let directory = path.parent().unwrap_or(Path::new("/"));
        // A whole file or none, whoever reads meanwhile; rights don't depend on the installer's umask.
        if !directory.exists() {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        }
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        fs::write(&new, serde_json::to_string(&notice)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        fs::rename(&new, path)
    };
    written().map_err(|source| CaptureError::Write { path: path.to_owned(), source })
}

/// The same at boot, as a line of a unit: /run is empty then, and the namespace may have another name.
pub(super) fn leave_at_boot(path: &Path, enforcement: &str) -> String {
    let place = path.display().to_string().replace(&namespace().to_string(), "$$n");
    format!(
        "ExecStart=-/bin/sh -ec 'umask 022; n=$$(stat -Lc %%i /proc/self/ns/net); mkdir -p $$(dirname {place}); \
         printf \\'{{\\\"networkNamespace\\\":%%s,\\\"enforcement\\\":\\\"{enforcement}\\\"}}\\' $$n > {place}'\n"
    )
}

/// How this namespace was captured: `strict`, `kuma`, with what is excluded. None without a file that can be believed.
pub fn noticed(path: &Path) -> Option<String> {
    let about = fs::symlink_metadata(path).ok()?;
    if !about.is_file() || !trusted(about.uid(), about.mode()) {
        return None;
    }
    let notice: Notice = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (notice.network_namespace == namespace()).then_some(notice.enforcement)
}

/// Root's own, and nobody else's to write.
fn trusted(owner: u32, mode: u32) -> bool {
    owner == 0 && mode & 0o022 == 0
}

/// The inode of the calling thread's network namespace: its name in the kernel.
fn namespace() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |about| about.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_may_write_is_not_believed() {
        assert!(trusted(0, 0o100_644) && trusted(0, 0o100_600));
        assert!(!trusted(1000, 0o100_644) && !trusted(0, 0o100_664) && !trusted(0, 0o100_646));
    }

    #[test]
    fn a_file_of_another_namespace_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/capture.json");
        leave(&path, "strict; excludes ntp").unwrap();
        let mine = nix::unistd::geteuid().is_root();
        assert_eq!(noticed(&path).as_deref(), mine.then_some("strict; excludes ntp"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&namespace().to_string(), "7")).unwrap();
        assert_eq!(noticed(&path), None);
        fs::write(&path, "strict").unwrap();
        assert_eq!(noticed(&path), None);
    }

    #[test]
    fn the_boot_unit_leaves_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!("run/capture-{}.json", namespace()));
        let line = leave_at_boot(&path, "kuma; excludes users 101");
        // As systemd reads it: quotes, $$ and %% are its own.
        let script =
            line.trim_end().strip_prefix("ExecStart=-/bin/sh -ec '").unwrap().strip_suffix('\'').unwrap();
        let script = script.replace("\\'", "'").replace("\\\"", "\"").replace("$$", "$").replace("%%", "%");
        assert!(std::process::Command::new("sh").args(["-ec", &script]).status().unwrap().success());
        let notice: Notice = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            (notice.network_namespace, notice.enforcement.as_str()),
            (namespace(), "kuma; excludes users 101")
        );
    }
}
