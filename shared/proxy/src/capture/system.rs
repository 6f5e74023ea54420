//! Applying the rules, and keeping them over a reboot.

use super::{
    notice,
    options::{Enforce, Family, Options, Redirect},
    script::{TABLE, script},
    ssh,
};
use ipnet::IpNet;
use std::{
    fmt::Write as _,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Files of the boot unit, and what the sidecar reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub rules: PathBuf,
    pub unit: PathBuf,
    pub notice: PathBuf,
}

/// What was done, to be said to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// As given to nft.
    pub script: String,
    /// Routes that were added, as arguments of `ip`.
    pub routes: Vec<String>,
    /// The SSH port that was left alone, if the installer came over SSH.
    pub ssh_port: Option<u16>,
    /// `strict`, `kuma`, with what is excluded: for the overview.
    pub enforcement: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("{program} could not be started: is it installed, and are you root?")]
    Start { program: &'static str, source: io::Error },
    #[error("{program} failed: {message}")]
    Failed { program: &'static str, message: String },
    #[error("writing {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the proxy's user must not be root: nothing that root runs would be captured")]
    RootProxy,
    #[error("checking the rules")]
    Check(#[source] io::Error),
}

/// Applies the rules and routes in the network namespace of the calling thread. Repeating it is harmless.
///
/// # Errors
/// Nothing was changed if nft refused the rules.
pub fn install(options: &Options) -> Result<Installed, CaptureError> {
    if options.proxy_uid == 0 {
        return Err(CaptureError::RootProxy);
    }
    let mut options = options.clone();
    let ssh_port = ssh::port_in_use().filter(|_| options.redirect_inbound);
    if let Some(port) = ssh_port {
        options.exclude_inbound_ports.push(port.into());
    }
    let text = script(&options);
    let routes = routes(&options);
    // Routes first: with the rules in place and no route, a name would resolve and not connect.
    for route in &routes {
        run("ip", &route.split(' ').collect::<Vec<_>>(), "")?;
    }
    run("nft", &["-f", "-"], &text)?;
    let enforcement = enforcement(&options);
    notice::leave(&options.places.notice, &enforcement)?;
    if options.persist {
        persist(&options.places, &text, &routes, &enforcement)?;
    }
    Ok(Installed { script: text, routes, ssh_port, enforcement })
}

/// Takes everything away that [`install`] made. Nothing there is no error.
///
/// # Errors
/// nft could not be run.
pub fn uninstall(options: &Options) -> Result<(), CaptureError> {
    run("nft", &["-f", "-"], &format!("table {TABLE} {{}}\ndelete table {TABLE}\n"))?;
    for route in routes(options) {
        let undo = route.replacen(" replace ", " del ", 1);
        // Absent is what is wanted.
        let _ = run("ip", &undo.split(' ').collect::<Vec<_>>(), "");
    }
    if options.places.unit.exists() {
        let _ = run("systemctl", &["disable", "--quiet", unit_name(&options.places.unit)], "");
    }
    for path in [&options.places.unit, &options.places.rules, &options.places.notice] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CaptureError::Write { path: path.clone(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// `unicast ... dev lo`: connect() finds a way and the rules see the packet; what they don't redirect is a stranger
/// on lo and goes nowhere. A `local` route would make the host answer for the addresses itself.
fn routes(options: &Options) -> Vec<String> {
    let wanted = |net: &&IpNet| net.addr().is_ipv4() || options.family == Family::DualStack;
    let mut routes: Vec<String> = options
        .vips
        .iter()
        .filter(wanted)
        .map(|net| format!("{} route replace {net} dev lo", if net.addr().is_ipv4() { "-4" } else { "-6" }))
        .collect();
    if options.family == Family::DualStack && options.redirect_inbound && has_ipv6() {
        routes.push("-6 addr replace ::6/128 dev lo".to_owned());
    }
    routes
}

fn has_ipv6() -> bool {
    fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| !text.is_empty())
}

/// Everything that is not as strict as it could be, in one line.
fn enforcement(options: &Options) -> String {
    let mut text = match options.enforce {
        Enforce::Strict => "strict".to_owned(),
        Enforce::Kuma => "kuma".to_owned(),
    };
    let mut exclude = |what: &str, list: Vec<String>| {
        if !list.is_empty() {
            let _ = write!(text, "; {what} {}", list.join(","));
        }
    };
    let texts = |list: &[super::PortRange]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    exclude("excludes outbound ports", texts(&options.exclude_outbound_ports));
    exclude("excludes inbound ports", texts(&options.exclude_inbound_ports));
    exclude("excludes users", options.exclude_uids.iter().map(ToString::to_string).collect());
    let per_user = &options.exclude_outbound_ports_for_uids;
    exclude(
        "excludes ports of users",
        per_user
            .iter()
            .map(|one| {
                let uids: Vec<String> = one.uids.iter().map(ToString::to_string).collect();
                format!("{:?}:{}:{}", one.transport, texts(&one.ports).join("+"), uids.join("+"))
                    .to_lowercase()
            })
            .collect(),
    );
    exclude("excludes addresses", options.exclude_outbound_ips.iter().map(ToString::to_string).collect());
    exclude("captures only ports", texts(&options.include_outbound_ports));
    exclude("excludes", if options.exclude_ntp { vec!["ntp".to_owned()] } else { Vec::new() });
    exclude("dns", if options.dns == Redirect::Off { vec!["not captured".to_owned()] } else { Vec::new() });
    text
}

fn persist(places: &Places, script: &str, routes: &[String], enforcement: &str) -> Result<(), CaptureError> {
    write(&places.rules, script)?;
    let notice = notice::leave_at_boot(&places.notice, enforcement);
    write(&places.unit, &unit(&places.rules, routes, &notice))?;
    // A container has no systemd: the file is there for an image that does.
    if Path::new("/run/systemd/system").exists() {
        run("systemctl", &["daemon-reload"], "")?;
        run("systemctl", &["enable", "--quiet", unit_name(&places.unit)], "")?;
    }
    Ok(())
}

/// Before the network is up there is nobody to leak to.
fn unit(rules: &Path, routes: &[String], notice: &str) -> String {
    let mut text = format!(
        "[Unit]\n\
         Description=Meridian: transparent capture, before anything uses the network\n\
         DefaultDependencies=no\n\
         After=local-fs.target systemd-modules-load.service\n\
         Before=network-pre.target shutdown.target\n\
         Wants=network-pre.target\n\
         Conflicts=shutdown.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/usr/sbin/nft -f {}\n",
        rules.display()
    );
    let _ = writeln!(text, "ExecStart=-/usr/sbin/ip link set lo up");
    for route in routes {
        let _ = writeln!(text, "ExecStart=/usr/sbin/ip {route}");
    }
    let _ = write!(text, "{notice}\n[Install]\nWantedBy=sysinit.target\n");
    text
}

fn unit_name(unit: &Path) -> &str {
    unit.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn write(path: &Path, text: &str) -> Result<(), CaptureError> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.map_err(|source| CaptureError::Write { path: path.to_owned(), source })
}

/// Runs a program to its end with `input`; its complaint is the error.
pub(super) fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, CaptureError> {
    let start = |source| CaptureError::Start { program, source };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CaptureError::Failed { program, message: format!("{message} ({} {})", program, args.join(" ")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_unit_comes_before_the_network() {
        let text =
            unit(Path::new("/etc/meridian/x.nft"), &["-4 route replace 240.0.0.0/5 dev lo".to_owned()], "");
        assert!(text.contains("Before=network-pre.target"));
        assert!(text.contains("ExecStart=/usr/sbin/nft -f /etc/meridian/x.nft\n"));
        assert!(text.contains("ExecStart=/usr/sbin/ip -4 route replace 240.0.0.0/5 dev lo\n"));
    }

    #[test]
    fn the_overview_names_every_hole() {
        let options = Options {
            exclude_ntp: true,
            exclude_uids: vec!["101".parse().unwrap()],
            exclude_outbound_ports: vec![25.into()],
            ..Options::default()
        };
        assert_eq!(
            enforcement(&options),
            "strict; excludes outbound ports 25; excludes users 101; excludes ntp"
        );
        assert_eq!(enforcement(&Options::default()), "strict");
    }

    #[test]
    fn a_proxy_that_is_root_is_refused() {
        let options = Options { proxy_uid: 0, ..Options::default() };
        assert!(matches!(install(&options), Err(CaptureError::RootProxy)));
    }
}
