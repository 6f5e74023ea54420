//! Does anything get out? Tried, not argued: packets of a foreign user, counted where they would leave.

use super::{
    options::Options,
    system::{CaptureError, run},
};
use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

/// Counts after every other hook what leaves by an interface.
const TABLE: &str = "inet meridian_check";
/// Documentation addresses: if a packet does get out, nobody is there.
const TARGETS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// A connection that nothing refuses is waited for this long.
const PATIENCE: Duration = Duration::from_millis(300);

/// One try to get out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// `udp 2001:db8::1:443`.
    pub what: String,
    /// What the application saw.
    pub outcome: String,
    /// A packet left the host.
    pub escaped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub uid: u32,
    pub attempts: Vec<Attempt>,
}

impl Report {
    pub fn holds(&self) -> bool {
        !self.attempts.iter().any(|attempt| attempt.escaped)
    }
}

#[derive(Clone, Copy)]
enum Probe {
    Tcp(u16),
    Udp(u16),
    /// Echo request by an unprivileged ICMP socket, or a raw one.
    Echo,
    /// A packet of this IP protocol.
    Raw(i32),
}

/// TCP, mail, DNS over both, NTP, QUIC, ping, SCTP, GRE.
const PROBES: [Probe; 9] = [
    Probe::Tcp(443),
    Probe::Tcp(25),
    Probe::Tcp(53),
    Probe::Udp(53),
    Probe::Udp(123),
    Probe::Udp(443),
    Probe::Echo,
    Probe::Raw(132),
    Probe::Raw(47),
];

/// Tries every way out as user `uid`, in the network namespace of the calling thread. Needs root.
///
/// # Errors
/// The counters could not be set up, or sockets not made as another user.
pub fn check(options: &Options, uid: u32) -> Result<Report, CaptureError> {
    if uid == options.proxy_uid {
        return Err(CaptureError::Check(io::Error::other("the user to check must not be the proxy's")));
    }
    let _counters = Counters::new(uid)?;
    let mut attempts = Vec::new();
    for target in TARGETS {
        let Ok(ip) = target.parse::<IpAddr>() else { continue };
        for probe in PROBES {
            let before = Counters::read()?;
            // The file system user is per thread, and owns the sockets that the thread opens: the rest of the
            // process is not touched.
            let outcome = thread::spawn(move || as_user(uid, || attempt(probe, ip)))
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the attempt panicked")));
            let escaped = Counters::read()? > before;
            let outcome = outcome.map_or_else(|error| error.to_string(), ToOwned::to_owned);
            attempts.push(Attempt { what: probe.name(ip), outcome, escaped });
        }
    }
    Ok(Report { uid, attempts })
}

fn as_user<T>(uid: u32, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    setfsuid(Uid::from_raw(uid));
    // The call gives the user before it: asked again, it tells whether it took.
    if setfsuid(Uid::from_raw(uid)) != Uid::from_raw(uid) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    act()
}

fn attempt(probe: Probe, ip: IpAddr) -> io::Result<&'static str> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let to = |port| SockAddr::from(SocketAddr::new(ip, port));
    let sent = |result: io::Result<usize>| result.map(|_| "sent");
    match probe {
        Probe::Tcp(port) => {
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.connect_timeout(&to(port), PATIENCE)?;
            Ok("connected")
        }
        Probe::Udp(port) => {
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            sent(socket.send_to(b"meridian check", &to(port)))
        }
        Probe::Echo => {
            let (protocol, kind) = if ip.is_ipv4() { (Protocol::ICMPV4, 8) } else { (Protocol::ICMPV6, 128) };
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
                .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
            sent(socket.send_to(&[kind, 0, 0, 0, 0, 1, 0, 1], &to(0)))
        }
        Probe::Raw(protocol) => {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
            sent(socket.send_to(b"meridian check", &to(0)))
        }
    }
}

impl Probe {
    fn name(self, ip: IpAddr) -> String {
        match self {
            Self::Tcp(port) => format!("tcp {}", SocketAddr::new(ip, port)),
            Self::Udp(port) => format!("udp {}", SocketAddr::new(ip, port)),
            Self::Echo => format!("ping {ip}"),
            Self::Raw(protocol) => format!("ip protocol {protocol} {ip}"),
        }
    }
}

/// A table of its own, gone when dropped.
struct Counters;

impl Counters {
    fn new(uid: u32) -> Result<Self, CaptureError> {
        let text = format!(
            "table {TABLE} {{}}\n\
             delete table {TABLE}\n\
             table {TABLE} {{\n\
             \x20   counter escaped {{ }}\n\
             \x20   chain leaving {{\n\
             \x20       type filter hook postrouting priority 300; policy accept;\n\
             \x20       oifname != \"lo\" meta skuid {uid} counter name escaped\n\
             \x20   }}\n\
             }}\n"
        );
        run("nft", &["-f", "-"], &text)?;
        Ok(Self)
    }

    fn read() -> Result<u64, CaptureError> {
        let text = run("nft", &["list", "counter", "inet", "meridian_check", "escaped"], "")?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        let number = words.nth(1).and_then(|word| word.parse().ok());
        number.ok_or_else(|| CaptureError::Check(io::Error::other("nft printed no counter")))
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        let _ = run("nft", &["delete", "table", "inet", "meridian_check"], "");
    }
}
