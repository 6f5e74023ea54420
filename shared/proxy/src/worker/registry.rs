//! The connections of a worker, and how they end early: reset by a change that takes away, or drained.

use crate::{
    denial::Reason,
    snapshot::Snapshot,
    tls::{Peer, Tls, Trust},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// Whether a connection may live under a snapshot; `Err` says why not.
pub type Check = Box<dyn Fn(&Snapshot) -> Result<(), Reason>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the mesh to this proxy's application.
    Inbound,
    /// From this proxy's application.
    Outbound,
    /// To or from a pooled or dedicated upstream.
    Upstream,
    /// Passed on at an ingress or egress.
    Through,
}

/// For logs and the admin socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionInfo {
    pub direction: Direction,
    /// The inbound, outbound or route it belongs to.
    pub name: String,
    /// SPIFFE ID or address of the other end.
    pub peer: String,
}

/// How a tracked connection is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Finish what is in progress, take nothing new.
    Drain,
    /// End now, with a reset.
    Reset(Reason),
}

#[derive(Default)]
pub struct Registry {
    next: Cell<u64>,
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    changed: RefCell<Vec<Waker>>,
}

struct Entry {
    info: ConnectionInfo,
    peer: Option<Peer>,
    check: Check,
    ending: RefCell<Option<Ending>>,
    wakers: RefCell<Vec<Waker>>,
}

/// A connection in the registry. Dropping it takes it out.
pub struct Tracked {
    id: u64,
    entry: Rc<Entry>,
    registry: Rc<Registry>,
}

impl Registry {
    pub(super) fn track(
        self: &Rc<Self>,
        info: ConnectionInfo,
        peer: Option<Peer>,
        check: Check,
        snapshot: &Snapshot,
        tls: &Tls,
    ) -> Tracked {
        let entry =
            Rc::new(Entry { info, peer, check, ending: RefCell::default(), wakers: RefCell::default() });
        entry.judge(snapshot, tls);
        let id = self.next.get();
        self.next.set(id + 1);
        self.entries.borrow_mut().insert(id, entry.clone());
        Tracked { id, entry, registry: self.clone() }
    }

    /// Asks every connection anew. Called for each new snapshot.
    pub fn recheck(&self, snapshot: &Snapshot, tls: &Tls) {
        let entries: Vec<_> = self.entries.borrow().values().cloned().collect();
        for entry in entries {
            entry.judge(snapshot, tls);
        }
    }

    /// Resolves when no connection of these directions is left.
    pub async fn gone(&self, directions: &[Direction]) {
        poll_fn(|cx| {
            if directions.iter().all(|direction| self.count(*direction) == 0) {
                return Poll::Ready(());
            }
            self.changed.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Asks connections that `which` selects to finish.
    pub fn drain(&self, which: impl Fn(&ConnectionInfo) -> bool) {
        let entries: Vec<_> = self.entries.borrow().values().cloned().collect();
        for entry in entries.iter().filter(|entry| which(&entry.info)) {
            entry.end(Ending::Drain);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are of one direction.
    pub fn count(&self, direction: Direction) -> usize {
        self.entries.borrow().values().filter(|entry| entry.info.direction == direction).count()
    }

    /// What is open, for the admin socket.
    pub fn list(&self) -> Vec<ConnectionInfo> {
        self.entries.borrow().values().map(|entry| entry.info.clone()).collect()
    }
}

impl Entry {
    fn judge(&self, snapshot: &Snapshot, tls: &Tls) {
        match self.peer.as_ref().map(|peer| tls.trust(peer)) {
            Some(Trust::Revoked) => return self.end(Ending::Reset(Reason::UNTRUSTED_PEER)),
            Some(Trust::Leaving) => self.end(Ending::Drain),
            Some(Trust::Believed) | None => {}
        }
        if let Err(reason) = (self.check)(snapshot) {
            self.end(Ending::Reset(reason));
        }
    }

    fn end(&self, ending: Ending) {
        {
            let mut present = self.ending.borrow_mut();
            if matches!(&*present, Some(Ending::Reset(_))) || present.as_ref() == Some(&ending) {
                return;
            }
            *present = Some(ending);
        }
        for waker in self.wakers.take() {
            waker.wake();
        }
    }
}

impl Tracked {
    /// Resolves when the connection must end with a reset. Any number of futures may wait.
    pub async fn reset(&self) -> Reason {
        poll_fn(|cx| match &*self.entry.ending.borrow() {
            Some(Ending::Reset(reason)) => Poll::Ready(reason.clone()),
            _ => self.wait(cx.waker()),
        })
        .await
    }

    /// Resolves when the connection should finish: drained or reset.
    pub async fn ending(&self) -> Ending {
        poll_fn(|cx| match &*self.entry.ending.borrow() {
            Some(ending) => Poll::Ready(ending.clone()),
            None => self.wait(cx.waker()),
        })
        .await
    }

    /// Why it must end, if it must.
    pub fn must_reset(&self) -> Option<Reason> {
        match &*self.entry.ending.borrow() {
            Some(Ending::Reset(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    fn wait<T>(&self, waker: &Waker) -> Poll<T> {
        let mut wakers = self.entry.wakers.borrow_mut();
        if !wakers.iter().any(|present| present.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        Poll::Pending
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.registry.entries.borrow_mut().remove(&self.id);
        for waker in self.registry.changed.take() {
            waker.wake();
        }
    }
}
