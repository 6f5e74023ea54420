//! Whatever a caller sends as its place in a trace, what is carried on is read again as what was meant.

use http::{HeaderMap, HeaderName, HeaderValue};
use meridian_proxy::trace::context::{Forms, Outgoing, read, write};

const NAMES: [&str; 10] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
];

/// Each line is a header: a digit says which.
pub(crate) fn run(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((digit, value)) = line.split_first() else { continue };
        let name = NAMES[usize::from(*digit) % NAMES.len()];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    for own in [Forms::W3C, Forms::B3_MULTI, Forms::DATADOG] {
        let incoming = read(&headers, own);
        let Some(ids) = incoming.ids else { continue };
        assert!(ids.trace != 0 && ids.span != 0);
        let context = Outgoing { trace: ids.trace, span: 1, parent: Some(ids.span), sampled: true };
        let mut carried = headers.clone();
        write(&mut carried, incoming.forms.and(Forms::W3C), &context);
        let again = read(&carried, Forms::W3C);
        assert_eq!(again.ids.map(|ids| (ids.trace, ids.span)), Some((ids.trace, 1)));
        assert_eq!(again.sampled, Some(true));
    }
}
