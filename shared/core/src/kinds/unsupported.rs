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
    /// This kind will do it.
    Later(&'static str),
    /// This does it.
    Other(&'static str),
    /// Kuma's own kind, not executed yet.
    NotYet,
}

use Instead::{Kind, Later, NotYet, Other};

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
    // Kuma's kinds that come later.
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
            Later(other) => {
                format!("{kind} is not supported: {other} takes its place and is not supported yet")
            }
            Other(other) => format!("{kind} is not supported: use {other}"),
            NotYet => format!("{kind} is not supported yet"),
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
