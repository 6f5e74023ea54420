//! One simulated peer of a control plane: both streams, over the connection that real ones make.

use super::held::{Holding, Whole};
use anyhow::Result;
use meridian_delta::client::{Connector, TlsSource, TokenSource};
use meridian_delta::{
    Behind, Control, Encoded, Node, PART, Peer, PeerState, Publisher, Revision, StoreId, Subscriber, Version,
    View, ViewChange,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// A proxy towards its zone, or a zone towards global.
pub(super) struct Simulated {
    pub(super) connector: Connector,
    view: Arc<View>,
    pulled: Peer,
    pushed: Peer,
    pub(super) whole: Whole,
}

/// What a peer subscribes to and publishes; empty: all.
#[derive(Clone)]
pub(super) struct Types {
    pub(super) pulled: Vec<Arc<str>>,
    pub(super) pushed: Vec<Arc<str>>,
    /// What is pushed is cut at so many bytes.
    pub(super) part: usize,
}

impl Default for Types {
    fn default() -> Self {
        Self { pulled: Vec::new(), pushed: Vec::new(), part: PART }
    }
}

impl Simulated {
    /// Nothing is dialled before [`Simulated::run`].
    pub(super) fn new(name: &str, address: SocketAddr, tls: TlsSource, token: TokenSource) -> Result<Self> {
        let address = format!("https://{address}").parse()?;
        // As a real one's: the same store for one name, and revisions that grow with the time.
        let Version(store) = Version::of(name.as_bytes());
        Ok(Self {
            connector: Connector::new(address, tls, token),
            view: View::new(StoreId(store), Revision(0)),
            pulled: Peer::new(),
            pushed: Peer::new(),
            whole: Whole::default(),
        })
    }

    /// Keeps both streams until the process ends.
    pub(super) fn run(&self, name: &str, types: &Types, holding: Holding) {
        let node = Node {
            name: name.to_owned(),
            instance: uuid::Uuid::new_v4().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: millis(),
            take_over: false,
        };
        let publisher = Publisher {
            view: Arc::clone(&self.view),
            types: types.pushed.clone(),
            part: types.part,
            node: node.clone(),
            peer: self.pushed.clone(),
        };
        let mut subscriber = Subscriber {
            sink: holding,
            types: types.pulled.clone(),
            node,
            peer: self.pulled.clone(),
            control: Control::new(),
        };
        let (pull, push) = (self.connector.clone(), self.connector.clone());
        tokio::spawn(async move { pull.pull(&mut subscriber, CancellationToken::new()).await });
        tokio::spawn(async move { push.push(&publisher, CancellationToken::new()).await });
    }

    pub(super) fn publish(&self, resources: impl IntoIterator<Item = Arc<Encoded>>) {
        self.view.apply(Revision(millis()), resources.into_iter().map(ViewChange::Upsert));
    }

    /// Whether both directions are up since then and have nothing left to say. (That a subscriber calls itself current comes
    /// later: it waits for a heartbeat, up to 5 s.)
    pub(super) fn is_in_sync(&self, since: Instant) -> bool {
        let up = |peer: &Peer, equal: fn(&PeerState) -> bool| {
            let states = peer.watch();
            let state = states.borrow();
            state.connected && state.since.is_some_and(|at| at >= since) && equal(&state)
        };
        self.whole.at().is_some_and(|at| at >= since)
            && up(&self.pulled, |state| state.revision >= state.announced)
            && up(&self.pushed, |state| state.behind == Behind::Current)
    }

    /// Why it is not, if that is known.
    pub(super) fn trouble(&self) -> Option<String> {
        [&self.pulled, &self.pushed].into_iter().find_map(|peer| {
            let state = peer.state();
            let rejected = state.rejected.first().map(|it| format!("{}: {}", it.id, it.reason));
            state.error.or(state.refused).or(rejected)
        })
    }
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
