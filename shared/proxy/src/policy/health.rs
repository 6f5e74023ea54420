//! Health checks: what is asked, what answers mean, and when the next one is due. Without a clock and without sockets;
//! [`crate::health`] has those.
//!
//! As in Envoy, the first answer decides whatever the thresholds are, as there is nothing to weigh it against; later a bad
//! answer counts at once, since who answers knows, and only silence is counted.

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, header,
    uri::{Authority, PathAndQuery},
};
use meridian_proxy_config::{HealthChecks, Jitter, Question};
use prost::Message;
use std::time::Duration;

/// How endpoints are asked; compiled.
#[derive(Debug)]
pub struct HealthPlan {
    /// What it was made from.
    pub config: HealthChecks,
    pub timeout: Duration,
    pub ask: Ask,
    /// Checks of an endpoint share a connection.
    pub reuse: bool,
    pub log_failures: bool,
    interval: Duration,
    idle_interval: Duration,
    jitter: Jitter,
    unhealthy_after: u32,
    healthy_after: u32,
}

/// What is asked.
#[derive(Debug)]
pub enum Ask {
    Tcp {
        send: Bytes,
        receive: Vec<Vec<u8>>,
    },
    Http {
        path: PathAndQuery,
        headers: HeaderMap,
        /// In place of the service's name.
        authority: Option<Authority>,
        statuses: Vec<u16>,
    },
    Grpc {
        /// The request's message, framed.
        message: Bytes,
        authority: Option<Authority>,
    },
}

/// What came of one check. The texts are for logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Well,
    /// It answered, and not as it should.
    Unwell(String),
    /// No connection, or no answer in time.
    Silent(String),
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    well: bool,
    asked: bool,
    /// Findings in a row that speak for the other state.
    row: u32,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;
// Before a gRPC message: whether it is compressed, and its length.
const GRPC_PREFIX: usize = 5;

impl HealthPlan {
    /// # Errors
    /// What can't be asked.
    pub fn compile(config: &HealthChecks) -> Result<Self, String> {
        let millis = |millis: std::num::NonZeroU64| Duration::from_millis(millis.get());
        Ok(Self {
            config: config.clone(),
            timeout: millis(config.timeout_millis),
            ask: Ask::compile(&config.question)?,
            reuse: config.reuse,
            log_failures: config.log_failures,
            interval: millis(config.interval_millis),
            idle_interval: millis(config.idle_interval_millis),
            jitter: config.jitter,
            unhealthy_after: config.unhealthy_after.get(),
            healthy_after: config.healthy_after.get(),
        })
    }

    /// Before the first check. `chance` is in 0..1.
    pub fn first_wait(&self, chance: f64) -> Duration {
        Duration::from_millis(self.jitter.initial_millis).mul_f64(chance)
    }

    /// Between two checks; `used`: somebody called since the last one. The chances are in 0..1.
    pub fn wait(&self, used: bool, chance: [f64; 2]) -> Duration {
        let interval = if used { self.interval } else { self.idle_interval };
        let [by_time, by_share] = chance;
        let jitter = Duration::from_millis(self.jitter.interval_millis).mul_f64(by_time);
        let share = interval.mul_f64(f64::from(self.jitter.interval_percent.min(100)) / 100.0 * by_share);
        interval.saturating_add(jitter).saturating_add(share)
    }
}

impl Ask {
    fn compile(question: &Question) -> Result<Self, String> {
        match question {
            Question::Tcp { send, receive } => {
                Ok(Self::Tcp { send: send.clone().into(), receive: receive.clone() })
            }
            Question::Http { path, set_headers, add_headers, statuses } => {
                let path =
                    PathAndQuery::try_from(path.as_str()).map_err(|error| format!("{path}: {error}"))?;
                let mut headers = HeaderMap::new();
                headers.insert(header::USER_AGENT, HeaderValue::from_static("meridian-health-check"));
                for (name, value) in set_headers {
                    let (name, value) = pair(name, value)?;
                    headers.insert(name, value);
                }
                for (name, value) in add_headers {
                    let (name, value) = pair(name, value)?;
                    headers.append(name, value);
                }
                let host = headers.remove(header::HOST);
                // The length of a GET's body, which it has not.
                headers.remove(header::CONTENT_LENGTH);
                let authority =
                    host.map(|host| host.to_str().map_err(|error| error.to_string()).and_then(authority));
                let statuses = statuses.clone();
                Ok(Self::Http { path, headers, authority: authority.transpose()?, statuses })
            }
            Question::Grpc { service, authority: given } => {
                let message = framed(&HealthCheckRequest { service: service.clone() });
                Ok(Self::Grpc { message, authority: given.as_deref().map(authority).transpose()? })
            }
        }
    }
}

fn pair(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let header = HeaderName::try_from(name).map_err(|error| format!("{name}: {error}"))?;
    Ok((header, HeaderValue::try_from(value).map_err(|error| format!("{name}: {error}"))?))
}

fn authority(text: &str) -> Result<Authority, String> {
    Authority::try_from(text).map_err(|error| format!("{text}: {error}"))
}

fn framed(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(GRPC_PREFIX + encoded.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    framed.put_slice(&encoded);
    framed.freeze()
}

/// What the one message of an answer by gRPC's health service says.
pub fn grpc_finding(body: &[u8]) -> Finding {
    let unwell = |why: String| Finding::Unwell(why);
    let Some((prefix, message)) = body.split_first_chunk::<GRPC_PREFIX>() else {
        return unwell("an answer without a message".to_owned());
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return unwell("a compressed answer, which was not asked for".to_owned());
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    match message.get(..length).map(HealthCheckResponse::decode) {
        Some(Ok(answer)) if answer.status == SERVING => Finding::Well,
        Some(Ok(answer)) => unwell(format!("serving status {}", answer.status)),
        Some(Err(error)) => unwell(error.to_string()),
        None => unwell("an answer that ends early".to_owned()),
    }
}

/// Whether all of `wanted` are in `answer`, one after the other.
pub fn contains_in_order(answer: &[u8], wanted: &[Vec<u8>]) -> bool {
    let mut rest = answer;
    wanted.iter().all(|part| {
        let found =
            if part.is_empty() { Some(0) } else { rest.windows(part.len()).position(|it| it == part) };
        let after = found.and_then(|at| rest.get(at + part.len()..));
        rest = after.unwrap_or_default();
        after.is_some()
    })
}

impl Machine {
    /// `well`: what is assumed before the first check.
    pub fn new(well: bool) -> Self {
        Self { well, asked: false, row: 0 }
    }

    pub fn is_well(&self) -> bool {
        self.well
    }

    /// Takes a finding in; the new state, if it is another.
    pub fn note(&mut self, plan: &HealthPlan, finding: &Finding) -> Option<bool> {
        let first = !std::mem::replace(&mut self.asked, true);
        let speaks_for = *finding == Finding::Well;
        if speaks_for == self.well {
            self.row = 0;
            return None;
        }
        self.row = self.row.saturating_add(1);
        let enough = match finding {
            Finding::Well => self.row >= plan.healthy_after,
            Finding::Unwell(_) => true,
            Finding::Silent(_) => self.row >= plan.unhealthy_after,
        };
        if !first && !enough {
            return None;
        }
        (self.well, self.row) = (speaks_for, 0);
        Some(self.well)
    }
}

#[cfg(test)]
mod tests;
