//! One file a kind.

pub mod backend_ref;
pub mod data_source;
pub mod dataplane;
mod dataplane_checks;
pub mod external_service;
pub mod global_secret;
pub mod hostname_generator;
pub mod http_headers;
pub mod mesh;
pub mod mesh_access_log;
pub mod mesh_circuit_breaker;
pub mod mesh_external_service;
pub mod mesh_fault_injection;
pub mod mesh_health_check;
pub mod mesh_http_route;
pub mod mesh_load_balancing_strategy;
pub mod mesh_metric;
pub mod mesh_multi_zone_service;
mod mesh_observability;
pub mod mesh_open_telemetry_backend;
pub mod mesh_passthrough;
pub mod mesh_proxy_patch;
pub mod mesh_rate_limit;
pub mod mesh_request_filter;
pub mod mesh_retry;
pub mod mesh_service;
pub mod mesh_tcp_route;
pub mod mesh_timeout;
pub mod mesh_tls;
pub mod mesh_trace;
pub mod mesh_traffic_permission;
pub mod open_telemetry;
pub mod policy;
pub mod secret;
pub mod token_key;
pub mod token_revocation;
pub mod trust_bundle;
pub mod unsupported;
pub mod zone;
pub mod zone_egress;
pub mod zone_ingress;

/// For `skip_serializing_if`: protobuf leaves zero values out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Schema of a list of CIDRs.
fn cidrs(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "string", "format": "cidr" } })
}

#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;
