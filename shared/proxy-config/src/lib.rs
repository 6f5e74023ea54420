//! What a zone control plane tells its proxies, and what they tell it: the types on the zone <-> proxy streams.
//!
//! The bodies are JSON of these types and unknown fields are refused: a proxy that is older than its control
//! plane must not skip the one condition it does not know (a new kind of deny, say) and serve the rest. With
//! protobuf bodies it would, silently. The cost of JSON is paid once a change, never a request.
//!
//! Resources refer to each other by name (a destination names its endpoint sets), so that order of arrival does
//! not matter, and one changed endpoint sends one endpoint set.

mod collector;
mod destination;
mod external;
mod inbound;
pub mod metrics;
mod permission;
mod policies;
mod proxy;
mod report;
mod route;
mod routes;
mod session;
pub mod sni;
mod trace;
mod trust;

pub use collector::Collector;
pub use destination::{Destination, DestinationTls, Endpoint, EndpointSet, Host, Outbound, Target};
pub use external::{
    AddressPolicy, CaSource, Caller, CallerMode, Entry, EntryKind, EntryPolicies, External, ExternalEndpoint,
    HostMatch, Origination, SanMatch, TlsVersion, Verification, Via, canonical_net,
};
pub use inbound::{Inbound, InboundTls, Probe, Protocol};
pub use permission::{Action, CallerIdentity, CallerMatch, Permission, PermissionRule, Verdict};
pub use policies::{
    AccessLog, Affinity, AtOnce, BackOff, Balancer, Balancing, ByZone, CallerTimeouts, ConnectionTimeouts,
    DestinationPolicies, Effect, Failover, FailurePercentage, Fault, FaultRule, FilterAction, FilterPattern,
    HashFunction, HashPolicy, HashSource, HeaderMatch, HeaderValueMatch, HealthChecks, HostSelection,
    InboundPolicies, Jitter, Locality, LogBackend, LogForm, LogLine, OutlierDetection, Panic, Question, Rate,
    RateLimitedBackOff, RateLimits, RequestFilter, RequestLimit, RequestPart, ResetFormat, ResetHeader,
    Retry, RetryOn, RuleSet, Script, StreamTimeouts, SuccessRate, Zones, policies_for_others,
    policies_of_callers,
};
pub use proxy::{Capture, DnsSettings, Proxy, Role, Unlisted};
pub use report::{CertificateStatus, Denial, DenialReport, InboundStatus, ProxyStatus};
pub use route::{SniMatch, SniRoute};
pub use routes::{
    BackendTarget, HeaderChange, HttpMatch, HttpRoutes, HttpRule, Mirror, PathChange, PathMatch, QueryMatch,
    QueryValueMatch, Redirect, Rewrite, RouteBackend, RoutePolicies, Routes, routes_of_external,
};
pub use session::{SessionCipher, SessionTerms};
pub use trace::{TagValue, Trace, TraceBackend, TraceSampling, TraceTag, ZipkinFormat};
pub use trust::Bundle;

/// The resource types of the zone -> proxy direction.
pub mod types {
    /// One, named `self`: [`crate::Proxy`].
    pub const PROXY: &str = "Proxy";
    /// [`crate::Inbound`], by inbound name.
    pub const INBOUND: &str = "Inbound";
    /// [`crate::Outbound`].
    pub const OUTBOUND: &str = "Outbound";
    /// [`crate::DestinationPolicies`], by the name of the [`crate::Destination`] (or key of the [`crate::Entry`]) that they
    /// are for, or by [`crate::policies_for_others`] for those that have none of their own. To egresses for the callers
    /// that they hold for ([`crate::policies_of_callers`]).
    pub const POLICIES: &str = "Policies";
    /// [`crate::Routes`], by the name of the [`crate::Destination`] that they are for, or by [`crate::routes_of_external`].
    pub const ROUTES: &str = "Routes";
    /// [`crate::Destination`].
    pub const DESTINATION: &str = "Destination";
    /// [`crate::EndpointSet`].
    pub const ENDPOINTS: &str = "EndpointSet";
    /// [`crate::External`]: to sidecars.
    pub const EXTERNAL: &str = "External";
    /// [`crate::Entry`]: to egresses.
    pub const ENTRY: &str = "Entry";
    /// [`crate::Caller`]: to egresses.
    pub const CALLER: &str = "Caller";
    /// [`crate::SniRoute`]: to ingresses and egresses.
    pub const SNI_ROUTE: &str = "SniRoute";
    /// One, named `self`: [`crate::metrics::Metrics`].
    pub const METRICS: &str = "Metrics";
    /// [`crate::Bundle`], by mesh name.
    pub const BUNDLE: &str = "Bundle";
    /// [`crate::Trace`], at most one, named `self`: to sidecars.
    pub const TRACE: &str = "Trace";
    /// Every type, in the order in which a reader best meets them.
    pub const ALL: [&str; 14] = [
        BUNDLE,
        PROXY,
        TRACE,
        INBOUND,
        ENDPOINTS,
        POLICIES,
        ROUTES,
        DESTINATION,
        OUTBOUND,
        EXTERNAL,
        ENTRY,
        CALLER,
        SNI_ROUTE,
        METRICS,
    ];
}

/// The resource types of the proxy -> zone direction. The proxy's own resource (`Dataplane`, `ZoneIngress`,
/// `ZoneEgress`) travels beside them, under its Kuma kind.
pub mod report_types {
    /// [`crate::ProxyStatus`], one, named `self`.
    pub const STATUS: &str = "ProxyStatus";
    /// [`crate::DenialReport`], one, named `self`.
    pub const DENIALS: &str = "DenialReport";
}

/// The SPIFFE service name of every egress; no Dataplane may take it.
pub const EGRESS_SERVICE: &str = "zone-egress";

/// ALPN names inside the mesh. They pick the codec, never the policy.
pub mod alpn {
    /// HTTP/1.1 inside mTLS: upgrades (WebSocket) travel so.
    pub const HTTP1: &[u8] = b"mesh-h1";
    /// HTTP/2 inside mTLS: everything else that is HTTP.
    pub const HTTP2: &[u8] = b"mesh-h2";
    /// Opaque bytes inside mTLS.
    pub const TCP: &[u8] = b"mesh-tcp";
    /// A preface (see `External`), then opaque bytes: to an egress.
    pub const EXTERNAL: &[u8] = b"mesh-ext";
}
