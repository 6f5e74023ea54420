//! What an intruder has and does: the keys of a taken sidecar, sessions with any name, words of its choice.

use anyhow::{Context, Result};
use meridian_testkit::mesh::{PROXY_UID, Proxy};
use meridian_testkit::net::Host;
use meridian_testkit::process::{Process, Program};
use meridian_testkit::wait::{DEADLINE, until};
use std::path::{Path, PathBuf};

/// What a taken sidecar has on its disk, as openssl wants it.
pub(crate) struct Stolen {
    pub(crate) leaf: String,
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Stolen {
    pub(crate) async fn from(proxy: &Proxy, directory: &Path) -> Result<Self> {
        Self::of_mesh("default", proxy, directory).await
    }

    /// The same of a sidecar of another mesh.
    pub(crate) async fn of_mesh(mesh: &str, proxy: &Proxy, directory: &Path) -> Result<Self> {
        let kept = proxy.host.directory().join(format!("proxy/identities/{mesh}.json"));
        let kept: serde_json::Value = until("the certificate to be on disk", DEADLINE, || async {
            Ok(serde_json::from_slice(&std::fs::read(&kept)?)?)
        })
        .await?;
        let text = |name: &str| kept.get(name).and_then(serde_json::Value::as_str).context("no such part");
        let write = |name: &str, content: &str| -> Result<String> {
            let path = directory.join(format!("{mesh}-{}-{name}", proxy.name));
            std::fs::write(&path, content)?;
            Ok(path.display().to_string())
        };
        let whole = text("chain")?;
        let (_, rest) = whole.split_once("-----END CERTIFICATE-----").context("no certificate")?;
        Ok(Self {
            leaf: write("leaf", whole)?,
            chain: write("chain", rest)?,
            key: write("key", text("key")?)?,
        })
    }

    fn words(&self) -> [&str; 6] {
        ["-cert", &self.leaf, "-cert_chain", &self.chain, "-key", &self.key]
    }

    /// Waits for callers in another's place, and answers whoever believes it.
    pub(crate) fn impersonate(&self, host: &Host, listen: &str, alpn: &str) -> Result<Process> {
        let words = ["openssl", "s_server", "-www", "-accept", listen, "-alpn", alpn, "-Verify", "3"];
        host.spawn(Program::new("impostor", words.into_iter().chain(self.words())).uid(PROXY_UID))
    }
}

/// Opens a session and says `bytes`; gives all that came back until the other side ended it.
pub(crate) async fn say(
    from: &Host,
    target: &str,
    certificate: Option<&Stolen>,
    sni: &str,
    alpn: &str,
    bytes: &[u8],
) -> Result<String> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let input = from.directory().join(format!("said-{serial}"));
    std::fs::write(&input, bytes)?;
    let mut words = vec!["openssl", "s_client", "-quiet", "-connect", target, "-servername", sni];
    words.extend((!alpn.is_empty()).then_some(["-alpn", alpn]).into_iter().flatten());
    words.extend(certificate.map(Stolen::words).into_iter().flatten());
    let line = format!("timeout 5 {} < {} 2>/dev/null; true", words.join(" "), input.display());
    from.run(&["sh", "-c", &line]).await
}

pub(crate) fn preface(entry: &str, host: &str, port: u16) -> Vec<u8> {
    let json = format!(r#"{{"entry":"{entry}","host":"{host}","port":{port}}}"#);
    let length = u16::try_from(json.len()).unwrap_or_default().to_be_bytes();
    [&length[..], json.as_bytes(), request(host).as_bytes()].concat()
}

pub(crate) fn request(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// The server name with this beginning, as a taken sidecar reads it in its configuration.
pub(crate) async fn server_name(proxy: &Proxy, beginning: &str) -> Result<String> {
    let path: PathBuf = proxy.host.directory().join("proxy/config.json");
    until("the server name to be known", DEADLINE, || async {
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let at = text.find(beginning).with_context(|| format!("no {beginning}"))?;
        let name = text.get(at..).and_then(|rest| rest.split(['"', '\\']).next()).unwrap_or_default();
        Ok(name.to_owned())
    })
    .await
}

pub(crate) fn answered(said: &str) -> bool {
    said.starts_with("HTTP/1.1 200")
}
