//! Kinds as users type them, and where they are in the API.

use crate::client::encode;
use meridian_core::{Kind, KindInfo, Scope, document};

/// By any of its names: `external-services`, `externalservice`, `es`.
pub(crate) fn parse(text: &str) -> Result<Kind, String> {
    let lower = text.to_ascii_lowercase();
    let found = KindInfo::by_any(&lower)
        .or_else(|| KindInfo::by_any(text))
        .or_else(|| public().find(|info| info.plural.replace('-', "") == lower));
    match found.filter(|info| !info.internal) {
        Some(info) => Ok(info.kind),
        None => Err(format!("there is no such kind; one of: {}", names())),
    }
}

/// The plurals of all kinds, for help and errors.
pub(crate) fn names() -> String {
    public().map(|info| info.plural).collect::<Vec<_>>().join(", ")
}

fn public() -> impl Iterator<Item = &'static KindInfo> {
    meridian_core::kinds().iter().filter(|info| !info.internal)
}

/// `/meshes/MESH/PLURAL`; without a mesh, the list over all meshes.
pub(crate) fn list_path(kind: Kind, mesh: Option<&str>) -> String {
    let info = kind.info();
    match (info.scope, mesh) {
        (Scope::Mesh, Some(mesh)) => format!("/meshes/{}/{}", encode(mesh), info.plural),
        _ => format!("/{}", info.plural),
    }
}

pub(crate) fn path(kind: Kind, mesh: Option<&str>, name: &str) -> String {
    let mesh = mesh.unwrap_or(document::DEFAULT_MESH);
    format!("{}/{}", list_path(kind, Some(mesh)), encode(name))
}

/// `MeshService default/web`, `Zone east`.
pub(crate) fn shown(kind: Kind, mesh: &str, name: &str) -> String {
    match kind.info().scope {
        Scope::Mesh => format!("{kind} {mesh}/{name}"),
        Scope::Global => format!("{kind} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_every_kind() {
        for info in public() {
            let joined = info.plural.replace('-', "");
            for text in
                [info.plural, info.short, info.kind.as_str(), &info.kind.as_str().to_lowercase(), &joined]
            {
                assert_eq!(parse(text), Ok(info.kind), "{text}");
            }
        }
        let unknown = parse("meshgateways").unwrap_err();
        assert!(unknown.contains("dataplanes"), "{unknown}");
        assert!(
            parse("trustbundles").is_err() && parse("TokenKey").is_err(),
            "internal kinds have no commands"
        );
    }

    #[test]
    fn paths_are_escaped() {
        let kind = parse("dataplanes").unwrap();
        assert_eq!(path(kind, Some("m"), "a/../b"), "/meshes/m/dataplanes/a%2F..%2Fb");
        assert_eq!(path(parse("zones").unwrap(), Some("m"), "east"), "/zones/east");
        assert_eq!(list_path(kind, None), "/dataplanes");
    }
}
