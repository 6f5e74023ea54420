//! What a zone tells the global control plane about itself beside its resources: the state of its proxies, what
//! they refused, and what it could not accept.
//!
//! These travel on the zone -> global stream as types of their own and end in `zone_status`, not among the resources:
//! they change all the time and have no history. Both control planes serve overviews from the same types, the zone
//! from its own memory, global from what the zones sent, so that both answer alike.

use meridian_proxy_config::{DenialReport, ProxyStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Delta type names of the reports, which are also the names of their sections in `zone_status`.
pub mod types {
    /// [`super::ProxyOverview`], named by [`super::ProxyOverview::wire_name`].
    pub const PROXY: &str = "ProxyOverview";
    /// [`meridian_proxy_config::DenialReport`] of the whole zone, one, named `self`.
    pub const DENIALS: &str = "ZoneDenials";
    /// [`super::ZoneReject`], named by [`super::ZoneReject::wire_name`].
    pub const REJECT: &str = "ZoneReject";
    /// Every report type.
    pub const ALL: [&str; 3] = [PROXY, DENIALS, REJECT];
}

/// One Dataplane, ZoneIngress or ZoneEgress of the zone, as its control plane sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ProxyOverview {
    /// `Dataplane`, `ZoneIngress` or `ZoneEgress`.
    pub kind: String,
    /// Empty for an ingress and an egress.
    pub mesh: String,
    /// The name at home, in the zone.
    pub name: String,
    /// It has a live stream to its control plane.
    pub online: bool,
    /// RFC 3339; of the present stream, or of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<String>,
    /// RFC 3339; when the last stream ended, for one that is offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnected_at: Option<String>,
    /// The newest revision that it has applied whole.
    #[serde(default)]
    pub revision: u64,
    /// Time since it last equalled what its control plane announced, in milliseconds.
    #[serde(default)]
    pub behind_millis: u64,
    /// What it could not apply, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// By mesh: the roots in the newest bundle that it has acknowledged, as lower-case hex of SHA-256 over each root's
    /// SubjectPublicKeyInfo. The rotation of a root waits for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trusted_roots: BTreeMap<String, Vec<String>>,
    /// What keeps parts of the resource from working: port conflicts, unusable tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// Its own report; absent before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ProxyStatus>,
}

impl ProxyOverview {
    /// `<kind>/<mesh>/<name>`: unique in a zone.
    #[must_use]
    pub fn wire_name(&self) -> String {
        format!("{}/{}/{}", self.kind, self.mesh, self.name)
    }
}

/// A resource that its receiver could not apply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rejected {
    #[serde(rename = "type")]
    pub type_: String,
    pub name: String,
    pub reason: String,
}

/// A resource that a zone holds but can't act on: it arrived whole, and compiling it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ZoneReject {
    pub kind: String,
    pub mesh: String,
    pub name: String,
    pub reason: String,
}

impl ZoneReject {
    /// `<kind>/<mesh>/<name>`: unique in a zone.
    #[must_use]
    pub fn wire_name(&self) -> String {
        format!("{}/{}/{}", self.kind, self.mesh, self.name)
    }
}

/// Whether a zone's control plane is there, as far as the asked replica can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    Online,
    Offline,
    /// The replica that reported it is gone, or the database is out of reach.
    Unknown,
}

/// All that is known of one zone.
#[derive(Clone, Debug, Default)]
pub struct ZoneReport {
    pub zone: String,
    /// Absent: it never connected (at a zone: of itself, its link to global).
    pub link: Option<Link>,
    pub proxies: Vec<ProxyOverview>,
    pub denials: DenialReport,
    pub rejects: Vec<ZoneReject>,
}

/// The link between a zone and global.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Link {
    pub presence: Presence,
    /// UUID of the zone control plane's process.
    pub instance: String,
    /// Of its software.
    pub version: String,
    /// The global replica that holds its stream.
    pub replica: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnected_at: Option<String>,
    /// The newest revision of global that the zone has applied whole.
    pub revision: u64,
    /// How long the zone has not equalled what global announced, in milliseconds.
    pub behind_millis: u64,
    /// Resources of global that the zone refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// Resources of the zone that global refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_here: Vec<Rejected>,
    /// Deletions that were only inferred and wait for an operator.
    #[serde(default)]
    pub withheld: u32,
    /// The same of the zone's resources at global, held back there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub withheld_here: u32,
    /// Not empty: the zone refuses this global whole, and why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
