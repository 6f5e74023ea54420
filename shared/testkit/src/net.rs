//! A laboratory of hosts: each a network namespace with addresses of its own, joined by one router.
//!
//! Networks are bridges inside the router's namespace, which forwards between them, so that every host can reach
//! every other at the IP level: what is refused is refused by the mesh. The machine's own network is not joined.

use crate::process::{Process, Program};
use anyhow::{Context, Result, bail};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::process::Command;

/// Namespaces and files of one laboratory; all gone when it is dropped.
pub struct Lab {
    prefix: String,
    directory: tempfile::TempDir,
    router: Namespace,
    networks: AtomicU32,
    links: AtomicU32,
}

/// One host.
#[derive(Clone)]
pub struct Host {
    inner: Arc<HostInner>,
}

struct HostInner {
    name: String,
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    directory: PathBuf,
    /// The host's end of its link, as the router knows it.
    router_interface: String,
    router: String,
}

/// A bridge in the router, and the prefixes that it routes.
#[derive(Clone, Debug)]
pub struct Network {
    bridge: String,
    gateways: Vec<Gateway>,
}

#[derive(Clone, Debug)]
struct Gateway {
    address: IpAddr,
    length: u8,
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // Best effort: the name is all that would be left.
        let _ =
            std::process::Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

impl Lab {
    /// Needs root, or root of a user namespace that owns a mount and a network namespace.
    pub async fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("m{}{serial}{}", std::process::id(), name.chars().take(4).collect::<String>());
        let directory = tempfile::Builder::new().prefix(&format!("meridian-{name}-")).tempdir()?;
        open_to_all(directory.path())?;
        let router = add_namespace(&format!("{prefix}-router")).await?;
        let lab = Self { prefix, directory, router, networks: AtomicU32::new(0), links: AtomicU32::new(0) };
        lab.in_router(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).await?;
        lab.in_router(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]).await?;
        lab.in_router(&["ip", "link", "set", "lo", "up"]).await?;
        Ok(lab)
    }

    /// Where the laboratory's files are; hosts have folders beneath it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A network whose gateways have these addresses (`10.1.0.1/24`, `fd00:1::1/64`).
    pub async fn network(&self, gateways: &[&str]) -> Result<Network> {
        let number = self.networks.fetch_add(1, Ordering::Relaxed);
        let bridge = format!("br{number}");
        // An address of its own: a bridge takes the lowest of its ports' else, so that a host that joins could change
        // the gateway's, and what the others know of it would lead nowhere for half a minute.
        let hardware = format!("02:00:00:00:00:{:02x}", number & 0xff);
        self.in_router(&["ip", "link", "add", &bridge, "address", &hardware, "type", "bridge"]).await?;
        self.in_router(&["ip", "link", "set", &bridge, "up"]).await?;
        let mut parsed = Vec::new();
        for gateway in gateways {
            let (address, length) = split_prefix(gateway)?;
            self.in_router(&["ip", "addr", "add", gateway, "dev", &bridge, "nodad"]).await?;
            parsed.push(Gateway { address, length });
        }
        Ok(Network { bridge, gateways: parsed })
    }

    /// A host on `network` with these addresses; the first of each family is what it dials from.
    pub async fn host(&self, name: &str, network: &Network, addresses: &[&str]) -> Result<Host> {
        let namespace = add_namespace(&format!("{}-{name}", self.prefix)).await?;
        let link = format!("h{}", self.links.fetch_add(1, Ordering::Relaxed));
        self.in_router(&[
            "ip",
            "link",
            "add",
            &link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &namespace.0,
        ])
        .await?;
        self.in_router(&["ip", "link", "set", &link, "master", &network.bridge, "up"]).await?;
        let inside = |args: &[&str]| run(enter(&namespace.0, args));
        inside(&["ip", "link", "set", "lo", "up"]).await?;
        inside(&["ip", "link", "set", "eth0", "up"]).await?;
        // Every user may ping, so that a ping that fails was refused and not forbidden.
        inside(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 65535"]).await?;
        let mut parsed = Vec::new();
        for address in addresses {
            let ip: IpAddr = address.parse().with_context(|| format!("address {address}"))?;
            let gateway = network.gateways.iter().find(|gateway| gateway.address.is_ipv4() == ip.is_ipv4());
            let length = gateway.map_or(if ip.is_ipv4() { 32 } else { 128 }, |gateway| gateway.length);
            inside(&["ip", "addr", "add", &format!("{ip}/{length}"), "dev", "eth0", "nodad"]).await?;
            parsed.push(ip);
        }
        for gateway in &network.gateways {
            let family = if gateway.address.is_ipv4() { "-4" } else { "-6" };
            inside(&["ip", family, "route", "add", "default", "via", &gateway.address.to_string()]).await?;
        }
        let directory = self.directory.path().join(name);
        std::fs::create_dir_all(&directory)?;
        open_to_all(&directory)?;
        Ok(Host {
            inner: Arc::new(HostInner {
                name: name.to_owned(),
                namespace,
                addresses: parsed,
                directory,
                router_interface: link,
                router: self.router.0.clone(),
            }),
        })
    }

    /// A route in the router: `prefix` is reached through `host` (documentation addresses of an "internet").
    pub async fn route(&self, prefix: &str, host: &Host) -> Result<()> {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        let via = host.inner.addresses.iter().find(|ip| ip.is_ipv6() == prefix.contains(':'));
        let via = via
            .with_context(|| format!("{} has no address of the family of {prefix}", host.name()))?
            .to_string();
        self.in_router(&["ip", family, "route", "add", prefix, "via", &via]).await?;
        Ok(())
    }

    /// Runs a command in the router, which sees all that passes between networks.
    pub async fn in_router(&self, args: &[&str]) -> Result<String> {
        run(enter(&self.router.0, args)).await
    }

    /// Starts a program in the router (a packet capture, say).
    pub fn spawn_in_router(&self, program: Program) -> Result<Process> {
        let log = self.directory.path().join(format!("router-{}.log", program.name()));
        program.spawn_with(&nsenter(&self.router.0), log)
    }
}

impl Host {
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The name of its network namespace.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace.0
    }

    /// Its first address.
    pub fn ip(&self) -> IpAddr {
        self.inner.addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]))
    }

    pub fn addresses(&self) -> &[IpAddr] {
        &self.inner.addresses
    }

    /// Its folder.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// A file in its folder, readable by every user.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.inner.directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The prefix that enters the host, for programs that start others themselves.
    pub fn prefix(&self) -> Vec<String> {
        nsenter(self.namespace())
    }

    /// Starts a program that ends with its owner.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        let log = self.inner.directory.join(format!("{}.log", program.name()));
        program.spawn_with(&self.prefix(), log)
    }

    /// Runs a command to its end; gives what it printed, fails if it failed.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        run(enter(self.namespace(), args)).await
    }

    /// Runs a command to its end, as `uid` without capabilities.
    pub async fn output_as(&self, uid: u32, args: &[&str]) -> Result<std::process::Output> {
        let mut words = Program::identity(uid);
        words.extend(args.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(enter(self.namespace(), &words).kill_on_drop(true).output().await?)
    }

    /// Resolver settings for programs started with `Program::resolver`.
    pub fn resolver(&self, servers: &[IpAddr]) -> Result<PathBuf> {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        self.write("resolv.conf", &format!("{text}options timeout:2 attempts:1\n"))
    }

    /// Takes the host's cable out, or puts it in again.
    pub async fn set_connected(&self, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        run(enter(&self.inner.router, &["ip", "link", "set", &self.inner.router_interface, state])).await?;
        Ok(())
    }
}

async fn add_namespace(name: &str) -> Result<Namespace> {
    let mut command = Command::new("ip");
    command.args(["netns", "add", name]);
    run(command).await.context("network namespaces need root (or a user namespace with subordinate ids)")?;
    Ok(Namespace(name.to_owned()))
}

fn nsenter(namespace: &str) -> Vec<String> {
    vec!["nsenter".into(), format!("--net=/run/netns/{namespace}")]
}

fn enter(namespace: &str, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).args(args);
    command
}

async fn run(mut command: Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output =
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.with_context(|| shown.clone())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{shown}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn split_prefix(text: &str) -> Result<(IpAddr, u8)> {
    let (address, length) = text.split_once('/').with_context(|| format!("{text}: no prefix length"))?;
    Ok((address.parse()?, length.parse()?))
}

fn open_to_all(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    Ok(())
}
