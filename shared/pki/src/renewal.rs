use time::OffsetDateTime;

/// When to replace a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// From a third of its life (intermediates: day 30 of 90).
    Third,
    /// From half of its life (leaves, client and server certificates).
    Half,
}

/// When to renew: the given share of the lifetime plus up to a tenth of it. `jitter` is in 0.0..=1.0; draw it anew
/// each time, so that certificates issued together (after an outage) are not renewed together for ever.
pub fn renewal_time(
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    renewal: Renewal,
    jitter: f64,
) -> OffsetDateTime {
    let life = not_after - not_before;
    let share = match renewal {
        Renewal::Third => 1.0 / 3.0,
        Renewal::Half => 0.5,
    };
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
    not_before + life * (share + jitter / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::{Duration, macros::datetime};

    #[test]
    fn intermediates_from_day_thirty_leaves_from_half() {
        let start = datetime!(2026-01-01 0:00 UTC);
        let day_thirty = renewal_time(start, start + Duration::days(90), Renewal::Third, 0.0) - start;
        assert!((day_thirty - Duration::days(30)).abs() < Duration::seconds(1));
        assert_eq!(
            renewal_time(start, start + Duration::hours(24), Renewal::Half, 0.0),
            start + Duration::hours(12)
        );
    }

    proptest! {
        #[test]
        fn renewal_is_early_enough(hours in 1i64..100_000, jitter in proptest::num::f64::ANY) {
            let start = datetime!(2026-01-01 0:00 UTC);
            let end = start + Duration::hours(hours);
            for renewal in [Renewal::Third, Renewal::Half] {
                let at = renewal_time(start, end, renewal, jitter);
                prop_assert!(at > start && at <= start + (end - start) * 0.61);
            }
        }
    }
}
