//! Envoy's text with placeholders (`%START_TIME%`, `%REQ(H?ALT):N%`), with Kuma's beside them (`%KUMA_MESH%`).
//!
//! Read in two places: where a policy is written, so that a mistake is told to who made it, and in the proxy, which
//! makes a program of it. What is no placeholder at all is an error, as Envoy would refuse the listener. A name that
//! nobody knows is one only where the policy is written: a proxy that is older than the policy writes `-` and goes on.

mod envoys;
mod time;

pub use envoys::WITHOUT_VALUE;
pub use time::{TimeFormat, TimePiece};

/// A text, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFormat {
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// A value, cut after so many bytes.
    Value(Operator, Option<usize>),
}

/// What stands between two `%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// A value that needs no arguments.
    Plain(Plain),
    StartTime(TimeFormat),
    /// When the line is made.
    EmitTime(TimeFormat),
    Request(HeaderNames),
    Response(HeaderNames),
    Trailer(HeaderNames),
    GrpcStatus(GrpcStatusForm),
    /// A name without a value here.
    Unknown(String),
}

/// A header, in lower case, and the one to take where it is absent. Pseudo-headers (`:path`) are among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    pub name: String,
    pub alternative: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatusForm {
    /// `InvalidArgument`
    Camel,
    /// `INVALID_ARGUMENT`
    Snake,
    Number,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("a % at byte {0} begins no placeholder: write %% for a percent sign")]
    Percent(usize),
    #[error("{0} needs the name of a header")]
    NoHeader(String),
    #[error("'{0}' is not the name of a header")]
    Header(String),
    #[error("{0} takes no arguments")]
    Arguments(String),
    #[error("'{0}' is not a length")]
    Length(String),
    #[error("{0} is no form of a gRPC status: CAMEL_STRING, SNAKE_STRING or NUMBER")]
    GrpcStatus(String),
    #[error("'%{0}' is not a part of a time")]
    Time(String),
}

macro_rules! plain {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Values without arguments, by their names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Plain { $($(#[$doc])* $variant,)* }

        impl Plain {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

plain! {
    Protocol = "PROTOCOL",
    ResponseCode = "RESPONSE_CODE",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    ResponseFlags = "RESPONSE_FLAGS",
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG",
    BytesReceived = "BYTES_RECEIVED",
    BytesSent = "BYTES_SENT",
    /// Beginning to end, in milliseconds, as all durations.
    Duration = "DURATION",
    /// To the last byte of the request.
    RequestDuration = "REQUEST_DURATION",
    /// To the head of the answer.
    ResponseDuration = "RESPONSE_DURATION",
    /// From the head of the answer to its end.
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    UpstreamHost = "UPSTREAM_HOST",
    UpstreamHostName = "UPSTREAM_HOST_NAME",
    UpstreamCluster = "UPSTREAM_CLUSTER",
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS",
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT",
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT",
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT",
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN",
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN",
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION",
    RequestedServerName = "REQUESTED_SERVER_NAME",
    RouteName = "ROUTE_NAME",
    ConnectionId = "CONNECTION_ID",
    Hostname = "HOSTNAME",
    TraceId = "TRACE_ID",
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    KumaSourceAddress = "KUMA_SOURCE_ADDRESS",
    KumaSourceAddressWithoutPort = "KUMA_SOURCE_ADDRESS_WITHOUT_PORT",
    KumaSourceService = "KUMA_SOURCE_SERVICE",
    KumaDestinationService = "KUMA_DESTINATION_SERVICE",
    KumaMesh = "KUMA_MESH",
    KumaZone = "KUMA_ZONE",
    KumaWorkload = "KUMA_WORKLOAD",
    KumaTrafficDirection = "KUMA_TRAFFIC_DIRECTION",
}

impl LogFormat {
    /// Reads a text.
    ///
    /// # Errors
    /// What in it is no placeholder, or a wrong one.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut format = Self::default();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            format.text(before);
            if let Some(after) = after.strip_prefix('%') {
                format.text("%");
                rest = after;
                continue;
            }
            let at = text.len() - after.len() - 1;
            let (placeholder, after) = Placeholder::parse(after).ok_or(FormatError::Percent(at))?;
            format.pieces.push(placeholder.piece()?);
            rest = after;
        }
        format.text(rest);
        Ok(format)
    }

    /// Envoy's names in it that have no value here.
    pub fn without_value(&self) -> impl Iterator<Item = &str> {
        self.others().filter(|name| WITHOUT_VALUE.contains(name))
    }

    /// Names in it that are nobody's.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.others().filter(|name| !WITHOUT_VALUE.contains(name))
    }

    fn others(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Value(Operator::Unknown(name), _) => Some(name.as_str()),
            _ => None,
        })
    }

    fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }
}

/// `NAME`, `NAME(ARGUMENTS)`, either with `:LENGTH`; without its percent signs.
struct Placeholder<'a> {
    name: &'a str,
    arguments: Option<&'a str>,
    length: Option<&'a str>,
}

impl<'a> Placeholder<'a> {
    /// What follows a percent sign, and the rest of the text.
    fn parse(text: &'a str) -> Option<(Self, &'a str)> {
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let (name, rest) = text.split_at(text.find(|c| !is_name(c))?);
        let (arguments, rest) = match rest.strip_prefix('(') {
            Some(inside) => inside.split_once(')').map(|(arguments, rest)| (Some(arguments), rest))?,
            None => (None, rest),
        };
        let (length, rest) = match rest.strip_prefix(':') {
            Some(after) => after.split_once('%').map(|(length, rest)| (Some(length), rest))?,
            None => (None, rest.strip_prefix('%')?),
        };
        (!name.is_empty()).then_some((Self { name, arguments, length }, rest))
    }

    fn piece(&self) -> Result<Piece, FormatError> {
        let length = self.length.map(|text| text.parse().map_err(|_| FormatError::Length(text.to_owned())));
        Ok(Piece::Value(self.operator()?, length.transpose()?))
    }

    fn operator(&self) -> Result<Operator, FormatError> {
        let time = || TimeFormat::parse(self.arguments.unwrap_or_default());
        match self.name {
            "START_TIME" => return time().map(Operator::StartTime),
            "EMIT_TIME" => return time().map(Operator::EmitTime),
            "REQ" => return self.headers().map(Operator::Request),
            "RESP" => return self.headers().map(Operator::Response),
            "TRAILER" => return self.headers().map(Operator::Trailer),
            "GRPC_STATUS" => return self.grpc_status().map(Operator::GrpcStatus),
            _ => {}
        }
        match Plain::ALL.iter().find(|plain| plain.name() == self.name) {
            Some(_) if self.arguments.is_some_and(|arguments| !arguments.is_empty()) => {
                Err(FormatError::Arguments(self.name.to_owned()))
            }
            Some(plain) => Ok(Operator::Plain(*plain)),
            None => Ok(Operator::Unknown(self.name.to_owned())),
        }
    }

    fn headers(&self) -> Result<HeaderNames, FormatError> {
        let arguments = self.arguments.filter(|arguments| !arguments.is_empty());
        let arguments = arguments.ok_or_else(|| FormatError::NoHeader(self.name.to_owned()))?;
        let (name, alternative) = match arguments.split_once('?') {
            Some((name, alternative)) => (name, Some(alternative)),
            None => (arguments, None),
        };
        let header = |name: &str| {
            let lower = name.trim().to_ascii_lowercase();
            let is_one = is_header_name(lower.strip_prefix(':').unwrap_or(&lower));
            if is_one { Ok(lower) } else { Err(FormatError::Header(name.to_owned())) }
        };
        Ok(HeaderNames { name: header(name)?, alternative: alternative.map(header).transpose()? })
    }

    fn grpc_status(&self) -> Result<GrpcStatusForm, FormatError> {
        match self.arguments.unwrap_or_default() {
            "" | "CAMEL_STRING" => Ok(GrpcStatusForm::Camel),
            "SNAKE_STRING" => Ok(GrpcStatusForm::Snake),
            "NUMBER" => Ok(GrpcStatusForm::Number),
            other => Err(FormatError::GrpcStatus(other.to_owned())),
        }
    }
}

/// A token in lower case (RFC 9110, 5.6.2).
fn is_header_name(text: &str) -> bool {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &str) -> Vec<Piece> {
        LogFormat::parse(text).unwrap().pieces
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    fn plain(plain: Plain) -> Piece {
        Piece::Value(Operator::Plain(plain), None)
    }

    #[test]
    fn text_and_placeholders_take_turns() {
        assert_eq!(
            pieces("100%% of %KUMA_MESH%: %RESPONSE_CODE%\n"),
            [text("100% of "), plain(Plain::KumaMesh), text(": "), plain(Plain::ResponseCode), text("\n"),]
        );
        assert_eq!(pieces(""), []);
    }

    #[test]
    fn headers_have_alternatives_and_lengths() {
        let names = HeaderNames { name: "x-a".into(), alternative: Some(":path".into()) };
        assert_eq!(pieces("%REQ(X-A?:PATH):7%"), [Piece::Value(Operator::Request(names), Some(7))]);
        let names = HeaderNames { name: "x-b".into(), alternative: None };
        assert_eq!(pieces("%TRAILER(X-B)%"), [Piece::Value(Operator::Trailer(names), None)]);
    }

    #[test]
    fn unknown_names_are_told_and_kept() {
        let format = LogFormat::parse("%DYNAMIC_METADATA(a:b:c):3% %FOO% %DURATION%").unwrap();
        assert_eq!(format.without_value().collect::<Vec<_>>(), ["DYNAMIC_METADATA"]);
        assert_eq!(format.unknown().collect::<Vec<_>>(), ["FOO"]);
    }

    #[test]
    fn a_name_has_a_value_or_it_has_none() {
        for name in WITHOUT_VALUE {
            let format = LogFormat::parse(&format!("%{name}%")).unwrap();
            assert_eq!(format.without_value().collect::<Vec<_>>(), [*name]);
        }
        assert!(WITHOUT_VALUE.is_sorted(), "so that a reader finds one");
        let page = include_str!("../../../docs/policies/meshaccesslog.md");
        let (_, list) = page.split_once("have no value here").unwrap();
        for name in WITHOUT_VALUE {
            assert!(list.contains(&format!("`{name}`")), "docs/policies/meshaccesslog.md lacks {name}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (format, reason) in [
            ("50 %", "a % at byte 3 begins no placeholder: write %% for a percent sign"),
            ("a %lower%", "a % at byte 2 begins no placeholder: write %% for a percent sign"),
            ("%REQ(X", "a % at byte 0 begins no placeholder: write %% for a percent sign"),
            ("%PROTOCOL", "a % at byte 0 begins no placeholder: write %% for a percent sign"),
            ("%()%", "a % at byte 0 begins no placeholder: write %% for a percent sign"),
            ("%REQ%", "REQ needs the name of a header"),
            ("%RESP()%", "RESP needs the name of a header"),
            ("%REQ(a b)%", "'a b' is not the name of a header"),
            ("%REQ(a?)%", "'' is not the name of a header"),
            ("%REQ(a):x%", "'x' is not a length"),
            ("%DURATION(ms)%", "DURATION takes no arguments"),
            ("%GRPC_STATUS(X)%", "X is no form of a gRPC status: CAMEL_STRING, SNAKE_STRING or NUMBER"),
            ("%START_TIME(%Q)%", "'%Q' is not a part of a time"),
        ] {
            assert_eq!(LogFormat::parse(format).unwrap_err().to_string(), reason, "{format}");
        }
    }

    #[test]
    fn every_name_is_its_own() {
        for one in Plain::ALL {
            assert_eq!(pieces(&format!("%{}%", one.name())), [plain(*one)]);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[%A-Z()?:a-z 0-9é]{0,40}") {
            drop(LogFormat::parse(&text));
        }

        #[test]
        fn what_has_no_percent_sign_stays(text in "[^%]{0,40}") {
            let pieces = pieces(&text);
            let is_same = match pieces.as_slice() {
                [] => text.is_empty(),
                [Piece::Text(found)] => *found == text,
                _ => false,
            };
            prop_assert!(is_same);
        }
    }
}
