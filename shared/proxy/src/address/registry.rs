use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One block of IANA's registries of special-purpose addresses.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub network: IpAddr,
    pub prefix: u8,
    pub name: &'static str,
    /// "Globally Reachable"; N/A and what was withdrawn count as not. The narrowest row decides.
    pub global: bool,
}

impl Row {
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.network, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => network.to_bits() == ip.to_bits() & self.mask4(),
            (IpAddr::V6(network), IpAddr::V6(ip)) => network.to_bits() == ip.to_bits() & self.mask6(),
            _ => false,
        }
    }

    pub fn first(&self) -> IpAddr {
        self.network
    }

    pub fn last(&self) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() | !self.mask4()).into(),
            IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() | !self.mask6()).into(),
        }
    }

    fn mask4(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    fn mask6(&self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }
}

const fn v4(octets: [u8; 4], prefix: u8, name: &'static str, global: bool) -> Row {
    let [a, b, c, d] = octets;
    Row { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix, name, global }
}

const fn v6(s: [u16; 8], prefix: u8, name: &'static str, global: bool) -> Row {
    let [a, b, c, d, e, f, g, h] = s;
    Row { network: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix, name, global }
}

/// Both registries (iana-ipv4-special-registry, iana-ipv6-special-registry), and multicast, which has its own.
pub const ROWS: &[Row] = &[
    v4([0, 0, 0, 0], 8, "this network", false),
    v4([0, 0, 0, 0], 32, "this host on this network", false),
    v4([10, 0, 0, 0], 8, "private use", false),
    v4([100, 64, 0, 0], 10, "shared address space", false),
    v4([127, 0, 0, 0], 8, "loopback", false),
    v4([169, 254, 0, 0], 16, "link-local", false),
    v4([172, 16, 0, 0], 12, "private use", false),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments", false),
    v4([192, 0, 0, 0], 29, "IPv4 service continuity prefix", false),
    v4([192, 0, 0, 8], 32, "IPv4 dummy address", false),
    v4([192, 0, 0, 9], 32, "Port Control Protocol anycast", true),
    v4([192, 0, 0, 10], 32, "TURN anycast", true),
    v4([192, 0, 0, 170], 32, "NAT64/DNS64 discovery", false),
    v4([192, 0, 0, 171], 32, "NAT64/DNS64 discovery", false),
    v4([192, 0, 2, 0], 24, "documentation (TEST-NET-1)", false),
    v4([192, 31, 196, 0], 24, "AS112-v4", true),
    v4([192, 52, 193, 0], 24, "AMT", true),
    v4([192, 88, 99, 0], 24, "deprecated 6to4 relay anycast", false),
    v4([192, 88, 99, 2], 32, "6a44 relay anycast", false),
    v4([192, 168, 0, 0], 16, "private use", false),
    v4([192, 175, 48, 0], 24, "direct delegation AS112", true),
    v4([198, 18, 0, 0], 15, "benchmarking", false),
    v4([198, 51, 100, 0], 24, "documentation (TEST-NET-2)", false),
    v4([203, 0, 113, 0], 24, "documentation (TEST-NET-3)", false),
    v4([224, 0, 0, 0], 4, "multicast", false),
    v4([240, 0, 0, 0], 4, "reserved (virtual addresses of the mesh live there)", false),
    v4([255, 255, 255, 255], 32, "limited broadcast", false),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback", false),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified", false),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped", false),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "IPv4-IPv6 translation", true),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "local IPv4-IPv6 translation", false),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discard only", false),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, "dummy prefix", false),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "IETF protocol assignments", false),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo", false),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128, "Port Control Protocol anycast", true),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128, "TURN anycast", true),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128, "DNS-SD service registration anycast", true),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, "benchmarking", false),
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32, "AMT", true),
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, "AS112-v6", true),
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "deprecated ORCHID", false),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, "ORCHIDv2", true),
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, "drone remote identification", true),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation", false),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4", false),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "direct delegation AS112", true),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation", false),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "segment routing identifiers", false),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique local", false),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local", false),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast", false),
];
