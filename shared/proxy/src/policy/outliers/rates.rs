//! Endpoints of a cluster compared by how much of an interval's requests failed.

use super::{OutlierPolicy, Record};
use std::{cell::Cell, rc::Rc};

/// Successes and failures of an interval.
#[derive(Default)]
pub(super) struct Rate {
    good: Cell<u32>,
    bad: Cell<u32>,
}

impl Rate {
    pub(super) fn count(&self, failed: bool) {
        let count = if failed { &self.bad } else { &self.good };
        count.set(count.get().saturating_add(1));
    }

    pub(super) fn reset(&self) {
        self.good.set(0);
        self.bad.set(0);
    }

    /// Percent that succeeded, if there were enough.
    fn percent(&self, least: u32) -> Option<f64> {
        let all = self.good.get().saturating_add(self.bad.get());
        (all >= least.max(1)).then(|| f64::from(self.good.get()) * 100.0 / f64::from(all))
    }
}

/// The endpoints that are outliers by their rates, of those that are not out already.
pub(super) fn outliers(policy: &OutlierPolicy, records: &[Rc<Record>], now: u64) -> Vec<Rc<Record>> {
    let judged: Vec<_> = records.iter().filter(|record| !record.is_out(now)).collect();
    let mut found = Vec::new();
    // Apart only where the policy splits them: else there are no attempts that count.
    let kinds: [fn(&Record) -> &Rate; 2] = [|record| &record.answers, |record| &record.attempts];
    for rate in kinds {
        let enough = |least_hosts: u32, least_requests: u32| {
            let rates =
                judged.iter().filter_map(|record| Some((*record, rate(record).percent(least_requests)?)));
            let rates: Vec<(&Rc<Record>, f64)> = rates.collect();
            let hosts = u32::try_from(rates.len()).unwrap_or(u32::MAX);
            if hosts >= least_hosts { rates } else { Vec::new() }
        };
        if let Some(rule) = &policy.success_rate {
            let rates = enough(rule.min_hosts, rule.min_requests);
            let least = least(&rates, f64::from(rule.deviations_thousandths) / 1000.0);
            found.extend(
                rates.into_iter().filter(|(_, rate)| *rate < least).map(|(record, _)| record.clone()),
            );
        }
        if let Some(rule) = &policy.failure_percentage {
            let rates = enough(rule.min_hosts, rule.min_requests);
            let failing = rates.into_iter().filter(|(_, rate)| 100.0 - rate >= f64::from(rule.percent));
            found.extend(failing.map(|(record, _)| record.clone()));
        }
    }
    found
}

/// So many standard deviations below the mean.
fn least(rates: &[(&Rc<Record>, f64)], deviations: f64) -> f64 {
    let number = rates.len().max(1) as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / number;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / number;
    mean - deviations * variance.sqrt()
}
