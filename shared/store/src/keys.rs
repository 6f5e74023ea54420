//! The keys that seal what is secret at rest.
//!
//! The ring's first key wraps a data key that lies in the store; the data key seals secrets and private values, each bound
//! to its place. The store names the ring's key by its id, and does not start with another.

use crate::seal::SealKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Names a key without saying anything of it: 64 bits of a hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(crate) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read or write the key file {path:?}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("the key file {path:?} can be read by others (mode {mode:03o}): make it 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("keys must be 32 bytes in base64, one a line, the newest first: {reason}")]
    Format { reason: String },
    #[error("the keys come from the configuration, not from a file: change them there")]
    NotAFile,
    #[error("the system's source of randomness failed")]
    Randomness,
}

/// Keys of 256 bits, the newest first. Several only while a rotation is under way.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<RingKey>,
    path: Option<PathBuf>,
}

#[derive(Clone)]
struct RingKey {
    bytes: Zeroizing<[u8; 32]>,
    id: KeyId,
}

impl KeyRing {
    /// The ring of that file, which must be readable by its owner only. Makes it, with one new key, if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let made = Self { keys: vec![RingKey::random()?], path: Some(path.to_owned()) };
                match made.save(Publish::IfAbsent) {
                    // Another process was faster: its key is the key.
                    Err(KeyError::File { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {
                        Self::load(path)
                    }
                    saved => saved.map(|()| made),
                }
            }
            loaded => loaded,
        }
    }

    /// A ring from the configuration: base64, one key a line, the newest first.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(RingKey::parse).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(KeyError::Format { reason: "there is no key".to_owned() });
        }
        Ok(Self { keys, path: None })
    }

    /// The id of the newest key.
    pub fn id(&self) -> KeyId {
        self.keys.first().map_or(KeyId([0; 8]), |key| key.id)
    }

    /// The ids of all keys, for messages.
    pub(crate) fn ids(&self) -> String {
        self.keys.iter().map(|key| key.id.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The key of that id, ready to use.
    pub(crate) fn key(&self, id: KeyId) -> Option<SealKey> {
        self.keys.iter().find(|key| key.id == id).and_then(|key| SealKey::new(&key.bytes))
    }

    /// What the file says now; the same ring if it is from no file.
    pub(crate) fn reloaded(&self) -> Result<Self, KeyError> {
        self.path.as_deref().map_or_else(|| Ok(self.clone()), Self::load)
    }

    /// With a new key in front, which is in the file when this returns.
    pub(crate) fn with_new_key(&self) -> Result<Self, KeyError> {
        let mut ring = self.reloaded()?;
        ring.keys.insert(0, RingKey::random()?);
        ring.save(Publish::Replace)?;
        Ok(ring)
    }

    /// Only the newest key, also in the file.
    pub(crate) fn without_old_keys(mut self) -> Result<Self, KeyError> {
        self.keys.truncate(1);
        self.save(Publish::Replace)?;
        Ok(self)
    }

    fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(failed)?;
        Ok(Self { path: Some(path.to_owned()), ..Self::parse(&text)? })
    }

    /// Writes the file whole or not at all.
    fn save(&self, publish: Publish) -> Result<(), KeyError> {
        let path = self.path.as_deref().ok_or(KeyError::NotAFile)?;
        let mut text = Zeroizing::new(String::new());
        for key in &self.keys {
            text.push_str(&Zeroizing::new(STANDARD.encode(*key.bytes)));
            text.push('\n');
        }
        let write = || {
            let directory =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::create_dir_all(directory)?;
            let draft = directory.join(format!(".key-{}", uuid::Uuid::new_v4().simple()));
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            let published = written.and_then(|()| match publish {
                Publish::Replace => std::fs::rename(&draft, path),
                Publish::IfAbsent => std::fs::hard_link(&draft, path),
            });
            // Gone already if it was renamed.
            let _ = std::fs::remove_file(&draft);
            published?;
            std::fs::File::open(directory)?.sync_all()
        };
        write().map_err(|source| KeyError::File { path: path.to_owned(), source })
    }
}

/// Names the keys, shows none.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({})", self.ids())
    }
}

#[derive(Clone, Copy)]
enum Publish {
    Replace,
    IfAbsent,
}

impl RingKey {
    fn random() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| KeyError::Randomness)?;
        Ok(Self { id: SealKey::id_of(&bytes), bytes })
    }

    fn parse(line: &str) -> Result<Self, KeyError> {
        let wrong = |reason: &str| KeyError::Format { reason: reason.to_owned() };
        let decoded = Zeroizing::new(STANDARD.decode(line).map_err(|_| wrong("a line is not base64"))?);
        let mut bytes = Zeroizing::new([0; 32]);
        if decoded.len() != bytes.len() {
            return Err(wrong("a key has another length"));
        }
        bytes.copy_from_slice(&decoded);
        Ok(Self { id: SealKey::id_of(&bytes), bytes })
    }
}
