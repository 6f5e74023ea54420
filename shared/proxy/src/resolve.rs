//! Names to addresses, by the host's own resolvers.
//!
//! hickory stays behind this module: its API breaks with every minor version. One [`Resolver`] a process, because its
//! cache is not small. Names are looked up as they are: the search list of resolv.conf would turn a listed name into
//! another one. No DNSSEC and no recursion: the host's resolvers are trusted, what they answer is judged by
//! [`crate::address`].

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    system_conf,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// How often the file is looked at again, at most: DHCP and VPNs rewrite it.
const RECHECK: Duration = Duration::from_secs(5);

/// For one query to one server; each server is asked twice at most.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// A name that went away must stop leading anywhere soon: answers are kept no longer than this, whatever their TTL...
const POSITIVE_TTL: Duration = Duration::from_secs(300);

/// ...and that a name is not there only for this: one that came must be found soon.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// Answers kept.
const CACHE: u64 = 1024;

/// Most addresses used of one answer: a name with more gains nothing, and each may cost a connect timeout.
pub const MAX_ADDRESSES: usize = 16;

/// One a process; cheap to share.
pub struct Resolver {
    source: Source,
    state: Mutex<Option<State>>,
}

enum Source {
    File(PathBuf),
    Servers(Vec<SocketAddr>),
}

#[derive(Clone)]
struct State {
    resolver: Arc<TokioResolver>,
    servers: Arc<[SocketAddr]>,
    modified: Option<SystemTime>,
    checked: Instant,
}

impl Default for Resolver {
    /// `/etc/resolv.conf`.
    fn default() -> Self {
        Self::from_file("/etc/resolv.conf")
    }
}

impl Resolver {
    /// Another file in the format of resolv.conf; read when first needed.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self { source: Source::File(path.into()), state: Mutex::default() }
    }

    /// These servers and no file.
    pub fn from_servers(servers: Vec<SocketAddr>) -> Self {
        Self { source: Source::Servers(servers), state: Mutex::default() }
    }

    /// Addresses of a name, IPv4 first; an address is its own.
    ///
    /// # Errors
    /// The name does not resolve, or there is no server to ask.
    pub async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(ip) = name.parse() {
            return Ok(vec![ip]);
        }
        let resolver = self.current()?.resolver;
        let absolute = format!("{}.", name.trim_end_matches('.'));
        let found =
            resolver.lookup_ip(absolute).await.map_err(|error| io::Error::other(error.to_string()))?;
        let (mut addresses, v6): (Vec<IpAddr>, Vec<IpAddr>) = found.iter().partition(IpAddr::is_ipv4);
        addresses.extend(v6);
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }

    /// The servers, in the order of the file: for queries that are forwarded as they are.
    ///
    /// # Errors
    /// The file can't be read or names none.
    pub fn servers(&self) -> io::Result<Arc<[SocketAddr]>> {
        self.current().map(|state| state.servers)
    }

    fn current(&self) -> io::Result<State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = state.as_mut() {
            if present.checked.elapsed() < RECHECK {
                return Ok(present.clone());
            }
            present.checked = Instant::now();
            if present.modified == self.source.modified() {
                return Ok(present.clone());
            }
        }
        let modified = self.source.modified();
        match self.source.load() {
            Ok((resolver, servers)) => {
                let fresh =
                    State { resolver: Arc::new(resolver), servers, modified, checked: Instant::now() };
                Ok(state.insert(fresh).clone())
            }
            // A file caught while it is being rewritten: what was known still holds.
            Err(error) => state.clone().ok_or(error),
        }
    }
}

impl Source {
    fn modified(&self) -> Option<SystemTime> {
        match self {
            Self::File(path) => std::fs::metadata(path).and_then(|meta| meta.modified()).ok(),
            Self::Servers(_) => None,
        }
    }

    fn load(&self) -> io::Result<(TokioResolver, Arc<[SocketAddr]>)> {
        let config = match self {
            Self::File(path) => read(path)?,
            Self::Servers(servers) => explicit(servers),
        };
        let servers = config
            .name_servers()
            .iter()
            .map(|server| {
                SocketAddr::new(server.ip, server.connections.first().map_or(53, |first| first.port))
            })
            .collect();
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = QUERY_TIMEOUT;
        options.attempts = 2;
        options.try_tcp_on_error = true;
        options.positive_max_ttl = Some(POSITIVE_TTL);
        options.negative_max_ttl = Some(NEGATIVE_TTL);
        options.cache_size = CACHE;
        let resolver = builder.build().map_err(|error| io::Error::other(error.to_string()))?;
        Ok((resolver, servers))
    }
}

fn read(path: &Path) -> io::Result<ResolverConfig> {
    let text = std::fs::read(path)?;
    let (config, _) =
        system_conf::parse_resolv_conf(text).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(ResolverConfig::from_name_servers(config.name_servers().to_vec()))
}

fn explicit(servers: &[SocketAddr]) -> ResolverConfig {
    use hickory_resolver::config::NameServerConfig;
    let servers = servers.iter().map(|server| {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        config
    });
    ResolverConfig::from_name_servers(servers.collect())
}
