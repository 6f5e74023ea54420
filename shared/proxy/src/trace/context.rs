//! The headers by which a trace goes from one process to the next: W3C's, B3's two and Datadog's.
//!
//! All are read; they are written in the forms in which they came, so that an application that knows one form finds it.
//! What does not parse is as if it were absent: nobody is held to somebody's rubbish.

use http::{HeaderMap, HeaderName, HeaderValue};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static B3: HeaderName = HeaderName::from_static("b3");
static B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
static B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
static B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
static B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
static B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
static DATADOG_TRACE: HeaderName = HeaderName::from_static("x-datadog-trace-id");
static DATADOG_PARENT: HeaderName = HeaderName::from_static("x-datadog-parent-id");
static DATADOG_PRIORITY: HeaderName = HeaderName::from_static("x-datadog-sampling-priority");

/// A set of forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms(u8);

impl Forms {
    pub const W3C: Self = Self(1);
    pub const B3_MULTI: Self = Self(1 << 1);
    pub const B3_SINGLE: Self = Self(1 << 2);
    pub const DATADOG: Self = Self(1 << 3);

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn has(self, form: Self) -> bool {
        self.0 & form.0 != 0
    }
}

/// What a request brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    pub ids: Option<Ids>,
    /// `None`: nobody has decided.
    pub sampled: Option<bool>,
    pub forms: Forms,
}

/// None of them is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub trace: u128,
    pub span: u64,
    /// The span's own parent, where the form says it.
    pub parent: Option<u64>,
}

/// What a request carries on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub trace: u128,
    pub span: u64,
    pub parent: Option<u64>,
    pub sampled: bool,
}

/// Of one form.
#[derive(Clone, Copy, Default)]
struct Read {
    ids: Option<Ids>,
    sampled: Option<bool>,
}

/// What headers say, the backend's own form before the others.
pub fn read(headers: &HeaderMap, own: Forms) -> Incoming {
    let mut all = [
        (Forms::W3C, w3c(headers)),
        (Forms::B3_SINGLE, b3_single(headers)),
        (Forms::B3_MULTI, b3_multi(headers)),
        (Forms::DATADOG, datadog(headers)),
    ];
    all.sort_by_key(|(form, _)| !own.has(*form));
    let mut incoming = Incoming::default();
    for (form, read) in all.into_iter().filter_map(|(form, read)| Some((form, read?))) {
        incoming.forms = incoming.forms.and(form);
        // A decision belongs to the ids that it came with.
        if incoming.ids.is_none() && (read.ids.is_some() || incoming.sampled.is_none()) {
            incoming.ids = read.ids;
            incoming.sampled = read.sampled;
        }
    }
    incoming
}

/// The only value of a header: of two, none counts.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().filter(|_| values.next().is_none())?;
    first.to_str().ok().map(str::trim)
}

fn hex(text: &str, lengths: &[usize]) -> Option<u128> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fits = lengths.contains(&text.len()) && is_hex;
    fits.then(|| u128::from_str_radix(text, 16).ok()).flatten().filter(|id| *id != 0)
}

fn span_id(text: &str) -> Option<u64> {
    hex(text, &[16]).and_then(|id| u64::try_from(id).ok())
}

/// `00-TRACE-SPAN-FLAGS`; later versions may have more (Trace Context, 3.2).
fn w3c(headers: &HeaderMap) -> Option<Read> {
    let text = only(headers, &TRACEPARENT)?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = version.len() == 2 && version != "ff" && u8::from_str_radix(version, 16).is_ok();
    if !known || (version == "00" && parts.next().is_some()) || flags.len() != 2 {
        return None;
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let ids = Ids { trace: hex(trace, &[32])?, span: span_id(span)?, parent: None };
    Some(Read { ids: Some(ids), sampled: Some(flags & 1 == 1) })
}

fn b3_sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or a decision alone.
fn b3_single(headers: &HeaderMap) -> Option<Read> {
    let text = only(headers, &B3)?;
    if let Some(sampled) = b3_sampled(text) {
        return Some(Read { ids: None, sampled: Some(sampled) });
    }
    let mut parts = text.split('-');
    let (trace, span) = (hex(parts.next()?, &[16, 32])?, span_id(parts.next()?)?);
    let sampled = parts.next().map(|text| b3_sampled(text).ok_or(())).transpose().ok()?;
    let parent = parts.next().map(|text| span_id(text).ok_or(())).transpose().ok()?;
    let ids = Ids { trace, span, parent };
    parts.next().is_none().then_some(Read { ids: Some(ids), sampled })
}

fn b3_multi(headers: &HeaderMap) -> Option<Read> {
    let debug = only(headers, &B3_FLAGS) == Some("1");
    let sampled = if debug { Some(true) } else { only(headers, &B3_SAMPLED).and_then(b3_sampled) };
    let trace = only(headers, &B3_TRACE).and_then(|text| hex(text, &[16, 32]));
    let span = only(headers, &B3_SPAN).and_then(span_id);
    let parent = only(headers, &B3_PARENT).and_then(span_id);
    let ids = trace.zip(span).map(|(trace, span)| Ids { trace, span, parent });
    (ids.is_some() || sampled.is_some()).then_some(Read { ids, sampled })
}

fn datadog(headers: &HeaderMap) -> Option<Read> {
    let number = |name| only(headers, name).and_then(|text| text.parse::<u64>().ok()).filter(|id| *id != 0);
    let priority = only(headers, &DATADOG_PRIORITY).and_then(|text| text.parse::<i32>().ok());
    let (trace, span) = (number(&DATADOG_TRACE)?, number(&DATADOG_PARENT)?);
    let ids = Ids { trace: u128::from(trace), span, parent: None };
    Some(Read { ids: Some(ids), sampled: priority.map(|priority| priority > 0) })
}

/// Makes a request carry `context` in these forms.
pub fn write(headers: &mut HeaderMap, forms: Forms, context: &Outgoing) {
    let Outgoing { trace, span, parent, sampled } = *context;
    if forms.has(Forms::W3C) {
        if w3c(headers).is_none() {
            // It belonged to another trace, if to any.
            headers.remove(&TRACESTATE);
        }
        set(headers, &TRACEPARENT, format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled)));
    }
    let decision = if sampled { "1" } else { "0" };
    let wide = u64::try_from(trace).is_err();
    let id = if wide { format!("{trace:032x}") } else { format!("{trace:016x}") };
    if forms.has(Forms::B3_SINGLE) {
        let parent = parent.map(|parent| format!("-{parent:016x}")).unwrap_or_default();
        set(headers, &B3, format!("{id}-{span:016x}-{decision}{parent}"));
    }
    if forms.has(Forms::B3_MULTI) {
        set(headers, &B3_TRACE, id);
        set(headers, &B3_SPAN, format!("{span:016x}"));
        set(headers, &B3_SAMPLED, decision.to_owned());
        match parent {
            Some(parent) => set(headers, &B3_PARENT, format!("{parent:016x}")),
            None => drop(headers.remove(&B3_PARENT)),
        }
    }
    if forms.has(Forms::DATADOG) {
        // The lower half: all that this form has room for.
        let low = trace & u128::from(u64::MAX);
        set(headers, &DATADOG_TRACE, low.to_string());
        set(headers, &DATADOG_PARENT, span.to_string());
        let kept = only(headers, &DATADOG_PRIORITY).and_then(|text| text.parse::<i32>().ok());
        if kept.is_none_or(|priority| (priority > 0) != sampled) {
            set(headers, &DATADOG_PRIORITY, decision.to_owned());
        }
    }
}

fn set(headers: &mut HeaderMap, name: &HeaderName, value: String) {
    // Hexadecimal and decimal numbers are always a header's value.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn ids(parent: Option<u64>) -> Option<Ids> {
        Some(Ids { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7, parent })
    }

    fn incoming(pairs: &[(&'static str, &str)]) -> Incoming {
        read(&headers(pairs), Forms::W3C)
    }

    #[test]
    fn every_form_is_read() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let b3 = |rest: &str| format!("{TRACE}-{SPAN}{rest}");
        for (pairs, expected) in [
            (vec![("traceparent", parent.as_str())], (ids(None), Some(true), Forms::W3C)),
            (
                vec![("traceparent", &format!("cc-{TRACE}-{SPAN}-00-more"))],
                (ids(None), Some(false), Forms::W3C),
            ),
            (vec![("b3", &b3(""))], (ids(None), None, Forms::B3_SINGLE)),
            (vec![("b3", &b3("-d"))], (ids(None), Some(true), Forms::B3_SINGLE)),
            (vec![("b3", &b3("-0-0000000000000005"))], (ids(Some(5)), Some(false), Forms::B3_SINGLE)),
            (vec![("b3", "0")], (None, Some(false), Forms::B3_SINGLE)),
            (
                vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")],
                (ids(None), Some(false), Forms::B3_MULTI),
            ),
            (vec![("x-b3-sampled", "true")], (None, Some(true), Forms::B3_MULTI)),
            (vec![("x-b3-flags", "1"), ("x-b3-sampled", "0")], (None, Some(true), Forms::B3_MULTI)),
            (
                vec![
                    ("x-datadog-trace-id", "7"),
                    ("x-datadog-parent-id", "8"),
                    ("x-datadog-sampling-priority", "-1"),
                ],
                (Some(Ids { trace: 7, span: 8, parent: None }), Some(false), Forms::DATADOG),
            ),
            (vec![], (None, None, Forms::default())),
        ] {
            let found = incoming(&pairs);
            assert_eq!((found.ids, found.sampled, found.forms), expected, "{pairs:?}");
        }
    }

    #[test]
    fn what_does_not_parse_is_absent() {
        for value in [
            "",
            "00",
            &format!("00-{TRACE}-{SPAN}"),
            &format!("00-{TRACE}-{SPAN}-01-x"),
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{TRACE}-+0f067aa0ba902b7-01"),
        ] {
            assert_eq!(incoming(&[("traceparent", value)]), Incoming::default(), "{value}");
        }
        for value in [
            "x",
            "1-2",
            &format!("{TRACE}-{SPAN}-x"),
            &format!("{TRACE}-{SPAN}-1-2"),
            &format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
        ] {
            assert_eq!(incoming(&[("b3", value)]), Incoming::default(), "{value}");
        }
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let twice = [("traceparent", parent.as_str()), ("traceparent", parent.as_str())];
        assert_eq!(incoming(&twice), Incoming::default());
    }

    #[test]
    fn the_backends_own_form_comes_first() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let pairs = [("traceparent", parent.as_str()), ("b3", "000000000000000a-000000000000000b-0")];
        let b3 = Some(Ids { trace: 10, span: 11, parent: None });
        let both = Forms::W3C.and(Forms::B3_SINGLE);
        let found = read(&headers(&pairs), Forms::B3_SINGLE);
        assert_eq!((found.ids, found.sampled, found.forms), (b3, Some(false), both));
        let found = read(&headers(&pairs), Forms::W3C);
        assert_eq!((found.ids, found.sampled, found.forms), (ids(None), Some(true), both));
        // A decision without ids gives way to ids.
        let found =
            read(&headers(&[("traceparent", parent.as_str()), ("x-b3-sampled", "0")]), Forms::B3_MULTI);
        assert_eq!((found.ids, found.sampled), (ids(None), Some(true)));
    }

    #[test]
    fn a_state_without_its_parent_goes() {
        let context = Outgoing { trace: 1, span: 2, parent: None, sampled: true };
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let mut with = headers(&[("traceparent", parent.as_str()), ("tracestate", "a=b")]);
        write(&mut with, Forms::W3C, &context);
        assert_eq!(with["tracestate"], "a=b");
        let mut without = headers(&[("traceparent", "rubbish"), ("tracestate", "a=b")]);
        write(&mut without, Forms::W3C, &context);
        assert_eq!(without.len(), 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            trace in 1..=u128::MAX, span in 1..=u64::MAX, parent in proptest::option::of(1..=u64::MAX),
            sampled: bool, forms in 1..16u8,
        ) {
            let context = Outgoing { trace, span, parent, sampled };
            for form in [Forms::W3C, Forms::B3_MULTI, Forms::B3_SINGLE, Forms::DATADOG] {
                let forms = Forms(forms).and(form);
                let mut headers = HeaderMap::new();
                write(&mut headers, forms, &context);
                let found = read(&headers, form);
                let ids = found.ids.unwrap();
                prop_assert_eq!((ids.span, found.sampled, found.forms), (span, Some(sampled), forms));
                let low = trace & u128::from(u64::MAX);
                if form != Forms::DATADOG {
                    prop_assert_eq!(ids.trace, trace);
                } else if low != 0 {
                    prop_assert_eq!(ids.trace, low);
                }
            }
        }

        #[test]
        fn no_header_is_too_strange(value in "[0-9a-fA-F-]{0,80}", name in 0..5usize) {
            let name = ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-datadog-trace-id"][name];
            let _ = read(&headers(&[(name, &value)]), Forms::W3C);
        }
    }
}
