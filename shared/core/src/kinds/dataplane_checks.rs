//! What makes a Dataplane valid, in Kuma's order and words.

use super::dataplane::{
    BACKENDS, BackendRef, EGRESS_SERVICE, Gateway, GatewayType, Inbound, Listener, Networking, Outbound,
    Probes, ServiceProbe, TransparentProxying,
};
use crate::duration::ProtoDuration;
use crate::validate::{self, PROTOCOLS, Tags};
use crate::{Violations, labels, names};
use std::collections::BTreeSet;
use std::net::IpAddr;

const NOT_AN_ADDRESS: &str = "address has to be valid IP address";

impl Networking {
    /// The address that an inbound listens on.
    fn inbound_address<'a>(&'a self, inbound: &'a Inbound) -> &'a str {
        if inbound.address.is_empty() { &self.address } else { &inbound.address }
    }

    pub(super) fn check_admin(&self, out: &mut Violations) {
        let Some(admin) = &self.admin else {
            return;
        };
        let clashes = |address: &str, port: u32| validate::clashes_on_loopback(admin.port, address, port);
        let path = "networking.admin.port";
        let inbound = |inbound: &Inbound| {
            let address = self.inbound_address(inbound);
            let service = if inbound.service_address.is_empty() { address } else { &inbound.service_address };
            let service_port = if inbound.service_port == 0 { inbound.port } else { inbound.service_port };
            clashes(address, inbound.port) || clashes(service, service_port)
        };
        if self.inbound.iter().any(inbound) {
            out.push(path, "must differ from inbound");
        }
        let outbound = |outbound: &Outbound| {
            let address = if outbound.address.is_empty() { "127.0.0.1" } else { &outbound.address };
            clashes(address, outbound.port)
        };
        if self.outbound.iter().any(outbound) {
            out.push(path, "must differ from outbound");
        }
    }

    pub(super) fn check_gateway(&self, kind: GatewayType, out: &mut Violations) {
        let kind_name = match kind {
            GatewayType::Delegated => "delegated",
            GatewayType::Builtin => "builtin",
        };
        if !self.inbound.is_empty() {
            out.push("networking.inbound", format!("inbound cannot be defined for {kind_name} gateways"));
        }
        if kind == GatewayType::Builtin && !self.outbound.is_empty() {
            out.push("networking.outbound", "outbound cannot be defined for builtin gateways");
        }
        if !self.listeners.is_empty() {
            out.push("networking.listeners", format!("listeners cannot be defined for {kind_name} gateways"));
        }
        if let Some(gateway) = &self.gateway {
            gateway.check(out);
        }
    }

    pub(super) fn check(&self, out: &mut Violations) {
        validate::proxy_address("networking.address", &self.address, out);
        if !self.advertised_address.is_empty() {
            validate::proxy_address("networking.advertisedAddress", &self.advertised_address, out);
        }
        for (i, inbound) in self.inbound.iter().enumerate() {
            inbound.check(&format!("networking.inbound[{i}]"), &self.address, out);
        }
        for (i, outbound) in self.outbound.iter().enumerate() {
            outbound.check(&format!("networking.outbound[{i}]"), out);
        }
        if let Some(proxying) = &self.transparent_proxying {
            proxying.check(out);
        }
        if self.gateway.is_none() {
            self.check_listeners(out);
        }
    }

    fn check_listeners(&self, out: &mut Violations) {
        let mut names: BTreeSet<String> =
            self.inbound.iter().map(|inbound| inbound.name.clone()).filter(|name| !name.is_empty()).collect();
        for (i, listener) in self.listeners.iter().enumerate() {
            let path = format!("networking.listeners[{i}]");
            validate::proxy_address(&format!("{path}.address"), &listener.address, out);
            validate::port(&format!("{path}.port"), listener.port, out);
            if !names.insert(listener.effective_name()) {
                let reason = format!(
                    "name {:?} must be unique across inbounds and listeners",
                    listener.effective_name()
                );
                out.push(format!("{path}.name"), reason);
            }
            let place = format!("{}:{}", listener.address, listener.port);
            let earlier =
                self.listeners.iter().take(i).find(|other| other.is_at(&listener.address, listener.port));
            match earlier {
                Some(other) if other.type_ == listener.type_ => {
                    out.push(
                        path.as_str(),
                        format!("address:port {place} is already used by another listener"),
                    );
                }
                Some(_) => {
                    out.push(
                        path.as_str(),
                        format!("address:port {place} is used by listeners of different types"),
                    );
                }
                None => {}
            }
            let taken = |inbound: &Inbound| {
                inbound.port == listener.port && self.inbound_address(inbound) == listener.address
            };
            if self.inbound.iter().any(taken) {
                out.push(path, format!("address:port {place} collides with an inbound listener"));
            }
        }
    }
}

impl Listener {
    fn effective_name(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }

    fn is_at(&self, address: &str, port: u32) -> bool {
        self.address == address && self.port == port
    }
}

impl Gateway {
    fn check(&self, out: &mut Violations) {
        let path = "networking.gateway.tags";
        if let Some(protocol) = self.tags.get(labels::PROTOCOL).filter(|protocol| *protocol != "tcp") {
            out.push(
                format!("{path}[{:?}]", labels::PROTOCOL),
                format!("other values than tcp are not allowed, provided value \"{protocol}\""),
            );
        }
        Tags { require_service: true, ..Tags::default() }.check(path, &self.tags, out);
        reserved_service(path, self.tags.get(labels::SERVICE), out);
    }
}

fn reserved_service(path: &str, service: Option<&String>, out: &mut Violations) {
    if service.is_some_and(|service| service == EGRESS_SERVICE) {
        out.push(
            format!("{path}[{:?}]", labels::SERVICE),
            format!("{EGRESS_SERVICE:?} is the zone egresses' name"),
        );
    }
}

impl Inbound {
    fn check(&self, path: &str, dataplane_address: &str, out: &mut Violations) {
        validate::port(&format!("{path}.port"), self.port, out);
        if self.service_port != 0 {
            validate::port(&format!("{path}.servicePort"), self.service_port, out);
        }
        let same_port = self.service_port == 0 || self.service_port == self.port;
        let mut loops = |address: &str| {
            if !address.is_empty() && address == self.service_address && same_port {
                out.push(
                    format!("{path}.serviceAddress"),
                    "serviceAddress and servicePort has to differ from address and port",
                );
            }
        };
        loops(dataplane_address);
        loops(&self.address);
        if !self.service_address.is_empty() && self.service_address.parse::<IpAddr>().is_err() {
            out.push(format!("{path}.serviceAddress"), "serviceAddress has to be valid IP address");
        }
        if !self.address.is_empty() && self.address.parse::<IpAddr>().is_err() {
            out.push(format!("{path}.address"), NOT_AN_ADDRESS);
        }
        let tags = format!("{path}.tags");
        validate::protocol_tag(&tags, &self.tags, out);
        Tags::default().check(&tags, &self.tags, out);
        if self.service().is_none() {
            out.push(format!("{tags}[{:?}]", labels::SERVICE), "tag has to exist");
        }
        reserved_service(&tags, self.tags.get(labels::SERVICE), out);
        if !self.protocol.is_empty() && !PROTOCOLS.contains(&self.protocol.as_str()) {
            out.push(format!("{path}.protocol"), validate::one_of("protocol", &PROTOCOLS));
        }
        if let Some(probe) = &self.service_probe {
            probe.check(&format!("{path}.serviceProbe"), out);
        }
    }
}

impl ServiceProbe {
    fn check(&self, path: &str, out: &mut Violations) {
        for (name, duration) in [("interval", self.interval), ("timeout", self.timeout)] {
            if duration == Some(ProtoDuration::default()) {
                out.push(format!("{path}.{name}"), "must have a positive value");
            }
        }
        let thresholds =
            [("unhealthyThreshold", self.unhealthy_threshold), ("healthyThreshold", self.healthy_threshold)];
        for (name, threshold) in thresholds {
            if threshold == Some(0) {
                out.push(format!("{path}.{name}"), "must have a positive value");
            }
        }
    }
}

impl Outbound {
    fn check(&self, path: &str, out: &mut Violations) {
        validate::port(&format!("{path}.port"), self.port, out);
        if !self.address.is_empty() && self.address.parse::<IpAddr>().is_err() {
            out.push(format!("{path}.address"), NOT_AN_ADDRESS);
        }
        match &self.backend_ref {
            Some(backend) => {
                backend.check(&format!("{path}.backendRef"), out);
                if !self.tags.is_empty() {
                    out.push(
                        format!("{path}.backendRef"),
                        "both backendRef and tags/service cannot be defined",
                    );
                }
            }
            None => {
                Tags { require_service: true, ..Tags::default() }.check(
                    &format!("{path}.tags"),
                    &self.tags,
                    out,
                );
            }
        }
    }
}

fn backend_kind(path: &str, kind: &str, out: &mut Violations) {
    if !BACKENDS.contains(&kind) {
        out.push(
            format!("{path}.kind"),
            format!("invalid value. Available values are: {}", BACKENDS.join(",")),
        );
    }
}

impl BackendRef {
    fn check(&self, path: &str, out: &mut Violations) {
        backend_kind(path, &self.kind, out);
        if self.name.is_empty() && self.labels.is_empty() {
            out.push(path, "either 'name' or 'labels' should be specified");
        }
        // A MeshExternalService has one port.
        if self.kind != "MeshExternalService" {
            validate::port(&format!("{path}.port"), self.port, out);
        }
    }
}

impl TransparentProxying {
    fn check(&self, out: &mut Violations) {
        let refs = self.reachable_backends.iter().flat_map(|backends| &backends.refs);
        for (i, backend) in refs.enumerate() {
            // Kuma's spelling.
            let path = format!("networking.transparentProxing.reachableBackends.refs[{i}]");
            backend_kind(&path, &backend.kind, out);
            let name = format!("{path}.name");
            match (backend.name.as_str(), backend.namespace.as_str()) {
                ("", "") if backend.labels.is_empty() => out.push(name, "name or labels are required"),
                ("", namespace) if !namespace.is_empty() => {
                    out.push(name, "name is required, when namespace is defined");
                }
                (given, _) if !given.is_empty() && !names::is_subdomain(given) => {
                    out.push(name, names::NOT_A_SUBDOMAIN);
                }
                _ => {}
            }
            let named = !backend.name.is_empty() || !backend.namespace.is_empty();
            if named && !backend.labels.is_empty() {
                out.push(format!("{path}.labels"), "labels cannot be defined when name is specified");
            }
        }
    }
}

impl Probes {
    pub(super) fn check(&self, out: &mut Violations) {
        validate::port("probes.port", self.port, out);
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let path = format!("probes.endpoints[{i}]");
            validate::port(&format!("{path}.inboundPort"), endpoint.inbound_port, out);
            for (name, value) in [("inboundPath", &endpoint.inbound_path), ("path", &endpoint.path)] {
                if !value.starts_with('/') {
                    out.push(format!("{path}.{name}"), "should be a valid URL Path");
                }
            }
        }
    }
}
