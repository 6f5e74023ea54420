//! A reader of Prometheus' text format that forgives nothing, written apart from the engine's own: what it takes, every
//! Prometheus takes.

use std::collections::{BTreeMap, BTreeSet};

/// Samples by name and labels, as they stand on the page.
pub(crate) struct Page(BTreeMap<String, f64>);

impl Page {
    /// Fails on the first line that is not as it must be: a type before its samples and once, families in one piece, no
    /// series twice, names and labels of the permitted characters, values escaped, buckets that grow.
    pub(crate) fn read(text: &str) -> Self {
        assert!(text.is_empty() || text.ends_with('\n'), "the last line does not end");
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        let mut finished = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<&str> = comment.splitn(3, ' ').collect();
                assert!(words.len() == 3 && matches!(words[0], "HELP" | "TYPE"), "{line}");
                if family != words[1] {
                    assert!(finished.insert(family.clone()), "{family} is there twice");
                    words[1].clone_into(&mut family);
                    assert!(!finished.contains(&family), "{line}");
                }
                if words[0] == "TYPE" {
                    assert!(
                        ["counter", "gauge", "histogram", "summary", "untyped"].contains(&words[2]),
                        "{line}"
                    );
                    assert!(types.insert(family.clone(), words[2].to_owned()).is_none(), "{line}");
                }
                continue;
            }
            let (name, value) = sample(line);
            let base = name.split('{').next().unwrap();
            let suffixes: &[&str] = match types.get(&family).map(String::as_str) {
                Some("histogram") => &["_bucket", "_sum", "_count"],
                Some("summary") => &["", "_sum", "_count"],
                Some(_) => &[""],
                None => panic!("{line}: before its type"),
            };
            assert!(suffixes.iter().any(|suffix| format!("{family}{suffix}") == base), "{line}: in {family}");
            assert!(samples.insert(name, value).is_none(), "{line}: twice");
        }
        let page = Self(samples);
        page.buckets_grow();
        page
    }

    /// The value of the only sample with this name and at least these labels.
    pub(crate) fn value(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let mut found = self.0.iter().filter(|(series, _)| {
            series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label))
        });
        let value = found.next().map(|(_, value)| *value);
        assert!(found.next().is_none(), "{name} {labels:?} means several");
        value
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.keys().any(|series| series.split('{').next() == Some(name))
    }

    /// A histogram's buckets never fall, and the last has all.
    fn buckets_grow(&self) {
        let mut histograms: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (series, value) in &self.0 {
            let bucket = [",le=\"", "{le=\""].iter().find_map(|begin| series.split_once(begin));
            let Some((before, rest)) = bucket else { continue };
            let (bound, after) = rest.split_once('"').unwrap();
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            histograms.entry(format!("{before}{after}")).or_default().push((bound, *value));
        }
        for (series, mut buckets) in histograms {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{series}: {buckets:?}");
            assert_eq!(buckets.last().unwrap().0, f64::INFINITY, "{series}");
        }
    }
}

fn sample(line: &str) -> (String, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    // A timestamp, perhaps.
    let (series, value) = match series.rsplit_once("} ") {
        Some((before, number)) if number.parse::<f64>().is_ok() => (format!("{before}}}"), number),
        _ => (series.to_owned(), value),
    };
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number.parse().unwrap_or_else(|_| panic!("{line}: no number")),
    };
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}: no end"))),
        None => (series.as_str(), ""),
    };
    assert!(is_name(name), "{line}");
    let mut known = BTreeSet::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}: no value"));
        assert!(is_name(label) && !label.contains(':'), "{line}");
        assert!(known.insert(label), "{line}: a label twice");
        let mut end = None;
        let mut chars = quoted.char_indices();
        while let Some((index, char)) = chars.next() {
            match char {
                '\\' => assert!(matches!(chars.next(), Some((_, '\\' | '"' | 'n'))), "{line}"),
                '"' => {
                    end = Some(index);
                    break;
                }
                _ => {}
            }
        }
        rest = &quoted[end.unwrap_or_else(|| panic!("{line}: a value does not end")) + 1..];
        if let Some(next) = rest.strip_prefix(',') {
            assert!(!next.is_empty(), "{line}");
            rest = next;
        }
    }
    (series, value)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}
