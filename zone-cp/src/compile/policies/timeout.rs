use meridian_core::duration::PolicyDuration;
use meridian_core::kinds::mesh_timeout::Conf;
use meridian_proxy_config::{ConnectionTimeouts, DestinationPolicies, InboundPolicies, StreamTimeouts};
use std::num::NonZeroU64;

pub(crate) fn destination(conf: &Conf, into: &mut DestinationPolicies) {
    (into.connection_timeouts, into.stream_timeouts) = (connections(conf), streams(conf));
}

pub(crate) fn inbound(conf: &Conf, into: &mut InboundPolicies) {
    (into.connection_timeouts, into.stream_timeouts) = (connections(conf), streams(conf));
}

fn connections(conf: &Conf) -> ConnectionTimeouts {
    let http = conf.http.clone().unwrap_or_default();
    ConnectionTimeouts {
        connect_millis: conf.connection_timeout.and_then(|it| NonZeroU64::new(millis(it))),
        idle_millis: conf.idle_timeout.map(millis),
        max_age_millis: http.max_connection_duration.map(millis),
    }
}

fn streams(conf: &Conf) -> StreamTimeouts {
    let http = conf.http.clone().unwrap_or_default();
    StreamTimeouts {
        request_millis: http.request_timeout.map(millis),
        idle_millis: http.stream_idle_timeout.map(millis),
        max_millis: http.max_stream_duration.map(millis),
    }
}

/// What is shorter than a millisecond is one: only zero switches off.
fn millis(duration: PolicyDuration) -> u64 {
    u64::try_from(duration.get().as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
