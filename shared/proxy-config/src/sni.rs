//! Server names inside the mesh: `sni.<msvc|extsvc|mzsvc>.<mesh>.<zone>[.<namespace>].<name>.<port>`.
//!
//! Lower case. A part that is no DNS label, and the name where the whole exceeds 253 bytes, becomes `x` and 26
//! base32 characters of its SHA-256. The last part must not be a number either (`443`, `0x1f`): such a name reads as
//! an IPv4 address, and rustls neither sends nor takes it. So a port without a name is hashed.

use sha2::{Digest, Sha256};
use std::fmt;

/// Longest DNS name.
pub const MAX_LENGTH: usize = 253;

/// What a server name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SniKind {
    MeshService,
    External,
    MultiZone,
}

/// The parts of a server name, as compiled by a zone control plane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sni<'a> {
    pub kind: SniKind,
    pub mesh: &'a str,
    pub zone: &'a str,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
    pub port: &'a str,
}

/// What a proxy reads off a server name without knowing the resource. Parts are as sent, hashed ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedSni<'a> {
    pub kind: SniKind,
    pub mesh: &'a str,
    pub zone: &'a str,
}

impl fmt::Display for Sni<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.render(&label(self.name));
        if whole.len() <= MAX_LENGTH {
            f.write_str(&whole)
        } else {
            f.write_str(&self.render(&hashed(self.name)))
        }
    }
}

impl Sni<'_> {
    fn render(&self, name: &str) -> String {
        let namespace = self.namespace.map(|part| format!(".{}", label(part))).unwrap_or_default();
        format!(
            "sni.{}.{}.{}{namespace}.{name}.{}",
            self.kind.label(),
            label(self.mesh),
            label(self.zone),
            last_label(self.port)
        )
    }
}

impl SniKind {
    fn label(self) -> &'static str {
        match self {
            Self::MeshService => "msvc",
            Self::External => "extsvc",
            Self::MultiZone => "mzsvc",
        }
    }
}

/// How a mesh or zone name appears in a server name: to look up what [`parse`] gave.
pub fn label(part: &str) -> String {
    if is_label(part) { part.to_owned() } else { hashed(part) }
}

/// Reads kind, mesh and zone; `None` if it is no server name of a mesh.
pub fn parse(sni: &str) -> Option<ParsedSni<'_>> {
    let mut parts = sni.split('.');
    if parts.next()? != "sni" {
        return None;
    }
    let kind = match parts.next()? {
        "msvc" => SniKind::MeshService,
        "extsvc" => SniKind::External,
        "mzsvc" => SniKind::MultiZone,
        _ => return None,
    };
    let mesh = parts.next()?;
    let zone = parts.next()?;
    let rest = parts.clone().count();
    let valid = (2..=3).contains(&rest) && sni.len() <= MAX_LENGTH && sni.split('.').all(is_label);
    valid.then_some(ParsedSni { kind, mesh, zone })
}

fn is_label(part: &str) -> bool {
    let bytes = part.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !part.starts_with('-')
        && !part.ends_with('-')
}

fn last_label(part: &str) -> String {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = digits(part) || part.strip_prefix("0x").is_some_and(hex);
    if number { hashed(part) } else { label(part) }
}

fn hashed(part: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(part.as_bytes());
    let mut out = String::from("x");
    let (mut buffer, mut bits) = (0u32, 0u32);
    for byte in digest {
        buffer = (buffer << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            if out.len() == 27 {
                return out;
            }
            bits -= 5;
            let index = (buffer >> bits) & 31;
            out.push(char::from(ALPHABET.get(index as usize).copied().unwrap_or(b'a')));
        }
        buffer &= (1 << bits) - 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn service<'a>(name: &'a str) -> Sni<'a> {
        Sni { kind: SniKind::MeshService, mesh: "default", zone: "east", namespace: None, name, port: "http" }
    }

    #[test]
    fn plain_names_are_readable() {
        assert_eq!(service("backend").to_string(), "sni.msvc.default.east.backend.http");
        let spaced = Sni { namespace: Some("app-ns"), ..service("backend") };
        assert_eq!(spaced.to_string(), "sni.msvc.default.east.app-ns.backend.http");
    }

    #[test]
    fn a_number_at_the_end_is_hashed() {
        for number in ["443", "0", "0x1f", "0x"] {
            let text = Sni { port: number, ..service("backend") }.to_string();
            let last = text.rsplit('.').next().unwrap();
            assert_eq!((last.len(), &last[..1]), (27, "x"), "{text}");
        }
        assert_eq!(Sni { port: "80-admin", ..service("b") }.to_string(), "sni.msvc.default.east.b.80-admin");
    }

    #[test]
    fn what_is_no_label_is_hashed() {
        let text = service("Back_End").to_string();
        let name = text.split('.').nth(4).unwrap();
        assert_eq!((name.len(), &name[..1]), (27, "x"));
        assert_ne!(text, service("back_end").to_string());
    }

    #[test]
    fn only_mesh_names_parse() {
        for bad in [
            "example.com",
            "sni.msvc.default.east.backend",
            "sni.foo.a.b.c.d",
            "sni.msvc.a..c.d",
            "sni.msvc.A.b.c.d",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_sni_is_a_dns_name_that_parses(mesh in ".{1,80}", zone in ".{1,80}", name in ".{1,300}", port in "[a-z0-9]{1,10}") {
            let sni = Sni { kind: SniKind::External, mesh: &mesh, zone: &zone, namespace: None, name: &name, port: &port };
            let text = sni.to_string();
            prop_assert!(text.len() <= MAX_LENGTH);
            let parsed = parse(&text).unwrap();
            let (mesh, zone) = (label(&mesh), label(&zone));
            prop_assert_eq!((parsed.kind, parsed.mesh, parsed.zone), (SniKind::External, mesh.as_str(), zone.as_str()));
        }
    }
}
