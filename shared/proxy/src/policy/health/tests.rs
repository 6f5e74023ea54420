use super::*;
use proptest::prelude::*;
use serde_json::json;

fn plan(change: serde_json::Value) -> HealthPlan {
    let mut config = json!({
        "intervalMillis": 1_000, "idleIntervalMillis": 60_000, "timeoutMillis": 500,
        "unhealthyAfter": 3, "healthyAfter": 2, "question": { "tcp": {} },
    });
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    HealthPlan::compile(&serde_json::from_value(config).unwrap()).unwrap()
}

fn finding(letter: char) -> Finding {
    match letter {
        'w' => Finding::Well,
        'u' => Finding::Unwell(String::new()),
        _ => Finding::Silent(String::new()),
    }
}

/// Findings, and the state after each: `+` well, `-` not.
#[test]
fn answers_and_what_they_mean() {
    let plan = plan(json!({}));
    for (assumed, findings, states) in [
        // The first answer decides.
        (false, "w", "+"),
        (true, "s", "-"),
        (true, "u", "-"),
        (false, "s", "-"),
        // Silence counts, a bad answer counts at once.
        (true, "wsswsss", "++++++-"),
        (true, "wu", "+-"),
        (true, "wssu", "+++-"),
        // Back after two good ones in a row.
        (true, "uwuww", "----+"),
        (true, "swsww", "----+"),
        (false, "wssuwwss", "+++--+++"),
    ] {
        let mut machine = Machine::new(assumed);
        let seen: String = findings
            .chars()
            .map(|letter| {
                let before = machine.is_well();
                let change = machine.note(&plan, &finding(letter));
                assert_eq!(change, (before != machine.is_well()).then_some(machine.is_well()));
                if machine.is_well() { '+' } else { '-' }
            })
            .collect();
        assert_eq!(seen, states, "{assumed} {findings}");
    }
}

proptest! {
    /// After the first answer, a state only ever ends by as much of the contrary in a row as the thresholds ask.
    #[test]
    fn a_state_ends_by_the_contrary_in_a_row(
        assumed: bool,
        findings in "[wus]{1,40}",
        unhealthy in 1u32..5,
        healthy in 1u32..5,
    ) {
        let plan = plan(json!({ "unhealthyAfter": unhealthy, "healthyAfter": healthy }));
        let mut machine = Machine::new(assumed);
        let mut past = String::new();
        for letter in findings.chars() {
            let change = machine.note(&plan, &finding(letter));
            past.push(letter);
            let row = |of: &str| past.chars().rev().take_while(|it| of.contains(*it)).count() as u32;
            match change {
                _ if past.len() == 1 => prop_assert_eq!(machine.is_well(), letter == 'w'),
                Some(true) => prop_assert!(row("w") >= healthy),
                Some(false) => prop_assert!(letter == 'u' || row("us") >= unhealthy),
                None if machine.is_well() => prop_assert!(letter != 'u' && row("us") < unhealthy),
                None => prop_assert!(row("w") < healthy || past.chars().all(|it| it == 'w')),
            }
        }
    }
}

#[test]
fn waits_depend_on_use_and_chance() {
    let jitter = json!({ "jitter": { "initialMillis": 400, "intervalMillis": 200, "intervalPercent": 50 } });
    let (plain, jittered) = (plan(json!({})), plan(jitter));
    let millis = Duration::from_millis;
    assert_eq!(plain.first_wait(0.9), Duration::ZERO);
    assert_eq!(jittered.first_wait(0.5), millis(200));
    for (plan, used, chance, wait) in [
        (&plain, true, [0.9, 0.9], 1_000),
        (&plain, false, [0.9, 0.9], 60_000),
        (&jittered, true, [0.0, 0.0], 1_000),
        (&jittered, true, [0.5, 0.0], 1_100),
        (&jittered, true, [0.0, 0.5], 1_250),
        (&jittered, false, [0.5, 0.5], 75_100),
    ] {
        assert_eq!(plan.wait(used, chance), millis(wait), "{used} {chance:?}");
    }
    // The longest times that may be said do not overflow.
    let longest = plan(json!({
        "intervalMillis": u64::MAX, "jitter": { "intervalMillis": u64::MAX, "intervalPercent": 100 },
    }));
    assert!(longest.wait(true, [0.99, 0.99]) >= millis(u64::MAX));
}

#[test]
fn all_parts_are_found_in_order() {
    let parts = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>();
    for (answer, wanted, found) in [
        ("anything", &[][..], true),
        ("hello world", &["hello", "world"], true),
        ("hello world", &["world", "hello"], false),
        ("aa", &["a", "a"], true),
        ("a", &["a", "a"], false),
        ("", &["a"], false),
        ("ab", &["abc"], false),
    ] {
        assert_eq!(contains_in_order(answer.as_bytes(), &parts(wanted)), found, "{answer} {wanted:?}");
    }
}

#[test]
fn what_a_grpc_server_says_of_itself() {
    let answer = |status| framed(&HealthCheckResponse { status }).to_vec();
    assert_eq!(grpc_finding(&answer(SERVING)), Finding::Well);
    let serving = answer(SERVING);
    for bad in [
        answer(0),
        answer(2),
        vec![],
        vec![0; 4],
        serving[..serving.len() - 1].to_vec(),
        [&[1][..], &serving[1..]].concat(),
        vec![0, 0xff, 0xff, 0xff, 0xff, 8, 1],
        vec![0, 0, 0, 0, 1, 0xff],
    ] {
        assert!(matches!(grpc_finding(&bad), Finding::Unwell(_)), "{bad:?}");
    }
    assert_eq!(
        framed(&HealthCheckRequest { service: "a".into() }),
        Bytes::from_static(&[0, 0, 0, 0, 3, 10, 1, b'a'])
    );
}

#[test]
fn a_question_of_http() {
    let question = json!({ "http": {
        "path": "/ok?a=b", "statuses": [200],
        "setHeaders": [["host", "shop:8080"], ["user-agent", "x"]], "addHeaders": [["a", "1"], ["content-length", "3"]],
    }});
    let Ask::Http { path, headers, authority, .. } = plan(json!({ "question": question })).ask else {
        panic!()
    };
    assert_eq!((path.as_str(), authority.unwrap().as_str()), ("/ok?a=b", "shop:8080"));
    assert_eq!(headers.len(), 2, "{headers:?}");
    assert!(headers["user-agent"] == "x" && headers["a"] == "1", "{headers:?}");
    for wrong in [
        json!({ "http": { "path": "a b", "statuses": [] } }),
        json!({ "http": { "path": "/", "statuses": [], "setHeaders": [["a b", "c"]] } }),
        json!({ "http": { "path": "/", "statuses": [], "setHeaders": [["host", "a/b"]] } }),
        json!({ "grpc": { "authority": "a b" } }),
    ] {
        assert!(Ask::compile(&serde_json::from_value(wrong.clone()).unwrap()).is_err(), "{wrong}");
    }
}
