//! What must always hold, over random interleavings, and the rules one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::simulation::{GROUPS, Simulation, is_bad, resource};
use super::{HEARTBEAT, RETRY_FIRST, SILENCE};
use crate::data::{Id, Revision, Version};
use crate::index::Deletions;
use crate::peer::Behind;
use crate::view::ViewChange;

#[derive(Debug, Clone)]
enum Act {
    Put(u8, u8),
    Delete(u8),
    PassRevision,
    Step(u8),
    Settle,
    Connect,
    Disconnect,
    RestartPublisher,
    ForgetHistory,
    Wait(u8),
    Tolerate(bool),
    /// What a group shares, and what is the view's own: names and what they become.
    Change(usize, Vec<(u8, Option<u8>)>, Vec<(u8, Option<u8>)>),
    Switch(usize),
}

/// What happens to both ends and between them, whatever the publisher has.
fn running() -> impl Strategy<Value = Act> {
    prop_oneof![
        40 => (0..6u8).prop_map(Act::Step),
        4 => Just(Act::Settle),
        2 => Just(Act::Connect),
        1 => Just(Act::Disconnect),
        1 => Just(Act::RestartPublisher),
        2 => (0..40u8).prop_map(Act::Wait),
        1 => any::<bool>().prop_map(Act::Tolerate),
    ]
}

/// Those of a view that shares what it shows.
fn sharing_acts() -> impl Strategy<Value = Vec<Act>> {
    // Few values: what comes back to what it was, or is the same elsewhere, is what may go wrong.
    let value = || prop::sample::select(vec![1, 2, 5, 7, 14]);
    let changes = move || prop::collection::vec((0..16u8, prop::option::weighted(0.7, value())), 0..5);
    let act = prop_oneof![
        12 => (0..GROUPS, changes(), changes()).prop_map(|(group, shared, own)| Act::Change(group, shared, own)),
        4 => (0..GROUPS).prop_map(Act::Switch),
        51 => running(),
    ];
    prop::collection::vec(act, 0..200)
}

fn changes(of: &[(u8, Option<u8>)]) -> Vec<ViewChange> {
    let change = |(number, value): &(u8, Option<u8>)| match value {
        Some(value) => {
            let (type_, name) = name(*number);
            ViewChange::Upsert(resource(type_, &name, *value))
        }
        None => ViewChange::Remove(id(*number)),
    };
    of.iter().map(change).collect()
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0..32u8, 0..=255u8).prop_map(|(name, value)| Act::Put(name, value)),
        4 => (0..32u8).prop_map(Act::Delete),
        1 => Just(Act::PassRevision),
        1 => Just(Act::ForgetHistory),
        51 => running(),
    ];
    prop::collection::vec(act, 0..200)
}

fn name(number: u8) -> (&'static str, String) {
    (if number.is_multiple_of(2) { "Even" } else { "Odd" }, number.to_string())
}

fn id(number: u8) -> Id {
    let (type_, name) = name(number);
    Id::new(type_, name)
}

fn act(simulation: &mut Simulation, act: &Act) {
    match act {
        Act::Put(number, value) => {
            let (type_, name) = name(*number);
            simulation.publisher.put(resource(type_, &name, *value));
        }
        Act::Delete(number) => simulation.publisher.delete(id(*number)),
        Act::PassRevision => simulation.publisher.pass_revision(),
        Act::Step(actor) => {
            simulation.step(*actor);
        }
        Act::Settle => simulation.settle(),
        Act::Connect => simulation.connect(),
        Act::Disconnect => simulation.disconnect(),
        Act::RestartPublisher => simulation.restart_publisher(),
        Act::ForgetHistory => simulation.publisher.forget_history(),
        Act::Wait(seconds) => simulation.now += std::time::Duration::from_secs((*seconds).into()),
        Act::Tolerate(tolerant) => simulation.subscriber.tolerant = *tolerant,
        Act::Change(group, shared, own) => simulation.change(*group, changes(shared), changes(own)),
        Act::Switch(group) => simulation.publisher.switch(*group),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened before: when it is quiet, the subscriber holds what the publisher has, but for what it
    /// refuses; and it holds that too once it accepts it.
    #[test]
    fn when_quiet_both_are_equal(acts in acts(), recorded: bool, whole_steps: bool, beat: bool) {
        let mode = if recorded { Deletions::Recorded } else { Deletions::Derived };
        let mut simulation = Simulation::new(mode);
        simulation.subscriber.whole_steps = whole_steps;
        simulation.beat = beat.then_some(simulation.now);
        acts.iter().for_each(|each| act(&mut simulation, each));

        // What it refused before it became tolerant waits for its back-off: so it is strict when the first look is taken.
        simulation.subscriber.tolerant = false;
        simulation.settle();
        if simulation.shown_at_subscriber.withheld > 0 {
            // Names that are gone with the history that knew of it.
            prop_assert!(simulation.subscriber.held.len() > simulation.expected().len());
            simulation.confirm();
            simulation.settle();
        }
        prop_assert_eq!(simulation.actual(), simulation.expected());

        simulation.subscriber.tolerant = true;
        simulation.pass(301);
        prop_assert_eq!(&simulation.actual(), &simulation.expected());
        prop_assert_eq!(simulation.shown_at_publisher.revision, Some(simulation.publisher.revision()));
        prop_assert!(simulation.shown_at_publisher.rejected.is_empty());
        prop_assert!(simulation.shown_at_subscriber.rejected.is_empty());
        prop_assert_eq!(simulation.shown_at_subscriber.behind, Behind::Current);
        prop_assert_eq!(simulation.shown_at_publisher.behind, Behind::Current);
    }

    /// The same where much of what is shown is shared, with either of two groups.
    #[test]
    fn when_quiet_both_are_equal_with_what_is_shared(acts in sharing_acts(), whole_steps: bool, part in 1..2000usize) {
        let mut simulation = Simulation::sharing();
        simulation.part = part;
        simulation.subscriber.whole_steps = whole_steps;
        acts.iter().for_each(|each| act(&mut simulation, each));
        simulation.subscriber.tolerant = false;
        simulation.settle();
        prop_assert_eq!(simulation.actual(), simulation.expected());
        simulation.subscriber.tolerant = true;
        simulation.pass(301);
        prop_assert_eq!(&simulation.actual(), &simulation.expected());
        prop_assert_eq!(simulation.shown_at_publisher.revision, Some(simulation.publisher.revision()));
        prop_assert!(simulation.shown_at_publisher.rejected.is_empty());
        prop_assert_eq!(simulation.shown_at_publisher.behind, Behind::Current);
        let listed = simulation.publisher.view.list();
        let listed = listed.iter().map(|resource| (resource.id(), resource.version)).collect::<Vec<_>>();
        prop_assert_eq!(listed, simulation.expected().into_iter().collect::<Vec<_>>());

        // Who comes again is sent nothing.
        let sent = simulation.sent();
        simulation.connect();
        simulation.settle();
        prop_assert_eq!(simulation.sent(), sent);
        simulation.restart_publisher();
        simulation.settle();
        prop_assert_eq!(simulation.sent(), sent);
    }

    /// After a disconnection of any length, and after a restart of either end, exactly what differs is sent.
    #[test]
    fn a_resume_sends_the_difference(
        before in prop::collection::btree_map(0..64u8, 0..=255u8, 0..64),
        after in prop::collection::btree_map(0..64u8, 0..=255u8, 0..16),
        gone in prop::collection::btree_set(0..64u8, 0..16),
        restart: bool,
    ) {
        let mut simulation = Simulation::new(Deletions::Recorded);
        simulation.subscriber.tolerant = true;
        for (number, value) in before {
            act(&mut simulation, &Act::Put(number, value));
        }
        simulation.settle();
        let sent = simulation.sent();

        simulation.disconnect();
        for (number, value) in after {
            act(&mut simulation, &Act::Put(number, value));
        }
        for number in gone {
            act(&mut simulation, &Act::Delete(number));
        }
        if restart {
            simulation.restart_publisher();
        }
        let held = simulation.subscriber.held.clone();
        let differ = simulation.expected().iter().filter(|(id, version)| held.get(id) != Some(version)).count();
        simulation.settle();
        prop_assert_eq!(simulation.actual(), simulation.expected());
        prop_assert_eq!(simulation.sent() - sent, differ as u64);
    }

    /// A publisher that lost its contents, has older ones, or is another one changes nothing, until an operator says so.
    #[test]
    fn a_disaster_changes_nothing(before in 1..60u8, later in 1..20u8, disaster in 0..4u8, seconds in 1..60u64) {
        let mut simulation = Simulation::new(Deletions::Recorded);
        simulation.subscriber.tolerant = true;
        (0..before).for_each(|number| act(&mut simulation, &Act::Put(number, number)));
        let backup = simulation.publisher.backup();
        (0..later).for_each(|number| act(&mut simulation, &Act::Put(100 + number, number)));
        simulation.settle();
        let held = simulation.subscriber.held.clone();

        match disaster {
            0 => simulation.publisher.empty(),
            1 => simulation.publisher.restore(backup),
            2 => {
                simulation.publisher.empty();
                simulation.publisher.other_store(0);
            }
            _ => {
                simulation.publisher.empty();
                simulation.publisher.other_store(1_000_000);
            }
        }
        simulation.restart_publisher();
        simulation.settle();
        simulation.pass(seconds);
        prop_assert_eq!(&simulation.subscriber.held, &held);
        if disaster == 0 {
            prop_assert_eq!(simulation.shown_at_subscriber.withheld as usize, held.len());
            prop_assert_eq!(simulation.shown_at_publisher.withheld as usize, held.len());
        } else {
            prop_assert!(simulation.shown_at_subscriber.refused.is_some());
            prop_assert!(simulation.shown_at_publisher.refused.is_some());
        }
        // Coming back does not change it.
        simulation.connect();
        simulation.pass(seconds);
        prop_assert_eq!(&simulation.subscriber.held, &held);

        simulation.accept();
        simulation.settle();
        simulation.confirm();
        simulation.settle();
        prop_assert_eq!(simulation.actual(), simulation.expected());
        simulation.pass(6);
        prop_assert_eq!(&simulation.shown_at_publisher.refused, &None);
        prop_assert_eq!(simulation.shown_at_publisher.withheld, 0);
        // And it is settled: the next stream is an ordinary one.
        simulation.connect();
        simulation.settle();
        prop_assert_eq!(&simulation.shown_at_subscriber.refused, &None);
        prop_assert_eq!(simulation.shown_at_subscriber.withheld, 0);
    }
}

fn synced(count: u8, mode: Deletions) -> Simulation {
    let mut simulation = Simulation::new(mode);
    simulation.subscriber.tolerant = true;
    (0..count).for_each(|number| act(&mut simulation, &Act::Put(number, number)));
    simulation.settle();
    assert_eq!(simulation.subscriber.held.len(), usize::from(count));
    simulation
}

#[test]
fn a_known_deletion_of_everything_arrives_at_once() {
    for (mode, connected) in [
        (Deletions::Derived, true),
        (Deletions::Derived, false),
        (Deletions::Recorded, true),
        (Deletions::Recorded, false),
    ] {
        let mut simulation = synced(60, mode);
        if !connected {
            simulation.disconnect();
        }
        (0..60).for_each(|number| act(&mut simulation, &Act::Delete(number)));
        if !connected {
            simulation.restart_publisher();
        }
        simulation.settle();
        assert_eq!(simulation.subscriber.held, BTreeMap::new(), "{mode:?}, connected: {connected}");
        assert_eq!(simulation.shown_at_subscriber.withheld, 0);
    }
}

#[test]
fn inferred_deletions_wait_beyond_ten_and_a_fifth_of_a_type() {
    // (held of each type, deleted of each, withheld)
    for (held, deleted, withheld) in
        [(10, 10, false), (11, 11, true), (60, 12, false), (60, 13, true), (20, 10, false)]
    {
        let mut simulation = synced(2 * held, Deletions::Derived);
        simulation.disconnect();
        (0..2 * deleted).for_each(|number| act(&mut simulation, &Act::Delete(number)));
        simulation.publisher.forget_history();
        simulation.restart_publisher();
        simulation.settle();
        let left = simulation.subscriber.held.len();
        let expected = usize::from(2 * (if withheld { held } else { held - deleted }));
        assert_eq!(left, expected, "{deleted} of {held} deleted");
        if withheld {
            assert_eq!(simulation.shown_at_publisher.withheld, u32::from(2 * deleted));
            simulation.confirm();
            simulation.settle();
        }
        assert_eq!(simulation.actual(), simulation.expected());
    }
}

#[test]
fn what_is_withheld_stays_so_after_a_reconnection() {
    let mut simulation = synced(60, Deletions::Derived);
    simulation.disconnect();
    (0..60).for_each(|number| act(&mut simulation, &Act::Delete(number)));
    simulation.publisher.forget_history();
    simulation.settle();
    for number in 60..70 {
        // Changes go on meanwhile, and move the position of a subscriber that is settled.
        act(&mut simulation, &Act::Put(number, number));
        simulation.settle();
        simulation.connect();
        simulation.settle();
    }
    assert_eq!(simulation.subscriber.held.len(), 70);
    assert_eq!(simulation.shown_at_subscriber.withheld, 60);
    // A name that comes back is no longer in question.
    act(&mut simulation, &Act::Put(0, 1));
    simulation.settle();
    assert_eq!(simulation.shown_at_subscriber.withheld, 59);
    simulation.confirm();
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert_eq!(
        simulation.subscriber.position.map(|position| position.revision),
        Some(simulation.publisher.revision())
    );
}

#[test]
fn an_older_publisher_that_is_accepted_still_deletes_nothing_in_bulk() {
    for mode in [Deletions::Derived, Deletions::Recorded] {
        let mut simulation = synced(4, mode);
        let backup = simulation.publisher.backup();
        (4..60).for_each(|number| act(&mut simulation, &Act::Put(number, number)));
        simulation.settle();
        simulation.publisher.restore(backup);
        simulation.restart_publisher();
        simulation.settle();
        assert!(simulation.shown_at_subscriber.refused.is_some());
        simulation.accept();
        simulation.settle();
        assert_eq!(simulation.subscriber.held.len(), 60, "{mode:?}");
        assert_eq!(simulation.shown_at_publisher.withheld, 56);
        simulation.confirm();
        simulation.settle();
        assert_eq!(simulation.actual(), simulation.expected());
    }
}

#[test]
fn a_subscriber_behind_the_forgotten_deletions_starts_anew() {
    let mut simulation = synced(10, Deletions::Derived);
    // It is told of nothing until the deletion is forgotten.
    act(&mut simulation, &Act::Delete(3));
    simulation.publisher.forget_history();
    act(&mut simulation, &Act::Put(4, 1));
    let sent = simulation.sent();
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert_eq!(simulation.sent() - sent, 1);
}

#[test]
fn what_moves_between_two_groups_is_sent_as_far_as_it_differs() {
    let mut simulation = Simulation::sharing();
    simulation.subscriber.tolerant = true;
    let same = (0..20).map(|number| (number, Some(1))).collect::<Vec<_>>();
    let there = same.iter().copied().skip(5).chain([(40, Some(1)), (6, Some(2))]).collect();
    act(&mut simulation, &Act::Change(0, same, vec![(50, Some(1))]));
    simulation.settle();
    assert_eq!(simulation.sent(), 21);
    // Made behind all that was sent.
    act(&mut simulation, &Act::Change(1, there, vec![]));
    act(&mut simulation, &Act::Switch(1));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert_eq!((simulation.sent(), simulation.subscriber.held.len()), (23, 17));
    // What is its own goes before what is shared, and what is shared comes back when it is gone.
    act(&mut simulation, &Act::Change(1, vec![], vec![(7, Some(9))]));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    act(&mut simulation, &Act::Change(1, vec![(7, Some(11))], vec![]));
    simulation.settle();
    assert_eq!(simulation.sent(), 24);
    act(&mut simulation, &Act::Change(1, vec![], vec![(7, None)]));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert_eq!((simulation.sent(), simulation.subscriber.held.len()), (25, 17));
}

/// Each switch alone changes nothing; what was still to be told at the first is not forgotten at the second.
#[test]
fn what_was_yet_to_be_told_is_told_whatever_is_shared_meanwhile() {
    let mut simulation = Simulation::sharing();
    simulation.subscriber.tolerant = true;
    act(&mut simulation, &Act::Change(1, vec![(3, Some(2))], vec![]));
    act(&mut simulation, &Act::Change(2, vec![(3, Some(2))], vec![]));
    act(&mut simulation, &Act::Change(0, vec![(3, Some(1))], vec![]));
    simulation.settle();
    act(&mut simulation, &Act::Change(0, vec![(3, Some(2))], vec![]));
    act(&mut simulation, &Act::Switch(1));
    act(&mut simulation, &Act::Switch(2));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
}

/// Streams that would have to be told of more than is worth remembering begin anew, and are told no more than differs.
#[test]
fn where_nearly_all_is_something_else_streams_begin_anew() {
    let mut simulation = Simulation::sharing();
    simulation.subscriber.tolerant = true;
    let resources = |type_: &str| -> Vec<ViewChange> {
        (0..400).map(|number| ViewChange::Upsert(resource(type_, &number.to_string(), 1))).collect()
    };
    simulation.change(0, resources("Even"), vec![]);
    simulation.settle();
    let common = resources("Even").into_iter().take(50);
    simulation.change(1, common.chain(resources("Odd")).collect(), vec![]);
    let sent = simulation.sent();
    act(&mut simulation, &Act::Switch(1));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert_eq!(simulation.sent() - sent, 400);
    assert_eq!(simulation.publisher.view.tombstones(), 0);
}

/// A subscriber that refused a version is sent it again when it comes back, in the middle of a step, too.
#[test]
fn a_refused_version_that_comes_back_is_news() {
    let mut simulation = Simulation::sharing();
    simulation.part = 1;
    act(&mut simulation, &Act::Change(0, vec![(1, Some(7))], vec![]));
    simulation.settle();
    assert_eq!(simulation.shown_at_publisher.rejected.len(), 1);
    act(&mut simulation, &Act::Change(0, vec![(1, Some(1)), (2, Some(1))], vec![]));
    assert!(simulation.step(0), "the first of two parts");
    act(&mut simulation, &Act::Change(0, vec![(1, Some(7))], vec![]));
    simulation.settle();
    assert_eq!(simulation.shown_at_publisher.rejected.len(), 1, "it is known that it is refused");
    simulation.subscriber.tolerant = true;
    simulation.pass(301);
    assert_eq!(simulation.subscriber.held, simulation.expected());
}

#[test]
fn one_rejected_resource_stops_no_other() {
    let mut simulation = Simulation::new(Deletions::Derived);
    for (number, value) in [(1, 1), (2, 7), (3, 2)] {
        act(&mut simulation, &Act::Put(number, value));
    }
    simulation.settle();
    assert_eq!(simulation.subscriber.held.keys().cloned().collect::<Vec<_>>(), [id(1), id(3)]);
    for shown in [&simulation.shown_at_publisher, &simulation.shown_at_subscriber] {
        let rejected = shown.rejected.iter().map(|rejected| (rejected.id.clone(), rejected.reason.as_str()));
        assert_eq!(rejected.collect::<Vec<_>>(), [(id(2), "it is bad")]);
    }
    // It does not hold back the revision: what is rejected is shown by itself.
    assert_eq!(simulation.shown_at_publisher.revision, Some(simulation.publisher.revision()));

    // Another version is sent at once and clears it.
    act(&mut simulation, &Act::Put(2, 8));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert!(simulation.shown_at_publisher.rejected.is_empty());
    assert!(simulation.shown_at_subscriber.rejected.is_empty());
}

#[test]
fn a_rejected_version_is_sent_again_ever_more_rarely() {
    let mut simulation = Simulation::new(Deletions::Derived);
    act(&mut simulation, &Act::Put(2, 7));
    simulation.settle();
    let mut sent_at = Vec::new();
    for second in 1..=1300u64 {
        let before = simulation.sent();
        simulation.pass(1);
        if simulation.sent() > before {
            sent_at.push(second);
        }
    }
    // 1, 2, 4 ... 256 s, then every 300 s.
    assert_eq!(sent_at, [1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111]);
    assert_eq!(RETRY_FIRST.as_secs(), 1);
    simulation.subscriber.tolerant = true;
    simulation.pass(300);
    assert_eq!(simulation.actual(), simulation.expected());
    assert!(simulation.shown_at_publisher.rejected.is_empty());
}

#[test]
fn a_subscriber_that_does_not_read_costs_one_update() {
    let mut simulation = synced(10, Deletions::Derived);
    let sent = simulation.sent();
    // One update goes out and is never acknowledged; ten thousand changes of ten names follow.
    for change in 0..10_000u32 {
        let value = u8::try_from(change % 3).unwrap() + 1;
        act(&mut simulation, &Act::Put(u8::try_from(change % 10).unwrap(), value));
        simulation.step(0);
    }
    assert!(simulation.sent() - sent <= 1);
    assert_eq!(simulation.publisher.view.len(), 10);
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert!(simulation.sent() - sent <= 11, "the latest value of each name is enough");
}

#[test]
fn a_view_without_contents_says_nothing() {
    let mut simulation = synced(10, Deletions::Derived);
    simulation.disconnect();
    let store = simulation.publisher.view.position().store;
    simulation.publisher.view = crate::View::new(store, Revision(0));
    simulation.settle();
    simulation.pass(60);
    assert_eq!(simulation.subscriber.held.len(), 10);
    assert_ne!(simulation.shown_at_subscriber.behind, Behind::Current);

    // Its contents arrive on the same stream.
    let sent = simulation.sent();
    simulation.publisher.put(resource("Even", "200", 1));
    let truth = simulation.publisher.truth.values().cloned().collect::<Vec<_>>();
    let revision = simulation.publisher.revision();
    simulation.publisher.view = crate::View::new(store, Revision(0));
    simulation.publisher.view.replace(revision, truth);
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
    assert_eq!(simulation.sent() - sent, 1);
}

#[test]
fn staleness_is_the_time_since_it_last_equalled() {
    let mut simulation = synced(3, Deletions::Derived);
    simulation.pass(60);
    assert_eq!(simulation.shown_at_subscriber.behind, Behind::Current);
    let behind =
        |simulation: &Simulation| simulation.shown_at_subscriber.behind_millis(simulation.now).unwrap();

    // Something is under way and does not arrive.
    act(&mut simulation, &Act::Put(1, 1));
    simulation.now += HEARTBEAT;
    while simulation.step(0) | simulation.step(1) | simulation.step(2) | simulation.step(3) {}
    assert_eq!(behind(&simulation), 0);
    simulation.now += HEARTBEAT;
    simulation.step(2);
    assert_eq!(behind(&simulation), 5000);
    simulation.settle();
    assert_eq!(behind(&simulation), 0);

    // The publisher does not know whether it has the newest: neither does the subscriber.
    simulation.publisher.view.set_known(false);
    simulation.settle();
    simulation.pass(7);
    assert!((7000..=13_000).contains(&behind(&simulation)), "{}", behind(&simulation));
    simulation.publisher.view.set_known(true);
    simulation.settle();
    assert_eq!(behind(&simulation), 0);
}

#[test]
fn silence_grows_old_and_then_is_death() {
    let mut simulation = synced(3, Deletions::Derived);
    simulation.pass(7);
    // Nothing of the publisher arrives any more.
    simulation.now += SILENCE - HEARTBEAT + HEARTBEAT / 2;
    simulation.step(2);
    assert!(simulation.shown_at_subscriber.behind_millis(simulation.now).unwrap() >= 10_000);
    assert!(!simulation.link.as_ref().unwrap().is_dead(simulation.now));
    simulation.now += HEARTBEAT;
    assert!(simulation.link.as_ref().unwrap().is_dead(simulation.now));
}

#[test]
fn a_replica_that_is_late_is_not_an_old_backup() {
    let mut simulation = synced(10, Deletions::Recorded);
    simulation.disconnect();
    // Another replica of the same database, which has not read the last commit.
    let ahead = simulation.publisher.backup();
    let (truth, revision) = ahead.clone();
    simulation.publisher.restore((truth, Revision(revision.0 - 1)));
    simulation.restart_publisher();
    simulation.settle();
    assert!(simulation.shown_at_publisher.refused.is_some());
    simulation.pass(3);
    simulation.publisher.pass_revision();
    simulation.pass(2);
    assert_eq!(simulation.shown_at_subscriber.refused, None);
    assert_eq!(simulation.shown_at_publisher.refused, None);
    act(&mut simulation, &Act::Put(1, 99));
    simulation.settle();
    assert_eq!(simulation.actual(), simulation.expected());
}

#[test]
fn a_quiet_subscriber_answers_every_second_heartbeat() {
    for on_beat in [false, true] {
        let mut simulation = synced(30, Deletions::Derived);
        simulation.beat = on_beat.then_some(simulation.now);
        simulation.connect();
        simulation.settle();
        let (mut heartbeats, mut answers) = (0, 0);
        for _ in 0..600 {
            simulation.now += std::time::Duration::from_millis(100);
            heartbeats += u32::from(simulation.step(0));
            while simulation.step(1) | simulation.step(4) | simulation.step(5) {}
            answers += u32::from(simulation.step(2));
            simulation.step(3);
            assert!(!simulation.link.as_ref().unwrap().is_dead(simulation.now));
        }
        assert!((11..=13).contains(&heartbeats), "{heartbeats} heartbeats in a minute");
        assert!((5..=7).contains(&answers), "{answers} answers in a minute, on beat: {on_beat}");
    }
}

#[test]
fn what_a_heartbeat_changes_is_answered_at_once() {
    for on_beat in [false, true] {
        let mut simulation = synced(3, Deletions::Derived);
        simulation.beat = on_beat.then_some(simulation.now);
        simulation.connect();
        simulation.pass(13);
        simulation.publisher.view.set_known(false);
        simulation.settle();
        assert!(matches!(simulation.shown_at_publisher.behind, Behind::Since(_)), "on beat: {on_beat}");
        simulation.publisher.view.set_known(true);
        simulation.settle();
        assert_eq!(simulation.shown_at_publisher.behind, Behind::Current, "on beat: {on_beat}");
    }
}

#[test]
fn bad_resources_are_marked_by_their_content() {
    // The simulation's own premise.
    assert!(is_bad(&resource("Even", "1", 14)) && !is_bad(&resource("Even", "1", 13)));
    assert_ne!(Version::of(b"a"), Version::of(b"b"));
}
