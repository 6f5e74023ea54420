//! Simulated sidecars: each registers a Dataplane, asks for a certificate, reports how it is and holds what it is told.

use super::held::{Common, Holding};
use super::peer::{Simulated, Types};
use super::plane::Plane;
use anyhow::{Context, Result};
use meridian_core::{Key, Kind, Resource};
use meridian_delta::{Encoded, SMALL_PART};
use meridian_pki::link::{H2, client_config};
use meridian_pki::{Identity, PrivateKey};
use meridian_proto::identity::SignLeafRequest;
use meridian_proto::identity::proxy_identity_client::ProxyIdentityClient;
use meridian_proxy_config::{
    CertificateStatus, DenialReport, InboundStatus, ProxyStatus, Role, report_types, types,
};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::format_description::well_known::Rfc3339;

const MESH: &str = "default";
/// The one inbound of each, which is its name too.
const PORT: u16 = 8080;
/// Before another try for a certificate.
const RETRY: Duration = Duration::from_millis(500);

/// All sidecars of a zone.
pub(super) struct Fleet {
    pub(super) common: Arc<Common>,
    pub(super) proxies: Vec<Arc<Proxy>>,
    pub(super) shape: Shape,
}

/// How many there are of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) proxies: usize,
    pub(super) services: usize,
    /// Services that a sidecar names as reachable: its own and the ones after it. 0: none, so it reaches all.
    pub(super) reachable: usize,
}

pub(super) struct Proxy {
    name: String,
    service: usize,
    /// The last two bytes of its address.
    number: usize,
    shape: Shape,
    simulated: Simulated,
    /// When its certificate expires, RFC 3339; none before it has one.
    certified: Mutex<Option<String>>,
}

impl Shape {
    pub(super) fn service_of(&self, proxy: usize) -> usize {
        proxy % self.services
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.reachable == 0 || (to + self.services - from) % self.services < self.reachable
    }

    /// How many sidecars learn of a service.
    pub(super) fn subscribers(&self, service: usize) -> usize {
        (0..self.proxies).filter(|proxy| self.reaches(self.service_of(*proxy), service)).count()
    }

    /// How many sidecars are a service.
    pub(super) fn instances(&self, service: usize) -> usize {
        (0..self.proxies).filter(|proxy| self.service_of(*proxy) == service).count()
    }
}

/// `svc-00042`: no name is part of another.
pub(super) fn service_name(number: usize) -> String {
    format!("svc-{number:05}")
}

impl Fleet {
    /// Makes them; [`Fleet::connect`] lets them dial.
    pub(super) async fn new(shape: Shape, global: &Plane, zone: &Plane) -> Result<Self> {
        let tls = Arc::new(client_config(zone.trust()?, None, &[H2])?);
        let mut tokens: Vec<Arc<str>> = Vec::new();
        for service in 0..shape.services {
            tokens.push(global.dataplane_token(&service_name(service)).await?.into());
        }
        let mut proxies = Vec::new();
        for number in 0..shape.proxies {
            let service = shape.service_of(number);
            let token = Arc::clone(tokens.get(service).context("a token a service")?);
            let name = format!("{MESH}/{}-{number:05}", service_name(service));
            let tls = Arc::clone(&tls);
            let simulated = Simulated::new(
                &name,
                zone.grpc,
                Arc::new(move || Arc::clone(&tls)),
                Arc::new(move || Some(token.to_string())),
            )?;
            proxies.push(Arc::new(Proxy {
                name,
                service,
                number,
                shape,
                simulated,
                certified: Mutex::default(),
            }));
        }
        Ok(Self { common: Arc::default(), proxies, shape })
    }

    pub(super) fn connect(&self) -> Result<()> {
        let text = |all: &[&str]| all.iter().map(|it| (*it).into()).collect();
        let types = Types {
            pulled: text(&types::ALL),
            pushed: text(&["Dataplane", report_types::STATUS, report_types::DENIALS]),
            part: SMALL_PART,
        };
        for proxy in &self.proxies {
            proxy.connect(&types, &self.common)?;
        }
        Ok(())
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &Simulated> {
        self.proxies.iter().map(|proxy| &proxy.simulated)
    }
}

impl Proxy {
    fn connect(self: &Arc<Self>, types: &Types, common: &Arc<Common>) -> Result<()> {
        self.say_where(0)?;
        self.simulated.publish([
            self.status(true)?,
            encode(report_types::DENIALS, "self", &DenialReport { denials: vec![], overflow: 0 })?,
        ]);
        let (holding, mut believes) =
            Holding::new(Arc::clone(common), self.simulated.whole.clone()).awaiting(types::BUNDLE);
        self.simulated.run(&self.name, types, holding);
        let proxy = Arc::clone(self);
        tokio::spawn(async move {
            if believes.wait_for(|there| *there).await.is_ok() {
                proxy.certify().await;
            }
        });
        Ok(())
    }

    pub(super) fn service(&self) -> usize {
        self.service
    }

    /// (Re-)registers with another address for each `round`; returns it.
    pub(super) fn say_where(&self, round: u8) -> Result<String> {
        let address = format!("10.{round}.{}.{}", self.number / 250, self.number % 250 + 1);
        let inbound = json!({"port": PORT, "tags": {
            "kuma.io/service": service_name(self.service), "kuma.io/protocol": "http",
        }});
        let names: Vec<String> = (0..self.shape.reachable)
            .map(|step| service_name((self.service + step) % self.shape.services))
            .collect();
        let transparent = match names.is_empty() {
            true => json!({"redirectPortOutbound": 15001, "redirectPortInbound": 15006}),
            false => json!({
                "redirectPortOutbound": 15001,
                "redirectPortInbound": 15006,
                "reachableBackends": {"refs": names.iter().map(|name| {
                    json!({"kind": "MeshService", "name": name})
                }).collect::<Vec<_>>()},
                // `<service>.mesh` is told of by this list.
                "reachableServices": names,
            }),
        };
        let networking =
            json!({"address": address, "inbound": [inbound], "transparentProxying": transparent});
        let kind = Kind::named("Dataplane").context("the kind Dataplane")?;
        let (_, name) = self.name.split_once('/').context("a name with its mesh")?;
        let resource = Resource {
            key: Key::global(kind, MESH, name),
            labels: BTreeMap::new(),
            spec: json!({"networking": networking}),
            status: None,
        };
        let own = Encoded::new(kind.as_str(), self.name.as_str(), resource.canonical())?;
        self.simulated.publish([own]);
        Ok(address)
    }

    /// Reports that its application answers its probe, or does not.
    pub(super) fn say_ready(&self, ready: bool) -> Result<()> {
        self.simulated.publish([self.status(ready)?]);
        Ok(())
    }

    /// Whether it has asked for its certificate and got it.
    pub(super) fn is_certified(&self) -> bool {
        self.certified.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn status(&self, ready: bool) -> Result<Arc<Encoded>> {
        let certificate = |expires| CertificateStatus { mesh: MESH.to_owned(), expires, root: String::new() };
        let until = self.certified.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = ProxyStatus {
            role: Role::Sidecar,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.name.clone(),
            outbound_enforcement: "strict".to_owned(),
            inbounds: vec![InboundStatus { name: PORT.to_string(), ready }],
            certificates: until.map(certificate).into_iter().collect(),
            problems: Vec::new(),
        };
        encode(report_types::STATUS, "self", &status)
    }

    /// Until it has one.
    async fn certify(&self) {
        while self.ask_certificate().await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ask_certificate(&self) -> Result<()> {
        let key = PrivateKey::generate()?;
        let request = SignLeafRequest { mesh: MESH.to_owned(), csr: key.request()? };
        let channel = self.simulated.connector.channel().await?;
        let answer = ProxyIdentityClient::new(channel).sign_leaf(request).await?.into_inner();
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let until = Identity::new(chain, &key)?.not_after().format(&Rfc3339)?;
        *self.certified.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.say_ready(true)
    }
}

fn encode(type_: &'static str, name: &str, value: &impl serde::Serialize) -> Result<Arc<Encoded>> {
    Ok(Encoded::new(type_, name, serde_json::to_vec(value)?)?)
}
