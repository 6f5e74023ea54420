use super::*;
use proptest::prelude::*;
use std::num::NonZeroU64;

/// Ticks of the policy below.
const INTERVAL: u64 = 10;
const EJECTION: u64 = 30;

fn config() -> OutlierDetection {
    OutlierDetection {
        interval_millis: NonZeroU64::new(1_000).unwrap(),
        ejection_millis: NonZeroU64::new(3_000).unwrap(),
        max_percent: 100,
        split: false,
        panic_below: 5_000,
        total_failures: None,
        gateway_failures: None,
        local_failures: None,
        success_rate: None,
        failure_percentage: None,
    }
}

fn policy(change: impl FnOnce(&mut OutlierDetection)) -> OutlierPolicy {
    let mut config = config();
    change(&mut config);
    OutlierPolicy::compile(&config)
}

fn cluster(n: usize) -> (Detector, Vec<Rc<Record>>) {
    let records: Vec<_> = (0..n).map(|_| Rc::<Record>::default()).collect();
    let detector = Detector::default();
    detector.watch(records.clone());
    (detector, records)
}

/// A rule, what happens, and whether the endpoint is out then.
type Case<'a> = (&'a dyn Fn(&mut OutlierDetection), &'a [Event], bool);

#[test]
fn what_counts_as_a_failure_in_a_row() {
    use Event::{Connected, Local, Status};
    let total = |config: &mut OutlierDetection| config.total_failures = NonZeroU32::new(2);
    let gateway = |config: &mut OutlierDetection| config.gateway_failures = NonZeroU32::new(2);
    let local = |config: &mut OutlierDetection| config.local_failures = NonZeroU32::new(2);
    let together: [Case<'_>; 10] = [
        (&total, &[Status(500), Status(503)], true),
        (&total, &[Status(500), Status(404), Status(500)], false),
        (&total, &[Local, Status(500)], true),
        (&total, &[Local, Connected, Local], false),
        (&gateway, &[Status(502), Status(504)], true),
        (&gateway, &[Status(502), Status(500), Status(502)], false),
        (&gateway, &[Local, Local], true),
        (&gateway, &[Status(500), Status(500), Status(500)], false),
        (&local, &[Local, Local, Local], false),
        (&total, &[Status(500)], false),
    ];
    let apart: [Case<'_>; 7] = [
        (&local, &[Local, Local], true),
        (&local, &[Local, Connected, Local], false),
        (&local, &[Local, Status(500), Local], false),
        (&total, &[Local, Local, Local], false),
        (&gateway, &[Local, Local], false),
        // Neither success nor failure of the service.
        (&total, &[Status(500), Local, Status(500)], true),
        (&gateway, &[Status(503), Status(503)], true),
    ];
    let cases = together.iter().map(|case| (case, false)).chain(apart.iter().map(|case| (case, true)));
    for ((rule, events, expected), split) in cases {
        let policy = policy(|config| {
            rule(config);
            config.split = split;
        });
        let (detector, records) = cluster(3);
        let out: usize = events.iter().map(|event| detector.note(&policy, &records[0], *event, 1)).sum();
        assert_eq!((out, records[0].is_out(1)), (usize::from(*expected), *expected), "{split} {events:?}");
        assert_eq!(detector.is_idle(1), !expected);
    }
}

#[test]
fn it_is_out_for_longer_each_time_and_forgiven_in_use() {
    let policy = policy(|config| config.total_failures = NonZeroU32::new(1));
    let (detector, records) = cluster(2);
    let fail = |now| {
        assert_eq!(detector.note(&policy, &records[0], Event::Status(500), now), 1);
        records[0].out_until.get() - now
    };
    assert_eq!(fail(0), EJECTION);
    assert!(records[0].is_out(EJECTION - 1) && !records[0].is_out(EJECTION));
    assert_eq!(detector.note(&policy, &records[0], Event::Status(500), 5), 0, "it is out already");
    assert_eq!(fail(EJECTION), 2 * EJECTION);
    assert_eq!(fail(3 * EJECTION), 3 * EJECTION);
    // Two intervals in use take two times away.
    assert_eq!(fail(6 * EJECTION + 2 * INTERVAL), 2 * EJECTION);
    assert_eq!(fail(1_000_000), EJECTION);
}

#[test]
fn no_longer_than_the_longest() {
    let policy = policy(|config| config.total_failures = NonZeroU32::new(1));
    let (detector, records) = cluster(1);
    let mut now = 0;
    for _ in 0..200 {
        detector.note(&policy, &records[0], Event::Local, now);
        now = records[0].out_until.get();
    }
    detector.note(&policy, &records[0], Event::Local, now);
    assert_eq!(records[0].out_until.get() - now, Timer::ticks(LONGEST));
    // It is not held against the endpoint for longer than it took to get there.
    let times = Timer::ticks(LONGEST) / EJECTION;
    let rested = records[0].out_until.get() + times * INTERVAL;
    detector.note(&policy, &records[0], Event::Local, rested);
    assert_eq!(records[0].out_until.get() - rested, EJECTION);
}

/// Answers of each endpoint in one interval: (good, bad).
fn interval(policy: &OutlierPolicy, answers: &[(u32, u32)], judged_at: u64) -> Vec<bool> {
    let (detector, records) = cluster(answers.len());
    for (record, (good, bad)) in records.iter().zip(answers) {
        for n in 0..good + bad {
            let status = if n < *good { 200 } else { 500 };
            assert_eq!(detector.note(policy, record, Event::Status(status), 1), 0);
        }
    }
    detector.note(policy, &records[0], Event::Status(200), judged_at);
    records.iter().map(|record| record.is_out(judged_at)).collect()
}

#[test]
fn rates_are_judged_at_an_intervals_end() {
    let share = |percent| FailurePercentage { min_hosts: 3, min_requests: 10, percent };
    let by_share = policy(|config| config.failure_percentage = Some(share(50)));
    for (answers, expected) in [
        (vec![(10, 0), (10, 0), (5, 5)], vec![false, false, true]),
        (vec![(10, 0), (10, 0), (6, 5)], vec![false, false, false]),
        // Too few requests at one, so too few hosts.
        (vec![(10, 0), (9, 0), (0, 10)], vec![false, false, false]),
    ] {
        assert_eq!(interval(&by_share, &answers, 1 + INTERVAL), expected, "{answers:?}");
    }
    let rate = SuccessRate { min_hosts: 3, min_requests: 10, deviations_thousandths: 1_200 };
    let by_rate = policy(|config| config.success_rate = Some(rate));
    for (answers, expected) in [
        (vec![(10, 0), (10, 0), (10, 0), (5, 5)], vec![false, false, false, true]),
        // All alike, however bad.
        (vec![(1, 9), (1, 9), (1, 9), (1, 9)], vec![false; 4]),
        (vec![(10, 0), (10, 0)], vec![false; 2]),
    ] {
        assert_eq!(interval(&by_rate, &answers, 1 + INTERVAL), expected, "{answers:?}");
    }
}

#[test]
fn what_an_interval_showed_holds_from_its_end_and_not_from_when_it_is_noticed() {
    let share = FailurePercentage { min_hosts: 1, min_requests: 10, percent: 50 };
    let policy = policy(|config| config.failure_percentage = Some(share));
    let bad = [(0, 10)];
    assert_eq!(interval(&policy, &bad, INTERVAL), [false], "it has not ended");
    assert_eq!(interval(&policy, &bad, 1 + INTERVAL), [true]);
    assert_eq!(interval(&policy, &bad, INTERVAL + EJECTION), [true]);
    assert_eq!(interval(&policy, &bad, 1 + INTERVAL + EJECTION), [false], "it would be back by now");
}

#[test]
fn a_shorter_interval_holds_at_once() {
    let share = FailurePercentage { min_hosts: 1, min_requests: 1, percent: 50 };
    let with = |millis| {
        policy(|config| {
            config.failure_percentage = Some(share);
            config.interval_millis = NonZeroU64::new(millis).unwrap();
        })
    };
    let (detector, records) = cluster(1);
    detector.note(&with(3_600_000), &records[0], Event::Local, 1);
    detector.note(&with(1_000), &records[0], Event::Local, 2);
    assert_eq!(detector.note(&with(1_000), &records[0], Event::Local, 2 + INTERVAL), 1);
}

#[test]
fn split_rates_are_of_answers_and_of_attempts() {
    let share = FailurePercentage { min_hosts: 1, min_requests: 10, percent: 50 };
    let policy = policy(|config| {
        config.failure_percentage = Some(share);
        config.split = true;
    });
    let (detector, records) = cluster(2);
    for _ in 0..10 {
        detector.note(&policy, &records[0], Event::Local, 1);
        detector.note(&policy, &records[1], Event::Status(500), 1);
    }
    assert_eq!(detector.note(&policy, &records[0], Event::Connected, 1 + INTERVAL), 2);
}

#[test]
fn an_endpoint_that_is_gone_is_not_left_out() {
    let policy = policy(|config| config.total_failures = NonZeroU32::new(1));
    let (detector, records) = cluster(2);
    detector.watch(records[1..].to_vec());
    assert_eq!(detector.note(&policy, &records[0], Event::Local, 1), 0);
}

proptest! {
    /// Whatever happens, and whenever: no more are out than may be, for no longer than may be, and all come back.
    #[test]
    fn few_are_out_and_all_come_back(
        hosts in 1usize..12,
        percent in 0u32..=100,
        split: bool,
        steps in prop::collection::vec((0usize..12, 0u8..5, 0u64..40), 1..200),
    ) {
        let policy = policy(|config| {
            config.max_percent = percent;
            config.split = split;
            config.total_failures = NonZeroU32::new(3);
            config.gateway_failures = NonZeroU32::new(2);
            config.local_failures = NonZeroU32::new(2);
            config.success_rate =
                Some(SuccessRate { min_hosts: 2, min_requests: 2, deviations_thousandths: 500 });
            config.failure_percentage = Some(FailurePercentage { min_hosts: 2, min_requests: 2, percent: 60 });
        });
        let (detector, records) = cluster(hosts);
        let mut now = 0;
        for (host, what, later) in steps {
            now += later;
            let record = &records[host % hosts];
            let before: Vec<_> = records.iter().map(|record| record.is_out(now)).collect();
            let event = match what {
                0 => Event::Local,
                1 => Event::Connected,
                2 => Event::Status(500),
                3 => Event::Status(503),
                _ => Event::Status(200),
            };
            let new = detector.note(&policy, record, event, now);
            let out = records.iter().filter(|record| record.is_out(now)).count();
            prop_assert_eq!(out, before.iter().filter(|out| **out).count() + new);
            let most = (percent as usize * hosts / 100).max(usize::from(percent > 0));
            prop_assert!(out <= most, "{} of {}, {}", out, hosts, percent);
            prop_assert_eq!(detector.is_idle(now), out == 0);
            for record in &records {
                prop_assert!(record.out_until.get() <= now + Timer::ticks(LONGEST));
            }
        }
        prop_assert!(records.iter().all(|record| !record.is_out(now + Timer::ticks(LONGEST))));
        prop_assert!(detector.is_idle(now + Timer::ticks(LONGEST)));
    }

    /// Each time in a row is longer by the first one, up to the longest.
    #[test]
    fn times_grow(n in 1u64..300) {
        let policy = policy(|config| config.total_failures = NonZeroU32::new(1));
        let (detector, records) = cluster(1);
        let mut now = 7;
        for time in 1..=n {
            prop_assert_eq!(detector.note(&policy, &records[0], Event::Local, now), 1);
            let until = records[0].out_until.get();
            prop_assert_eq!(until - now, (time * EJECTION).min(Timer::ticks(LONGEST)));
            now = until;
        }
    }
}
