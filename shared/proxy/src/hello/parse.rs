use crate::host::HostName;

/// Most bytes of one hello, record headers included. Real ones are 0.2 to 2 KiB (post-quantum shares).
pub const MAX_HELLO: usize = 64 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Longest plaintext record (RFC 8446, 5.1).
const MAX_RECORD: usize = 1 << 14;

const SERVER_NAME: u16 = 0;
const EARLY_DATA: u16 = 42;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What a ClientHello says, as far as it concerns where the connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// Normalised. With ECH: the outer name.
    pub server_name: Option<HostName>,
    /// The real name may be hidden inside; only the outer one can be held to anything.
    pub ech: bool,
    /// 0-RTT data may come before a second hello.
    pub early_data: bool,
    /// Bytes on the wire, record headers included.
    pub length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("not a TLS ClientHello")]
    NotTls,
    #[error("ClientHello longer than {MAX_HELLO} bytes")]
    TooLong,
    #[error("malformed ClientHello: {0}")]
    Malformed(&'static str),
    #[error("invalid server name")]
    InvalidName,
    #[error("the second ClientHello names another server than the first")]
    NameChanged,
}

/// How the first bytes of a connection look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A ClientHello, as far as five or six bytes can tell.
    Tls,
    Other,
    /// Both still possible.
    Undecided,
}

/// Tells a ClientHello by its first bytes.
///
/// A hello in SSLv2 framing counts as one too: it can carry no name, so it is refused wherever a name is needed, and
/// can't be the way around that.
pub fn opening(bytes: &[u8]) -> Opening {
    fn prefix(bytes: &[u8], accept: &[fn(u8) -> bool]) -> Opening {
        if !bytes.iter().zip(accept).all(|(byte, accept)| accept(*byte)) {
            Opening::Other
        } else if bytes.len() < accept.len() {
            Opening::Undecided
        } else {
            Opening::Tls
        }
    }
    let tls = prefix(
        bytes,
        &[
            |b| b == HANDSHAKE,
            |b| b == 3,
            // Servers don't look at the minor version of a first record, so neither may this.
            |_| true,
            |b| b <= (MAX_RECORD >> 8) as u8,
            |_| true,
            |b| b == CLIENT_HELLO,
        ],
    );
    let v2 = prefix(bytes, &[|b| b & 0x80 != 0, |_| true, |b| b == CLIENT_HELLO, |b| b == 3, |b| b <= 4]);
    match (tls, v2) {
        (Opening::Other, other) | (other, Opening::Other) => other,
        (first, _) => first,
    }
}

/// What [`read`] made of some first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    Hello(ClientHello),
    /// At least so many more bytes are needed. Whoever waits for them before it tries again does work in
    /// proportion to the hello, not to its square, however thin a client slices it.
    Missing(usize),
}

/// Reads the hello at the start of `bytes`; `None` while it is incomplete.
pub fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    read(bytes).map(|parsed| match parsed {
        Parsed::Hello(hello) => Some(hello),
        Parsed::Missing(_) => None,
    })
}

/// Like [`parse`], and says how much is missing.
pub fn read(bytes: &[u8]) -> Result<Parsed, HelloError> {
    match handshake_message(bytes)? {
        Message::Missing(count) if bytes.len() + count > MAX_HELLO => Err(HelloError::TooLong),
        Message::Missing(count) => Ok(Parsed::Missing(count)),
        Message::Whole { body: message, length } => {
            let mut hello = body(&message)?;
            hello.length = length;
            Ok(Parsed::Hello(hello))
        }
    }
}

enum Message {
    Whole { body: Vec<u8>, length: usize },
    Missing(usize),
}

/// Joins the fragments of the first handshake message; gives its body and the bytes it took on the wire.
fn handshake_message(bytes: &[u8]) -> Result<Message, HelloError> {
    let mut message = Vec::new();
    let mut input = Reader(bytes);
    let mut missing = 1;
    loop {
        let first = input.0.len() == bytes.len();
        if !check_header(input.0, first)? {
            return Ok(Message::Missing(missing));
        }
        let Some(header) = input.take(5) else { return Ok(Message::Missing(missing)) };
        let length = usize::from(u16_of(header.get(3..5)));
        let fragment = input.take(length);
        message.extend_from_slice(fragment.unwrap_or(input.0));
        // The type and the length are known before the whole is here: refuse early.
        let wanted = match message.get(..4) {
            Some([kind, ..]) if *kind != CLIENT_HELLO => return Err(HelloError::NotTls),
            Some(head) => Some(4 + u24_of(head.get(1..4))),
            None => None,
        };
        if wanted.is_some_and(|wanted| wanted > MAX_HELLO) {
            return Err(HelloError::TooLong);
        }
        missing = wanted.map_or(1, |wanted| wanted.saturating_sub(message.len())).max(1);
        if fragment.is_none() {
            return Ok(Message::Missing(missing));
        }
        let used = bytes.len() - input.0.len();
        if used > MAX_HELLO {
            return Err(HelloError::TooLong);
        }
        match wanted {
            Some(wanted) if message.len() == wanted => {
                message.drain(..4);
                return Ok(Message::Whole { body: message, length: used });
            }
            // Nothing may share a record with a ClientHello: keys change after it, or an answer is due.
            Some(wanted) if message.len() > wanted => {
                return Err(HelloError::Malformed("bytes after it in its record"));
            }
            _ => {}
        }
    }
}

/// Whether the five bytes of a record header are there; an error as soon as one of them is wrong.
fn check_header(bytes: &[u8], first: bool) -> Result<bool, HelloError> {
    let wrong =
        if first { HelloError::NotTls } else { HelloError::Malformed("another record in the middle") };
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) || bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(wrong);
    }
    if bytes.len() < 5 {
        return Ok(false);
    }
    match usize::from(u16_of(bytes.get(3..5))) {
        0 => Err(HelloError::Malformed("empty record")),
        length if length > MAX_RECORD => Err(HelloError::Malformed("record too long")),
        _ => Ok(true),
    }
}

fn body(message: &[u8]) -> Result<ClientHello, HelloError> {
    const SHORT: HelloError = HelloError::Malformed("truncated");
    let mut input = Reader(message);
    let version = input.u16().ok_or(SHORT)?;
    if version >> 8 != 3 {
        return Err(HelloError::Malformed("version"));
    }
    input.take(32).ok_or(SHORT)?;
    let session = input.prefixed8().ok_or(SHORT)?;
    if session.0.len() > 32 {
        return Err(HelloError::Malformed("session id"));
    }
    let suites = input.prefixed16().ok_or(SHORT)?;
    if suites.0.is_empty() || suites.0.len() % 2 != 0 {
        return Err(HelloError::Malformed("cipher suites"));
    }
    let compressions = input.prefixed8().ok_or(SHORT)?;
    if compressions.0.is_empty() {
        return Err(HelloError::Malformed("compression methods"));
    }
    let mut hello = ClientHello { server_name: None, ech: false, early_data: false, length: 0 };
    if input.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = input.prefixed16().ok_or(SHORT)?;
    if !input.0.is_empty() {
        return Err(HelloError::Malformed("bytes after the extensions"));
    }
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.u16().ok_or(SHORT)?;
        let data = extensions.prefixed16().ok_or(SHORT)?;
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(data)?),
            EARLY_DATA => hello.early_data = true,
            ENCRYPTED_CLIENT_HELLO => hello.ech = true,
            _ => {}
        }
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != count {
        return Err(HelloError::Malformed("an extension twice"));
    }
    Ok(hello)
}

/// The one `host_name` of the list (RFC 6066, 3). Other name types were never defined; a second name is a trick.
fn server_name(mut data: Reader<'_>) -> Result<HostName, HelloError> {
    let mut list = data.prefixed16().ok_or(HelloError::InvalidName)?;
    let kind = list.u8().ok_or(HelloError::InvalidName)?;
    let name = list.prefixed16().ok_or(HelloError::InvalidName)?;
    if kind != 0 || !list.0.is_empty() || !data.0.is_empty() {
        return Err(HelloError::InvalidName);
    }
    HostName::parse(name.0).map_err(|_| HelloError::InvalidName)
}

/// A cursor over bytes: every read says whether there was enough.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16_of(Some(bytes)))
    }

    fn prefixed8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(usize::from(length)).map(Self)
    }

    fn prefixed16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(usize::from(length)).map(Self)
    }
}

fn u16_of(bytes: Option<&[u8]>) -> u16 {
    bytes.unwrap_or_default().iter().fold(0, |sum, byte| (sum << 8) | u16::from(*byte))
}

fn u24_of(bytes: Option<&[u8]>) -> usize {
    bytes.unwrap_or_default().iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Sample, records};
    use super::*;
    use proptest::prelude::*;

    fn name(bytes: &[u8]) -> Result<Option<String>, HelloError> {
        parse(bytes).map(|hello| hello.expect("complete").server_name.map(|name| name.to_string()))
    }

    #[test]
    fn a_hello_of_rustls_is_read() {
        let bytes = super::super::samples::rustls_hello("api.example.com");
        let hello = parse(&bytes).unwrap().unwrap();
        assert_eq!(hello.server_name.unwrap().as_str(), "api.example.com");
        assert_eq!(hello.length, bytes.len());
        assert_eq!(opening(&bytes), Opening::Tls);
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(name(&Sample::named("API.Example.com.").bytes()), Ok(Some("api.example.com".into())));
        assert_eq!(name(&Sample::default().bytes()), Ok(None));
    }

    #[test]
    fn invalid_and_duplicate_names_are_refused() {
        for bad in ["", ".", "a..b", "127.0.0.1", "::1", "a b", "exa\0mple.com", "*.example.com"] {
            assert_eq!(name(&Sample::named(bad).bytes()), Err(HelloError::InvalidName), "{bad:?}");
        }
        let twice = Sample::default().extension(0, sni_list(&[(0, "a.example"), (0, "b.example")]));
        assert_eq!(name(&twice.bytes()), Err(HelloError::InvalidName));
        let other_type = Sample::default().extension(0, sni_list(&[(1, "a.example")]));
        assert_eq!(name(&other_type.bytes()), Err(HelloError::InvalidName));
        let extension_twice = Sample::named("a.example").extension(0, sni_list(&[(0, "b.example")]));
        assert_eq!(name(&extension_twice.bytes()), Err(HelloError::Malformed("an extension twice")));
        let empty = Sample::default().extension(0, vec![]);
        assert_eq!(name(&empty.bytes()), Err(HelloError::InvalidName));
    }

    #[test]
    fn grease_and_ech_are_normal() {
        let bytes = Sample::named("outer.example")
            .extension(0x0a0a, vec![])
            .extension(0xfe0d, vec![0; 90])
            .extension(0x3a3a, vec![0])
            .bytes();
        let hello = parse(&bytes).unwrap().unwrap();
        assert!(hello.ech);
        assert_eq!(hello.server_name.unwrap().as_str(), "outer.example");
    }

    #[test]
    fn broken_lengths_are_errors() {
        let whole = Sample::named("a.example").message();
        for cut in 4..whole.len() {
            // A message that is shorter than what it holds: the length fields inside no longer fit.
            let mut message = whole[..cut].to_vec();
            let length = (message.len() - 4) as u32;
            message[1..4].copy_from_slice(&length.to_be_bytes()[1..]);
            match parse(&records(&message, 16_384)) {
                Err(HelloError::Malformed(_)) => {}
                Ok(Some(hello)) => assert_eq!(hello.server_name, None, "cut at {cut}"),
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }

    #[test]
    fn records_are_held_to_their_format() {
        let message = Sample::named("a.example").message();
        let mut with_alert = records(&message[..20], 20);
        with_alert.extend([21, 3, 3, 0, 2, 1, 0]);
        with_alert.extend(records(&message[20..], 16_384));
        assert_eq!(parse(&with_alert), Err(HelloError::Malformed("another record in the middle")));
        let mut empty = vec![22, 3, 1, 0, 0];
        empty.extend(records(&message, 16_384));
        assert_eq!(parse(&empty), Err(HelloError::Malformed("empty record")));
        let mut trailing = message.clone();
        trailing.push(0);
        assert_eq!(
            parse(&records(&trailing, 16_384)),
            Err(HelloError::Malformed("bytes after it in its record"))
        );
        assert_eq!(parse(&[22, 3, 1, 0x40, 1]), Err(HelloError::Malformed("record too long")));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(HelloError::NotTls));
        assert_eq!(parse(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Err(HelloError::NotTls));
    }

    #[test]
    fn too_long_is_refused_as_soon_as_it_is_announced() {
        assert_eq!(parse(&[22, 3, 1, 0, 100, 1, 1, 0, 0]), Err(HelloError::TooLong));
        // One byte a record: the headers count too.
        let message = Sample::named("a.example").extension(21, vec![0; 20_000]).message();
        assert_eq!(parse(&records(&message, 1)), Err(HelloError::TooLong));
    }

    #[test]
    fn openings() {
        assert_eq!(opening(&[]), Opening::Undecided);
        assert_eq!(opening(&[22]), Opening::Undecided);
        assert_eq!(opening(&[22, 3, 1, 2, 0, 1]), Opening::Tls);
        assert_eq!(opening(&[22, 3, 1, 2, 0, 2]), Opening::Other);
        assert_eq!(opening(b"GET /"), Opening::Other);
        assert_eq!(opening(&[0x80, 0x2e, 1, 3, 1]), Opening::Tls);
        assert_eq!(parse(&[0x80, 0x2e, 1, 3, 1]), Err(HelloError::NotTls));
    }

    fn sni_list(names: &[(u8, &str)]) -> Vec<u8> {
        super::super::samples::sni_list(names)
    }

    proptest! {
        /// However the message is cut into records, and whatever follows, the answer is the same; and no prefix of it
        /// gives an answer.
        #[test]
        fn framing_does_not_matter(host in "[a-z]{1,20}\\.example", record in 1usize..600, rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let framed = records(&Sample::named(&host).message(), record);
            let length = framed.len();
            for cut in 0..length {
                prop_assert_eq!(parse(&framed[..cut]), Ok(None));
            }
            let mut followed = framed;
            followed.extend(rest);
            let hello = parse(&followed).unwrap().unwrap();
            prop_assert_eq!(hello.length, length);
            prop_assert_eq!(hello.server_name.unwrap().to_string(), host);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&bytes);
            fuzz(&records(&bytes, 16_384));
        }

        /// One changed byte of a good hello: an answer may differ, a wrong length may not.
        #[test]
        fn a_changed_byte_never_reads_past_the_message(at in 0usize..200, value: u8) {
            let mut bytes = Sample::named("api.example.com").extension(0xfe0d, vec![1; 60]).bytes();
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            fuzz(&bytes);
        }
    }

    /// The body of the fuzz target `hello`.
    fn fuzz(bytes: &[u8]) {
        if let Ok(Some(hello)) = parse(bytes) {
            assert!(hello.length <= bytes.len() && hello.length <= MAX_HELLO);
            assert_ne!(opening(bytes), Opening::Other);
            assert_eq!(parse(&bytes[..hello.length]), Ok(Some(hello.clone())));
            assert_eq!(parse(&bytes[..hello.length - 1]), Ok(None));
        }
        if let Ok(Parsed::Missing(count)) = read(bytes) {
            assert!(count > 0 && bytes.len() + count <= MAX_HELLO);
        }
    }
}
