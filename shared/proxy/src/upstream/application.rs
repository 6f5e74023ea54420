//! Connections to the application itself.

use super::{DialError, Opened, connect, tune};
use crate::{
    capture,
    io::{Socket, Transport},
    snapshot::Inbound,
    worker::Worker,
};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream};

/// A connection to an application, for one caller alone.
///
/// # Errors
/// Why there is none; also that there are as many as may be.
pub async fn dial_application(worker: &Worker, inbound: &Inbound) -> Result<Opened, DialError> {
    let pool = worker.upstreams.application(inbound.config.application);
    let _waiting = pool.load.wait(&inbound.at_once)?;
    open_application(worker, inbound, false).await
}

/// A connection to an application. `needed`: also where there are as many as may be.
pub(super) async fn open_application(
    worker: &Worker,
    inbound: &Inbound,
    needed: bool,
) -> Result<Opened, DialError> {
    let (address, limit) = (inbound.config.application, inbound.connections.connect);
    let active = worker.upstreams.application(address).load.connect(&inbound.at_once, needed)?;
    let stream = match application_source(worker, address) {
        Some(source) => connect_from(worker, source, address, limit).await?,
        None => connect(worker, &[address.ip()], address.port(), limit, &|| address.to_string()).await?,
    };
    Ok(Opened { transport: Transport::Plain(Socket::new(stream)), peer: None, active: Some(active) })
}

/// Under capture, what the proxy sends to its own host's addresses comes back to it as inbound traffic, unless it
/// comes from this address.
fn application_source(worker: &Worker, address: SocketAddr) -> Option<IpAddr> {
    let captured = worker.snapshot().proxy.as_ref().is_some_and(|proxy| proxy.capture.is_some());
    let source = match address.ip().to_canonical() {
        ip if ip.is_loopback() => return None,
        IpAddr::V4(_) => capture::APPLICATION_SOURCE_V4,
        IpAddr::V6(_) => capture::APPLICATION_SOURCE_V6,
    };
    captured.then_some(source)
}

async fn connect_from(
    worker: &Worker,
    source: IpAddr,
    address: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, DialError> {
    let connecting = async {
        let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Without it (IPv6 and no rules installed) the connection is an ordinary one.
        let _ = socket.bind(SocketAddr::new(source, 0));
        socket.connect(address).await
    };
    let endpoint = address.to_string();
    match worker.timer.timeout(limit, connecting).await {
        Some(Ok(stream)) => {
            tune(&stream);
            Ok(stream)
        }
        Some(Err(error)) => Err(DialError::Connect { endpoint, source: Rc::new(error) }),
        None => Err(DialError::Timeout { endpoint, limit }),
    }
}
