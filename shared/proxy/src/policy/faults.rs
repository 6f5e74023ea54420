//! Faults made on purpose: what happens to one request.

use http::StatusCode;
use meridian_proxy_config::{CallerIdentity, Effect, Fault, FaultRule};
use std::{num::NonZeroU64, time::Duration};

/// Draws are below this.
pub const MILLION: u32 = 1_000_000;

/// What happens to a request; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Before anything else.
    pub delay: Duration,
    /// This is answered, and the application not asked.
    pub abort: Option<StatusCode>,
    /// How fast the answer's body goes.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// The faults for a caller, in order: those of every rule that matches, and of rules that hold alone of the first.
pub fn of(rules: &[FaultRule], caller: &CallerIdentity, sni: Option<&str>) -> Vec<Fault> {
    let mut decided = false;
    let matching = rules.iter().filter(|rule| rule.caller.matches(caller, sni));
    let matching = matching.filter(|rule| !(rule.first_only && std::mem::replace(&mut decided, true)));
    matching.flat_map(|rule| &rule.faults).copied().collect()
}

/// Draws a number below [`MILLION`] for each fault: whether it is made. An abort ends it.
pub fn plan(faults: &[Fault], mut draw: impl FnMut() -> u32) -> Plan {
    let mut plan = Plan::default();
    for fault in faults {
        if draw() >= fault.per_million {
            continue;
        }
        match fault.effect {
            Effect::Delay(millis) => {
                plan.delay = plan.delay.saturating_add(Duration::from_millis(millis));
            }
            Effect::Abort(status) => {
                plan.abort = Some(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
                break;
            }
            Effect::Bandwidth(bytes) => {
                let lowest = plan.bytes_per_second.map_or(bytes, |other| other.min(bytes));
                plan.bytes_per_second = Some(lowest);
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proxy_config::CallerMatch;

    const HALF: u32 = MILLION / 2;

    fn fault(per_million: u32, effect: Effect) -> Fault {
        Fault { per_million, effect }
    }

    fn bytes(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    #[test]
    fn each_fault_is_drawn_by_itself() {
        let faults = [
            fault(HALF, Effect::Delay(100)),
            fault(HALF, Effect::Bandwidth(bytes(10))),
            fault(HALF, Effect::Delay(20)),
            fault(HALF, Effect::Bandwidth(bytes(5))),
            fault(HALF, Effect::Abort(503)),
            fault(HALF, Effect::Delay(3_000)),
        ];
        let (yes, no) = (HALF - 1, HALF);
        let drawn = |draws: [u32; 6]| {
            let mut draws = draws.into_iter();
            plan(&faults, || draws.next().unwrap())
        };
        let delay = Duration::from_millis;
        assert_eq!(drawn([no; 6]), Plan::default());
        let slow = Plan { delay: delay(120), abort: None, bytes_per_second: Some(bytes(5)) };
        assert_eq!(drawn([yes, yes, yes, yes, no, no]), slow);
        let lowest = Plan { bytes_per_second: Some(bytes(10)), ..Plan::default() };
        assert_eq!(drawn([no, yes, no, no, no, no]), lowest);
        let late = Plan { delay: delay(3_000), ..Plan::default() };
        assert_eq!(drawn([no, no, no, no, no, yes]), late);
        // What would come after an abort does not.
        let abort =
            Plan { delay: delay(20), abort: Some(StatusCode::SERVICE_UNAVAILABLE), ..Plan::default() };
        assert_eq!(drawn([no, no, yes, no, yes, yes]), abort);
    }

    #[test]
    fn all_and_none_are_certain() {
        let abort = |per_million| [fault(per_million, Effect::Abort(500))];
        assert!(plan(&abort(MILLION), || MILLION - 1).abort.is_some());
        assert!(plan(&abort(0), || 0).abort.is_none());
    }

    #[test]
    fn every_rule_that_matches_counts() {
        let rule = |spiffe: Option<&str>, millis| FaultRule {
            caller: CallerMatch { spiffe_exact: spiffe.map(str::to_owned), ..CallerMatch::default() },
            faults: vec![fault(MILLION, Effect::Delay(millis))],
            first_only: false,
        };
        let rules = [rule(Some("spiffe://m/web"), 1), rule(Some("spiffe://m/api"), 20), rule(None, 300)];
        let delay = |caller: &CallerIdentity| plan(&of(&rules, caller, None), || 0).delay.as_millis();
        let web = CallerIdentity { spiffe: vec!["spiffe://m/web".into()], ..CallerIdentity::default() };
        assert_eq!(delay(&web), 301);
        assert_eq!(delay(&CallerIdentity::default()), 300);
    }
    #[test]
    fn of_rules_that_hold_alone_the_first_does() {
        let rule = |service: Option<&str>, millis, first_only| FaultRule {
            caller: CallerMatch {
                tags: service.map(|it| ("kuma.io/service".to_owned(), it.to_owned())).into_iter().collect(),
                ..CallerMatch::default()
            },
            faults: vec![fault(MILLION, Effect::Delay(millis))],
            first_only,
        };
        let rules = [rule(None, 1, false), rule(Some("web"), 20, true), rule(None, 300, true)];
        let delay = |caller: &CallerIdentity| plan(&of(&rules, caller, None), || 0).delay.as_millis();
        let tags = [("kuma.io/service".to_owned(), ["web".to_owned()].into())].into();
        assert_eq!(delay(&CallerIdentity { tags, ..CallerIdentity::default() }), 21);
        assert_eq!(delay(&CallerIdentity::default()), 301);
    }
}
