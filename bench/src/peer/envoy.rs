//! Envoy as a mesh would configure it: the same work, told in its own words.

use super::identities::{self, Identities, Identity, spiffe};
use super::{Application, Ports, Role, Stack, entry, local, pair, version};
use crate::cases::Case;
use crate::external;
use crate::process::Process;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// What travels between the two Envoys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Between {
    /// What the client speaks, over pooled connections: what Kuma configures.
    Same,
    /// HTTP/2 always: one connection for all.
    Http2,
}

/// Of each mode.
const FIRST_PORTS: [u16; 2] = [26_201, 26_221];

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
    let [same, http2] = FIRST_PORTS.map(Ports::from);
    let (name, ports) = match between {
        Between::Same => ("envoy", same),
        Between::Http2 => ("envoy-h2", http2),
    };
    let folder = &folder.join(name);
    fs::create_dir_all(folder)?;
    let identities = &Identities::make(folder)?;
    let begin = |role: Role| -> Result<Process> {
        let first = ports.first(role);
        let side = Side { identities, between, first };
        let config = match role {
            Role::Client => side.client(&ports, services),
            Role::Server => side.server(application),
            Role::Egress => side.egress(application),
        };
        let role = role.name();
        let file = folder.join(format!("{role}.json"));
        fs::write(&file, serde_json::to_string_pretty(&config)?)?;
        // The base ID must be one of its own; a port is.
        let (file, id) = (file.display().to_string(), first.to_string());
        let words =
            ["-c", &file, "--concurrency", "1", "--base-id", &id, "-l", "warn", "--disable-hot-restart"];
        Process::start(&format!("{name}-{role}"), &program, &words, folder)
    };
    let (pair, egress) = pair(&ports, between == Between::Same, begin)?;
    Ok(Stack {
        name,
        version: version(&program, "--version")?,
        entry: entry(ports.client),
        pair,
        egress,
        external_ca: application.external.ca.clone(),
        left_out: match between {
            Between::Same => |_| None,
            Between::Http2 => only_both_modes,
        },
        _others: Vec::new(),
    })
}

fn only_both_modes(case: &Case) -> Option<&'static str> {
    (!case.both_modes).then_some("this mode is told of where HTTP/1.1 connections stay")
}

impl Identities {
    /// TLS 1.3 only, and the other side's SPIFFE ID checked.
    fn common(&self, own: &Identity, peer: &str, alpn: &[&str]) -> Value {
        json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": own.cert}, "private_key": {"filename": own.key}}],
            "validation_context": {
                "trusted_ca": {"filename": self.ca},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": spiffe(peer)}}]
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
    fn client(&self, ports: &Ports, services: usize) -> Value {
        let (inward, outward) = (ports.server, ports.egress);
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
            let peer = if is_out { identities::EGRESS } else { identities::SERVER };
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
    fn mesh_tls(&self, own: &Identity, alpn: &[&str]) -> Value {
        json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": self.identities.common(own, identities::CLIENT, alpn)
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
            "principals": [{"authenticated": {"principal_name": {"exact": spiffe(identities::CLIENT)}}}]
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
