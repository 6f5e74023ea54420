use super::*;
use proptest::{collection::vec, prelude::*};

/// What a body says that comes in pieces of these sizes: its data, its trailers, and what is left behind it; `None`: it is no
/// body, or not whole.
fn decoded(
    framing: Framing,
    bytes: &[u8],
    mut size: impl FnMut() -> usize,
) -> Option<(Vec<u8>, usize, Vec<u8>)> {
    let (mut decoder, mut buffer, mut rest) = (Decoder::from(framing), BytesMut::new(), bytes);
    let (mut data, mut trailers) = (Vec::new(), 0);
    while !decoder.is_done() {
        match decoder.next(&mut buffer).ok()? {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::Trailers(map) => trailers = map.len(),
            Piece::End => {}
            Piece::More => {
                if rest.is_empty() {
                    return None;
                }
                let (now, later) = rest.split_at(size().clamp(1, rest.len()));
                buffer.extend_from_slice(now);
                rest = later;
            }
        }
    }
    Some((data, trailers, [&buffer[..], rest].concat()))
}

fn chunked(text: &str) -> Option<(String, usize, String)> {
    let text_of = |bytes| String::from_utf8(bytes).unwrap();
    decoded(Framing::Chunked, text.as_bytes(), || usize::MAX)
        .map(|(data, count, rest)| (text_of(data), count, text_of(rest)))
}

#[test]
fn chunks_are_what_they_say_and_nothing_else() {
    let whole = |data: &str, trailers, rest: &str| Some((data.to_owned(), trailers, rest.to_owned()));
    for (text, expected) in [
        ("3\r\nabc\r\n0\r\n\r\nnext", whole("abc", 0, "next")),
        ("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", whole("abc", 0, "")),
        ("3;x=\"y\"\r\nabc\r\n0\r\n\r\n", whole("abc", 0, "")),
        ("3 \r\nabc\r\n0\r\n\r\n", whole("abc", 0, "")),
        ("3 ; x\r\nabc\r\n0\r\n\r\n", whole("abc", 0, "")),
        ("3 0\r\nabc\r\n0\r\n\r\n", None),
        ("0A\r\n0123456789\r\n0\r\n\r\n", whole("0123456789", 0, "")),
        ("0\r\nX: 1\r\nY: 2\r\n\r\nnext", whole("", 2, "next")),
        // What would change the head's meaning is left out.
        ("0\r\nContent-Length: 1\r\nHost: b\r\nCookie: c\r\nX: 1\r\n\r\n", whole("", 1, "")),
        ("3\nabc\r\n0\r\n\r\n", None),
        ("3\r\nabc\n0\r\n\r\n", None),
        ("3\r\nabcd\r\n0\r\n\r\n", None),
        ("3\r\nabc0\r\n\r\n", None),
        ("+3\r\nabc\r\n0\r\n\r\n", None),
        ("-3\r\nabc\r\n0\r\n\r\n", None),
        ("0x3\r\nabc\r\n0\r\n\r\n", None),
        ("\r\nabc\r\n0\r\n\r\n", None),
        ("3;x\ny\r\nabc\r\n0\r\n\r\n", None),
        ("11111111111111111\r\na", None),
        ("0\r\nX 1\r\n\r\n", None),
        ("0\r\nX: 1\n\n", None),
        ("0\n\n", None),
    ] {
        assert_eq!(chunked(text), expected, "{text:?}");
    }
}

/// What follows a mistake is no body either, whatever it looks like.
#[test]
fn a_mistake_is_for_ever() {
    for text in ["+3\r\nabc\r\n0\r\n\r\n", "\n3\r\nabc\r\n0\r\n\r\n", "0\r\nX 1\r\n\r\n0\r\n\r\n"] {
        let (mut decoder, mut buffer) = (Decoder::from(Framing::Chunked), BytesMut::from(text));
        for _ in 0..3 {
            assert!(matches!(decoder.next(&mut buffer), Err(Error::Body)), "{text:?}");
        }
        assert!(!decoder.is_done() && !decoder.ended());
    }
}

#[test]
fn what_nobody_reads_is_bounded() {
    let extensions = format!("1;{}\r\na\r\n", "x".repeat(1_000)).repeat(20);
    assert_eq!(chunked(&format!("{extensions}0\r\n\r\n")), None);
    let trailers =
        "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(90);
    assert!(chunked(&format!("0\r\n{trailers}\r\n")).is_some());
    let long = format!("X: {}\r\n", "y".repeat(MAX_TRAILERS));
    assert_eq!(chunked(&format!("0\r\n{long}\r\n")), None);
}

#[test]
fn the_end_of_a_connection_is_the_end_of_one_kind_only() {
    for (framing, is_end) in [
        (Framing::Length(0), true),
        (Framing::End, true),
        (Framing::Length(1), false),
        (Framing::Chunked, false),
    ] {
        let mut decoder = Decoder::from(framing);
        assert_eq!(decoder.ended(), is_end);
        assert_eq!(decoder.is_done(), is_end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_make_no_difference(chunks in vec(vec(any::<u8>(), 1..30), 0..5), cut in any::<prop::sample::Index>(), sizes in vec(1..9usize, 1..5), change in any::<u8>()) {
        let mut bytes = Vec::new();
        for chunk in &chunks {
            bytes.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
        }
        bytes.extend(b"0\r\n\r\nnext");
        let whole = decoded(Framing::Chunked, &bytes, || usize::MAX);
        prop_assert_eq!(whole, Some((chunks.concat(), 0, b"next".to_vec())));
        // Also where a byte of it is wrong.
        let at = cut.index(bytes.len());
        bytes[at] = change;
        let mut turn = sizes.iter().cycle();
        prop_assert_eq!(decoded(Framing::Chunked, &bytes, || *turn.next().unwrap()), decoded(Framing::Chunked, &bytes, || usize::MAX));
    }

    #[test]
    fn any_bytes_come_to_something(bytes in vec(any::<u8>(), 0..200), length in 0..300u64) {
        for framing in [Framing::Chunked, Framing::Length(length), Framing::End] {
            drop(decoded(framing, &bytes, || usize::MAX));
        }
    }
}
