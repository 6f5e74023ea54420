//! The sockets: UDP and TCP on loopback, bounded.

use super::{
    Decision, decide,
    forward::forward,
    message::{Question, Reply, parse_query},
    of_type,
};
use crate::{
    denial::{Reason, Refusal},
    shared::Shared,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// Forwarded queries at a time: each holds a socket for up to some seconds. More are answered SERVFAIL.
const MAX_FORWARDED: usize = 256;
/// TCP connections at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 128;
/// An idle TCP connection is closed after this (RFC 7766 leaves it to the server).
const IDLE: Duration = Duration::from_secs(10);
/// Queries are small; what is longer is no query.
const MAX_QUERY: usize = 4096;
/// How often an address that could not be listened on is tried again.
const RETRY_BIND: Duration = Duration::from_secs(1);

/// Serves DNS as the newest snapshot says, until dropped. Runs on the control thread.
pub async fn run(shared: Arc<Shared>) {
    let mut changes = shared.snapshots.subscribe();
    loop {
        let port = listen_port(&shared);
        let serving = async {
            match port {
                Some(port) => serve(&shared, port).await,
                None => std::future::pending().await,
            }
        };
        let moved = async {
            while changes.changed().await.is_ok() {
                if listen_port(&shared) != port {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            error = serving => {
                tracing::error!(%error, ?port, "the resolver can't listen: names do not resolve until it can");
                tokio::time::sleep(RETRY_BIND).await;
            }
            () = moved => {}
        }
    }
}

fn listen_port(shared: &Shared) -> Option<u16> {
    shared.snapshots.load().proxy.as_ref().and_then(|proxy| proxy.dns.listen_port)
}

/// Loopback only: redirected queries arrive there, and a resolver for strangers is a weapon.
async fn serve(shared: &Arc<Shared>, port: u16) -> io::Error {
    match bind(port).await {
        Ok(sockets) => serve_on(shared, sockets).await,
        Err(error) => error,
    }
}

/// The sockets of one port: both transports, and IPv6 where the host has it.
struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

async fn bind(port: u16) -> io::Result<Sockets> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    let mut sockets =
        Sockets { udp: vec![UdpSocket::bind(v4).await?], tcp: vec![TcpListener::bind(v4).await?] };
    match (UdpSocket::bind(v6).await, TcpListener::bind(v6).await) {
        (Ok(udp), Ok(tcp)) => {
            sockets.udp.push(udp);
            sockets.tcp.push(tcp);
        }
        (Err(error), _) | (_, Err(error)) => tracing::info!(%error, "the resolver serves IPv4 only"),
    }
    Ok(sockets)
}

async fn serve_on(shared: &Arc<Shared>, sockets: Sockets) -> io::Error {
    let server = Arc::new(Server { shared: shared.clone(), forwards: Semaphore::new(MAX_FORWARDED) });
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for socket in sockets.udp {
        let (server, socket) = (server.clone(), Arc::new(socket));
        tasks.spawn(async move { server.udp(socket).await });
    }
    for listener in sockets.tcp {
        let (server, connections) = (server.clone(), connections.clone());
        tasks.spawn(async move { server.tcp(listener, connections).await });
    }
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(error)) => io::Error::other(error),
        None => io::Error::other("no sockets"),
    }
}

struct Server {
    shared: Arc<Shared>,
    forwards: Semaphore,
}

impl Server {
    async fn udp(self: Arc<Self>, socket: Arc<UdpSocket>) -> io::Error {
        let mut buffer = vec![0; MAX_QUERY];
        let mut forwarded = JoinSet::new();
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error of an earlier answer: the socket itself is well.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            while forwarded.try_join_next().is_some() {}
            let query = buffer.get(..length).unwrap_or_default();
            match self.decide(query, true) {
                Step::Done(Some(answer)) => drop(socket.send_to(&answer, client).await),
                Step::Done(None) => {}
                // Only what waits for others gets a task; there are at most as many as permits.
                Step::Forward(question) if self.forwards.available_permits() == 0 => {
                    drop(socket.send_to(&question.reply(&Reply::Failed, true), client).await);
                }
                Step::Forward(question) => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    forwarded.spawn(async move {
                        let answer = server.forward(&question, &query, true).await;
                        drop(socket.send_to(&answer, client).await);
                    });
                }
            }
        }
    }

    async fn tcp(self: Arc<Self>, listener: TcpListener, connections: Arc<Semaphore>) -> io::Error {
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return io::Error::other("closed");
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    clients.spawn(async move {
                        if let Err(error) = server.client(stream).await {
                            tracing::debug!(%error, "a DNS client's connection");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting DNS over TCP");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn client(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let Ok(query) = timeout(IDLE, read_frame(&mut stream)).await else { return Ok(()) };
            let Some(query) = query? else { return Ok(()) };
            let answer = match self.decide(&query, false) {
                Step::Done(answer) => answer,
                Step::Forward(question) => Some(self.forward(&question, &query, false).await),
            };
            let Some(answer) = answer else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            let mut frame = length.to_be_bytes().to_vec();
            frame.extend(answer);
            timeout(IDLE, stream.write_all(&frame)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        }
    }

    fn decide(&self, query: &[u8], udp: bool) -> Step {
        let question = match parse_query(query) {
            Ok(question) => question,
            Err(error) => return Step::Done(error.reply()),
        };
        let snapshot = self.shared.snapshots.load();
        let Some(proxy) = snapshot.proxy.as_ref() else {
            return Step::Done(Some(question.reply(&Reply::Failed, udp)));
        };
        match decide(&question, &proxy.dns, &snapshot) {
            Decision::Answer(addresses) => {
                Step::Done(Some(question.reply(&Reply::Addresses(addresses), udp)))
            }
            Decision::Lend(name) => {
                let address = IpAddr::V4(self.shared.lent.lend(&name));
                let addresses = of_type(&[address], question.kind, proxy.dns.ipv6);
                Step::Done(Some(question.reply(&Reply::Addresses(addresses), udp)))
            }
            Decision::Forward => Step::Forward(question),
            Decision::Refuse => {
                self.shared.denials.report(&Refusal {
                    mesh: &proxy.mesh,
                    caller: &proxy.service,
                    destination: &question.name,
                    port: 53,
                    reason: &Reason::NOT_LISTED,
                    rule: "",
                });
                Step::Done(Some(question.reply(&Reply::Blocked, udp)))
            }
        }
    }

    async fn forward(&self, question: &Question, query: &[u8], udp: bool) -> Vec<u8> {
        let answered = async {
            let _permit =
                self.forwards.try_acquire().map_err(|_| io::Error::other("too many queries at once"))?;
            let servers = self.shared.resolver.servers()?;
            forward(question, query, &servers, udp).await
        };
        answered.await.unwrap_or_else(|error: io::Error| {
            tracing::debug!(%error, name = question.name, "forwarding a query");
            question.reply(&Reply::Failed, udp)
        })
    }
}

enum Step {
    /// To send, if anything.
    Done(Option<Vec<u8>>),
    Forward(Question),
}

/// `None` at the end of the stream between frames.
async fn read_frame(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_QUERY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "query too long"));
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}
