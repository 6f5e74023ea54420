//! `make bench-propagation`: from the API's answer to enforcement at a sidecar in the other zone.

use super::script::external_service;
use anyhow::{Context, Result};
use meridian_testkit::mesh::{Mesh, Workload};
use meridian_testkit::process::Program;
use meridian_testkit::wait;
use std::time::Duration;

/// Between changes: long enough that the one before has arrived.
const PAUSE_MILLIS: u64 = 100;
const EVERYTHING: &str = "\
type: MeshTrafficPermission
mesh: default
name: everything
spec:
  targetRef: {kind: Mesh}
  from:
  - targetRef: {kind: Mesh}
    default: {action: Allow}
";

/// One ExternalService is written and deleted in turn at global; an application in west asks for it all the time.
pub(super) async fn run(mesh: &mut Mesh, changes: usize) -> Result<()> {
    let backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    mesh.apply(EVERYTHING).await?;
    let app = mesh.programs.app.display().to_string();
    let words = [app.as_str(), "watch", "--connect", "192.0.2.66:80", "--host", "partner.example.net"];
    let mut watch = backend.spawn_app("watch", &words)?;
    watch.wait_for_log("403", wait::DEADLINE).await?;

    let body = mesh
        .global
        .host
        .write("partner.yaml", &external_service("partner", "partner.example.net", 80, "http"))?;
    let program = Program::new("churn", [app.as_str(), "churn"])
        .arg("--url")
        .arg("http://127.0.0.1:5681/meshes/default/external-services/partner")
        .arg("--token-file")
        .arg(mesh.global.data().join("admin-token").display().to_string())
        .arg("--body-file")
        .arg(body.display().to_string())
        .arg("--changes")
        .arg(changes.to_string())
        .arg("--pause-millis")
        .arg(PAUSE_MILLIS.to_string());
    let mut churn = mesh.global.host.spawn(program)?;
    let limit = Duration::from_millis(PAUSE_MILLIS * 4 * changes as u64) + Duration::from_secs(30);
    let status = churn.wait(limit).await?;
    anyhow::ensure!(status.success(), "the writes failed:\n{}", churn.log());
    let last = if changes.is_multiple_of(2) { "403" } else { "200" };
    wait::until("the last change to be live", wait::DEADLINE, || async {
        anyhow::ensure!(
            watch.log().lines().last().is_some_and(|line| line.contains(last)),
            "{}",
            watch.log()
        );
        Ok(())
    })
    .await?;
    let taken = times(&churn.log(), &watch.log())?;
    print(&taken);
    Ok(())
}

/// Microseconds from each answer to the first request that met the change; a change may be live before its answer
/// is (the writer reads it later): that counts as 0.
fn times(writes: &str, answers: &str) -> Result<Vec<u128>> {
    let parse = |line: &str| {
        line.split_once(' ').and_then(|(at, what)| Some((at.parse::<u128>().ok()?, what.to_owned())))
    };
    let answers: Vec<(u128, String)> = answers.lines().filter_map(parse).collect();
    let mut taken = Vec::new();
    let mut after = 0;
    for (at, what) in writes.lines().filter_map(parse) {
        let expected = if what == "put" { "200" } else { "403" };
        // Not before the write before this one.
        let seen = answers.iter().find(|(seen, answer)| *seen > after && answer.starts_with(expected));
        let (seen, _) = seen.with_context(|| format!("no {expected} after the {what} at {at}"))?;
        taken.push(seen.saturating_sub(at));
        after = at;
    }
    taken.sort_unstable();
    Ok(taken)
}

fn print(taken: &[u128]) {
    let quantile = |q: f64| {
        let index = (taken.len().saturating_sub(1) as f64 * q).round() as usize;
        taken.get(index).map_or(0.0, |micros| *micros as f64 / 1000.0)
    };
    println!(
        "{} changes at global; a sidecar in west enforced them after the API's answer in milliseconds:",
        taken.len()
    );
    println!(
        "  min {:.1}  median {:.1}  p90 {:.1}  p99 {:.1}  max {:.1}",
        quantile(0.0),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        quantile(1.0)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_write_is_paired_with_the_first_answer_that_meets_it() {
        let writes = "1000 put\n200000 delete\n400000 put\n";
        let answers = "10 403\n3000 200\n203000 403 not-listed\n399999 200\n";
        assert_eq!(times(writes, answers).unwrap(), [0, 2000, 3000]);
    }

    #[test]
    fn a_change_that_never_came_is_an_error() {
        assert!(times("1000 put\n", "10 403\n").is_err());
    }
}
