//! A throw-away Postgres cluster: real, on a directory of its own, gone when its owner is.
//!
//! Postgres refuses to run as root, so as root it runs as an unprivileged user. It dies with the process that started it,
//! also if that is killed; directories that a killed process left are removed by the next start.

use crate::wait;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, getuid};
use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::watch;

const DIRECTORY: &str = "meridian-postgres-";
/// The superuser of every cluster; no password is asked.
const USER: &str = "meridian";
const STARTUP: Duration = Duration::from_secs(60);

/// How a cluster is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Words before every command: `["ip", "netns", "exec", NAME]` to run in a network namespace.
    pub prefix: Vec<String>,
    /// Where it listens for TCP, besides its Unix socket.
    pub address: String,
    /// None: one that is free in this process's namespace.
    pub port: Option<u16>,
    /// Further lines of `postgresql.conf`.
    pub config: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { prefix: Vec::new(), address: "127.0.0.1".to_owned(), port: None, config: Vec::new() }
    }
}

/// A cluster. Dropping it ends the server and removes its files.
pub struct Postgres {
    settings: Settings,
    binaries: PathBuf,
    directory: tempfile::TempDir,
    owner: Option<User>,
    port: u16,
    server: Mutex<Option<Server>>,
}

/// The postmaster, watched by a thread that lives as long as it does.
struct Server {
    pid: Pid,
    ended: watch::Receiver<bool>,
    watcher: std::thread::JoinHandle<()>,
}

/// Where this machine's Postgres programs are: the newest version of Debian's layout, else those on the PATH.
pub fn binaries() -> Option<PathBuf> {
    let complete = |directory: &PathBuf| {
        ["initdb", "postgres", "psql", "pg_dump"].iter().all(|name| directory.join(name).is_file())
    };
    let version = |path: &PathBuf| {
        path.parent()
            .and_then(Path::file_name)
            .and_then(OsStr::to_str)
            .and_then(|name| name.parse::<u32>().ok())
    };
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = debian.map(|entry| entry.path().join("bin")).filter(complete).max_by_key(version);
    newest.or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(complete))
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub async fn start(settings: Settings) -> Result<Self> {
        let binaries =
            binaries().context("no Postgres server programs here (Debian: apt install postgresql)")?;
        remove_left_overs();
        let owner = owner()?;
        let directory =
            tempfile::Builder::new().prefix(&format!("{DIRECTORY}{}-", std::process::id())).tempdir()?;
        if let Some(owner) = &owner {
            chown(directory.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        }
        let port = match settings.port {
            Some(port) => port,
            None => TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port(),
        };
        let cluster = Self { settings, binaries, directory, owner, port, server: Mutex::new(None) };
        cluster.initialise().await?;
        cluster.launch().await?;
        Ok(cluster)
    }

    async fn initialise(&self) -> Result<()> {
        let data = self.data_directory();
        let initdb = [
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
            "--encoding=UTF8",
            "--locale=C",
            "-U",
            USER,
            "-D",
        ];
        self.run(self.command("initdb").args(initdb).arg(&data), None).await?;
        // The files survive the end of the process without fsync, and nobody needs them after a power cut.
        let mut config = format!(
            "listen_addresses = '{}'\nport = {}\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 100\n",
            self.settings.address,
            self.port,
            self.directory.path().display()
        );
        for (name, value) in &self.settings.config {
            config.push_str(&format!("{name} = {value}\n"));
        }
        append(&data.join("postgresql.conf"), &config)?;
        append(&data.join("pg_hba.conf"), "host all all all trust\n")
    }

    /// Starts the server of a cluster that [`Postgres::stop`] or [`Postgres::kill`] has ended; waits until it answers.
    pub async fn launch(&self) -> Result<()> {
        wait::until("Postgres to start", STARTUP, || async {
            // After a kill, its orphans may hold the data for a moment: then it ends at once and is started again.
            if self.with_server(|server| *server.ended.borrow()).unwrap_or(true) {
                self.spawn()?;
            }
            self.psql("postgres", "SELECT 1").await.with_context(|| self.log_tail()).map(drop)
        })
        .await
    }

    fn spawn(&self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut words = self.words(&["setpriv", "--pdeathsig", "QUIT"]);
        words.push(self.binaries.join("postgres").display().to_string());
        words.extend(["-D".to_owned(), self.data_directory().display().to_string()]);
        let (program, args) = words.split_first().context("an empty command")?;
        let mut command = std::process::Command::new(program);
        command.args(args).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let (started, pid) = std::sync::mpsc::sync_channel(1);
        let (end, ended) = watch::channel(false);
        // The kernel ties "dies with its parent" to the thread that started it, so that thread waits for its end.
        let watcher = std::thread::Builder::new().name("postgres".to_owned()).spawn(move || {
            let child = command.spawn();
            let _ = started.send(child.as_ref().map(std::process::Child::id).map_err(ToString::to_string));
            let _ = child.and_then(|mut child| child.wait());
            end.send_replace(true);
        })?;
        let pid = pid.recv()?.map_err(anyhow::Error::msg).context("starting Postgres")?;
        let server = Server { pid: Pid::from_raw(i32::try_from(pid)?), ended, watcher };
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    /// Creates an empty database and returns its URL over TCP.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        self.psql("postgres", &format!("CREATE DATABASE \"{name}\"")).await?;
        Ok(self.url(name))
    }

    /// The URL of a database over TCP.
    pub fn url(&self, database: &str) -> String {
        let address = match self.settings.address.as_str() {
            "*" => "127.0.0.1".to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]"),
            other => other.to_owned(),
        };
        format!("postgres://{USER}@{address}:{}/{database}?sslmode=disable", self.port)
    }

    /// The URL of a database over the Unix socket.
    pub fn socket_url(&self, database: &str) -> String {
        let socket = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://{USER}@{socket}:{}/{database}?sslmode=disable", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory of its Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the server has logged since the cluster was made.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(10)).copied().collect::<Vec<_>>().join("\n")
    }

    /// Ends the server in an orderly way ("fast": sessions are cut, data is written).
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::SIGINT).await
    }

    /// `kill -9` of the postmaster; its other processes end by themselves.
    pub async fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await
    }

    /// Stop and start, on the same port and data.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.launch().await
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        let server = self.with_server(|server| (server.pid, server.ended.clone()));
        let (pid, mut ended) = server.context("Postgres was never started")?;
        if *ended.borrow_and_update() {
            bail!("Postgres has ended already:\n{}", self.log_tail());
        }
        kill(pid, signal).context("signalling Postgres")?;
        match tokio::time::timeout(STARTUP, ended.wait_for(|ended| *ended)).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("Postgres did not end after {signal}:\n{}", self.log_tail()),
        }
    }

    fn with_server<T>(&self, look: impl FnOnce(&Server) -> T) -> Option<T> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    /// Runs SQL and returns what it gives, unaligned and without headers.
    pub async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.command("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            USER,
            "-d",
            database,
            "-c",
            sql,
        ]);
        let bytes = self.run(self.connected(&mut command), None).await?;
        Ok(String::from_utf8(bytes)?.trim_end().to_owned())
    }

    /// A database as SQL.
    pub async fn dump(&self, database: &str) -> Result<Vec<u8>> {
        let mut command = self.command("pg_dump");
        command.args(["-U", USER, "-d", database]);
        self.run(self.connected(&mut command), None).await
    }

    /// Replaces a database by what [`Postgres::dump`] gave; open sessions on it are cut.
    pub async fn restore(&self, database: &str, dump: &[u8]) -> Result<()> {
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)")).await?;
        self.create_database(database).await?;
        let mut command = self.command("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", database]);
        self.run(self.connected(&mut command), Some(dump)).await.map(drop)
    }

    /// The words that run something in the right namespace as the right user.
    fn words(&self, setpriv: &[&str]) -> Vec<String> {
        let mut words = self.settings.prefix.clone();
        words.extend(setpriv.iter().map(|&word| word.to_owned()));
        if let Some(owner) = &self.owner {
            if setpriv.is_empty() {
                words.push("setpriv".to_owned());
            }
            words.extend([
                format!("--reuid={}", owner.uid),
                format!("--regid={}", owner.gid),
                "--clear-groups".to_owned(),
            ]);
        }
        words
    }

    fn command(&self, program: &str) -> Command {
        let mut words = self.words(&[]);
        words.push(self.binaries.join(program).display().to_string());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        // Clients take every PG… variable as a default, and a user's must not lead them elsewhere.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.args(words).current_dir("/").env("LC_ALL", "C").kill_on_drop(true);
        command
    }

    fn connected<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.arg("-h").arg(self.directory.path()).arg("-p").arg(self.port.to_string())
    }

    async fn run(&self, command: &mut Command, input: Option<&[u8]>) -> Result<Vec<u8>> {
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pipe = child.stdin.take();
        let feed = async {
            if let (Some(mut pipe), Some(input)) = (pipe, input) {
                // A reader that stops early says why on stderr.
                let _ = pipe.write_all(input).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output?;
        if !output.status.success() {
            bail!("{:?}: {}", command.as_std(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(server) = self.server.get_mut().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        if !*server.ended.borrow() {
            // Immediate shutdown: all its processes end at once (it kills those that do not), and the files are about to go.
            let _ = kill(server.pid, Signal::SIGQUIT);
        }
        let _ = server.watcher.join();
    }
}

/// Whom Postgres runs as: None if we are not root.
fn owner() -> Result<Option<User>> {
    if !getuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!("root cannot run Postgres, and there is no user \"postgres\" or \"nobody\"")
}

/// Removes the directories of processes that are gone.
fn remove_left_overs() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY)) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            // Another process may be doing the same.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn append(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| format!("writing {path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_keeps_its_data_over_restart_and_kill_and_can_be_restored() -> Result<()> {
        let postgres = Postgres::start(Settings::default()).await?;
        postgres.create_database("shop").await?;
        postgres.psql("shop", "CREATE TABLE t (x int); INSERT INTO t VALUES (1)").await?;
        postgres.restart().await?;
        let dump = postgres.dump("shop").await?;
        postgres.psql("shop", "INSERT INTO t VALUES (2)").await?;
        postgres.kill().await?;
        postgres.launch().await?;
        assert_eq!(postgres.psql("shop", "SELECT count(*) FROM t").await?, "2");
        postgres.restore("shop", &dump).await?;
        assert_eq!(postgres.psql("shop", "SELECT count(*) FROM t").await?, "1");
        let directory = postgres.socket_directory().to_owned();
        drop(postgres);
        assert!(!directory.exists());
        Ok(())
    }

    #[tokio::test]
    async fn a_cluster_on_a_host_of_a_laboratory_is_reached_from_another() -> Result<()> {
        let lab = crate::net::Lab::new("pg").await?;
        let network = lab.network(&["10.1.0.1/24"]).await?;
        let database = lab.host("database", &network, &["10.1.0.2"]).await?;
        let client = lab.host("client", &network, &["10.1.0.3"]).await?;
        let settings = Settings {
            prefix: database.prefix(),
            address: "10.1.0.2".to_owned(),
            port: Some(5432),
            ..Settings::default()
        };
        let postgres = Postgres::start(settings).await?;
        let url = postgres.create_database("shop").await?;
        let psql = binaries().context("no Postgres")?.join("psql").display().to_string();
        let seen = client.run(&[&psql, &url, "-Atc", "SELECT inet_client_addr()"]).await?;
        assert_eq!(seen.trim(), "10.1.0.3");
        postgres.restart().await?;
        assert_eq!(client.run(&[&psql, &url, "-Atc", "SELECT 7"]).await?.trim(), "7");
        Ok(())
    }
}
