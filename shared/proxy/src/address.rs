//! Which addresses a listed name may lead to.
//!
//! Whoever owns a listed name chooses what it resolves to: the workload's own loopback, the cloud's metadata service,
//! another tenant's private range. So an address is dialled only if it is global unicast by IANA's special-purpose
//! registries, or if the entry says otherwise. Judged on the address that will be dialled, after resolving, by the
//! proxy that dials it: no time passes between check and use.

mod registry;

pub use registry::{ROWS, Row};

use crate::{host::canonical, lent::LENT};
use ipnet::IpNet;
use meridian_proxy_config::{Entry, Host, HostMatch, canonical_net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What one entry may reach, with the addresses of the zone's own parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Addresses that the entry names as such.
    pub literals: &'a [IpAddr],
    /// `allowedAddresses`.
    pub allowed: &'a [IpNet],
    /// Ranges that the entry lists as its destination.
    pub ranges: &'a [IpNet],
    /// The zone's own proxies and control planes.
    pub protected: &'a [IpAddr],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ip} is refused: {why}")]
pub struct AddressRefused {
    pub ip: IpAddr,
    pub why: &'static str,
}

/// Whether `ip` may be dialled.
pub fn judge(ip: IpAddr, scope: Scope<'_>) -> Result<(), AddressRefused> {
    let ip = canonical(ip);
    if scope.literals.iter().any(|literal| canonical(*literal) == ip) {
        return Ok(());
    }
    let inner = inner_v4(ip);
    if let Some(why) = [Some(ip), inner].into_iter().flatten().find_map(sealed) {
        return Err(AddressRefused { ip, why });
    }
    let judged = inner.unwrap_or(ip);
    if scope.allowed.iter().any(|net| net.contains(&ip) || net.contains(&judged)) {
        return Ok(());
    }
    if scope.protected.iter().any(|own| canonical(*own) == ip || canonical(*own) == judged) {
        return Err(AddressRefused { ip, why: "one of this zone's own proxies or control planes" });
    }
    // Whoever lists a range means a network: what a tunnel leads to is not in it, and the mesh's own parts are only by
    // accident.
    if !is_vip(judged) && scope.ranges.iter().any(|net| net.contains(&judged)) {
        return Ok(());
    }
    match special(judged) {
        Some(why) => Err(AddressRefused { ip, why }),
        None => Ok(()),
    }
}

/// The addresses that an entry names itself, as a host or as an endpoint.
pub fn literals(entry: &Entry) -> Vec<IpAddr> {
    let hosts = entry.hosts.iter().filter_map(|host| match host {
        HostMatch::Ip(ip) => Some(*ip),
        HostMatch::Exact(_) | HostMatch::Wildcard(_) | HostMatch::Net(_) => None,
    });
    let endpoints = entry.endpoints.iter().filter_map(|endpoint| match endpoint.host {
        Host::Ip(ip) => Some(ip),
        Host::Name(_) => None,
    });
    hosts.chain(endpoints).map(canonical).collect()
}

/// The ranges that an entry lists.
pub fn ranges(entry: &Entry) -> Vec<IpNet> {
    let ranges = entry.hosts.iter().filter_map(|host| match host {
        HostMatch::Net(net) => Some(canonical_net(*net)),
        HostMatch::Exact(_) | HostMatch::Wildcard(_) | HostMatch::Ip(_) => None,
    });
    ranges.collect()
}

/// 240/8 to 244/8: virtual addresses (`.mesh` and listed hosts, MeshService, MeshExternalService,
/// MeshMultiZoneService, and names below a wildcard).
pub(crate) fn is_vip(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if (240..=LENT).contains(&v4.octets()[0]))
}

/// The IPv4 address that a NAT64 or 6to4 address leads to: judging the outside alone would be a way around.
fn inner_v4(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = ip else { return None };
    let [a, b, c, _, _, _, g, h] = v6.segments();
    let join =
        |high: u16, low: u16| Some(IpAddr::V4(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))));
    match (a, b) {
        (0x64, 0xff9b) if v6.segments()[2..6] == [0; 4] => join(g, h),
        (0x2002, _) => join(b, c),
        _ => None,
    }
}

/// Reached only where the entry is that very address; a range in `allowedAddresses` does not open them.
fn sealed(ip: IpAddr) -> Option<&'static str> {
    /// Metadata services outside of link-local ranges: whoever reads one has the machine's credentials.
    const METADATA: [IpAddr; 4] = [
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // AWS
        IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),  // Google Cloud
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), // Azure's WireServer: a public address
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba Cloud
    ];
    if METADATA.contains(&ip) {
        return Some("a cloud's metadata service");
    }
    if ip.is_multicast() {
        return Some("multicast");
    }
    match ip {
        _ if ip.is_loopback() => Some("loopback"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local (metadata services live there)"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("broadcast"),
        // Linux connects to itself when told 0.0.0.0 or ::.
        _ if ip.is_unspecified() => Some("unspecified (this host)"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        _ => None,
    }
}

/// The registry's reason against an address; `None` if it is global unicast.
fn special(ip: IpAddr) -> Option<&'static str> {
    let row = ROWS.iter().filter(|row| row.contains(ip)).max_by_key(|row| row.prefix);
    match (row, ip) {
        (Some(row), _) if row.global => None,
        (Some(row), _) => Some(row.name),
        // 2000::/3 is all that was ever given out as global unicast.
        (None, IpAddr::V6(v6)) if v6.segments()[0] >> 13 != 1 => Some("not global unicast"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(ip: &str) -> Option<&'static str> {
        judge(ip.parse().unwrap(), Scope::default()).err().map(|refused| refused.why)
    }

    #[test]
    fn every_row_of_the_registries() {
        for row in ROWS {
            for ip in [row.first(), row.last()] {
                let narrowest =
                    ROWS.iter().filter(|other| other.contains(ip)).max_by_key(|other| other.prefix).unwrap();
                let global = match inner_v4(ip) {
                    Some(inner) => special(inner).is_none() && sealed(inner).is_none(),
                    None => narrowest.global,
                };
                assert_eq!(judge(ip, Scope::default()).is_ok(), global, "{ip} of {}", row.name);
            }
        }
    }

    #[test]
    fn addresses_around_the_rows() {
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "192.0.0.9",
            "192.0.0.10",
            "2606:4700::1111",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:1::1",
            "3ffe::1",
        ] {
            assert_eq!(refused(ip), None, "{ip}");
        }
    }

    #[test]
    fn refused_addresses() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "241.0.0.1",
            "242.1.2.3",
            "243.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "::",
            "::1",
            "::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "1::1",
        ] {
            assert!(refused(ip).is_some(), "{ip}");
        }
    }

    #[test]
    fn tunnels_are_judged_by_what_is_inside() {
        for (ip, allowed) in [
            ("::ffff:8.8.8.8", true),
            ("::ffff:10.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:240.0.0.1", false),
            ("64:ff9b::808:808", true),
            ("64:ff9b::a00:1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:808:808::1", true),
            ("2002:a00:1::1", false),
            ("2002:7f00:1::", false),
            ("2002:a9fe:a9fe::", false),
        ] {
            assert_eq!(refused(ip).is_none(), allowed, "{ip}");
        }
    }

    #[test]
    fn ranges_open_what_is_private_but_not_what_is_sealed() {
        let allowed: Vec<IpNet> = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
        let scope = Scope { allowed: &allowed, ..Scope::default() };
        for ip in ["10.0.0.1", "192.0.2.1", "2001:db8::1", "fd12::1", "64:ff9b::a00:1", "241.0.0.1"] {
            assert_eq!(judge(ip.parse().unwrap(), scope), Ok(()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:a9fe:a9fe::1",
            "255.255.255.255",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert!(judge(ip, scope).is_err(), "{ip}");
            assert_eq!(judge(ip, Scope { literals: &[ip], ..scope }), Ok(()), "{ip} as a literal");
        }
    }

    #[test]
    fn a_listed_range_opens_private_networks_and_no_more() {
        let own: IpAddr = "10.1.0.10".parse().unwrap();
        let ranges: Vec<IpNet> = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
        let scope = Scope { ranges: &ranges, protected: &[own], ..Scope::default() };
        for ip in ["10.0.0.1", "192.0.2.1", "198.18.0.1", "fd12::1", "::ffff:10.0.0.1", "8.8.8.8"] {
            assert_eq!(judge(ip.parse().unwrap(), scope), Ok(()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "168.63.129.16",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "240.0.0.1",
            "244.255.0.1",
            "::ffff:241.0.0.1",
            "64:ff9b::7f00:1",
            "2002:a9fe:a9fe::1",
            "10.1.0.10",
            "::ffff:10.1.0.10",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert!(judge(ip, scope).is_err(), "{ip}");
            assert_eq!(judge(ip, Scope { literals: &[ip], ..scope }), Ok(()), "{ip} as a literal");
        }
        // A range of IPv6 opens no private IPv4 behind a tunnel.
        let ranges: Vec<IpNet> = vec!["::/0".parse().unwrap()];
        let scope = Scope { ranges: &ranges, ..Scope::default() };
        for ip in ["64:ff9b::a00:1", "2002:a00:1::1", "::ffff:10.0.0.1"] {
            assert!(judge(ip.parse().unwrap(), scope).is_err(), "{ip}");
        }
        assert_eq!(judge("fd12::1".parse().unwrap(), scope), Ok(()));
    }

    #[test]
    fn the_zones_own_addresses_need_to_be_named() {
        let own: IpAddr = "8.8.4.4".parse().unwrap();
        let scope = Scope { protected: &[own], ..Scope::default() };
        assert!(judge(own, scope).is_err());
        assert!(judge("::ffff:8.8.4.4".parse().unwrap(), scope).is_err());
        assert!(judge("64:ff9b::808:404".parse().unwrap(), scope).is_err());
        assert_eq!(judge("8.8.8.8".parse().unwrap(), scope), Ok(()));
        assert_eq!(judge(own, Scope { literals: &[own], ..scope }), Ok(()));
    }

    proptest! {
        #[test]
        fn mapped_addresses_fare_like_their_v4(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let plain = judge(v4.into(), Scope::default()).is_ok();
            prop_assert_eq!(judge(v4.to_ipv6_mapped().into(), Scope::default()).is_ok(), plain);
        }
    }
}
