//! Simulated zone control planes: each enrols, publishes its services, Dataplanes and ingress, and holds what it is told.

use super::held::{Common, Holding};
use super::peer::{Simulated, Types};
use super::plane::Plane;
use anyhow::{Context, Result};
use meridian_api::wire;
use meridian_core::{Key, Kind, Resource};
use meridian_delta::Encoded;
use meridian_delta::client::Connector;
use meridian_pki::link::{H2, client_config};
use meridian_pki::{Identity, IdentityHandle, PrivateKey};
use meridian_proto::identity::EnrollRequest;
use meridian_proto::identity::zone_identity_client::ZoneIdentityClient;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// MeshServices of each zone, with one Dataplane each.
pub(super) const SERVICES: usize = 10;

/// All zones of a global control plane.
pub(super) struct Zones {
    pub(super) common: Arc<Common>,
    zones: Vec<Zone>,
}

struct Zone {
    name: String,
    simulated: Simulated,
}

impl Zones {
    /// Enrols them one after another.
    pub(super) async fn new(count: usize, global: &Plane) -> Result<Self> {
        let mut zones = Vec::new();
        for number in 0..count {
            zones.push(Zone::enrol(format!("zone-{number:03}"), global).await?);
        }
        Ok(Self { common: Arc::default(), zones })
    }

    pub(super) fn connect(&self) -> Result<()> {
        for zone in &self.zones {
            zone.simulated.publish(zone.resources()?);
            zone.simulated.run(
                &zone.name,
                &Types::default(),
                Holding::new(Arc::clone(&self.common), zone.simulated.whole.clone()),
            );
        }
        Ok(())
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &Simulated> {
        self.zones.iter().map(|zone| &zone.simulated)
    }

    /// The first zone's first service has another port.
    pub(super) fn change_service(&self, port: u16) -> Result<()> {
        let zone = self.zones.first().context("a zone")?;
        zone.simulated.publish([zone.encode("MeshService", "default", "svc-0", service("svc-0", port))?]);
        Ok(())
    }
}

impl Zone {
    async fn enrol(name: String, global: &Plane) -> Result<Self> {
        let token = global.zone_token(&name).await?;
        let key = PrivateKey::generate()?;
        let tls = Arc::new(client_config(global.trust()?, None, &[H2])?);
        let connector = Connector::new(
            format!("https://{}", global.grpc).parse()?,
            Arc::new(move || Arc::clone(&tls)),
            Arc::new(move || Some(token.clone())),
        );
        let request = EnrollRequest { zone: name.clone(), csr: key.request()?, take_over: false };
        let answer = ZoneIdentityClient::new(connector.channel().await?).enroll(request).await?.into_inner();
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let identity = IdentityHandle::new();
        identity.set(Identity::new(chain, &key)?);
        let tls = Arc::new(client_config(global.trust()?, Some(identity), &[H2])?);
        let simulated =
            Simulated::new(&name, global.grpc, Arc::new(move || Arc::clone(&tls)), Arc::new(|| None))?;
        Ok(Self { name, simulated })
    }

    fn resources(&self) -> Result<Vec<Arc<Encoded>>> {
        let mut all = vec![self.encode(
            "ZoneIngress",
            "",
            "ingress",
            json!({"networking": {"address": "192.0.2.1", "advertisedAddress": "192.0.2.1", "port": 10001, "advertisedPort": 10001}}),
        )?];
        for number in 0..SERVICES {
            let name = format!("svc-{number}");
            let inbound =
                json!({"port": 8080, "tags": {"kuma.io/service": name, "kuma.io/protocol": "http"}});
            let networking = json!({"address": "192.0.2.1", "inbound": [inbound]});
            all.push(self.encode("Dataplane", "default", &name, json!({"networking": networking}))?);
            all.push(self.encode("MeshService", "default", &name, service(&name, 80))?);
        }
        Ok(all)
    }

    fn encode(&self, kind: &str, mesh: &str, name: &str, spec: Value) -> Result<Arc<Encoded>> {
        let kind = Kind::named(kind).with_context(|| format!("the kind {kind}"))?;
        let key = Key::global(kind, mesh, name);
        let resource = Resource { key, labels: BTreeMap::new(), spec, status: None };
        let sent = wire::from_zone(&self.name, resource);
        Ok(Encoded::new(kind.as_str(), wire::name(&sent.key), sent.canonical())?)
    }
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "selector": {"dataplaneTags": {"kuma.io/service": name}},
        "ports": [{"port": port, "targetPort": 8080, "appProtocol": "http"}],
    })
}
