//! What is measured.

use crate::load::Protocol;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    pub(crate) request_bytes: usize,
    pub(crate) response_bytes: usize,
    /// Whether it is told in Envoy's other mode, too (HTTP/2 between the sidecars).
    pub(crate) both_modes: bool,
}

const fn http1(name: &'static str, connections: usize, request_bytes: usize, response_bytes: usize) -> Case {
    let protocol = Protocol::Http1;
    Case { name, protocol, connections, streams: 1, request_bytes, response_bytes, both_modes: true }
}

const fn case(name: &'static str, protocol: Protocol, connections: usize, streams: usize) -> Case {
    let request_bytes = match protocol {
        Protocol::Grpc => 65,
        _ => 0,
    };
    Case { name, protocol, connections, streams, request_bytes, response_bytes: 65, both_modes: false }
}

pub(crate) const CASES: &[Case] = &[
    http1("HTTP/1.1, 1 connection", 1, 0, 65),
    http1("HTTP/1.1, 32 connections", 32, 0, 65),
    http1("HTTP/1.1, 256 connections", 256, 0, 65),
    http1("HTTP/1.1, 1 KiB both ways, 32 connections", 32, 1 << 10, 1 << 10),
    http1("HTTP/1.1, 64 KiB both ways, 32 connections", 32, 64 << 10, 64 << 10),
    case("HTTP/2, 4 connections of 25 streams", Protocol::Http2, 4, 25),
    case("gRPC unary, 4 connections of 25 streams", Protocol::Grpc, 4, 25),
    case("TCP, 1 stream", Protocol::Tcp, 1, 1),
    case("TCP, 8 streams", Protocol::Tcp, 8, 1),
    case("HTTP/1.1, a connection for each request", Protocol::Http1Close, 16, 1),
    case("10,000 idle connections", Protocol::Idle, 10_000, 1),
];
