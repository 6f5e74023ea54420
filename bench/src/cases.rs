//! What is measured.

use crate::load::Protocol;

/// Which proxies a request passes after the caller's sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The application's sidecar.
    Inside,
    /// An egress, to a host outside of the mesh.
    Out,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    pub(crate) request_bytes: usize,
    pub(crate) response_bytes: usize,
    pub(crate) way: Way,
    /// Whether it is told in Envoy's other mode, too (HTTP/2 between the sidecars).
    pub(crate) both_modes: bool,
}

const fn http1(name: &'static str, connections: usize, request_bytes: usize, response_bytes: usize) -> Case {
    let protocol = Protocol::Http1;
    Case {
        name,
        protocol,
        connections,
        streams: 1,
        request_bytes,
        response_bytes,
        way: Way::Inside,
        both_modes: true,
    }
}

const fn case(name: &'static str, protocol: Protocol, connections: usize, streams: usize) -> Case {
    let request_bytes = match protocol {
        Protocol::Grpc | Protocol::GrpcStream => 65,
        _ => 0,
    };
    Case {
        name,
        protocol,
        connections,
        streams,
        request_bytes,
        response_bytes: 65,
        way: Way::Inside,
        both_modes: false,
    }
}

const fn egress(name: &'static str, protocol: Protocol) -> Case {
    Case { way: Way::Out, ..case(name, protocol, 32, 1) }
}

pub(crate) const CASES: &[Case] = &[
    http1("HTTP/1.1, 1 connection", 1, 0, 65),
    http1("HTTP/1.1, 32 connections", 32, 0, 65),
    http1("HTTP/1.1, 256 connections", 256, 0, 65),
    http1("HTTP/1.1, 1 KiB both ways, 32 connections", 32, 1 << 10, 1 << 10),
    http1("HTTP/1.1, 64 KiB both ways, 32 connections", 32, 64 << 10, 64 << 10),
    case("HTTP/2, 4 connections of 25 streams", Protocol::Http2, 4, 25),
    case("gRPC unary, 4 connections of 25 streams", Protocol::Grpc, 4, 25),
    case("gRPC streaming, 4 connections of 25 streams", Protocol::GrpcStream, 4, 25),
    case("TCP, 1 stream", Protocol::Tcp, 1, 1),
    case("TCP, 8 streams", Protocol::Tcp, 8, 1),
    case("HTTP/1.1, a connection for each request", Protocol::Http1Close, 16, 1),
    egress("Egress with TLS origination, 32 connections", Protocol::Http1),
    egress("Egress with the application's TLS passed on, 32 connections", Protocol::Https),
    case("10,000 idle connections", Protocol::Idle, 10_000, 1),
];

/// With `MANY_SERVICES` configured.
pub(crate) const WITH_MANY_SERVICES: Case =
    case("HTTP/1.1, 32 connections, 1,000 services configured", Protocol::Http1, 32, 1);

/// What fresh proxies are asked first.
pub(crate) const FIRST: Case = case("HTTP/1.1, 1 connection, fresh proxies", Protocol::Http1, 1, 1);

/// Services that a caller's sidecar knows beside those that are called.
pub(crate) const FEW_SERVICES: usize = 50;
pub(crate) const MANY_SERVICES: usize = 1_000;
