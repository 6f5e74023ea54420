//! What is read as a preface is written and read as the same one.

use meridian_proxy::preface::Preface;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(preface) = Preface::decode(bytes) else { return };
    assert_ne!(preface.port, 0);
    if let Ok(frame) = preface.encode() {
        assert_eq!(Preface::decode(&frame[2..]).expect("what was encoded"), preface);
    }
}
