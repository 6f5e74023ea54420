use crate::registry::{KindInfo, kinds};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// The name of a registered kind (`MeshService`): only the registry makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Kind(&'static str);

impl Kind {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The kind of that exact name, internal ones included.
    pub fn named(name: &str) -> Option<Self> {
        KindInfo::by_name(name).map(|info| info.kind)
    }

    pub fn as_str(self) -> &'static str {
        self.0
    }

    pub fn info(self) -> &'static KindInfo {
        let found = kinds().iter().find(|info| info.kind == self);
        #[expect(
            clippy::expect_used,
            reason = "a test holds every KIND constant to an entry in the registry"
        )]
        found.expect("every Kind is registered")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| de::Error::custom(format!("unknown kind {name:?}")))
    }
}

/// What identifies a resource everywhere. `mesh` is empty for kinds of global scope; `zone` is the zone where
/// the resource was written, empty for one that was written at global.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub kind: Kind,
    pub mesh: String,
    pub zone: String,
    pub name: String,
}

impl Key {
    pub fn new(
        kind: Kind,
        mesh: impl Into<String>,
        zone: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self { kind, mesh: mesh.into(), zone: zone.into(), name: name.into() }
    }

    /// A key of global origin.
    pub fn global(kind: Kind, mesh: impl Into<String>, name: impl Into<String>) -> Self {
        Self::new(kind, mesh, "", name)
    }
}

/// For logs: `MeshService default/east/backend`, empty parts left out.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        for part in [&self.mesh, &self.zone] {
            if !part.is_empty() {
                write!(f, "{part}/")?;
            }
        }
        f.write_str(&self.name)
    }
}
