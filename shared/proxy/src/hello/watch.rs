use super::parse::{HelloError, parse};
use crate::host::HostName;
use bytes::{Buf, BytesMut};

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;

/// Holds what a client sends after its first hello to that hello's name.
///
/// A server may answer with HelloRetryRequest; the hello that follows is a whole new one, and some servers choose
/// their certificate and site by it. So the client's records are walked until the handshake has clearly moved on: the
/// first record that is neither a hello nor the compatibility ChangeCipherSpec. With 0-RTT, application data may come
/// between the two hellos, and there is no telling it from what follows the handshake: then the walk goes on to the
/// end, at five bytes looked at a record.
///
/// A second hello is held back until it is complete and checked; all else passes at once.
#[derive(Debug)]
pub struct Watch {
    name: Option<HostName>,
    early_data: bool,
    held: BytesMut,
    /// Bytes of the present record that still pass unread.
    passing: usize,
    done: bool,
}

impl Watch {
    pub fn new(name: Option<HostName>, early_data: bool) -> Self {
        Self { name, early_data, held: BytesMut::new(), passing: 0, done: false }
    }

    /// Nothing is held any more, and nothing will be.
    pub fn is_done(&self) -> bool {
        self.done && self.held.is_empty()
    }

    /// Takes what the client sent; what may be forwarded is added to `out`.
    pub fn push(&mut self, input: &[u8], out: &mut BytesMut) -> Result<(), HelloError> {
        if self.done {
            out.extend_from_slice(input);
            return Ok(());
        }
        self.held.extend_from_slice(input);
        while !self.held.is_empty() && self.step(out)? {}
        Ok(())
    }

    /// One record, or a part of one; false if more bytes are needed.
    fn step(&mut self, out: &mut BytesMut) -> Result<bool, HelloError> {
        if self.done {
            out.extend_from_slice(&self.held.split());
            return Ok(false);
        }
        if self.passing > 0 {
            let count = self.passing.min(self.held.len());
            out.extend_from_slice(&self.held.split_to(count));
            self.passing -= count;
            return Ok(true);
        }
        let (Some(kind), Some(header)) = (self.held.first().copied(), self.held.get(3..5)) else {
            // Less than a header: hold it, unless its first byte already settles the matter.
            return Ok(self.settle());
        };
        let mut header = header;
        let length = usize::from(header.get_u16());
        match kind {
            CHANGE_CIPHER_SPEC => self.passing = 5 + length,
            APPLICATION_DATA if self.early_data => self.passing = 5 + length,
            HANDSHAKE => match self.held.get(5) {
                None if length > 0 => return Ok(false),
                Some(&CLIENT_HELLO) if length > 0 => return self.second_hello(out),
                _ => self.done = true,
            },
            _ => self.done = true,
        }
        Ok(true)
    }

    fn settle(&mut self) -> bool {
        let open = match self.held.first() {
            Some(&CHANGE_CIPHER_SPEC | &HANDSHAKE) | None => true,
            Some(&APPLICATION_DATA) => self.early_data,
            Some(_) => false,
        };
        self.done = !open;
        self.done
    }

    fn second_hello(&mut self, out: &mut BytesMut) -> Result<bool, HelloError> {
        let Some(hello) = parse(&self.held)? else { return Ok(false) };
        if hello.server_name != self.name {
            return Err(HelloError::NameChanged);
        }
        out.extend_from_slice(&self.held.split_to(hello.length));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;
    use proptest::prelude::*;

    const CCS: [u8; 6] = [20, 3, 3, 0, 1, 1];

    fn data(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![23, 3, 3];
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
        out
    }

    fn name(text: &str) -> Option<HostName> {
        Some(HostName::parse(text.as_bytes()).unwrap())
    }

    /// Feeds in pieces; gives what came through and whether the watch is over.
    fn run(watch: &mut Watch, input: &[u8], piece: usize) -> Result<Vec<u8>, HelloError> {
        let mut out = BytesMut::new();
        for part in input.chunks(piece.max(1)) {
            watch.push(part, &mut out)?;
        }
        Ok(out.to_vec())
    }

    #[test]
    fn a_second_hello_of_another_name_gets_no_byte_through() {
        let second = Sample::named("evil.example").bytes();
        let mut input = CCS.to_vec();
        input.extend(&second);
        let mut watch = Watch::new(name("good.example"), false);
        let mut out = BytesMut::new();
        assert_eq!(watch.push(&input, &mut out), Err(HelloError::NameChanged));
        assert_eq!(&out[..], CCS);
        let mut watch = Watch::new(name("good.example"), false);
        assert_eq!(run(&mut watch, &Sample::default().bytes(), 7), Err(HelloError::NameChanged));
    }

    #[test]
    fn early_data_does_not_end_the_watch() {
        let mut input = data(b"GET / early");
        input.extend(Sample::named("evil.example").bytes());
        assert_eq!(run(&mut Watch::new(name("good.example"), true), &input, 3), Err(HelloError::NameChanged));
    }

    #[test]
    fn the_watch_ends_when_the_handshake_has_moved_on() {
        let mut watch = Watch::new(name("good.example"), false);
        let mut input = CCS.to_vec();
        input.extend(data(b"finished"));
        assert_eq!(run(&mut watch, &input, 1000).unwrap(), input);
        assert!(watch.is_done());
        // TLS 1.2: the client's next handshake message is its key exchange.
        let mut watch = Watch::new(name("good.example"), false);
        let key_exchange = [22, 3, 3, 0, 5, 16, 0, 0, 1, 9];
        assert_eq!(run(&mut watch, &key_exchange, 1).unwrap(), key_exchange);
        assert!(watch.is_done());
    }

    proptest! {
        #[test]
        fn the_same_name_passes_unchanged(piece in 1usize..700, early: bool, ccs: bool, tail in proptest::collection::vec(any::<u8>(), 0..50)) {
            let mut input = if ccs { CCS.to_vec() } else { vec![] };
            input.extend(Sample::named("Good.Example.").bytes());
            input.extend(data(&tail));
            let mut watch = Watch::new(name("good.example"), early);
            prop_assert_eq!(run(&mut watch, &input, piece).unwrap(), input);
        }

        #[test]
        fn whatever_passes_is_a_prefix_of_what_came(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..50, early: bool) {
            let mut watch = Watch::new(None, early);
            let mut out = BytesMut::new();
            for part in bytes.chunks(piece) {
                if watch.push(part, &mut out).is_err() { break; }
            }
            prop_assert!(bytes.starts_with(&out));
        }
    }
}
