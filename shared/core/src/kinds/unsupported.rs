//! Kinds of Kuma that are not here, and what to use instead.

/// A kind that Kuma has or had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    pub kind: &'static str,
    /// In Kuma's REST paths.
    pub plural: &'static str,
    instead: Instead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    /// This kind does it.
    Kind(&'static str),
    /// This does it.
    Other(&'static str),
}

use Instead::{Kind, Other};

const ALL: [Unsupported; 17] = [
    // The policies that Kuma itself has replaced.
    unsupported("TrafficPermission", "traffic-permissions", Kind("MeshTrafficPermission")),
    unsupported("TrafficRoute", "traffic-routes", Kind("MeshHTTPRoute or MeshTCPRoute")),
    unsupported("TrafficLog", "traffic-logs", Kind("MeshAccessLog")),
    unsupported("TrafficTrace", "traffic-traces", Kind("MeshTrace")),
    unsupported("HealthCheck", "health-checks", Kind("MeshHealthCheck")),
    unsupported("CircuitBreaker", "circuit-breakers", Kind("MeshCircuitBreaker")),
    unsupported("Retry", "retries", Kind("MeshRetry")),
    unsupported("Timeout", "timeouts", Kind("MeshTimeout")),
    unsupported("RateLimit", "rate-limits", Kind("MeshRateLimit")),
    unsupported("FaultInjection", "fault-injections", Kind("MeshFaultInjection")),
    unsupported("VirtualOutbound", "virtual-outbounds", Kind("HostnameGenerator")),
    unsupported("ProxyTemplate", "proxytemplates", Kind("MeshProxyPatch")),
    // Builtin gateways.
    unsupported(
        "MeshGateway",
        "meshgateways",
        Other("a delegated gateway: a Dataplane with networking.gateway"),
    ),
    unsupported("MeshGatewayRoute", "meshgatewayroutes", Kind("MeshHTTPRoute or MeshTCPRoute")),
    unsupported("MeshGatewayInstance", "meshgatewayinstances", Other("a delegated gateway")),
    unsupported("MeshGatewayConfig", "meshgatewayconfigs", Other("a delegated gateway")),
    unsupported("MeshIdentity", "meshidentities", Other("the Mesh's mtls")),
];

const fn unsupported(kind: &'static str, plural: &'static str, instead: Instead) -> Unsupported {
    Unsupported { kind, plural, instead }
}

impl Unsupported {
    /// One sentence: what to use instead.
    pub fn advice(&self) -> String {
        let kind = self.kind;
        match self.instead {
            Kind(other) => format!("{kind} is not supported: use {other}"),
            Other(other) => format!("{kind} is not supported: use {other}"),
        }
    }
}

pub fn by_kind(kind: &str) -> Option<&'static Unsupported> {
    ALL.iter().find(|unsupported| unsupported.kind == kind)
}

/// By the plural of Kuma's REST paths.
pub fn by_plural(plural: &str) -> Option<&'static Unsupported> {
    ALL.iter().find(|unsupported| unsupported.plural == plural)
}
