use super::data_source::{self, DataSource};
use super::is_false;
use crate::registry::Standing::{Executed, Refused, Warned};
use crate::validate::{self, Tags};
use crate::{Context, Format, Kind, KindInfo, Spec, Violations, labels};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A host outside of the mesh that workloads may reach by its real name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ExternalService {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,
    /// `kuma.io/service`, `kuma.io/protocol`; `kuma.io/zone` pins it to a zone's egress.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Networking {
    /// `host:port`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    #[serde(rename = "disableHostDNSEntry", skip_serializing_if = "is_false")]
    pub disable_host_dns_entry: bool,
    /// Addresses that are not public but may be the host's, in CIDR notation. Meridian's own field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::cidrs")]
    pub allowed_addresses: Vec<IpNet>,
}

/// TLS that the egress originates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tls {
    #[serde(skip_serializing_if = "is_false")]
    pub enabled: bool,
    /// Whom to believe; unset: the egress host's roots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<DataSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<DataSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<DataSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_renegotiation: Option<bool>,
    /// SNI and name to verify; unset: the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_hostname_verification: Option<bool>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "external-services",
    aliases: &["externalservices"],
    short: "es",
    format: Format::Legacy,
    doc: "A host outside of the mesh that workloads may reach by its real name.",
    fields: &[
        ("networking.address", Executed),
        ("networking.disableHostDNSEntry", Executed),
        ("networking.allowedAddresses", Executed),
        ("networking.tls.enabled", Executed),
        ("networking.tls.caCert", Executed),
        ("networking.tls.caCert.file", Refused(data_source::NO_FILE)),
        ("networking.tls.clientCert", Executed),
        ("networking.tls.clientCert.file", Refused(data_source::NO_FILE)),
        ("networking.tls.clientKey", Executed),
        ("networking.tls.clientKey.file", Refused(data_source::NO_FILE)),
        ("networking.tls.serverName", Executed),
        ("networking.tls.skipHostnameVerification", Executed),
        ("networking.tls.allowRenegotiation", Warned("TLS renegotiation is never done")),
        ("tags", Executed),
    ],
    ..KindInfo::new::<ExternalService>()
};

impl ExternalService {
    pub const KIND: Kind = Kind::new("ExternalService");

    /// Host (without brackets) and port, for one that passed its check.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = split(&self.networking.as_ref()?.address);
        Some((host, port?.parse().ok()?))
    }

    pub fn service(&self) -> Option<&str> {
        self.tags.get(labels::SERVICE).map(String::as_str)
    }

    /// The zone it is pinned to.
    pub fn zone(&self) -> Option<&str> {
        self.tags.get(labels::ZONE).map(String::as_str)
    }

    /// http, http2, grpc, kafka or tcp.
    pub fn protocol(&self) -> &str {
        self.tags.get(labels::PROTOCOL).map_or("tcp", String::as_str)
    }
}

impl Spec for ExternalService {
    const KIND: Kind = ExternalService::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        match &self.networking {
            None => out.push("networking", "should have networking"),
            Some(networking) => {
                check_address(&networking.address, out);
                if let Some(tls) = &networking.tls {
                    tls.check(out);
                }
            }
        }
        validate::protocol_tag("tags", &self.tags, out);
        Tags { require_service: true, ..Tags::default() }.check("tags", &self.tags, out);
        let host = self.networking.as_ref().map_or("", |networking| split(&networking.address).0);
        if !host.is_empty() && self.service() == Some(host) {
            out.push(format!("tags[{:?}]", labels::SERVICE), "cannot be the same as networking.address");
        }
    }
}

impl Tls {
    fn check(&self, out: &mut Violations) {
        if self.server_name.as_deref() == Some("") {
            out.push("networking.tls.serverName", "cannot be empty");
        }
        let sources =
            [("caCert", &self.ca_cert), ("clientCert", &self.client_cert), ("clientKey", &self.client_key)];
        for (name, source) in sources {
            if let Some(source) = source {
                source.check(&format!("networking.tls.{name}"), out);
            }
        }
        match (&self.client_cert, &self.client_key) {
            (Some(_), None) => {
                out.push("networking.tls.clientKey", "must be defined when clientCert is defined")
            }
            (None, Some(_)) => {
                out.push("networking.tls.clientCert", "must be defined when clientKey is defined")
            }
            _ => {}
        }
    }
}

/// Kuma says four things of an address that it can't take apart; so do we.
fn check_address(address: &str, out: &mut Violations) {
    let path = "networking.address";
    if address.is_empty() {
        return out.push(path, "address can't be empty");
    }
    let (host, port) = split(address);
    if port.is_none() {
        out.push(path, "unable to parse address");
    }
    if !validate::is_address(host) {
        out.push(path, "address has to be a valid IP address or a domain name");
    }
    let number: Option<u32> = port.and_then(|port| port.parse().ok());
    if number.is_none() {
        out.push(path, "unable to parse port in address");
    }
    validate::port(path, number.unwrap_or_default(), out);
}

/// `host:port`, `[v6]:port`; the port is `None`, and the host empty, if it is neither.
fn split(address: &str) -> (&str, Option<&str>) {
    let Some((host, port)) = address.rsplit_once(':') else {
        return ("", None);
    };
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return (inner, Some(port));
    }
    if host.contains([':', '[', ']']) { ("", None) } else { (host, Some(port)) }
}
