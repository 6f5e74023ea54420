//! Waiting for a condition with a deadline: the only way in which tests here wait.

use anyhow::{Result, bail};
use std::future::Future;
use std::time::{Duration, Instant};

/// Default deadline of a condition in a test: generous, since a shared machine may be slow.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How often a condition from outside (a process's answer, a file) is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value; fails with `what` and the last reason after `deadline`.
pub async fn until<T, F, R>(what: &str, deadline: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<T>>,
{
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(reason) if start.elapsed() >= deadline => {
                bail!("waited {:?} for {what}: {reason:#}", start.elapsed())
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
