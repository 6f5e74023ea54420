//! The sidecar: one proxy beside one application.

use anyhow::Context;
use meridian_proxy::control::{
    self, BadConfiguration, LinkArguments, ProxyArguments, Registration, Settings, variable,
};
use std::{fs, path::PathBuf};

/// The flags of `meridian dataplane`, and with `MERIDIAN_` the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    #[command(flatten)]
    pub link: LinkArguments,
    #[command(flatten)]
    pub proxy: ProxyArguments,
    /// Dataplane token; read again at each connection
    #[arg(long, env = "MERIDIAN_DATAPLANE_TOKEN_FILE", value_name = "FILE")]
    pub dataplane_token_file: PathBuf,
    /// The Dataplane resource (YAML or JSON), with {{variables}}
    #[arg(long, short = 'd', env = "MERIDIAN_DATAPLANE_FILE", value_name = "FILE")]
    pub dataplane_file: PathBuf,
    /// Value of a variable in that file; may be given several times
    #[arg(long, short = 'v', value_name = "KEY=VALUE", value_parser = variable)]
    pub dataplane_var: Vec<(String, String)>,
    /// Name of the Dataplane, instead of the file's
    #[arg(long, env = "MERIDIAN_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Mesh of the Dataplane, instead of the file's
    #[arg(long, env = "MERIDIAN_MESH", value_name = "MESH")]
    pub mesh: Option<String>,
    /// What `install transparent-proxy` left to be shown in overviews [default: /run/meridian/capture-NAMESPACE.json]
    #[arg(long, env = "MERIDIAN_CAPTURE_FILE", value_name = "FILE")]
    pub capture_file: Option<PathBuf>,
    /// Port of the resolver on loopback, instead of what the control plane says
    #[arg(long, env = "MERIDIAN_DNS_PORT", value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// Certificate (PEM, with its chain) of a MeshMetric's ports where tls.mode is ProvidedTLS; read again when it changes
    #[arg(long, env = "MERIDIAN_METRICS_CERT_FILE", value_name = "FILE", requires = "metrics_key_file")]
    pub metrics_cert_file: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, env = "MERIDIAN_METRICS_KEY_FILE", value_name = "FILE", requires = "metrics_cert_file")]
    pub metrics_key_file: Option<PathBuf>,
}

/// Runs until told to stop.
///
/// # Errors
/// [`BadConfiguration`], or why it could not go on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let (settings, registration) = prepare(&config).map_err(BadConfiguration)?;
    control::run(settings, registration)
}

fn prepare(config: &Config) -> anyhow::Result<(Settings, Registration)> {
    let path = &config.dataplane_file;
    let text = fs::read_to_string(path).with_context(|| format!("the Dataplane in {}", path.display()))?;
    let mut registration = Registration::from_text(&text, "Dataplane", &config.dataplane_var)
        .with_context(|| format!("the Dataplane in {}", path.display()))?;
    registration.rename(config.mesh.as_deref(), config.name.as_deref());
    let mut settings = Settings::new(&config.link, &config.proxy, &config.dataplane_token_file, true)?;
    settings.dns_port = config.dns_port;
    settings.metrics_files = config.metrics_cert_file.clone().zip(config.metrics_key_file.clone());
    if let Some(file) = &config.capture_file {
        settings.capture_file.clone_from(file);
    }
    Ok((settings, registration))
}
