use crate::support::{PROGRAM, meridian, run, stderr, stdout, write};
use std::io::Read;
use std::process::{Command, Stdio};

#[test]
fn mistakes_in_the_command_line_end_with_64() {
    for words in
        [&["frobnicate"][..], &["apply"], &["get", "meshgateways"], &["get", "zones", "--address", "ftp://x"]]
    {
        let output = run(words, "");
        assert_eq!(output.status.code(), Some(64), "{words:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(run(&["--help"], "").status.code(), Some(0));
    assert_eq!(run(&["--version"], "").status.code(), Some(0));
}

#[test]
fn bad_configuration_of_a_role_ends_with_64_and_says_everything() {
    let output = run(&["zone-cp", "--zone", "East", "--global-address", "http://g"], "");
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(stderr(&output).contains("globalAddress"), "{}", stderr(&output));
    let output = run(&["global-cp", "--store-url", "mysql://me:hunter2@db/x"], "");
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(!stderr(&output).contains("hunter2"));
}

#[test]
fn a_missing_file_nobody_there_and_a_bad_document_have_codes_of_their_own() {
    assert_eq!(run(&["apply", "-f", "/nonexistent.yaml"], "").status.code(), Some(66));
    let nowhere = ["get", "zones", "--address", "http://127.0.0.1:1"];
    assert_eq!(run(&nowhere, "").status.code(), Some(69));
    let output = run(&["apply", "-f", "-"], "type: Nonsense\nname: x\n");
    assert_eq!(output.status.code(), Some(65));
    assert!(stderr(&output).contains("standard input"), "{}", stderr(&output));
}

#[test]
fn keys_and_tokens_are_made_without_a_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let key = stdout(&run(&["generate", "signing-key"], ""));
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{key}");
    let file = write(&dir, "key.pem", &key).display().to_string();
    let public = stdout(&run(&["generate", "public-key", "--signing-key-file", &file], ""));
    assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{public}");
    let words = [
        "generate",
        "user-token",
        "--name",
        "ann",
        "--valid-for",
        "1h",
        "--signing-key-file",
        &file,
        "--kid",
        "1",
    ];
    let output = run(&words, "");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim().split('.').count(), 3);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child =
        meridian().args(["get", "--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    child.wait().unwrap();
    assert!(!complaint.contains("panicked"), "{complaint}");
    let line = format!("{PROGRAM} generate signing-key | head -c 1");
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn the_rules_of_capture_can_be_looked_at_by_anybody() {
    let output = run(&["install", "transparent-proxy", "--kuma-dp-uid", "5678", "--dry-run"], "");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("table inet meridian") && stdout(&output).contains("5678"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn control_planes_are_remembered_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml").display().to_string();
    let add = [
        "config",
        "control-planes",
        "add",
        "--name",
        "here",
        "--address",
        "http://127.0.0.1:1",
        "--client-config",
        &file,
    ];
    assert!(run(&add, "").status.success());
    let listed = stdout(&run(&["config", "control-planes", "list", "--client-config", &file], ""));
    assert!(listed.contains("here") && listed.contains('*'), "{listed}");
    let output = run(&["get", "zones", "--client-config", &file], "");
    assert!(stderr(&output).contains("http://127.0.0.1:1"), "{}", stderr(&output));
}
