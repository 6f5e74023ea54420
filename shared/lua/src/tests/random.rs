//! Any sequence of calls, with any arguments and any answers, ends in a step or a failure.

use super::*;
use proptest::prelude::*;

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("nil".to_owned()),
        Just("true".to_owned()),
        Just("h".to_owned()),
        Just("{}".to_owned()),
        Just("0/0".to_owned()),
        Just("print".to_owned()),
        (-10i64..2_000_000).prop_map(|number| number.to_string()),
        Just("{[':status'] = 200, x = 'y'}".to_owned()),
        Just("{[':method'] = 'GET', [':path'] = '/', [':authority'] = 'a'}".to_owned()),
        prop::sample::select(vec![
            ":path",
            ":status",
            "x-a",
            "host",
            "content-length",
            "connection",
            "/x",
            "us",
            "\\r\\n",
            ""
        ])
        .prop_map(|text| format!("'{text}'")),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| {
            let escaped: String = bytes.iter().map(|byte| format!("\\{byte:03}")).collect();
            format!("'{escaped}'")
        }),
    ]
}

fn call() -> impl Strategy<Value = String> {
    let of_handle = vec![
        "headers",
        "body",
        "bodyChunks",
        "trailers",
        "respond",
        "httpCall",
        "metadata",
        "streamInfo",
        "connection",
        "logInfo",
        "base64Escape",
        "timestamp",
        "timestampString",
        "clearRouteCache",
        "__entries",
        "nothing",
    ];
    let of_objects = vec![
        "get",
        "getAtIndex",
        "getNumValues",
        "add",
        "replace",
        "remove",
        "setHttp1ReasonPhrase",
        "length",
        "getBytes",
        "setBytes",
        "ssl",
        "dynamicMetadata",
        "set",
        "uriSanPeerCertificate",
        "protocol",
        "__entries",
    ];
    let args = || prop::collection::vec(word(), 0..5).prop_map(|args| args.join(", "));
    (prop::sample::select(of_handle), args(), prop::sample::select(of_objects), args(), 0..4u8).prop_map(
        |(first, args, second, more, how)| match how {
            0 => format!("pcall(function() h:{first}({args}) end)"),
            1 => format!("pcall(function() h:{first}({args}):{second}({more}) end)"),
            2 => format!("pcall(function() for k, v in pairs(h:{first}({args})) do k = v end end)"),
            _ => format!(
                "pcall(function() local x = h:{first}({args}) x:{second}({more}) h:{first}({args}) end)"
            ),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn calls_end(calls in prop::collection::vec(call(), 1..12), has_body: bool, response_: bool) {
        let name = if response_ { "envoy_on_response" } else { "envoy_on_request" };
        let (vm, _) = vm(&format!("function {name}(h)\n{}\nend", calls.join("\n"))).unwrap();
        let (phase, head) =
            if response_ { (Phase::Response, response(200)) } else { (Phase::Request, request(&[("x-a", "1")])) };
        let mut run = run(&vm, phase, head, has_body);
        let mut answer = Answer::Begin;
        for round in 0..100 {
            answer = match run.resume(answer) {
                Err(_) | Ok(Step::Done | Step::Respond(_)) => return Ok(()),
                Ok(Step::Body) => Answer::Body((round % 2 == 0).then(|| Bytes::from_static(b"body"))),
                Ok(Step::Chunk) => Answer::Chunk((round < 3).then(|| Bytes::from_static(b"piece"))),
                Ok(Step::Trailers) => Answer::Trailers((round % 2 == 0).then(HeaderMap::new)),
                Ok(Step::Call(_)) => Answer::Called(reply(503, "")),
            };
        }
        // Each call waits a few times at most.
        prop_assert!(false, "it has not ended");
    }
}
