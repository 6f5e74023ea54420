//! Which control plane, and as whom: flags and environment, else an entry of the configuration file, else the API on
//! this host.

use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::settings::{ControlPlane, Settings};
use meridian_pki::link::{self, Fingerprint, HTTP1, ServerTrust};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_ADDRESS: &str = "http://127.0.0.1:5681";

/// Flags of every command that speaks to a control plane.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Control plane")]
pub(crate) struct Connection {
    /// Its API: http://HOST:5681 on its own host, https://HOST:5682 from elsewhere [default: http://127.0.0.1:5681]
    #[arg(long, env = "MERIDIAN_API_ADDRESS", value_name = "URL")]
    address: Option<String>,
    /// File with a user token
    #[arg(long, env = "MERIDIAN_API_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// CA that signed its certificate (PEM): the control plane exports its own as DATA_DIR/ca.crt
    #[arg(long, env = "MERIDIAN_API_CA_CERT_FILE", value_name = "FILE", conflicts_with = "ca_fingerprint")]
    ca_cert_file: Option<PathBuf>,
    /// SHA-256 fingerprint of that CA, instead of the file
    #[arg(long, env = "MERIDIAN_API_CA_FINGERPRINT", value_name = "HEX")]
    ca_fingerprint: Option<String>,
    /// Entry of the configuration file to use, instead of its current one
    #[arg(long, env = "MERIDIAN_CONTROL_PLANE", value_name = "NAME", conflicts_with = "address")]
    control_plane: Option<String>,
    /// Configuration file [default: ~/.config/meridian/config.yaml]
    #[arg(long, env = "MERIDIAN_CLIENT_CONFIG", value_name = "FILE")]
    client_config: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, env = "MERIDIAN_API_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = duration)]
    api_timeout: Duration,
}

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Connection {
    pub(crate) fn client(&self) -> Result<Client> {
        let chosen = self.chosen()?;
        let address = Address::parse(chosen.address.as_deref().unwrap_or(DEFAULT_ADDRESS))?;
        let token = chosen.token_file.as_deref().map(read_token).transpose()?;
        if token.is_some() && !address.https && !address.is_this_host() {
            return Err(Failure::usage(format!("the token is not sent to {} in clear text", address.host))
                .next("Use https://HOST:5682 with --ca-cert-file or --ca-fingerprint, or run the command on that host."));
        }
        let tls = if address.https { Some(tls(&chosen)?) } else { None };
        Ok(Client::new(address, token, tls, self.api_timeout))
    }

    /// A token belongs to the control plane it was configured for: an address on the command line takes none from
    /// the file.
    fn chosen(&self) -> Result<ControlPlane> {
        let mut chosen = ControlPlane::default();
        if self.address.is_none() {
            let settings = Settings::load(&Settings::path(self.client_config.as_deref()))?;
            if let Some(entry) = settings.pick(self.control_plane.as_deref())? {
                chosen = entry.clone();
            }
        }
        if let Some(address) = &self.address {
            chosen.address = Some(address.clone());
        }
        if let Some(file) = &self.token_file {
            chosen.token_file = Some(file.clone());
        }
        if self.ca_cert_file.is_some() || self.ca_fingerprint.is_some() {
            chosen.ca_cert_file = self.ca_cert_file.clone();
            chosen.ca_fingerprint = self.ca_fingerprint.clone();
        }
        Ok(chosen)
    }
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Failure::usage(format!("address `{text}`: {why}"))
                .next("Write http://HOST:5681 or https://HOST:5682; IPv6 addresses stand in brackets.")
        };
        let uri: http::Uri = text.parse().map_err(|_| bad("it is no URL"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("it does not begin with http:// or https://")),
        };
        if uri.path() != "/" || uri.query().is_some() {
            return Err(bad("it has a path"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad("it names a user; users are told by --token-file"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("it has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { https, host, port: uri.port_u16().unwrap_or(if https { 5682 } else { 5681 }) })
    }

    /// `HOST:PORT`, brackets around IPv6.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn is_this_host(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http{}://{}", if self.https { "s" } else { "" }, self.authority())
    }
}

/// A Go duration: `90s`, `24h`, `30d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = meridian_core::duration::GoDuration::parse(text)
        .map_err(|error| format!("{error}: write 90s, 24h or 30d"))?;
    if parsed.0.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(parsed.0) }
}

/// Reads a small text file, whole.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Input, format!("can't read {}: {error}", path.display())))
}

fn read_token(path: &Path) -> Result<String> {
    let text = read_file(path).map_err(|failure| failure.next("It should hold a user token; the first one is in DATA_DIR/admin-token of the global control plane."))?;
    let token = text.trim();
    let valid = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    if valid {
        Ok(token.to_owned())
    } else {
        Err(Failure::new(Exit::Input, format!("{} holds no token", path.display())))
    }
}

fn tls(chosen: &ControlPlane) -> Result<rustls::ClientConfig> {
    let trust = match (&chosen.ca_cert_file, &chosen.ca_fingerprint) {
        (Some(file), None) => ServerTrust::from_pem(&read_file(file)?)
            .map_err(|error| Failure::usage(format!("CA file {}: {error}", file.display())))?,
        (None, Some(hex)) => {
            let fingerprint: Fingerprint = hex.parse().map_err(|error| Failure::usage(format!("{error}")))?;
            ServerTrust::Fingerprint(fingerprint)
        }
        (Some(_), Some(_)) => {
            return Err(Failure::usage("a CA file and a CA fingerprint exclude each other"));
        }
        (None, None) => {
            return Err(Failure::usage("https needs to know the control plane's CA")
                .next("Give --ca-cert-file (DATA_DIR/ca.crt of the control plane) or --ca-fingerprint."));
        }
    };
    link::client_config(trust, None, &[HTTP1]).map_err(|error| Failure::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parsed = |text: &str| Address::parse(text).unwrap();
        assert_eq!(parsed("http://127.0.0.1:5681").to_string(), "http://127.0.0.1:5681");
        assert_eq!(parsed("https://g.example").to_string(), "https://g.example:5682");
        assert_eq!(parsed("http://[::1]").to_string(), "http://[::1]:5681");
        for bad in
            ["127.0.0.1:5681", "grpcs://g:1", "https://", "http://g/path", "http://g?x", "http://me@g:1", ""]
        {
            assert_eq!(Address::parse(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_token_does_not_travel_in_clear_text() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "abc\n").unwrap();
        let connect = |address: &str| {
            let connection = Connection {
                address: Some(address.to_owned()),
                token_file: Some(file.clone()),
                ..Connection::default()
            };
            connection.client().map(drop)
        };
        connect("http://127.0.0.1:5681").unwrap();
        connect("http://[::1]:5681").unwrap();
        let refused = connect("http://192.0.2.1:5681").unwrap_err();
        assert!(refused.to_string().contains("clear text"), "{refused}");
        let refused = connect("https://192.0.2.1:5682").unwrap_err();
        assert!(refused.to_string().contains("--ca-cert-file"), "{refused}");
    }

    #[test]
    fn an_address_on_the_command_line_takes_no_token_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let text = "current: prod\ncontrolPlanes:\n- {name: prod, address: 'https://g:5682', tokenFile: /t, caCertFile: /c}\n";
        std::fs::write(&file, text).unwrap();
        let mut connection = Connection { client_config: Some(file), ..Connection::default() };
        assert_eq!(connection.chosen().unwrap().token_file, Some("/t".into()));
        connection.address = Some("http://127.0.0.1:5681".into());
        assert_eq!(connection.chosen().unwrap().token_file, None);
    }
}
