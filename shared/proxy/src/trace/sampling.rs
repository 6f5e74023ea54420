use meridian_proxy_config::TraceSampling;

/// Whether a request becomes a span. `decided`: by whoever began the trace; `asked`: its sender wants one; `draw` gives
/// numbers below a million.
pub(super) fn decide(
    sampling: &TraceSampling,
    decided: Option<bool>,
    asked: bool,
    mut draw: impl FnMut() -> u32,
) -> bool {
    if let Some(decided) = decided {
        return decided;
    }
    let taken = (asked && draw() < sampling.client) || draw() < sampling.random;
    taken && draw() < sampling.overall
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_first_decides_and_then_chance() {
        let shares = |client, random, overall| TraceSampling { client, random, overall };
        let all = 1_000_000;
        for (sampling, decided, asked, drawn, expected) in [
            (shares(0, 0, 0), Some(true), false, 0, true),
            (shares(all, all, all), Some(false), true, 0, false),
            (shares(0, all, all), None, false, 999_999, true),
            (shares(0, 0, all), None, true, 0, false),
            (shares(all, 0, all), None, true, 999_999, true),
            (shares(all, 0, all), None, false, 0, false),
            (shares(all, all, 0), None, true, 0, false),
            (shares(0, 500_000, all), None, false, 499_999, true),
            (shares(0, 500_000, all), None, false, 500_000, false),
        ] {
            assert_eq!(decide(&sampling, decided, asked, || drawn), expected, "{sampling:?} {decided:?}");
        }
    }
}
