//! What an operator sets: defaults < file < environment < flags, one struct, and all mistakes told at once.

use meridian_api::access::Access;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The flags of `meridian global-cp`, the same names in a file (`--config`) and, with `MERIDIAN_`, in the environment.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    /// YAML file with any of these settings (keys in camelCase); flags and environment win over it
    #[arg(long, env = "MERIDIAN_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where keys, certificates and the SQLite store are kept [default: ./data]
    #[arg(long, env = "MERIDIAN_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Store: postgres://... or sqlite:FILE [default: sqlite:DATA_DIR/global.db]
    #[arg(long, env = "MERIDIAN_STORE_URL", value_name = "URL", hide_env_values = true)]
    pub store_url: Option<String>,
    /// REST over HTTP [default: 127.0.0.1:5681]
    #[arg(long, env = "MERIDIAN_API_HTTP", value_name = "ADDR")]
    pub api_http: Option<SocketAddr>,
    /// REST over HTTPS [default: 0.0.0.0:5682]
    #[arg(long, env = "MERIDIAN_API_HTTPS", value_name = "ADDR")]
    pub api_https: Option<SocketAddr>,
    /// Zones connect here [default: 0.0.0.0:5685]
    #[arg(long, env = "MERIDIAN_SYNC_LISTEN", value_name = "ADDR")]
    pub sync_listen: Option<SocketAddr>,
    /// Readiness, health and metrics [default: 127.0.0.1:5680]
    #[arg(long, env = "MERIDIAN_DIAGNOSTICS", value_name = "ADDR")]
    pub diagnostics: Option<SocketAddr>,
    /// Certificate chain for 5682 and 5685 (PEM); without it one is made by a CA in the store
    #[arg(long, env = "MERIDIAN_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "MERIDIAN_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// Names and addresses in a certificate that the control plane makes for itself
    #[arg(long, env = "MERIDIAN_TLS_SAN", value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Key that seals secrets at rest [default: DATA_DIR/encryption-key, made when missing]
    #[arg(long, env = "MERIDIAN_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
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
    pub data_dir: PathBuf,
    pub store_url: String,
    pub encryption_key_file: PathBuf,
    pub api_http: SocketAddr,
    pub api_https: SocketAddr,
    pub sync_listen: SocketAddr,
    pub diagnostics: SocketAddr,
    pub tls_files: Option<(PathBuf, PathBuf)>,
    pub tls_san: Vec<String>,
    pub access: Access,
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
        Self {
            config: self.config,
            data_dir: self.data_dir.or(file.data_dir),
            store_url: self.store_url.or(file.store_url),
            api_http: self.api_http.or(file.api_http),
            api_https: self.api_https.or(file.api_https),
            sync_listen: self.sync_listen.or(file.sync_listen),
            diagnostics: self.diagnostics.or(file.diagnostics),
            tls_cert_file: self.tls_cert_file.or(file.tls_cert_file),
            tls_key_file: self.tls_key_file.or(file.tls_key_file),
            tls_san: if self.tls_san.is_empty() { file.tls_san } else { self.tls_san },
            encryption_key_file: self.encryption_key_file.or(file.encryption_key_file),
            access: self.access.or(file.access),
        }
    }

    fn check(self, mut errors: Vec<String>) -> Result<Settings, ConfigErrors> {
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
            store_url: self
                .store_url
                .unwrap_or_else(|| format!("sqlite:{}", data_dir.join("global.db").display())),
            encryption_key_file: self.encryption_key_file.unwrap_or_else(|| data_dir.join("encryption-key")),
            api_http: self.api_http.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 5681).into()),
            api_https: self.api_https.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 5682).into()),
            sync_listen: self.sync_listen.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 5685).into()),
            diagnostics: self.diagnostics.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 5680).into()),
            tls_files,
            tls_san: self.tls_san,
            access: self.access.unwrap_or_default(),
            data_dir,
        })
    }
}

fn read_file(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_told_at_once_and_no_password_with_it() {
        let config = Config {
            tls_key_file: Some("k".into()),
            store_url: Some("mysql://me:hunter2@db/x".into()),
            ..Config::default()
        };
        let errors = config.resolve().unwrap_err();
        assert_eq!(errors.0.len(), 2, "{errors}");
        assert!(!errors.to_string().contains("hunter2"));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("global.yaml");
        std::fs::write(
            &path,
            "syncListen: 127.0.0.1:7000\napiHttp: 127.0.0.1:7001\naccess:\n  localIsAdmin: true\n",
        )
        .unwrap();
        let flags =
            Config { config: Some(path), api_http: Some(([127, 0, 0, 1], 7002).into()), ..Config::default() };
        let settings = flags.resolve().unwrap();
        assert_eq!((settings.sync_listen.port(), settings.api_http.port()), (7000, 7002));
        assert!(settings.access.local_is_admin && settings.api_http.ip().is_loopback());
    }

    #[test]
    fn the_example_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/multizone/config/global-cp.yaml");
        let settings = Config { config: Some(path), ..Config::default() }.resolve().unwrap();
        assert_eq!(settings.tls_san, ["global.example"]);
        assert!(settings.store_url.starts_with("postgres://"));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("global.yaml");
        std::fs::write(&path, "syncLisen: 127.0.0.1:7000\n").unwrap();
        let error = Config { config: Some(path), ..Config::default() }.resolve().unwrap_err();
        assert!(error.to_string().contains("syncLisen"), "{error}");
    }
}
