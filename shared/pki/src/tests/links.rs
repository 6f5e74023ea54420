use super::{
    sessions::handshake,
    world::{World, leaf},
};
use crate::{
    Identity, IdentityHandle, PrivateKey, ServerCa, TrustError, ZoneCa,
    link::{self, Fingerprint, H2, ServerTrust, ZoneClients},
};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

const NAME: &str = "global.example";

struct Server {
    ca: ServerCa,
    identity: IdentityHandle,
}

impl Server {
    fn new(now: OffsetDateTime) -> Self {
        let ca = ServerCa::generate("global control plane", now).unwrap();
        let identity = IdentityHandle::new();
        let key = PrivateKey::generate().unwrap();
        let hosts = [NAME, "192.0.2.1", "::1"].map(str::to_owned);
        let issued = ca.sign_server(&key, &hosts, now).unwrap();
        identity.set(Identity::new(issued.chain, &key).unwrap());
        Self { ca, identity }
    }

    fn ca_pem(&self) -> String {
        self.ca.authority().certificate_pem()
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.ca.authority().certificate())
    }

    fn dial(&self, trust: ServerTrust, name: &str) -> Result<(), rustls::Error> {
        let server = link::server_config(self.identity.clone(), None, &[H2]).unwrap();
        let client = link::client_config(trust, None, &[H2]).unwrap();
        handshake(Arc::new(client), Arc::new(server), name).map(drop)
    }
}

fn reason(refused: Result<(), rustls::Error>) -> &'static str {
    TrustError::of(&refused.unwrap_err()).unwrap().reason()
}

#[test]
fn a_server_is_known_by_ca_file_or_fingerprint() {
    let server = Server::new(OffsetDateTime::now_utc());
    for name in [NAME, "192.0.2.1", "::1"] {
        server.dial(ServerTrust::from_pem(&server.ca_pem()).unwrap(), name).unwrap();
        server.dial(ServerTrust::Fingerprint(server.fingerprint()), name).unwrap();
    }
    let own = Fingerprint::of(&server.identity.latest().unwrap().chain()[0]);
    server.dial(ServerTrust::Fingerprint(own), NAME).unwrap();
    let text = server.fingerprint().to_string();
    assert_eq!(text.parse::<Fingerprint>().unwrap(), server.fingerprint());
}

#[test]
fn an_impostor_is_refused_before_any_token_is_sent() {
    let now = OffsetDateTime::now_utc();
    let (server, impostor) = (Server::new(now), Server::new(now));
    let by_file = ServerTrust::from_pem(&server.ca_pem()).unwrap();
    let by_print = ServerTrust::Fingerprint(server.fingerprint());
    assert_eq!(reason(impostor.dial(by_file.clone(), NAME)), "untrusted");
    assert_eq!(reason(impostor.dial(by_print.clone(), NAME)), "untrusted");
    // It sends the true CA along, which did not sign its leaf.
    let mut chain: Vec<CertificateDer<'static>> = impostor.identity.latest().unwrap().chain().to_vec();
    chain.push(server.ca.authority().certificate().clone());
    let name = NAME.try_into().unwrap();
    assert_eq!(by_print.verify(&chain, &name, now).unwrap_err().reason(), "untrusted");
    // The true server's certificate is not for another name, and not for ever.
    assert_eq!(reason(server.dial(by_file.clone(), "zone.example")), "wrong-identity");
    assert_eq!(reason(server.dial(by_print.clone(), "192.0.2.2")), "wrong-identity");
    let chain = server.identity.latest().unwrap().chain().to_vec();
    for trust in [by_file, by_print, ServerTrust::Fingerprint(Fingerprint::of(&chain[0]))] {
        let later = now + Duration::days(366);
        assert_eq!(trust.verify(&chain, &name, later), Err(TrustError::Expired));
    }
}

#[test]
fn a_zone_proves_itself_by_its_client_certificate() {
    let world = World::new();
    let server = Server::new(world.now);
    let ca = ZoneCa::generate(world.now).unwrap();
    let key = PrivateKey::generate().unwrap();
    let issued = ca.sign_client(&key.request().unwrap(), "east", world.now).unwrap();
    let zones = ZoneClients::new(&ca.authority().certificate_pem(), []).unwrap();
    let dial = |client: Option<IdentityHandle>| {
        let server_config = link::server_config(server.identity.clone(), Some(zones.clone()), &[H2]).unwrap();
        let trust = ServerTrust::from_pem(&server.ca_pem()).unwrap();
        let client_config = link::client_config(trust, client, &[H2]).unwrap();
        handshake(Arc::new(client_config), Arc::new(server_config), NAME)
    };
    let east = IdentityHandle::new();
    east.set(Identity::new(issued.chain.clone(), &key).unwrap());
    let (_, accepted) = dial(Some(east.clone())).unwrap();
    let zone = zones.verify(accepted.peer_certificates().unwrap(), world.now).unwrap();
    assert_eq!((zone.zone.as_str(), zone.key, zone.not_after), ("east", key.spki_hash(), issued.not_after));
    // First contact has none.
    assert!(dial(None).unwrap().1.peer_certificates().is_none());

    // A workload, an intermediate and a zone of another global are no zones here.
    let (workload, workload_key) = leaf(&world.east, "web", world.now);
    let stranger = ZoneCa::generate(world.now).unwrap();
    let foreign = stranger.sign_client(&key.request().unwrap(), "east", world.now).unwrap();
    for (what, chain, key) in [
        ("a workload", workload.chain, &workload_key),
        ("an intermediate", vec![world.east.certificate().clone()], world.east.key()),
        ("another global's zone", foreign.chain, &key),
    ] {
        let other = IdentityHandle::new();
        other.set(Identity::new(chain, key).unwrap());
        assert!(dial(Some(other)).is_err(), "{what}");
    }

    zones.set(&ca.authority().certificate_pem(), [key.spki_hash()]).unwrap();
    assert!(
        matches!(zones.verify(&issued.chain, world.now), Err(TrustError::Revoked(_))),
        "an open link is cut"
    );
    assert!(dial(Some(east)).is_err());
    assert!(ca.sign_client(&key.request().unwrap(), "ea/st", world.now).is_err());
}

#[test]
fn fingerprints_are_64_digits() {
    for bad in ["", "abc", "zz", &"0".repeat(63), &"0".repeat(66), &format!("{}é", "0".repeat(63))] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
}
