//! Which entry a captured connection means: pure, over the newest snapshot.

use super::detect::Heard;
use crate::{
    address::is_vip,
    denial::Reason,
    host::{Asked, HostName, canonical},
    snapshot::{External, Snapshot},
};
use meridian_proxy_config::{self as config, HostMatch, Protocol};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What is to become of a captured connection.
pub enum Choice {
    External(Arc<External>, Asked),
    /// The nearest entry does not take it, for this reason.
    Refused(Arc<External>, Asked, Reason),
    /// Nothing lists it. What it asked for: the name, if one was heard.
    Unlisted(Asked),
}

/// Decides by a listed address, else by what was heard, else by the name that a virtual address was given for
/// (`named`): an application may wait for the server to speak first.
pub fn choose(snapshot: &Snapshot, original: SocketAddr, heard: &Heard, named: Option<&HostName>) -> Choice {
    let address = Asked::Ip(canonical(original.ip()));
    let listing = at_address(snapshot, original);
    if let [one] = listing.as_slice() {
        return Choice::External((*one).clone(), address);
    }
    if !listing.is_empty() {
        return first(listing.into_iter(), address, original.port(), heard);
    }
    match heard.asked().or_else(|| named.cloned().map(Asked::Name)) {
        Some(Asked::Name(name)) => {
            let externals = snapshot.externals_named(name.as_str());
            first(externals, Asked::Name(name.clone()), original.port(), heard)
        }
        Some(Asked::Ip(ip)) => first(listed_at(snapshot, ip), Asked::Ip(ip), original.port(), heard),
        None => Choice::Unlisted(address),
    }
}

/// Whether the address and the port decide: nothing needs to be read.
pub(super) fn decided_by_address(snapshot: &Snapshot, original: SocketAddr) -> bool {
    at_address(snapshot, original).len() == 1
}

/// Of the entries that list the very address, or else a range with it, those that have this port and list it most
/// exactly. Several: they differ in what is spoken.
fn at_address(snapshot: &Snapshot, original: SocketAddr) -> Vec<&Arc<External>> {
    let ip = canonical(original.ip());
    let exact_first = snapshot.externals_at(ip).filter(|listing| means(listing, ip));
    let on_port = exact_first.map(|listing| {
        let on_port = listing.iter().filter(|external| has_port(&external.config, original.port()));
        on_port.collect::<Vec<_>>()
    });
    on_port.into_iter().find(|listing| !listing.is_empty()).unwrap_or_default()
}

fn listed_at(snapshot: &Snapshot, ip: IpAddr) -> impl Iterator<Item = &Arc<External>> {
    snapshot.externals_at(ip).filter(move |listing| means(listing, ip)).flatten()
}

/// A virtual address stands for a name: no range means it.
fn means(listing: &[Arc<External>], ip: IpAddr) -> bool {
    let literal = |host: &HostMatch| matches!(host, HostMatch::Ip(listed) if canonical(*listed) == ip);
    !is_vip(ip) || listing.iter().any(|external| external.config.hosts.iter().any(literal))
}

/// The first that takes the connection; where none does, the nearest says why.
fn first<'a>(
    externals: impl Iterator<Item = &'a Arc<External>>,
    asked: Asked,
    port: u16,
    heard: &Heard,
) -> Choice {
    let mut nearest = None;
    for external in externals {
        match takes(&external.config, port, heard) {
            Ok(()) => return Choice::External(external.clone(), asked),
            Err(reason) => {
                // Another protocol on this port is nearer than another port.
                let nearer =
                    |had: &(_, Reason)| had.1 != Reason::PORT_NOT_LISTED || reason == Reason::PORT_NOT_LISTED;
                nearest = nearest.filter(nearer).or_else(|| Some((external.clone(), reason.clone())));
            }
        }
    }
    match nearest {
        Some((external, reason)) => Choice::Refused(external, asked, reason),
        None => Choice::Unlisted(asked),
    }
}

/// The host to name to the egress for a connection that came by a virtual address: one of the names that lead to it.
pub(crate) fn host_of(external: &config::External, hostnames: &[String]) -> Option<Asked> {
    let named = |host: &&HostMatch| match host {
        HostMatch::Exact(name) => hostnames.contains(name),
        HostMatch::Wildcard(_) | HostMatch::Ip(_) | HostMatch::Net(_) => false,
    };
    let host = external.hosts.iter().find(named).or(external.hosts.first())?;
    match host {
        HostMatch::Exact(name) => name.parse().ok(),
        HostMatch::Ip(ip) => Some(Asked::Ip(canonical(*ip))),
        // Neither has a virtual address of the zone's.
        HostMatch::Wildcard(_) | HostMatch::Net(_) => None,
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
        Heard::Http(_) | Heard::Http2(_) | Heard::Other if external.protocol == Protocol::Tls => {
            Err(Reason::WRONG_PROTOCOL)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hello::{ClientHello, parse, samples::Sample},
        resolve::Resolver,
        rig::Rig,
    };
    use meridian_proxy_config::{EntryKind, Via, types};

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

    fn snapshot(entries: Vec<config::External>) -> Arc<Snapshot> {
        let mut rig = Rig::new(Resolver::default());
        for entry in entries {
            rig.put(types::EXTERNAL, &entry.entry, &entry);
        }
        rig.publish();
        rig.shared().snapshots.load()
    }

    /// The entry that a connection means, or what is said against it.
    fn chosen(snapshot: &Snapshot, original: &str, heard: &Heard, named: Option<&str>) -> String {
        let named = named.map(|name| HostName::parse(name.as_bytes()).unwrap());
        match choose(snapshot, original.parse().unwrap(), heard, named.as_ref()) {
            Choice::External(external, asked) => format!("{} for {asked}", external.config.entry),
            Choice::Refused(_, asked, reason) => format!("{reason} for {asked}"),
            Choice::Unlisted(asked) => format!("unlisted {asked}"),
        }
    }

    fn below(parent: &str) -> HostMatch {
        HostMatch::Wildcard(parent.into())
    }

    fn net(text: &str) -> HostMatch {
        HostMatch::Net(text.parse().unwrap())
    }

    const OLD: &str = "198.51.100.7:443";

    #[test]
    fn exact_names_come_before_wildcards_and_long_wildcards_before_short_ones() {
        let snapshot = snapshot(vec![
            entry("short", below("example.com"), &[443], Protocol::Tls, false),
            entry("long", below("Eu.Example.com."), &[443], Protocol::Tls, false),
            entry("exact", exact("api.eu.example.com"), &[443], Protocol::Tls, false),
            entry("plain", below("example.com"), &[80], Protocol::Http, false),
            entry("apex", exact("example.com"), &[8443], Protocol::Tls, false),
        ]);
        for (name, expected) in [
            ("api.eu.example.com", "exact for api.eu.example.com"),
            ("API.EU.Example.com", "exact for api.eu.example.com"),
            ("v2.api.eu.example.com", "long for v2.api.eu.example.com"),
            ("x.eu.example.com", "long for x.eu.example.com"),
            ("eu.example.com", "short for eu.example.com"),
            ("xn--bcher-kva.example.com", "short for xn--bcher-kva.example.com"),
            ("example.com", "port-not-listed for example.com"),
            ("evilexample.com", "unlisted evilexample.com"),
            ("example.com.evil", "unlisted example.com.evil"),
            ("x.example.com.evil", "unlisted x.example.com.evil"),
            ("com", "unlisted com"),
        ] {
            assert_eq!(chosen(&snapshot, OLD, &Heard::Tls(Some(hello(name))), None), expected);
        }
        // What the nearer entry does not take, a farther one may.
        assert_eq!(
            chosen(&snapshot, "198.51.100.7:80", &http("api.eu.example.com"), None),
            "plain for api.eu.example.com"
        );
        // An address is no name below anything, and a wildcard for TLS takes nothing else.
        assert_eq!(chosen(&snapshot, OLD, &http("127.0.0.1"), None), "unlisted 127.0.0.1");
        assert_eq!(chosen(&snapshot, OLD, &http("a.example.com"), None), "wrong-protocol for a.example.com");
        assert_eq!(chosen(&snapshot, OLD, &Heard::Other, None), "unlisted 198.51.100.7");
    }

    #[test]
    fn the_name_of_a_virtual_address_stands_in_where_none_is_said() {
        let snapshot = snapshot(vec![
            entry("grpc", below("example.com"), &[50051], Protocol::Grpc, false),
            entry("tls", below("example.com"), &[443], Protocol::Tls, false),
        ]);
        let (grpc, tls) = ("244.0.0.7:50051", "244.0.0.7:443");
        let named = Some("a.example.com");
        assert_eq!(chosen(&snapshot, grpc, &Heard::Http2(None), named), "grpc for a.example.com");
        assert_eq!(chosen(&snapshot, grpc, &http("b.example.com"), named), "grpc for b.example.com");
        assert_eq!(chosen(&snapshot, grpc, &http("evil.example.net"), named), "unlisted evil.example.net");
        assert_eq!(chosen(&snapshot, tls, &Heard::Nothing, named), "tls for a.example.com");
        assert_eq!(chosen(&snapshot, tls, &Heard::Http(None), named), "wrong-protocol for a.example.com");
        // Listed no longer, or forgotten.
        assert_eq!(
            chosen(&snapshot, grpc, &Heard::Http2(None), Some("a.example.net")),
            "unlisted a.example.net"
        );
        assert_eq!(chosen(&snapshot, grpc, &Heard::Http2(None), None), "unlisted 244.0.0.7");
    }

    #[test]
    fn addresses_come_before_ranges_and_long_ranges_before_short_ones() {
        let snapshot = snapshot(vec![
            entry("all", net("0.0.0.0/0"), &[], Protocol::Tcp, false),
            entry("ten", net("10.9.9.9/8"), &[5432], Protocol::Tcp, false),
            entry("near", net("::ffff:10.1.0.0/112"), &[5432, 80], Protocol::Tcp, false),
            entry("one", HostMatch::Ip("10.1.0.5".parse().unwrap()), &[22], Protocol::Tcp, false),
            entry("six", net("2001:db8::/32"), &[80], Protocol::Http, false),
            entry("six-tls", net("2001:db8::/32"), &[80], Protocol::Tls, false),
        ]);
        for (original, expected) in [
            ("10.1.0.5:22", "one for 10.1.0.5"),
            ("10.1.0.5:80", "near for 10.1.0.5"),
            ("[::ffff:10.1.0.5]:80", "near for 10.1.0.5"),
            ("10.1.7.7:5432", "near for 10.1.7.7"),
            ("10.2.0.5:5432", "ten for 10.2.0.5"),
            ("10.2.0.5:80", "all for 10.2.0.5"),
            ("11.0.0.1:80", "all for 11.0.0.1"),
            ("[2001:db9::1]:80", "unlisted 2001:db9::1"),
            // A virtual address stands for a name.
            ("241.0.0.1:80", "unlisted 241.0.0.1"),
        ] {
            assert_eq!(chosen(&snapshot, original, &Heard::Nothing, None), expected, "{original}");
        }
        // Two ways to speak to one range: what is spoken decides.
        let six = "[2001:db8::1]:80";
        assert!(!decided_by_address(&snapshot, six.parse().unwrap()));
        assert!(decided_by_address(&snapshot, "10.1.0.5:22".parse().unwrap()));
        let tls = Heard::Tls(Some(hello("whatever.example")));
        assert_eq!(chosen(&snapshot, six, &tls, None), "six-tls for 2001:db8::1");
        assert_eq!(chosen(&snapshot, six, &http("whatever.example"), None), "six for 2001:db8::1");
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
