use crate::meta::Meta;
use crate::policy::{HTTP_ROUTE, Policy};
use meridian_core::{Key, TargetRef};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The MeshHTTPRoutes that other policies may target.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// By mesh and the name under which each was written.
    by_name: BTreeMap<(String, String), BTreeMap<Key, Arc<Policy>>>,
}

impl Routes {
    /// Of the policies given, those that are routes.
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>) -> Self {
        let mut routes = Self::default();
        policies.into_iter().for_each(|policy| routes.insert(policy));
        routes
    }

    /// Whether other policies may target this one.
    pub fn is_route(policy: &Policy) -> bool {
        policy.key().kind.as_str() == HTTP_ROUTE
    }

    pub(crate) fn insert(&mut self, policy: &Arc<Policy>) {
        if Self::is_route(policy) {
            let named = self.by_name.entry(name(policy)).or_default();
            named.insert(policy.key().clone(), Arc::clone(policy));
        }
    }

    /// The routes that are the policy's top-level target.
    pub(crate) fn targeted_by(&self, policy: &Policy) -> impl Iterator<Item = &Arc<Policy>> {
        policy.route_target().into_iter().flat_map(|target| self.find(target, Meta::from(&*policy.resource)))
    }

    /// The routes that a reference in a policy means: all with its labels, or the one of its name. Of several with
    /// that name the one of the policy's own zone and namespace.
    fn find(&self, target: &TargetRef, policy: Meta<'_>) -> Vec<&Arc<Policy>> {
        let mesh = &policy.key.mesh;
        let Some(name) = target.name() else {
            let of_mesh = self.by_name.iter().filter(|((of, _), _)| of == mesh);
            let labelled = |route: &&Arc<Policy>| {
                target.has_labels() && Meta::from(&*route.resource).has_labels(target.labels.as_ref())
            };
            return of_mesh.flat_map(|(_, named)| named.values()).filter(labelled).collect();
        };
        let named = self.by_name.get(&(mesh.clone(), name.to_owned()));
        let near = |route: &&Arc<Policy>| {
            let meta = Meta::from(&*route.resource);
            let namespace = target.namespace().unwrap_or(policy.namespace());
            (meta.namespace() == namespace, meta.zone() == policy.zone())
        };
        // The first of the nearest, in the order of keys.
        let nearest = named.into_iter().flat_map(BTreeMap::values).rev().max_by_key(near);
        nearest.into_iter().collect()
    }
}

fn name(policy: &Policy) -> (String, String) {
    (policy.key().mesh.clone(), Meta::from(&*policy.resource).display().to_owned())
}

/// The items of `to` of a route: whom each is about, and its rules' `matches`.
pub(crate) fn entries(route: &Policy) -> impl Iterator<Item = (&TargetRef, Vec<&Value>)> {
    route.to.iter().map(|item| {
        let rules = item.conf.get("rules").and_then(Value::as_array);
        (&item.target, rules.into_iter().flatten().filter_map(|rule| rule.get("matches")).collect())
    })
}
