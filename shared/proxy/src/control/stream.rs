//! The two directions of the stream to the zone's control plane.

use super::{Control, Registration};
use futures::FutureExt;
use meridian_delta::{
    Batch, Behind, Control as Operator, Encoded, Peer, Position, Publisher, Rejected, Resume, Revision,
    SMALL_PART, Sink, SinkError, StoreId, Subscriber, Version, View, ViewChange,
};
use meridian_proxy_config::{report_types, types};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

/// What is known of the stream, and what this proxy says over it.
pub(super) struct Stream {
    pub(super) pulled: Peer,
    pub(super) pushed: Peer,
    /// What this proxy publishes.
    pub(super) view: Arc<View>,
    position: Mutex<Option<Position>>,
    changes: watch::Sender<u64>,
    /// When the last batch came, or the configuration on disk was written; milliseconds since 1970.
    applied_at: Mutex<u64>,
}

impl Stream {
    pub(super) fn new(registration: &Registration) -> Self {
        // A store that is always the same for one proxy, and revisions that only grow: the time.
        let Version(store) = Version::of(registration.node_name().as_bytes());
        Self {
            pulled: Peer::new(),
            pushed: Peer::new(),
            view: View::new(StoreId(store), Revision(0)),
            position: Mutex::default(),
            changes: watch::Sender::new(0),
            applied_at: Mutex::default(),
        }
    }

    pub(super) fn position(&self) -> Option<Position> {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn restored(&self, position: Option<Position>, at: u64) {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
        *self.applied_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// When the configuration last came.
    pub(super) fn applied_at(&self) -> u64 {
        *self.applied_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self, position: Option<Position>) {
        if position.is_some() {
            *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
        }
        *self.applied_at.lock().unwrap_or_else(PoisonError::into_inner) = now_millis();
        self.changes.send_modify(|count| *count += 1);
    }

    /// Publishes a resource of this proxy's own.
    pub(super) fn publish(&self, resource: Arc<Encoded>) {
        self.view.apply(Revision(now_millis()), [ViewChange::Upsert(resource)]);
    }
}

pub(super) fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// So long what came of a step waits for the rest of it: compiled whole, it costs one pass instead of one a part, and
/// nobody sees half of it. A step that takes longer is shown as far as it has come: what it takes away is to hold.
const STEP_WAIT: Duration = Duration::from_millis(100);

struct Applying {
    control: Arc<Control>,
    /// Shows what has come of a step that is not whole.
    showing: Option<AbortHandle>,
}

impl Applying {
    /// Shows parts after a while, whether more comes or not: the link may be cut by then. Where nothing holds yet, there
    /// is nothing to take away, and half a configuration would be taken for a whole one.
    fn show_soon(&mut self) {
        let first = self.control.engine.shared().snapshots.load().proxy.is_none();
        if first || self.showing.as_ref().is_some_and(|showing| !showing.is_finished()) {
            return;
        }
        let control = self.control.clone();
        let showing = tokio::spawn(async move {
            tokio::time::sleep(STEP_WAIT).await;
            control.engine.republish();
        });
        self.showing = Some(showing.abort_handle());
    }
}

impl Sink for Applying {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        Ok(Resume { position: self.control.stream.position(), have: self.control.engine.have() })
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        let engine = &self.control.engine;
        let rejected = if batch.complete {
            if let Some(showing) = self.showing.take() {
                showing.abort();
            }
            engine.apply(&batch.upserts, &batch.removals)
        } else {
            let rejected = engine.apply_part(&batch.upserts, &batch.removals);
            self.show_soon();
            rejected
        };
        self.control.stream.applied(batch.position);
        tracing::debug!(
            revision = %batch.revision,
            upserts = batch.upserts.len(),
            removals = batch.removals.len(),
            complete = batch.complete,
            rejected = rejected.len(),
            "configuration"
        );
        Ok(rejected)
    }
}

/// Follows the control plane until told to stop.
pub(super) async fn pull(control: Arc<Control>, closing: CancellationToken) {
    let mut subscriber = Subscriber {
        types: types::ALL.iter().map(|name| (*name).into()).collect(),
        node: control.node.clone(),
        peer: control.stream.pulled.clone(),
        control: Operator::new(),
        sink: Applying { control: control.clone(), showing: None },
    };
    control.settings.link.connector.pull(&mut subscriber, closing).boxed().await;
}

/// Tells the workers since when what they know may be out of date.
pub(super) async fn age(control: Arc<Control>) {
    let mut states = control.stream.pulled.watch();
    loop {
        let behind = states.borrow_and_update().behind;
        match behind {
            Behind::Current => control.engine.shared().contact.current(),
            Behind::Since(at) => control.engine.shared().contact.behind_since(at.into()),
            Behind::Never => {}
        }
        if states.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells the control plane what this proxy is and sees, until told to stop.
pub(super) async fn push(control: Arc<Control>, closing: CancellationToken) {
    match control.registration.encoded() {
        Ok(resource) => control.stream.publish(resource),
        Err(error) => return tracing::error!(%error, "this proxy can't be registered"),
    }
    let own = control.registration.kind();
    let publisher = Publisher {
        view: control.stream.view.clone(),
        types: [own, report_types::STATUS, report_types::DENIALS].map(Into::into).to_vec(),
        part: SMALL_PART,
        node: control.node.clone(),
        peer: control.stream.pushed.clone(),
    };
    let complaints = print_rejections(control.stream.pushed.clone());
    tokio::select! {
        () = control.settings.link.connector.push(&publisher, closing).boxed() => {}
        () = complaints => {}
    }
}

/// What the control plane does not accept of this proxy, its own resource above all, is for its operator to read.
async fn print_rejections(peer: Peer) {
    let mut states = peer.watch();
    let mut shown = Vec::new();
    loop {
        let rejected = states.borrow_and_update().rejected.clone();
        for one in rejected.iter().filter(|one| !shown.contains(*one)) {
            tracing::error!(resource = %one.id, reason = %one.reason, "the control plane refuses");
        }
        shown = rejected;
        if states.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
