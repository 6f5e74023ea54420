//! The text for `nft -f -`.

use super::options::{Enforce, Family, Options, PortRange, PortsForUids, Redirect, Transport};
use ipnet::{IpNet, Ipv4Net};
use std::{
    fmt::{Display, Write},
    net::{IpAddr, Ipv4Addr},
};

/// The table that all rules are in.
pub const TABLE: &str = "inet meridian";

/// A bit of the connection mark: the proxy opened this connection. Packets that the kernel sends for a closed socket
/// (a last FIN, an ACK in TIME_WAIT) no longer have an owner; by this they are still known to be the proxy's.
const OWN: &str = "0x4d000000";

/// Ranges of virtual addresses.
pub struct Vip;

impl Vip {
    /// 240/8 to 244/8 are in use (see [`crate::address`]); one prefix covers them.
    pub const DEFAULT: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 5));
}

/// The rules for these options, as one transaction: the table as it was goes, the new one comes.
pub fn script(options: &Options) -> String {
    let mut out = Script { text: String::new(), options };
    out.line(0, format_args!("table {TABLE} {{}}"));
    out.line(0, format_args!("delete table {TABLE}"));
    out.line(0, format_args!("table {TABLE} {{"));
    if options.drop_invalid_packets {
        out.invalid();
    }
    if options.redirect_inbound {
        out.inbound();
    }
    out.outbound();
    if options.enforce == Enforce::Strict {
        out.strict();
    }
    out.line(0, format_args!("}}"));
    out.text
}

struct Script<'a> {
    text: String,
    options: &'a Options,
}

impl Script<'_> {
    fn line(&mut self, depth: usize, line: std::fmt::Arguments<'_>) {
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "{:depth$}{line}", "", depth = depth * 4);
    }

    fn chain(&mut self, name: &str, kind: &str, rules: impl FnOnce(&mut Self)) {
        self.line(1, format_args!("chain {name} {{"));
        if !kind.is_empty() {
            self.line(2, format_args!("{kind}"));
        }
        rules(self);
        self.line(1, format_args!("}}"));
    }

    fn rule(&mut self, rule: impl Display) {
        self.line(2, format_args!("{rule}"));
    }

    fn invalid(&mut self) {
        self.chain("invalid", "type filter hook prerouting priority mangle; policy accept;", |out| {
            out.rule("ct state invalid counter drop");
        });
    }

    fn inbound(&mut self) {
        let options = self.options;
        self.chain("inbound", "type nat hook prerouting priority dstnat; policy accept;", |out| {
            out.ipv4_only();
            out.rule("iifname \"lo\" accept");
            for net in &options.exclude_inbound_ips {
                out.rule(format_args!("{} saddr {net} accept", family(net)));
            }
            out.inbound_ports();
        });
    }

    fn inbound_ports(&mut self) {
        let options = self.options;
        if !options.include_inbound_ports.is_empty() {
            let ports = set(&options.include_inbound_ports);
            return self.rule(format_args!("tcp dport {ports} redirect to :{}", options.inbound_port));
        }
        if !options.exclude_inbound_ports.is_empty() {
            self.rule(format_args!("tcp dport {} accept", set(&options.exclude_inbound_ports)));
        }
        self.rule(format_args!("meta l4proto tcp redirect to :{}", options.inbound_port));
    }

    fn outbound(&mut self) {
        let options = self.options;
        self.chain("outbound", "type nat hook output priority -100; policy accept;", |out| {
            out.ipv4_only();
            out.rule(format_args!("meta skuid {} goto own", options.proxy_uid));
            out.excluded_users();
            out.dns();
            for net in &options.exclude_outbound_ips {
                out.rule(format_args!("{} daddr {net} accept", family(net)));
            }
            // Virtual addresses are routed to lo, and are not loopback.
            for net in &options.vips {
                let port = options.outbound_port;
                out.rule(format_args!("{} daddr {net} meta l4proto tcp redirect to :{port}", family(net)));
            }
            out.rule("oifname \"lo\" accept");
            if !options.include_outbound_ports.is_empty() {
                let ports = set(&options.include_outbound_ports);
                out.rule(format_args!("tcp dport {ports} redirect to :{}", options.outbound_port));
                return;
            }
            if !options.exclude_outbound_ports.is_empty() {
                out.rule(format_args!("tcp dport {} accept", set(&options.exclude_outbound_ports)));
            }
            out.rule(format_args!("meta l4proto tcp redirect to :{}", options.outbound_port));
        });
        self.chain("own", "", |out| {
            // An instance that calls its own service through the mesh reaches its own inbound, not the application.
            if options.redirect_inbound {
                out.rule("oifname != \"lo\" accept");
                out.rule("ip saddr 127.0.0.6 accept");
                out.rule("ip6 saddr ::6 accept");
                out.rule("ip daddr 127.0.0.0/8 accept");
                out.rule("ip6 daddr ::1 accept");
                out.inbound_ports();
            }
            out.rule("accept");
        });
    }

    /// With `ipv4`, IPv6 is not captured; strict then refuses it in its own chain.
    fn ipv4_only(&mut self) {
        if self.options.family == Family::Ipv4 {
            self.rule("meta nfproto ipv6 accept");
        }
    }

    fn excluded_users(&mut self) {
        let options = self.options;
        if !options.exclude_uids.is_empty() {
            self.rule(format_args!("meta skuid {} accept", set(&options.exclude_uids)));
        }
        for exclusion in &options.exclude_outbound_ports_for_uids {
            self.exclusion(exclusion);
        }
    }

    fn exclusion(&mut self, exclusion: &PortsForUids) {
        let uids = set(&exclusion.uids);
        let transport = match exclusion.transport {
            Some(Transport::Tcp) => "tcp",
            Some(Transport::Udp) => "udp",
            None => "{ tcp, udp }",
        };
        if exclusion.ports.is_empty() {
            self.rule(format_args!("meta l4proto {transport} meta skuid {uids} accept"));
        } else {
            let ports = set(&exclusion.ports);
            self.rule(format_args!("meta l4proto {transport} th dport {ports} meta skuid {uids} accept"));
        }
    }

    fn dns(&mut self) {
        let port = self.options.dns_port;
        match &self.options.dns {
            Redirect::Off => {}
            Redirect::All => {
                self.rule(format_args!("udp dport 53 redirect to :{port}"));
                self.rule(format_args!("tcp dport 53 redirect to :{port}"));
            }
            Redirect::Servers(servers) => {
                for server in servers {
                    let net = IpNet::from(*server);
                    let family = family(&net);
                    self.rule(format_args!("{family} daddr {server} udp dport 53 redirect to :{port}"));
                    self.rule(format_args!("{family} daddr {server} tcp dport 53 redirect to :{port}"));
                }
            }
        }
    }

    /// After the redirections: whatever still wants to leave the host is the proxy's, excluded, or refused.
    fn strict(&mut self) {
        let options = self.options;
        let policy = "type filter hook output priority filter; policy accept;";
        self.chain("enforce", policy, |out| {
            out.rule(format_args!("meta skuid {} ct mark set ct mark | {OWN} accept", options.proxy_uid));
            out.local();
            out.rule("meta skuid 0-4294967295 goto foreign");
            // Without an owner: the kernel's own packets. TCP only: a UDP port is anybody's as soon as it is free.
            out.rule(format_args!("meta l4proto tcp ct mark & {OWN} == {OWN} accept"));
            out.rule("goto foreign");
        });
        self.chain("foreign", "", |out| {
            out.replies();
            out.plumbing();
            out.excluded_users();
            for net in &options.exclude_outbound_ips {
                out.rule(format_args!("{} daddr {net} accept", family(net)));
            }
            if options.include_outbound_ports.is_empty() && !options.exclude_outbound_ports.is_empty() {
                out.rule(format_args!("tcp dport {} accept", set(&options.exclude_outbound_ports)));
            }
            if options.exclude_ntp {
                out.rule("udp dport 123 accept");
            }
            // Refused rather than dropped: applications give up at once, and QUIC falls back to TCP.
            out.rule("meta l4proto tcp counter reject with tcp reset");
            out.rule("counter reject with icmpx type admin-prohibited");
        });
    }

    fn local(&mut self) {
        for net in &self.options.vips {
            // TCP to them was redirected; the rest has nowhere to go.
            self.rule(format_args!(
                "{} daddr {net} counter reject with icmpx type admin-prohibited",
                family(net)
            ));
        }
        // What was redirected just now still has the interface that it would have left by. The address alone does not
        // tell: a socket that is bound to another interface sends packets for loopback out of that.
        self.rule("ip daddr 127.0.0.0/8 ct status dnat accept");
        self.rule("ip6 daddr ::1 ct status dnat accept");
        self.rule("oifname \"lo\" accept");
    }

    /// Answers of connections that came from outside: redirected to the proxy, or excluded.
    fn replies(&mut self) {
        let options = self.options;
        if !options.redirect_inbound {
            self.rule("ct direction reply accept");
            return;
        }
        self.rule("meta l4proto tcp ct direction reply ct status dnat accept");
        if options.include_inbound_ports.is_empty() {
            if !options.exclude_inbound_ports.is_empty() {
                let ports = set(&options.exclude_inbound_ports);
                self.rule(format_args!("ct direction reply tcp sport {ports} accept"));
            }
        } else {
            self.rule("meta l4proto tcp ct direction reply accept");
        }
        for net in &options.exclude_inbound_ips {
            self.rule(format_args!("ct direction reply {} daddr {net} accept", family(net)));
        }
    }

    /// Without which there is no network: addresses, neighbours, path MTU.
    fn plumbing(&mut self) {
        self.rule("udp sport 68 udp dport 67 accept");
        self.rule("udp sport 546 udp dport 547 accept");
        self.rule(
            "icmpv6 type { packet-too-big, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, \
             mld-listener-report, mld2-listener-report } accept",
        );
    }
}

fn family(net: &IpNet) -> &'static str {
    match net.addr() {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

/// Sorted and joined, as nft refuses sets whose ranges overlap.
fn set<T: Copy + Ord + Display + Interval>(items: &[T]) -> String {
    let mut sorted = items.to_vec();
    sorted.sort();
    let mut joined: Vec<T> = Vec::new();
    for item in sorted {
        if !joined.last_mut().is_some_and(|last| last.join(item)) {
            joined.push(item);
        }
    }
    let texts: Vec<String> = joined.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", texts.join(", "))
}

trait Interval {
    /// Takes in what overlaps or touches; `next` begins no earlier.
    fn join(&mut self, next: Self) -> bool;
}

impl Interval for PortRange {
    fn join(&mut self, next: Self) -> bool {
        let touches = u32::from(next.first) <= u32::from(self.last) + 1;
        if touches {
            self.last = self.last.max(next.last);
        }
        touches
    }
}

impl Interval for super::options::UidRange {
    fn join(&mut self, next: Self) -> bool {
        let touches = u64::from(next.first) <= u64::from(self.last) + 1;
        if touches {
            self.last = self.last.max(next.last);
        }
        touches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str, options: &Options) {
        let path = format!("{}/src/capture/golden/{name}.nft", env!("CARGO_MANIFEST_DIR"));
        let text = script(options);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, expected, "{path}: write it anew with UPDATE_GOLDEN=1 and read the difference");
    }

    pub(super) fn everything() -> Options {
        Options {
            dns: Redirect::Servers(vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()]),
            exclude_inbound_ports: vec![22.into(), 9902.into()],
            exclude_outbound_ports: vec![
                5432.into(),
                "8000-8100".parse().unwrap(),
                "8050-8200".parse().unwrap(),
            ],
            exclude_outbound_ports_for_uids: vec![
                "udp:53:101".parse().unwrap(),
                "tcp:*:1000-1999".parse().unwrap(),
            ],
            exclude_uids: vec!["110".parse().unwrap()],
            exclude_ntp: true,
            exclude_inbound_ips: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            exclude_outbound_ips: vec![
                "198.51.100.0/24".parse().unwrap(),
                "2001:db8:1::/64".parse().unwrap(),
            ],
            drop_invalid_packets: true,
            vips: vec![Vip::DEFAULT, "fd00:240::/96".parse().unwrap()],
            ..Options::default()
        }
    }

    #[test]
    fn strict() {
        golden("strict", &Options::default());
    }

    #[test]
    fn kuma() {
        golden("kuma", &Options { enforce: Enforce::Kuma, ..Options::default() });
    }

    #[test]
    fn all_options() {
        golden("all-options", &everything());
    }

    #[test]
    fn only_included_ports() {
        golden(
            "included-ports",
            &Options {
                include_inbound_ports: vec![8080.into()],
                include_outbound_ports: vec![80.into(), 443.into()],
                exclude_outbound_ports: vec![9.into()],
                ..Options::default()
            },
        );
    }

    #[test]
    fn no_inbound_and_ipv4_only() {
        golden(
            "outbound-ipv4",
            &Options {
                redirect_inbound: false,
                family: Family::Ipv4,
                dns: Redirect::Off,
                ..Options::default()
            },
        );
    }

    #[test]
    fn ranges_are_joined() {
        let ports: Vec<PortRange> =
            ["8050-8200", "8000-8100", "80", "81", "9000"].map(|text| text.parse().unwrap()).into();
        assert_eq!(set(&ports), "{ 80-81, 8000-8200, 9000 }");
    }
}
