//! The one list of kinds. REST routes, store, sync, CLI and OpenAPI are loops over it.

use crate::kinds::{
    dataplane, external_service, global_secret, hostname_generator, mesh, mesh_access_log,
    mesh_circuit_breaker, mesh_external_service, mesh_fault_injection, mesh_health_check, mesh_http_route,
    mesh_load_balancing_strategy, mesh_metric, mesh_multi_zone_service, mesh_open_telemetry_backend,
    mesh_passthrough, mesh_proxy_patch, mesh_rate_limit, mesh_request_filter, mesh_retry, mesh_service,
    mesh_tcp_route, mesh_timeout, mesh_tls, mesh_trace, mesh_traffic_permission, secret, token_key,
    token_revocation, trust_bundle, zone, zone_egress, zone_ingress,
};
use crate::shape::Shape;
use crate::{Context, Kind, Spec, Violation};
use schemars::Schema;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// What is known of a kind.
pub struct KindInfo {
    pub kind: Kind,
    /// In REST paths: `external-services`.
    pub plural: &'static str,
    /// Further spellings of `plural` that are understood.
    pub aliases: &'static [&'static str],
    /// Kuma's short name: `dp`.
    pub short: &'static str,
    pub scope: Scope,
    pub format: Format,
    pub flow: Flow,
    /// Only administrators may read it; sealed at rest.
    pub admin_only: bool,
    /// No REST, no CLI: control planes only.
    pub internal: bool,
    /// Its names become DNS labels: RFC 1035, at most 63 bytes.
    pub short_names: bool,
    /// Has `targetRef`; `None` for what is no policy.
    pub targets: Option<TargetRefs>,
    /// One line for users.
    pub doc: &'static str,
    /// What becomes of each field: paths without indices (`networking.inbound[].port`), relative to the spec. An entry
    /// covers what is below it; the longest entry decides.
    pub fields: &'static [(&'static str, Standing)],
    pub(crate) check: fn(&KindInfo, &Context<'_>, &Value) -> Result<Checked, Vec<Violation>>,
    pub(crate) schema: fn() -> Schema,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Global,
    Mesh,
}

/// Where a document's fields stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// At the top, beside type and name (protobuf kinds).
    Legacy,
    /// Under `spec`.
    Spec,
}

/// Where a kind is written and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub written_at: WrittenAt,
    pub global_to_zone: bool,
    pub zone_to_global: bool,
    /// What one zone sent up goes down to the others.
    pub across_zones: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WrittenAt {
    Global,
    Zone,
    Both,
}

/// Which references a policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetRefs {
    pub from: bool,
    pub to: bool,
    pub rules: bool,
}

/// What becomes of a field of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does what it says.
    Executed,
    /// Accepted with this warning: nothing executes it yet, and ignoring it widens no access.
    Warned(&'static str),
    /// Refused with this reason: nothing executes it yet, and ignoring it would widen access.
    Refused(&'static str),
}

/// A document's spec after its check.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Normalised: camelCase names, enum names, defaults filled in, zero values of protobuf left out.
    pub spec: Value,
    pub warnings: Vec<String>,
}

impl Flow {
    /// Written at global, sent to the zones.
    pub(crate) const DOWN: Self = Self {
        written_at: WrittenAt::Global,
        global_to_zone: true,
        zone_to_global: false,
        across_zones: false,
    };
    /// Written in a zone, sent to global.
    pub(crate) const UP: Self = Self {
        written_at: WrittenAt::Zone,
        global_to_zone: false,
        zone_to_global: true,
        across_zones: false,
    };
    /// Written in a zone, sent to global and to the other zones.
    pub(crate) const ACROSS: Self = Self { across_zones: true, ..Self::UP };
    /// Written at global for all zones, or in a zone for that zone.
    pub(crate) const BOTH: Self =
        Self { written_at: WrittenAt::Both, global_to_zone: true, zone_to_global: true, across_zones: false };
    /// Written at global, and stays there.
    pub(crate) const STAYS: Self = Self { global_to_zone: false, ..Self::DOWN };
}

impl KindInfo {
    /// A kind of the newer form that is written at global; a kind's file says what differs.
    pub(crate) const fn new<T: Spec>() -> Self {
        Self {
            kind: T::KIND,
            plural: "",
            aliases: &[],
            short: "",
            scope: Scope::Mesh,
            format: Format::Spec,
            flow: Flow::DOWN,
            admin_only: false,
            internal: false,
            short_names: false,
            targets: None,
            doc: "",
            fields: &[],
            check: crate::check::check::<T>,
            schema: crate::check::schema::<T>,
        }
    }

    /// Checks a spec as a user wrote it (of a `Legacy` kind: its document without type, mesh, name, labels).
    pub fn check(&self, context: &Context<'_>, spec: &Value) -> Result<Checked, Vec<Violation>> {
        (self.check)(self, context, spec)
    }

    /// The JSON schema (2020-12) of the spec.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// The schema in the form that checks use; made once, since every write needs it.
    pub(crate) fn shape(&self) -> &'static Shape {
        // By name and not by the place in KINDS: a program that knows some kinds only has the code of those only.
        static SHAPES: Mutex<BTreeMap<Kind, &'static Shape>> = Mutex::new(BTreeMap::new());
        let mut shapes = SHAPES.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.entry(self.kind).or_insert_with(|| Box::leak(Box::new(Shape::new(self.schema(), self.format))))
    }

    /// Whether a `from` item of this policy says what an item of `rules` would: both have the same `default`.
    pub fn from_means_rules(&self) -> bool {
        let both = self.targets.is_some_and(|targets| targets.from && targets.rules);
        both && self.shape().same_default("from", "rules")
    }

    pub fn by_name(name: &str) -> Option<&'static Self> {
        kinds().iter().find(|info| info.kind.as_str() == name)
    }

    /// By its name in REST paths, aliases included.
    pub fn by_plural(plural: &str) -> Option<&'static Self> {
        kinds().iter().find(|info| info.plural == plural || info.aliases.contains(&plural))
    }

    /// By any spelling a user may type: plural, alias, short name, or the kind in any case.
    pub fn by_any(text: &str) -> Option<&'static Self> {
        let by_name = |info: &&Self| info.short == text || info.kind.as_str().eq_ignore_ascii_case(text);
        Self::by_plural(text).or_else(|| kinds().iter().find(by_name))
    }
}

/// Every kind, internal ones included; an order in which no kind comes before one that it depends on.
pub fn kinds() -> &'static [KindInfo] {
    &KINDS
}

/// The kinds that a proxy says it is. Proxies link the checks and schemas of these alone: those of all kinds would be
/// three more megabytes of each.
pub fn proxies() -> &'static [KindInfo] {
    &PROXIES
}

static PROXIES: [KindInfo; 3] = [zone_ingress::INFO, zone_egress::INFO, dataplane::INFO];

static KINDS: [KindInfo; 33] = [
    mesh::INFO,
    zone::INFO,
    global_secret::INFO,
    secret::INFO,
    hostname_generator::INFO,
    zone_ingress::INFO,
    zone_egress::INFO,
    dataplane::INFO,
    mesh_service::INFO,
    mesh_multi_zone_service::INFO,
    mesh_open_telemetry_backend::INFO,
    external_service::INFO,
    mesh_external_service::INFO,
    mesh_passthrough::INFO,
    mesh_traffic_permission::INFO,
    mesh_http_route::INFO,
    mesh_tcp_route::INFO,
    mesh_timeout::INFO,
    mesh_retry::INFO,
    mesh_circuit_breaker::INFO,
    mesh_load_balancing_strategy::INFO,
    mesh_health_check::INFO,
    mesh_access_log::INFO,
    mesh_trace::INFO,
    mesh_metric::INFO,
    mesh_proxy_patch::INFO,
    mesh_rate_limit::INFO,
    mesh_fault_injection::INFO,
    mesh_tls::INFO,
    mesh_request_filter::INFO,
    trust_bundle::INFO,
    token_key::INFO,
    token_revocation::INFO,
];

#[cfg(test)]
mod tests;
