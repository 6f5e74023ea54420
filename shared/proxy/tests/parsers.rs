//! The bodies of the fuzz targets (`fuzz/`), over generated input, by stable Rust.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../../../fuzz/bodies/dns.rs"]
mod dns;
#[path = "../../../fuzz/bodies/hello.rs"]
mod hello;
#[path = "../../../fuzz/bodies/preface.rs"]
mod preface;
#[path = "../../../fuzz/bodies/trace.rs"]
mod trace;

use proptest::{collection::vec, prelude::*};

/// A handshake record around a ClientHello around anything.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![22, 3, 1];
    bytes.extend((body.len() as u16 + 4).to_be_bytes());
    bytes.push(1);
    bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
    bytes.extend(body);
    bytes
}

/// The fixed part of a hello, then these extensions.
fn with_extensions(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([0; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    framed(&body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn hellos(bytes in vec(any::<u8>(), 0..300), rest in vec(any::<u8>(), 0..40)) {
        hello::run(&bytes);
        hello::run(&framed(&bytes));
        hello::run(&[with_extensions(&bytes), rest].concat());
    }

    #[test]
    fn extensions(list in vec((prop_oneof![Just(0u16), Just(42), Just(0xfe0d), any::<u16>()], vec(any::<u8>(), 0..30)), 0..8)) {
        let mut bytes = Vec::new();
        for (kind, data) in list {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        hello::run(&with_extensions(&bytes));
    }

    #[test]
    fn prefaces(entry in ".{0,40}", host in ".{0,40}", port: i64, bytes in vec(any::<u8>(), 0..100)) {
        preface::run(&bytes);
        preface::run(format!("{{\"entry\":{entry:?},\"host\":{host:?},\"port\":{port}}}").as_bytes());
    }

    #[test]
    fn traces(bytes in vec(any::<u8>(), 0..200), ids in vec("[0-9][0-9a-fd-]{0,70}", 0..6), parent in "[0-9a-f]{32}-[0-9a-f]{16}-0[01]") {
        trace::run(&bytes);
        trace::run(ids.join("\n").as_bytes());
        trace::run(format!("000-{parent}\n{}", ids.join("\n")).as_bytes());
    }

    #[test]
    fn questions(bytes in vec(any::<u8>(), 0..100), labels in vec("[a-zA-Z0-9-]{1,10}", 1..5), tail in vec(any::<u8>(), 0..30)) {
        dns::run(&bytes);
        let header = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(tail.len() > 10)];
        let name: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
        dns::run(&[&header[..], &name, &[0, 0, 1, 0, 1], &tail].concat());
    }
}
