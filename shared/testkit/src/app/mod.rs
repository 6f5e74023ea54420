//! Small programs that play applications and their clients.

mod churn;
mod client;
mod dns;
mod grpc;
mod http;
mod load;
mod split;
mod tcp;
mod watch;
mod websocket;

use anyhow::Result;
use clap::Subcommand;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What to play.
#[derive(Clone, Debug, Subcommand)]
pub enum App {
    /// HTTP/1.1 and HTTP/2 with prior knowledge: `/` tells what the server saw; see the module for more paths.
    Http {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value = "app")]
        name: String,
    },
    /// The same over TLS.
    Https {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value = "app")]
        name: String,
        /// PEM, the leaf first.
        #[arg(long)]
        cert: PathBuf,
        /// PEM.
        #[arg(long)]
        key: PathBuf,
        /// Ask for a client certificate of this CA (PEM).
        #[arg(long)]
        client_ca: Option<PathBuf>,
    },
    /// Echoes bytes; after the client's end of stream it says how many there were, then ends.
    Tcp {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Greets first, then echoes lines.
    ServerFirst {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Echoes datagrams.
    Udp {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// The Echo service with all four kinds of calls.
    Grpc {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// A name server with these records (`name=address`, several allowed); the rest does not exist.
    Dns {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long = "record")]
        records: Vec<String>,
    },
    /// Many gRPC calls at a time, or messages of streams that stay open; says how many were answered.
    GrpcLoad {
        #[arg(long)]
        target: String,
        #[arg(long, default_value_t = 4)]
        connections: usize,
        /// At a time on each connection.
        #[arg(long, default_value_t = 25)]
        streams: usize,
        /// Calls, or messages, of each of these, one after the other.
        #[arg(long)]
        each: u32,
        /// Messages of one stream in place of calls.
        #[arg(long)]
        streaming: bool,
    },
    /// Makes all four gRPC calls and says what came back.
    GrpcClient {
        /// host:port
        #[arg(long)]
        target: String,
    },
    /// Opens a WebSocket, sends a message, and prints the echo.
    WebsocketClient {
        /// host:port
        #[arg(long)]
        target: String,
    },
    /// Connects, sends, closes its half, and prints what comes back until the end.
    TcpClient {
        /// host:port
        #[arg(long)]
        target: String,
        #[arg(long, default_value = "hello")]
        send: String,
        /// Expect a greeting before sending.
        #[arg(long)]
        greeting: bool,
    },
    /// Sends a datagram and prints the answer.
    UdpClient {
        #[arg(long)]
        target: SocketAddr,
    },
    /// Opens a stream, prints `open`, and prints `closed: ...` when the other side ends it.
    Hold {
        #[arg(long)]
        kind: client::HoldKind,
        /// host:port
        #[arg(long)]
        target: String,
        /// Sends all the time instead of keeping silent.
        #[arg(long)]
        busy: bool,
    },
    /// Opens many connections, begins the same sentence on each, prints `open`, and never ends any.
    Crowd {
        #[arg(long)]
        target: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        count: usize,
        /// `\x16` and the like stand for bytes.
        #[arg(long, default_value = "")]
        send: String,
    },
    /// Passes connections on, the first bytes of each from the client in small segments.
    Split {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        target: SocketAddr,
        /// Bytes of a segment.
        #[arg(long, default_value_t = 7)]
        size: usize,
        /// How many bytes of a connection are cut up.
        #[arg(long, default_value_t = 1024)]
        first: usize,
    },
    /// Asks again and again, and prints each change of the answer with its time in microseconds since 1970.
    Watch {
        /// host:port
        #[arg(long)]
        connect: String,
        /// The Host header.
        #[arg(long)]
        host: String,
    },
    /// Writes and deletes one resource in turn through a REST API, and prints when each was answered.
    Churn {
        /// Of the resource.
        #[arg(long)]
        url: String,
        #[arg(long)]
        token_file: PathBuf,
        /// YAML or JSON.
        #[arg(long)]
        body_file: PathBuf,
        #[arg(long, default_value_t = 200)]
        changes: u32,
        /// Between changes.
        #[arg(long, default_value_t = 100)]
        pause_millis: u64,
    },
    /// Sends requests at a steady pace until SIGTERM, then prints a JSON summary.
    Load {
        /// http://host:port/path
        #[arg(long)]
        url: String,
        /// Requests a second.
        #[arg(long, default_value_t = 50)]
        rate: u32,
        /// A new connection for each request.
        #[arg(long)]
        fresh: bool,
        /// HTTP/2 with prior knowledge: all requests on one connection.
        #[arg(long)]
        http2: bool,
    },
}

/// Plays until it ends or is ended.
pub async fn run(app: App) -> Result<()> {
    match app {
        App::Http { listen, name } => http::serve(listen, name, None).await,
        App::Https { listen, name, cert, key, client_ca } => {
            let tls = http::tls_config(&cert, &key, client_ca.as_deref())?;
            http::serve(listen, name, Some(tls)).await
        }
        App::Tcp { listen } => tcp::serve_echo(listen).await,
        App::ServerFirst { listen } => tcp::serve_greeting(listen).await,
        App::Udp { listen } => tcp::serve_udp(listen).await,
        App::Grpc { listen } => grpc::serve(listen).await,
        App::Dns { listen, records } => dns::serve(listen, &records).await,
        App::GrpcLoad { target, connections, streams, each, streaming } => {
            grpc::load(&target, connections, streams, each, streaming).await
        }
        App::GrpcClient { target } => grpc::call_all(&target).await,
        App::WebsocketClient { target } => websocket::exchange(&target).await,
        App::TcpClient { target, send, greeting } => client::tcp(&target, &send, greeting).await,
        App::UdpClient { target } => client::udp(target).await,
        App::Hold { kind, target, busy } => client::hold(kind, &target, busy).await,
        App::Crowd { target, count, send } => client::crowd(target, count, &send).await,
        App::Split { listen, target, size, first } => split::serve(listen, target, size, first).await,
        App::Watch { connect, host } => watch::run(&connect, &host).await,
        App::Churn { url, token_file, body_file, changes, pause_millis } => {
            churn::run(&url, &token_file, &body_file, changes, std::time::Duration::from_millis(pause_millis))
                .await
        }
        App::Load { url, rate, fresh, http2 } => load::run(&url, rate, fresh, http2).await,
    }
}

/// Says on standard output that the program listens: what tests wait for.
fn announce(listen: SocketAddr) {
    println!("listening on {listen}");
}
