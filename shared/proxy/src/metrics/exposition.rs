//! Metrics of several sources as one set: the proxy's, and those of the applications beside it.
//!
//! Prometheus refuses a page whole that says two things of one series, and no application knows what another says. So
//! pages are not put after each other: they are read ([`parse`]), given labels that tell them apart, and merged, where
//! what comes first holds. Rejected: passing an application's page on as bytes (one duplicate would lose everybody's
//! numbers), and the protobuf form (most applications speak only text).

use meridian_telemetry::metrics::{escape_help, escape_label};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::{self, Write},
};

mod parse;

pub use parse::{Malformed, parse, parse_up_to};

/// Families by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    pub families: BTreeMap<String, Family>,
}

/// Samples of one name and kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub kind: Kind,
    pub help: String,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    Untyped,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub part: Part,
    /// By name, each once; with `le` or `quantile`.
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
}

/// What a sample is of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it; of a summary a quantile.
    Value,
    Bucket,
    Sum,
    Count,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    /// Whether samples of another type can be said under this one. Where it says nothing, any single number can.
    fn takes(self, other: Self) -> bool {
        self == other || (self == Self::Untyped && matches!(other, Self::Counter | Self::Gauge))
    }
}

impl Part {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Value => "",
            Self::Bucket => "_bucket",
            Self::Sum => "_sum",
            Self::Count => "_count",
        }
    }
}

impl Sample {
    pub fn new(labels: &[(&str, &str)], value: f64) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { part: Part::Value, labels, value, timestamp: None }
    }
}

impl Exposition {
    /// Adds a sample; the first one decides on its family's kind and help.
    pub fn push(&mut self, name: &str, kind: Kind, help: &str, sample: Sample) {
        if let Some(family) = self.families.get_mut(name) {
            return family.samples.push(sample);
        }
        let family = Family { kind, help: help.to_owned(), samples: vec![sample] };
        self.families.insert(name.to_owned(), family);
    }

    /// Keeps the families whose name is wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.families.retain(|name, _| wanted(name));
    }

    /// Leaves out what was never counted.
    pub fn drop_unused(&mut self) {
        for family in self.families.values_mut().filter(|family| family.kind == Kind::Counter) {
            family.samples.retain(|sample| sample.value != 0.0);
        }
        self.families.retain(|_, family| !family.samples.is_empty());
    }

    /// Gives each sample these labels. One of that name that it has keeps its value as `exported_NAME`, as Prometheus does
    /// it: who a sample is from is not for the sample to say.
    pub fn label(&mut self, labels: &[(&str, &str)]) {
        for sample in self.families.values_mut().flat_map(|family| &mut family.samples) {
            for (name, value) in labels {
                if let Some(own) = sample.labels.insert((*name).to_owned(), (*value).to_owned()) {
                    sample.labels.insert(format!("exported_{name}"), own);
                }
            }
        }
    }

    /// Samples of all families.
    pub fn len(&self) -> usize {
        self.families.values().map(|family| family.samples.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One set of several: what comes first holds, a family's type too. How many samples were left out, since they
    /// contradict what came before them, is the second part.
    pub fn merged(parts: impl IntoIterator<Item = Self>) -> (Self, usize) {
        let mut merged = Self::default();
        let mut known = HashSet::new();
        let mut owners: HashMap<String, String> = HashMap::new();
        let mut left_out = 0;
        for (name, mut family) in parts.into_iter().flat_map(|part| part.families) {
            let all = family.samples.len();
            let first = merged.families.get(&name);
            if first.is_some_and(|first| !first.kind.takes(family.kind)) {
                left_out += all;
                continue;
            }
            family.samples.retain(|sample| {
                // `x_count` may be a counter here and a part of the histogram `x` there.
                let owner = owners.entry(format!("{name}{}", sample.part.suffix()));
                *owner.or_insert_with(|| name.clone()) == name && known.insert(series(&name, sample))
            });
            left_out += all - family.samples.len();
            match merged.families.get_mut(&name) {
                None if family.samples.is_empty() => {}
                None => drop(merged.families.insert(name, family)),
                Some(first) => first.samples.extend(family.samples),
            }
        }
        (merged, left_out)
    }

    /// The text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, family) in &self.families {
            // Writing to a String can't fail.
            let _ = family.write(name, &mut out);
        }
        out
    }
}

impl Family {
    fn write(&self, name: &str, out: &mut String) -> fmt::Result {
        if !self.help.is_empty() {
            writeln!(out, "# HELP {name} {}", escape_help(&self.help))?;
        }
        writeln!(out, "# TYPE {name} {}", self.kind.word())?;
        for sample in &self.samples {
            out.push_str(&series(name, sample));
            write!(out, " {}", Number(sample.value))?;
            if let Some(timestamp) = sample.timestamp {
                write!(out, " {timestamp}")?;
            }
            out.push('\n');
        }
        Ok(())
    }
}

/// What no two samples of a page may share: `name_bucket{a="b",le="1"}`.
fn series(family: &str, sample: &Sample) -> String {
    let mut out = format!("{family}{}", sample.part.suffix());
    for (index, (name, value)) in sample.labels.iter().enumerate() {
        out.push(if index == 0 { '{' } else { ',' });
        let value = escape_label(value);
        // Writing to a String can't fail.
        let _ = write!(out, "{name}=\"{value}\"");
    }
    if !sample.labels.is_empty() {
        out.push('}');
    }
    out
}

/// A number as Prometheus writes it.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value.is_nan() => f.write_str("NaN"),
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            // Hundreds of digits help nobody.
            value if value != 0.0 && !(1e-6..1e21).contains(&value.abs()) => write!(f, "{value:e}"),
            value => write!(f, "{value}"),
        }
    }
}

#[cfg(test)]
mod tests;
