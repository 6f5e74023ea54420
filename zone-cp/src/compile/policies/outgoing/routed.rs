//! The routes of each destination that routes name, with what policies say of each rule.

use super::backends::Resolver;
use super::{Named, Said, SaidByKind, outside};
use crate::compile::policies::{blame, http_route};
use crate::compile::{Compiled, Inputs};
use crate::picture::MeshPicture;
use meridian_core::kinds::mesh_http_route::Rule;
use meridian_core::kinds::mesh_tcp_route;
use meridian_core::{Key, Resource, TargetKind};
use meridian_policy::{Merged, Routes as RouteTargets, matches_hash, to_conf};
use meridian_proxy_config::types;
use meridian_proxy_config::{
    BackendTarget, DestinationPolicies, HttpRoutes, RouteBackend, RoutePolicies, Routes, routes_of_external,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The configuration of merged MeshHTTPRoutes. Rules are read one by one, for their matches' hash is over what was written.
#[derive(Deserialize)]
struct HttpConf {
    #[serde(default)]
    rules: Vec<Value>,
}

impl Said<'_> {
    /// Of every destination that routes name.
    pub(super) fn routes(&self, inputs: Inputs<'_>, mesh: &MeshPicture, blamed: &Key, out: &mut Compiled) {
        let picture = inputs.picture;
        let routed = |key: &Key, tag: Option<&str>| self.http.names(key, tag) || self.tcp.names(key, tag);
        for named in self.named(picture, mesh, routed) {
            if let Some(routes) = self.routes_of(inputs, mesh, &named, out) {
                out.push(blamed, types::ROUTES, &named.destination, &routes);
            }
        }
        for named in outside(mesh, |key| routed(key, None)) {
            if let Some(routes) = self.routes_of(inputs, mesh, &named, out) {
                out.push(blamed, types::ROUTES, &routes_of_external(&named.destination), &routes);
            }
        }
    }

    /// MeshHTTPRoutes come before MeshTCPRoutes, where the destination speaks HTTP.
    fn routes_of(
        &self,
        inputs: Inputs<'_>,
        mesh: &MeshPicture,
        named: &Named<'_>,
        out: &mut Compiled,
    ) -> Option<Routes> {
        if named.protocol.is_http()
            && let Some(merged) = self.http.of_port(named)
            && let Some(routes) = self.http_routes(inputs, mesh, named, &merged, out)
        {
            return Some(Routes::Http(routes));
        }
        let merged = self.tcp.of_port(named)?;
        // Of its rules the first is all there is.
        let rule: mesh_tcp_route::Rule = match merged.conf() {
            Ok(rule) => rule,
            Err(error) => {
                blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
                return None;
            }
        };
        let policy = &merged.origins.first()?.policy;
        let resolver = self.resolver(inputs, mesh, named, policy);
        let references = rule.default.backend_refs.unwrap_or_default();
        if references.is_empty() {
            return None;
        }
        let backends = resolver.all(&references, false);
        report(policy, backends.iter(), out);
        Some(Routes::Tcp(backends))
    }

    fn http_routes(
        &self,
        inputs: Inputs<'_>,
        mesh: &MeshPicture,
        named: &Named<'_>,
        merged: &Merged,
        out: &mut Compiled,
    ) -> Option<HttpRoutes> {
        let read = merged.conf::<HttpConf>().and_then(|conf| {
            let rule = |value: Value| {
                let matches = value.get("matches").cloned().unwrap_or_default();
                Ok((matches, Rule::deserialize(value)?))
            };
            conf.rules.into_iter().map(rule).collect::<Result<Vec<_>, serde_json::Error>>()
        });
        let rules = match read {
            Ok(rules) => rules,
            Err(error) => {
                blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
                return None;
            }
        };
        if rules.is_empty() {
            return None;
        }
        let numbered = (0u32..).zip(rules.iter().map(|(_, rule)| rule.matches.as_slice()));
        let mut routes = HttpRoutes { matches: http_route::matches(numbered), rules: Vec::new() };
        // What can't be read of it is told where it is said of the destination.
        let unruled = self.unruled(named);
        for (matches, rule) in &rules {
            let origin = merged.origin_of(matches)?;
            let resolver = self.resolver(inputs, mesh, named, origin);
            let hash = matches_hash(matches);
            let mut compiled =
                http_route::rule(hash.clone(), &rule.default, |reference| resolver.one(reference, true));
            let references = rule.default.backend_refs.as_deref().unwrap_or_default();
            compiled.backends = (!references.is_empty()).then(|| resolver.all(references, true));
            compiled.policies = self.of_rule(mesh, named, (&origin.key, &hash), &unruled, out);
            report(origin, compiled.backends.iter().flatten(), out);
            routes.rules.push(compiled);
        }
        Some(routes)
    }

    fn resolver<'b>(
        &'b self,
        inputs: Inputs<'b>,
        mesh: &'b MeshPicture,
        named: &'b Named<'b>,
        policy: &'b Resource,
    ) -> Resolver<'b> {
        Resolver { picture: inputs.picture, mesh, mesh_name: self.mesh, policy, named }
    }

    /// What the proxy holds requests to that no policy names the rule of: of what leaves the mesh nothing, as that is the
    /// egress's.
    fn unruled(&self, named: &Named<'_>) -> RoutePolicies {
        if named.leaves() {
            return of_routes(DestinationPolicies::default());
        }
        of_routes(self.of_port(named, &mut Compiled::default()))
    }

    /// What policies say of one rule (by its route and the hash of its matches), where that is not `unruled`, what they say
    /// of its destination.
    fn of_rule(
        &self,
        mesh: &MeshPicture,
        named: &Named<'_>,
        (route, hash): (&Key, &str),
        unruled: &RoutePolicies,
        out: &mut Compiled,
    ) -> Option<RoutePolicies> {
        let of_rule: Vec<Option<Merged>> =
            self.kinds.iter().map(|(_, kind)| kind.of_rule(named, &mesh.routes, route, hash)).collect();
        of_rule.iter().any(Option::is_some).then_some(())?;
        let mut policies = DestinationPolicies::default();
        for ((of, kind), own) in self.kinds.iter().zip(of_rule) {
            let merged = own.or_else(|| kind.of_port(named).filter(|_| !named.leaves()));
            of.apply_merged(merged.as_ref(), named.protocol, &self.collectors, &mut policies, out);
        }
        let mut own = of_routes(policies);
        let differs = own != *unruled;
        own.access_logs.take_if(|logs| Some(&*logs) == unruled.access_logs.as_ref());
        own.hash.take_if(|hash| Some(&*hash) == unruled.hash.as_ref());
        differs.then_some(own)
    }
}

impl SaidByKind {
    /// What is said of a rule; `None`: nothing but what is said of its destination. A policy's `to` names the route, or the
    /// policy as a whole is about it: then the destination is one by its `kuma.io/service`, as in Kuma.
    fn of_rule(&self, named: &Named<'_>, targets: &RouteTargets, route: &Key, hash: &str) -> Option<Merged> {
        if self.by_resource.names(route) {
            let rule = self.by_resource.conf(named.key, &named.section, Some(route));
            return rule.map(|rule| rule.merged.clone());
        }
        let is_of_routes = |policy: &Arc<meridian_policy::Policy>| {
            policy.target().is_some_and(|target| target.kind == TargetKind::MeshHttpRoute)
        };
        if !self.policies.iter().any(is_of_routes) || self.by_resource.names_port(named.key, &named.section) {
            return None;
        }
        to_conf(&self.policies, targets, named.tag?, Some(hash))
    }
}

/// The part that a rule of a route may have of its own.
fn of_routes(policies: DestinationPolicies) -> RoutePolicies {
    RoutePolicies {
        stream_timeouts: policies.stream_timeouts,
        retry: policies.retry,
        access_logs: Some(policies.access_logs),
        hash: Some(policies.balancing.hash),
    }
}

/// Backends that are not there: the route holds, and says so.
fn report<'a>(policy: &Resource, backends: impl Iterator<Item = &'a RouteBackend>, out: &mut Compiled) {
    let missing: BTreeSet<&String> = backends
        .filter_map(|backend| match &backend.to {
            BackendTarget::Missing(why) => Some(why),
            BackendTarget::Destination(_) | BackendTarget::External(_) | BackendTarget::Subset { .. } => None,
        })
        .collect();
    for why in missing {
        out.problem(&policy.key, format!("{why}: its share is refused"));
    }
}

#[cfg(test)]
mod tests;
