//! The lock that keeps a second process out. Not on the database itself: closing any descriptor of that file
//! would take SQLite's own locks with it.

use crate::OpenError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process that was killed a moment ago holds its lock until the kernel has cleaned up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries for the lock.
const PAUSE: Duration = Duration::from_millis(25);

/// Held until dropped, or until the process ends in whatever way.
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock of that database.
    pub(super) async fn take(database: &Path) -> Result<Self, OpenError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source: std::io::Error| OpenError::Unavailable(Box::new(source));
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let options =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = options().map_err(failed)?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let read = file.read_to_string(&mut holder);
                    let holder = if read.is_ok() { holder.trim().to_owned() } else { String::new() };
                    return Err(OpenError::InUse { path: database.to_owned(), holder });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        sign(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Says who holds the lock, for whoever is refused.
fn sign(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "pid {}", std::process::id())
}
