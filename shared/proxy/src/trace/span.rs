use super::context::Outgoing;
use crate::{
    exchange::{Facts, Subject},
    worker::Direction,
};
use meridian_proxy_config::Proxy;
use std::{net::SocketAddr, sync::Arc};

/// A request, as one side of it saw it.
#[derive(Clone, Debug)]
pub struct Span {
    pub proxy: Arc<Proxy>,
    /// Whose span it is.
    pub service: String,
    pub trace: u128,
    pub id: u64,
    pub parent: Option<u64>,
    /// The other side's span has the same id.
    pub shared: bool,
    pub kind: Kind,
    pub name: String,
    /// Since 1970.
    pub start_nanos: u64,
    pub nanos: u64,
    pub error: bool,
    pub tags: Vec<(String, String)>,
    /// The other side.
    pub peer: String,
    pub peer_address: Option<SocketAddr>,
    pub own_address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Client,
    Server,
}

impl Span {
    pub(super) fn of(
        facts: &Facts,
        context: &Outgoing,
        shared: bool,
        mut tags: Vec<(String, String)>,
        split: bool,
    ) -> Self {
        let scene = &facts.scene;
        let inbound = scene.direction == Direction::Inbound;
        let kind = if inbound { Kind::Server } else { Kind::Client };
        let own = if inbound { facts.destination() } else { scene.proxy.service.as_str() };
        let side = if inbound { "INBOUND" } else { "OUTBOUND" };
        let service = if split { format!("{own}_{side}") } else { own.to_owned() };
        let error = facts.status.is_none_or(|status| status >= 500);
        tags.extend(described(facts));
        let authority = facts.request.as_ref().and_then(|head| head.authority.clone());
        Self {
            proxy: scene.proxy.clone(),
            service,
            trace: context.trace,
            id: context.span,
            parent: context.parent,
            shared,
            kind,
            name: authority.unwrap_or_else(|| facts.destination().to_owned()),
            start_nanos: u64::try_from(facts.at.unix_timestamp_nanos()).unwrap_or_default(),
            nanos: u64::try_from(facts.end.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX),
            error,
            tags,
            peer: if inbound { facts.source() } else { facts.destination() }.to_owned(),
            peer_address: if inbound {
                Some(scene.remote)
            } else {
                facts.upstream.as_ref().and_then(|upstream| upstream.address())
            },
            own_address: if inbound { scene.local } else { facts.source_address() },
        }
    }

    /// What it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(|(name, value)| name.len() + value.len() + TAG).sum();
        SPAN + self.name.len() + self.service.len() + self.peer.len() + tags
    }
}

// Of a span and of a tag, without their texts.
const SPAN: usize = 256;
const TAG: usize = 32;

/// What Envoy says of a request, in its words.
fn described(facts: &Facts) -> Vec<(String, String)> {
    let proxy = &facts.scene.proxy;
    let mut tags = vec![
        ("component", "proxy".to_owned()),
        ("node_id", format!("{}.{}", proxy.mesh, proxy.name)),
        ("kuma.mesh", proxy.mesh.clone()),
        ("kuma.zone", proxy.zone.clone()),
        ("kuma.workload", proxy.service.clone()),
        ("downstream_cluster", facts.source().to_owned()),
        ("upstream_cluster", facts.cluster().to_owned()),
        ("request_size", facts.received.to_string()),
        ("response_size", facts.sent.to_string()),
        ("peer.address", facts.scene.remote.ip().to_string()),
    ];
    if let Some(head) = &facts.request {
        let authority = head.authority.as_deref().unwrap_or_default();
        tags.push(("http.method", head.method.to_string()));
        tags.push(("http.url", format!("http://{authority}{}", head.path())));
        tags.push(("http.protocol", head.protocol().to_owned()));
    }
    // Envoy says 0 where there was no answer.
    tags.push(("http.status_code", facts.status.unwrap_or_default().to_string()));
    if let Some(status) = facts.grpc_status {
        tags.push(("grpc.status_code", status.to_string()));
    }
    if !facts.flags.is_empty() {
        let mut flags = String::new();
        // Writing to a String does not fail.
        let _ = facts.flags.write(&mut flags, false);
        tags.push(("response_flags", flags));
    }
    if let Some(address) = facts.upstream.as_ref().and_then(|upstream| upstream.address()) {
        tags.push(("upstream_address", address.to_string()));
    }
    if facts.status.is_none_or(|status| status >= 500) {
        tags.push(("error", "true".to_owned()));
    }
    if let Subject::External(_) = facts.subject {
        tags.push(("external", "true".to_owned()));
    }
    tags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
