//! nginx as a pair of sidecars: mTLS between two of them, as near to what the others are told as it can be told.
//!
//! It reads no SPIFFE IDs: the caller's side holds the other to the DNS name of its certificate, the application's admits
//! callers by the subject of theirs. It speaks HTTP/2 to servers for gRPC alone (one request at a time on a connection):
//! other requests that come over HTTP/2 go on over HTTP/1.1. Where a service has one endpoint, as here, it neither repeats a
//! request nor takes the endpoint out.

use super::identities::{self, Identities, Identity};
use super::{Application, Ports, Role, Stack, entry, local, pair, says_that_it_is_well, version};
use crate::external;
use crate::process::Process;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

const FIRST_PORT: u16 = 26_261;

/// Room for 10,000 callers and their pool. The table is made at the start, 430 bytes for each.
const CONNECTIONS: usize = 12_000;

/// Most connections that rest in the pool of a service: the load's most, so that none is closed for it. A pool's table is
/// made at the start, 160 bytes for each.
const POOL: usize = 256;

/// gRPC of the load.
const GRPC: &str = "/bench.Echo/";

/// Of HTTP. Connections stay as long as those of the others, and have no last request; bodies go on as they come, and
/// nothing is put into files.
const HTTP: &str = "\
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  proxy_http_version 1.1;
  proxy_set_header Connection '';
  proxy_set_header Host $http_host;
  proxy_request_buffering off;
  proxy_max_temp_file_size 0;
";

/// Of the caller's side: the time is that without a byte of an answer.
const REQUESTS: [&str; 4] = [
    "connect_timeout 5s",
    "read_timeout 15s",
    "next_upstream error timeout http_502 http_503 http_504 non_idempotent",
    "next_upstream_tries 4",
];

pub(super) fn start(
    program: &Path,
    folder: &Path,
    application: &Application,
    services: usize,
) -> Result<Stack> {
    let version = version(program, "-v")?;
    let module = stream_module(program)?;
    let folder = &folder.join("nginx");
    fs::create_dir_all(folder)?;
    let identities = &Identities::make(folder)?;
    let ports = Ports::from(FIRST_PORT);
    let begin = |role: Role| -> Result<Process> {
        let config = match role {
            Role::Client => client(identities, &ports, services),
            Role::Server => server(identities, &ports, application),
            Role::Egress => egress(identities, &ports, application),
        };
        let config = format!("{}{}{config}", module.as_deref().unwrap_or_default(), process(folder, role));
        let file = folder.join(format!("{}.conf", role.name()));
        fs::write(&file, config)?;
        let (file, folder_name) = (file.display().to_string(), folder.display().to_string());
        let words = ["-p", &folder_name, "-e", "stderr", "-c", &file];
        says_that_it_is_well(program, &[&words, ["-t"].as_slice()].concat())?;
        Process::start(&format!("nginx-{}", role.name()), program, &words, folder)
    };
    let (pair, egress) = pair(&ports, true, begin)?;
    Ok(Stack {
        name: "nginx",
        version,
        entry: entry(ports.client),
        pair,
        egress,
        external_ca: application.external.ca.clone(),
        left_out: |_| None,
        _others: Vec::new(),
    })
}

/// The line that loads what bytes are carried by, unless it is built in.
fn stream_module(program: &Path) -> Result<Option<String>> {
    let output = Command::new(program).arg("-V").output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    load_stream(&String::from_utf8_lossy(&output.stderr)).with_context(|| program.display().to_string())
}

/// By what `nginx -V` tells. Debian's module is a package of its own.
fn load_stream(built: &str) -> Result<Option<String>> {
    let words: Vec<&str> = built.split_whitespace().collect();
    if words.contains(&"--with-stream") {
        return Ok(None);
    }
    let is_dynamic = words.contains(&"--with-stream=dynamic");
    let modules = words.iter().find_map(|word| word.strip_prefix("--modules-path=")).filter(|_| is_dynamic);
    let modules = modules.context("built without its stream module, which carries TCP")?;
    let file = Path::new(modules).join("ngx_stream_module.so");
    anyhow::ensure!(file.exists(), "{}: not installed (libnginx-mod-stream)", file.display());
    Ok(Some(format!("load_module {};\n", file.display())))
}

/// One process, which is the worker itself.
fn process(folder: &Path, role: Role) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nmaster_process off;\npid {folder}/{}.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections {CONNECTIONS}; }}\n",
        role.name()
    )
}

fn client(identities: &Identities, ports: &Ports, services: usize) -> String {
    let mut http = HTTP.to_owned();
    let mut stream = String::new();
    for prefix in ["proxy", "grpc"] {
        for words in REQUESTS {
            let _ = writeln!(http, "  {prefix}_{words};");
        }
        http += &calling(prefix, identities);
    }
    stream += &calling("proxy", identities);
    let others: Vec<String> = (0..services).map(|number| format!("other-{number}")).collect();
    let called = [("http1", ports.server), ("http2", ports.server + 1), ("originated", ports.egress)];
    for (name, to) in called.into_iter().chain(others.iter().map(|name| (name.as_str(), ports.server))) {
        http += &pool(name, local(to));
    }
    let [http1, http2, tcp, originated, passed] = [0, 1, 2, 3, 4].map(|offset| local(ports.client + offset));
    let to_http1 = "location / { proxy_pass https://http1; }";
    // Which one of a port's servers is meant, the host tells; the first is for all that no other is for.
    let _ = writeln!(http, "  server {{ listen {http1}; {to_http1} }}");
    let _ = writeln!(
        http,
        "  server {{ listen {http2} http2; {to_http1} location {GRPC} {{ grpc_pass grpcs://http2; }} }}"
    );
    let _ = writeln!(
        http,
        "  server {{ listen {originated}; location / {{ proxy_pass https://originated; proxy_ssl_name {}; }} }}",
        identities::EGRESS
    );
    for name in &others {
        let _ = writeln!(
            http,
            "  server {{ listen {http1}; server_name {name}; location / {{ proxy_pass https://{name}; }} }}"
        );
    }
    let (to_server, to_egress) = (local(ports.server + 2), local(ports.egress + 1));
    let _ = writeln!(stream, "  server {{ listen {tcp}; proxy_pass {to_server}; }}");
    let _ = writeln!(
        stream,
        "  server {{ listen {passed}; proxy_pass {to_egress}; proxy_ssl_name {}; }}",
        identities::EGRESS
    );
    format!(
        "http {{\n{http}}}\nstream {{\n  proxy_ssl on;\n  proxy_connect_timeout 5s;\n  proxy_timeout 1h;\n{stream}}}\n"
    )
}

fn server(identities: &Identities, ports: &Ports, application: &Application) -> String {
    let [http1, http2, tcp] = [0, 1, 2].map(|offset| local(ports.server + offset));
    let admitting = admitting(&identities.server, identities);
    let (app1, app2) = (pool("app1", application.http1), pool("app2", application.http2));
    let only_the_caller = only_the_caller();
    format!(
        "http {{\n{HTTP}{app1}{app2}{admitting}  \
         server {{ listen {http1} ssl; {only_the_caller} location / {{ proxy_pass http://app1; }} }}\n  \
         server {{ listen {http2} ssl http2; {only_the_caller} location / {{ grpc_pass grpc://app2; }} }}\n}}\n\
         stream {{\n{}{admitting}  server {{ listen {tcp} ssl; proxy_pass $admitted; }}\n}}\n",
        admitted(application.tcp)
    )
}

/// Originates TLS and holds the host to its name, or passes bytes on.
fn egress(identities: &Identities, ports: &Ports, application: &Application) -> String {
    let [originated, passed] = [0, 1].map(|offset| local(ports.egress + offset));
    let admitting = admitting(&identities.egress, identities);
    let (name, ca) = (external::NAME, application.external.ca.display());
    let only_the_caller = only_the_caller();
    format!(
        "http {{\n{HTTP}{}{admitting}  server {{ listen {originated} ssl; {only_the_caller} location / {{ \
         proxy_pass https://outside; proxy_ssl_server_name on; proxy_ssl_name {name}; proxy_ssl_verify on; \
         proxy_ssl_trusted_certificate {ca}; proxy_ssl_protocols TLSv1.3; }} }}\n}}\n\
         stream {{\n{}{admitting}  server {{ listen {passed} ssl; proxy_pass $admitted; }}\n}}\n",
        pool("outside", application.https),
        admitted(application.https)
    )
}

fn pool(name: &str, to: SocketAddr) -> String {
    format!(
        "  upstream {name} {{ server {to} max_conns=65536 max_fails=5 fail_timeout=30s; keepalive {POOL}; \
         keepalive_timeout 1h; keepalive_requests 1000000000; }}\n"
    )
}

/// TLS to others of the mesh, by `proxy_` or `grpc_` directives: the application's side, unless a server is told otherwise.
fn calling(prefix: &str, identities: &Identities) -> String {
    let Identities { ca, client, .. } = identities;
    let directives = [
        format!("certificate {}", client.cert.display()),
        format!("certificate_key {}", client.key.display()),
        format!("trusted_certificate {}", ca.display()),
        "verify on".to_owned(),
        format!("name {}", identities::SERVER),
        "server_name on".to_owned(),
        "protocols TLSv1.3".to_owned(),
        "conf_command Ciphersuites TLS_AES_128_GCM_SHA256".to_owned(),
    ];
    directives.iter().map(|directive| format!("  {prefix}_ssl_{directive};\n")).collect()
}

/// TLS of callers from the mesh.
fn admitting(own: &Identity, identities: &Identities) -> String {
    let directives = [
        format!("certificate {}", own.cert.display()),
        format!("certificate_key {}", own.key.display()),
        format!("client_certificate {}", identities.ca.display()),
        "verify_client on".to_owned(),
        "protocols TLSv1.3".to_owned(),
        "conf_command Ciphersuites TLS_AES_128_GCM_SHA256".to_owned(),
    ];
    directives.iter().map(|directive| format!("  ssl_{directive};\n")).collect()
}

fn subject() -> String {
    format!("CN={}", identities::CLIENT)
}

fn only_the_caller() -> String {
    format!("if ($ssl_client_s_dn != '{}') {{ return 403; }}", subject())
}

/// Where bytes of the one go who may call; those of others go nowhere.
fn admitted(to: SocketAddr) -> String {
    format!("  map $ssl_client_s_dn $admitted {{ '{}' {to}; }}\n", subject())
}

#[cfg(test)]
mod tests {
    use super::{client, egress, load_stream, server};
    use crate::peer::Ports;
    use crate::peer::fixtures::{application, identities};

    #[test]
    fn each_service_has_a_pool_and_a_host() {
        let config = client(&identities(), &Ports::from(1_000), 7);
        assert_eq!(config.matches("  upstream ").count(), 3 + 7);
        assert_eq!(config.matches("server_name other-").count(), 7);
    }

    #[test]
    fn nothing_of_the_mesh_is_called_without_a_certificate_and_its_name() {
        let config = client(&identities(), &Ports::from(1_000), 1);
        // HTTP, gRPC and bytes.
        for (prefix, times) in [("proxy", 2), ("grpc", 1)] {
            for directive in
                ["certificate /client.pem", "trusted_certificate /ca.pem", "verify on", "name bench-server"]
            {
                assert_eq!(
                    config.matches(&format!("  {prefix}_ssl_{directive};")).count(),
                    times,
                    "{directive}"
                );
            }
        }
        assert!(!config.contains("http://") && !config.contains("grpc://"));
    }

    #[test]
    fn nobody_is_admitted_without_a_certificate_and_the_callers_name() {
        let server = server(&identities(), &Ports::from(1_000), &application());
        let egress = egress(&identities(), &Ports::from(1_000), &application());
        for (config, listeners) in [(server, 3), (egress, 2)] {
            let listens: Vec<_> = config.lines().filter(|line| line.contains("listen ")).collect();
            assert_eq!(listens.len(), listeners);
            for listen in listens {
                assert!(listen.contains(" ssl"), "{listen}");
                assert!(
                    listen.contains("'CN=bench-client'") || listen.contains("proxy_pass $admitted"),
                    "{listen}"
                );
            }
            assert!(config.contains("map $ssl_client_s_dn $admitted { 'CN=bench-client' "));
            assert_eq!(config.matches("ssl_verify_client on;").count(), 2);
        }
    }

    #[test]
    fn the_stream_module_is_built_in_or_loaded_or_missed() {
        let folder = tempfile::tempdir().unwrap();
        let built = format!("--with-stream=dynamic --modules-path={}", folder.path().display());
        assert_eq!(load_stream("configure arguments: --with-stream --with-x").unwrap(), None);
        assert!(load_stream("--with-stream_ssl_module").unwrap_err().to_string().contains("stream module"));
        assert!(load_stream(&built).unwrap_err().to_string().contains("libnginx-mod-stream"));
        let module = folder.path().join("ngx_stream_module.so");
        std::fs::write(&module, "").unwrap();
        assert_eq!(load_stream(&built).unwrap(), Some(format!("load_module {};\n", module.display())));
    }
}
