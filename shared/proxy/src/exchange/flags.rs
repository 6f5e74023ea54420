//! What went wrong with a request or connection, in Envoy's letters.

use std::fmt;

/// A set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

/// Letters and name of each flag, by its bit.
const NAMES: [(&str, &str); 10] = [
    ("UH", "NoHealthyUpstream"),
    ("UF", "UpstreamConnectionFailure"),
    ("UO", "UpstreamOverflow"),
    ("UT", "UpstreamRequestTimeout"),
    ("UC", "UpstreamConnectionTermination"),
    ("DC", "DownstreamConnectionTermination"),
    ("RL", "RateLimited"),
    ("FI", "FaultInjected"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("UAEX", "UnauthorizedExternalService"),
];

impl Flags {
    pub const NONE: Self = Self(0);
    pub const NO_ENDPOINT: Self = Self(1);
    pub const CONNECT_FAILURE: Self = Self(1 << 1);
    pub const OVERFLOW: Self = Self(1 << 2);
    pub const TIMEOUT: Self = Self(1 << 3);
    pub const UPSTREAM_ENDED: Self = Self(1 << 4);
    pub const DOWNSTREAM_ENDED: Self = Self(1 << 5);
    pub const RATE_LIMITED: Self = Self(1 << 6);
    pub const FAULT: Self = Self(1 << 7);
    pub const RETRIES_EXHAUSTED: Self = Self(1 << 8);
    pub const UNAUTHORISED: Self = Self(1 << 9);

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn names(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        NAMES.into_iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|(_, names)| names)
    }

    /// `UF,URX`; nothing if there are none.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(self, out: &mut dyn fmt::Write, long: bool) -> fmt::Result {
        for (i, (letters, name)) in self.names().enumerate() {
            if i > 0 {
                out.write_str(",")?;
            }
            out.write_str(if long { name } else { letters })?;
        }
        Ok(())
    }
}

/// Why an answer of the proxy's own is given.
#[derive(Debug, PartialEq, Eq)]
pub struct Cause {
    pub flags: Flags,
    /// For `%RESPONSE_CODE_DETAILS%`.
    pub details: &'static str,
}

impl Cause {
    pub const OVERFLOW: Self = Self { flags: Flags::OVERFLOW, details: "overflow" };
    pub const DENIED: Self = Self { flags: Flags::NONE, details: "rbac_access_denied" };
    pub const NO_ENDPOINT: Self = Self { flags: Flags::NO_ENDPOINT, details: "no_healthy_upstream" };
    pub const UNREACHABLE: Self = Self {
        flags: Flags::CONNECT_FAILURE,
        details: "upstream_reset_before_response_started{connection_failure}",
    };
    pub const LOST: Self = Self {
        flags: Flags::UPSTREAM_ENDED,
        details: "upstream_reset_before_response_started{connection_termination}",
    };
    pub const LATE: Self = Self { flags: Flags::TIMEOUT, details: "upstream_response_timeout" };
    pub const MALFORMED: Self = Self { flags: Flags::NONE, details: "bad_request" };
    pub const RATE_LIMITED: Self = Self { flags: Flags::RATE_LIMITED, details: "local_rate_limited" };
    pub const FAULT: Self = Self { flags: Flags::FAULT, details: "fault_filter_abort" };
    pub const FILTERED: Self = Self { flags: Flags::NONE, details: "request_filter_blocked" };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_in_letters() {
        let written = |flags: Flags, long| {
            let mut out = String::new();
            flags.write(&mut out, long).unwrap();
            out
        };
        let both = Flags::RETRIES_EXHAUSTED.and(Flags::CONNECT_FAILURE);
        assert_eq!(written(both, false), "UF,URX");
        assert_eq!(written(Flags::NO_ENDPOINT, true), "NoHealthyUpstream");
        assert_eq!(written(Flags::UNAUTHORISED, false), "UAEX");
        assert_eq!(written(Flags::NONE, false), "");
    }
}
