//! HTTP below the decisions: bodies, headers, connections. The codec is hyper's, at connection level.

mod body;
mod filtered;
mod forward;
mod grpc;
mod head;
mod heads;
mod kept;
mod mirrored;
mod pace;
mod replay;
mod scripted;
mod serve;
mod upgrade;

pub use body::{Body, BodyError, Counted, Gate};
pub use filtered::Guard;
pub use forward::{ForwardError, How, copy, send, timed};
pub(crate) use grpc::Own;
pub use grpc::{in_grpc, is_grpc, is_grpc_type};
pub use head::{
    Malformed, OVERLOADED, authority, because, denied, expects_continue, has_no_body, is_upgrade, malformed,
    overloaded, plain, prepare, receive, refused, strip_request, strip_response, upgrades_out_of_http,
    version,
};
pub(crate) use kept::{Kept, Room};
pub use mirrored::{CopyFate, CopyFrom, CopyTo, mirrored};
pub(crate) use replay::PIECE;
pub use replay::{Reader, Tape};
pub(crate) use scripted::{Scripted, Wait};
pub use serve::{Codec, LocalExecutor, client_h1, client_h2, detect, serve};
pub(crate) use serve::{LastAnswer, idle_ending};
pub use upgrade::upgrade;

/// Request and response heads larger than this are refused.
pub const MAX_HEAD: usize = 64 << 10;
