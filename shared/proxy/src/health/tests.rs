use super::*;
use crate::policy::health::Finding;
use meridian_proxy_config::Host;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use watch::{KEEP, Subject, repeat};

fn plan(change: Value) -> Arc<HealthPlan> {
    let mut config = json!({
        "intervalMillis": 1_000, "idleIntervalMillis": 60_000, "timeoutMillis": 500,
        "unhealthyAfter": 2, "healthyAfter": 1, "reuse": true, "question": { "tcp": {} },
    });
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    Arc::new(HealthPlan::compile(&serde_json::from_value(config).unwrap()).unwrap())
}

fn endpoint(port: u16) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        host: Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        port,
        zone: "east".into(),
        sni: None,
        replica: 0,
        name: String::new(),
        tags: BTreeMap::new(),
        remote: false,
    })
}

fn silent() -> Finding {
    Finding::Silent(String::new())
}

#[test]
fn what_is_known_stays_and_what_is_new_begins_unhealthy() {
    let plan = plan(json!({}));
    let first = Board::new(plan.clone(), &[vec![endpoint(1), endpoint(2)]], None);
    let well = |board: &Board, port| board.of(&endpoint(port)).unwrap().is_well();
    assert!(well(&first, 1) && well(&first, 2), "they were in use until now");
    assert_eq!(first.of(&endpoint(2)).unwrap().note(&plan, &silent()), Some(false));
    assert_eq!(first.changes(), 1);

    let mut renamed = (*endpoint(2)).clone();
    renamed.tags.insert("version".into(), "2".into());
    let next = Board::new(plan.clone(), &[vec![Arc::new(renamed.clone())]], Some(&first));
    assert!(!next.of(&Arc::new(renamed)).unwrap().is_well(), "it is no other by that");
    let next = Board::new(plan.clone(), &[vec![endpoint(2)], vec![endpoint(3)]], Some(&first));
    assert!(!well(&next, 2) && !well(&next, 3) && next.of(&endpoint(1)).is_none());
    assert_eq!(next.of(&endpoint(3)).unwrap().note(&plan, &Finding::Well), Some(true));
    assert_eq!((first.changes(), next.changes()), (2, 2), "whoever still holds the old one learns of it");
}

/// Answers as it is told, and remembers when it was asked.
struct Told {
    /// Nothing can be asked before.
    able_at: Option<Instant>,
    /// How long an answer takes, and what it is; the last for ever.
    answers: Vec<(Duration, Finding)>,
    calls: Rc<Cell<u64>>,
    asked: Rc<RefCell<Vec<Instant>>>,
    kept: Rc<RefCell<Vec<bool>>>,
    under_way: Rc<Cell<usize>>,
    most: Rc<Cell<usize>>,
}

impl Told {
    fn new(answers: &[(u64, Finding)]) -> Self {
        let answers = answers.iter().map(|(millis, it)| (Duration::from_millis(*millis), it.clone()));
        Self {
            able_at: None,
            answers: answers.collect(),
            calls: Rc::default(),
            asked: Rc::default(),
            kept: Rc::default(),
            under_way: Rc::default(),
            most: Rc::default(),
        }
    }
}

struct UnderWay(Rc<Cell<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Subject for Told {
    async fn able(&self) {
        if let Some(at) = self.able_at {
            tokio::time::sleep_until(at).await;
        }
    }

    async fn ask(&mut self) -> Finding {
        self.asked.borrow_mut().push(Instant::now());
        self.under_way.set(self.under_way.get() + 1);
        self.most.set(self.most.get().max(self.under_way.get()));
        let _under_way = UnderWay(self.under_way.clone());
        let (wait, finding) = match self.answers.len() {
            0 => std::future::pending().await,
            1 => self.answers[0].clone(),
            _ => self.answers.remove(0),
        };
        tokio::time::sleep(wait).await;
        finding
    }

    async fn rest(&mut self, wait: Duration, keep: bool) {
        self.kept.borrow_mut().push(keep);
        tokio::time::sleep(wait).await;
    }

    fn calls(&self) -> u64 {
        self.calls.get()
    }

    fn found(&mut self, _: &Finding, _: Option<bool>) {}
}

fn health() -> EndpointHealth {
    EndpointHealth::new(true, &Arc::default())
}

#[tokio::test(start_paused = true)]
async fn checks_are_as_far_apart_as_the_plan_says() {
    let start = Instant::now();
    let told = Told::new(&[(100, Finding::Well)]);
    let (asked, calls, kept) = (told.asked.clone(), told.calls.clone(), told.kept.clone());
    let plan = plan(json!({ "jitter": { "initialMillis": 400, "intervalPercent": 10 } }));
    let health = health();
    let turns = Semaphore::new(1);
    let watching = repeat(told, &plan, &health, &turns, || 0.5);
    tokio::pin!(watching);
    let run = Duration::from_secs(62);
    assert!(timeout(run, watching.as_mut()).await.is_err());
    // Nobody calls.
    let at = |asked: &[Instant]| asked.iter().map(|at| (*at - start).as_millis()).collect::<Vec<_>>();
    assert_eq!(at(&asked.borrow()), [200]);
    assert_eq!(*kept.borrow(), [false, false], "for a minute nothing is kept");
    calls.set(1);
    assert!(timeout(Duration::from_secs(5), watching.as_mut()).await.is_err());
    // Somebody has: the next is soon, and then nobody again.
    assert_eq!(at(&asked.borrow()), [200, 63_300, 64_450]);
    assert_eq!(*kept.borrow(), [false, false, true, false]);
    assert!(KEEP < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_silence() {
    let start = Instant::now();
    let told = Told::new(&[(0, Finding::Well), (501, Finding::Well)]);
    let (asked, calls) = (told.asked.clone(), told.calls.clone());
    let health = health();
    let plan = plan(json!({ "idleIntervalMillis": 1_000 }));
    let turns = Semaphore::new(1);
    let watching = repeat(told, &plan, &health, &turns, || 0.0);
    tokio::pin!(watching);
    calls.set(7);
    assert!(timeout(Duration::from_millis(1_600), watching.as_mut()).await.is_err());
    assert!(health.is_well(), "once");
    assert!(timeout(Duration::from_millis(1_500), watching.as_mut()).await.is_err());
    assert!(!health.is_well(), "twice");
    let at: Vec<_> = asked.borrow().iter().map(|at| (*at - start).as_millis()).collect();
    assert_eq!(at, [0, 1_000, 2_500], "the interval begins when a check has ended");
}

/// Without a certificate of its own a proxy can ask nobody, which says nothing of those whom it would ask.
#[tokio::test(start_paused = true)]
async fn nobody_is_blamed_for_what_the_proxy_lacks() {
    let start = Instant::now();
    let hour = Duration::from_secs(3_600);
    let told = Told { able_at: Some(start + hour), ..Told::new(&[(0, silent())]) };
    let asked = told.asked.clone();
    let (plan, health, turns) = (plan(json!({})), health(), Semaphore::new(1));
    let watching = repeat(told, &plan, &health, &turns, || 0.0);
    tokio::pin!(watching);
    assert!(timeout(hour - Duration::from_secs(1), watching.as_mut()).await.is_err());
    assert!(asked.borrow().is_empty() && health.is_well());
    assert!(timeout(Duration::from_secs(2), watching.as_mut()).await.is_err());
    assert!(asked.borrow().len() == 1 && !health.is_well());
}

#[tokio::test(start_paused = true)]
async fn so_many_are_under_way_and_all_come_to_their_turn() {
    let plan = plan(json!({ "idleIntervalMillis": 10_000 }));
    let turns = Semaphore::new(3);
    let (most, under_way) = (Rc::<Cell<usize>>::default(), Rc::<Cell<usize>>::default());
    let all: Vec<_> = (0..10)
        .map(|_| Told {
            most: most.clone(),
            under_way: under_way.clone(),
            ..Told::new(&[(100_000, Finding::Well)])
        })
        .collect();
    let asked: Vec<_> = all.iter().map(|told| told.asked.clone()).collect();
    let known: Vec<_> = all.iter().map(|_| health()).collect();
    let watching =
        all.into_iter().zip(&known).map(|(told, health)| repeat(told, &plan, health, &turns, || 0.0));
    drop(timeout(Duration::from_secs(9), futures::future::join_all(watching)).await);
    assert_eq!(most.get(), 3);
    assert_eq!(under_way.get(), 0, "what is given up is over");
    assert!(asked.iter().all(|asked| asked.borrow().len() == 1));
    assert!(known.iter().all(|health| !health.is_well()));
}

proptest! {
    /// Whatever the order of findings, policies and endpoint sets that come and go: what a board says of an endpoint is
    /// what a machine of its own would say, and every change is seen by the counter.
    #[test]
    fn boards_forget_only_what_left(steps in prop::collection::vec((0u16..4, 0u8..4, any::<bool>()), 1..60)) {
        let plan = plan(json!({}));
        let mut present: BTreeSet<u16> = [0, 1].into();
        let set = |present: &BTreeSet<u16>| vec![present.iter().map(|port| endpoint(*port)).collect::<Vec<_>>()];
        let mut board = Board::new(plan.clone(), &set(&present), None);
        let mut model: BTreeMap<u16, Machine> = present.iter().map(|port| (*port, Machine::new(true))).collect();
        for (port, step, answer) in steps {
            let before = board.changes();
            let was: Vec<_> = model.values().map(Machine::is_well).collect();
            match (step, model.get_mut(&port)) {
                (0, _) => {
                    if !present.remove(&port) {
                        present.insert(port);
                        model.insert(port, Machine::new(false));
                    }
                    model.retain(|port, _| present.contains(port));
                    board = Board::new(plan.clone(), &set(&present), Some(&board));
                }
                (_, Some(machine)) => {
                    let finding = match (answer, step) {
                        (true, _) => Finding::Well,
                        (false, 1) => Finding::Unwell(String::new()),
                        (false, _) => silent(),
                    };
                    machine.note(&plan, &finding);
                    board.of(&endpoint(port)).unwrap().note(&plan, &finding);
                    let is: Vec<_> = model.values().map(Machine::is_well).collect();
                    prop_assert_eq!(board.changes() - before, u64::from(was != is));
                }
                (_, None) => prop_assert!(board.of(&endpoint(port)).is_none()),
            }
            for (port, machine) in &model {
                prop_assert_eq!(board.of(&endpoint(*port)).unwrap().is_well(), machine.is_well());
            }
        }
    }
}
