//! What a program says of something that has ended: pure, into one buffer.

use super::{
    Headers, Values,
    program::{Field, Program, Source, Step},
    time,
};
use crate::{exchange::Facts, worker::Direction};
use meridian_core::log_format::{GrpcStatusForm, Plain};
use std::{
    fmt::{self, Write},
    time::Duration,
};

/// Where there is no value.
const ABSENT: &str = "-";

pub(super) struct View<'a> {
    pub(super) facts: &'a Facts,
    pub(super) headers: &'a Headers,
    pub(super) omit_empty: bool,
}

/// Appends a text.
pub(super) fn text(program: &Program, view: &View<'_>, out: &mut String) {
    for step in &program.pieces {
        match step {
            Step::Text(text) => out.push_str(text),
            Step::Value(source, limit) => {
                let before = out.len();
                if !view.put(source, out) {
                    out.push_str(if view.omit_empty { "" } else { ABSENT });
                } else if let Some(limit) = limit {
                    cut(out, before, *limit);
                }
            }
        }
    }
}

/// Appends an object. A field that is one value alone is a number where the value is, and null where it is not.
pub(super) fn json(fields: &[(String, Program)], view: &View<'_>, out: &mut String) {
    out.push('{');
    let mut first = true;
    for (key, program) in fields {
        let before = out.len();
        if !first {
            out.push(',');
        }
        quoted(key, out);
        out.push(':');
        if json_value(program, view, out) {
            first = false;
        } else {
            out.truncate(before);
        }
    }
    out.push('}');
}

/// `false`: it has no value, and is left out.
fn json_value(program: &Program, view: &View<'_>, out: &mut String) -> bool {
    let mut value = String::new();
    match program.pieces.as_slice() {
        [Step::Value(source, limit)] => {
            if !view.put(source, &mut value) {
                out.push_str("null");
                return !view.omit_empty;
            }
            if is_number(source) {
                out.push_str(&value);
                return true;
            }
            if let Some(limit) = limit {
                cut(&mut value, 0, *limit);
            }
        }
        _ => text(program, view, &mut value),
    }
    quoted(&value, out);
    true
}

fn quoted(text: &str, out: &mut String) {
    // A string is always serialisable.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

fn is_number(source: &Source) -> bool {
    match source {
        Source::Plain(plain) => matches!(
            plain,
            Plain::ResponseCode
                | Plain::BytesReceived
                | Plain::BytesSent
                | Plain::Duration
                | Plain::RequestDuration
                | Plain::ResponseDuration
                | Plain::ResponseTxDuration
                | Plain::UpstreamRequestAttemptCount
                | Plain::UpstreamRemotePort
                | Plain::DownstreamRemotePort
                | Plain::DownstreamDirectRemotePort
                | Plain::DownstreamLocalPort
                | Plain::ConnectionId
                | Plain::GrpcStatusNumber
        ),
        Source::GrpcStatus(form) => *form == GrpcStatusForm::Number,
        _ => false,
    }
}

/// Leaves at most so many bytes after `from`, and no half of a letter.
fn cut(out: &mut String, from: usize, limit: usize) {
    let mut end = from.saturating_add(limit);
    if end < out.len() {
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
    }
}

impl View<'_> {
    /// Appends a value; `false`: there is none, and nothing was appended.
    fn put(&self, source: &Source, out: &mut String) -> bool {
        let before = out.len();
        // Writing to a String does not fail.
        let _ = self.write(source, out);
        out.len() > before
    }

    fn write(&self, source: &Source, out: &mut String) -> fmt::Result {
        match source {
            Source::Plain(plain) => self.plain(*plain, out),
            Source::StartTime(format) => time::write(format, self.facts.at, out),
            Source::EmitTime(format) => time::write(format, ::time::OffsetDateTime::now_utc(), out),
            Source::Request(first, second) => self.field(*first, *second, &self.headers.request, out),
            Source::Response(first, second) => self.field(*first, *second, &self.headers.response, out),
            Source::Trailer(first, second) => self.field(*first, *second, &self.headers.trailers, out),
            Source::GrpcStatus(form) => match self.facts.grpc_status {
                Some(status) => grpc(status, *form, out),
                None => Ok(()),
            },
            Source::Nothing => Ok(()),
        }
    }

    fn field(&self, first: Field, second: Option<Field>, values: &Values, out: &mut String) -> fmt::Result {
        let before = out.len();
        self.one(first, values, out)?;
        match second {
            Some(second) if out.len() == before => self.one(second, values, out),
            _ => Ok(()),
        }
    }

    fn one(&self, field: Field, values: &Values, out: &mut String) -> fmt::Result {
        let request = self.facts.request.as_ref();
        let kept = |position: usize| values.get(position).and_then(Option::as_ref);
        match field {
            Field::Method => out.write_str(request.map_or("", |head| head.method.as_str())),
            Field::Path => out.write_str(request.map_or("", |head| head.path())),
            Field::Authority => {
                out.write_str(request.and_then(|head| head.authority.as_deref()).unwrap_or_default())
            }
            Field::Scheme => out.write_str(request.map_or("", |_| "http")),
            Field::Status => optional(self.facts.status, out),
            Field::Header(position) => match kept(position) {
                Some(value) => out.write_str(&String::from_utf8_lossy(value.as_bytes())),
                None => Ok(()),
            },
            Field::ServiceTime(position) => match kept(position) {
                Some(value) => out.write_str(&String::from_utf8_lossy(value.as_bytes())),
                None => millis(self.service_time(), out),
            },
            Field::Nothing => Ok(()),
        }
    }

    /// How long the other side took for the head of its answer.
    fn service_time(&self) -> Option<Duration> {
        let (answered, attempted) = (self.facts.answered?, self.facts.attempted?);
        Some(answered.saturating_sub(attempted))
    }

    fn plain(&self, plain: Plain, out: &mut String) -> fmt::Result {
        let facts = self.facts;
        let scene = &facts.scene;
        match plain {
            Plain::Protocol => out.write_str(facts.request.as_ref().map_or("", |head| head.protocol())),
            Plain::ResponseCode => match facts.status {
                Some(status) => write!(out, "{status}"),
                None => out.write_str("0"),
            },
            Plain::ResponseCodeDetails => out.write_str(facts.details),
            Plain::ResponseFlags => facts.flags.write(out, false),
            Plain::ResponseFlagsLong => facts.flags.write(out, true),
            Plain::BytesReceived => write!(out, "{}", facts.received),
            Plain::BytesSent => write!(out, "{}", facts.sent),
            Plain::Duration => millis(facts.end, out),
            Plain::RequestDuration => millis(facts.request_end, out),
            Plain::ResponseDuration => millis(facts.answered, out),
            Plain::ResponseTxDuration => {
                millis(facts.end.zip(facts.answered).map(|(end, head)| end.saturating_sub(head)), out)
            }
            Plain::UpstreamCluster | Plain::UpstreamClusterRaw => out.write_str(facts.cluster()),
            Plain::UpstreamRequestAttemptCount => write!(out, "{}", facts.attempts),
            Plain::UpstreamHost
            | Plain::UpstreamHostName
            | Plain::UpstreamRemoteAddress
            | Plain::UpstreamRemoteAddressWithoutPort
            | Plain::UpstreamRemotePort => self.upstream(plain, out),
            Plain::DownstreamRemoteAddress | Plain::DownstreamDirectRemoteAddress => {
                write!(out, "{}", scene.remote)
            }
            Plain::DownstreamRemoteAddressWithoutPort | Plain::DownstreamDirectRemoteAddressWithoutPort => {
                write!(out, "{}", scene.remote.ip())
            }
            Plain::DownstreamRemotePort | Plain::DownstreamDirectRemotePort => {
                write!(out, "{}", scene.remote.port())
            }
            Plain::DownstreamLocalAddress => write!(out, "{}", scene.local),
            Plain::DownstreamLocalAddressWithoutPort => write!(out, "{}", scene.local.ip()),
            Plain::DownstreamLocalPort => write!(out, "{}", scene.local.port()),
            Plain::DownstreamPeerUriSan
            | Plain::DownstreamLocalUriSan
            | Plain::DownstreamTlsVersion
            | Plain::RequestedServerName => self.session(plain, out),
            Plain::RouteName => Ok(()),
            Plain::ConnectionId => write!(out, "{}", scene.connection),
            Plain::Hostname => out.write_str(&scene.proxy.name),
            Plain::TraceId => match facts.trace_id {
                Some(id) => write!(out, "{id:032x}"),
                None => Ok(()),
            },
            Plain::GrpcStatusNumber => optional(facts.grpc_status, out),
            _ => self.kuma(plain, out),
        }
    }

    fn upstream(&self, plain: Plain, out: &mut String) -> fmt::Result {
        let Some(upstream) = &self.facts.upstream else { return Ok(()) };
        if plain == Plain::UpstreamHostName && !upstream.name().is_empty() {
            return out.write_str(upstream.name());
        }
        match (upstream.address(), upstream.named(), plain) {
            (Some(address), _, Plain::UpstreamRemoteAddressWithoutPort) => write!(out, "{}", address.ip()),
            (Some(address), _, Plain::UpstreamRemotePort) => write!(out, "{}", address.port()),
            (Some(address), _, _) => write!(out, "{address}"),
            (None, Some((name, _)), Plain::UpstreamRemoteAddressWithoutPort) => out.write_str(name),
            (None, Some((_, port)), Plain::UpstreamRemotePort) => write!(out, "{port}"),
            (None, Some((name, port)), _) => write!(out, "{name}:{port}"),
            (None, None, _) => Ok(()),
        }
    }

    fn session(&self, plain: Plain, out: &mut String) -> fmt::Result {
        let Some(peer) = &self.facts.scene.peer else { return Ok(()) };
        let proxy = &self.facts.scene.proxy;
        match plain {
            Plain::DownstreamPeerUriSan => out.write_str(&peer.identity.spiffe.join(",")),
            Plain::DownstreamLocalUriSan => {
                write!(out, "spiffe://{}/{}", proxy.mesh, self.facts.destination())
            }
            // The mesh speaks nothing else.
            Plain::DownstreamTlsVersion => out.write_str("TLSv1.3"),
            _ => out.write_str(peer.sni.as_deref().unwrap_or_default()),
        }
    }

    fn kuma(&self, plain: Plain, out: &mut String) -> fmt::Result {
        let facts = self.facts;
        let proxy = &facts.scene.proxy;
        match plain {
            Plain::KumaSourceAddress => write!(out, "{}", facts.source_address()),
            Plain::KumaSourceAddressWithoutPort => write!(out, "{}", facts.source_address().ip()),
            Plain::KumaSourceService => out.write_str(facts.source()),
            Plain::KumaDestinationService => out.write_str(facts.destination()),
            Plain::KumaMesh => out.write_str(&proxy.mesh),
            Plain::KumaZone => out.write_str(&proxy.zone),
            Plain::KumaWorkload => out.write_str(&proxy.service),
            Plain::KumaTrafficDirection => out.write_str(if facts.scene.direction == Direction::Inbound {
                "INBOUND"
            } else {
                "OUTBOUND"
            }),
            _ => Ok(()),
        }
    }
}

fn optional(value: Option<impl fmt::Display>, out: &mut String) -> fmt::Result {
    match value {
        Some(value) => write!(out, "{value}"),
        None => Ok(()),
    }
}

fn millis(duration: Option<Duration>, out: &mut String) -> fmt::Result {
    optional(duration.map(|duration| duration.as_millis()), out)
}

/// gRPC's statuses, by number.
const GRPC: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

fn grpc(status: u32, form: GrpcStatusForm, out: &mut String) -> fmt::Result {
    let name = usize::try_from(status).ok().and_then(|status| GRPC.get(status));
    match (name, form) {
        (None, _) | (_, GrpcStatusForm::Number) => write!(out, "{status}"),
        (Some(name), GrpcStatusForm::Camel) => out.write_str(name),
        (Some(&"OK"), GrpcStatusForm::Snake) => out.write_str("OK"),
        (Some(name), GrpcStatusForm::Snake) => name.chars().enumerate().try_for_each(|(i, letter)| {
            if i > 0 && letter.is_ascii_uppercase() {
                out.write_char('_')?;
            }
            out.write_char(letter.to_ascii_uppercase())
        }),
    }
}
