//! `install|uninstall transparent-proxy`: Kuma's flags, and ours, as the options of the capture rules.

use crate::failure::{Exit, Failure, Result};
use crate::output;
use ipnet::IpNet;
use meridian_proxy::capture::{
    self, CaptureError, Enforce, Family, Options, Places, PortRange, PortsForUids, Redirect, UidRange,
};
use std::net::IpAddr;
use std::path::PathBuf;

/// Users to be tried by `--check` when none is named: nobody, on every distribution.
const NOBODY: u32 = 65_534;

/// Install something on this host
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Install {
    /// Redirect this host's traffic to the sidecar, and refuse what would leave beside it (root; nftables)
    ///
    /// One nftables table, replaced as a whole; repeating it is harmless. Root and CAP_NET_ADMIN in this network
    /// namespace can undo it: the egress still refuses what is not allowed.
    TransparentProxy(Box<TransparentProxy>),
}

/// Take something away from this host
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Uninstall {
    /// Take the redirection away: applications reach the network directly again
    TransparentProxy(Removal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum EnforceFlag {
    /// Everything but what is excluded: TCP and DNS go to the sidecar, the rest is rejected
    Strict,
    /// TCP and DNS go to the sidecar, the rest passes, as with Kuma
    Kuma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum FamilyFlag {
    Dualstack,
    Ipv4,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TransparentProxy {
    /// User that the sidecar runs as; its own traffic is not captured [default: uid 5678]
    #[arg(long, value_name = "NAME", conflicts_with = "kuma_dp_uid")]
    kuma_dp_user: Option<String>,
    /// The same by number
    #[arg(long, value_name = "UID")]
    kuma_dp_uid: Option<u32>,
    /// What may leave beside the sidecar
    #[arg(long, value_enum, default_value = "strict", env = "MERIDIAN_CAPTURE_ENFORCE")]
    enforce: EnforceFlag,
    /// Address families to capture
    #[arg(long, value_enum, default_value = "dualstack")]
    ip_family_mode: FamilyFlag,
    /// Redirect inbound traffic
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    redirect_inbound: bool,
    /// Where the sidecar takes inbound traffic
    #[arg(long, value_name = "PORT", default_value_t = 15006)]
    redirect_inbound_port: u16,
    /// Where the sidecar takes outbound traffic
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    redirect_outbound_port: u16,
    /// Redirect DNS to the servers of resolv.conf to the sidecar; strict does so for every server
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    redirect_dns: Option<bool>,
    /// Redirect DNS to any server
    #[arg(long)]
    redirect_all_dns_traffic: bool,
    /// Where the sidecar answers DNS
    #[arg(long, value_name = "PORT", default_value_t = 15053)]
    redirect_dns_port: u16,
    /// Ports on which callers reach the application directly
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_inbound_ports: Vec<PortRange>,
    /// Ports that applications may call directly: 5432, 8000-8100
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<PortRange>,
    /// The same for some users only: [tcp|udp:]PORTS:UIDS; give it once each
    #[arg(long, value_name = "RULE")]
    exclude_outbound_ports_for_uids: Vec<PortsForUids>,
    /// Users whose traffic is not captured: 101, 1000-1999
    #[arg(long, value_name = "UIDS", value_delimiter = ',')]
    exclude_uids: Vec<UidRange>,
    /// Let NTP (UDP 123) out under strict
    #[arg(long)]
    exclude_ntp: bool,
    /// Callers' addresses that reach the application directly
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = network)]
    exclude_inbound_ips: Vec<IpNet>,
    /// Addresses that applications may call directly
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = network)]
    exclude_outbound_ips: Vec<IpNet>,
    /// Capture only these inbound ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',', conflicts_with = "exclude_inbound_ports")]
    include_inbound_ports: Vec<PortRange>,
    /// Capture only these outbound ports; strict rejects the others
    #[arg(long, value_name = "PORTS", value_delimiter = ',', conflicts_with = "exclude_outbound_ports")]
    include_outbound_ports: Vec<PortRange>,
    /// Ranges of virtual addresses, to be routed
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = network)]
    vips: Vec<IpNet>,
    /// Drop packets that belong to no connection
    #[arg(long)]
    drop_invalid_packets: bool,
    /// Restore the rules at boot, before anything uses the network (a systemd unit)
    #[arg(long)]
    persist: bool,
    /// Where to leave for the sidecar what was installed [default: /run/meridian/capture-NAMESPACE.json]
    #[arg(long, value_name = "FILE", env = "MERIDIAN_CAPTURE_FILE")]
    capture_file: Option<PathBuf>,
    /// Print the rules and change nothing
    #[arg(long, conflicts_with_all = ["check", "persist"])]
    dry_run: bool,
    /// Change nothing: try to get out past the rules that are there, as another user, and say what got through
    #[arg(long)]
    check: bool,
    /// User that --check tries as
    #[arg(long, value_name = "UID", default_value_t = NOBODY, requires = "check")]
    check_uid: u32,
    /// Print the rules that were applied
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Removal {
    /// Ranges of virtual addresses, as they were installed
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = network)]
    vips: Vec<IpNet>,
    /// What was left for the sidecar, as it was installed
    #[arg(long, value_name = "FILE", env = "MERIDIAN_CAPTURE_FILE")]
    capture_file: Option<PathBuf>,
}

pub(crate) fn install(install: Install) -> Result<()> {
    let Install::TransparentProxy(flags) = install;
    let options = flags.options()?;
    if flags.dry_run {
        output::print(&capture::script(&options));
        return Ok(());
    }
    if flags.check {
        return check(&options, flags.check_uid);
    }
    let installed = capture::install(&options).map_err(failed)?;
    if flags.verbose {
        output::print(&installed.script);
    }
    if let Some(port) = installed.ssh_port {
        output::note(&format!(
            "you came over SSH: inbound port {port} is excluded, or this would cut your connection"
        ));
    }
    output::print(&format!("Transparent proxy installed: {}", installed.enforcement));
    Ok(())
}

pub(crate) fn uninstall(uninstall: Uninstall) -> Result<()> {
    let Uninstall::TransparentProxy(removal) = uninstall;
    let mut options = Options::default();
    if !removal.vips.is_empty() {
        options.vips = removal.vips;
    }
    if let Some(file) = removal.capture_file {
        options.places.notice = file;
    }
    capture::uninstall(&options).map_err(failed)?;
    output::print("Transparent proxy removed: applications reach the network directly");
    Ok(())
}

fn check(options: &Options, uid: u32) -> Result<()> {
    let report = capture::check(options, uid).map_err(failed)?;
    let rows = report
        .attempts
        .iter()
        .map(|attempt| {
            let escaped = if attempt.escaped { "GOT OUT" } else { "held" };
            vec![attempt.what.clone(), escaped.to_owned(), attempt.outcome.clone()]
        })
        .collect();
    output::print(&output::table(&["ATTEMPT", "RESULT", "WHAT THE PROGRAM SAW"], rows));
    if report.holds() {
        output::print(&format!("Nothing that user {uid} tried left this host beside the sidecar."));
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, format!("packets of user {uid} left this host beside the sidecar")).next(
        "Run `meridian install transparent-proxy` (with --enforce strict), and look at what it excludes.",
    ))
}

impl TransparentProxy {
    fn options(&self) -> Result<Options> {
        let defaults = Options::default();
        let enforce = match self.enforce {
            EnforceFlag::Strict => Enforce::Strict,
            EnforceFlag::Kuma => Enforce::Kuma,
        };
        Ok(Options {
            enforce,
            proxy_uid: self.proxy_uid(defaults.proxy_uid)?,
            family: match self.ip_family_mode {
                FamilyFlag::Dualstack => Family::DualStack,
                FamilyFlag::Ipv4 => Family::Ipv4,
            },
            redirect_inbound: self.redirect_inbound,
            inbound_port: self.redirect_inbound_port,
            outbound_port: self.redirect_outbound_port,
            dns: self.dns(enforce),
            dns_port: self.redirect_dns_port,
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            exclude_outbound_ports_for_uids: self.exclude_outbound_ports_for_uids.clone(),
            exclude_uids: self.exclude_uids.clone(),
            exclude_ntp: self.exclude_ntp,
            exclude_inbound_ips: self.exclude_inbound_ips.clone(),
            exclude_outbound_ips: self.exclude_outbound_ips.clone(),
            include_inbound_ports: self.include_inbound_ports.clone(),
            include_outbound_ports: self.include_outbound_ports.clone(),
            drop_invalid_packets: self.drop_invalid_packets,
            vips: if self.vips.is_empty() { defaults.vips } else { self.vips.clone() },
            persist: self.persist,
            places: Places {
                notice: self.capture_file.clone().unwrap_or(defaults.places.notice),
                ..defaults.places
            },
        })
    }

    fn proxy_uid(&self, default: u32) -> Result<u32> {
        let Some(name) = &self.kuma_dp_user else { return Ok(self.kuma_dp_uid.unwrap_or(default)) };
        match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(Failure::usage(format!("there is no user `{name}` on this host"))
                .next("Make it (`useradd --system`), or name another with --kuma-dp-user or --kuma-dp-uid.")),
            Err(error) => Err(Failure::new(Exit::Failed, format!("can't look up user `{name}`: {error}"))),
        }
    }

    /// Strict captures DNS to every server unless it is turned off; otherwise what Kuma's flags say.
    fn dns(&self, enforce: Enforce) -> Redirect {
        match (enforce, self.redirect_dns) {
            (_, Some(false)) => Redirect::Off,
            (Enforce::Strict, _) => Redirect::All,
            _ if self.redirect_all_dns_traffic => Redirect::All,
            (Enforce::Kuma, Some(true)) => Redirect::Servers(name_servers()),
            (Enforce::Kuma, None) => Redirect::Off,
        }
    }
}

/// Of resolv.conf.
fn name_servers() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|server| server.trim().parse().ok()).collect()
}

/// An address alone is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(one).ok_or_else(|| format!("{text:?} is no address or network (10.0.0.0/8)"))
}

fn failed(error: CaptureError) -> Failure {
    let next =
        "It takes root, nftables (nft) and iproute2 (ip) on this host; --dry-run only prints the rules.";
    Failure::of(Exit::Failed, "capture", &error).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        install: Install,
    }

    fn options(flags: &[&str]) -> Options {
        let line = Line::try_parse_from(["x", "transparent-proxy"].iter().chain(flags)).unwrap();
        let Install::TransparentProxy(flags) = line.install;
        flags.options().unwrap()
    }

    #[test]
    fn without_flags_the_defaults_of_the_rules_hold() {
        assert_eq!(options(&[]), Options::default());
    }

    #[test]
    fn kumas_flags() {
        let read = options(&[
            "--kuma-dp-uid",
            "42",
            "--redirect-inbound=false",
            "--redirect-outbound-port",
            "1",
            "--redirect-dns",
            "--exclude-outbound-ports",
            "25,8000-8100",
            "--exclude-outbound-ports-for-uids",
            "udp:53:101",
            "--exclude-outbound-ports-for-uids",
            "443:1000-1999",
            "--exclude-outbound-ips",
            "10.0.0.0/8,192.0.2.1",
            "--ip-family-mode",
            "ipv4",
            "--drop-invalid-packets",
        ]);
        assert_eq!((read.proxy_uid, read.redirect_inbound, read.outbound_port), (42, false, 1));
        assert_eq!(read.exclude_outbound_ports.len(), 2);
        assert_eq!(read.exclude_outbound_ports_for_uids.len(), 2);
        assert_eq!(read.exclude_outbound_ips[1].to_string(), "192.0.2.1/32");
        assert_eq!((read.family, read.drop_invalid_packets), (Family::Ipv4, true));
    }

    #[test]
    fn dns_under_both_ways_of_enforcing() {
        assert_eq!(options(&["--redirect-dns"]).dns, Redirect::All);
        assert_eq!(options(&["--redirect-dns=false"]).dns, Redirect::Off);
        assert_eq!(options(&["--enforce", "kuma"]).dns, Redirect::Off);
        assert!(matches!(options(&["--enforce", "kuma", "--redirect-dns"]).dns, Redirect::Servers(_)));
        assert_eq!(options(&["--enforce", "kuma", "--redirect-all-dns-traffic"]).dns, Redirect::All);
    }

    #[test]
    fn wrong_values_are_named() {
        for flags in [
            &["--exclude-outbound-ports", "http"][..],
            &["--exclude-outbound-ips", "10/8"],
            &["--enforce", "lax"],
        ] {
            assert!(
                Line::try_parse_from(["x", "transparent-proxy"].iter().chain(flags)).is_err(),
                "{flags:?}"
            );
        }
        let line =
            Line::try_parse_from(["x", "transparent-proxy", "--kuma-dp-user", "no-such-user"]).unwrap();
        let Install::TransparentProxy(flags) = line.install;
        assert!(flags.options().unwrap_err().to_string().contains("useradd"));
    }
}
