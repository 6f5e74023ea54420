//! A TCP link that can go silent: bytes are taken and lead nowhere, as when a firewall drops packets.

use anyhow::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    silent: Arc<AtomicBool>,
    /// Connections of earlier generations stay silent for ever.
    generation: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    pub(crate) async fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, silent) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let (generation, watched) = watch::channel(0);
        let task = tokio::spawn({
            let silent = Arc::clone(&silent);
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    let (silent, mut watched) = (Arc::clone(&silent), watched.clone());
                    tokio::spawn(async move {
                        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                        carry(near, far, &silent, &mut watched).await;
                    });
                }
            }
        });
        Ok(Self { address, silent, generation, task })
    }

    /// From now on nothing passes, and nobody is told.
    pub(crate) fn cut(&self) {
        self.silent.store(true, Ordering::SeqCst);
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// New connections work; what was open when it was cut stays silent.
    pub(crate) fn mend(&self) {
        self.silent.store(false, Ordering::SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    silent: &AtomicBool,
    generation: &mut watch::Receiver<u64>,
) {
    generation.borrow_and_update();
    if !silent.load(Ordering::SeqCst) {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            _ = generation.changed() => {}
        }
    }
    // Both ends stay open until the test is over.
    std::future::pending::<()>().await;
}
