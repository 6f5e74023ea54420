//! Destinations outside of the mesh: what sidecars are told of them, and what the proxy that leaves the mesh enforces.
//!
//! What can't be compiled (a secret that is not there, say) is refused with a reason, and reported: never let through
//! without what it lacks.

use super::routes::EGRESSES;
use super::services::{has_legacy_names, host_owner};
use super::{Compiled, Inputs, host, normal_name, policies, port, protocol};
use crate::hostnames;
use crate::picture::{MeshPicture, Picture, display_name};
use crate::vip::{Owner, Range};
use ipnet::IpNet;
use meridian_core::kinds::data_source::DataSource;
use meridian_core::kinds::external_service::{ExternalService, Tls as ServiceTls};
use meridian_core::kinds::mesh_external_service as extsvc;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::{Key, Resource};
use meridian_policy::{Parsed, external_service_permission, mesh_external_service_permission};
use meridian_proxy_config::sni::{Sni, SniKind};
use meridian_proxy_config::{
    AddressPolicy, CaSource, Entry, EntryKind, EntryPolicies, External, ExternalEndpoint, Host, HostMatch,
    Origination, SanMatch, Target, TlsVersion, Verification, Via, types,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Refused: no ready egress of this zone, where one is needed.
pub(crate) const NO_EGRESS: &str = "no-egress";
/// Refused: the zone that it is pinned to has no ingress.
pub(crate) const ZONE_UNREACHABLE: &str = "zone-unreachable";
/// Refused: the resource can't be compiled.
pub(crate) const INVALID_ENTRY: &str = "invalid-entry";

/// The server name of sessions with an egress about things that have no resource of their own.
const PASSTHROUGH: &str = "passthrough";

/// The key of an entry, the same in every zone.
pub(crate) fn entry_key(key: &Key) -> String {
    match key.kind {
        ExternalService::KIND => format!("{}/es/{}", key.mesh, key.name),
        _ => format!("{}/extsvc/{}/{}", key.mesh, key.zone, key.name),
    }
}

/// The server name of sessions with `zone`'s egress about one destination.
pub(crate) fn sni_of(mesh: &str, zone: &str, name: &str, number: u16) -> String {
    let port = number.to_string();
    Sni { kind: SniKind::External, mesh, zone, namespace: None, name, port: &port }.to_string()
}

/// The same for what only a MeshPassthrough, or passthrough itself, lets out.
pub(crate) fn passthrough_sni(mesh: &str, zone: &str) -> String {
    sni_of(mesh, zone, PASSTHROUGH, 0)
}

/// The server name of a pinned ExternalService of this zone; none if it is not pinned here.
pub(crate) fn pinned_here(picture: &Picture, key: &Key) -> Option<String> {
    let mesh = picture.mesh(&key.mesh).filter(|mesh| mesh.egress_enforced())?;
    let service = mesh.external_services.get(key)?;
    let (_, number) = service.spec.host_and_port()?;
    let here = service.spec.zone() == Some(picture.zone.as_str());
    here.then(|| sni_of(&key.mesh, &picture.zone, display_name(&service.resource), number))
}

/// Whether the zone's egresses let this destination out: it is not pinned to another zone.
pub(crate) fn leaves_here(picture: &Picture, key: &Key) -> bool {
    let Some(mesh) = picture.mesh(&key.mesh).filter(|mesh| mesh.egress_enforced()) else { return false };
    match key.kind {
        ExternalService::KIND => mesh
            .external_services
            .get(key)
            .is_some_and(|it| it.spec.zone().is_none_or(|zone| zone == picture.zone)),
        _ => mesh.mesh_external_services.contains_key(key),
    }
}

/// Names of Secrets that a destination needs.
pub(crate) fn secrets(mesh: &MeshPicture, key: &Key) -> BTreeSet<String> {
    let mut sources: Vec<Option<&DataSource>> = Vec::new();
    if let Some(tls) =
        mesh.external_services.get(key).and_then(|it| it.spec.networking.as_ref()?.tls.as_ref())
    {
        sources.extend([tls.ca_cert.as_ref(), tls.client_cert.as_ref(), tls.client_key.as_ref()]);
    }
    let verification =
        mesh.mesh_external_services.get(key).and_then(|it| it.spec.tls.as_ref()?.verification.as_ref());
    if let Some(it) = verification {
        sources.extend([it.ca_cert.as_ref(), it.client_cert.as_ref(), it.client_key.as_ref()]);
    }
    sources.into_iter().flatten().filter_map(DataSource::secret_name).map(str::to_owned).collect()
}

pub(crate) fn owners(picture: &Picture, key: &Key) -> BTreeSet<Owner> {
    let Some(mesh) = picture.mesh(&key.mesh) else { return BTreeSet::new() };
    if key.kind == MeshExternalService::KIND {
        return mesh.mesh_external_services.get(key).map(|_| extsvc_owner(key)).into_iter().collect();
    }
    let Some(service) = mesh.external_services.get(key) else { return BTreeSet::new() };
    let names = service_names(mesh, service).into_iter().map(|(name, _)| host_owner(&key.mesh, &name));
    names.collect()
}

pub(crate) fn extsvc_owner(key: &Key) -> Owner {
    Owner { range: Range::MeshExternalService, name: format!("{}/{}/{}", key.mesh, key.zone, key.name) }
}

/// Names by which applications reach an ExternalService, each with the ports on which it answers.
fn service_names(mesh: &MeshPicture, service: &Parsed<ExternalService>) -> Vec<(String, Vec<u16>)> {
    let Some((address, number)) = service.spec.host_and_port() else { return Vec::new() };
    let hidden = service.spec.networking.as_ref().is_some_and(|networking| networking.disable_host_dns_entry);
    let mut out = Vec::new();
    if let (Host::Name(name), false) = (host(address), hidden) {
        out.push((name, vec![number]));
    }
    if let Some(name) = service.spec.service().map(hostnames::legacy)
        && has_legacy_names(mesh)
        && mesh.names.listed(&name) == Some(&service.resource.key)
    {
        let ports: BTreeSet<u16> = [80, number].into();
        out.push((name, ports.into_iter().collect()));
    }
    out
}

/// What sidecars are told of a destination.
pub(crate) fn external(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let Some(mesh) = inputs.picture.mesh(&key.mesh).filter(|mesh| mesh.spec().is_some()) else { return };
    if let Some(service) = mesh.external_services.get(key) {
        external_service(inputs, mesh, service, out);
    } else if let Some(service) = mesh.mesh_external_services.get(key) {
        mesh_external_service(inputs, mesh, service, out);
    }
}

/// What the egress enforces.
pub(crate) fn entry(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    if !leaves_here(inputs.picture, key) {
        return;
    }
    let Some(mesh) = inputs.picture.mesh(&key.mesh) else { return };
    let built = match (mesh.external_services.get(key), mesh.mesh_external_services.get(key)) {
        (Some(service), _) => service_entry(inputs.picture, mesh, service),
        (None, Some(service)) => extsvc_entry(inputs.picture, mesh, service),
        (None, None) => return,
    };
    match built {
        Ok(mut entry) => {
            if let Some(sni) = own_sni(inputs.picture, mesh, key) {
                entry.policies = policies::entry(mesh, &sni, out);
            }
            out.push(key, types::ENTRY, &entry.key.clone(), &entry);
        }
        Err(reason) => out.problem(key, reason),
    }
}

/// The server name by which this zone's egress knows it.
fn own_sni(picture: &Picture, mesh: &MeshPicture, key: &Key) -> Option<String> {
    let of = |resource: &Resource, number| sni_of(&key.mesh, &picture.zone, display_name(resource), number);
    if let Some(service) = mesh.external_services.get(key) {
        return Some(of(&service.resource, service.spec.host_and_port()?.1));
    }
    let service = mesh.mesh_external_services.get(key)?;
    Some(of(&service.resource, port(service.spec.match_.port)))
}

fn external_service(
    inputs: Inputs<'_>,
    mesh: &MeshPicture,
    service: &Parsed<ExternalService>,
    out: &mut Compiled,
) {
    let key = &service.resource.key;
    let built = service_entry(inputs.picture, mesh, service);
    let Some((_, number)) = service.spec.host_and_port() else {
        out.problem(key, "networking.address is not host:port");
        return;
    };
    let via = match &built {
        Err(reason) => {
            out.problem(key, reason.clone());
            Via::Refused(INVALID_ENTRY.to_owned())
        }
        Ok(entry) => service_via(inputs.picture, mesh, service, number, entry),
    };
    let (hosts, ports, originates_tls) = match built {
        Ok(entry) => (entry.hosts, entry.ports, entry.tls.is_some()),
        Err(_) => (service_hosts(mesh, service), vec![number], true),
    };
    let name = entry_key(key);
    let external = External {
        entry: name.clone(),
        kind: EntryKind::ExternalService,
        protocol: protocol(service.spec.protocol()),
        hosts,
        ports,
        originates_tls,
        via,
    };
    out.push(key, types::EXTERNAL, &name, &external);
    for (hostname, ports) in service_names(mesh, service) {
        let vip = inputs.vips.address(&host_owner(&key.mesh, &hostname));
        for number in ports {
            let outbound = format!("{name}/{hostname}/{number}");
            let target = Target::External(name.clone());
            out.push_vip(key, &outbound, vip, number, std::slice::from_ref(&hostname), target);
        }
    }
}

fn service_via(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<ExternalService>,
    number: u16,
    entry: &Entry,
) -> Via {
    let elsewhere = service.spec.zone().filter(|zone| *zone != picture.zone);
    let key = &service.resource.key;
    match elsewhere {
        // It leaves from another zone, which only an egress can reach.
        Some(_) if !mesh.egress_enforced() => Via::Refused(NO_EGRESS.to_owned()),
        None if !mesh.egress_enforced() => Via::Sidecar(Box::new(entry.clone())),
        _ if !picture.has_egress() => Via::Refused(NO_EGRESS.to_owned()),
        Some(zone) if super::services::ingress_addresses(picture, zone).is_empty() => {
            Via::Refused(ZONE_UNREACHABLE.to_owned())
        }
        _ => {
            let zone = elsewhere.unwrap_or(&picture.zone);
            through_egress(&key.mesh, zone, sni_of(&key.mesh, zone, display_name(&service.resource), number))
        }
    }
}

pub(crate) fn through_egress(mesh: &str, zone: &str, sni: String) -> Via {
    Via::Egress { mesh: mesh.to_owned(), zone: zone.to_owned(), sni, endpoints: EGRESSES.to_owned() }
}

fn mesh_external_service(
    inputs: Inputs<'_>,
    mesh: &MeshPicture,
    service: &Parsed<MeshExternalService>,
    out: &mut Compiled,
) {
    let key = &service.resource.key;
    let built = extsvc_entry(inputs.picture, mesh, service);
    let number = port(service.spec.match_.port);
    let zone = &inputs.picture.zone;
    let via = match &built {
        Err(reason) => {
            out.problem(key, reason.clone());
            Via::Refused(INVALID_ENTRY.to_owned())
        }
        Ok(_) if mesh.egress_enforced() && inputs.picture.has_egress() => {
            through_egress(&key.mesh, zone, sni_of(&key.mesh, zone, display_name(&service.resource), number))
        }
        Ok(_) => Via::Refused(NO_EGRESS.to_owned()),
    };
    let hostnames = mesh.names.of(key);
    let name = entry_key(key);
    let external = External {
        entry: name.clone(),
        kind: EntryKind::MeshExternalService,
        protocol: extsvc_protocol(&service.spec.match_.protocol),
        hosts: asked_names(mesh, key).into_iter().map(HostMatch::Exact).collect(),
        ports: vec![number],
        originates_tls: service.spec.tls.as_ref().is_some_and(|tls| tls.enabled),
        via,
    };
    out.push(key, types::EXTERNAL, &name, &external);
    let vip = inputs.vips.address(&extsvc_owner(key));
    out.push_vip(key, &name, vip, number, &hostnames, Target::External(name.clone()));
}

/// What sidecars call it towards the egress. Where no generator names it, a name that nobody can have (RFC 2606): explicit
/// outbounds still lead to it.
fn asked_names(mesh: &MeshPicture, key: &Key) -> Vec<String> {
    let names = mesh.names.of(key);
    if names.is_empty() { vec![format!("{}.extsvc.invalid", key.name)] } else { names }
}

pub(crate) fn extsvc_protocol(declared: &extsvc::Protocol) -> meridian_proxy_config::Protocol {
    match declared {
        extsvc::Protocol::Tcp | extsvc::Protocol::Other(_) => meridian_proxy_config::Protocol::Tcp,
        extsvc::Protocol::Grpc => meridian_proxy_config::Protocol::Grpc,
        extsvc::Protocol::Http => meridian_proxy_config::Protocol::Http,
        extsvc::Protocol::Http2 => meridian_proxy_config::Protocol::Http2,
    }
}

fn service_hosts(mesh: &MeshPicture, service: &Parsed<ExternalService>) -> Vec<HostMatch> {
    let address = service.spec.host_and_port().map(|(address, _)| host_match(address));
    let legacy = service_names(mesh, service).into_iter().map(|(name, _)| HostMatch::Exact(name));
    let all: BTreeSet<HostMatch> = address.into_iter().chain(legacy).collect();
    all.into_iter().collect()
}

fn host_match(text: &str) -> HostMatch {
    match host(text) {
        Host::Ip(address) => HostMatch::Ip(address),
        Host::Name(name) => HostMatch::Exact(name),
    }
}

fn service_entry(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<ExternalService>,
) -> Result<Entry, String> {
    let key = &service.resource.key;
    let networking = service.spec.networking.as_ref().ok_or("it has no networking")?;
    let (address, number) = service.spec.host_and_port().ok_or("networking.address is not host:port")?;
    let sni = sni_of(&key.mesh, &picture.zone, display_name(&service.resource), number);
    let tls = networking.tls.as_ref().filter(|tls| tls.enabled);
    let mut ports = BTreeSet::from([number]);
    ports.extend(service_names(mesh, service).into_iter().flat_map(|(_, ports)| ports));
    Ok(Entry {
        key: entry_key(key),
        mesh: key.mesh.clone(),
        kind: EntryKind::ExternalService,
        protocol: protocol(service.spec.protocol()),
        hosts: service_hosts(mesh, service),
        ports: ports.into_iter().collect(),
        endpoints: vec![ExternalEndpoint { host: host(address), port: number, priority: 0 }],
        tls: tls.map(|tls| service_origination(mesh, tls)).transpose()?,
        addresses: addresses([address], &networking.allowed_addresses),
        permission: external_service_permission(&service.spec, &sni, &mesh.permissions),
        policies: EntryPolicies::default(),
    })
}

fn service_origination(mesh: &MeshPicture, tls: &ServiceTls) -> Result<Origination, String> {
    let skip = tls.skip_hostname_verification.unwrap_or(false);
    Ok(Origination {
        verification: if skip { Verification::SkipSan } else { Verification::Secured },
        ca: ca(mesh, tls.ca_cert.as_ref(), "tls.caCert")?,
        client_certificate: pem(mesh, tls.client_cert.as_ref(), "tls.clientCert")?,
        client_key: pem(mesh, tls.client_key.as_ref(), "tls.clientKey")?,
        server_name: tls.server_name.as_deref().map(normal_name).filter(|name| !name.is_empty()),
        subject_alt_names: Vec::new(),
        min_version: TlsVersion::Tls12,
        max_version: TlsVersion::Tls13,
    })
}

fn extsvc_entry(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<MeshExternalService>,
) -> Result<Entry, String> {
    let key = &service.resource.key;
    let spec = &service.spec;
    let number = port(spec.match_.port);
    let sni = sni_of(&key.mesh, &picture.zone, display_name(&service.resource), number);
    let mesh_spec = mesh.spec().ok_or("its mesh is not there")?;
    let asked = asked_names(mesh, key).into_iter().map(HostMatch::Exact);
    let hosts: BTreeSet<HostMatch> =
        asked.chain(spec.endpoints.iter().map(|it| host_match(&it.address))).collect();
    let endpoint = |it: &extsvc::Endpoint| ExternalEndpoint {
        host: host(&it.address),
        port: port(it.port),
        priority: it.priority.unwrap_or(0),
    };
    if spec.endpoints.is_empty() {
        // Without an endpoint it would lead wherever the caller says.
        return Err("it has no endpoints".to_owned());
    }
    let tls = spec.tls.as_ref().filter(|tls| tls.enabled);
    Ok(Entry {
        key: entry_key(key),
        mesh: key.mesh.clone(),
        kind: EntryKind::MeshExternalService,
        protocol: extsvc_protocol(&spec.match_.protocol),
        hosts: hosts.into_iter().collect(),
        ports: vec![number],
        endpoints: spec.endpoints.iter().map(endpoint).collect(),
        tls: tls.map(|tls| extsvc_origination(mesh, tls)).transpose()?,
        addresses: addresses(spec.endpoints.iter().map(|it| it.address.as_str()), &spec.allowed_addresses),
        permission: mesh_external_service_permission(
            mesh_spec,
            &service.resource,
            spec,
            &sni,
            &mesh.permissions,
        ),
        policies: EntryPolicies::default(),
    })
}

fn extsvc_origination(mesh: &MeshPicture, tls: &extsvc::Tls) -> Result<Origination, String> {
    let verification = tls.verification.clone().unwrap_or_default();
    let san = |it: &extsvc::SubjectAltName| match it.type_ {
        // What is no known type never passed its check; as an exact name it can only refuse.
        extsvc::SanMatchType::Exact | extsvc::SanMatchType::Other(_) => SanMatch::Exact(it.value.clone()),
        extsvc::SanMatchType::Prefix => SanMatch::Prefix(it.value.clone()),
    };
    let versions = tls.version.clone().unwrap_or_default();
    let version = |asked: Option<extsvc::TlsVersion>, default: TlsVersion| match asked {
        Some(extsvc::TlsVersion::Tls13) => Ok(TlsVersion::Tls13),
        Some(extsvc::TlsVersion::Tls12) => Ok(TlsVersion::Tls12),
        None | Some(extsvc::TlsVersion::Auto) => Ok(default),
        Some(other) => Err(format!("tls.version: {other} is not spoken")),
    };
    Ok(Origination {
        verification: match verification.mode.unwrap_or_default() {
            extsvc::VerificationMode::Secured | extsvc::VerificationMode::Other(_) => Verification::Secured,
            extsvc::VerificationMode::SkipSan => Verification::SkipSan,
            extsvc::VerificationMode::SkipCa => Verification::SkipCa,
            extsvc::VerificationMode::SkipAll => Verification::SkipAll,
        },
        ca: ca(mesh, verification.ca_cert.as_ref(), "tls.verification.caCert")?,
        client_certificate: pem(mesh, verification.client_cert.as_ref(), "tls.verification.clientCert")?,
        client_key: pem(mesh, verification.client_key.as_ref(), "tls.verification.clientKey")?,
        server_name: verification.server_name.as_deref().map(normal_name).filter(|name| !name.is_empty()),
        subject_alt_names: verification.subject_alt_names.iter().map(san).collect(),
        min_version: version(versions.min, TlsVersion::Tls12)?,
        max_version: version(versions.max, TlsVersion::Tls13)?,
    })
}

/// An entry that is an address may lead there; beyond that, what `allowedAddresses` says.
fn addresses<'a>(hosts: impl IntoIterator<Item = &'a str>, allowed: &[IpNet]) -> AddressPolicy {
    let literals = hosts.into_iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(IpNet::from);
    let all: BTreeSet<IpNet> = literals.chain(allowed.iter().copied()).collect();
    AddressPolicy { allowed: all.into_iter().collect() }
}

fn ca(mesh: &MeshPicture, source: Option<&DataSource>, field: &str) -> Result<CaSource, String> {
    Ok(pem(mesh, source, field)?.map_or(CaSource::System, CaSource::Pem))
}

/// None without a source; an error if there is one and it gives nothing.
fn pem(mesh: &MeshPicture, source: Option<&DataSource>, field: &str) -> Result<Option<String>, String> {
    let Some(source) = source else { return Ok(None) };
    let bytes = match source.secret_name() {
        Some(name) => {
            let found = mesh.secrets.values().find(|secret| secret.resource.key.name == name);
            found
                .and_then(|secret| secret.spec.bytes())
                .ok_or_else(|| format!("{field}: there is no Secret {name}"))?
        }
        None => source.inline_bytes().ok_or_else(|| format!("{field}: it names no data"))?,
    };
    String::from_utf8(bytes).map(Some).map_err(|_| format!("{field}: it is not PEM"))
}
