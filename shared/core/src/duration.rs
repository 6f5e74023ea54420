//! Durations: protobuf's JSON form (`"1.5s"`) and Go's (`"1h30m"`), which Kuma's newer kinds use.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::time::Duration;

/// A `google.protobuf.Duration`: seconds with at most nine decimals and the suffix `s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtoDuration(pub Duration);

/// A duration as Go writes it, without a sign: `"300ms"`, `"1h30m"`. Kuma's certificate lifetimes add `d`, `w` and `y`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// A duration of a policy: Go's form with units from `ns` to `h`, as Kuma's policies have it. A sign parses, so that
/// validation can say what is wrong with it; in a resource that passed its check there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyDuration {
    negative: bool,
    length: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}")]
pub struct InvalidDuration(String);

impl ProtoDuration {
    pub fn parse(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.to_owned());
        let number = text.strip_suffix('s').ok_or_else(invalid)?;
        decimal(number, 1_000_000_000).and_then(from_nanos).map(Self).ok_or_else(invalid)
    }

    pub fn format(self) -> String {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if nanos == 0 {
            return format!("{seconds}s");
        }
        let decimals = format!("{nanos:09}");
        format!("{seconds}.{}s", decimals.trim_end_matches('0'))
    }
}

impl GoDuration {
    pub fn parse(text: &str) -> Result<Self, InvalidDuration> {
        const HOUR: u64 = 3_600_000_000_000;
        let units: [(&str, u64); 10] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", HOUR),
            ("d", 24 * HOUR),
            ("w", 7 * 24 * HOUR),
            ("y", 365 * 24 * HOUR),
        ];
        let invalid = || InvalidDuration(text.to_owned());
        if text == "0" {
            return Ok(Self::default());
        }
        let (mut rest, mut nanos) = (text, 0u128);
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(end);
            let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, next) = tail.split_at(end);
            let (_, scale) = units.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            nanos += decimal(number, *scale).ok_or_else(invalid)?;
            rest = next;
        }
        from_nanos(nanos).map(Self).ok_or_else(invalid)
    }

    /// As Go prints it: `1h30m0s`, `1.5s`, `300ms`.
    pub fn format(self) -> String {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return "0s".to_owned();
        }
        for (unit, scale) in [("ns", 1u128), ("µs", 1_000), ("ms", 1_000_000)] {
            if nanos < scale * 1_000 {
                return format!("{}{unit}", with_decimals(nanos, scale));
            }
        }
        let minute = 60_000_000_000;
        let (minutes, seconds) = (nanos / minute, with_decimals(nanos % minute, 1_000_000_000));
        match (minutes / 60, minutes % 60) {
            (0, 0) => format!("{seconds}s"),
            (0, m) => format!("{m}m{seconds}s"),
            (h, m) => format!("{h}h{m}m{seconds}s"),
        }
    }
}

impl PolicyDuration {
    pub fn parse(text: &str) -> Result<Self, InvalidDuration> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let length = GoDuration::parse(unsigned).map(|duration| duration.0);
        match length {
            Ok(length) if length.as_nanos() <= GO_MAX_NANOS && !unsigned.contains(['d', 'w', 'y']) => {
                Ok(Self { negative: text.starts_with('-') && !length.is_zero(), length })
            }
            _ => Err(InvalidDuration(text.to_owned())),
        }
    }

    /// As Go prints it.
    pub fn format(self) -> String {
        let sign = if self.negative { "-" } else { "" };
        format!("{sign}{}", GoDuration(self.length).format())
    }

    /// Its length; zero for what is negative.
    pub fn get(self) -> Duration {
        if self.negative { Duration::ZERO } else { self.length }
    }

    pub fn is_negative(self) -> bool {
        self.negative
    }
}

/// Go's durations are signed 64-bit nanoseconds: 292 years.
const GO_MAX_NANOS: u128 = i64::MAX as u128;

/// `number` (digits, at most one dot) times `scale`, in nanoseconds.
fn decimal(number: &str, scale: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || fraction.len() > 18
    {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = u128::from(whole) * u128::from(scale);
    if !fraction.is_empty() {
        let parts: u128 = fraction.parse().ok()?;
        total += parts * u128::from(scale) / 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    }
    Some(total)
}

fn from_nanos(nanos: u128) -> Option<Duration> {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanos % SECOND).ok()?))
}

fn with_decimals(nanos: u128, scale: u128) -> String {
    let (whole, rest) = (nanos / scale, nanos % scale);
    if rest == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let decimals = format!("{rest:0width$}");
    format!("{whole}.{}", decimals.trim_end_matches('0'))
}

macro_rules! text_form {
    ($name:ident, $format:literal, $pattern:literal, $example:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.format())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}
text_form!(ProtoDuration, "proto-duration", r"^([0-9]+\.?[0-9]*|\.[0-9]+)s$", "1.5s");
text_form!(
    GoDuration,
    "go-duration",
    r"^(0|(([0-9]+(\.[0-9]+)?|\.[0-9]+)(ns|us|µs|ms|s|m|h|d|w|y))+)$",
    "1h30m"
);
text_form!(
    PolicyDuration,
    "policy-duration",
    r"^(0|(([0-9]+(\.[0-9]+)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$",
    "15s"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_read_what_their_makers_write() {
        let proto = |text| ProtoDuration::parse(text).unwrap().0;
        assert_eq!(proto("1.5s"), Duration::from_millis(1500));
        assert_eq!(proto(".5s"), Duration::from_millis(500));
        assert_eq!(proto("3.s"), Duration::from_secs(3));
        let go = |text| GoDuration::parse(text).unwrap().0;
        assert_eq!(go("1h30m"), Duration::from_secs(5400));
        assert_eq!(go("25ms"), Duration::from_millis(25));
        assert_eq!(go("1.5h"), Duration::from_secs(5400));
        assert_eq!(go("0"), Duration::ZERO);
        assert_eq!(go("2d"), Duration::from_secs(2 * 86_400));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "s", "1", "-1s", "1e3s", "1.2.3s", " 1s", "1m", "99999999999999999999s"] {
            assert!(ProtoDuration::parse(text).is_err(), "{text:?}");
        }
        for text in ["", "1", "-1s", "h", "1x", "1h 2m", "1..s"] {
            assert!(GoDuration::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_of_policies_have_a_sign_and_no_days() {
        let of = |text| PolicyDuration::parse(text).unwrap();
        assert_eq!(of("1h30m").get(), Duration::from_secs(5400));
        assert!(of("-5s").is_negative() && of("-5s").get().is_zero());
        assert_eq!(of("-5s").format(), "-5s");
        assert!(!of("-0s").is_negative());
        for text in ["1d", "2w", "1y", "--1s", "- 1s", "", "5", "9000000h"] {
            assert!(PolicyDuration::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn go_durations_print_as_go_prints_them() {
        for (text, printed) in [
            ("90m", "1h30m0s"),
            ("1500ms", "1.5s"),
            ("300ms", "300ms"),
            ("61s", "1m1s"),
            ("0s", "0s"),
            ("15us", "15µs"),
        ] {
            assert_eq!(GoDuration::parse(text).unwrap().format(), printed);
        }
    }

    proptest! {
        #[test]
        fn printing_loses_nothing(seconds in 0u64..100_000_000, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(ProtoDuration::parse(&ProtoDuration(duration).format()).unwrap().0, duration);
            prop_assert_eq!(GoDuration::parse(&GoDuration(duration).format()).unwrap().0, duration);
        }
    }
}
