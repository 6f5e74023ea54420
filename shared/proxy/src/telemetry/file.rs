//! Lines to a file of the host, or to the process's own output.

use super::deliver::{Export, Failure};
use nix::fcntl::OFlag;
use std::{io, os::unix::fs::MetadataExt, path::PathBuf};
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt,
};

// Requests may name people: others on the host read no log unless its owner lets them.
const MODE: u32 = 0o640;

pub(super) struct Lines {
    path: PathBuf,
    file: Option<(File, Id)>,
}

/// Which file a path means: renaming or removing it (rotation) changes that.
type Id = (u64, u64);

impl Lines {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// The file that the path means now.
    async fn current(&mut self) -> io::Result<(File, Id)> {
        let there = tokio::fs::metadata(&self.path).await.ok().map(|meta| (meta.dev(), meta.ino()));
        if let Some(open) = self.file.take().filter(|(_, id)| Some(*id) == there) {
            return Ok(open);
        }
        let mut options = OpenOptions::new();
        // Without O_NONBLOCK, a FIFO that nobody reads would hold the thread for ever.
        options.append(true).create(true).mode(MODE).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(&self.path).await?;
        let meta = file.metadata().await?;
        Ok((file, (meta.dev(), meta.ino())))
    }

    async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        // Opened anew, these need rights and kinds of files that a process's own output need not have.
        match self.path.to_str() {
            Some("/dev/stdout") => {
                let mut out = tokio::io::stdout();
                out.write_all(lines).await?;
                out.flush().await
            }
            Some("/dev/stderr") => {
                let mut out = tokio::io::stderr();
                out.write_all(lines).await?;
                out.flush().await
            }
            _ => {
                let (mut file, id) = self.current().await?;
                file.write_all(lines).await?;
                file.flush().await?;
                self.file = Some((file, id));
                Ok(())
            }
        }
    }
}

impl Export for Lines {
    type Entry = Vec<u8>;

    async fn send(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.write(&batch.concat()).await.map_err(Failure::again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_was_moved_or_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("old"));
        let mut lines = Lines::new(path.clone());
        let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
        lines.send(&[b"a\n".to_vec(), b"b\n".to_vec()]).await.unwrap();
        std::fs::rename(&path, &old).unwrap();
        lines.send(&[b"c\n".to_vec()]).await.unwrap();
        assert_eq!((read(&old).as_str(), read(&path).as_str()), ("a\nb\n", "c\n"));
        std::fs::remove_file(&path).unwrap();
        lines.send(&[b"d\n".to_vec()]).await.unwrap();
        assert_eq!(read(&path), "d\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o007, 0);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Lines::new(dir.path().join("missing/log"));
        assert!(matches!(lines.send(&[b"a\n".to_vec()]).await, Err(Failure::Again(_))));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut lines = Lines::new(fifo);
        assert!(matches!(lines.send(&[b"a\n".to_vec()]).await, Err(Failure::Again(_))), "nobody reads it");
    }
}
