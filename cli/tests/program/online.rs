//! Against a real global control plane: what the commands promise holds end to end.

use crate::support::{GlobalCp, run, stderr, stdout, write};

const PERMISSION: &str = "\
type: MeshTrafficPermission
mesh: default
name: web-to-backend
spec:
  targetRef: {kind: MeshService, name: backend}
  from:
  - targetRef: {kind: MeshService, name: web}
    default: {action: Allow}
";

#[test]
fn resources_come_and_go() {
    let global = GlobalCp::start();
    assert!(global.succeeds("get meshes", "").contains("default"));
    assert!(global.succeeds("apply -f - --dry-run", PERMISSION).contains("created (dry run)"));
    global.fails("get meshtrafficpermissions web-to-backend", "", 1);
    let applied = global.succeeds("apply -f -", PERMISSION);
    assert!(applied.contains("MeshTrafficPermission default/web-to-backend created"), "{applied}");
    assert!(global.succeeds("get mtp", "").contains("web-to-backend"));

    // What `get` prints can be applied.
    let shown = global.succeeds("get meshtrafficpermission web-to-backend -o yaml", "");
    assert!(shown.starts_with("type: MeshTrafficPermission\nmesh: default\n"), "{shown}");
    assert!(global.succeeds("apply -f -", &shown).contains("unchanged"));
    assert!(global.succeeds("apply -f - --dry-run", &shown).contains("unchanged (dry run)"));
    let changed = PERMISSION.replace("action: Allow", "action: Deny");
    assert!(global.succeeds("apply -f -", &changed).contains("updated"));
    let all = global.succeeds("get meshtrafficpermissions -A -o yaml", "");
    global.succeeds("apply -f -", &all);

    global.succeeds("delete meshtrafficpermission web-to-backend", "");
    let gone = global.fails("delete meshtrafficpermission web-to-backend", "", 1);
    assert!(gone.contains("web-to-backend"), "{gone}");
}

#[test]
fn files_have_variables() {
    let global = GlobalCp::start();
    let file = PERMISSION
        .replace("web-to-backend", "'{{ CALLER }}-to-backend'")
        .replace("name: web}", "name: '{{CALLER}}'}");
    let applied = global.succeeds("apply -f - -v CALLER=shop", &file);
    assert!(applied.contains("MeshTrafficPermission default/shop-to-backend created"), "{applied}");
    let shown = global.succeeds("get mtp shop-to-backend -o yaml", "");
    assert!(shown.contains("name: shop"), "{shown}");
    let missing = global.fails("apply -f - --var OTHER=x", &file, 65);
    assert!(missing.contains("the variable CALLER is used and not given"), "{missing}");
}

#[test]
fn an_apply_with_one_mistake_changes_nothing() {
    let global = GlobalCp::start();
    let bad = PERMISSION.replace("web-to-backend", "bad").replace("action: Allow", "action: Allow, typo: 1");
    let refused = global.fails("apply -f -", &format!("{PERMISSION}---\n{bad}"), 65);
    for part in ["1 of 2 documents", "nothing was changed", "typo"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    let left = global.succeeds("get meshtrafficpermissions -o json", "");
    assert!(!left.contains("web-to-backend"), "{left}");
}

#[test]
fn what_is_accepted_with_a_warning_is_warned_of_once() {
    let global = GlobalCp::start();
    let fault = "\
type: MeshFaultInjection
mesh: default
name: faults
spec:
  targetRef: {kind: Dataplane}
  from:
  - targetRef: {kind: MeshService, labels: {a: b}}
    default: {http: [{abort: {httpStatus: 500, percentage: 50}}]}
";
    for line in ["apply -f - --dry-run", "apply -f -"] {
        let output = global.meridian(line, fault);
        assert!(output.status.success(), "{line}");
        assert_eq!(stderr(&output).matches("spec.from[0] has no effect").count(), 1, "{}", stderr(&output));
    }
}

#[test]
fn a_mesh_and_what_is_in_it_come_in_one_apply() {
    let global = GlobalCp::start();
    let both = format!("{}---\ntype: Mesh\nname: shop\n", PERMISSION.replace("mesh: default", "mesh: shop"));
    let applied = global.succeeds("apply -f -", &both);
    let lines: Vec<&str> = applied.lines().collect();
    assert_eq!(lines, ["Mesh shop created", "MeshTrafficPermission shop/web-to-backend created"]);
}

#[test]
fn only_an_administrator_writes_and_https_is_proven() {
    let global = GlobalCp::start();
    let anonymous = run(&["apply", "-f", "-", "--address", &global.http], PERMISSION);
    assert_eq!(anonymous.status.code(), Some(77), "{}", stderr(&anonymous));
    let reader = global.succeeds("generate user-token --name ann --group readers --valid-for 1h", "");
    let reader = write(global.data(), "reader", &reader).display().to_string();
    let get = run(&["get", "meshes", "--address", &global.http, "--token-file", &reader], "");
    assert!(get.status.success(), "{}", stderr(&get));
    let write = run(&["apply", "-f", "-", "--address", &global.http, "--token-file", &reader], PERMISSION);
    assert_eq!(write.status.code(), Some(77), "{}", stderr(&write));

    let (token, ca) = (global.file("admin-token"), global.file("ca.crt"));
    let proven = ["get", "meshes", "--address", &global.https, "--token-file", &token, "--ca-cert-file", &ca];
    let output = run(&proven, "");
    assert!(output.status.success(), "{}", stderr(&output));
    let wrong = "0".repeat(64);
    let refused =
        ["get", "meshes", "--address", &global.https, "--token-file", &token, "--ca-fingerprint", &wrong];
    assert_eq!(run(&refused, "").status.code(), Some(69));
}

#[test]
fn tokens_zones_and_denials() {
    let global = GlobalCp::start();
    for line in [
        "generate dataplane-token --name web-1 --valid-for 24h",
        "generate zone-token --zone east --scope cp --valid-for 24h",
        "generate zone-token --zone east --scope ingress,egress --valid-for 24h",
    ] {
        assert_eq!(global.succeeds(line, "").trim().split('.').count(), 3, "{line}");
    }
    assert!(global.succeeds("inspect zones", "").starts_with("NAME"));
    assert!(global.succeeds("inspect dataplanes", "").starts_with("MESH"));
    assert!(global.succeeds("denials", "").starts_with("LAST"));
    let status = global.succeeds("mesh rotate-ca default --status", "");
    assert!(!status.is_empty());
}

#[test]
fn another_admin_token_comes_from_store_and_key() {
    let global = GlobalCp::start();
    let data = global.data().path().display().to_string();
    let admin_token = ["global-cp", "admin-token", "--data-dir", &data];
    let refused = run(&admin_token, "");
    assert_eq!(refused.status.code(), Some(1), "SQLite has one user at a time");
    assert!(stderr(&refused).contains("in use"), "{}", stderr(&refused));

    let directory = global.stop();
    let output = run(&admin_token, "");
    assert!(output.status.success(), "{}", stderr(&output));
    let token = write(&directory, "another", &stdout(&output)).display().to_string();
    let global = GlobalCp::start_in(directory);
    let secrets = run(&["get", "secrets", "--address", &global.http, "--token-file", &token], "");
    assert!(secrets.status.success(), "{}", stderr(&secrets));
}
