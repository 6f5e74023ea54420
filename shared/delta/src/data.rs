//! What the protocol moves: encoded resources, their versions, and positions in a store's history.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use meridian_proto::delta as wire;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The largest message, in bytes. Publishers cut their updates well below; receivers refuse more.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// The largest body of a resource, in bytes: two fit into a message. What may grow larger (a service's endpoints, say)
/// is cut into several resources by whoever makes it.
pub const MAX_BODY: usize = 512 * 1024;

/// The longest name and type, in bytes: three labels of a key, each at most 253, and separators.
const MAX_NAME: usize = 1024;

/// Which store a revision counts in: made when the store was initialised, renewed when a backup is restored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId(pub [u8; 16]);

/// A place in a store's single, commit-ordered sequence of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// The first 128 bits of SHA-256 over a resource's body. Equal at every replica, so that failing over sends nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub [u8; 16]);

/// A place in the history of one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    pub store: StoreId,
    pub revision: Revision,
}

/// What a resource is called on a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    pub type_: Arc<str>,
    pub name: Arc<str>,
}

/// One resource, encoded once and shared by every stream that sends it.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    pub type_: Arc<str>,
    pub name: Arc<str>,
    pub version: Version,
    pub body: Bytes,
}

/// A resource or a name over the protocol's limits ([`MAX_BODY`]).
#[derive(Debug, thiserror::Error)]
#[error("{type_} {name} is {size} bytes when encoded; at most {limit} can be sent")]
pub struct TooLarge {
    pub type_: Arc<str>,
    pub name: Arc<str>,
    pub size: usize,
    pub limit: usize,
}

/// A field of a message that is not what the protocol says.
#[derive(Debug, thiserror::Error)]
#[error("{what} has {found} bytes; it must have {expected}")]
pub struct Malformed {
    pub what: &'static str,
    pub found: usize,
    pub expected: &'static str,
}

impl Encoded {
    /// Encodes one resource; its version is made from the body.
    pub fn new(
        type_: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        body: impl Into<Bytes>,
    ) -> Result<Arc<Encoded>, TooLarge> {
        let (type_, name, body) = (type_.into(), name.into(), body.into());
        let over = |size: usize, limit: usize| TooLarge {
            type_: type_.clone(),
            name: name.chars().take(64).collect::<String>().into(),
            size,
            limit,
        };
        if body.len() > MAX_BODY {
            return Err(over(body.len(), MAX_BODY));
        }
        if name.len().max(type_.len()) > MAX_NAME {
            return Err(over(name.len().max(type_.len()), MAX_NAME));
        }
        let version = Version::of(&body);
        Ok(Arc::new(Encoded { type_, name, version, body }))
    }

    pub fn id(&self) -> Id {
        Id { type_: self.type_.clone(), name: self.name.clone() }
    }

    /// Bytes that this resource takes in an update, with room for the fields' tags and lengths.
    pub(crate) fn cost(&self) -> usize {
        self.type_.len() + self.name.len() + self.body.len() + 48
    }

    pub(crate) fn to_wire(&self) -> wire::Resource {
        wire::Resource {
            r#type: self.type_.to_string(),
            name: self.name.to_string(),
            version: self.version.0.to_vec(),
            body: self.body.clone(),
        }
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the body: it may be a secret.
        write!(f, "{}/{}@{} ({} bytes)", self.type_, self.name, self.version, self.body.len())
    }
}

impl Id {
    pub fn new(type_: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Id {
        Id { type_: type_.into(), name: name.into() }
    }

    pub(crate) fn cost(&self) -> usize {
        self.type_.len() + self.name.len() + 16
    }

    pub(crate) fn from_wire(type_: String, name: String) -> Result<Id, Malformed> {
        for (what, text) in [("a resource's type", &type_), ("a resource's name", &name)] {
            if text.is_empty() || text.len() > MAX_NAME {
                return Err(Malformed { what, found: text.len(), expected: "1 to 1024" });
            }
        }
        Ok(Id::new(type_, name))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.type_, self.name)
    }
}

impl Version {
    pub fn of(body: &[u8]) -> Version {
        let digest: [u8; 32] = Sha256::digest(body).into();
        let mut first = [0; 16];
        for (to, from) in first.iter_mut().zip(digest) {
            *to = from;
        }
        Version(first)
    }

    pub(crate) fn from_wire(bytes: &[u8]) -> Result<Version, Malformed> {
        sixteen("a version", bytes).map(Version)
    }
}

impl Position {
    pub fn new(store: StoreId, revision: Revision) -> Position {
        Position { store, revision }
    }

    pub(crate) fn from_wire(position: &wire::Position) -> Result<Position, Malformed> {
        let store = sixteen("a store id", &position.store_id).map(StoreId)?;
        Ok(Position { store, revision: Revision(position.revision) })
    }

    pub(crate) fn to_wire(self) -> wire::Position {
        wire::Position { store_id: self.store.0.to_vec(), revision: self.revision.0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {} of store {}", self.revision, self.store)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn sixteen(what: &'static str, bytes: &[u8]) -> Result<[u8; 16], Malformed> {
    bytes.try_into().map_err(|_| Malformed { what, found: bytes.len(), expected: "16" })
}
