//! The order in which policies arrive never shows.

use super::*;
use crate::{external_service_permission, inbound_permission, mesh_external_service_permission, passthrough};
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_passthrough::MeshPassthrough;
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use proptest::prelude::*;
use proptest::sample::select;

fn origin() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    select(vec![
        vec![],
        vec![("kuma.io/origin", "global")],
        vec![("kuma.io/origin", "zone"), ("kuma.io/zone", "east")],
        vec![("kuma.io/origin", "global"), ("kuma.io/display-name", "same")],
    ])
}

fn target() -> impl Strategy<Value = &'static str> {
    select(vec![
        "{kind: Mesh}",
        "{kind: MeshSubset, tags: {version: v1}}",
        "{kind: MeshService, name: web}",
        "{kind: MeshServiceSubset, name: web, tags: {version: v1}}",
        "{kind: Dataplane}",
        "{kind: Dataplane, labels: {app: web}}",
        "{kind: Dataplane, sectionName: http}",
        "{kind: MeshExternalService, name: web}",
    ])
}

fn body() -> impl Strategy<Value = String> {
    let action = select(vec!["Allow", "Deny", "AllowWithShadowDeny"]);
    let from = select(vec![
        "{kind: Mesh}",
        "{kind: MeshService, name: api}",
        "{kind: MeshSubset, tags: {env: prod}}",
    ]);
    let items = proptest::collection::vec((from, action), 1..4).prop_map(|items| {
        let item =
            |(from, action): (&str, &str)| format!("{{targetRef: {from}, default: {{action: {action}}}}}");
        format!("from: [{}]", items.into_iter().map(item).collect::<Vec<_>>().join(", "))
    });
    let list = select(vec!["allow", "deny", "allowWithShadowDeny"]);
    let rules = (list, "[a-c]").prop_map(|(list, service)| {
        format!("rules: [{{default: {{{list}: [{{spiffeID: {{type: Exact, value: 'spiffe://default/{service}'}}}}]}}}}]")
    });
    prop_oneof![items, rules]
}

fn permissions() -> impl Strategy<Value = Vec<Parsed<MeshTrafficPermission>>> {
    let policies = proptest::collection::vec((target(), body(), origin()), 0..7);
    policies.prop_map(|all| {
        let policy = |(i, (target, body, labels)): (usize, (&str, String, Vec<_>))| {
            let yaml =
                format!("{{type: MeshTrafficPermission, name: p{i}, spec: {{targetRef: {target}, {body}}}}}");
            labelled(&yaml, &labels)
        };
        all.into_iter().enumerate().map(policy).collect()
    })
}

fn passthroughs() -> impl Strategy<Value = Vec<Parsed<MeshPassthrough>>> {
    let mode =
        select(vec!["", "passthroughMode: None,", "passthroughMode: All,", "passthroughMode: Matched,"]);
    let target = select(vec!["{kind: Mesh}", "{kind: Dataplane}", "{kind: Dataplane, labels: {app: web}}"]);
    proptest::collection::vec((target, mode, 1u8..4, origin()), 0..6).prop_map(|all| {
        let policy = |(i, (target, mode, last, labels)): (usize, (&str, &str, u8, Vec<_>))| {
            let yaml = format!(
                "{{type: MeshPassthrough, name: p{i}, spec: {{targetRef: {target}, default: {{{mode} appendMatch: \
                 [{{type: IP, value: 192.0.2.{last}, protocol: tcp}}]}}}}}}"
            );
            labelled(&yaml, &labels)
        };
        all.into_iter().enumerate().map(policy).collect()
    })
}

/// The same policies in two orders.
fn twice<T: Clone + std::fmt::Debug>(
    policies: impl Strategy<Value = Vec<T>>,
) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
    policies.prop_flat_map(|policies| (Just(policies.clone()), Just(policies).prop_shuffle()))
}

proptest! {
    #[test]
    fn of_permissions((first, second) in twice(permissions())) {
        let web = web();
        let of = |policies: &[Parsed<MeshTrafficPermission>]| {
            inbound_permission("default", &subject(&web), &inbounds(&web)[0], policies)
        };
        prop_assert_eq!(of(&first), of(&second));
    }

    #[test]
    fn of_permissions_to_go_outside((first, second) in twice(permissions()), open in proptest::bool::ANY) {
        let service: Parsed<ExternalService> = parsed(
            "{type: ExternalService, name: es, networking: {address: 'x.example:80'}, tags: {kuma.io/service: web, version: v1}}",
        );
        prop_assert_eq!(
            external_service_permission(&service.spec, "a.b", &first),
            external_service_permission(&service.spec, "a.b", &second)
        );
        let mesh: Parsed<Mesh> = parsed(&format!(
            "{{type: Mesh, name: default, routing: {{defaultForbidMeshExternalServiceAccess: {open}}}}}"
        ));
        let service: Parsed<MeshExternalService> =
            parsed("{type: MeshExternalService, name: web, spec: {match: {port: 443}}}");
        let of = |policies: &[Parsed<MeshTrafficPermission>]| {
            mesh_external_service_permission(&mesh.spec, &service.resource, &service.spec, "a.b", policies)
        };
        prop_assert_eq!(of(&first), of(&second));
    }

    #[test]
    fn of_passthroughs((first, second) in twice(passthroughs())) {
        let (web, mesh) = (web(), Mesh::default());
        prop_assert_eq!(
            passthrough(&mesh, &subject(&web), &first),
            passthrough(&mesh, &subject(&web), &second)
        );
    }
}
