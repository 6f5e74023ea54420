//! The thread of a worker: follows the snapshots, obeys the control thread.

use super::{ConnectionInfo, Direction, Worker};
use crate::{health::Checks, listener::Listeners, shared::Shared};
use std::{io, rc::Rc, sync::Arc, thread, time::Duration};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
};

/// A worker touches little of its stack; only touched pages count.
const STACK: usize = 1 << 20;
/// How often an address that could not be listened on is tried again.
const RETRY_BIND: Duration = Duration::from_secs(1);

/// What the control thread tells a worker.
pub enum Command {
    /// Take nothing new from peers, let what is open finish; answered when no connection of theirs and of the
    /// application's is left.
    Drain(oneshot::Sender<()>),
    /// What is open.
    List(oneshot::Sender<Vec<OpenConnections>>),
    Stop,
}

/// Open connections that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenConnections {
    pub info: ConnectionInfo,
    pub count: usize,
}

/// The control thread's end of a worker. Dropping it ends the worker.
pub struct Handle {
    commands: mpsc::Sender<Command>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Handle {
    /// Starts to drain; the receiver answers when the worker has finished.
    pub async fn drain(&self) -> oneshot::Receiver<()> {
        let (done, receiver) = oneshot::channel();
        drop(self.commands.send(Command::Drain(done)).await);
        receiver
    }

    /// What is open now; nothing if the worker has ended.
    pub async fn connections(&self) -> Vec<OpenConnections> {
        let (answer, receiver) = oneshot::channel();
        drop(self.commands.send(Command::List(answer)).await);
        receiver.await.unwrap_or_default()
    }

    /// Resolves when the worker's thread has ended, which is fatal for the proxy unless it was told to.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.commands.try_send(Command::Stop));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Starts a worker's thread.
///
/// # Errors
/// The thread or its runtime could not be made.
pub fn start(index: usize, shared: Arc<Shared>) -> io::Result<Handle> {
    let (commands, receiver) = mpsc::channel(16);
    let runtime = move || Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let thread = thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK).spawn(
        move || match runtime() {
            Ok(runtime) => runtime.block_on(run(index, shared, receiver)),
            Err(error) => tracing::error!(%error, "a worker has no runtime"),
        },
    )?;
    Ok(Handle { commands, thread: Some(thread) })
}

async fn run(index: usize, shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let mut changes = shared.snapshots.subscribe();
    let worker = Worker::new(index, shared);
    let mut listeners = Listeners::default();
    let mut checks = Checks::default();
    let mut peers = true;
    loop {
        changes.mark_unchanged();
        let snapshot = worker.snapshot();
        worker.upstreams.refresh(&snapshot);
        worker.scripts.refresh(&snapshot);
        worker.connections().recheck(&snapshot, &worker.shared.tls);
        checks.reconcile(&worker, &snapshot);
        let retry = listeners.reconcile(&worker, &snapshot, peers);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY_BIND), if retry => {}
            command = commands.recv() => match command {
                Some(Command::Drain(done)) => {
                    peers = false;
                    drain(&worker, done);
                }
                Some(Command::List(answer)) => drop(answer.send(list(&worker))),
                Some(Command::Stop) | None => return,
            },
        }
    }
}

fn drain(worker: &Rc<Worker>, done: oneshot::Sender<()>) {
    let peers = [Direction::Inbound, Direction::Through];
    worker.connections().drain(|info| peers.contains(&info.direction));
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        // The application may need its own connections until its callers are served.
        worker.connections().gone(&peers).await;
        worker.connections().drain(|info| info.direction == Direction::Outbound);
        worker.connections().gone(&[Direction::Outbound]).await;
        let _ = done.send(());
    });
}

fn list(worker: &Worker) -> Vec<OpenConnections> {
    let mut all = worker.connections().list();
    all.sort();
    let mut grouped: Vec<OpenConnections> = Vec::new();
    for info in all {
        match grouped.last_mut().filter(|last| last.info == info) {
            Some(last) => last.count += 1,
            None => grouped.push(OpenConnections { info, count: 1 }),
        }
    }
    grouped
}
