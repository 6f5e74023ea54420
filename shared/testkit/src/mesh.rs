//! A whole mesh of real processes in a laboratory: a global control plane, zones, sidecars and their applications,
//! and an "internet" with documentation addresses.
//!
//! ```text
//!   core 10.0.0.0/24    global .10, second replica .11, Postgres .20
//!   ZONE 10.N.0.0/24    zone control plane .10, ingress .20, egress .30, sidecars from .101   (fd00:N::/64 alike)
//!   world 10.9.0.0/24   internet .9: 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32
//! ```

use crate::net::{Host, Lab, Network};
use crate::postgres::{Postgres, Settings};
use crate::process::{Process, Program};
use crate::wait;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The user of proxies: what capture lets out.
pub const PROXY_UID: u32 = 5678;
/// The user of applications.
pub const APP_UID: u32 = 1000;
/// Another user of the same host.
pub const OTHER_UID: u32 = 1001;
/// The internet's name server.
pub const NAME_SERVER: &str = "192.0.2.53";
/// How long a process may take until it is ready: keys are made, and machines are shared.
pub const START: Duration = Duration::from_secs(60);

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub meridian: PathBuf,
    pub app: PathBuf,
    pub dataplane: PathBuf,
    pub ingress: PathBuf,
    pub egress: PathBuf,
}

impl Programs {
    /// Beside the running program, or one folder above it (tests run from `deps/`).
    pub fn beside_this_one() -> Result<Self> {
        let this = std::env::current_exe()?;
        let folders = this.ancestors().skip(1).take(2).map(Path::to_owned);
        for folder in folders {
            if folder.join("meridian").is_file() {
                return Self::in_folder(&folder);
            }
        }
        bail!("no `meridian` beside {}: run `make build`", this.display())
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let find = |name: &str| {
            let path = folder.join(name);
            path.is_file()
                .then_some(path)
                .with_context(|| format!("no `{name}` in {}: run `make build`", folder.display()))
        };
        Ok(Self {
            meridian: find("meridian")?,
            app: find("meridian-app")?,
            dataplane: find("meridian-dataplane")?,
            ingress: find("meridian-zone-ingress")?,
            egress: find("meridian-zone-egress")?,
        })
    }
}

/// What stores the global control plane's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    Sqlite,
    /// A throw-away cluster.
    Postgres,
}

/// A mesh.
pub struct Mesh {
    // Order of fields is order of end: processes before the hosts they are on.
    pub global: ControlPlane,
    pub zones: BTreeMap<String, Zone>,
    pub internet: Internet,
    pub postgres: Option<Postgres>,
    /// Postgres's host.
    pub database: Option<Host>,
    core: Network,
    pub programs: Programs,
    pub lab: Lab,
}

/// One process of a control plane.
pub struct ControlPlane {
    pub host: Host,
    /// `None` while it is down.
    pub process: Option<Process>,
    program: Program,
    data: PathBuf,
}

/// One zone: its control plane and its proxies.
pub struct Zone {
    pub name: String,
    pub control_plane: ControlPlane,
    pub ingress: Option<Proxy>,
    pub egress: Option<Proxy>,
    number: u8,
    network: Network,
    next_address: u8,
}

/// A proxy, or a workload with its sidecar.
pub struct Proxy {
    pub name: String,
    pub host: Host,
    /// `None` while it is down.
    pub process: Option<Process>,
    /// Applications on the same host.
    pub applications: Vec<Process>,
    program: Program,
}

/// The host that plays everything outside of the mesh.
pub struct Internet {
    pub host: Host,
    pub processes: Vec<Process>,
    pub ca: crate::certificates::Authority,
}

/// A workload that is to run in a zone.
#[derive(Clone, Debug)]
pub struct Workload {
    pub name: String,
    /// The mesh that it is in.
    pub mesh: String,
    pub service: String,
    /// `http`, `http2`, `grpc` or `tcp`.
    pub protocol: String,
    /// Where the application listens.
    pub port: u16,
    /// Words for `meridian-app`; `{address}` is where it must listen. Empty: no application.
    pub app: Vec<String>,
    pub capture: bool,
    /// Further lines under `networking:`, indented by two.
    pub networking: String,
    /// Further words for the sidecar.
    pub flags: Vec<String>,
}

impl Workload {
    /// An HTTP workload with transparent capture.
    pub fn http(name: &str, service: &str) -> Self {
        Self {
            name: name.to_owned(),
            mesh: "default".to_owned(),
            service: service.to_owned(),
            protocol: "http".to_owned(),
            port: 8080,
            app: ["http", "--name", name, "--listen", "{address}"].map(str::to_owned).to_vec(),
            capture: true,
            networking: String::new(),
            flags: Vec::new(),
        }
    }

    /// Another protocol and application.
    pub fn speaking(mut self, protocol: &str, app: &str) -> Self {
        protocol.clone_into(&mut self.protocol);
        self.app = [app, "--listen", "{address}"].map(str::to_owned).to_vec();
        self
    }

    /// In another mesh.
    pub fn in_mesh(mut self, mesh: &str) -> Self {
        mesh.clone_into(&mut self.mesh);
        self
    }

    /// Without capture: it reaches the mesh by explicit outbounds only.
    pub fn without_capture(mut self) -> Self {
        self.capture = false;
        self
    }

    /// More settings under `networking:` (YAML, indented by two).
    pub fn with_networking(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.networking);
        self
    }

    /// More words for its sidecar.
    pub fn with_flags(mut self, words: &[&str]) -> Self {
        self.flags.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Its Dataplane, as a file of the operator's.
    pub fn resource(&self, address: IpAddr) -> String {
        let Self { name, mesh, service, protocol, port, networking, .. } = self;
        let capture = if self.capture {
            "  transparentProxying:\n    redirectPortInbound: 15006\n    redirectPortOutbound: 15001\n"
        } else {
            ""
        };
        // Captured, the application's own port is the inbound; without capture the sidecar listens on another one.
        let ports = if self.capture {
            format!("port: {port}")
        } else {
            format!("port: {}\n    serviceAddress: 127.0.0.1\n    servicePort: {port}", port + 10_000)
        };
        format!(
            "type: Dataplane\nmesh: {mesh}\nname: {name}\nnetworking:\n  address: {address}\n  inbound:\n  - {ports}\n    \
             tags:\n      kuma.io/service: {service}\n      kuma.io/protocol: {protocol}\n{capture}{networking}"
        )
    }
}

impl Mesh {
    /// A global control plane with these zones, each with ingress and egress, and an internet; no workloads yet.
    pub async fn start(name: &str, backing: Backing, zones: &[&str]) -> Result<Self> {
        let programs = Programs::beside_this_one()?;
        let lab = Lab::new(name).await?;
        let core = lab.network(&["10.0.0.1/24", "fd00:0::1/64"]).await?;
        let internet = Internet::start(&lab, &programs).await?;
        let host = lab.host("global", &core, &["10.0.0.10", "fd00:0::10"]).await?;
        let (postgres, database, store) = match backing {
            Backing::Sqlite => (None, None, None),
            Backing::Postgres => {
                let database = lab.host("postgres", &core, &["10.0.0.20", "fd00:0::20"]).await?;
                let settings = Settings {
                    prefix: database.prefix(),
                    address: database.ip().to_string(),
                    port: Some(5432),
                    // What reaches it is what the mesh sends: its own upkeep would be counted, too.
                    config: vec![("autovacuum".to_owned(), "off".to_owned())],
                };
                let postgres = Postgres::start(settings).await?;
                let url = postgres.create_database("meridian").await?;
                (Some(postgres), Some(database), Some(url))
            }
        };
        let global = ControlPlane::global(&programs, host, store.as_deref(), None)?;
        let mut mesh =
            Self { global, zones: BTreeMap::new(), internet, postgres, database, core, programs, lab };
        mesh.global.start().await?;
        for (index, zone) in zones.iter().enumerate() {
            mesh.add_zone(zone, u8::try_from(index)? + 1).await?;
        }
        Ok(mesh)
    }

    /// A second global replica on the same Postgres, at 10.0.0.11.
    pub async fn second_replica(&self) -> Result<ControlPlane> {
        let postgres = self.postgres.as_ref().context("a second replica needs Postgres")?;
        let host = self.lab.host("global2", &self.core, &["10.0.0.11", "fd00:0::11"]).await?;
        let key = self.global.data.join("encryption-key");
        let mut replica =
            ControlPlane::global(&self.programs, host, Some(&postgres.url("meridian")), Some(&key))?;
        replica.start().await?;
        Ok(replica)
    }

    async fn add_zone(&mut self, name: &str, number: u8) -> Result<()> {
        let network =
            self.lab.network(&[&format!("10.{number}.0.1/24"), &format!("fd00:{number}::1/64")]).await?;
        let host = self.lab.host(&format!("{name}-cp"), &network, &addresses(number, 10)).await?;
        let token = self
            .meridian(&["generate", "zone-token", "--zone", name, "--scope", "cp", "--valid-for", "24h"])
            .await?;
        let control_plane = ControlPlane::zone(&self.programs, host, name, &self.global, &token)?;
        let mut zone = Zone {
            name: name.to_owned(),
            control_plane,
            ingress: None,
            egress: None,
            number,
            network,
            next_address: 101,
        };
        zone.control_plane.start().await?;
        self.zones.insert(name.to_owned(), zone);
        self.add_zone_proxy(name, "ingress").await?;
        self.add_zone_proxy(name, "egress").await
    }

    async fn add_zone_proxy(&mut self, zone_name: &str, role: &str) -> Result<()> {
        let words = ["generate", "zone-token", "--zone", zone_name, "--scope", role, "--valid-for", "24h"];
        let token = self.meridian(&words).await?;
        let zone = self.zones.get_mut(zone_name).context("no such zone")?;
        let (last, port, program) = if role == "ingress" {
            (20, 10001, &self.programs.ingress)
        } else {
            (30, 10002, &self.programs.egress)
        };
        let host = self
            .lab
            .host(&format!("{zone_name}-{role}"), &zone.network, &addresses(zone.number, last))
            .await?;
        // Both zones use the same names, on purpose.
        let words = ["--name", role, "--address", &host.ip().to_string(), "--port", &port.to_string()]
            .map(str::to_owned);
        let program = zone.proxy_program(role, program, &host, "--token-file", &token)?;
        let program = words.iter().fold(program, Program::arg);
        let resolver = host.resolver(&[NAME_SERVER.parse()?])?;
        let mut proxy = Proxy {
            name: role.to_owned(),
            host,
            process: None,
            applications: Vec::new(),
            program: program.uid(PROXY_UID).resolver(&resolver),
        };
        proxy.start().await?;
        *(if role == "ingress" { &mut zone.ingress } else { &mut zone.egress }) = Some(proxy);
        Ok(())
    }

    /// A token for a sidecar of this name.
    pub async fn dataplane_token(&self, name: &str) -> Result<String> {
        self.dataplane_token_of("default", name).await
    }

    async fn dataplane_token_of(&self, mesh: &str, name: &str) -> Result<String> {
        let words = ["generate", "dataplane-token", "--mesh", mesh, "--name", name, "--valid-for", "24h"];
        self.meridian(&words).await
    }

    /// Runs a workload in a zone: its application, its sidecar and, if asked for, capture on its host.
    pub async fn workload(&mut self, zone_name: &str, workload: &Workload) -> Result<Proxy> {
        let token = self.dataplane_token_of(&workload.mesh, &workload.name).await?;
        self.workload_with_token(zone_name, workload, &token).await
    }

    /// The same with a token that was made before.
    pub async fn workload_with_token(
        &mut self,
        zone_name: &str,
        workload: &Workload,
        token: &str,
    ) -> Result<Proxy> {
        let zone = self.zones.get_mut(zone_name).context("no such zone")?;
        let last = zone.next_address;
        zone.next_address += 1;
        let host_name = format!("{zone_name}-{}", workload.name);
        let host = self.lab.host(&host_name, &zone.network, &addresses(zone.number, last)).await?;
        let file = host.write("dataplane.yaml", &workload.resource(host.ip()))?;
        let program = zone.proxy_program(
            "dataplane",
            &self.programs.dataplane,
            &host,
            "--dataplane-token-file",
            token,
        )?;
        let notice = host.directory().join("capture.json").display().to_string();
        let program = program.arg("--dataplane-file").arg(file.display().to_string()).uid(PROXY_UID);
        let program = program.arg("--capture-file").arg(notice.clone());
        let program = workload.flags.iter().fold(program, Program::arg);
        let resolver = host.resolver(&[NAME_SERVER.parse()?])?;
        let mut proxy = Proxy {
            name: workload.name.clone(),
            host,
            process: None,
            applications: Vec::new(),
            program: program.resolver(&resolver),
        };
        if workload.capture {
            let install = [
                self.programs.meridian.display().to_string(),
                "install".to_owned(),
                "transparent-proxy".to_owned(),
                "--kuma-dp-uid".to_owned(),
                PROXY_UID.to_string(),
                "--redirect-dns".to_owned(),
                "--capture-file".to_owned(),
                notice,
            ];
            proxy
                .host
                .run(&install.iter().map(String::as_str).collect::<Vec<_>>())
                .await
                .context("installing capture")?;
        }
        proxy.start().await?;
        if !workload.app.is_empty() {
            let ip = if workload.capture { proxy.host.ip() } else { IpAddr::from([127, 0, 0, 1]) };
            let listen = std::net::SocketAddr::new(ip, workload.port).to_string();
            let words = workload.app.iter().map(|word| word.replace("{address}", &listen));
            let words = std::iter::once(self.programs.app.display().to_string()).chain(words);
            let mut app = proxy.host.spawn(Program::new("app", words).uid(APP_UID))?;
            app.wait_for_log("listening on", START).await?;
            proxy.applications.push(app);
        }
        Ok(proxy)
    }

    /// Runs `meridian` beside the global control plane, as its administrator; gives what it printed.
    pub async fn meridian(&self, words: &[&str]) -> Result<String> {
        self.meridian_at(&self.global, words).await
    }

    /// The same beside another control plane.
    pub async fn meridian_at(&self, control_plane: &ControlPlane, words: &[&str]) -> Result<String> {
        self.meridian_by(control_plane, &[], words).await
    }

    async fn meridian_by(
        &self,
        control_plane: &ControlPlane,
        before: &[&str],
        words: &[&str],
    ) -> Result<String> {
        let token = self.admin_token_file(control_plane).display().to_string();
        let program = self.programs.meridian.display().to_string();
        let rest = ["--address", "http://127.0.0.1:5681", "--token-file", &token];
        control_plane.host.run(&[before, &[program.as_str()], words, &rest].concat()).await
    }

    /// Applies YAML.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.to_apply(yaml)?;
        self.meridian(&["apply", "-f", &file.display().to_string()]).await
    }

    /// Applies YAML; what was printed, warnings too.
    pub async fn apply_aloud(&self, yaml: &str) -> Result<String> {
        let file = self.to_apply(yaml)?;
        let both = ["sh", "-c", "exec \"$@\" 2>&1", "sh"];
        self.meridian_by(&self.global, &both, &["apply", "-f", &file.display().to_string()]).await
    }

    fn to_apply(&self, yaml: &str) -> Result<PathBuf> {
        let file = self.lab.directory().join(format!("apply-{}.yaml", serial()));
        std::fs::write(&file, yaml)?;
        Ok(file)
    }

    /// GETs a path of the REST API of `control_plane` as administrator.
    pub async fn get(&self, control_plane: &ControlPlane, path: &str) -> Result<serde_json::Value> {
        let token = std::fs::read_to_string(self.admin_token_file(control_plane))?;
        let header = format!("authorization: Bearer {}", token.trim());
        let url = format!("http://127.0.0.1:5681{path}");
        let text = control_plane.host.run(&["curl", "-sS", "--max-time", "10", "-H", &header, &url]).await?;
        serde_json::from_str(&text).with_context(|| format!("{path} answered: {text}"))
    }

    /// A zone's control plane has an administrator of its own; a second replica shares the first's.
    fn admin_token_file(&self, control_plane: &ControlPlane) -> PathBuf {
        let is_zone = self.zones.values().any(|zone| zone.control_plane.data == control_plane.data);
        (if is_zone { control_plane } else { &self.global }).data.join("admin-token")
    }

    /// A host in a zone's network that has nothing to do with the mesh: what it can reach, the network lets through.
    pub async fn lab_host_outside(&self, zone: &str) -> Result<Host> {
        let zone = self.zone(zone)?;
        self.lab.host(&format!("{}-outside", zone.name), &zone.network, &addresses(zone.number, 250)).await
    }

    /// A zone; an error if there is none of that name.
    pub fn zone(&self, name: &str) -> Result<&Zone> {
        self.zones.get(name).with_context(|| format!("no zone {name}"))
    }

    /// A zone, to change what runs in it.
    pub fn zone_mut(&mut self, name: &str) -> Result<&mut Zone> {
        self.zones.get_mut(name).with_context(|| format!("no zone {name}"))
    }
}

impl ControlPlane {
    fn global(programs: &Programs, host: Host, store: Option<&str>, key: Option<&Path>) -> Result<Self> {
        let data = host.directory().join("data");
        let mut program = Program::new("global-cp", [programs.meridian.display().to_string()])
            .arg("global-cp")
            .arg("--data-dir")
            .arg(data.display().to_string())
            .arg("--tls-san")
            .arg(host.ip().to_string());
        if let Some(url) = store {
            program = program.arg("--store-url").arg(url);
        }
        if let Some(key) = key {
            program = program.arg("--encryption-key-file").arg(key.display().to_string());
        }
        Ok(Self { host, process: None, program, data })
    }

    fn zone(programs: &Programs, host: Host, name: &str, global: &Self, token: &str) -> Result<Self> {
        let data = host.directory().join("data");
        let token = host.write("zone-token", token)?;
        let program = Program::new("zone-cp", [programs.meridian.display().to_string()])
            .arg("zone-cp")
            .arg("--zone")
            .arg(name)
            .arg("--data-dir")
            .arg(data.display().to_string())
            .arg("--global-address")
            .arg(format!("https://{}:5685", global.host.ip()))
            .arg("--ca-cert-file")
            .arg(global.data.join("ca.crt").display().to_string())
            .arg("--zone-token-file")
            .arg(token.display().to_string())
            .arg("--tls-san")
            .arg(host.ip().to_string());
        Ok(Self { host, process: None, program, data })
    }

    /// Starts it and waits until it serves.
    pub async fn start(&mut self) -> Result<()> {
        let mut process = self.host.spawn(self.program.clone())?;
        wait_ready(&mut process, &self.host, "http://127.0.0.1:5680/ready").await?;
        self.process = Some(process);
        Ok(())
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill().await
    }

    /// The sum of a metric's samples whose labels contain all of `labels` (`zone="east"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<u64> {
        let text =
            self.host.run(&["curl", "-sSf", "--max-time", "10", "http://127.0.0.1:5680/metrics"]).await?;
        let samples = text.lines().filter_map(|line| {
            let (head, value) = line.rsplit_once(' ')?;
            let rest = head.strip_prefix(name)?;
            let named = rest.is_empty() || rest.starts_with('{');
            (named && labels.iter().all(|label| rest.contains(label))).then(|| value.parse::<u64>())
        });
        let samples = samples.collect::<Result<Vec<u64>, _>>()?;
        anyhow::ensure!(!samples.is_empty(), "no sample of {name} {labels:?} in:\n{text}");
        Ok(samples.iter().sum())
    }

    /// Runs the program's words to their end instead, as for `global-cp restored`; it must be down.
    pub async fn run_command(&self, command: &str) -> Result<String> {
        anyhow::ensure!(self.process.is_none(), "{} runs", self.host.name());
        let mut words = self.program.words();
        words.insert(2, command);
        self.host.run(&words).await
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Adds a flag for the next start.
    pub fn add_flag(&mut self, words: &[&str]) {
        self.program = words.iter().fold(self.program.clone(), Program::arg);
    }
}

impl Zone {
    fn proxy_program(
        &self,
        name: &str,
        path: &Path,
        host: &Host,
        token_flag: &str,
        token: &str,
    ) -> Result<Program> {
        let token = host.write("token", token)?;
        let data = host.directory().join("proxy");
        // As an operator would: the control plane's data is its own, its CA goes to who must trust it.
        let ca = std::fs::read_to_string(self.control_plane.data.join("ca.crt"))?;
        let ca = host.write("cp-ca.crt", &ca)?;
        Ok(Program::new(name, [path.display().to_string()])
            .arg("--cp-address")
            .arg(format!("https://{}:5678", self.control_plane.host.ip()))
            .arg("--ca-cert-file")
            .arg(ca.display().to_string())
            .arg(token_flag)
            .arg(token.display().to_string())
            .arg("--data-dir")
            .arg(data.display().to_string()))
    }
}

impl Proxy {
    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) -> Result<()> {
        let mut process = self.host.spawn(self.program.clone())?;
        wait_ready(&mut process, &self.host, "http://127.0.0.1:9902/ready").await?;
        self.process = Some(process);
        Ok(())
    }

    /// `kill -9` of the proxy; its application goes on.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill().await
    }

    /// Removes all that the proxy has kept: key, certificate, last-good configuration.
    pub fn wipe(&self) -> Result<()> {
        anyhow::ensure!(self.process.is_none(), "{} runs", self.name);
        Ok(std::fs::remove_dir_all(self.host.directory().join("proxy"))?)
    }

    /// SIGTERM, and its end.
    pub async fn terminate(&mut self) -> Result<()> {
        let status =
            self.process.take().context("it does not run")?.terminate(Duration::from_secs(40)).await?;
        anyhow::ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs a command as the application's user: all that it printed, and whether it succeeded.
    pub async fn app(&self, words: &[&str]) -> Result<(bool, String)> {
        self.as_user(APP_UID, words).await
    }

    /// Runs a command as some user, with this host's resolver settings (the sidecar's DNS where capture redirects it).
    pub async fn as_user(&self, uid: u32, words: &[&str]) -> Result<(bool, String)> {
        let resolver = self.host.directory().join("resolv.conf");
        let program = Program::new(&format!("run-{}", serial()), words).uid(uid).resolver(&resolver);
        let mut process = self.host.spawn(program)?;
        let status = process.wait(Duration::from_secs(30)).await?;
        Ok((status.success(), process.log()))
    }

    /// Starts a program as the application's user.
    pub fn spawn_app(&self, name: &str, words: &[&str]) -> Result<Process> {
        let resolver = self.host.directory().join("resolv.conf");
        self.host.spawn(Program::new(name, words).uid(APP_UID).resolver(&resolver))
    }

    /// curl as the application: what it printed, with the status code as its last line; or its error.
    pub async fn curl(&self, words: &[&str]) -> Result<String> {
        let mut line = vec!["curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}"];
        line.extend(words);
        Ok(self.app(&line).await?.1)
    }
}

impl Internet {
    async fn start(lab: &Lab, programs: &Programs) -> Result<Self> {
        let network = lab.network(&["10.9.0.1/24", "fd00:9::1/64"]).await?;
        let addresses = [
            "10.9.0.9",
            "fd00:9::9",
            NAME_SERVER,
            "192.0.2.10",
            "192.0.2.66",
            "198.51.100.10",
            "203.0.113.10",
            "2001:db8::10",
            "2001:db8::66",
        ];
        let host = lab.host("internet", &network, &addresses).await?;
        for prefix in ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"] {
            lab.route(prefix, &host).await?;
        }
        let ca = crate::certificates::Authority::new("Laboratory internet CA")?;
        let mut internet = Self { host, processes: Vec::new(), ca };
        internet.serve_names(programs, &[]).await?;
        internet.serve(programs, "http", &["http", "--name", "internet", "--listen", "0.0.0.0:80"]).await?;
        internet
            .serve(programs, "http6", &["http", "--name", "internet", "--listen", "[2001:db8::66]:80"])
            .await?;
        internet.serve(programs, "tcp", &["tcp", "--listen", "0.0.0.0:7000"]).await?;
        internet.serve(programs, "udp", &["udp", "--listen", "192.0.2.66:7000"]).await?;
        let names = [
            "api.example.com",
            "other.example.com",
            "evil.example.net",
            "partner.example.net",
            "pinned.example.com",
        ];
        let (certificate, key) = internet.ca.issue(&names)?;
        let certificate = internet.host.write("server.pem", &certificate)?.display().to_string();
        let key = internet.host.write("server.key", &key)?.display().to_string();
        internet.host.write("ca.pem", &internet.ca.pem())?;
        let words =
            ["https", "--name", "internet", "--listen", "0.0.0.0:443", "--cert", &certificate, "--key", &key];
        internet.serve(programs, "https", &words).await?;
        Ok(internet)
    }

    /// (Re)starts the name server with further records (`name=address`).
    pub async fn serve_names(&mut self, programs: &Programs, more: &[&str]) -> Result<()> {
        if let Some(old) = (!self.processes.is_empty()).then(|| self.processes.remove(0)) {
            old.kill().await?;
        }
        let app = programs.app.display().to_string();
        let mut program =
            Program::new("dns", [app.as_str(), "dns", "--listen", &format!("{NAME_SERVER}:53")]);
        let records = [
            "api.example.com=192.0.2.10",
            "api.example.com=2001:db8::10",
            "other.example.com=192.0.2.10",
            "pinned.example.com=198.51.100.10",
            "evil.example.net=192.0.2.66",
            "partner.example.net=192.0.2.66",
            "rebind-loopback.example.com=127.0.0.1",
            "rebind-metadata.example.com=169.254.169.254",
            "rebind-private.example.com=10.0.0.10",
            "rebind-vip.example.com=241.0.0.1",
        ];
        for record in records.iter().chain(more) {
            program = program.arg("--record").arg(record);
        }
        let mut dns = self.host.spawn(program)?;
        dns.wait_for_log("listening on", START).await?;
        self.processes.insert(0, dns);
        Ok(())
    }

    /// Starts one of `meridian-app`'s programs on the internet host.
    pub async fn serve(&mut self, programs: &Programs, name: &str, words: &[&str]) -> Result<()> {
        let app = programs.app.display().to_string();
        let words = std::iter::once(app.as_str()).chain(words.iter().copied());
        let mut process = self.host.spawn(Program::new(name, words))?;
        process.wait_for_log("listening on", START).await?;
        self.processes.push(process);
        Ok(())
    }
}

async fn wait_ready(process: &mut Process, host: &Host, url: &str) -> Result<()> {
    let started = std::time::Instant::now();
    loop {
        if host.run(&["curl", "-sS", "-f", "--max-time", "2", "-o", "/dev/null", url]).await.is_ok() {
            return Ok(());
        }
        if !process.running() {
            bail!("{} ended before it was ready; its log:\n{}", host.name(), process.log());
        }
        if started.elapsed() > START {
            bail!("{} was not ready in {START:?}; its log:\n{}", host.name(), process.log());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn addresses(number: u8, last: u8) -> [&'static str; 2] {
    // Hosts are few, and their addresses live as long as the process.
    [format!("10.{number}.0.{last}").leak(), format!("fd00:{number}::{last}").leak()]
}

fn serial() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Waits until `condition` holds of what the application's curl says.
pub async fn curl_until(
    proxy: &Proxy,
    words: &[&str],
    what: &str,
    condition: impl Fn(&str) -> bool,
) -> Result<String> {
    wait::until(what, wait::DEADLINE, || async {
        let said = proxy.curl(words).await?;
        anyhow::ensure!(condition(&said), "curl {} said: {said}", words.join(" "));
        Ok(said)
    })
    .await
}
