//! Which entry a captured connection means: pure, over the newest snapshot.

use super::detect::Heard;
use crate::{
    denial::Reason,
    host::{Asked, canonical},
    snapshot::{External, Snapshot},
};
use meridian_proxy_config::{self as config, HostMatch};
use std::{net::SocketAddr, sync::Arc};

/// What is to become of a captured connection.
pub enum Choice {
    External(Arc<External>, Asked),
    /// The nearest entry does not take it, for this reason.
    Refused(Arc<External>, Asked, Reason),
    /// Nothing lists it. What it asked for: the name, if one was heard.
    Unlisted(Asked),
}

/// Decides by what was heard, else by the address.
pub fn choose(snapshot: &Snapshot, original: SocketAddr, heard: &Heard) -> Choice {
    if let Some(external) = by_address(snapshot, original) {
        return Choice::External(external, Asked::Ip(canonical(original.ip())));
    }
    let Some(asked) = heard.asked() else { return Choice::Unlisted(Asked::Ip(canonical(original.ip()))) };
    let host = match &asked {
        Asked::Name(name) => HostMatch::Exact(name.as_str().to_owned()),
        Asked::Ip(ip) => HostMatch::Ip(*ip),
    };
    let mut nearest = None;
    for external in snapshot.externals_for(&host) {
        match takes(&external.config, original.port(), heard) {
            Ok(()) => return Choice::External(external.clone(), asked),
            Err(reason) => nearest = nearest.or(Some((external.clone(), reason))),
        }
    }
    match nearest {
        Some((external, reason)) => Choice::Refused(external, asked, reason),
        None => Choice::Unlisted(asked),
    }
}

/// An entry that lists the very address, on this port: nothing needs to be read.
pub(super) fn by_address(snapshot: &Snapshot, original: SocketAddr) -> Option<Arc<External>> {
    let port = original.port();
    snapshot
        .externals_for(&HostMatch::Ip(canonical(original.ip())))
        .iter()
        .find(|external| has_port(&external.config, port))
        .cloned()
}

/// The host to name to the egress for a connection that came by a virtual address: one of the names that lead to it.
pub(super) fn host_of(external: &config::External, hostnames: &[String]) -> Option<Asked> {
    let named = |host: &&HostMatch| match host {
        HostMatch::Exact(name) => hostnames.contains(name),
        HostMatch::Ip(_) => false,
    };
    let host = external.hosts.iter().find(named).or(external.hosts.first())?;
    match host {
        HostMatch::Exact(name) => name.parse().ok(),
        HostMatch::Ip(ip) => Some(Asked::Ip(canonical(*ip))),
    }
}

fn has_port(external: &config::External, port: u16) -> bool {
    external.ports.is_empty() || external.ports.contains(&port)
}

fn takes(external: &config::External, port: u16, heard: &Heard) -> Result<(), Reason> {
    if !has_port(external, port) {
        return Err(Reason::PORT_NOT_LISTED);
    }
    match heard {
        Heard::Tls(_) if external.originates_tls => Err(Reason::ENTRY_ORIGINATES_TLS),
        // It would be read as HTTP where it leaves the mesh.
        Heard::Tls(_) if external.protocol.is_http() => Err(Reason::WRONG_PROTOCOL),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::{ClientHello, parse, samples::Sample};
    use meridian_proxy_config::{EntryKind, Protocol, Via};

    fn entry(
        name: &str,
        host: HostMatch,
        ports: &[u16],
        protocol: Protocol,
        originates_tls: bool,
    ) -> config::External {
        config::External {
            entry: name.into(),
            kind: EntryKind::MeshPassthrough,
            protocol,
            hosts: vec![host],
            ports: ports.to_vec(),
            originates_tls,
            via: Via::Refused("test".into()),
        }
    }

    fn hello(name: &str) -> ClientHello {
        parse(&Sample::named(name).bytes()).unwrap().unwrap()
    }

    fn http(name: &str) -> Heard {
        Heard::Http(Some(name.parse().unwrap()))
    }

    fn exact(name: &str) -> HostMatch {
        HostMatch::Exact(name.into())
    }

    #[test]
    fn ports_and_protocols_are_held() {
        let tls = Heard::Tls(Some(hello("api.example")));
        let passed = entry("e", exact("api.example"), &[443], Protocol::Tcp, false);
        assert_eq!(takes(&passed, 443, &tls), Ok(()));
        assert_eq!(takes(&passed, 8443, &tls), Err(Reason::PORT_NOT_LISTED));
        let originating = entry("e", exact("api.example"), &[], Protocol::Http, true);
        assert_eq!(takes(&originating, 443, &tls), Err(Reason::ENTRY_ORIGINATES_TLS));
        assert_eq!(takes(&originating, 80, &http("api.example")), Ok(()));
        let plain = entry("e", exact("api.example"), &[], Protocol::Http, false);
        assert_eq!(takes(&plain, 443, &tls), Err(Reason::WRONG_PROTOCOL));
    }

    #[test]
    fn a_virtual_addresss_own_name_is_named() {
        let mut external = entry("e", exact("api.example"), &[], Protocol::Tcp, false);
        external.hosts.push(exact("api.mesh"));
        let asked = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            host_of(&external, &names).unwrap().to_string()
        };
        assert_eq!(asked(&["api.mesh"]), "api.mesh");
        assert_eq!(asked(&["other.mesh"]), "api.example");
    }
}
