//! HTTP below the decisions: bodies, headers, connections. HTTP/1.1 is our own; HTTP/2 is the `h2` crate's, served by hyper.

mod body;
mod filtered;
mod forward;
mod grpc;
mod h1;
mod h2;
mod head;
mod heads;
mod incoming;
mod kept;
mod mirrored;
mod pace;
mod replay;
mod scripted;
mod serve;
mod upgrade;

use std::time::Duration;

pub use body::{Body, BodyError, Counted};
pub use filtered::Guard;
pub use forward::{Error, ForwardError, How, copy, send};
pub(crate) use forward::{is_clients, is_refusal};
pub(crate) use grpc::Own;
pub use grpc::{in_grpc, is_grpc, is_grpc_type};
#[cfg(any(test, fuzzing))]
pub use h1::fuzz::run as fuzz_http1;
pub(crate) use h1::{Client, Error as Http1Error, Watch};
pub(crate) use h2::{Client as Http2Client, Connection as Http2Connection, Open, open as open_http2};
pub(crate) use head::is_upgrade_of;
pub use head::{
    Malformed, OVERLOADED, authority, because, denied, expects_continue, has_no_body, is_upgrade, malformed,
    overloaded, plain, prepare, receive, refused, strip_request, strip_response, upgrades_out_of_http,
    version,
};
pub use incoming::Incoming;
pub(crate) use kept::{Kept, Room};
pub use mirrored::{CopyFate, CopyFrom, CopyTo, mirrored};
pub(crate) use replay::PIECE;
pub use replay::{Reader, Tape};
pub(crate) use scripted::{Scripted, Wait};
pub(crate) use serve::idle_ending;
pub use serve::{Codec, LocalExecutor, client_h1, client_h2, detect, serve};
pub use upgrade::upgrade;
pub(crate) use upgrade::{ToUpgrade, upgrading};

/// Request and response heads larger than this are refused.
pub const MAX_HEAD: usize = 64 << 10;
/// An answer was taken whole: so long may what is left of its request take to be sent.
const REST_WAIT: Duration = Duration::from_secs(30);
