use super::*;
use crate::{caller_match, inbound_permission};
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_proxy_config::{Action, CallerMatch, Permission};

type Policies = Vec<Parsed<MeshTrafficPermission>>;

/// (name, top-level targetRef, the rest of the spec)
fn policies(all: &[(&str, &str, &str)]) -> Policies {
    let document = |(name, target, rest): &(&str, &str, &str)| {
        parsed(&format!(
            "{{type: MeshTrafficPermission, mesh: default, name: {name}, spec: {{targetRef: {target}, {rest}}}}}"
        ))
    };
    all.iter().map(document).collect()
}

fn of_first_inbound(policies: &Policies) -> Permission {
    let web = web();
    inbound_permission("default", &subject(&web), &inbounds(&web)[0], policies)
}

fn allows(permission: &Permission, caller: &CallerIdentity) -> bool {
    permission.decide(caller, None).allowed()
}

const ALL: &str = "{kind: Mesh}";
const ALLOW_ALL: &str = "from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]";
const DENY_ALL: &str = "from: [{targetRef: {kind: Mesh}, default: {action: Deny}}]";

#[test]
fn a_match_means_whom_it_names() {
    let id = Some("spiffe://default/web".to_owned());
    for (matched, expected) in [
        ("{}", CallerMatch::default()),
        (
            "{spiffeID: {type: Exact, value: 'spiffe://default/web'}}",
            CallerMatch { spiffe_exact: id.clone(), ..CallerMatch::default() },
        ),
        (
            "{spiffeID: {type: Prefix, value: 'spiffe://default/web'}, sni: {type: Exact, value: a.b}}",
            CallerMatch { spiffe_prefix: id.clone(), sni: Some("a.b".to_owned()), ..CallerMatch::default() },
        ),
    ] {
        assert_eq!(caller_match(&serde_saphyr::from_str(matched).unwrap()), expected, "{matched}");
    }
}

#[test]
fn without_a_policy_everything_is_denied() {
    assert_eq!(of_first_inbound(&Vec::new()), Permission::default());
    let elsewhere = policies(&[("p", "{kind: MeshService, name: other}", ALLOW_ALL)]);
    assert!(!allows(&of_first_inbound(&elsewhere), &caller("api", &[])));
}

#[test]
fn callers_are_known_by_service_and_tags() {
    let permission = of_first_inbound(&policies(&[(
        "p",
        ALL,
        "from: [{targetRef: {kind: MeshService, name: api}, default: {action: Allow}},
                {targetRef: {kind: MeshSubset, tags: {team: shop}}, default: {action: Allow}},
                {targetRef: {kind: MeshServiceSubset, name: job, tags: {env: prod}}, default: {action: Allow}}]",
    )]));
    assert!(allows(&permission, &caller("api", &[])));
    assert!(allows(&permission, &caller("any", &[("team", "shop")])));
    assert!(allows(&permission, &caller("job", &[("env", "prod")])));
    for refused in [caller("job", &[("env", "dev")]), caller("job", &[]), caller("web", &[("env", "prod")])] {
        assert!(!allows(&permission, &refused));
    }
}

#[test]
fn within_a_policy_the_last_item_that_matches_decides() {
    let api_denied = "from: [{targetRef: {kind: Mesh}, default: {action: Allow}},
                             {targetRef: {kind: MeshService, name: api}, default: {action: Deny}}]";
    let permission = of_first_inbound(&policies(&[("p", ALL, api_denied)]));
    assert!(!allows(&permission, &caller("api", &[])) && allows(&permission, &caller("web", &[])));
    let all_again = "from: [{targetRef: {kind: MeshService, name: api}, default: {action: Deny}},
                            {targetRef: {kind: Mesh}, default: {action: Allow}}]";
    let permission = of_first_inbound(&policies(&[("p", ALL, all_again)]));
    assert!(allows(&permission, &caller("api", &[])));
    // What can't decide any more isn't sent.
    assert_eq!(permission.rules.len(), 1);
}

#[test]
fn the_more_precise_target_wins() {
    let chain = [
        ALL,
        "{kind: Dataplane}",
        "{kind: Dataplane, labels: {app: web}}",
        "{kind: Dataplane, labels: {app: web}, sectionName: http}",
        "{kind: MeshSubset, tags: {version: v1}}",
        "{kind: MeshService, name: web}",
        "{kind: MeshServiceSubset, name: web, tags: {version: v1}}",
    ];
    for (i, weak) in chain.iter().enumerate() {
        for strong in chain.iter().skip(i + 1) {
            // The weaker one has the stronger name, so that the name can't be the reason.
            let denied = of_first_inbound(&policies(&[("a", weak, ALLOW_ALL), ("b", strong, DENY_ALL)]));
            assert!(!allows(&denied, &caller("api", &[])), "{strong} over {weak}");
            let allowed = of_first_inbound(&policies(&[("a", weak, DENY_ALL), ("b", strong, ALLOW_ALL)]));
            assert!(allows(&allowed, &caller("api", &[])), "{strong} over {weak}");
        }
    }
}

#[test]
fn of_equal_policies_the_first_name_wins() {
    let permission = of_first_inbound(&policies(&[("b", ALL, ALLOW_ALL), ("a", ALL, DENY_ALL)]));
    assert!(!allows(&permission, &caller("api", &[])));
    assert_eq!(permission.rules[0].policy, "a");
}

#[test]
fn a_zones_policy_beats_globals_and_an_owners_the_systems() {
    let one = |name: &str, rest: &str, labels: &[(&str, &str)]| {
        labelled(&format!("{{type: MeshTrafficPermission, name: {name}, spec: {{{rest}}}}}"), labels)
    };
    let global = one("a", ALLOW_ALL, &[("kuma.io/origin", "global")]);
    let zone = one("b", DENY_ALL, &[("kuma.io/origin", "zone"), ("kuma.io/zone", "east")]);
    assert!(!allows(&of_first_inbound(&vec![global.clone(), zone.clone()]), &caller("api", &[])));

    let owner = [
        ("kuma.io/origin", "zone"),
        ("kuma.io/zone", "east"),
        ("kuma.io/policy-role", "workload-owner"),
        ("k8s.kuma.io/namespace", "shop"),
    ];
    let owners = one("c", ALLOW_ALL, &owner);
    let mut web = web();
    web.resource.labels.insert("k8s.kuma.io/namespace".into(), "shop".into());
    let all = [global, zone, owners];
    let permission = inbound_permission("default", &subject(&web), &inbounds(&web)[0], &all);
    assert!(allows(&permission, &caller("api", &[])));
}

#[test]
fn each_inbound_has_its_own() {
    let policies = policies(&[("p", "{kind: Dataplane, sectionName: http}", ALLOW_ALL)]);
    let web = web();
    let of = |inbound| inbound_permission("default", &subject(&web), inbound, &policies);
    assert!(allows(&of(&inbounds(&web)[0]), &caller("api", &[])));
    assert!(!allows(&of(&inbounds(&web)[1]), &caller("api", &[])));
}

#[test]
fn among_rules_a_deny_decides_first() {
    let permission = of_first_inbound(&policies(&[
        ("a", ALL, "rules: [{default: {allow: [{spiffeID: {type: Prefix, value: 'spiffe://default'}}]}}]"),
        ("b", ALL, "rules: [{default: {deny: [{spiffeID: {type: Exact, value: 'spiffe://default/api'}}]}}]"),
        (
            "c",
            ALL,
            "rules: [{default: {allowWithShadowDeny: [{spiffeID: {type: Exact, value: 'spiffe://default/old'}}]}}]",
        ),
    ]));
    assert!(!allows(&permission, &caller("api", &[])) && allows(&permission, &caller("web", &[])));
    let verdict = permission.decide(&caller("old", &[]), None);
    assert_eq!(verdict, meridian_proxy_config::Verdict::Allow { policy: "c", shadow_denied: true });
}

#[test]
fn a_server_name_lets_nobody_into_an_inbound() {
    let with = |list: &str| {
        of_first_inbound(&policies(&[(
            "p",
            ALL,
            &format!(
                "rules: [{{default: {{{list}: [{{spiffeID: {{type: Exact, value: 'spiffe://default/api'}}, sni: {{type: Exact, value: a.b}}}}]}}}}]"
            ),
        )]))
    };
    // The caller chooses it: a rule that opens `a.b` would open each inbound to who claims that name.
    for list in ["allow", "allowWithShadowDeny"] {
        for sni in [Some("a.b"), Some("a.c"), None] {
            assert!(!with(list).decide(&caller("api", &[]), sni).allowed());
        }
    }
    let deny = with("deny");
    let verdict = deny.decide(&caller("api", &[]), Some("a.b"));
    assert_eq!(verdict, meridian_proxy_config::Verdict::Deny { policy: Some("p") });
    let verdict = deny.decide(&caller("web", &[]), Some("a.b"));
    assert_eq!(verdict, meridian_proxy_config::Verdict::Deny { policy: None });
}

#[test]
fn where_both_forms_meet_a_deny_wins() {
    let allow_rule = "rules: [{default: {allow: [{spiffeID: {type: Prefix, value: 'spiffe://default'}}]}}]";
    let deny_rule = "rules: [{default: {deny: [{spiffeID: {type: Exact, value: 'spiffe://default/api'}}]}}]";
    let denied_by_from = of_first_inbound(&policies(&[("a", ALL, allow_rule), ("b", ALL, DENY_ALL)]));
    let denied_by_rule = of_first_inbound(&policies(&[("a", ALL, deny_rule), ("b", ALL, ALLOW_ALL)]));
    for permission in [denied_by_from, denied_by_rule] {
        assert!(!allows(&permission, &caller("api", &[])));
    }
}

#[test]
fn what_cannot_be_understood_denies() {
    let mut policies = policies(&[("p", ALL, ALLOW_ALL)]);
    let from = &mut policies[0].spec.from.as_mut().unwrap()[0];
    from.target_ref.kind = meridian_core::TargetKind::Other("MeshPlanet".into());
    assert_eq!(of_first_inbound(&policies), Permission::default());
    policies[0].spec.from.as_mut().unwrap()[0].default.action = None;
    let permission = of_first_inbound(&policies);
    assert_eq!(
        (permission.rules[0].action, &permission.rules[0].caller),
        (Action::Deny, &CallerMatch::default())
    );
}
