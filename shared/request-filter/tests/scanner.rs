//! Known attacks are found, ordinary text is not, in whatever pieces it comes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../../../fuzz/bodies/lookups.rs"]
mod lookups;

use meridian_request_filter::{Finding, MAX_DEPTH, MAX_HELD, MAX_LOOKUP, Scanner};
use proptest::prelude::*;

const ATTACKS: &str = include_str!("corpus/attacks.txt");
const ORDINARY: &str = include_str!("corpus/ordinary.txt");

#[test]
fn every_known_attack_is_found() {
    for attack in ATTACKS.lines() {
        assert_eq!(Scanner::scan(attack.as_bytes()), Some(Finding::Jndi), "{attack}");
        lookups::run(attack.as_bytes());
    }
}

#[test]
fn ordinary_text_passes() {
    for text in ORDINARY.lines() {
        assert_eq!(Scanner::scan(text.as_bytes()), None, "{text}");
        lookups::run(text.as_bytes());
    }
    assert_eq!(Scanner::scan(ORDINARY.as_bytes()), None);
}

#[test]
fn nothing_of_an_attack_is_passed_on() {
    for attack in ATTACKS.lines().filter(|line| line.starts_with("${") || line.starts_with("%24")) {
        let text = format!("ordinary text, then {attack}");
        let mut scanner = Scanner::new();
        for byte in text.bytes() {
            assert!(scanner.decided() <= 20, "{attack}");
            if scanner.feed(&[byte]).is_some() {
                break;
            }
        }
        assert_eq!(scanner.finish(), Some(Finding::Jndi), "{attack}");
    }
}

#[test]
fn what_is_closed_is_decided() {
    let mut scanner = Scanner::new();
    let text = b"a ${lower:${env:X:-b}} c $";
    assert_eq!(scanner.feed(text), None);
    assert_eq!(scanner.decided(), text.len() as u64 - 1, "the last dollar may begin something");
    assert_eq!(scanner.feed(b"5"), None);
    assert_eq!(scanner.decided(), text.len() as u64 + 1);
}

#[test]
fn limits_hold_at_their_border() {
    let nested = |depth: usize| "${x:-".repeat(depth) + &"}".repeat(depth);
    assert_eq!(Scanner::scan(nested(MAX_DEPTH).as_bytes()), None);
    assert_eq!(Scanner::scan(nested(MAX_DEPTH + 1).as_bytes()), Some(Finding::TooDeep));

    let long = |length: usize| format!("${{{}}}", "x".repeat(length));
    assert_eq!(Scanner::scan(long(MAX_LOOKUP).as_bytes()), None);
    assert_eq!(Scanner::scan(long(MAX_LOOKUP + 1).as_bytes()), Some(Finding::TooLong));

    // Lookups that resolve to nothing take no room in the outer one, and yet can't be passed on before it is decided.
    let empty = "${".to_owned() + &"${env:X}".repeat(MAX_HELD as usize / 8);
    assert_eq!(Scanner::scan(empty.as_bytes()), Some(Finding::TooLong));
}

#[test]
fn work_is_bounded() {
    // Each round reads nearly a whole lookup again.
    let round = "${lower:".repeat(MAX_DEPTH - 1) + &"x".repeat(MAX_LOOKUP / 2) + &"}".repeat(MAX_DEPTH - 1);
    let rounds = "${".to_owned() + &format!("${{env:{round}}}").repeat(10);
    assert_eq!(Scanner::scan(rounds.as_bytes()), Some(Finding::TooDeep));
}

fn escaped(text: &str, how: usize) -> String {
    text.bytes()
        .map(|byte| match how {
            0 => char::from(byte).to_string(),
            1 => format!("%{byte:02x}"),
            2 => format!("\\u{byte:04X}"),
            3 => format!("\\x{byte:02x}"),
            4 => format!("&#{byte};"),
            _ => format!("%u{byte:04x}"),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn pieces_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        lookups::run(&bytes);
    }

    #[test]
    fn pieces_of_lookups_do_not_matter(parts in prop::collection::vec(prop::sample::select(vec![
        "${", "}", "$", "{", ":-", ":", "lower:", "upper:", "jndi", "j", "env:", "base64:", "am5kaQ==", "date:'",
        "sys:x", "ldap:",
        "%24", "%7b", "%7d", "%25", "\\u0024", "\\x7d", "&#36;", "&#x7b;", "%u007B", "&#", "\\u00", "ı", " ", "x",
    ]), 0..40)) {
        lookups::run(parts.concat().as_bytes());
    }

    #[test]
    fn escapes_and_surroundings_hide_nothing(
        before in r"[ -#'-\[\]-~]{0,30}", attack in prop::sample::select(vec!["${jndi:", "${${::-j}ndi:", "${${lower:J}ndi:"]),
        first in 0usize..6, second in 0usize..6, third in 0usize..6, after in "[ -~]{0,30}",
    ) {
        // `before` holds nothing that begins a lookup or an escape.
        let hidden = escaped(&escaped(&escaped(attack, first), second), third);
        let text = format!("{before}{hidden}{after}");
        prop_assert_eq!(Scanner::scan(text.as_bytes()), Some(Finding::Jndi), "{}", text);
    }
}

/// Prints what texts of a request cost. Run it by hand, in release.
#[test]
#[ignore = "measures, and asserts nothing"]
fn what_a_scan_costs() {
    const TIMES: u32 = 20_000;
    let agent =
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0 Safari/537.36";
    let json =
        r#"{"id": 1234567, "name": "A. N. Other", "tags": ["a", "b"], "price": "$12.50"}, "#.repeat(13);
    let templates = "${name}, your order ${order:-none} of {{date}} costs $5. ".repeat(18);
    for (what, text) in [
        ("a path of 40 bytes", "/api/v1/orders/1234567?expand=items&x=%20y"),
        ("a user agent of 100 bytes", agent),
        ("JSON of 1 KiB", json.as_str()),
        ("1 KiB full of placeholders", templates.as_str()),
    ] {
        let start = std::time::Instant::now();
        for _ in 0..TIMES {
            assert_eq!(Scanner::scan(std::hint::black_box(text.as_bytes())), None);
        }
        let each = start.elapsed() / TIMES;
        println!("{what} ({} bytes): {each:?}", text.len());
    }
}
