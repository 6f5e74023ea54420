//! Access logs and traces, by one apply, across zones.

use crate::policies::EVERYTHING;
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use std::collections::BTreeSet;
use std::path::Path;

/// Hexadecimal digits of a trace's ID.
const TRACE_ID: usize = 32;

/// The traces of the lines that a log has so far.
fn traces(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let ids = text.lines().filter_map(|line| line.rsplit(' ').next()).filter(|id| id.len() == TRACE_ID);
    ids.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_request_is_logged_on_both_sides_and_belongs_to_one_trace() -> Result<()> {
    let mut mesh = Mesh::start("lines", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let directory = mesh.lab.directory();
    let (out, inn) = (directory.join("out.log"), directory.join("in.log"));
    let log = |name: &str, list: &str, path: &Path| {
        let format =
            "%KUMA_SOURCE_SERVICE%->%KUMA_DESTINATION_SERVICE% %REQ(:PATH)% %RESPONSE_CODE% %TRACE_ID%";
        format!(
            "type: MeshAccessLog\nmesh: default\nname: {name}\nspec:\n  targetRef: {{kind: Mesh}}\n  {list}:\n  - targetRef: {{kind: Mesh}}\n    \
             default: {{backends: [{{type: File, file: {{path: {}, format: {{type: Plain, plain: '{format}'}}}}}}]}}\n",
            path.display()
        )
    };
    mesh.apply(&log("out", "to", &out)).await?;
    mesh.apply(&log("in", "from", &inn)).await?;
    let url = "http://backend.mesh/asked";
    curl_until(&web, &[url], "an answer", |said| said.ends_with("200")).await?;
    until("a line on both sides", DEADLINE, || async {
        web.curl(&[url]).await?;
        for path in [&out, &inn] {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            ensure!(text.contains("web->backend /asked 200 -"), "{}: {text}", path.display());
        }
        Ok(())
    })
    .await?;
    // A listener that nobody listens on: spans are lost, requests are not.
    mesh.apply(
        "type: MeshTrace\nmesh: default\nname: all\nspec:\n  default:\n    backends: [{type: OpenTelemetry, openTelemetry: {endpoint: '127.0.0.1:4317'}}]\n",
    )
    .await?;
    until("one trace on both sides", DEADLINE, || async {
        web.curl(&[url]).await?;
        let sides = [&out, &inn].map(|path| traces(path));
        let [called, served] = &sides;
        ensure!(!called.is_disjoint(served), "{sides:?}");
        Ok(())
    })
    .await
}
