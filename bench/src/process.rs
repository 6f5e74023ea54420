//! Programs that are measured.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take until it serves: with 1,000 services, a control plane that was built for debugging is slow.
const START: Duration = Duration::from_secs(180);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(20);

/// A running program; ended when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    /// Shared pages in proportion.
    pub(crate) pss: u64,
    /// Pages that are its own alone.
    pub(crate) private: u64,
}

impl Process {
    pub(crate) fn start(name: &str, program: &Path, words: &[&str], folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::create(&log)?;
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} ({})", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until it listens there.
    pub(crate) fn wait_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.wait(&format!("to listen on {address}"), || TcpStream::connect(address).is_ok())
    }

    /// Waits for a condition as long as it runs.
    pub(crate) fn wait(&mut self, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
        let began = Instant::now();
        while !holds() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, self.log());
            }
            if began.elapsed() > START {
                bail!("{} did not come {what} in {START:?}:\n{}", self.name, self.log());
            }
            wait_a_little();
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads, in nanoseconds.
    pub(crate) fn cpu(&self) -> Result<u64> {
        let mut all = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            // One that has ended since the list was read is no longer counted.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            all += text.split_whitespace().next().unwrap_or("0").parse::<u64>()?;
        }
        Ok(all)
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let private = of("Private_Clean:") + of("Private_Dirty:");
        Ok(Memory { rss: of("Rss:"), pss: of("Pss:"), private })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bench itself is a plain program: there is no runtime to block"
)]
fn wait_a_little() {
    std::thread::sleep(LOOK);
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        drop(self.child.wait());
    }
}
