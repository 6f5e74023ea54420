use super::*;
use meridian_proxy_config::{HashPolicy, HashSource};

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn policy(source: HashSource) -> HashPolicy {
    HashPolicy { source, terminal: false }
}

fn header(name: &str) -> HashPolicy {
    policy(HashSource::Header(name.into()))
}

fn cookie_policy(made: Option<u64>, path: Option<&str>) -> HashPolicy {
    policy(HashSource::Cookie { name: "c".into(), made_for_seconds: made, path: path.map(str::to_owned) })
}

fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
    of.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn hashed(policies: &[HashPolicy], of: &[(&'static str, &'static str)], uri: &str) -> Hashed {
    Hashing::compile(policies).unwrap().of_request(&headers(of), &uri.parse().unwrap(), FROM, || 7)
}

fn hash(policies: &[HashPolicy], of: &[(&'static str, &'static str)], uri: &str) -> Option<u64> {
    hashed(policies, of, uri).hash
}

/// By libstdc++'s `std::hash<std::string>`, which is this function with this seed.
#[test]
fn murmur_is_the_one_that_others_have() {
    for (text, expected) in [
        ("", 6_142_509_188_972_423_790),
        ("a", 4_993_892_634_952_068_459),
        ("hello", 2_762_169_579_135_187_400),
        ("12345678", 10_113_836_418_918_046_885),
        ("east|10.0.0.1:80|0_17", 3_983_014_675_493_061_913),
        ("0123456789abcdef0123", 17_026_810_304_730_370_165),
    ] {
        assert_eq!(murmur2(text.as_bytes()), expected, "{text:?}");
    }
}

/// From xxHash's own test vectors.
#[test]
fn xx_is_the_one_that_others_have() {
    assert_eq!(xx(b"", 0), 0xef46_db37_51d8_e999);
    assert_eq!(xx(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
}

#[test]
fn each_source_gives_the_hash_of_its_value() {
    let of = |value: &str| Some(xx(value.as_bytes(), 0));
    let query = policy(HashSource::QueryParameter("q".into()));
    for (policies, headers, uri, expected) in [
        (header("x-user"), vec![("x-user", "ann")], "/", of("ann")),
        (header("x-user"), vec![("x-users", "ann")], "/", None),
        (cookie_policy(None, None), vec![("cookie", "a=b; c=d; e=f")], "/", of("d")),
        (cookie_policy(None, None), vec![("cookie", "a=b"), ("cookie", " c=\"d\" ")], "/", of("d")),
        (cookie_policy(None, None), vec![("cookie", "cc=d; c=")], "/", None),
        (policy(HashSource::SourceIp), vec![], "/", of("10.0.0.1")),
        (query.clone(), vec![], "/?p=1&q=2&q=3", of("2")),
        (query.clone(), vec![], "/?p=q", None),
        (query.clone(), vec![], "/?q", of("")),
        (query, vec![], "/", None),
    ] {
        assert_eq!(
            hash(std::slice::from_ref(&policies), &headers, uri),
            expected,
            "{policies:?} {headers:?}"
        );
    }
    let both = [("x-user", "a"), ("x-user", "b")];
    let turned = [("x-user", "b"), ("x-user", "a")];
    assert_eq!(hash(&[header("x-user")], &both, "/"), hash(&[header("x-user")], &turned, "/"));
}

#[test]
fn a_mapped_address_is_the_one_that_it_maps() {
    let hashing = Hashing::compile(&[policy(HashSource::SourceIp)]).unwrap();
    let mapped = "::ffff:10.0.0.1".parse().unwrap();
    assert_eq!(hashing.of_connection(mapped), hashing.of_connection(FROM));
    let others = Hashing::compile(&[header("x-user")]).unwrap();
    assert_eq!(others.of_connection(FROM), None, "what is no HTTP has no headers");
}

#[test]
fn policies_add_up_until_a_terminal_one_has_a_hash() {
    let terminal = HashPolicy { terminal: true, ..header("a") };
    let (one, two) = (xx(b"1", 0), xx(b"2", 0));
    let both = [("a", "1"), ("b", "2")];
    assert_eq!(hash(&[header("a"), header("b")], &both, "/"), Some(one.rotate_left(1) ^ two));
    assert_ne!(hash(&[header("b"), header("a")], &both, "/"), hash(&[header("a"), header("b")], &both, "/"));
    assert_eq!(hash(&[terminal.clone(), header("b")], &both, "/"), Some(one));
    assert_eq!(hash(&[terminal.clone(), header("b")], &[("b", "2")], "/"), Some(two), "it had none");
    let late = HashPolicy { terminal: true, ..header("none") };
    assert_eq!(hash(&[header("a"), late, header("b")], &both, "/"), Some(one), "there is one from before");
}

#[test]
fn a_cookie_is_made_only_if_asked_for_and_not_there() {
    let made = |seconds, path, of: &[(&'static str, &'static str)]| {
        let hashed = hashed(&[cookie_policy(seconds, path)], of, "/");
        let cookies: Vec<_> = hashed.cookies.iter().map(|it| it.to_str().unwrap().to_owned()).collect();
        (hashed.hash, cookies)
    };
    let value = "0000000000000007";
    let lot = Some(xx(value.as_bytes(), 0));
    assert_eq!(made(None, Some("/"), &[]), (None, vec![]));
    assert_eq!(made(Some(60), None, &[("cookie", "c=d")]), (Some(xx(b"d", 0)), vec![]));
    for (seconds, path, attributes) in
        [(60, Some("/a"), "; Max-Age=60; Path=/a; HttpOnly"), (0, None, "; HttpOnly")]
    {
        assert_eq!(made(Some(seconds), path, &[]), (lot, vec![format!("c={value}{attributes}")]));
    }
    // Who comes back with it comes to the same place.
    assert_eq!(hash(&[cookie_policy(Some(60), None)], &[("cookie", "c=0000000000000007")], "/"), lot);
}

#[test]
fn what_would_break_a_header_is_refused() {
    for wrong in [
        header("x user"),
        header(""),
        cookie_policy(Some(1), Some("/\r\nset-cookie: a=b")),
        policy(HashSource::Cookie { name: "a;b".into(), made_for_seconds: None, path: None }),
    ] {
        assert!(Hashing::compile(std::slice::from_ref(&wrong)).is_err(), "{wrong:?}");
    }
}
