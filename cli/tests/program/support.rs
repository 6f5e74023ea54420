use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_meridian");
/// Keys are made on the first start, and machines are shared.
const START: Duration = Duration::from_secs(60);

/// `meridian` without anything of the caller's environment that could change what it does.
pub(crate) fn meridian() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("HOME", "/nonexistent").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

pub(crate) fn run(words: &[&str], input: &str) -> Output {
    let mut child = meridian()
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A global control plane on ports of its own; it ends with the test.
pub(crate) struct GlobalCp {
    process: Child,
    data: Option<tempfile::TempDir>,
    pub(crate) http: String,
    pub(crate) https: String,
}

impl GlobalCp {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub(crate) fn start_in(data: tempfile::TempDir) -> Self {
        let any = "127.0.0.1:0";
        let mut process = meridian()
            .args(["global-cp", "--tls-san", "127.0.0.1", "--api-http", any, "--api-https", any])
            .args(["--sync-listen", any, "--diagnostics", any, "--data-dir"])
            .arg(data.path())
            .env("MERIDIAN_LOG_FORMAT", "json")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = ready(&mut process);
        let address = |name: &str| ready[name].as_str().unwrap().to_owned();
        let (http, https) =
            (format!("http://{}", address("api_http")), format!("https://{}", address("api_https")));
        Self { process, data: Some(data), http, https }
    }

    /// Ends it as systemd would; gives its data.
    pub(crate) fn stop(mut self) -> tempfile::TempDir {
        let process = nix::unistd::Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = self.process.wait().unwrap();
        assert!(ended.success(), "it ended with {ended}");
        self.data.take().unwrap()
    }

    pub(crate) fn data(&self) -> &tempfile::TempDir {
        self.data.as_ref().unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.data().path().join(name).display().to_string()
    }

    /// A command as its administrator.
    pub(crate) fn meridian(&self, line: &str, input: &str) -> Output {
        let token = self.file("admin-token");
        let words = line.split(' ').chain(["--address", &self.http, "--token-file", &token]);
        run(&words.collect::<Vec<_>>(), input)
    }

    /// The same, which must succeed.
    pub(crate) fn succeeds(&self, line: &str, input: &str) -> String {
        let output = self.meridian(line, input);
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        stdout(&output)
    }

    /// The same, which must fail with this code.
    pub(crate) fn fails(&self, line: &str, input: &str, code: i32) -> String {
        let output = self.meridian(line, input);
        assert_eq!(output.status.code(), Some(code), "{line}: {}{}", stdout(&output), stderr(&output));
        stderr(&output)
    }
}

impl Drop for GlobalCp {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn write(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The fields of the `ready` line. What is logged after it is read and dropped, so that the process never waits.
fn ready(process: &mut Child) -> serde_json::Value {
    let log = BufReader::new(process.stderr.take().unwrap());
    let (found, ready) = sync_channel(1);
    std::thread::spawn(move || {
        let mut seen = String::new();
        for line in log.lines().map_while(Result::ok) {
            let fields: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            seen.push_str(&line);
            seen.push('\n');
            if fields["message"] == "ready" {
                let _ = found.try_send(Ok(fields));
            }
        }
        let _ = found.try_send(Err(seen));
    });
    let deadline = Instant::now() + START;
    match ready.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(fields)) => fields,
        Ok(Err(log)) => panic!("it ended before it was ready:\n{log}"),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            panic!("not ready within {START:?}")
        }
    }
}
