//! What an operator sets: defaults < file < environment < flags, one struct, and all mistakes told at once.

use meridian_api::access::Access;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The flags of `meridian zone-cp`, the same names in a file (`--config`) and, with `MERIDIAN_`, in the environment.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    /// YAML file with any of these settings (keys in camelCase); flags and environment win over it
    #[arg(long, env = "MERIDIAN_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Name of this zone (an RFC 1035 label)
    #[arg(long, env = "MERIDIAN_ZONE")]
    pub zone: Option<String>,
    /// Where state, keys and certificates are kept [default: ./data]
    #[arg(long, env = "MERIDIAN_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Store: postgres://... or sqlite:FILE [default: sqlite:DATA_DIR/zone.db]
    #[arg(long, env = "MERIDIAN_STORE_URL", value_name = "URL", hide_env_values = true)]
    pub store_url: Option<String>,
    /// Global control plane, https://HOST:5685; without one the zone stands alone
    #[arg(long, env = "MERIDIAN_GLOBAL_ADDRESS", value_name = "URL")]
    pub global_address: Option<String>,
    /// CA that signed the global control plane's certificate (PEM)
    #[arg(long, env = "MERIDIAN_CA_CERT_FILE", value_name = "FILE", conflicts_with = "ca_fingerprint")]
    pub ca_cert_file: Option<PathBuf>,
    /// SHA-256 fingerprint of that CA, instead of the file
    #[arg(long, env = "MERIDIAN_CA_FINGERPRINT", value_name = "HEX")]
    pub ca_fingerprint: Option<String>,
    /// Zone token of scope cp, needed until the zone holds its client certificate
    #[arg(long, env = "MERIDIAN_ZONE_TOKEN_FILE", value_name = "FILE")]
    pub zone_token_file: Option<PathBuf>,
    /// Replace a live process, or a live certificate of another key, of this zone
    #[arg(long, env = "MERIDIAN_TAKE_OVER")]
    pub take_over: bool,
    /// REST over HTTP [default: 127.0.0.1:5681]
    #[arg(long, env = "MERIDIAN_API_HTTP", value_name = "ADDR")]
    pub api_http: Option<SocketAddr>,
    /// REST over HTTPS [default: 0.0.0.0:5682]
    #[arg(long, env = "MERIDIAN_API_HTTPS", value_name = "ADDR")]
    pub api_https: Option<SocketAddr>,
    /// Proxies connect here [default: 0.0.0.0:5678]
    #[arg(long, env = "MERIDIAN_PROXY_LISTEN", value_name = "ADDR")]
    pub proxy_listen: Option<SocketAddr>,
    /// Readiness, health and metrics [default: 127.0.0.1:5680]
    #[arg(long, env = "MERIDIAN_DIAGNOSTICS", value_name = "ADDR")]
    pub diagnostics: Option<SocketAddr>,
    /// Certificate chain for 5678 and 5682 (PEM); without it one is made by a CA in the store
    #[arg(long, env = "MERIDIAN_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "MERIDIAN_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// Names and addresses in a certificate that the zone makes for itself
    #[arg(long, env = "MERIDIAN_TLS_SAN", value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Key that seals secrets at rest [default: DATA_DIR/encryption-key, made when missing]
    #[arg(long, env = "MERIDIAN_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Accept dataplane tokens that bind neither a name nor a kuma.io/service
    #[arg(long, env = "MERIDIAN_ALLOW_UNBOUND_TOKENS")]
    pub allow_unbound_tokens: bool,
    /// Addresses of this zone's control plane that no allowlist entry may lead to, besides the ones it listens on
    #[arg(long, env = "MERIDIAN_PROTECTED_ADDRESSES", value_name = "IP", value_delimiter = ',')]
    pub protected_addresses: Vec<std::net::IpAddr>,
    /// An egress that heard nothing from this control plane for so many seconds refuses [default: never]
    #[arg(long, env = "MERIDIAN_MAX_CONFIG_AGE", value_name = "SECONDS")]
    pub max_config_age: Option<u64>,
    /// DNS zones whose names sidecars forward to the host's own servers, cluster.local say
    #[arg(long, env = "MERIDIAN_DNS_FORWARD_ZONES", value_name = "NAME", value_delimiter = ',')]
    pub dns_forward_zones: Vec<String>,
    /// Who may do what over REST (only in the file; see docs)
    #[arg(skip)]
    pub access: Option<Access>,
}

/// Bad configuration, every mistake of it; the process exits with 64.
#[derive(Debug, thiserror::Error)]
#[error("bad configuration:\n{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// A [`Config`] with its defaults filled in and its combinations checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub zone: String,
    pub data_dir: PathBuf,
    pub store_url: String,
    pub encryption_key_file: PathBuf,
    pub global: Option<GlobalSettings>,
    pub api_http: SocketAddr,
    pub api_https: SocketAddr,
    pub proxy_listen: SocketAddr,
    pub diagnostics: SocketAddr,
    pub tls_files: Option<(PathBuf, PathBuf)>,
    pub tls_san: Vec<String>,
    pub allow_unbound_tokens: bool,
    pub protected_addresses: Vec<std::net::IpAddr>,
    pub max_config_age: Option<u64>,
    pub dns_forward_zones: Vec<String>,
    pub access: Access,
}

/// How to reach the global control plane, and how to know that it is the right one.
#[derive(Clone, Debug)]
pub struct GlobalSettings {
    pub host: String,
    pub port: u16,
    pub trust: GlobalTrust,
    pub zone_token_file: Option<PathBuf>,
    pub take_over: bool,
}

#[derive(Clone, Debug)]
pub enum GlobalTrust {
    CaFile(PathBuf),
    /// Lower-case hex of SHA-256 over the CA certificate's DER.
    Fingerprint(String),
}

impl Config {
    /// Reads the file, if one is named, fills in defaults and checks.
    pub fn resolve(self) -> Result<Settings, ConfigErrors> {
        let mut errors = Vec::new();
        let merged = match &self.config {
            Some(path) => match read_file(path) {
                Ok(file) => self.over(file),
                Err(error) => {
                    errors.push(error);
                    self
                }
            },
            None => self,
        };
        merged.check(errors)
    }

    /// These settings, and `file`'s where these say nothing.
    fn over(self, file: Self) -> Self {
        let list = |mine: Vec<String>, other: Vec<String>| if mine.is_empty() { other } else { mine };
        Self {
            config: self.config,
            zone: self.zone.or(file.zone),
            data_dir: self.data_dir.or(file.data_dir),
            store_url: self.store_url.or(file.store_url),
            global_address: self.global_address.or(file.global_address),
            ca_cert_file: self.ca_cert_file.or(file.ca_cert_file),
            ca_fingerprint: self.ca_fingerprint.or(file.ca_fingerprint),
            zone_token_file: self.zone_token_file.or(file.zone_token_file),
            take_over: self.take_over || file.take_over,
            api_http: self.api_http.or(file.api_http),
            api_https: self.api_https.or(file.api_https),
            proxy_listen: self.proxy_listen.or(file.proxy_listen),
            diagnostics: self.diagnostics.or(file.diagnostics),
            tls_cert_file: self.tls_cert_file.or(file.tls_cert_file),
            tls_key_file: self.tls_key_file.or(file.tls_key_file),
            tls_san: list(self.tls_san, file.tls_san),
            encryption_key_file: self.encryption_key_file.or(file.encryption_key_file),
            allow_unbound_tokens: self.allow_unbound_tokens || file.allow_unbound_tokens,
            protected_addresses: if self.protected_addresses.is_empty() {
                file.protected_addresses
            } else {
                self.protected_addresses
            },
            max_config_age: self.max_config_age.or(file.max_config_age),
            dns_forward_zones: list(self.dns_forward_zones, file.dns_forward_zones),
            access: self.access.or(file.access),
        }
    }

    fn check(self, mut errors: Vec<String>) -> Result<Settings, ConfigErrors> {
        let zone = self.zone.clone().unwrap_or_default();
        if zone.is_empty() {
            errors.push("zone: required (--zone NAME)".to_owned());
        } else if !is_zone_name(&zone) {
            errors.push(format!("zone: {zone:?} is no RFC 1035 label (a-z, 0-9, '-', at most 63)"));
        }
        let global = self.global(&mut errors);
        let tls_files = match (self.tls_cert_file, self.tls_key_file) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                errors.push("tlsCertFile and tlsKeyFile go together".to_owned());
                None
            }
        };
        if let Some(Err(error)) = self.store_url.as_deref().map(meridian_store::check_url) {
            errors.push(format!("storeUrl: {error}"));
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        let data_dir = self.data_dir.unwrap_or_else(|| PathBuf::from("data"));
        Ok(Settings {
            zone,
            store_url: self
                .store_url
                .unwrap_or_else(|| format!("sqlite:{}", data_dir.join("zone.db").display())),
            encryption_key_file: self.encryption_key_file.unwrap_or_else(|| data_dir.join("encryption-key")),
            data_dir,
            global,
            api_http: self.api_http.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 5681).into()),
            api_https: self.api_https.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 5682).into()),
            proxy_listen: self.proxy_listen.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 5678).into()),
            diagnostics: self.diagnostics.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 5680).into()),
            tls_files,
            tls_san: self.tls_san,
            allow_unbound_tokens: self.allow_unbound_tokens,
            protected_addresses: self.protected_addresses,
            max_config_age: self.max_config_age,
            dns_forward_zones: self.dns_forward_zones,
            access: self.access.unwrap_or_default(),
        })
    }

    fn global(&self, errors: &mut Vec<String>) -> Option<GlobalSettings> {
        let address = self.global_address.as_deref()?;
        let Some((host, port)) = split_https(address) else {
            errors.push(format!("globalAddress: {address:?} is not https://HOST:PORT"));
            return None;
        };
        let trust = match (&self.ca_cert_file, &self.ca_fingerprint) {
            (Some(file), None) => GlobalTrust::CaFile(file.clone()),
            (None, Some(hex)) => match normalise_fingerprint(hex) {
                Some(hex) => GlobalTrust::Fingerprint(hex),
                None => {
                    errors.push("caFingerprint: not a SHA-256 in hex".to_owned());
                    return None;
                }
            },
            (None, None) => {
                errors.push("globalAddress needs caCertFile or caFingerprint: no token is sent before the server is verified".to_owned());
                return None;
            }
            (Some(_), Some(_)) => {
                errors.push("caCertFile and caFingerprint exclude each other".to_owned());
                return None;
            }
        };
        let zone_token_file = self.zone_token_file.clone();
        Some(GlobalSettings { host, port, trust, zone_token_file, take_over: self.take_over })
    }
}

fn read_file(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn is_zone_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// `https://HOST:PORT`, the port 5685 when left out; IPv6 hosts in brackets.
fn split_https(address: &str) -> Option<(String, u16)> {
    let rest = address.strip_prefix("https://")?.trim_end_matches('/');
    if rest.is_empty() || rest.contains('/') {
        return None;
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = port.map_or(Ok(5685), str::parse).ok()?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn normalise_fingerprint(hex: &str) -> Option<String> {
    let plain: String = hex.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    (plain.len() == 64 && plain.bytes().all(|b| b.is_ascii_hexdigit())).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_told_at_once_and_no_password_with_it() {
        let config = Config {
            zone: Some("East".into()),
            global_address: Some("http://x".into()),
            tls_cert_file: Some("c".into()),
            store_url: Some("mysql://me:hunter2@db/x".into()),
            ..Config::default()
        };
        let errors = config.resolve().unwrap_err();
        assert_eq!(errors.0.len(), 4, "{errors}");
        assert!(
            errors.to_string().contains("storeUrl") && !errors.to_string().contains("hunter2"),
            "{errors}"
        );
    }

    #[test]
    fn a_global_address_without_trust_is_refused() {
        let config = Config {
            zone: Some("east".into()),
            global_address: Some("https://g".into()),
            ..Config::default()
        };
        assert!(config.resolve().unwrap_err().to_string().contains("caCertFile"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zone.yaml");
        std::fs::write(&path, "zone: west\nproxyListen: 127.0.0.1:7000\n").unwrap();
        let config = Config { config: Some(path), zone: Some("east".into()), ..Config::default() };
        let settings = config.resolve().unwrap();
        assert_eq!((settings.zone.as_str(), settings.proxy_listen.port()), ("east", 7000));
    }

    #[test]
    fn the_example_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/multizone/config/zone-cp.yaml");
        let settings = Config { config: Some(path), ..Config::default() }.resolve().unwrap();
        let global = settings.global.unwrap();
        assert_eq!(
            (settings.zone.as_str(), global.host.as_str(), global.port),
            ("east", "global.example", 5685)
        );
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zone.yaml");
        std::fs::write(&path, "zone: west\nproxyListn: 127.0.0.1:7000\n").unwrap();
        let error = Config { config: Some(path), ..Config::default() }.resolve().unwrap_err();
        assert!(error.to_string().contains("proxyListn"), "{error}");
    }

    #[test]
    fn addresses_of_the_global_control_plane() {
        assert_eq!(split_https("https://g.example"), Some(("g.example".into(), 5685)));
        assert_eq!(split_https("https://[2001:db8::1]:99"), Some(("2001:db8::1".into(), 99)));
        for bad in ["g:1", "https://", "https://g:x", "https://g/path", "grpcs://g:1"] {
            assert_eq!(split_https(bad), None, "{bad}");
        }
    }
}
