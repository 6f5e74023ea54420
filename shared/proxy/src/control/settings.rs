//! What an operator sets, common to the three wirings: one struct, every mistake told at once.

use anyhow::{Context, bail};
use meridian_delta::client::{Connector, TlsSource, TokenSource};
use meridian_pki::link::{self, Fingerprint, ServerTrust};
use meridian_telemetry::LogOptions;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

/// The way to the zone's control plane.
#[derive(Clone, Debug, clap::Args)]
pub struct LinkArguments {
    /// Zone control plane, https://HOST:5678
    #[arg(long, env = "MERIDIAN_CP_ADDRESS", value_name = "URL")]
    pub cp_address: String,
    /// CA that signed its certificate (PEM)
    #[arg(long, env = "MERIDIAN_CA_CERT_FILE", value_name = "FILE", conflicts_with = "ca_fingerprint")]
    pub ca_cert_file: Option<PathBuf>,
    /// SHA-256 fingerprint of that CA, instead of the file
    #[arg(long, env = "MERIDIAN_CA_FINGERPRINT", value_name = "HEX")]
    pub ca_fingerprint: Option<String>,
}

/// How the proxy runs.
#[derive(Clone, Debug, clap::Args)]
pub struct ProxyArguments {
    /// Where the last configuration, certificates and keys are kept (only this user may read it)
    #[arg(long, env = "MERIDIAN_DATA_DIR", value_name = "DIR", default_value = "./data")]
    pub data_dir: PathBuf,
    /// Address of /ready and /metrics
    #[arg(long, env = "MERIDIAN_READINESS_ADDRESS", value_name = "IP", default_value = "0.0.0.0")]
    pub readiness_address: IpAddr,
    /// Port of /ready and /metrics
    #[arg(long, env = "MERIDIAN_READINESS_PORT", value_name = "PORT", default_value_t = 9902)]
    pub readiness_port: u16,
    /// Unix socket for /config, /stats and /drain [default: DATA_DIR/admin.sock]
    #[arg(long, env = "MERIDIAN_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Threads that carry traffic [default: 1 for sidecars, else what the CPU quota allows]
    #[arg(long, env = "MERIDIAN_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// How long open connections may take to finish after SIGTERM, in seconds
    #[arg(long, env = "MERIDIAN_DRAIN_TIME", value_name = "SECONDS", default_value_t = 30)]
    pub drain_time: u64,
}

/// What the operator gave can't be used: the process exits with 64.
#[derive(Debug, thiserror::Error)]
#[error("bad configuration: {0:#}")]
pub struct BadConfiguration(pub anyhow::Error);

/// The `main` of a slim proxy binary: reads arguments, sets up logs, runs, and says why it ended.
pub fn program<P: clap::Parser>(run: impl FnOnce(P) -> anyhow::Result<()>) -> ExitCode {
    const USAGE: u8 = 64;
    let arguments = match P::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // For libraries that ask for the process default; ours name the provider.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let logs = LogOptions::from_env().and_then(|options| meridian_telemetry::log::init(&options));
    if let Err(error) = logs {
        tell(&error);
        return ExitCode::from(USAGE);
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format_args!("{error:#}"));
            ExitCode::from(if error.is::<BadConfiguration>() { USAGE } else { 1 })
        }
    }
}

/// The last words of a process go to standard error as they are, whatever the logs' format.
fn tell(text: &dyn std::fmt::Display) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Reads `KEY=VALUE`.
///
/// # Errors
/// There is no `=`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("use KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// A verified way to a control plane.
pub struct Link {
    pub connector: Connector,
}

/// By what the control plane is known.
#[derive(Clone, Debug)]
pub enum Trust {
    CaFile(PathBuf),
    Fingerprint(String),
}

/// What a proxy runs with.
pub struct Settings {
    pub link: Link,
    pub data_dir: PathBuf,
    pub readiness: SocketAddr,
    pub admin_socket: Option<PathBuf>,
    pub workers: usize,
    pub drain_time: Duration,
    /// What the installer of the capture rules left for us.
    pub capture_file: PathBuf,
    /// Where names are answered, whatever the configuration says.
    pub dns_port: Option<u16>,
    /// Certificate and key of the ports of metrics that are to have provided ones.
    pub metrics_files: Option<(PathBuf, PathBuf)>,
}

impl Settings {
    /// Reads what the arguments name. `sidecar`: one worker unless told otherwise.
    ///
    /// # Errors
    /// What can't be used.
    pub fn new(
        link: &LinkArguments,
        proxy: &ProxyArguments,
        token_file: &Path,
        sidecar: bool,
    ) -> anyhow::Result<Self> {
        let workers = proxy.workers.unwrap_or_else(|| if sidecar { 1 } else { allowed_cpus() });
        if !(1..=1024).contains(&workers) {
            bail!("--workers must be between 1 and 1024");
        }
        Ok(Self {
            link: Link::new(link, token_file)?,
            data_dir: proxy.data_dir.clone(),
            readiness: SocketAddr::new(proxy.readiness_address, proxy.readiness_port),
            admin_socket: Some(
                proxy.admin_socket.clone().unwrap_or_else(|| proxy.data_dir.join("admin.sock")),
            ),
            workers,
            drain_time: Duration::from_secs(proxy.drain_time),
            capture_file: crate::capture::notice_file(),
            dns_port: None,
            metrics_files: None,
        })
    }
}

impl Link {
    fn new(arguments: &LinkArguments, token_file: &Path) -> anyhow::Result<Self> {
        let address = arguments.cp_address.parse()?;
        let trust = match (&arguments.ca_cert_file, &arguments.ca_fingerprint) {
            (Some(path), None) => Trust::CaFile(path.clone()),
            (None, Some(fingerprint)) => Trust::Fingerprint(fingerprint.clone()),
            _ => bail!(
                "--ca-cert-file or --ca-fingerprint is needed: no token is sent to a server that is not verified"
            ),
        };
        let token = read_token(token_file)?;
        let tls = tls_source(trust)?;
        Ok(Self { connector: Connector::new(address, tls, token_source(token_file, token)) })
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("the token in {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        bail!("{} is empty; it must hold the token", path.display());
    }
    Ok(token.to_owned())
}

/// The file is read at each connection, so that a renewed token is used without a restart.
fn token_source(path: &Path, first: String) -> TokenSource {
    let path = path.to_owned();
    Arc::new(move || {
        let newest =
            read_token(&path).inspect_err(|error| tracing::warn!(%error, "using the token of before"));
        Some(newest.unwrap_or_else(|_| first.clone()))
    })
}

/// The CA file is read at each connection as well.
fn tls_source(trust: Trust) -> anyhow::Result<TlsSource> {
    let first = Arc::new(client_config(&trust)?);
    Ok(Arc::new(move || match client_config(&trust) {
        Ok(config) => Arc::new(config),
        Err(error) => {
            tracing::warn!(%error, "using the CA of before");
            first.clone()
        }
    }))
}

fn client_config(trust: &Trust) -> anyhow::Result<rustls::ClientConfig> {
    let trust = match trust {
        Trust::CaFile(path) => {
            let pem = fs::read_to_string(path).with_context(|| format!("the CA in {}", path.display()))?;
            ServerTrust::from_pem(&pem).with_context(|| format!("the CA in {}", path.display()))?
        }
        Trust::Fingerprint(text) => ServerTrust::Fingerprint(text.parse::<Fingerprint>()?),
    };
    Ok(link::client_config(trust, None, &[link::H2])?)
}

/// The cgroup's CPU quota, rounded up; without one the CPUs that this process may run on.
fn allowed_cpus() -> usize {
    let quota = fs::read_to_string("/sys/fs/cgroup/cpu.max").ok().and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        let (quota, period) = (quota.parse::<usize>().ok()?, period.parse::<usize>().ok()?);
        (period > 0).then(|| quota.div_ceil(period).max(1))
    });
    let affinity = std::thread::available_parallelism().map_or(1, usize::from);
    quota.map_or(affinity, |quota| quota.min(affinity))
}
