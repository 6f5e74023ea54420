use crate::lifetime;
use time::OffsetDateTime;

/// When to replace a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// From a third of its life (intermediates: day 30 of 90).
    Third,
    /// From half of its life (leaves, client and server certificates).
    Half,
}

/// When to renew: the given share of the lifetime plus up to a tenth of it. It counts from when the certificate was made,
/// which is [`lifetime::BACKDATE`] after it begins: a short one would else be replaced as soon as it is there. `jitter` is in 0.0..=1.0; draw it anew
/// each time, so that certificates issued together (after an outage) are not renewed together for ever.
pub fn renewal_time(
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    renewal: Renewal,
    jitter: f64,
) -> OffsetDateTime {
    let made = (not_before + lifetime::BACKDATE).min(not_after);
    let life = not_after - made;
    let share = match renewal {
        Renewal::Third => 1.0 / 3.0,
        Renewal::Half => 0.5,
    };
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
    made + life * (share + jitter / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::{Duration, macros::datetime};

    #[test]
    fn intermediates_from_day_thirty_leaves_from_half() {
        let made = datetime!(2026-01-01 0:00 UTC);
        let begins = made - lifetime::BACKDATE;
        let day_thirty = renewal_time(begins, made + Duration::days(90), Renewal::Third, 0.0) - made;
        assert!((day_thirty - Duration::days(30)).abs() < Duration::seconds(1));
        for life in [Duration::hours(24), Duration::minutes(5), Duration::seconds(8)] {
            assert_eq!(renewal_time(begins, made + life, Renewal::Half, 0.0), made + life / 2);
            assert!(renewal_time(begins, made + life, Renewal::Half, 1.0) < made + life);
        }
    }

    proptest! {
        #[test]
        fn renewal_is_early_enough(seconds in 1i64..360_000_000, jitter in proptest::num::f64::ANY) {
            let made = datetime!(2026-01-01 0:00 UTC);
            let end = made + Duration::seconds(seconds);
            for renewal in [Renewal::Third, Renewal::Half] {
                let at = renewal_time(made - lifetime::BACKDATE, end, renewal, jitter);
                prop_assert!(at > made && at <= made + (end - made) * 0.61);
            }
        }
    }
}
