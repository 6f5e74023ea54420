//! The egress: a zone's way out, where the allowlist is enforced.

use anyhow::Context;
use meridian_proxy::control::{
    self, BadConfiguration, LinkArguments, ProxyArguments, Registration, Settings,
};
use serde_json::{Map, Value, json};
use std::{fs, path::PathBuf};

/// The flags of `meridian zone-egress`, and with `MERIDIAN_` the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    #[command(flatten)]
    pub link: LinkArguments,
    #[command(flatten)]
    pub proxy: ProxyArguments,
    /// Zone token of scope egress; read again at each connection
    #[arg(long, env = "MERIDIAN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,
    /// The ZoneEgress resource (YAML or JSON), instead of the flags below
    #[arg(long, env = "MERIDIAN_PROXY_FILE", value_name = "FILE", conflicts_with_all = ["name", "address"])]
    pub proxy_file: Option<PathBuf>,
    /// Name of the ZoneEgress
    #[arg(long, env = "MERIDIAN_NAME", value_name = "NAME", required_unless_present = "proxy_file")]
    pub name: Option<String>,
    /// Address to listen on, as the zone's proxies reach it
    #[arg(long, env = "MERIDIAN_ADDRESS", value_name = "IP", required_unless_present = "proxy_file")]
    pub address: Option<String>,
    /// Port to listen on
    #[arg(long, env = "MERIDIAN_PORT", value_name = "PORT", default_value_t = 10002)]
    pub port: u16,
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
    let text = match &config.proxy_file {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("the ZoneEgress in {}", path.display()))?
        }
        None => resource(config).to_string(),
    };
    let registration = Registration::from_text(&text, "ZoneEgress", &[])?;
    let settings = Settings::new(&config.link, &config.proxy, &config.token_file, false)?;
    Ok((settings, registration))
}

/// The resource that the flags mean.
fn resource(config: &Config) -> Value {
    let address = config.address.as_deref().unwrap_or_default();
    let mut networking = Map::new();
    networking.insert("address".to_owned(), address.into());
    networking.insert("port".to_owned(), config.port.into());
    json!({"type": "ZoneEgress", "name": config.name, "networking": networking})
}
