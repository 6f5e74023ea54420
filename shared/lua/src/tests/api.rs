//! Envoy's API, call by call.

use super::*;

#[test]
fn headers_are_read_and_changed() {
    let head = changed(
        r#"
        local headers = h:headers()
        assert(headers:get("X-One") == "1" and headers:get("none") == nil)
        assert(headers:getNumValues("x-two") == 2 and headers:getAtIndex("x-two", 1) == "b")
        assert(headers:getAtIndex("x-two", 2) == nil and headers:getNumValues(":path") == 1)
        headers:add("x-two", "c")
        headers:replace("x-one", "other")
        headers:replace("x-new", 7)
        headers:remove("x-gone")
        "#,
        &[("x-one", "1"), ("x-two", "a"), ("x-two", "b"), ("x-gone", "!")],
    )
    .unwrap();
    let expected = [("x-one", "other"), ("x-two", "a"), ("x-two", "b"), ("x-two", "c"), ("x-new", "7")];
    let mut found = shown(&head.headers);
    found.sort_by_key(|pair| expected.iter().position(|other| other == pair));
    assert_eq!(found, expected);
}

#[test]
fn all_headers_are_gone_through_even_while_they_change() {
    let lines = said(
        r#"
        for name, value in pairs(h:headers()) do
            h:logInfo(name .. "=" .. value)
            h:headers():add("more", "x")
        end
        "#,
        &[("a", "1"), ("host", "web.mesh:80"), ("b", "2"), ("b", "3")],
    );
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_start_matches("Info: ")).collect();
    let expected =
        [":authority=web.mesh:80", ":path=/a?b=c", ":method=POST", ":scheme=http", "a=1", "b=2", "b=3"];
    assert_eq!(lines, expected);
}

#[test]
fn the_request_line_is_written_with_care() {
    let start = |body: &str| changed(body, &[]).map(|head| head.start);
    let expected = Start::Request {
        method: Method::PUT,
        path: PathAndQuery::from_static("/x?y"),
        authority: Authority::from_static("db.mesh"),
    };
    let all = r#"
        h:headers():replace(":method", "PUT")
        h:headers():replace(":path", "/x?y")
        h:headers():replace("Host", "db.mesh")
    "#;
    assert_eq!(start(all), Ok(expected));
    for wrong in [
        r#":path", "/a b"#,
        r#":path", "http://a/"#,
        r#":path", "/a\r\nx: y"#,
        r#":path", ""#,
        r#":method", "GET /x HTTP/1.1"#,
        r#":method", "CONNECT"#,
        r#":authority", "a@b"#,
        r#":authority", "a b"#,
        r#":authority", ""#,
        r#":status", "200"#,
        r#":scheme", "https"#,
    ] {
        assert!(start(&format!(r#"h:headers():replace("{wrong}")"#)).is_err(), "{wrong}");
    }
    assert!(start(r#"h:headers():add(":path", "/")"#).is_err());
    assert!(start(r#"h:headers():remove(":path")"#).is_err());
}

#[test]
fn nothing_is_smuggled() {
    for wrong in [
        r#"add("x", "a\r\nb: c")"#,
        r#"add("x", "a\nb")"#,
        r#"add("x", "a\0b")"#,
        r#"add("x y", "a")"#,
        r#"add("x:", "a")"#,
        r#"add("", "a")"#,
        r#"replace("connection", "close")"#,
        r#"add("Upgrade", "h2c")"#,
        r#"remove("te")"#,
        r#"replace("keep-alive", "timeout=1")"#,
        r#"add("proxy-connection", "close")"#,
        r#"add("expect", "100-continue")"#,
        r#"add("x", {})"#,
        r#"add("x", nil)"#,
    ] {
        assert!(changed(&format!("h:headers():{wrong}"), &[]).is_err(), "{wrong}");
    }
    let length = [("content-length", "5"), ("transfer-encoding", "chunked")];
    let kept = changed(
        r#"
        h:headers():replace("Content-Length", "50")
        h:headers():add("content-length", "6")
        h:headers():remove("transfer-encoding")
        "#,
        &length,
    );
    assert_eq!(shown(&kept.unwrap().headers), length);
    let many = r#"for i = 1, 1000 do h:headers():add("name" .. i, string.rep("x", 1000)) end"#;
    assert_eq!(changed(many, &[]).unwrap_err().split(": ").last(), Some("headers have at most 49152 bytes"));
}

#[test]
fn an_answer_ends_the_script() {
    let script = r#"
        function envoy_on_request(h)
            pcall(function()
                h:respond({[":status"] = 403, ["Upgrade-Insecure"] = {"1", "2"}, ["Content-Length"] = "99"}, "no " .. "way")
            end)
            h:logErr("not here")
            h:headers():add("a", "b")
        end
    "#;
    let (vm, said) = vm(script).unwrap();
    let expected = Reply {
        status: StatusCode::FORBIDDEN,
        headers: headers(&[("upgrade-insecure", "1"), ("upgrade-insecure", "2")]),
        body: Bytes::from_static(b"no way"),
    };
    let Ok((Step::Respond(found), _)) = through(&vm, request(&[])) else { panic!("no answer") };
    assert_eq!(found, expected);
    assert_eq!(said.0.take(), [""; 0]);
    for wrong in [
        "{}",
        "{[':status'] = '101'}",
        "{[':status'] = '600'}",
        "{[':status'] = 'x'}",
        "{[':status'] = '200', connection = 'close'}",
        "{[':status'] = '200', a = true}",
    ] {
        assert!(changed(&format!("h:respond({wrong}, 'x')"), &[]).is_err(), "{wrong}");
    }
}

#[test]
fn a_body_is_waited_for_and_replaced() {
    let script = r#"
        function envoy_on_request(h)
            local body = h:body()
            h:logInfo(body:length() .. body:getBytes(1, 3))
            assert(not pcall(body.getBytes, body, 0, 6))
            assert(not pcall(body.getBytes, body, -1, 2))
            assert(body:setBytes("more than it was") == 16)
            assert(h:body():length() == 16)
        end
    "#;
    let (vm, said) = vm(script).unwrap();
    let mut run = run(&vm, Phase::Request, request(&[]), true);
    assert!(matches!(run.resume(Answer::Begin), Ok(Step::Body)));
    assert_eq!(run.take_body(), None);
    assert!(matches!(run.resume(Answer::Body(Some(Bytes::from_static(b"hello")))), Ok(Step::Done)));
    assert_eq!(run.take_body(), Some(Bytes::from_static(b"more than it was")));
    assert_eq!(said.0.take(), ["Info: 5ell"]);
    // Without one there is nothing to wait for.
    changed("assert(h:body() == nil) assert(h:body(true):length() == 0)", &[]).unwrap();
}

#[test]
fn a_body_is_followed_piece_by_piece() {
    let script = r#"
        function envoy_on_response(h)
            local pieces = {}
            for piece in h:bodyChunks() do
                table.insert(pieces, piece:getBytes(0, piece:length()))
                assert(not pcall(piece.setBytes, piece, ""))
            end
            assert(not pcall(h.headers(h).get, h:headers(), "x-app"))
            local trailers = h:trailers()
            trailers:replace("sum", h:trailers():get("sum") .. table.concat(pieces, "+"))
        end
    "#;
    let (vm, _) = vm(script).unwrap();
    let mut run = run(&vm, Phase::Response, response(200), true);
    assert!(matches!(run.resume(Answer::Begin), Ok(Step::Chunk)));
    assert!(run.take_head().is_some());
    for piece in [&b"a"[..], b"b"] {
        let next = run.resume(Answer::Chunk(Some(Bytes::from_static(piece))));
        assert!(matches!(next, Ok(Step::Chunk)), "{next:?}");
    }
    assert!(matches!(run.resume(Answer::Chunk(None)), Ok(Step::Trailers)));
    let done = run.resume(Answer::Trailers(Some(headers(&[("sum", "=")]))));
    assert!(matches!(done, Ok(Step::Done)), "{done:?}");
    assert_eq!(shown(&run.take_trailers().unwrap()), [("sum", "=a+b")]);
}

#[test]
fn another_service_is_asked() {
    let script = r#"
        function envoy_on_request(h)
            local headers, body = h:httpCall("auth", {
                [":method"] = "POST", [":path"] = "/check", [":authority"] = "auth.mesh", ["x-who"] = {"a", "b"},
            }, "hello", 250)
            h:headers():add("x-auth", headers[":status"] .. headers["a"] .. body)
            h:httpCall("log", {[":method"] = "GET", [":path"] = "/", [":authority"] = "l"}, nil, 0, true)
        end
    "#;
    let (vm, _) = vm(script).unwrap();
    let mut run = run(&vm, Phase::Request, request(&[]), false);
    let Ok(Step::Call(call)) = run.resume(Answer::Begin) else { panic!("no call") };
    assert_eq!((call.cluster.as_str(), call.method.as_str(), call.path.as_str()), ("auth", "POST", "/check"));
    assert_eq!(
        (call.authority.as_str(), &call.body[..], call.timeout.as_millis()),
        ("auth.mesh", &b"hello"[..], 250)
    );
    assert_eq!(shown(&call.headers), [("x-who", "a"), ("x-who", "b")]);
    assert!(matches!(run.resume(Answer::Called(reply(200, "yes"))), Ok(Step::Done)));
    let posts = run.posts();
    assert_eq!(
        (posts.len(), posts[0].cluster.as_str(), posts[0].timeout),
        (1, "log", crate::limits::LONGEST_CALL)
    );
    assert_eq!(shown(&run.take_head().unwrap().headers), [("x-auth", "2001yes")]);
    let mut headers = String::from("{[':method'] = 'GET', [':path'] = '/'}");
    let call = |headers: &str| changed(&format!("h:httpCall('a', {headers}, nil, 1)"), &[]);
    assert!(call(&headers).is_err());
    headers.insert_str(1, "[':authority'] = 'a', connection = 'close', ");
    assert!(call(&headers).is_err());
    let many = "for i = 1, 9 do h:httpCall('a', {[':method'] = 'GET', [':path'] = '/', [':authority'] = 'a'}, nil, 1, true) end";
    assert!(changed(many, &[]).is_err());
}

#[test]
fn what_surrounds_a_request_is_told() {
    let lines = said(
        r#"
        local info = h:streamInfo()
        h:logDebug(table.concat({
            info:protocol(), info:requestedServerName(), info:downstreamLocalAddress(),
            info:downstreamDirectRemoteAddress(), h:connection():ssl():uriSanPeerCertificate()[1],
            tostring(h:connection():ssl():peerCertificateValidated()), tostring(h:metadata():get("x")),
        }, " "))
        info:dynamicMetadata():set("mine", "list", {1, "two", {deep = true}})
        local list = info:dynamicMetadata():get("mine").list
        assert(list[1] == 1 and list[2] == "two" and list[3].deep)
        for name, values in pairs(info:dynamicMetadata()) do print(name, values.list[1], true) end
        for _ in pairs(h:metadata()) do error("there are none") end
        assert(h:base64Escape("hi?") == "aGk/")
        assert(h:timestamp() > 1.7e12 and #h:timestampString(EnvoyTimestampResolution.MICROSECOND) == 16)
        assert(bit.band(6, 3) == 2 and unpack({7}) == 7)
        h:clearRouteCache()
        "#,
        &[],
    );
    let first = "Debug: HTTP/1.1 sni 10.0.0.1:80 10.0.0.2:4711 spiffe://default/web true nil";
    assert_eq!(lines, [first, "Info: mine 1 true"]);
}

#[test]
fn a_response_has_a_status_and_a_reason() {
    let script = r#"
        function envoy_on_response(h)
            assert(h:headers():get(":status") == "200")
            h:headers():replace(":status", "418")
            h:headers():setHttp1ReasonPhrase("short and stout")
            assert(not pcall(h.headers(h).setHttp1ReasonPhrase, h:headers(), "a\r\nb"))
            assert(not pcall(function() h:respond({[":status"] = "200"}, "") end))
        end
    "#;
    let (vm, _) = vm(script).unwrap();
    assert!(!vm.has(Phase::Request));
    let mut run = run(&vm, Phase::Response, response(200), false);
    assert!(matches!(run.resume(Answer::Begin), Ok(Step::Done)));
    let reason = Some("short and stout".to_owned());
    assert_eq!(run.take_head().unwrap().start, Start::Response { status: StatusCode::IM_A_TEAPOT, reason });
}

#[test]
fn globals_last_and_objects_do_not() {
    let script = r#"
        count = 0
        function envoy_on_request(h)
            count += 1
            if kept then
                assert(not pcall(function() kept:get("a") end))
                assert(not pcall(function() body:length() end))
                assert(not pcall(handle.body, handle))
            end
            handle, kept, body = h, h:headers(), h:body(true)
            kept:add("count", count)
        end
    "#;
    let (vm, _) = vm(script).unwrap();
    for expected in ["1", "2", "3"] {
        let (_, head) = through(&vm, request(&[])).unwrap();
        assert_eq!(shown(&head.unwrap().headers), [("count", expected)]);
    }
}

#[test]
fn metadata_go_from_script_to_script() {
    let (writer, _) =
        vm("function envoy_on_request(h) h:streamInfo():dynamicMetadata():set('a', 'b', 'c') end").unwrap();
    let (reader, said) =
        vm("function envoy_on_response(h) h:logInfo(h:streamInfo():dynamicMetadata():get('a').b) end")
            .unwrap();
    let dynamic = dynamic();
    let mut run = writer.run(Phase::Request, request(&[]), false, facts(), dynamic.clone()).ok().unwrap();
    run.resume(Answer::Begin).unwrap();
    let mut run = reader.run(Phase::Response, response(200), false, facts(), dynamic).ok().unwrap();
    run.resume(Answer::Begin).unwrap();
    assert_eq!(said.0.take(), ["Info: c"]);
}

#[test]
fn mistakes_are_told_with_their_line() {
    assert_eq!(
        changed("\n\nh:headers():get(nil + 1)", &[]).unwrap_err(),
        "script:4: attempt to perform arithmetic (add) on nil and number"
    );
    assert_eq!(changed("coroutine.yield()", &[]).unwrap_err(), "script performed an unexpected yield");
    assert!(changed("error({})", &[]).is_err());
    assert!(Program::compile("function (").unwrap_err().contains("1:"));
    assert!(vm("error('at once')").is_err());
    assert!(vm("").is_ok_and(|(vm, _)| !vm.has(Phase::Request) && !vm.has(Phase::Response)));
}
