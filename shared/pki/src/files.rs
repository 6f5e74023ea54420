use crate::{Identity, IdentityHandle, PkiError};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};
use thiserror::Error;

/// A certificate and its key in files of an operator (PEM), looked at when somebody connects: no timer, and a renewal is
/// used at once.
#[derive(Debug)]
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    handle: IdentityHandle,
    /// When the files were written that the handle holds.
    seen: Mutex<Option<(SystemTime, SystemTime)>>,
}

/// Why files can't be used.
#[derive(Debug, Error)]
pub enum FilesError {
    #[error("can't read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("can't use {}", .0.display())]
    Unusable(PathBuf, #[source] PkiError),
}

impl CertificateFiles {
    /// Nothing is read yet.
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let handle = IdentityHandle::new();
        Self { certificate: certificate.into(), key: key.into(), handle, seen: Mutex::default() }
    }

    /// What is presented: empty until a [`CertificateFiles::refresh`] found something.
    pub fn handle(&self) -> IdentityHandle {
        self.handle.clone()
    }

    /// The certificate's file.
    pub fn path(&self) -> &Path {
        &self.certificate
    }

    /// Reads the files if they changed; whether they did.
    ///
    /// # Errors
    /// They can't be used: what was read before is still presented, since half of a pair may be new.
    pub fn refresh(&self) -> Result<bool, FilesError> {
        // Before reading: what changes meanwhile is seen the next time.
        let written = (written(&self.certificate)?, written(&self.key)?);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == Some(written) {
            return Ok(false);
        }
        let identity = Identity::from_pem(&read(&self.certificate)?, &read(&self.key)?)
            .map_err(|error| FilesError::Unusable(self.certificate.clone(), error))?;
        self.handle.set(identity);
        *seen = Some(written);
        Ok(true)
    }
}

fn written(path: &Path) -> Result<SystemTime, FilesError> {
    fs::metadata(path)
        .and_then(|meta| meta.modified())
        .map_err(|error| FilesError::Read(path.to_owned(), error))
}

fn read(path: &Path) -> Result<String, FilesError> {
    fs::read_to_string(path).map_err(|error| FilesError::Read(path.to_owned(), error))
}
