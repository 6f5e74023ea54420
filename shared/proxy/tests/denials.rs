//! Every reason that the proxy gives is explained in docs/denials.md.

#[test]
fn every_reason_is_documented() {
    let documented = include_str!("../../../docs/denials.md");
    let sources = [include_str!("../src/denial.rs"), include_str!("../src/egress.rs")];
    let mut count = 0;
    for line in sources.iter().flat_map(|source| source.lines()) {
        let Some((_, rest)) = line.split_once("Self = Self::of(\"") else { continue };
        let reason = rest.split('"').next().unwrap_or_default();
        assert!(documented.contains(&format!("| `{reason}` |")), "{reason} is missing in docs/denials.md");
        count += 1;
    }
    assert!(count >= 20, "the reasons were not found in the sources");
}
