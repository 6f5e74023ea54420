//! What a proxy that rests does without.

use super::Control;
use std::{sync::Arc, time::Duration};

/// Without a new configuration for so long, a proxy rests: what starting and configuring it needs is over.
const SETTLED: Duration = Duration::from_secs(5);

/// Gives back, each time a configuration has settled, the pages of the program that it took. What traffic needs of them
/// comes back with it, by some dozens of page faults.
pub(super) async fn shrink(control: Arc<Control>) {
    let mut changes = control.engine.shared().snapshots.subscribe();
    loop {
        match tokio::time::timeout(SETTLED, changes.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        if let Err(error) = meridian_os::unmap_program() {
            tracing::debug!(%error, "the program's pages stay in memory");
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
