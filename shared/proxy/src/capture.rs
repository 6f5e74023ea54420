//! Transparent capture: the nftables rules that bring a host's traffic to the sidecar, and what was captured.
//!
//! One table, `inet meridian`, written as text and given to `nft -f -` in one piece: the kernel takes all of it or
//! none, so there is no moment without rules while they are replaced. Text rather than a typed front to netlink,
//! because an operator must be able to read what will be applied, and a golden file to hold it.
//!
//! `strict` lets nothing leave the host but the proxy's own traffic and what the options exclude; `kuma` captures TCP
//! and DNS and leaves the rest alone. Root and whoever holds CAP_NET_ADMIN in the namespace can undo both, and
//! forwarded traffic (of containers with a namespace of their own) is not touched: the egress still holds.

mod check;
mod notice;
mod options;
mod script;
mod ssh;
mod system;

pub use check::{Attempt, Report, check};
pub use notice::{notice_file, noticed};
pub use options::{Enforce, Family, Options, PortRange, PortsForUids, Redirect, Transport, UidRange};
pub use script::{TABLE, Vip, script};
pub use ssh::port_in_use as ssh_port_in_use;
pub use system::{CaptureError, Installed, Places, install, uninstall};

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::net::TcpStream;

/// The source address of the proxy's connections to its own application where that listens on an address that is not
/// loopback: the rules send everything else that the proxy sends to its own host back to the inbound port.
pub const APPLICATION_SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// As [`APPLICATION_SOURCE_V4`]; the installer puts it on `lo`.
pub const APPLICATION_SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Where a captured connection was going.
///
/// # Errors
/// The socket has no original destination: it was not captured.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = socket2::SockRef::from(stream);
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    }?;
    let original = original.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    if original == SocketAddr::new(local.ip().to_canonical(), local.port()) {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the connection was not captured"));
    }
    Ok(original)
}
