//! What a script may use. Envoy has no such limits: a script there can hold up all requests of its thread.

use std::time::Duration;

/// Calls, returns, rounds of loops and comparisons with patterns of one invocation. Scripts on headers take some hundred;
/// a search for a pattern takes one a byte, so that a body of [`MAX_BODY`] can be searched.
pub const STEPS: u32 = 2_000_000;
/// How long one invocation may have the processor, waits for bodies and calls excluded. The clock is looked at each step, and not
/// within one: what a script does between two of them (comparing long strings) comes on top of it, and is bounded by
/// [`MAX_SOURCE`] and [`MEMORY`].
pub const TIME: Duration = Duration::from_millis(50);
/// Of one state: what a script keeps between requests, and what it has at hand of those under way. A state takes some
/// 100 KiB before a script does anything.
pub const MEMORY: usize = 8 << 20;
/// Bytes of a body that `body()` waits for; also of an answer to `httpCall` and of what `setBytes` sets. As much as
/// Envoy buffers of a request by default.
pub const MAX_BODY: usize = 1 << 20;
/// Names and values of a message's headers, and [`FIELD_OVERHEAD`] for each, as it leaves a script: what the proxies take
/// from each other.
pub const MAX_HEADERS: usize = 48 << 10;
/// Bytes that a header counts beside its name and value, as in HTTP/2's size of a list of headers: many short ones cost
/// as much as few long ones.
pub const FIELD_OVERHEAD: usize = 32;
/// Bytes of a script. Longer ones are programs that belong into a service. It bounds what lies between two steps: as many
/// comparisons of strings of 3 MB as a text of this length has room for take about half a second.
pub const MAX_SOURCE: usize = 32 << 10;
/// A pattern may be compared with so many bytes: the product of both lengths. The library looks at its interrupt only
/// between such comparisons.
pub const SEARCH_WORK: usize = 64 << 20;
/// Elements that one `table.move` moves: as with patterns, the library does it in one step. More is no use within
/// [`MEMORY`].
pub const MAX_MOVE: usize = 100_000;
/// Bytes of all dynamic metadata of one request.
pub const MAX_METADATA: usize = 16 << 10;
/// Tables within tables of dynamic metadata.
pub const MAX_DEPTH: usize = 8;
/// Calls of one invocation that nobody waits for (`httpCall` with `async`).
pub const MAX_POSTS: usize = 8;
/// Calls of one invocation that it waits for, one after the other: a request is not a loop.
pub const MAX_CALLS: usize = 32;
/// Bytes of one message in the log.
pub const MAX_MESSAGE: usize = 1 << 10;
/// Messages in the log of one state, at once and then each second: what a script logs must not fill a disk.
pub const LOG_RATE: u32 = 20;
/// Bytes of the name of a service that is called: no name is longer, and it is kept for logs.
pub const MAX_CLUSTER: usize = 255;
/// How long `httpCall` waits at most, whatever it asks for: a request that waits holds its memory.
pub const LONGEST_CALL: Duration = Duration::from_secs(60);
