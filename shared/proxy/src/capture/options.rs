use ipnet::IpNet;
use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// What leaves the host beside the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforce {
    /// Nothing but what is excluded.
    #[default]
    Strict,
    /// Whatever is neither TCP nor DNS, as with Kuma.
    Kuma,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    #[default]
    DualStack,
    Ipv4,
}

/// Which DNS queries come to the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Redirect {
    /// To any server.
    #[default]
    All,
    /// To these servers (those of resolv.conf, with Kuma's `--redirect-dns`).
    Servers(Vec<IpAddr>),
    /// None.
    Off,
}

/// How to capture. The defaults are Kuma's ports and user, and `strict`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub enforce: Enforce,
    /// Of the proxy: its traffic is not captured. Never an application's.
    pub proxy_uid: u32,
    pub family: Family,
    pub redirect_inbound: bool,
    pub inbound_port: u16,
    pub outbound_port: u16,
    pub dns: Redirect,
    pub dns_port: u16,
    pub exclude_inbound_ports: Vec<PortRange>,
    pub exclude_outbound_ports: Vec<PortRange>,
    pub exclude_outbound_ports_for_uids: Vec<PortsForUids>,
    /// Users of which nothing is captured (ours: strict needs a way to name a system's own daemons).
    pub exclude_uids: Vec<UidRange>,
    /// Lets NTP (UDP 123) out under strict.
    pub exclude_ntp: bool,
    pub exclude_inbound_ips: Vec<IpNet>,
    pub exclude_outbound_ips: Vec<IpNet>,
    /// If any: only these are captured, and excluded ports are not looked at. Under strict the others are refused.
    pub include_inbound_ports: Vec<PortRange>,
    pub include_outbound_ports: Vec<PortRange>,
    pub drop_invalid_packets: bool,
    /// Ranges of virtual addresses, to be routed so that connect() finds a way before the rules see it.
    pub vips: Vec<IpNet>,
    /// Restore the rules at boot, before anything else uses the network.
    pub persist: bool,
    /// Where the program and the unit's files lie.
    pub places: crate::capture::Places,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enforce: Enforce::Strict,
            proxy_uid: 5678,
            family: Family::DualStack,
            redirect_inbound: true,
            inbound_port: 15006,
            outbound_port: 15001,
            dns: Redirect::All,
            dns_port: 15053,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_ports_for_uids: Vec::new(),
            exclude_uids: Vec::new(),
            exclude_ntp: false,
            exclude_inbound_ips: Vec::new(),
            exclude_outbound_ips: Vec::new(),
            include_inbound_ports: Vec::new(),
            include_outbound_ports: Vec::new(),
            drop_invalid_packets: false,
            vips: vec![super::script::Vip::DEFAULT],
            persist: false,
            places: crate::capture::Places {
                notice: super::notice_file(),
                rules: PathBuf::from("/etc/meridian/transparent-proxy.nft"),
                unit: PathBuf::from("/etc/systemd/system/meridian-transparent-proxy.service"),
            },
        }
    }
}

/// `443` or `8000-8100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// `1000` or `1000-1999`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UidRange {
    pub first: u32,
    pub last: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Kuma's `--exclude-outbound-ports-for-uids`: `[protocol:]ports:uids`, or a single list of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortsForUids {
    /// Both, if unset.
    pub transport: Option<Transport>,
    /// All, if empty.
    pub ports: Vec<PortRange>,
    pub uids: Vec<UidRange>,
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is no port or range of ports")),
        }
    }
}

impl FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is no user ID or range of user IDs")),
        }
    }
}

impl FromStr for PortsForUids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (transport, ports, uids) = match parts.as_slice() {
            [uids] => ("*", "*", *uids),
            [ports, uids] => ("*", *ports, *uids),
            [transport, ports, uids] => (*transport, *ports, *uids),
            _ => return Err(format!("{text:?} is not of the form [protocol:]ports:uids")),
        };
        let transport = match transport {
            "tcp" => Some(Transport::Tcp),
            "udp" => Some(Transport::Udp),
            "*" | "" => None,
            other => return Err(format!("{other:?} is neither tcp nor udp")),
        };
        let ports = if matches!(ports, "*" | "") { Vec::new() } else { list(ports)? };
        Ok(Self { transport, ports, uids: list(uids)? })
    }
}

fn list<T: FromStr<Err = String>>(text: &str) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).map(str::parse).collect()
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kumas_forms() {
        let read = |text: &str| text.parse::<PortsForUids>();
        let one = read("udp:53,123:101,1000-1999").unwrap();
        assert_eq!(one.transport, Some(Transport::Udp));
        assert_eq!(one.ports, [53.into(), 123.into()]);
        assert_eq!(one.uids, [UidRange { first: 101, last: 101 }, UidRange { first: 1000, last: 1999 }]);
        assert_eq!(read("8000-8100:7").unwrap().ports, [PortRange { first: 8000, last: 8100 }]);
        assert_eq!(read("7").unwrap().ports, []);
        assert_eq!(read("*:*:7").unwrap().transport, None);
        for bad in ["icmp:1:1", "tcp:0:1", "tcp:9-8:1", "tcp:1:x", "a:b:c:d", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
