//! The harness with a handful of peers, so that it follows the protocol as that changes.

use super::*;
use std::collections::BTreeMap;

/// `meridian` of the same build, one folder above this test's.
fn meridian() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folders: Vec<&Path> = this.ancestors().skip(1).take(2).collect();
    let found = folders.iter().map(|folder| folder.join("meridian")).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no `meridian` in {folders:?}: run `make build`"))
}

#[test]
fn changes_and_restarts_reach_everybody() {
    let options = Options {
        meridian: meridian(),
        proxies: 6,
        services: 3,
        reachable: 2,
        zones: 2,
        changes: 1,
        rest: 0.1,
        settle: 0.1,
        out: PathBuf::new(),
    };
    let results = measure(&options).unwrap();
    let reached = |arrivals: &[Arrival]| -> BTreeMap<&'static str, usize> {
        arrivals.iter().map(|it| (it.name, it.reaches)).collect()
    };
    let zone = results.zone.unwrap();
    // Two services' sidecars reach a service, and two sidecars are one.
    assert_eq!(
        reached(&zone.arrivals),
        BTreeMap::from([
            ("one endpoint's health", 4),
            ("one endpoint's address", 4),
            ("a permission for one service", 2),
            ("a timeout for calls to one service", 6),
            ("a permission for the whole mesh", 6),
        ])
    );
    assert!(zone.rss_full_kib > 0 && zone.bytes_each > 0.0, "{zone:?}");
    assert!(zone.storms.iter().all(|storm| storm.all > 0.0 && storm.cpu_seconds > 0.0), "{zone:?}");
    assert_eq!(zone.storms.last().unwrap().sent_again, 0, "who holds everything is sent nothing");
    let zones = results.zones.unwrap();
    assert_eq!(reached(&zones.arrivals), BTreeMap::from([("a policy", 2), ("one zone's service", 1)]));
}
