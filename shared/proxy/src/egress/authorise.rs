use crate::{
    denial::Reason,
    host::Asked,
    preface::{ANY_ENTRY, Preface},
    snapshot::{Entry, Snapshot},
};
use meridian_proxy_config::{CallerIdentity, CallerMode, EntryKind, HostMatch, Verdict};
use std::sync::Arc;

/// What a caller was granted.
pub struct Granted {
    /// `None`: any public address.
    pub entry: Option<Arc<Entry>>,
    /// The policy or mode that granted it.
    pub rule: String,
    /// Allowed, but a policy is to deny it: to be reported.
    pub shadow_denied: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub reason: Reason,
    /// The nearest rule; may be empty.
    pub rule: String,
}

impl Denied {
    pub fn new(reason: Reason, rule: impl Into<String>) -> Self {
        Self { reason, rule: rule.into() }
    }
}

/// Whether this caller may have what the preface names. `sni` is the mesh session's server name.
pub fn authorise(
    snapshot: &Snapshot,
    caller: &CallerIdentity,
    sni: Option<&str>,
    preface: &Preface,
) -> Result<Granted, Denied> {
    if preface.entry == ANY_ENTRY {
        return any(snapshot, caller);
    }
    let entry = snapshot
        .entries
        .get(&preface.entry)
        .filter(|entry| entry.config.mesh == caller.mesh)
        .ok_or_else(|| Denied::new(Reason::NOT_LISTED, ""))?;
    let (rule, shadow_denied) = match entry.config.kind {
        EntryKind::MeshPassthrough => (by_caller(snapshot, caller, &preface.entry)?, false),
        EntryKind::ExternalService | EntryKind::MeshExternalService => {
            match entry.config.permission.decide(caller, sni) {
                Verdict::Allow { policy, shadow_denied } => (policy.to_owned(), shadow_denied),
                Verdict::Deny { policy } => {
                    return Err(Denied::new(Reason::NO_PERMISSION, policy.unwrap_or_default()));
                }
            }
        }
    };
    terms(entry, preface)?;
    Ok(Granted { entry: Some(entry.clone()), rule, shadow_denied })
}

/// Host and port are the entry's. Also for a sidecar that leaves the mesh itself.
pub(crate) fn terms(entry: &Entry, preface: &Preface) -> Result<(), Denied> {
    if !lists(&entry.config.hosts, &preface.host) {
        return Err(Denied::new(Reason::NAME_MISMATCH, &entry.config.key));
    }
    if !entry.config.ports.is_empty() && !entry.config.ports.contains(&preface.port) {
        return Err(Denied::new(Reason::PORT_NOT_LISTED, &entry.config.key));
    }
    Ok(())
}

/// Whether one of `hosts` is what was asked for.
pub(crate) fn lists(hosts: &[HostMatch], asked: &Asked) -> bool {
    hosts.iter().any(|host| match asked {
        Asked::Name(name) => host.has_name(name.as_str()),
        Asked::Ip(ip) => host.has_address(*ip),
    })
}

fn any(snapshot: &Snapshot, caller: &CallerIdentity) -> Result<Granted, Denied> {
    match own_caller(snapshot, caller)?.mode {
        CallerMode::All => Ok(Granted {
            entry: None,
            rule: "passthrough to any public address".to_owned(),
            shadow_denied: false,
        }),
        CallerMode::None | CallerMode::Matched => Err(Denied::new(Reason::NOT_LISTED, "")),
    }
}

fn by_caller(snapshot: &Snapshot, caller: &CallerIdentity, entry: &str) -> Result<String, Denied> {
    let allowlist = own_caller(snapshot, caller)?;
    match allowlist.mode {
        CallerMode::Matched if allowlist.entries.iter().any(|listed| listed == entry) => Ok(entry.to_owned()),
        _ => Err(Denied::new(Reason::NO_PERMISSION, entry)),
    }
}

/// The allowlist of a Dataplane of this zone. Another zone may have a Dataplane of the same name: its allowlist is
/// not here, and this one's is not its.
fn own_caller<'a>(
    snapshot: &'a Snapshot,
    caller: &CallerIdentity,
) -> Result<&'a meridian_proxy_config::Caller, Denied> {
    let own_zone = snapshot.proxy.as_ref().is_some_and(|proxy| proxy.zone == caller.zone);
    caller
        .dataplane
        .as_deref()
        .filter(|_| own_zone)
        .and_then(|dataplane| snapshot.caller(&caller.mesh, dataplane))
        .map(AsRef::as_ref)
        .ok_or_else(|| Denied::new(Reason::NO_PERMISSION, ""))
}
