//! The sidecar's resolver: what a workload may know of the world.
//!
//! A listed name has its virtual address; its other record types are empty rather than absent, so that a client does
//! not give up on the name. An unlisted name does not exist while passthrough is off, and is never asked of anyone:
//! a query is data that leaves. The refusal carries the extended error 15 (blocked) and no SOA, so that nobody keeps
//! it after the name is listed.
//!
//! hickory's server was not taken: two record types and one question need no zone machinery, and its decoder asserts
//! where ours must not.

mod forward;
mod message;
mod server;

pub use message::{QueryError, Question, Reply, parse_query};
pub use server::run;

use crate::{host::HostName, snapshot::Snapshot};
use meridian_proxy_config::{DnsSettings, HostMatch};
use message::{A, AAAA, ANY};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is to be done with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Known here; no addresses: the name exists, this type of record does not.
    Answer(Vec<IpAddr>),
    /// Below a listed wildcard: to be answered with an address of the sidecar's own to give. The name exists as far as
    /// anybody here knows; the egress asks for it when it is connected to.
    Lend(HostName),
    /// To the host's own servers.
    Forward,
    /// Not listed.
    Refuse,
}

/// Decides one question: pure, over the newest snapshot.
pub fn decide(question: &Question, settings: &DnsSettings, snapshot: &Snapshot) -> Decision {
    let Ok(name) = HostName::parse(question.name.as_bytes()) else {
        return if settings.forward_all { Decision::Forward } else { Decision::Refuse };
    };
    if let Some(vips) = snapshot.addresses_of(name.as_str()) {
        return Decision::Answer(of_type(vips, question.kind, settings.ipv6));
    }
    if within(name.as_str(), "localhost") {
        let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Decision::Answer(of_type(&own, question.kind, false));
    }
    if settings.forward_all || settings.forward_zones.iter().any(|zone| within(name.as_str(), zone)) {
        return Decision::Forward;
    }
    // Listed without a virtual address: the real one is what a captured connection then carries. Other types are
    // empty, HTTPS records above all: with the keys for an encrypted ClientHello in them its name can't be held.
    if !snapshot.externals_for(&HostMatch::Exact(name.as_str().to_owned())).is_empty() {
        return match question.kind {
            A | AAAA => Decision::Forward,
            _ => Decision::Answer(Vec::new()),
        };
    }
    if snapshot.wildcards_above(name.as_str()).next().is_some() {
        return match question.kind {
            A | AAAA | ANY => Decision::Lend(name),
            _ => Decision::Answer(Vec::new()),
        };
    }
    Decision::Refuse
}

fn of_type(addresses: &[IpAddr], kind: u16, mapped: bool) -> Vec<IpAddr> {
    let v4 = || addresses.iter().filter(|ip| ip.is_ipv4()).copied();
    let v6 = || addresses.iter().filter(|ip| ip.is_ipv6()).copied();
    match kind {
        A | ANY => v4().collect(),
        AAAA if mapped && v6().next().is_none() => v4()
            .map(|ip| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
                IpAddr::V6(_) => ip,
            })
            .collect(),
        AAAA => v6().collect(),
        _ => Vec::new(),
    }
}

/// Whether `name` is `zone` or below it, whatever the zone's case and dots.
fn within(name: &str, zone: &str) -> bool {
    let zone = zone.trim_matches('.').to_ascii_lowercase();
    !zone.is_empty() && name.strip_suffix(&zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests;
