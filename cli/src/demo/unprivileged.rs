//! Without root the demo makes itself root of a user namespace with subordinate ids: proxies and applications need
//! users of their own, since capture tells them apart by user.

use anyhow::{Context, Result, bail};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "MERIDIAN_DEMO_NAMESPACE";

/// Does nothing as root. Else starts this program anew inside the namespace, or says in one line what is missing.
pub(super) fn enter_user_namespace_if_needed() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return prepare_run_directory();
    }
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?.map(|user| user.name).unwrap_or_default();
    let has_ids = |file: &str| {
        std::fs::read_to_string(file)
            .is_ok_and(|text| text.lines().any(|line| line.starts_with(&format!("{user}:"))))
    };
    if !has_ids("/etc/subuid") || !has_ids("/etc/subgid") {
        bail!(
            "the demo needs root, or subordinate ids for {user} in /etc/subuid and /etc/subgid (usermod --add-subuids)"
        );
    }
    let this = std::env::current_exe()?;
    let error = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--map-auto",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("the demo needs root, or unshare (util-linux) and newuidmap (uidmap)")
}

/// Inside the user namespace /run belongs to nobody there: `ip netns` gets one of its own.
fn prepare_run_directory() -> Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        return Ok(());
    }
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().context("mounting /run")?;
    anyhow::ensure!(mounted.success(), "can't mount a /run of the demo's own: {mounted}");
    Ok(())
}
