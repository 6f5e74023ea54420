//! Scripts on HTTP messages, with the API of Envoy's Lua filter and the budgets that it lacks.
//!
//! Sans I/O: a [`Run`] is one call of `envoy_on_request` or `envoy_on_response`. It goes on until it is done or needs
//! something ([`Step`]: the body, a call to another service), and whoever runs it does that and resumes it. So the proxy
//! owns every wait, a script never blocks a worker, and all of it can be tested without a socket.
//!
//! The language is Luau: of the engines that were tried (Lua 5.4, LuaJIT) it is the only one whose interrupt also stops
//! loops around `pcall`, in coroutines and in the library's own pattern matching. What is left, searches whose cost is
//! the product of two lengths and sorting by the library's own comparison, is bounded by `prelude.lua`.
//!
//! This is the one crate that links the C++ of Luau. Rejected: mlua's async functions, which would tie scripts to a
//! runtime, and one state for all scripts, where each could fill the others' memory.

mod body;
mod exchange;
mod facts;
mod handle;
mod headers;
mod info;
pub mod limits;
mod log;
mod meter;
mod program;
mod respond;
mod run;
mod value;
mod vm;

pub use exchange::{Head, Start};
pub use facts::{Dynamic, Facts, PeerFacts};
pub use headers::HOPS;
pub use log::{Level, Log};
pub use meter::Budget;
pub use program::{Program, UNSUPPORTED};
pub use respond::{Call, Reply};
pub use run::{Answer, Failure, Run, Step};
pub use vm::{Alive, Phase, Vm};

#[cfg(test)]
mod tests;
