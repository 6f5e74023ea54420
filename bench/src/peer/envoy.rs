//! Envoy as a mesh would configure it: the same work, told in its own words.

use super::{Application, Stack, entry, local, version};
use crate::external;
use crate::process::Process;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What travels between the two Envoys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Between {
    /// What the client speaks, over pooled connections: what Kuma configures.
    Same,
    /// HTTP/2 always: one connection for all.
    Http2,
}

/// Of the client side; the server's follow, and the other mode's.
const FIRST: u16 = 26_201;
const CLIENT_ID: &str = "spiffe://default/bench-client";
const SERVER_ID: &str = "spiffe://default/bench-server";
const EGRESS_ID: &str = "spiffe://default/bench-egress";

pub(super) fn start(
    program: &Path,
    folder: &Path,
    application: &Application,
    between: Between,
    services: usize,
) -> Result<Stack> {
    let program = program
        .canonicalize()
        .with_context(|| format!("{}: no Envoy there; `make bench` installs one", program.display()))?;
    let (name, offset) = match between {
        Between::Same => ("envoy", 0),
        Between::Http2 => ("envoy-h2", 20),
    };
    let folder = &folder.join(name);
    fs::create_dir_all(folder)?;
    let identities = Identities::make(folder)?;
    let (out, inward) = (FIRST + offset, FIRST + offset + 10);
    let outward = inward + 5;
    let client = Side { identities: &identities, between, first: out };
    let client = client.client(inward, outward, services);
    let server = Side { identities: &identities, between, first: inward }.server(application);
    let begin = |role: &str, id: u16, config: &Value| -> Result<Process> {
        let file = folder.join(format!("{role}.json"));
        fs::write(&file, serde_json::to_string_pretty(config)?)?;
        let (file, id) = (file.display().to_string(), (id + offset).to_string());
        let words =
            ["-c", &file, "--concurrency", "1", "--base-id", &id, "-l", "warn", "--disable-hot-restart"];
        Process::start(&format!("{name}-{role}"), &program, &words, folder)
    };
    let mut server = begin("server", 2, &server)?;
    server.wait_listening(local(inward))?;
    let egress = match between {
        Between::Http2 => None,
        Between::Same => {
            let config = Side { identities: &identities, between, first: outward }.egress(application);
            let mut egress = begin("egress", 3, &config)?;
            egress.wait_listening(local(outward))?;
            Some(egress)
        }
    };
    let mut client = begin("client", 1, &client)?;
    client.wait_listening(local(out))?;
    let version = version(&program)?;
    let external_ca = application.external.ca.clone();
    Ok(Stack {
        name,
        version,
        entry: entry(out),
        pair: [client, server],
        egress,
        external_ca,
        _others: Vec::new(),
    })
}

/// Files of a CA, and of two identities.
struct Identities {
    ca: PathBuf,
    client: (PathBuf, PathBuf),
    server: (PathBuf, PathBuf),
    egress: (PathBuf, PathBuf),
}

impl Identities {
    fn make(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "bench");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca = folder.join("ca.pem");
        fs::write(&ca, issuer.pem())?;
        let issue = |name: &str, id: &str| -> Result<(PathBuf, PathBuf)> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
            let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
            fs::write(&files.0, params.signed_by(&key, &issuer)?.pem())?;
            fs::write(&files.1, key.serialize_pem())?;
            Ok(files)
        };
        Ok(Self {
            client: issue("client", CLIENT_ID)?,
            server: issue("server", SERVER_ID)?,
            egress: issue("egress", EGRESS_ID)?,
            ca: ca.clone(),
        })
    }

    /// TLS 1.3 only, and the other side's SPIFFE ID checked.
    fn common(&self, own: &(PathBuf, PathBuf), peer: &str, alpn: &[&str]) -> Value {
        json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": own.0}, "private_key": {"filename": own.1}}],
            "validation_context": {
                "trusted_ca": {"filename": self.ca},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}]
            },
            "alpn_protocols": alpn
        })
    }
}

struct Side<'a> {
    identities: &'a Identities,
    between: Between,
    first: u16,
}

impl Side<'_> {
    fn client(&self, inward: u16, outward: u16, services: usize) -> Value {
        let others: Vec<String> = (0..services).map(|number| format!("other-{number}")).collect();
        let listeners = json!([
            listener(
                "http1",
                local(self.first),
                None,
                manager_with("http1", "http1", &others, retries(), &[])
            ),
            listener("http2", local(self.first + 1), None, manager("http2", "http2", retries(), &[])),
            listener("tcp", local(self.first + 2), None, vec![tcp_proxy("tcp")]),
            listener(
                "originated",
                local(self.first + 3),
                None,
                manager("originated", "originated", retries(), &[])
            ),
            listener("passed", local(self.first + 4), None, vec![tcp_proxy("passed")]),
        ]);
        let cluster = |name: &str, port: u16, http: Option<bool>| {
            let is_out = port == outward || port == outward + 1;
            let peer = if is_out { EGRESS_ID } else { SERVER_ID };
            let mut cluster = cluster(name, local(port), http);
            let alpn: &[&str] = match http {
                None => &[],
                Some(true) => &["h2"],
                Some(false) => &["http/1.1"],
            };
            let context = json!({
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": self.identities.common(&self.identities.client, peer, alpn),
                "sni": "bench"
            });
            set(&mut cluster, "transport_socket", json!({"name": "tls", "typed_config": context}));
            set(&mut cluster, "outlier_detection", outlier_detection());
            cluster
        };
        let multiplexed = self.between == Between::Http2;
        let called = [
            cluster("http1", inward, Some(multiplexed)),
            cluster("http2", inward + 1, Some(true)),
            cluster("tcp", inward + 2, None),
            cluster("originated", outward, Some(multiplexed)),
            cluster("passed", outward + 1, None),
        ];
        let others = others.iter().map(|name| cluster(name, inward, Some(multiplexed)));
        let clusters: Vec<Value> = called.into_iter().chain(others).collect();
        json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
    }

    /// What callers from the mesh are met with.
    fn mesh_tls(&self, own: &(PathBuf, PathBuf), alpn: &[&str]) -> Value {
        json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": self.identities.common(own, CLIENT_ID, alpn)
            }
        })
    }

    /// One listener originates TLS and holds the host to its name, the other passes bytes on.
    fn egress(&self, application: &Application) -> Value {
        let tls = |alpn: &[&str]| Some(self.mesh_tls(&self.identities.egress, alpn));
        let http = manager("originated", "originated", json!({}), &[rbac()]);
        let listeners = json!([
            listener("originated", local(self.first), tls(&["h2", "http/1.1"]), http),
            listener("passed", local(self.first + 1), tls(&[]), vec![network_rbac(), tcp_proxy("passed")]),
        ]);
        let mut originated = cluster("originated", application.https, Some(false));
        let context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context": {
                "trusted_ca": {"filename": application.external.ca},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": external::NAME}}]
            }},
            "sni": external::NAME
        });
        set(&mut originated, "transport_socket", json!({"name": "tls", "typed_config": context}));
        set(&mut originated, "outlier_detection", outlier_detection());
        let clusters = [originated, cluster("passed", application.https, None)];
        json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
    }

    fn server(&self, application: &Application) -> Value {
        let tls = |alpn: &[&str]| self.mesh_tls(&self.identities.server, alpn);
        let http = |name: &str, port: u16| {
            listener(
                name,
                local(port),
                Some(tls(&["h2", "http/1.1"])),
                manager(name, name, json!({}), &[rbac()]),
            )
        };
        let tcp = vec![network_rbac(), tcp_proxy("tcp")];
        let listeners = json!([
            http("http1", self.first),
            http("http2", self.first + 1),
            listener("tcp", local(self.first + 2), Some(tls(&[])), tcp),
        ]);
        let clusters = [
            cluster("http1", application.http1, Some(false)),
            cluster("http2", application.http2, Some(true)),
            cluster("tcp", application.tcp, None),
        ];
        json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
    }
}

fn set(value: &mut Value, key: &str, to: Value) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.to_owned(), to);
    }
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn listener(name: &str, at: SocketAddr, tls: Option<Value>, filters: Vec<Value>) -> Value {
    let mut chain = json!({"filters": filters});
    if let Some(tls) = tls {
        set(&mut chain, "transport_socket", tls);
    }
    json!({"name": name, "address": address(at), "filter_chains": [chain]})
}

fn cluster(name: &str, to: SocketAddr, http2: Option<bool>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [
            {"max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536, "max_retries": 65536}
        ]},
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(to)}}]}
        ]}
    });
    if let Some(http2) = http2 {
        let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
        set(
            &mut cluster,
            "typed_extension_protocol_options",
            json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {protocol: {}}
                }
            }),
        );
    }
    cluster
}

fn outlier_detection() -> Value {
    json!({"consecutive_5xx": 5, "interval": "10s", "base_ejection_time": "30s", "max_ejection_percent": 50})
}

fn retries() -> Value {
    json!({
        "retry_on": "gateway-error,connect-failure,refused-stream",
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"}
    })
}

fn manager(name: &str, cluster: &str, retries: Value, filters: &[Value]) -> Vec<Value> {
    manager_with(name, cluster, &[], retries, filters)
}

/// With hosts of the names of `others`, each of which leads to its cluster.
fn manager_with(
    name: &str,
    cluster: &str,
    others: &[String],
    retries: Value,
    filters: &[Value],
) -> Vec<Value> {
    let host = |name: &str, domain: &str, cluster: &str| {
        let mut route = json!({"cluster": cluster, "timeout": "15s"});
        if retries.as_object().is_some_and(|retries| !retries.is_empty()) {
            set(&mut route, "retry_policy", retries.clone());
        }
        json!({"name": name, "domains": [domain], "routes": [{"match": {"prefix": "/"}, "route": route}]})
    };
    let others = others.iter().map(|other| host(other, other, other));
    let hosts: Vec<Value> = [host("all", "*", cluster)].into_iter().chain(others).collect();
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    });
    let filters: Vec<Value> = filters.iter().cloned().chain([router]).collect();
    vec![json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "AUTO",
            "common_http_protocol_options": {"idle_timeout": "3600s"},
            "route_config": {"virtual_hosts": hosts},
            "http_filters": filters
        }
    })]
}

fn policies() -> Value {
    json!({
        "action": "ALLOW",
        "policies": {"bench": {
            "permissions": [{"any": true}],
            "principals": [{"authenticated": {"principal_name": {"exact": CLIENT_ID}}}]
        }}
    })
}

fn rbac() -> Value {
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": policies()}
    })
}

fn network_rbac() -> Value {
    json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "tcp",
            "rules": policies()
        }
    })
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tcp",
            "cluster": cluster
        }
    })
}
