use super::*;
use crate::{Passthrough, passthrough};
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_passthrough::MeshPassthrough;
use meridian_proxy_config::CallerMode;

fn mesh(passthrough: bool) -> Mesh {
    let yaml =
        format!("{{type: Mesh, name: default, networking: {{outbound: {{passthrough: {passthrough}}}}}}}");
    parsed::<Mesh>(&yaml).spec
}

fn policy(name: &str, target: &str, default: &str) -> Parsed<MeshPassthrough> {
    parsed(&format!(
        "{{type: MeshPassthrough, name: {name}, spec: {{targetRef: {target}, default: {{{default}}}}}}}"
    ))
}

fn of_web(mesh: &Mesh, policies: &[Parsed<MeshPassthrough>]) -> Passthrough {
    let web = web();
    passthrough(mesh, &subject(&web), policies)
}

fn keys(passthrough: &Passthrough) -> Vec<&str> {
    passthrough.entries.iter().map(|entry| entry.key.as_str()).collect()
}

#[test]
fn without_a_policy_the_mesh_decides() {
    assert_eq!(of_web(&mesh(true), &[]).mode, CallerMode::All);
    assert_eq!(of_web(&mesh(false), &[]).mode, CallerMode::None);
    let elsewhere = policy("p", "{kind: Dataplane, labels: {app: other}}", "passthroughMode: All");
    assert_eq!(of_web(&mesh(false), &[elsewhere]).mode, CallerMode::None);
}

#[test]
fn a_policy_without_a_mode_means_its_matches() {
    let listed =
        policy("p", "{kind: Mesh}", "appendMatch: [{type: IP, value: 192.0.2.7, port: 5432, protocol: tcp}]");
    let found = of_web(&mesh(true), &[listed]);
    assert_eq!((found.mode, keys(&found)), (CallerMode::Matched, vec!["IP/192.0.2.7/5432/tcp"]));
}

#[test]
fn matches_add_up_and_the_strongest_mode_holds() {
    let all = [
        policy(
            "a",
            "{kind: Mesh}",
            "passthroughMode: None, appendMatch: [{type: Domain, value: A.example., port: 443, protocol: tls}]",
        ),
        policy(
            "b",
            "{kind: Dataplane, labels: {app: web}}",
            "passthroughMode: Matched, appendMatch: [{type: Domain, value: b.example, port: 443, protocol: tls}, {type: Domain, value: a.example, port: 443, protocol: tls}]",
        ),
        policy("c", "{kind: Dataplane}", "appendMatch: [{type: IP, value: '2001:DB8::1', protocol: tcp}]"),
    ];
    let found = of_web(&mesh(false), &all);
    assert_eq!(found.mode, CallerMode::Matched);
    assert_eq!(
        keys(&found),
        ["Domain/a.example/443/tls", "Domain/b.example/443/tls", "IP/2001:db8::1/*/tcp"]
    );
    assert_eq!(found.entries[0].policy, "b", "the strongest that lists it");
    assert_eq!(found.entries[0].match_.value, "a.example");
}

#[test]
fn ranges_and_wildcards_have_one_form() {
    let listed = policy(
        "p",
        "{kind: Mesh}",
        "appendMatch: [{type: CIDR, value: 10.1.2.3/8, protocol: tcp}, {type: CIDR, value: '::ffff:10.0.0.0/104', protocol: tcp}, \
         {type: CIDR, value: '2001:DB8::1/32', protocol: tcp}, {type: IP, value: '::ffff:192.0.2.7', protocol: tcp}, \
         {type: Domain, value: '*.Example.COM.', port: 443, protocol: tls}, {type: Domain, value: '*.example.com', port: 443, protocol: tls}]",
    );
    assert_eq!(
        keys(&of_web(&mesh(false), &[listed])),
        [
            "CIDR/10.0.0.0/8/*/tcp",
            "CIDR/2001:db8::/32/*/tcp",
            "Domain/*.example.com/443/tls",
            "IP/192.0.2.7/*/tcp"
        ]
    );
}

#[test]
fn none_and_all_need_no_entries() {
    let list = "appendMatch: [{type: IP, value: 192.0.2.7, protocol: tcp}]";
    for (mode, expected) in [("None", CallerMode::None), ("All", CallerMode::All)] {
        let found =
            of_web(&mesh(false), &[policy("p", "{kind: Mesh}", &format!("passthroughMode: {mode}, {list}"))]);
        assert_eq!((found.mode, found.entries.len()), (expected, 0));
    }
}
