//! The resources as they came, parsed; and what becomes of those that can't be understood.
//!
//! A resource that guards something and can't be understood must not leave its older, perhaps wider form in force:
//! an inbound then refuses everybody, an entry or destination is gone, calls whose routes are unknown are refused, and so
//! is unlisted traffic. Only a bundle keeps its last readable form, since without one nobody could be believed at all; and so
//! do the policies of calls that go out, which guard nothing, unless there are scripts among them.

use super::PeerRule;
use crate::{
    access_log::{self, AccessLogs},
    egress::Originator,
    metrics::gather::Publication,
    policy::{
        balance::Hashing,
        filter::RequestFilter,
        health::HealthPlan,
        lua::{Chain, Programs},
        retry::RetryPolicy,
        routes::Compiled,
    },
    tls::Tls,
    trace::Tracer,
};
use meridian_delta::{Encoded, Id, Version};
use meridian_proxy_config::{self as config, DestinationTls, types};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, sync::Arc};

/// Type and name.
type ResourceKey = (Arc<str>, Arc<str>);

/// What a control plane has sent.
#[derive(Default)]
pub struct Resources {
    accepted: BTreeMap<ResourceKey, Arc<Encoded>>,
    refused: BTreeMap<ResourceKey, (Arc<Encoded>, String)>,
    pub(super) proxy: Option<Arc<config::Proxy>>,
    pub(super) tracer: Option<Arc<Tracer>>,
    pub(super) inbounds: BTreeMap<Arc<str>, Arc<config::Inbound>>,
    /// Of inbounds, compiled.
    pub(super) filters: BTreeMap<Arc<str>, Arc<RequestFilter>>,
    pub(super) scripts: BTreeMap<Arc<str>, Chain>,
    programs: Programs,
    pub(super) refused_inbounds: BTreeMap<Arc<str>, Arc<config::Inbound>>,
    pub(super) outbounds: BTreeMap<Arc<str>, Arc<config::Outbound>>,
    pub(super) destinations: BTreeMap<Arc<str>, DestinationParts>,
    /// By the destination's name, or by its protocol.
    policies: BTreeMap<Arc<str>, PolicyParts>,
    /// By the destination's name; `None`: they can't be understood, and calls to it are refused.
    pub(super) routings: BTreeMap<Arc<str>, Option<Arc<Compiled>>>,
    pub(super) endpoints: BTreeMap<Arc<str>, Arc<config::EndpointSet>>,
    pub(super) externals: BTreeMap<Arc<str>, (Arc<config::External>, Option<EntryParts>)>,
    pub(super) entries: BTreeMap<Arc<str>, EntryParts>,
    pub(super) callers: BTreeMap<Arc<str>, Arc<config::Caller>>,
    pub(super) routes: BTreeMap<Arc<str>, Arc<config::SniRoute>>,
    pub(super) metrics: Option<Arc<Publication>>,
    pub(super) meshes: BTreeMap<Arc<str>, String>,
}

/// A [`config::Destination`], with what all clusters of it share.
pub(super) struct DestinationParts {
    pub(super) service: String,
    pub(super) protocol: config::Protocol,
    /// Who must answer; `None`: plaintext.
    pub(super) peers: Option<Arc<PeerRule>>,
    pub(super) tiers: Box<[Vec<String>]>,
    pub(super) spans_zones: bool,
}

#[derive(Clone, Default)]
pub(super) struct PolicyParts {
    pub(super) config: Arc<config::DestinationPolicies>,
    pub(super) retry: Option<Arc<RetryPolicy>>,
    pub(super) health: Option<Arc<HealthPlan>>,
    pub(super) hashing: Option<Arc<Hashing>>,
    pub(super) logs: AccessLogs,
    pub(super) scripts: Option<Chain>,
}

#[derive(Clone)]
pub(super) struct EntryParts {
    pub(super) config: Arc<config::Entry>,
    pub(super) originator: Option<Arc<Originator>>,
}

impl Resources {
    /// Takes a resource in.
    ///
    /// # Errors
    /// Why it was not accepted; what it guards is then refused.
    pub fn upsert(&mut self, tls: &Tls, resource: &Arc<Encoded>) -> Result<(), String> {
        let key = (resource.type_.clone(), resource.name.clone());
        let result = self.parse(tls, resource);
        match &result {
            Ok(()) => {
                self.refused.remove(&key);
                self.accepted.insert(key, resource.clone());
            }
            Err(reason) => {
                tracing::error!(kind = %resource.type_, name = %resource.name, %reason, "configuration refused");
                self.guard(resource);
                self.accepted.remove(&key);
                self.refused.insert(key, (resource.clone(), reason.clone()));
            }
        }
        result
    }

    pub fn remove(&mut self, tls: &Tls, id: &Id) {
        let key = (id.type_.clone(), id.name.clone());
        self.accepted.remove(&key);
        self.refused.remove(&key);
        let name = &*id.name;
        self.refused_inbounds.remove(name);
        self.forget(&id.type_, name);
        if &*id.type_ == types::BUNDLE
            && let Some(mesh) = self.meshes.remove(name)
        {
            tls.bundles.remove(&mesh);
        }
    }

    /// What is held and with which version: what was refused is not held.
    pub fn have(&self) -> Vec<(Id, Version)> {
        self.accepted.values().map(|resource| (resource.id(), resource.version)).collect()
    }

    /// Everything that came, refused or not: what a restart needs to be where this process is.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.accepted.values().chain(self.refused.values().map(|(resource, _)| resource))
    }

    /// What was not accepted, with the reason.
    pub fn refused(&self) -> impl Iterator<Item = (&Arc<Encoded>, &str)> {
        self.refused.values().map(|(resource, reason)| (resource, reason.as_str()))
    }

    /// Meshes in which this proxy needs a certificate.
    pub fn identities(&self) -> Vec<String> {
        self.proxy.as_ref().map(|proxy| proxy.identities.clone()).unwrap_or_default()
    }

    /// What policies say of a destination.
    pub(super) fn policies(&self, name: &str, protocol: config::Protocol) -> PolicyParts {
        let others = || self.policies.get(config::policies_for_others(protocol));
        self.policies.get(name).or_else(others).cloned().unwrap_or_default()
    }

    /// All that policies say, by name.
    pub(super) fn all_policies(&self) -> impl Iterator<Item = (&Arc<str>, &PolicyParts)> {
        self.policies.iter()
    }

    fn parse(&mut self, tls: &Tls, resource: &Encoded) -> Result<(), String> {
        let (name, body) = (resource.name.clone(), &resource.body);
        match &*resource.type_ {
            types::PROXY => {
                let proxy: Arc<config::Proxy> = read(body)?;
                tls.set_terms(&proxy.sessions);
                self.proxy = Some(proxy);
            }
            types::TRACE => self.tracer = Some(Arc::new(Tracer::compile(read(body)?))),
            types::INBOUND => {
                let inbound: Arc<config::Inbound> = read(body)?;
                let filter = inbound.policies.filter.as_ref().map(RequestFilter::compile).transpose()?;
                let scripts = self.programs.chain(&inbound.policies.scripts)?;
                match scripts {
                    Some(scripts) => drop(self.scripts.insert(name.clone(), scripts)),
                    None => drop(self.scripts.remove(&name)),
                }
                match filter {
                    Some(filter) => drop(self.filters.insert(name.clone(), Arc::new(filter))),
                    None => drop(self.filters.remove(&name)),
                }
                self.inbounds.insert(name.clone(), inbound);
                self.refused_inbounds.remove(&name);
            }
            types::OUTBOUND => drop(self.outbounds.insert(name, read(body)?)),
            types::DESTINATION => {
                self.destinations.insert(name, destination_parts(parsed(body)?));
            }
            types::POLICIES => {
                let parts = policy_parts(read(body)?, self.policies.get(&name), &mut self.programs)?;
                self.policies.insert(name, parts);
            }
            types::ROUTES => {
                let routes: Arc<config::Routes> = read(body)?;
                let compiled = Compiled::compile(&routes)?;
                self.routings.insert(name, Some(Arc::new(compiled)));
            }
            types::ENDPOINTS => drop(self.endpoints.insert(name, read(body)?)),
            types::EXTERNAL => {
                let external: Arc<config::External> = read(body)?;
                let entry = match &external.via {
                    config::Via::Sidecar(entry) => Some(entry_parts(Arc::new((**entry).clone()))?),
                    config::Via::Egress { .. } | config::Via::Refused(_) => None,
                };
                self.externals.insert(name, (external, entry));
            }
            types::ENTRY => drop(self.entries.insert(name, entry_parts(read(body)?)?)),
            types::CALLER => drop(self.callers.insert(name, read(body)?)),
            types::SNI_ROUTE => drop(self.routes.insert(name, read(body)?)),
            types::METRICS => {
                let config: Arc<config::metrics::Metrics> = read(body)?;
                self.metrics = Some(Arc::new(Publication::compile((*config).clone())?));
            }
            types::BUNDLE => {
                let bundle: Arc<config::Bundle> = read(body)?;
                tls.set_bundle(&bundle).map_err(|error| error.to_string())?;
                self.meshes.insert(name, bundle.mesh.clone());
            }
            other => return Err(format!("unknown type {other}")),
        }
        Ok(())
    }

    /// After a refusal: nothing that the resource guards stays open.
    fn guard(&mut self, resource: &Encoded) {
        let (kind, name) = (&*resource.type_, &*resource.name);
        match kind {
            types::PROXY => {
                if let Some(proxy) = &mut self.proxy {
                    Arc::make_mut(proxy).unlisted = config::Unlisted::Refuse;
                }
            }
            types::INBOUND => {
                if let Some(inbound) = self.inbounds.remove(name) {
                    self.refused_inbounds.insert(resource.name.clone(), inbound);
                }
            }
            types::POLICIES if has_scripts(&resource.body) => self.close(&resource.name),
            types::BUNDLE | types::POLICIES => {}
            types::ROUTES => drop(self.routings.insert(resource.name.clone(), None)),
            other => self.forget(other, name),
        }
    }

    /// Calls are refused by a script in place of those that can't be understood: one of them may have been there to refuse.
    fn close(&mut self, name: &Arc<str>) {
        let mut config = self.policies.get(name).map(|parts| (*parts.config).clone()).unwrap_or_default();
        config.scripts = vec![config::Script::refusing("scripts that can't be understood")];
        match policy_parts(Arc::new(config), self.policies.get(name), &mut self.programs) {
            Ok(parts) => drop(self.policies.insert(name.clone(), parts)),
            Err(error) => tracing::error!(%error, "calls can't be closed"),
        }
    }

    fn forget(&mut self, kind: &str, name: &str) {
        match kind {
            types::PROXY => self.proxy = None,
            types::TRACE => self.tracer = None,
            types::INBOUND => {
                self.inbounds.remove(name);
                self.filters.remove(name);
                self.scripts.remove(name);
            }
            types::OUTBOUND => drop(self.outbounds.remove(name)),
            types::DESTINATION => drop(self.destinations.remove(name)),
            types::POLICIES => drop(self.policies.remove(name)),
            types::ROUTES => drop(self.routings.remove(name)),
            types::ENDPOINTS => drop(self.endpoints.remove(name)),
            types::EXTERNAL => drop(self.externals.remove(name)),
            types::ENTRY => drop(self.entries.remove(name)),
            types::CALLER => drop(self.callers.remove(name)),
            types::SNI_ROUTE => drop(self.routes.remove(name)),
            types::METRICS => self.metrics = None,
            _ => {}
        }
    }
}

/// Whether policies on calls that go out have scripts, also those that can't be understood as a whole.
fn has_scripts(body: &[u8]) -> bool {
    let value: Result<serde_json::Value, _> = serde_json::from_slice(body);
    value.map_or(true, |value| value.get("scripts").is_some())
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<Arc<T>, String> {
    parsed(body).map(Arc::new)
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn destination_parts(config: config::Destination) -> DestinationParts {
    let config::Destination { service, protocol, tls, tiers, spans_zones } = config;
    let peers = match tls {
        DestinationTls::Off => None,
        DestinationTls::Mutual { mesh, identities } => Some(Arc::new(PeerRule::new(mesh, identities))),
    };
    DestinationParts { service, protocol, peers, tiers: tiers.into(), spans_zones }
}

/// `before`: the parts until now; the backends of logs that stay the same go on.
fn policy_parts(
    config: Arc<config::DestinationPolicies>,
    before: Option<&PolicyParts>,
    programs: &mut Programs,
) -> Result<PolicyParts, String> {
    let retry = config.retry.as_ref().map(RetryPolicy::compile).transpose()?.map(Arc::new);
    let health = config.health.as_ref().map(HealthPlan::compile).transpose()?.map(Arc::new);
    let hash = Some(&config.balancing.hash).filter(|hash| !hash.is_empty());
    let hashing = hash.map(|hash| Hashing::compile(hash)).transpose()?.map(Arc::new);
    let logs = match before.filter(|old| old.config.access_logs == config.access_logs) {
        Some(old) => old.logs.clone(),
        None => access_log::compile(&config.access_logs),
    };
    let scripts = programs.chain(&config.scripts)?;
    Ok(PolicyParts { config, retry, health, hashing, logs, scripts })
}

fn entry_parts(config: Arc<config::Entry>) -> Result<EntryParts, String> {
    let originator = config.tls.as_ref().map(Originator::compile).transpose()?.map(Arc::new);
    Ok(EntryParts { config, originator })
}
