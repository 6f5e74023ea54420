//! YAML that several tests apply.

/// Every service may call every service, inside and outside.
pub(crate) const EVERYTHING: &str = "\
type: MeshTrafficPermission
mesh: default
name: everything
spec:
  targetRef: {kind: Mesh}
  from:
  - targetRef: {kind: Mesh}
    default: {action: Allow}
";

/// `callers` may call the services tagged `kuma.io/service: callee`.
pub(crate) fn permission(name: &str, callee: &str, callers: &[&str]) -> String {
    let from: String = callers
        .iter()
        .map(|caller| {
            format!("  - targetRef: {{kind: MeshService, name: {caller}}}\n    default: {{action: Allow}}\n")
        })
        .collect();
    format!(
        "type: MeshTrafficPermission\nmesh: default\nname: {name}\nspec:\n  targetRef: {{kind: MeshService, name: {callee}}}\n  from:\n{from}"
    )
}

/// An ExternalService; documentation addresses are no public ones, so entries name them.
pub(crate) fn external_service(name: &str, address: &str, protocol: &str) -> String {
    format!(
        "type: ExternalService\nmesh: default\nname: {name}\ntags: {{kuma.io/service: {name}, kuma.io/protocol: {protocol}}}\n\
         networking:\n  address: {address}\n  allowedAddresses: [192.0.2.0/24, 198.51.100.0/24, '2001:db8::/32']\n"
    )
}
