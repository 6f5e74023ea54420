use crate::Parsed;
use crate::matching::is_service;
use crate::meta::Meta;
use crate::permission::{Builder, of_entry};
use crate::precedence::sorted;
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_traffic_permission::{MeshTrafficPermission, RuleMatch};
use meridian_core::{ProxyType, Resource, TargetKind, TargetRef, names};
use meridian_proxy_config::{Action, CallerMatch, Permission, PermissionRule};

/// Who may use an ExternalService, by all MeshTrafficPermissions of its mesh (in any order): those with top-level
/// targetRef Mesh, or MeshService or MeshServiceSubset that match its tags. `sni` is its server name at the egress.
pub fn external_service_permission(
    service: &ExternalService,
    sni: &str,
    policies: &[Parsed<MeshTrafficPermission>],
) -> Permission {
    let applies = |policy: &&Parsed<MeshTrafficPermission>| {
        is_for_all(&policy.resource)
            && policy.spec.target_ref.as_ref().is_none_or(|target| match target.kind {
                TargetKind::Mesh => is_for_sidecars(target),
                TargetKind::MeshService | TargetKind::MeshServiceSubset => is_service(target, &service.tags),
                _ => false,
            })
    };
    let mut builder = Builder::default();
    for policy in sorted(policies.iter().filter(applies), |spec| spec.target_ref.as_ref()) {
        builder.add(&policy.resource, &policy.spec, |_, matched| of_entry(matched, sni));
    }
    builder.finish()
}

/// Who may use a MeshExternalService (`resource` is its resource), by all MeshTrafficPermissions of its mesh (in any
/// order): those with top-level targetRef Mesh, or MeshExternalService that names it; and of any other the `rules`
/// that name `sni`, its server name at the egress.
pub fn mesh_external_service_permission(
    mesh: &Mesh,
    resource: &Resource,
    _service: &MeshExternalService,
    sni: &str,
    policies: &[Parsed<MeshTrafficPermission>],
) -> Permission {
    let of_mesh = policies.iter().filter(|policy| {
        policy.resource.key.mesh == resource.key.mesh && !Meta::from(&policy.resource).is_shadow()
    });
    let mut builder = Builder::default();
    for policy in sorted(of_mesh, |spec| spec.target_ref.as_ref()) {
        let target = policy.spec.target_ref.as_ref();
        if is_for_all(&policy.resource) && target.is_none_or(|target| means(target, resource)) {
            builder.add(&policy.resource, &policy.spec, |_, matched| of_entry(matched, sni));
        } else {
            let policy_name = names::display(&policy.resource.key.name, &policy.resource.labels);
            builder.add_rules(policy_name, &policy.spec, |_, matched: &RuleMatch| {
                matched.sni.as_ref().and_then(|_| of_entry(matched, sni))
            });
        }
    }
    let mut permission = builder.finish();
    let decided = permission.rules.last().is_some_and(|rule| rule.caller == CallerMatch::default());
    if !mesh.forbids_mesh_external_services() && !decided {
        permission.rules.push(PermissionRule {
            action: Action::Allow,
            caller: CallerMatch::default(),
            policy: "Mesh routing.defaultForbidMeshExternalServiceAccess: false".to_owned(),
        });
    }
    permission
}

/// A workload owner's policies are about their own workloads, not about what is outside.
fn is_for_all(policy: &Resource) -> bool {
    let meta = Meta::from(policy);
    !meta.is_shadow() && !meta.is_for_namespace()
}

fn is_for_sidecars(target: &TargetRef) -> bool {
    target.proxy_types.is_empty() || target.proxy_types.contains(&ProxyType::Sidecar)
}

fn means(target: &TargetRef, resource: &Resource) -> bool {
    match target.kind {
        TargetKind::Mesh => is_for_sidecars(target),
        TargetKind::MeshExternalService => {
            let meta = Meta::from(resource);
            let named = target.name().is_none_or(|name| name == meta.display());
            let labelled = meta.has_labels(target.labels.as_ref());
            (target.name().is_some() || target.has_labels()) && named && labelled
        }
        _ => false,
    }
}
