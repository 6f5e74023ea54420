use super::*;
use crate::{external_service_permission, mesh_external_service_permission};
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_proxy_config::Permission;

const SNI: &str = "sni.extsvc.default.east.payments.443";

fn policy(name: &str, target: &str, rest: &str) -> Parsed<MeshTrafficPermission> {
    parsed(&format!("{{type: MeshTrafficPermission, name: {name}, spec: {{targetRef: {target}, {rest}}}}}"))
}

fn allow(target: &str) -> Parsed<MeshTrafficPermission> {
    policy("allow", target, "from: [{targetRef: {kind: MeshService, name: api}, default: {action: Allow}}]")
}

fn allows(permission: &Permission, service: &str) -> bool {
    permission.decide(&caller(service, &[]), Some(SNI)).allowed()
}

fn of_external_service(policies: &[Parsed<MeshTrafficPermission>]) -> Permission {
    let service: Parsed<ExternalService> = parsed(
        "
type: ExternalService
name: payments
networking: {address: 'payments.example:443'}
tags: {kuma.io/service: payments, version: v1}
",
    );
    external_service_permission(&service.spec, SNI, policies)
}

#[test]
fn an_external_service_needs_a_permission_that_means_it() {
    assert!(!allows(&of_external_service(&[]), "api"));
    for target in [
        "{kind: Mesh}",
        "{kind: MeshService, name: payments}",
        "{kind: MeshServiceSubset, name: payments, tags: {version: v1}}",
    ] {
        let permission = of_external_service(&[allow(target)]);
        assert!(allows(&permission, "api") && !allows(&permission, "web"), "{target}");
    }
    for target in [
        "{kind: MeshService, name: other}",
        "{kind: MeshServiceSubset, name: payments, tags: {version: v2}}",
        "{kind: MeshSubset, tags: {version: v1}}",
        "{kind: Dataplane}",
        "{kind: MeshExternalService, name: payments}",
        "{kind: Mesh, proxyTypes: [Gateway]}",
    ] {
        assert!(!allows(&of_external_service(&[allow(target)]), "api"), "{target}");
    }
}

#[test]
fn the_service_beats_the_mesh() {
    let deny = policy(
        "deny",
        "{kind: MeshService, name: payments}",
        "from: [{targetRef: {kind: Mesh}, default: {action: Deny}}]",
    );
    assert!(!allows(&of_external_service(&[allow("{kind: Mesh}"), deny]), "api"));
}

fn mesh(forbid: &str) -> Mesh {
    let mesh: Parsed<Mesh> = parsed(&format!("{{type: Mesh, name: default, routing: {{{forbid}}}}}"));
    mesh.spec
}

fn of_mesh_external_service(mesh: &Mesh, policies: &[Parsed<MeshTrafficPermission>]) -> Permission {
    let service: Parsed<MeshExternalService> = parsed(
        "{type: MeshExternalService, name: payments, labels: {team: shop}, spec: {match: {port: 443}}}",
    );
    mesh_external_service_permission(mesh, &service.resource, &service.spec, SNI, policies)
}

#[test]
fn a_mesh_external_service_is_forbidden_by_default() {
    assert!(!allows(&of_mesh_external_service(&mesh(""), &[]), "api"));
    assert!(!allows(
        &of_mesh_external_service(&mesh("defaultForbidMeshExternalServiceAccess: true"), &[]),
        "api"
    ));
    let open = mesh("defaultForbidMeshExternalServiceAccess: false");
    assert!(allows(&of_mesh_external_service(&open, &[]), "api"));
    let deny = policy(
        "deny",
        "{kind: Mesh}",
        "from: [{targetRef: {kind: MeshService, name: api}, default: {action: Deny}}]",
    );
    let permission = of_mesh_external_service(&open, &[deny]);
    assert!(!allows(&permission, "api") && allows(&permission, "web"));
}

#[test]
fn a_mesh_external_service_is_named_by_kind_or_by_sni() {
    for target in [
        "{kind: Mesh}",
        "{kind: MeshExternalService, name: payments}",
        "{kind: MeshExternalService, labels: {team: shop}}",
        "{kind: MeshExternalService, labels: {kuma.io/display-name: payments}}",
    ] {
        let permission = of_mesh_external_service(&mesh(""), &[allow(target)]);
        assert!(allows(&permission, "api") && !allows(&permission, "web"), "{target}");
    }
    for target in [
        "{kind: MeshExternalService, name: other}",
        "{kind: MeshExternalService, labels: {team: other}}",
        "{kind: MeshService, name: payments}",
        "{kind: Dataplane}",
    ] {
        assert!(!allows(&of_mesh_external_service(&mesh(""), &[allow(target)]), "api"), "{target}");
    }
    let by_sni = |sni: &str| {
        let rules = format!("rules: [{{default: {{allow: [{{sni: {{type: Exact, value: '{sni}'}}}}]}}}}]");
        of_mesh_external_service(&mesh(""), &[policy("p", "{kind: Dataplane, sectionName: ze-port}", &rules)])
    };
    assert!(allows(&by_sni(SNI), "api"));
    assert!(!allows(&by_sni("sni.extsvc.default.east.other.443"), "api"));
}

#[test]
fn the_server_name_that_a_caller_chose_decides_nothing() {
    const OTHER: &str = "sni.extsvc.default.east.other.443";
    let rules = |list: &str, sni: &str| {
        policy(
            "p",
            "{kind: Mesh}",
            &format!("rules: [{{default: {{{list}: [{{sni: {{type: Exact, value: '{sni}'}}}}]}}}}]"),
        )
    };
    let everything = || allow("{kind: Mesh}");
    let says = |permission: &Permission, sni| permission.decide(&caller("api", &[]), Some(sni)).allowed();
    for of in [of_external_service as fn(&[_]) -> _, |policies| of_mesh_external_service(&mesh(""), policies)]
    {
        // Allowed for another destination: claiming its name does not open this one.
        assert!(!says(&of(&[rules("allow", OTHER)]), OTHER));
        assert!(says(&of(&[rules("allow", SNI)]), OTHER) && says(&of(&[rules("allow", SNI)]), SNI));
        // Denied for this one: claiming another's name does not evade it.
        let denied = of(&[everything(), rules("deny", SNI)]);
        assert!(!says(&denied, OTHER) && !says(&denied, SNI));
        assert!(says(&of(&[everything(), rules("deny", OTHER)]), OTHER));
    }
}

#[test]
fn a_workload_owners_policy_opens_nothing_outside() {
    let mut owners = allow("{kind: Mesh}");
    owners.resource.labels.insert("kuma.io/policy-role".into(), "workload-owner".into());
    assert!(!allows(&of_external_service(&[owners.clone()]), "api"));
    assert!(!allows(&of_mesh_external_service(&mesh(""), &[owners]), "api"));
}
