//! What is one proxy's own: its settings, inbounds, explicit outbounds, and what MeshPassthrough lets it reach.

use super::external::{NO_EGRESS, passthrough_sni, through_egress};
use super::routes::EGRESSES;
use super::services::{destination_name, host_owner, legacy_name, tag};
use super::several_zones::Legacy;
use super::{Compiled, Inputs, multi_zone, normal_name, policies, port, protocol};
use crate::picture::{MeshPicture, Picture, subject};
use crate::vip::Owner;
use ipnet::IpNet;
use meridian_core::duration::ProtoDuration;
use meridian_core::kinds::dataplane::{self, Dataplane, InboundState, IpFamilyMode};
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_passthrough::{MatchType, Protocol as PassthroughProtocol};
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_core::{Key, labels};
use meridian_policy::{Parsed, Passthrough, PassthroughEntry, inbound_permission, passthrough};
use meridian_proxy_config::{
    AddressPolicy, Caller, CallerMode, Capture, DnsSettings, Entry, EntryKind, EntryPolicies, External,
    HostMatch, Inbound, Outbound, Permission, Probe, Protocol, Proxy, Role, Target, Unlisted, Via,
    canonical_net, types,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// An unknown captured connection is read for so long before it counts as TCP.
const DETECT_TIMEOUT_MILLIS: u64 = 300;
/// Where captured DNS is answered.
const DNS_PORT: u16 = 15053;

pub(crate) fn owners(picture: &Picture, key: &Key) -> BTreeSet<Owner> {
    let entries = passthrough_of(picture, key).map(|(_, it)| it.entries).unwrap_or_default();
    // Names below a wildcard get theirs from the sidecar that is asked for them.
    let domains = entries
        .into_iter()
        .filter(|entry| entry.match_.type_ == MatchType::Domain && !entry.match_.value.contains('*'));
    domains.map(|entry| host_owner(&key.mesh, &normal_name(&entry.match_.value))).collect()
}

fn passthrough_of<'a>(picture: &'a Picture, key: &Key) -> Option<(&'a Parsed<Dataplane>, Passthrough)> {
    let mesh = picture.mesh(&key.mesh)?;
    let dataplane = mesh.dataplane(key)?;
    Some((dataplane, passthrough(mesh.spec()?, &subject(dataplane), &mesh.passthroughs)))
}

/// A sidecar's own resources.
pub(crate) fn dataplane(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let Some((dataplane, passthrough)) = passthrough_of(picture, key) else { return };
    let Some(networking) = &dataplane.spec.networking else { return };
    let sessions = policies::tls::sessions(mesh, dataplane, out).filter(|_| mesh.mtls());
    let mut proxy = sidecar(picture, mesh, dataplane, &passthrough);
    proxy.sessions.extend(sessions.map(|terms| (key.mesh.clone(), terms)));
    out.push(key, types::PROXY, "self", &proxy);
    if let Some(trace) = policies::trace(mesh, dataplane, out) {
        out.push(key, types::TRACE, "self", &trace);
    }
    let mut names = BTreeSet::new();
    for inbound in networking.inbound.iter().filter(|inbound| inbound.state != InboundState::Ignored) {
        let compiled = compile_inbound(mesh, dataplane, networking, inbound, out);
        if names.insert(compiled.name.clone()) {
            out.push(key, types::INBOUND, &compiled.name.clone(), &compiled);
        } else {
            out.problem(key, format!("two inbounds are named {}: only the first is used", compiled.name));
        }
    }
    for explicit in &networking.outbound {
        match explicit_target(picture, mesh, explicit) {
            Ok(target) => {
                let address = explicit.address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
                let bind = SocketAddr::new(address, port(explicit.port));
                let outbound =
                    Outbound { bind: Some(bind), vips: vec![], port: bind.port(), hostnames: vec![], target };
                out.push(key, types::OUTBOUND, &format!("explicit/{bind}"), &outbound);
            }
            Err(reason) => out.problem(key, format!("outbound on port {}: {reason}", explicit.port)),
        }
    }
    if let Some(metrics) = policies::metrics(mesh, dataplane, out) {
        out.push(key, types::METRICS, "self", &metrics);
    }
    passthrough_externals(inputs, mesh, key, &passthrough, out);
}

fn sidecar(
    picture: &Picture,
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    passthrough: &Passthrough,
) -> Proxy {
    let key = &dataplane.resource.key;
    let networking = dataplane.spec.networking.as_ref();
    let service = networking.and_then(|it| it.inbound.first()).and_then(|inbound| inbound.service());
    let gateway =
        networking.and_then(|it| it.gateway.as_ref()?.tags.get(labels::SERVICE)).map(String::as_str);
    let transparent = networking.and_then(|it| it.transparent_proxying.as_ref());
    let capture = transparent.filter(|it| it.redirect_port_outbound != 0).map(|it| Capture {
        outbound_port: port(it.redirect_port_outbound),
        inbound_port: port(it.redirect_port_inbound),
    });
    let unlisted = unlisted(picture, mesh, key, passthrough.mode);
    Proxy {
        role: Role::Sidecar,
        mesh: key.mesh.clone(),
        name: key.name.clone(),
        zone: picture.zone.clone(),
        service: service.or(gateway).unwrap_or_default().to_owned(),
        listen: None,
        identities: mesh.mtls().then(|| key.mesh.clone()).into_iter().collect(),
        sessions: BTreeMap::new(),
        dns: DnsSettings {
            listen_port: capture.is_some().then_some(DNS_PORT),
            forward_zones: picture.options.dns_forward_zones.clone(),
            forward_all: unlisted != Unlisted::Refuse,
            ipv6: transparent.is_none_or(|it| it.ip_family_mode != IpFamilyMode::IPv4),
        },
        capture,
        unlisted,
        detect_timeout_millis: DETECT_TIMEOUT_MILLIS,
        max_config_age_seconds: None,
        // Only a sidecar that dials outwards itself has to know them.
        protected: if mesh.egress_enforced() { Vec::new() } else { protected(picture) },
        tags: tags_of(picture, mesh, dataplane),
    }
}

/// The values that a sidecar has of the tags that policies ask for.
fn tags_of(
    picture: &Picture,
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
) -> BTreeMap<String, BTreeSet<String>> {
    let networking = dataplane.spec.networking.iter();
    let inbounds = networking.clone().flat_map(|it| &it.inbound).map(|inbound| &inbound.tags);
    let parts: Vec<_> =
        inbounds.chain(networking.filter_map(|it| Some(&it.gateway.as_ref()?.tags))).collect();
    let values = |key: &String| -> BTreeSet<String> {
        parts.iter().filter_map(|tags| tag(picture, dataplane, tags, key)).map(str::to_owned).collect()
    };
    mesh.asked_tags
        .keys()
        .map(|key| (key.clone(), values(key)))
        .filter(|(_, values)| !values.is_empty())
        .collect()
}

fn unlisted(picture: &Picture, mesh: &MeshPicture, key: &Key, mode: CallerMode) -> Unlisted {
    match mode {
        CallerMode::None | CallerMode::Matched => Unlisted::Refuse,
        CallerMode::All if !mesh.egress_enforced() => Unlisted::Direct,
        CallerMode::All if !picture.has_egress() => Unlisted::Refuse,
        CallerMode::All => Unlisted::Egress {
            endpoints: EGRESSES.to_owned(),
            sni: passthrough_sni(&key.mesh, &picture.zone),
        },
    }
}

/// Addresses of the zone's proxies and control planes.
fn protected(picture: &Picture) -> Vec<IpAddr> {
    let dataplanes = picture.meshes.values().flat_map(|mesh| mesh.dataplanes.values());
    let sidecars = dataplanes.filter_map(|it| it.spec.networking.as_ref()).flat_map(|networking| {
        let inbounds = networking.inbound.iter().map(|inbound| inbound.address.as_str());
        inbounds.chain([networking.address.as_str(), networking.advertised_address.as_str()])
    });
    let local = picture.ingresses.values().filter(|it| picture.is_local(&it.resource.key));
    let ingresses =
        local.filter_map(|it| it.spec.networking.as_ref().map(|networking| networking.address.as_str()));
    let egresses =
        picture.egresses.values().filter_map(|it| Some(it.spec.networking.as_ref()?.address.as_str()));
    let proxies = sidecars.chain(ingresses).chain(egresses).filter_map(|text| text.parse().ok());
    let all: BTreeSet<IpAddr> = proxies.chain(picture.options.protected.iter().copied()).collect();
    all.into_iter().collect()
}

fn compile_inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    networking: &dataplane::Networking,
    inbound: &dataplane::Inbound,
    out: &mut Compiled,
) -> Inbound {
    let name = &dataplane.resource.key.mesh;
    let address = if inbound.address.is_empty() { &networking.address } else { &inbound.address };
    // A name can't be bound: its host knows which of its addresses that is.
    let address: IpAddr = address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let application = inbound.service_address.parse().unwrap_or(address);
    let application =
        if application.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { application };
    let service_port = if inbound.service_port == 0 { inbound.port } else { inbound.service_port };
    Inbound {
        name: inbound.section_name(),
        listen: SocketAddr::new(address, port(inbound.port)),
        application: SocketAddr::new(application, port(service_port)),
        protocol: protocol(inbound.declared_protocol()),
        service: inbound.service().unwrap_or_default().to_owned(),
        tls: policies::tls::inbound(mesh, dataplane, inbound, out),
        mesh: name.clone(),
        permission: inbound_permission(name, &subject(dataplane), inbound, &mesh.permissions),
        probe: inbound.service_probe.as_ref().filter(|probe| probe.tcp.is_some()).map(probe),
        policies: policies::inbound(mesh, dataplane, inbound, out),
    }
}

fn probe(declared: &dataplane::ServiceProbe) -> Probe {
    let millis = |set: Option<ProtoDuration>, default: u64| {
        u64::try_from(set.map_or(Duration::from_millis(default), |it| it.0).as_millis())
            .unwrap_or(default)
            .max(1)
    };
    Probe {
        interval_millis: millis(declared.interval, 1_000),
        timeout_millis: millis(declared.timeout, 2_000),
        unhealthy_threshold: declared.unhealthy_threshold.unwrap_or(1).max(1),
        healthy_threshold: declared.healthy_threshold.unwrap_or(1).max(1),
    }
}

fn explicit_target(
    picture: &Picture,
    mesh: &MeshPicture,
    outbound: &dataplane::Outbound,
) -> Result<Target, String> {
    if let Some(reference) = &outbound.backend_ref {
        return referenced_target(picture, mesh, reference);
    }
    let service = outbound.tags.get(labels::SERVICE).ok_or("it names no kuma.io/service")?;
    let ignored = [labels::SERVICE, labels::PROTOCOL, labels::MESH];
    if let Some(tag) = outbound.tags.keys().find(|tag| !ignored.contains(&tag.as_str())) {
        return Err(format!("instances can't be selected by the tag {tag}"));
    }
    let external = mesh.external_services.iter().find(|(_, it)| it.spec.service() == Some(service));
    if let Some((key, _)) = external {
        return Ok(Target::External(super::external::entry_key(key)));
    }
    let found = Legacy::of(picture, mesh, service);
    let (lowest, _) =
        found.ports.first_key_value().ok_or_else(|| format!("there is no service {service}"))?;
    let mesh_name = mesh.mesh.as_ref().map_or("", |mesh| mesh.resource.key.name.as_str());
    Ok(Target::Destination(legacy_name(mesh_name, service, *lowest)))
}

fn referenced_target(
    picture: &Picture,
    mesh: &MeshPicture,
    reference: &dataplane::BackendRef,
) -> Result<Target, String> {
    let missing =
        || format!("there is no {} {} with port {}", reference.kind, reference.name, reference.port);
    match meridian_core::Kind::named(&reference.kind) {
        Some(kind) if kind == MeshService::KIND => {
            let service = referenced_service(picture, mesh, reference).ok_or_else(missing)?;
            let has_port = service.spec.ports.iter().any(|port| port.port == reference.port);
            let name = has_port.then(|| destination_name(service, reference.port));
            name.map(Target::Destination).ok_or_else(missing)
        }
        Some(kind) if kind == MeshMultiZoneService::KIND => {
            let service = referenced_multi_zone(mesh, reference).ok_or_else(missing)?;
            let has_port = service.spec.ports.iter().any(|port| port.port == reference.port);
            let name = has_port.then(|| multi_zone::destination_name(service, reference.port));
            name.map(Target::Destination).ok_or_else(missing)
        }
        Some(kind) if kind == MeshExternalService::KIND => {
            let found = referenced_external(mesh, reference).ok_or_else(missing)?;
            Ok(Target::External(super::external::entry_key(found)))
        }
        _ => Err(format!("backendRef.kind {} is not supported", reference.kind)),
    }
}

/// By name the zone's own before others', by labels the first that matches.
pub(crate) fn referenced_service<'a>(
    picture: &Picture,
    mesh: &'a MeshPicture,
    reference: &dataplane::BackendRef,
) -> Option<&'a Parsed<MeshService>> {
    let is_it = |it: &&std::sync::Arc<Parsed<MeshService>>| means(reference, &it.resource);
    mesh.services
        .values()
        .filter(is_it)
        .min_by_key(|it| (!picture.is_local(&it.resource.key), it.resource.key.clone()))
        .map(AsRef::as_ref)
}

pub(crate) fn referenced_multi_zone<'a>(
    mesh: &'a MeshPicture,
    reference: &dataplane::BackendRef,
) -> Option<&'a Parsed<MeshMultiZoneService>> {
    let mut all = mesh.multi_zone_services.values().map(AsRef::as_ref);
    all.find(|it: &&Parsed<MeshMultiZoneService>| means(reference, &it.resource))
}

pub(crate) fn referenced_external<'a>(
    mesh: &'a MeshPicture,
    reference: &dataplane::BackendRef,
) -> Option<&'a Key> {
    let mut all = mesh.mesh_external_services.iter();
    all.find(|(_, it)| means(reference, &it.resource)).map(|(key, _)| key)
}

fn means(reference: &dataplane::BackendRef, resource: &meridian_core::Resource) -> bool {
    reference.kind == resource.key.kind.as_str() && refers(resource, &reference.name, &reference.labels)
}

pub(crate) use meridian_policy::refers;

fn passthrough_externals(
    inputs: Inputs<'_>,
    mesh: &MeshPicture,
    key: &Key,
    passthrough: &Passthrough,
    out: &mut Compiled,
) {
    for matched in &passthrough.entries {
        let Some(entry) = passthrough_entry(&key.mesh, matched) else {
            out.problem(
                key,
                format!("MeshPassthrough {}: {} is not supported", matched.policy, matched.match_.value),
            );
            continue;
        };
        let via = if !mesh.egress_enforced() {
            Via::Sidecar(Box::new(entry.clone()))
        } else if inputs.picture.has_egress() {
            through_egress(&key.mesh, &inputs.picture.zone, passthrough_sni(&key.mesh, &inputs.picture.zone))
        } else {
            Via::Refused(NO_EGRESS.to_owned())
        };
        let external = External {
            entry: entry.key.clone(),
            kind: EntryKind::MeshPassthrough,
            protocol: entry.protocol,
            hosts: entry.hosts.clone(),
            ports: entry.ports.clone(),
            originates_tls: false,
            via,
        };
        out.push(key, types::EXTERNAL, &entry.key, &external);
        if let Some(HostMatch::Exact(hostname)) = entry.hosts.first() {
            let vip = inputs.vips.address(&host_owner(&key.mesh, hostname));
            // Without a port the external's own rule decides: every port.
            let port = entry.ports.first().copied().unwrap_or(0);
            let target = Target::External(entry.key.clone());
            out.push_vip(key, &entry.key, vip, port, std::slice::from_ref(hostname), target);
        }
    }
}

/// None for what can't be enforced as it is written (and was not refused there: an older version's).
fn passthrough_entry(mesh: &str, matched: &PassthroughEntry) -> Option<Entry> {
    let value = &matched.match_.value;
    let (hosts, allowed) = match matched.match_.type_ {
        MatchType::Domain if value == "*" => (HostMatch::Wildcard(String::new()), Vec::new()),
        MatchType::Domain if value.contains('*') => {
            let parent = value.strip_prefix("*.").filter(|parent| !parent.contains('*'))?;
            (HostMatch::Wildcard(normal_name(parent)), Vec::new())
        }
        MatchType::Domain => (HostMatch::Exact(normal_name(value)), Vec::new()),
        MatchType::Ip => {
            let address: IpAddr = value.parse().ok()?;
            (HostMatch::Ip(address), vec![IpNet::from(address)])
        }
        MatchType::Cidr => (HostMatch::Net(canonical_net(value.parse().ok()?)), Vec::new()),
        MatchType::Other(_) => return None,
    };
    Some(Entry {
        key: format!("{mesh}/passthrough/{}", matched.key),
        mesh: mesh.to_owned(),
        kind: EntryKind::MeshPassthrough,
        protocol: match matched.match_.protocol {
            PassthroughProtocol::Http => Protocol::Http,
            PassthroughProtocol::Http2 => Protocol::Http2,
            PassthroughProtocol::Grpc => Protocol::Grpc,
            PassthroughProtocol::Tls => Protocol::Tls,
            // MySQL's server speaks first: opaque.
            PassthroughProtocol::Tcp | PassthroughProtocol::Mysql | PassthroughProtocol::Other(_) => {
                Protocol::Tcp
            }
        },
        hosts: vec![hosts],
        ports: matched.match_.port.map(port).into_iter().collect(),
        endpoints: Vec::new(),
        tls: None,
        addresses: AddressPolicy { allowed },
        // The caller's own list is the permission.
        permission: Permission::default(),
        policies: EntryPolicies::default(),
    })
}

/// What one Dataplane may reach by MeshPassthrough, for the egress.
pub(crate) fn caller(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    if !picture.mesh(&key.mesh).is_some_and(MeshPicture::egress_enforced) {
        return;
    }
    let Some((dataplane, passthrough)) = passthrough_of(picture, key) else { return };
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let entries =
        passthrough.entries.iter().filter_map(|it| passthrough_entry(&key.mesh, it)).map(|entry| entry.key);
    let caller = Caller {
        mesh: key.mesh.clone(),
        dataplane: key.name.clone(),
        mode: passthrough.mode,
        entries: entries.collect(),
        policies: policies::selection(mesh, dataplane).leaving().name(),
    };
    out.push(key, types::CALLER, &format!("{}/{}", key.mesh, key.name), &caller);
}

/// Every MeshPassthrough destination that any Dataplane of the mesh may reach.
pub(crate) fn passthrough_entries(inputs: Inputs<'_>, mesh_name: &str, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(mesh) = picture.mesh(mesh_name).filter(|mesh| mesh.egress_enforced()) else { return };
    let mut known = BTreeSet::new();
    for key in mesh.dataplanes.keys() {
        let Some((_, passthrough)) = passthrough_of(picture, key) else { continue };
        for matched in &passthrough.entries {
            if let Some(entry) = passthrough_entry(mesh_name, matched)
                && known.insert(entry.key.clone())
            {
                out.push(key, types::ENTRY, &entry.key.clone(), &entry);
            }
        }
    }
}

/// An ingress's or egress's own settings.
pub(crate) fn gateway(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    let (role, address) = if key.kind == ZoneIngress::KIND {
        let Some(it) = picture.ingresses.get(key) else { return };
        (
            Role::Ingress,
            it.spec.networking.as_ref().map(|networking| (networking.address.clone(), networking.port)),
        )
    } else {
        let Some(it) = picture.egresses.get(key) else { return };
        (
            Role::Egress,
            it.spec.networking.as_ref().map(|networking| (networking.address.clone(), networking.port)),
        )
    };
    let listen = address.map(|(address, number)| {
        SocketAddr::new(address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port(number))
    });
    let with_mtls = || picture.meshes.iter().filter(|(_, mesh)| mesh.mtls() && role == Role::Egress);
    let sessions = with_mtls()
        .filter_map(|(name, mesh)| Some((name.clone(), policies::tls::sessions_of_egress(picture, mesh)?)));
    let proxy = Proxy {
        role,
        mesh: String::new(),
        name: key.name.clone(),
        zone: picture.zone.clone(),
        service: String::new(),
        listen,
        identities: with_mtls().map(|(name, _)| name.clone()).collect(),
        sessions: sessions.collect(),
        capture: None,
        dns: DnsSettings { listen_port: None, forward_zones: Vec::new(), forward_all: false, ipv6: false },
        unlisted: Unlisted::Refuse,
        detect_timeout_millis: DETECT_TIMEOUT_MILLIS,
        max_config_age_seconds: picture.options.max_config_age_seconds.filter(|_| role == Role::Egress),
        protected: if role == Role::Egress { protected(picture) } else { Vec::new() },
        tags: BTreeMap::new(),
    };
    out.push(key, types::PROXY, "self", &proxy);
}
