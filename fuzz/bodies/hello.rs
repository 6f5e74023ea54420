//! A hello is read the same whatever follows it, and never beyond its end; what a [`Watch`] lets through is what came.

use bytes::BytesMut;
use meridian_proxy::hello::{MAX_HELLO, Opening, Parsed, Watch, opening, parse, read};

pub(crate) fn run(bytes: &[u8]) {
    match read(bytes) {
        Ok(Parsed::Hello(hello)) => {
            assert!(hello.length <= bytes.len() && hello.length <= MAX_HELLO);
            assert_ne!(opening(bytes), Opening::Other);
            let (whole, rest) = bytes.split_at(hello.length);
            assert_eq!(parse(whole), Ok(Some(hello.clone())));
            assert_eq!(parse(&whole[..whole.len() - 1]), Ok(None));
            watch(Watch::new(hello.server_name, hello.early_data), rest);
        }
        Ok(Parsed::Missing(count)) => assert!(count > 0 && bytes.len() + count <= MAX_HELLO),
        Err(_) => {}
    }
    watch(Watch::new(None, bytes.len().is_multiple_of(2)), bytes);
}

fn watch(mut watch: Watch, bytes: &[u8]) {
    let mut out = BytesMut::new();
    for part in bytes.chunks(7) {
        if watch.push(part, &mut out).is_err() {
            break;
        }
    }
    assert!(bytes.starts_with(&out));
}
