//! HAProxy as a pair of sidecars: mTLS between two of them, as near to what the others are told as it can be told.
//!
//! It reads no SPIFFE IDs: the caller's side holds the other to the DNS name of its certificate, the application's admits
//! callers by the common name of theirs.

use super::identities::{self, Identities, Identity};
use super::{Application, Ports, Role, Stack, entry, local, pair, says_that_it_is_well, version};
use crate::external;
use crate::process::Process;
use anyhow::Result;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const FIRST_PORT: u16 = 26_241;

/// One thread, TLS 1.3 with the cipher suite that the others choose; no log is configured, so none is kept. Its counters
/// can't be turned off. Times are those of the others; connections in a pool are kept as long as theirs.
const COMMON: &str = "\
global
  nbthread 1
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  http-reuse always
  default-server maxconn 65536 pool-purge-delay 1h
";

/// Of the caller's side, for HTTP; the time is that without a byte of an answer.
const REQUESTS: &str = "  timeout server 15s\n  retries 3\n  retry-on conn-failure 502 503 504\n";

/// Five failures in a row take a server out for 30 s. HAProxy puts it back by a check; while all is well there is one an
/// hour. (`fastinter` is when the first check after failures comes: without it, that is the hour's.)
const OUTLIERS: &str =
    "check inter 1h fastinter 30s downinter 30s fall 1 rise 1 error-limit 5 on-error mark-down";

pub(super) fn start(
    program: &Path,
    folder: &Path,
    application: &Application,
    services: usize,
) -> Result<Stack> {
    let version = version(program, "-v")?;
    let folder = &folder.join("haproxy");
    fs::create_dir_all(folder)?;
    let identities = &Identities::make(folder)?;
    let ports = Ports::from(FIRST_PORT);
    let hosts = folder.join("hosts.map");
    fs::write(&hosts, others(services).map(|name| format!("{name} {name}\n")).collect::<String>())?;
    let begin = |role: Role| -> Result<Process> {
        let config = match role {
            Role::Client => client(identities, &ports, services, &hosts),
            Role::Server => server(identities, &ports, application),
            Role::Egress => egress(identities, &ports, application),
        };
        let file = folder.join(format!("{}.cfg", role.name()));
        fs::write(&file, config)?;
        let file = file.display().to_string();
        says_that_it_is_well(program, &["-c", "-f", &file])?;
        // In the foreground, as one process.
        Process::start(&format!("haproxy-{}", role.name()), program, &["-db", "-f", &file], folder)
    };
    let (pair, egress) = pair(&ports, true, begin)?;
    Ok(Stack {
        name: "haproxy",
        version,
        entry: entry(ports.client),
        pair,
        egress,
        external_ca: application.external.ca.clone(),
        left_out: |_| None,
        _others: Vec::new(),
    })
}

fn others(services: usize) -> impl Iterator<Item = String> {
    (0..services).map(|number| format!("other-{number}"))
}

/// What is carried to a server, and how it is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Http1,
    Http2,
    Bytes,
}

impl Carried {
    fn mode(self) -> &'static str {
        if self == Self::Bytes { "tcp" } else { "http" }
    }

    fn alpn(self) -> &'static str {
        match self {
            Self::Http1 => "alpn http/1.1",
            Self::Http2 => "alpn h2",
            Self::Bytes => "",
        }
    }

    /// Without TLS.
    fn plain(self) -> &'static str {
        if self == Self::Http2 { "proto h2" } else { "" }
    }
}

fn client(identities: &Identities, ports: &Ports, services: usize, hosts: &Path) -> String {
    let mut config = COMMON.to_owned();
    let called = [
        ("http1", Carried::Http1, ports.server, identities::SERVER),
        ("http2", Carried::Http2, ports.server + 1, identities::SERVER),
        ("tcp", Carried::Bytes, ports.server + 2, identities::SERVER),
        ("originated", Carried::Http1, ports.egress, identities::EGRESS),
        ("passed", Carried::Bytes, ports.egress + 1, identities::EGRESS),
    ];
    let mut backend = |name: &str, carried: Carried, to: u16, peer: &str| {
        let (requests, layer) = if carried == Carried::Bytes { ("", "layer4") } else { (REQUESTS, "layer7") };
        let tls = format!(
            "{} verify required ca-file {} sni str({peer}) check-sni {peer} {}",
            tls(&identities.client),
            identities.ca.display(),
            carried.alpn()
        );
        let _ = writeln!(
            config,
            "backend {name}\n  mode {}\n{requests}  server peer {} {tls} {OUTLIERS} observe {layer}",
            carried.mode(),
            local(to)
        );
    };
    for (name, carried, to, peer) in called {
        backend(name, carried, to, peer);
    }
    for name in others(services) {
        backend(&name, Carried::Http1, ports.server, identities::SERVER);
    }
    for (at, (name, carried, ..)) in (ports.client..).zip(called) {
        let backend = if name == "http1" {
            format!("use_backend %[req.hdr(host),map_str({},http1)]", hosts.display())
        } else {
            format!("default_backend {name}")
        };
        let _ = writeln!(
            config,
            "frontend {name}\n  mode {}\n  bind {} {}\n  {backend}",
            carried.mode(),
            local(at),
            carried.plain()
        );
    }
    config
}

fn server(identities: &Identities, ports: &Ports, application: &Application) -> String {
    let mut config = COMMON.to_owned();
    let served = [
        ("http1", Carried::Http1, application.http1),
        ("http2", Carried::Http2, application.http2),
        ("tcp", Carried::Bytes, application.tcp),
    ];
    for (at, (name, carried, to)) in (ports.server..).zip(served) {
        config += &admitting(name, carried, at, &identities.server, identities);
        let _ = writeln!(config, "  server application {to} {}", carried.plain());
    }
    config
}

/// Originates TLS and holds the host to its name, or passes bytes on.
fn egress(identities: &Identities, ports: &Ports, application: &Application) -> String {
    let (to, name) = (application.https, external::NAME);
    let ca = application.external.ca.display();
    let originated = admitting("originated", Carried::Http1, ports.egress, &identities.egress, identities);
    let passed = admitting("passed", Carried::Bytes, ports.egress + 1, &identities.egress, identities);
    format!(
        "{COMMON}{originated}  server outside {to} ssl verify required ca-file {ca} sni str({name})\n\
         {passed}  server outside {to}\n"
    )
}

/// Meets callers from the mesh, and the one alone that may call.
fn admitting(name: &str, carried: Carried, at: u16, own: &Identity, identities: &Identities) -> String {
    let deny = if carried == Carried::Bytes { "tcp-request session reject" } else { "http-request deny" };
    format!(
        "listen {name}\n  mode {}\n  bind {} {} verify required ca-file {} {}\n  \
         {deny} unless {{ ssl_c_s_dn(cn) -m str {} }}\n",
        carried.mode(),
        local(at),
        tls(own),
        identities.ca.display(),
        carried.alpn(),
        identities::CLIENT
    )
}

fn tls(own: &Identity) -> String {
    format!("ssl crt {}", own.cert.display())
}

#[cfg(test)]
mod tests {
    use super::{client, egress, server};
    use crate::peer::Ports;
    use crate::peer::fixtures::{application, identities};
    use std::path::Path;

    fn lines<'a>(config: &'a str, begins: &str) -> Vec<&'a str> {
        config.lines().map(str::trim).filter(|line| line.starts_with(begins)).collect()
    }

    #[test]
    fn nothing_of_the_mesh_is_called_without_a_certificate_and_its_name() {
        let config = client(&identities(), &Ports::from(1_000), 7, Path::new("/m"));
        let servers = lines(&config, "server ");
        assert_eq!(servers.len(), 5 + 7);
        for server in servers {
            let name = if server.contains("127.0.0.1:1015 ") || server.contains("127.0.0.1:1016 ") {
                "sni str(bench-egress)"
            } else {
                "sni str(bench-server)"
            };
            for word in [
                "ssl crt /client.pem verify required ca-file /ca.pem",
                name,
                "fastinter 30s",
                "on-error mark-down",
            ] {
                assert!(server.contains(word), "{word}: {server}");
            }
        }
    }

    #[test]
    fn nobody_is_admitted_without_a_certificate_and_the_callers_name() {
        let server = server(&identities(), &Ports::from(1_000), &application());
        let egress = egress(&identities(), &Ports::from(1_000), &application());
        for (config, listeners, crt) in [(server, 3, "/server.pem"), (egress, 2, "/egress.pem")] {
            let binds = lines(&config, "bind ");
            assert_eq!(binds.len(), listeners);
            for bind in binds {
                assert!(bind.contains(&format!("ssl crt {crt} verify required ca-file /ca.pem")), "{bind}");
            }
            let rules = config.matches("unless { ssl_c_s_dn(cn) -m str bench-client }").count();
            assert_eq!(rules, listeners);
        }
    }
}
