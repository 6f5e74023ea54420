//! Programs on hosts: who runs them, where their output goes, and how they end.

use crate::wait;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// A program that is to run on a host.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    words: Vec<String>,
    environment: Vec<(String, String)>,
    uid: Option<u32>,
    resolver: Option<PathBuf>,
}

/// A running program; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// `name` names the log file and appears in errors.
    pub fn new<S: AsRef<str>>(name: &str, words: impl IntoIterator<Item = S>) -> Self {
        let words = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        Self { name: name.to_owned(), words, environment: Vec::new(), uid: None, resolver: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its command line.
    pub(crate) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    /// Adds a word to the command line.
    pub fn arg(mut self, word: impl AsRef<str>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// Runs as this user and group, with no capabilities.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sees this file as `/etc/resolv.conf`.
    pub fn resolver(mut self, file: &Path) -> Self {
        self.resolver = Some(file.to_owned());
        self
    }

    /// The words that change to `uid`.
    pub(crate) fn identity(uid: u32) -> Vec<String> {
        [
            "setpriv",
            "--reuid",
            &uid.to_string(),
            "--regid",
            &uid.to_string(),
            "--clear-groups",
            "--bounding-set=-all",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    pub(crate) fn spawn_with(self, prefix: &[String], log: PathBuf) -> Result<Process> {
        let mut words: Vec<String> = prefix.to_vec();
        if let Some(file) = &self.resolver {
            let script = format!("mount --bind '{}' /etc/resolv.conf && exec \"$@\"", file.display());
            words.extend(["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned));
        }
        words.extend(self.uid.map(Self::identity).unwrap_or_default());
        words.extend(self.words);
        let (program, args) = words.split_first().context("an empty command")?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(args)
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {} ({program})", self.name))?;
        Ok(Process { name: self.name, child, log })
    }
}

impl Process {
    pub fn pid(&self) -> Result<i32> {
        let id = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        Ok(i32::try_from(id)?)
    }

    /// All that it has printed.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Waits until its log has a line with `text`; fails at once when it ends.
    pub async fn wait_for_log(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let started = std::time::Instant::now();
        loop {
            if self.log().contains(text) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it said {text:?}:\n{}", self.name, self.tail());
            }
            if started.elapsed() > deadline {
                bail!("{} did not say {text:?} in {deadline:?}:\n{}", self.name, self.tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| format!("signalling {}", self.name))
    }

    /// `kill -9`, and waits for the end.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match tokio::time::timeout(deadline, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end {deadline:?} after SIGTERM:\n{}", self.name, self.tail()),
        }
    }

    /// Waits for its end.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        match tokio::time::timeout(deadline, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end in {deadline:?}:\n{}", self.name, self.tail()),
        }
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in KiB, and CPU time used so far in milliseconds.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let pid = self.pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        let rss = rss.split_whitespace().next().unwrap_or("0").parse()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        // utime and stime are the 12th and 13th fields after the command; a tick is 10 ms.
        Ok((rss, (ticks(11) + ticks(12)) * 10))
    }

    /// How often its threads have waited for something and gone on since.
    pub fn wakeups(&self) -> Result<u64> {
        let mut all = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.pid()?))? {
            // One that has ended meanwhile waits for nothing.
            let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            all += count.map_or(Ok(0), |count| count.trim().parse::<u64>())?;
        }
        Ok(all)
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(30)).copied().collect::<Vec<_>>().join("\n")
    }
}

/// Waits until something listens on a TCP port as seen by `probe`.
pub async fn listening(address: std::net::SocketAddr) -> Result<()> {
    wait::until(&format!("{address} to listen"), wait::DEADLINE, || async move {
        tokio::net::TcpStream::connect(address).await?;
        Ok(())
    })
    .await
}
