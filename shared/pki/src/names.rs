//! The URIs that certificates carry, written and read in one place.

use crate::PkiError;

const SPIFFE: &str = "spiffe://";
const TAG: &str = "kuma://";
const ZONE: &str = "meridian://zone/";
const DATAPLANE: &str = "meridian://dataplane/";

/// The tag that names a workload's zone.
pub(crate) const ZONE_TAG: &str = "kuma.io/zone";

/// `spiffe://<mesh>/<service>`.
pub fn spiffe_id(mesh: &str, service: &str) -> String {
    format!("{SPIFFE}{mesh}/{service}")
}

/// `kuma://<tag>/<value>`, as Kuma writes tags.
pub fn tag_uri(tag: &str, value: &str) -> String {
    format!("{TAG}{tag}/{value}")
}

/// `meridian://zone/<zone>`: on intermediates and on zones' client certificates.
pub fn zone_uri(zone: &str) -> String {
    format!("{ZONE}{zone}")
}

/// `meridian://dataplane/<name>`: on leaves, so that an egress can tell the proxies of one service apart.
pub fn dataplane_uri(name: &str) -> String {
    format!("{DATAPLANE}{name}")
}

/// What a URI SAN says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// A SPIFFE ID with a path.
    Spiffe {
        mesh: &'a str,
        id: &'a str,
    },
    /// A trust domain alone: on CAs.
    TrustDomain(&'a str),
    Tag {
        key: &'a str,
        value: &'a str,
    },
    Zone(&'a str),
    Dataplane(&'a str),
    Other,
}

pub(crate) fn read(uri: &str) -> Name<'_> {
    if let Some(rest) = uri.strip_prefix(SPIFFE) {
        match rest.split_once('/') {
            Some((mesh, path)) if !mesh.is_empty() && !path.is_empty() => Name::Spiffe { mesh, id: uri },
            None if !rest.is_empty() => Name::TrustDomain(rest),
            _ => Name::Other,
        }
    } else if let Some(rest) = uri.strip_prefix(TAG) {
        // Keys contain slashes (`kuma.io/zone`), values never do.
        rest.rsplit_once('/').map_or(Name::Other, |(key, value)| Name::Tag { key, value })
    } else if let Some(zone) = uri.strip_prefix(ZONE) {
        Name::Zone(zone)
    } else if let Some(name) = uri.strip_prefix(DATAPLANE) {
        Name::Dataplane(name)
    } else {
        Name::Other
    }
}

/// Refuses what would read back as another name: it must be printable ASCII without what ends a URI part.
pub(crate) fn check<'a>(field: &'static str, value: &'a str, slashes: bool) -> Result<&'a str, PkiError> {
    let fits =
        |b: u8| b.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=".contains(&b) || (slashes && b == b'/');
    let valid = !value.is_empty() && value.len() <= 512 && value.bytes().all(fits);
    if valid { Ok(value) } else { Err(PkiError::Name { field, value: value.to_owned() }) }
}
