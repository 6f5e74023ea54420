//! A format, made ready: header names are resolved to places.

use super::Values;
use http::{HeaderMap, HeaderName};
use meridian_core::log_format::{GrpcStatusForm, HeaderNames, LogFormat, Operator, Piece, Plain, TimeFormat};

pub(super) struct Program {
    pub(super) pieces: Vec<Step>,
}

pub(super) enum Step {
    Text(String),
    /// A value, cut after so many bytes.
    Value(Source, Option<usize>),
}

pub(super) enum Source {
    Plain(Plain),
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    Request(Field, Option<Field>),
    Response(Field, Option<Field>),
    Trailer(Field, Option<Field>),
    GrpcStatus(GrpcStatusForm),
    Nothing,
}

/// A part of a head.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    /// The nth header that is kept.
    Header(usize),
    /// How long the other side took, in milliseconds: Envoy makes a header of it, which ours do not.
    ServiceTime(usize),
    Nothing,
}

/// The headers that a log names, each once.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) request: Vec<HeaderName>,
    pub(super) response: Vec<HeaderName>,
    pub(super) trailers: Vec<HeaderName>,
    pub(super) omit_empty: bool,
}

const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

impl Program {
    pub(super) fn compile(format: &LogFormat, wanted: &mut Wanted) -> Self {
        let step = |piece: &Piece| match piece {
            Piece::Text(text) => Step::Text(text.clone()),
            Piece::Value(operator, length) => Step::Value(source(operator, wanted), *length),
        };
        Self { pieces: format.pieces.iter().map(step).collect() }
    }

    pub(super) fn text(text: &str) -> Self {
        Self { pieces: vec![Step::Text(text.to_owned())] }
    }
}

fn source(operator: &Operator, wanted: &mut Wanted) -> Source {
    let of = |names: &HeaderNames, kept: &mut Vec<HeaderName>| {
        (field(&names.name, kept), names.alternative.as_ref().map(|name| field(name, kept)))
    };
    match operator {
        Operator::Plain(plain) => Source::Plain(*plain),
        Operator::StartTime(format) => Source::StartTime(format.clone()),
        Operator::EmitTime(format) => Source::EmitTime(format.clone()),
        Operator::Request(names) => {
            let (first, second) = of(names, &mut wanted.request);
            Source::Request(first, second)
        }
        Operator::Response(names) => {
            let (first, second) = of(names, &mut wanted.response);
            Source::Response(first, second)
        }
        Operator::Trailer(names) => {
            let (first, second) = of(names, &mut wanted.trailers);
            Source::Trailer(first, second)
        }
        Operator::GrpcStatus(form) => Source::GrpcStatus(*form),
        Operator::Unknown(_) => Source::Nothing,
    }
}

fn field(name: &str, kept: &mut Vec<HeaderName>) -> Field {
    match name {
        ":method" => return Field::Method,
        ":path" => return Field::Path,
        ":authority" => return Field::Authority,
        ":scheme" => return Field::Scheme,
        ":status" => return Field::Status,
        _ => {}
    }
    let Ok(header) = HeaderName::try_from(name) else { return Field::Nothing };
    let position = kept.iter().position(|other| *other == header).unwrap_or_else(|| {
        kept.push(header);
        kept.len() - 1
    });
    if name == SERVICE_TIME { Field::ServiceTime(position) } else { Field::Header(position) }
}

/// The first value of each.
pub(super) fn values(names: &[HeaderName], headers: &HeaderMap) -> Values {
    names.iter().map(|name| headers.get(name).cloned()).collect()
}
