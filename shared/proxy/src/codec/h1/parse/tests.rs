use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Option<RequestHead>, Error> {
    request(&mut BytesMut::from(text), &mut Partial::default())
}

fn answer(text: &str, method: Method) -> Result<Option<ResponseHead>, Error> {
    response(&mut BytesMut::from(text), &mut Partial::default(), &method)
}

fn answered(fields: &str) -> Option<(Framing, bool)> {
    let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    answer(&text, Method::GET).ok().flatten().map(|head| (head.framing, head.keep))
}

#[test]
fn a_request_is_what_it_says() {
    let text =
        "POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nx-two: \u{e4} \r\nContent-Length: 3\r\n\r\nabc";
    let mut buffer = BytesMut::from(text);
    let RequestHead { request, framing, keep } =
        request(&mut buffer, &mut Partial::default()).unwrap().unwrap();
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "/a?b=c"));
    let two: Vec<_> = request.headers().get_all("x-two").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(two, [b"1".as_slice(), "\u{e4}".as_bytes()]);
    assert_eq!((framing, keep, &buffer[..]), (Framing::Length(3), true, b"abc".as_slice()));
}

#[test]
fn who_keeps_the_connection_says_so() {
    for (line, fields, kept) in [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: Close\r\n", false),
        ("HTTP/1.1", "Connection: x, close\r\n", false),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let head = read(&format!("GET / {line}\r\nHost: a\r\n{fields}\r\n")).unwrap().unwrap();
        assert_eq!(head.keep, kept, "{line} {fields}");
    }
}

#[test]
fn an_answers_length_is_told_in_one_way() {
    let length = |length| Some((Framing::Length(length), true));
    for (fields, expected) in [
        ("Content-Length: 3\r\n", length(3)),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", None),
        ("Transfer-Encoding: chunked\r\n", Some((Framing::Chunked, true))),
        ("", Some((Framing::End, false))),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", None),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", None),
        ("Content-Length: 3, 3\r\n", None),
        ("Content-Length: +3\r\n", None),
        ("Transfer-Encoding: gzip, chunked\r\n", None),
        ("Transfer-Encoding: gzip\r\n", None),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", None),
        ("X : 1\r\n", None),
        ("X: 1\r\n 2\r\n", None),
    ] {
        assert_eq!(answered(fields), expected, "{fields}");
    }
    // Whatever it says of one, there is no body.
    let said = "Content-Length: 3\r\n\r\n";
    for framed in [said, "Transfer-Encoding: chunked\r\n\r\n"] {
        assert!(answer(&format!("HTTP/1.1 204 No Content\r\n{framed}"), Method::GET).is_err(), "{framed}");
    }
    let none = answer("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Method::GET).unwrap().unwrap();
    assert_eq!((none.framing, none.keep), (Framing::Length(0), true));
    for (line, method) in [
        ("HTTP/1.1 304 Not Modified\r\n", Method::GET),
        ("HTTP/1.1 100 Continue\r\n", Method::GET),
        ("HTTP/1.1 200 OK\r\n", Method::HEAD),
    ] {
        let head = answer(&format!("{line}{said}"), method).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(0), "{line}");
    }
}

#[test]
fn a_requests_length_is_told_in_one_way() {
    for (fields, expected) in [
        ("Content-Length: 3\r\n", Some(Framing::Length(3))),
        ("Transfer-Encoding: chunked\r\n", Some(Framing::Chunked)),
        ("", Some(Framing::Length(0))),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", None),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", None),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", None),
        ("Content-Length: 3\r\nContent-Length: 03\r\n", None),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", None),
    ] {
        let head = read(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(head.ok().flatten().map(|head| head.framing), expected, "{fields}");
    }
}

#[test]
fn heads_have_an_end() {
    let mut buffer = BytesMut::from("GET / HTTP/1.1\r\n");
    let mut partial = Partial::default();
    let error = loop {
        buffer.extend_from_slice(
            b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n",
        );
        match request(&mut buffer, &mut partial) {
            Ok(head) => assert!(head.is_none()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::LargeHead), "{error}");
    let many = "x: y\r\n".repeat(MAX_FIELDS + 1);
    assert!(matches!(read(&format!("GET / HTTP/1.1\r\n{many}\r\n")), Err(Error::LargeHead)));
}

fn heads() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("GET / HTTP/1.1\r\n".to_owned()),
        Just("POST http://a/b HTTP/1.1\r\n".to_owned()),
        Just("HTTP/1.1 200 OK\r\n".to_owned()),
        "[A-Z]{1,4} [/a-z?*:]{1,6} HTTP/1\\.[01]\r\n",
    ];
    let field = prop_oneof![
        Just("Host: a\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        "Content-Length: [0-9]{0,2}\r\n",
        "[a-zA-Z -]{0,4}:[ a-z,]{0,6}\r?\n",
    ];
    (line, proptest::collection::vec(field, 0..5))
        .prop_map(|(line, fields)| format!("{line}{}\r\n", fields.concat()))
}

type Told = Option<(Option<(Method, Uri, HeaderMap, Framing, bool)>, Vec<u8>)>;

/// What comes of bytes that come in pieces of these sizes.
fn in_pieces(bytes: &[u8], mut size: impl FnMut() -> usize) -> Told {
    let (mut buffer, mut partial, mut rest) = (BytesMut::new(), Partial::default(), bytes);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(size().clamp(1, rest.len()));
        buffer.extend_from_slice(now);
        rest = later;
        if let Some(RequestHead { request, framing, keep }) = request(&mut buffer, &mut partial).ok()? {
            let (head, ()) = request.into_parts();
            let left = [&buffer[..], rest].concat();
            return Some((Some((head.method, head.uri, head.headers, framing, keep)), left));
        }
    }
    Some((None, buffer.to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_make_no_difference(head in heads(), body in proptest::collection::vec(any::<u8>(), 0..20), sizes in proptest::collection::vec(1..9usize, 1..5)) {
        let bytes = [head.as_bytes(), &body].concat();
        let mut turn = sizes.iter().cycle();
        prop_assert_eq!(in_pieces(&bytes, || *turn.next().unwrap()), in_pieces(&bytes, || usize::MAX));
    }

    #[test]
    fn any_bytes_come_to_something(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(request(&mut BytesMut::from(&bytes[..]), &mut Partial::default()));
        drop(response(&mut BytesMut::from(&bytes[..]), &mut Partial::default(), &Method::GET));
    }
}
