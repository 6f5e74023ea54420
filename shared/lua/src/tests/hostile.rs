//! Scripts that would take everything: each is ended by a budget, and the state serves the next request.

use super::*;
use crate::{Budget, limits::TIME};
use std::time::{Duration, Instant};

/// Beside the time that a script may take: one step may be the library's work on a whole memory, and the machine of the
/// tests has other things to do. What is not ended takes minutes.
const SLACK: Duration = Duration::from_secs(5);

const SCRIPTS: [(&str, &str); 30] = [
    ("a loop", "while true do end"),
    ("a hot loop", "local x = 0 for i = 1, 1e12 do x += i end"),
    ("recursion", "local function f() return f() + 1 end f()"),
    ("tail calls", "local function f() return f() end f()"),
    ("pcall loop", "while true do pcall(function() while true do end end) end"),
    ("xpcall with a loop as handler", "while true do xpcall(error, function() while true do end end) end"),
    ("a coroutine", "coroutine.wrap(function() while true do end end)()"),
    ("coroutines without end", "local t = {} while true do t[#t + 1] = coroutine.create(function() end) end"),
    ("coroutines in coroutines", "local function f() coroutine.wrap(f)() end f()"),
    ("a catastrophic pattern", "string.find(string.rep('a', 50000), string.rep('a*', 30) .. 'b')"),
    ("a slow match", "string.match(string.rep('a', 1e6), '.-.-.-b')"),
    ("a substitution", "string.gsub(string.rep('a', 1e6), '.', function(c) return c .. c end)"),
    ("a long plain search", "string.find(string.rep('a', 2e6), string.rep('a', 1e6) .. 'b', 1, true)"),
    ("a long set", "string.find(string.rep('a', 2e6), '[' .. string.rep('b', 1e6) .. ']*c')"),
    ("a long split", "string.split(string.rep('a', 2e6), string.rep('a', 1e6) .. 'ba')"),
    ("memory", "local t = {} while true do t[#t + 1] = string.rep('x', 1000) .. #t end"),
    ("one long string", "string.rep('x', 2 ^ 30)"),
    ("doubling", "local s = 'x' while true do s ..= s end"),
    ("a buffer", "buffer.create(2 ^ 30)"),
    ("a wide table", "table.create(1e9, 1)"),
    ("moving", "table.move({}, 1, 1e9, 2, {})"),
    (
        "sorting",
        "local t = {} local a, b = string.rep('x', 1e6) .. 'a', string.rep('x', 1e6) .. 'b' for i = 1, 1e5 do t[i] = if i % 2 == 0 then a else b end table.sort(t)",
    ),
    (
        "sorting by nonsense",
        "local t = table.create(1e5, 1) pcall(table.sort, t, rawequal) pcall(table.sort, t, function() return true end) while true do end",
    ),
    (
        "an error with a loop as text",
        "error(setmetatable({}, {__tostring = function() while true do end end})) while true do end",
    ),
    ("metamethods", "local t = setmetatable({}, {__index = function(t, k) return t[k + 1] end}) return t[1]"),
    (
        "comparison",
        "local m = {__lt = function(a, b) return a < b end} local a, b = setmetatable({}, m), setmetatable({}, m) return a < b",
    ),
    (
        "iteration",
        "for _ in setmetatable({}, {__iter = function() return function() return 1 end end}) do end",
    ),
    ("headers", "while true do pcall(function() h:headers():add('a', string.rep('x', 100)) end) end"),
    ("logging", "while true do h:logErr(string.rep('x', 1000)) end"),
    (
        "metadata",
        "local i = 0 while true do i += 1 pcall(function() h:streamInfo():dynamicMetadata():set('a', tostring(i), i) end) end",
    ),
];

#[test]
fn every_one_is_ended() {
    for (name, body) in SCRIPTS {
        let script = format!(
            "function envoy_on_request(h)\nif h:headers():get('bad') then\n{body}\nend\nh:headers():add('still', 'here')\nend"
        );
        let (vm, _) = vm(&script).unwrap();
        for round in 0..2 {
            let start = Instant::now();
            let ended = through(&vm, request(&[("bad", "yes")]));
            let took = start.elapsed();
            assert!(took < TIME + SLACK, "{name}: {took:?}");
            let failure = ended.expect_err(name);
            // Nothing that goes on for ever ends by itself; what the library refuses is an ordinary error.
            let for_ever = body.contains("while true") && !name.contains("error with");
            assert!(!for_ever || failure.budget.is_some(), "{name}: {failure}");
            let (_, head) =
                through(&vm, request(&[])).unwrap_or_else(|error| panic!("{name} {round}: {error}"));
            assert_eq!(shown(&head.unwrap().headers), [("still", "here")], "{name}");
        }
    }
}

/// What is refused is not done first: each of these comes to its end within its time.
#[test]
fn what_is_refused_costs_little() {
    for (name, body) in [
        (
            "a pseudo header many times",
            "local s = string.rep('x', 1e6) local t = {[':status'] = table.create(100, s)} for i = 1, 20 do assert(not pcall(function() h:respond(t) end)) end",
        ),
        (
            "a length many times",
            "local s = string.rep('x', 1e6) local t = {[':status'] = '200', ['content-length'] = table.create(4e5, s)} for i = 1, 20 do assert(not pcall(function() h:respond(t) end)) end",
        ),
        (
            "many empty headers",
            "local t = {[':status'] = '200', a = table.create(48000, '')} for i = 1, 3 do assert(not pcall(function() h:respond(t) end)) end",
        ),
        (
            "long headers",
            "local s = string.rep('x', 2e6) for i = 1, 60 do assert(not pcall(function() h:headers():replace('a', s) end)) assert(not pcall(function() h:headers():replace(':authority', s) end)) end",
        ),
        (
            "a long body",
            "local s = string.rep('x', 2e6) for i = 1, 60 do assert(not pcall(function() h:respond({[':status'] = '200'}, s) end)) end",
        ),
        (
            "a long name of a service",
            "local s = string.rep('x', 2e6) for i = 1, 60 do assert(not pcall(function() h:httpCall(s, {[':method'] = 'GET', [':path'] = '/', [':authority'] = 'a'}, nil, 1, true) end)) end",
        ),
        (
            "long lines",
            "local t = table.create(100, string.rep('x', 1e6)) for i = 1, 20 do print(table.unpack(t)) end",
        ),
    ] {
        // The machine of the tests has other things to do: once is enough.
        let mut ends = (0..5).map(|_| changed(body, &[]));
        assert!(ends.any(|ended| ended.is_ok()), "{name}: {:?}", changed(body, &[]).err());
    }
}

#[test]
fn what_a_script_makes_has_one_of_each_pseudo_header() {
    let call = |headers: &str, cluster: &str| {
        changed(
            &format!(
                "h:httpCall('{cluster}', {{[':method'] = 'GET', [':path'] = '/', {headers}}}, nil, 1, true)"
            ),
            &[],
        )
    };
    assert!(call("[':authority'] = 'a'", "a").is_ok());
    assert!(call("[':authority'] = {'a', 'a'}", "a").unwrap_err().contains("one :authority"));
    assert!(call("[':authority'] = 'a', host = 'a'", "a").unwrap_err().contains("one :authority"));
    let longest = crate::limits::MAX_CLUSTER;
    assert!(call("[':authority'] = 'a'", &"a".repeat(longest)).is_ok());
    assert!(call("[':authority'] = 'a'", &"a".repeat(longest + 1)).unwrap_err().contains("255"));
}

/// What a script does between two steps can't be ended, but after it the script is: it gets no second one.
#[test]
fn the_clock_is_looked_at_each_step() {
    let compare = "_=a<b ".repeat(2_000);
    let script = format!(
        "local n = 0 local function f(a, b) local _ {compare} end
        function envoy_on_request(h)
            if h:headers():get('bad') then
                local a, b = string.rep('x', 3e6), string.rep('x', 3e6 - 1)
                f(a, b) n += 1 f(a, b) n += 1
            end
            h:headers():add('x-n', n)
        end"
    );
    let (vm, _) = vm(&script).unwrap();
    let failure = through(&vm, request(&[("bad", "yes")])).unwrap_err();
    assert_eq!(failure.budget, Some(Budget::Time));
    let (_, head) = through(&vm, request(&[])).unwrap();
    assert_eq!(shown(&head.unwrap().headers), [("x-n", "0")]);
}

/// A script that could write how far a call has come could go on for ever.
#[test]
fn what_counts_a_scripts_calls_is_not_the_scripts() {
    let hops = crate::HOPS.as_str();
    for wrong in [
        format!("h:headers():add('{hops}', '0')"),
        format!("h:headers():replace('{hops}', '0')"),
        format!("h:headers():remove('{hops}')"),
        format!("h:respond({{[':status'] = '200', ['{hops}'] = '0'}})"),
        "h:httpCall('a', {[':method'] = 'GET', [':path'] = '/', [':authority'] = 'a', ['X-Meridian-Script-Hops'] = '0'}, nil, 1)".to_owned(),
    ] {
        assert!(changed(&wrong, &[]).unwrap_err().contains("the proxy's own"), "{wrong}");
    }
    let mut head = request(&[("a", "b")]);
    head.headers.insert(crate::HOPS.clone(), HeaderValue::from_static("3"));
    let (vm, said) = vm(&format!(
        "function envoy_on_request(h)
            print(h:headers():get('{hops}'), h:headers():getAtIndex('{hops}', 0), h:headers():getNumValues('{hops}'))
            for name in pairs(h:headers()) do print(name) end
        end"
    ))
    .unwrap();
    let (_, head) = through(&vm, head).unwrap();
    assert_eq!(said.0.take()[0], "Info: nil nil 0");
    assert_eq!(head.unwrap().headers[&crate::HOPS], "3", "it goes on");
}

/// Who replaces a state knows when the memory of the old one is free.
#[test]
fn a_state_lives_as_long_as_its_runs() {
    let (vm, _) = vm("function envoy_on_request(h) h:body() end").unwrap();
    let alive = vm.alive();
    let mut run = run(&vm, Phase::Request, request(&[]), true);
    run.resume(Answer::Begin).unwrap();
    drop(vm);
    assert!(alive.is_alive());
    drop(run);
    assert!(!alive.is_alive());
}

/// Prints what a step costs, and how long a script can be between two of them. Run it by hand, in release.
#[test]
#[ignore = "measures, and asserts nothing"]
fn what_a_step_costs() {
    let (loops, _) = vm("function envoy_on_request(h) for i = 1, 1e5 do end end").unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        through(&loops, request(&[])).unwrap();
    }
    println!("a step: {:?}", start.elapsed() / 2_000_000);
    for (what, one) in [("comparing", "_=a<b "), ("joining", "_=a..b ")] {
        let all = one.repeat((crate::limits::MAX_SOURCE - 200) / one.len());
        for length in ["2e5", "5e5", "1e6", "2e6", "3e6"] {
            let (vm, _) = vm(&format!(
                "function envoy_on_request(h) local _ local a, b = string.rep('x', {length}), string.rep('x', {length} - 1) {all} end"
            ))
            .unwrap();
            let start = Instant::now();
            let ended = through(&vm, request(&[])).map(|_| ());
            println!("{what} {length}: {:?} {ended:?}", start.elapsed());
        }
    }
}

#[test]
fn each_budget_has_its_name() {
    let budget = |body: &str| {
        let (vm, _) = vm(&format!("function envoy_on_request(h)\n{body}\nend")).unwrap();
        through(&vm, request(&[])).unwrap_err().budget
    };
    assert_eq!(
        budget("local s = string.rep('a', 2e5) while true do string.upper(s) end"),
        Some(Budget::Time)
    );
    assert_eq!(budget("string.rep('x', 2 ^ 30)"), Some(Budget::Memory));
    assert_eq!(budget("error('x')"), None);
}

/// What a script keeps over requests fills its memory, and nobody else's: then it has to begin anew.
#[test]
fn a_full_state_says_so() {
    let (vm, _) =
        vm("kept = {} function envoy_on_request(h) table.insert(kept, string.rep('x', 1e5) .. #kept) end")
            .unwrap();
    let failure = (0..200).find_map(|_| through(&vm, request(&[])).err());
    assert_eq!(failure.unwrap().budget, Some(Budget::Memory));
}

#[test]
fn the_way_out_is_shut() {
    for name in [
        "io",
        "debug",
        "package",
        "require",
        "dofile",
        "loadfile",
        "load",
        "loadstring",
        "getfenv",
        "setfenv",
        "collectgarbage",
        "gcinfo",
        "newproxy",
        "os.execute",
        "os.getenv",
        "os.exit",
        "os.remove",
        "string.dump",
    ] {
        assert!(changed(&format!("assert(({name}) == nil)"), &[]).is_ok(), "{name}");
    }
    for wrong in [
        "string.find = nil",
        "table.insert = print",
        "getmetatable('').__index = {}",
        "setmetatable(getmetatable(h), {})",
        "getmetatable(h).__index = nil",
        "h.body = print",
        "EnvoyTimestampResolution.X = 1",
        "bit.band = nil",
        "rawset(string, 'find', nil)",
    ] {
        assert!(changed(wrong, &[]).is_err(), "{wrong}");
    }
    // A script's own globals are its own: what is ours does not read them.
    let mine = "pairs, type, error, coroutine, bit32 = nil, nil, nil, nil, nil\nfunction envoy_on_request(h) assert(h:body() == nil) h:headers():add('a', 'b') end";
    let (vm, _) = vm(mine).unwrap();
    assert!(through(&vm, request(&[])).is_ok());
}

/// The budget is an invocation's: waiting gives nothing back.
#[test]
fn waiting_does_not_fill_the_budget() {
    let script = r#"
        function envoy_on_request(h)
            while true do
                for i = 1, 1e5 do end
                h:httpCall("a", {[":method"] = "GET", [":path"] = "/", [":authority"] = "a"}, nil, 1)
            end
        end
    "#;
    let (vm, _) = vm(script).unwrap();
    let mut run = run(&vm, Phase::Request, request(&[]), false);
    let mut answer = Answer::Begin;
    let mut calls = 0;
    let failure = loop {
        match run.resume(answer) {
            Ok(step) => assert!(matches!(step, Step::Call(_))),
            Err(failure) => break failure,
        }
        calls += 1;
        answer = Answer::Called(reply(200, ""));
    };
    assert!(calls <= 21 && failure.budget.is_some(), "{calls}: {failure}");
}

#[test]
fn a_request_is_not_a_loop_of_calls() {
    let script = r#"
        function envoy_on_request(h)
            while true do
                h:httpCall("a", {[":method"] = "GET", [":path"] = "/", [":authority"] = "a"}, nil, 1)
            end
        end
    "#;
    let (vm, _) = vm(script).unwrap();
    let mut run = run(&vm, Phase::Request, request(&[]), false);
    let mut answer = Answer::Begin;
    let mut calls = 0;
    while run.resume(answer).is_ok() {
        calls += 1;
        answer = Answer::Called(reply(200, ""));
    }
    assert_eq!(calls, crate::limits::MAX_CALLS);
}

/// Bodies are outside of a state's memory, and let go when a run is over.
#[test]
fn a_run_leaves_nothing_behind() {
    let (vm, _) = vm("kept = {} function envoy_on_request(h) table.insert(kept, h:body()) end").unwrap();
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..100 {
        let mut run = run(&vm, Phase::Request, request(&[]), true);
        run.resume(Answer::Begin).unwrap();
        run.resume(Answer::Body(Some(body.clone()))).unwrap();
    }
    assert!(body.is_unique());
}

#[test]
fn a_script_is_bounded_before_it_is_run() {
    let long = "-".repeat(crate::limits::MAX_SOURCE + 1);
    assert!(Program::compile(&long).is_err());
    let deep = format!("return {}1{}", "(".repeat(30_000), ")".repeat(30_000));
    assert!(Program::compile(&deep).is_err());
    assert!(vm("while true do end").is_err());
}
