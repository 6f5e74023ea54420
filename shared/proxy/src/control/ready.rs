//! Port 9902: `/ready` and `/metrics`, for the outside of the proxy.

use super::{Control, admin};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

pub(super) async fn serve(control: Arc<Control>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(admin::connection(control.clone(), stream, false))),
            Err(error) => {
                tracing::warn!(%error, "readiness");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

impl Control {
    /// What is missing before traffic can be served; nothing: it can.
    pub(super) fn missing(&self) -> Vec<String> {
        let shared = self.engine.shared();
        let snapshot = shared.snapshots.load();
        let mut missing = Vec::new();
        if self.drain.is_cancelled() {
            missing.push("draining".to_owned());
        }
        let Some(proxy) = &snapshot.proxy else {
            missing.push("no configuration yet".to_owned());
            return missing;
        };
        for mesh in proxy.identities.iter().filter(|mesh| !shared.tls.ready(mesh)) {
            missing.push(format!("no certificate for mesh {mesh} yet"));
        }
        for (address, reason) in shared.listening.failed() {
            missing.push(format!("can't listen on {address}: {reason}"));
        }
        if shared.listening.generation() == 0 {
            missing.push("not listening yet".to_owned());
        }
        missing
    }
}
