//! What the HTTP/1.1 codec takes from one connection and writes to the next has one meaning. The codec is private, so the
//! properties, and their run by stable Rust, are beside it (`shared/proxy/src/codec/h1/fuzz.rs`).

pub(crate) fn run(bytes: &[u8]) {
    meridian_proxy::codec::fuzz_http1(bytes);
}
