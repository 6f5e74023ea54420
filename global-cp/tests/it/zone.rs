//! A zone control plane without a zone: enrols, holds what it is sent in memory, and publishes what it is told to.

use crate::harness::Replica;
use meridian_api::wire;
use meridian_core::{Key, Kind, Resource};
use meridian_delta::client::Connector;
use meridian_delta::{
    Batch, Control, Encoded, Id, Node, PART, Peer, Position, Publisher, Rejected, Resume, Revision, Sink,
    SinkError, StoreId, Subscriber, View, ViewChange,
};
use meridian_pki::link::{H2, ServerTrust, client_config};
use meridian_pki::{Identity, IdentityHandle, PrivateKey};
use meridian_proto::identity as pb;
use meridian_proto::identity::zone_identity_client::ZoneIdentityClient;
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// What a zone keeps over restarts.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) name: String,
    trust: ServerTrust,
    key: PrivateKey,
    identity: IdentityHandle,
    pub(crate) held: Arc<Mutex<Held>>,
    /// What it publishes.
    pub(crate) view: Arc<View>,
    /// Names of resources that it can't take.
    pub(crate) refuses: Arc<Mutex<Option<&'static str>>>,
}

#[derive(Default)]
pub(crate) struct Held {
    pub(crate) resources: BTreeMap<(String, String), Arc<Encoded>>,
    pub(crate) position: Option<Position>,
    /// Upserts applied since the last look.
    pub(crate) applied: usize,
}

/// A running process.
pub(crate) struct Zone {
    pub(crate) disk: Disk,
    pub(crate) down: Peer,
    pub(crate) up: Peer,
    pub(crate) control: Control,
    closing: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

struct Memory {
    held: Arc<Mutex<Held>>,
    refuses: Arc<Mutex<Option<&'static str>>>,
}

impl Sink for Memory {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        let held = self.held.lock().unwrap();
        let have = held.resources.values().map(|encoded| (encoded.id(), encoded.version)).collect();
        Ok(Resume { position: held.position, have })
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        let refuses = *self.refuses.lock().unwrap();
        let mut held = self.held.lock().unwrap();
        let mut rejected = Vec::new();
        for encoded in batch.upserts {
            held.applied += 1;
            if refuses.is_some_and(|name| encoded.name.ends_with(name)) {
                let (id, version) = (encoded.id(), encoded.version);
                rejected.push(Rejected { id, version, reason: "it makes no sense here".to_owned() });
                continue;
            }
            held.resources.insert((encoded.type_.to_string(), encoded.name.to_string()), encoded);
        }
        for id in batch.removals {
            held.resources.remove(&(id.type_.to_string(), id.name.to_string()));
        }
        held.position = batch.position.or(held.position);
        Ok(rejected)
    }
}

impl Disk {
    pub(crate) fn new(name: &str, replica: &Replica) -> Self {
        let store = StoreId(uuid::Uuid::new_v4().into_bytes());
        let view = View::new(store, Revision(0));
        view.advance(Revision(1));
        Self {
            name: name.to_owned(),
            trust: replica.trust(),
            key: PrivateKey::generate().unwrap(),
            identity: IdentityHandle::new(),
            held: Arc::default(),
            view,
            refuses: Arc::default(),
        }
    }

    pub(crate) fn with_new_key(&self) -> Self {
        Self { key: PrivateKey::generate().unwrap(), identity: IdentityHandle::new(), ..self.clone() }
    }

    /// Without a token: by its certificate.
    fn connector(&self, address: SocketAddr, token: Option<String>) -> Connector {
        let (trust, identity) = (self.trust.clone(), self.identity.clone());
        let identity = identity.latest().map(|_| identity).filter(|_| token.is_none());
        let tls = Arc::new(client_config(trust, identity, &[H2]).unwrap());
        let address = format!("https://{address}").parse().unwrap();
        Connector::new(address, Arc::new(move || Arc::clone(&tls)), Arc::new(move || token.clone()))
    }

    pub(crate) async fn enroll(
        &self,
        at: &Replica,
        token: Option<String>,
        take_over: bool,
    ) -> Result<(), Status> {
        let channel = self.connector(at.bound.sync, token).channel().await.unwrap();
        let request =
            pb::EnrollRequest { zone: self.name.clone(), csr: self.key.request().unwrap(), take_over };
        let certificate = ZoneIdentityClient::new(channel).enroll(request).await?.into_inner();
        assert!(!certificate.roots.is_empty());
        let chain = certificate.chain.into_iter().map(Into::into).collect();
        self.identity.set(Identity::new(chain, &self.key).unwrap());
        Ok(())
    }

    /// An intermediate of the mesh, and the roots that came with it.
    pub(crate) async fn intermediate(&self, at: &Replica, mesh: &str) -> Result<pb::Certificate, Status> {
        let channel = self.connector(at.bound.sync, None).channel().await.unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = pb::SignIntermediateRequest { mesh: mesh.to_owned(), csr: key.request().unwrap() };
        ZoneIdentityClient::new(channel).sign_intermediate(request).await.map(tonic::Response::into_inner)
    }

    /// A process with this disk.
    pub(crate) fn run(&self, at: SocketAddr, epoch: u64, take_over: bool) -> Zone {
        let node = Node {
            name: self.name.clone(),
            instance: uuid::Uuid::new_v4().to_string(),
            version: "test".to_owned(),
            epoch,
            take_over,
        };
        let (down, up, control) = (Peer::new(), Peer::new(), Control::new());
        let closing = CancellationToken::new();
        let connector = self.connector(at, None);
        let mut subscriber = Subscriber {
            sink: Memory { held: Arc::clone(&self.held), refuses: Arc::clone(&self.refuses) },
            types: Vec::new(),
            node: node.clone(),
            peer: down.clone(),
            control: control.clone(),
        };
        let publisher =
            Publisher { view: Arc::clone(&self.view), types: Vec::new(), part: PART, node, peer: up.clone() };
        let (pull, pull_closing) = (connector.clone(), closing.clone());
        let push_closing = closing.clone();
        let tasks = vec![
            tokio::spawn(async move {
                pull.pull(&mut subscriber, pull_closing).await;
            }),
            tokio::spawn(async move {
                connector.push(&publisher, push_closing).await;
            }),
        ];
        Zone { disk: self.clone(), down, up, control, closing, tasks }
    }
}

impl Zone {
    /// Enrolled and running.
    pub(crate) async fn start(name: &str, at: &Replica) -> Self {
        let disk = Disk::new(name, at);
        disk.enroll(at, Some(at.zone_token(name).await), false).await.unwrap();
        let zone = disk.run(at.bound.sync, 1, false);
        zone.connected().await;
        zone
    }

    pub(crate) async fn connected(&self) {
        let both = async || {
            let (down, up) = (self.down.state(), self.up.state());
            anyhow::ensure!(down.connected && up.connected, "{:?} {:?}", down.error, up.error);
            Ok(())
        };
        until("both streams", DEADLINE, both).await.unwrap();
    }

    pub(crate) async fn cut(&self) -> String {
        let gone = async || {
            let (down, up) = (self.down.state(), self.up.state());
            anyhow::ensure!(!down.connected && !up.connected, "still connected: {down:?} {up:?}");
            down.error.or(up.error).ok_or_else(|| anyhow::anyhow!("no reason yet"))
        };
        until("the streams' end", DEADLINE, gone).await.unwrap()
    }

    /// Says goodbye.
    pub(crate) async fn stop(self) -> Disk {
        self.closing.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.disk
    }

    /// As a kill.
    pub(crate) fn kill(self) -> Disk {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.disk
    }

    pub(crate) fn get(&self, type_: &str, name: &str) -> Option<Value> {
        let held = self.disk.held.lock().unwrap();
        let encoded = held.resources.get(&(type_.to_owned(), name.to_owned()))?;
        Some(serde_json::from_slice(&encoded.body).unwrap())
    }

    /// Names of a type that are held.
    pub(crate) fn names(&self, type_: &str) -> Vec<String> {
        let held = self.disk.held.lock().unwrap();
        held.resources.keys().filter(|(t, _)| t == type_).map(|(_, name)| name.clone()).collect()
    }

    pub(crate) async fn until_holds(&self, type_: &str, name: &str) -> Value {
        let look =
            async || self.get(type_, name).ok_or_else(|| anyhow::anyhow!("it holds {:?}", self.names(type_)));
        until(&format!("{type_} {name} in zone {}", self.disk.name), DEADLINE, look).await.unwrap()
    }

    pub(crate) async fn until_lacks(&self, type_: &str, name: &str) {
        let look = async || {
            anyhow::ensure!(self.get(type_, name).is_none(), "it is there");
            Ok(())
        };
        until(&format!("{type_} {name} to leave zone {}", self.disk.name), DEADLINE, look).await.unwrap();
    }

    /// Waits until it equals what was written last, as far as it was told.
    pub(crate) async fn publish(&self, resource: &Resource) {
        let sent = wire::from_zone(&self.disk.name, resource.clone());
        self.publish_raw(sent.key.kind.as_str(), &wire::name(&sent.key), sent.canonical());
    }

    pub(crate) fn publish_raw(&self, type_: &str, name: &str, body: Vec<u8>) {
        let encoded = Encoded::new(type_, name, body).unwrap();
        let next = Revision(self.disk.view.revision().0 + 1);
        self.disk.view.apply(next, [ViewChange::Upsert(encoded)]);
    }

    pub(crate) fn withdraw(&self, type_: &str, name: &str) {
        let next = Revision(self.disk.view.revision().0 + 1);
        self.disk.view.apply(next, [ViewChange::Remove(Id::new(type_, name))]);
    }
}

pub(crate) fn service(name: &str) -> Resource {
    Resource {
        key: Key::global(Kind::named("MeshService").unwrap(), "default", name),
        labels: BTreeMap::new(),
        spec: json!({
            "selector": {"dataplaneTags": {"kuma.io/service": name}},
            "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}],
        }),
        status: None,
    }
}

pub(crate) fn dataplane(name: &str) -> Resource {
    Resource {
        key: Key::global(Kind::named("Dataplane").unwrap(), "default", name),
        labels: BTreeMap::new(),
        spec: json!({"networking": {
            "address": "192.0.2.1",
            "inbound": [{"port": 8080, "tags": {"kuma.io/service": name, "kuma.io/protocol": "http"}}],
        }}),
        status: None,
    }
}

/// The name that global gives.
pub(crate) fn hashed(zone: &str, resource: &Resource) -> String {
    let key = Key { zone: zone.to_owned(), ..resource.key.clone() };
    wire::hashed_name(&key)
}
