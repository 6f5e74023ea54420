//! The ingress: a zone's way in: passes sessions to sidecars by server name, and holds no key.

use anyhow::Context;
use meridian_proxy::control::{
    self, BadConfiguration, LinkArguments, ProxyArguments, Registration, Settings,
};
use serde_json::{Map, Value, json};
use std::{fs, path::PathBuf};

/// The flags of `meridian zone-ingress`, and with `MERIDIAN_` the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    #[command(flatten)]
    pub link: LinkArguments,
    #[command(flatten)]
    pub proxy: ProxyArguments,
    /// Zone token of scope ingress; read again at each connection
    #[arg(long, env = "MERIDIAN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,
    /// The ZoneIngress resource (YAML or JSON), instead of the flags below
    #[arg(long, env = "MERIDIAN_PROXY_FILE", value_name = "FILE", conflicts_with_all = ["name", "address"])]
    pub proxy_file: Option<PathBuf>,
    /// Name of the ZoneIngress
    #[arg(long, env = "MERIDIAN_NAME", value_name = "NAME", required_unless_present = "proxy_file")]
    pub name: Option<String>,
    /// Address to listen on, as the zone's proxies reach it
    #[arg(long, env = "MERIDIAN_ADDRESS", value_name = "IP", required_unless_present = "proxy_file")]
    pub address: Option<String>,
    /// Port to listen on
    #[arg(long, env = "MERIDIAN_PORT", value_name = "PORT", default_value_t = 10001)]
    pub port: u16,
    /// Address that other zones connect to [default: --address]
    #[arg(long, env = "MERIDIAN_ADVERTISED_ADDRESS", value_name = "HOST", conflicts_with = "proxy_file")]
    pub advertised_address: Option<String>,
    /// Port that other zones connect to [default: --port]
    #[arg(long, env = "MERIDIAN_ADVERTISED_PORT", value_name = "PORT", conflicts_with = "proxy_file")]
    pub advertised_port: Option<u16>,
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
            fs::read_to_string(path).with_context(|| format!("the ZoneIngress in {}", path.display()))?
        }
        None => resource(config).to_string(),
    };
    let registration = Registration::from_text(&text, "ZoneIngress", &[])?;
    let settings = Settings::new(&config.link, &config.proxy, &config.token_file, false)?;
    Ok((settings, registration))
}

/// The resource that the flags mean.
fn resource(config: &Config) -> Value {
    let address = config.address.as_deref().unwrap_or_default();
    let mut networking = Map::new();
    networking.insert("address".to_owned(), address.into());
    networking.insert("port".to_owned(), config.port.into());
    let advertised_address = config.advertised_address.as_deref().unwrap_or(address);
    networking.insert("advertisedAddress".to_owned(), advertised_address.into());
    networking.insert("advertisedPort".to_owned(), config.advertised_port.unwrap_or(config.port).into());
    json!({"type": "ZoneIngress", "name": config.name, "networking": networking})
}
