//! Scripts as users write them, hostile ones, and any at all.

use crate::{
    Answer, Dynamic, Facts, Failure, Head, Level, PeerFacts, Phase, Program, Reply, Run, Start, Step, Vm,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, uri::Authority, uri::PathAndQuery};
use std::{cell::RefCell, rc::Rc};

mod api;
mod hostile;
mod random;

/// What a script has said.
#[derive(Clone, Default)]
struct Said(Rc<RefCell<Vec<String>>>);

fn vm(source: &str) -> Result<(Vm, Said), Failure> {
    let said = Said::default();
    let keep = said.0.clone();
    let program = Program::compile(source).unwrap();
    let log = Rc::new(move |level: Level, text: Option<&str>| {
        keep.borrow_mut().extend(text.map(|text| format!("{level:?}: {text}")));
        true
    });
    Vm::start(&program, log).map(|vm| (vm, said))
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

fn request(pairs: &[(&'static str, &'static str)]) -> Head {
    let start = Start::Request {
        method: Method::POST,
        path: PathAndQuery::from_static("/a?b=c"),
        authority: Authority::from_static("web.mesh:80"),
    };
    Head { start, headers: headers(pairs) }
}

fn response(status: u16) -> Head {
    let start = Start::Response { status: StatusCode::from_u16(status).unwrap(), reason: None };
    Head { start, headers: headers(&[("x-app", "yes")]) }
}

fn facts() -> Rc<Facts> {
    Rc::new(Facts {
        protocol: "HTTP/1.1",
        local: "10.0.0.1:80".into(),
        remote: "10.0.0.2:4711".into(),
        server_name: "sni".into(),
        peer: Some(PeerFacts { uris: vec!["spiffe://default/web".into()], tls_version: "TLSv1.3" }),
    })
}

fn run(vm: &Vm, phase: Phase, head: Head, has_body: bool) -> Run {
    vm.run(phase, head, has_body, facts(), Rc::default()).map_err(|failed| failed.0).unwrap()
}

/// A request without a body through a script that waits for nothing.
fn through(vm: &Vm, head: Head) -> Result<(Step, Option<Head>), Failure> {
    let mut run = vm.run(Phase::Request, head, false, facts(), Rc::default()).map_err(|failed| failed.0)?;
    let step = run.resume(Answer::Begin)?;
    let head = run.take_head();
    Ok((step, head))
}

/// What became of a request with these headers by the body of `envoy_on_request(h)`.
fn changed(body: &str, pairs: &[(&'static str, &'static str)]) -> Result<Head, String> {
    let (vm, _) = vm(&format!("function envoy_on_request(h)\n{body}\nend")).unwrap();
    match through(&vm, request(pairs)) {
        Ok((Step::Done, Some(head))) => Ok(head),
        Ok((step, _)) => Err(format!("{step:?}")),
        Err(failure) => Err(failure.to_string()),
    }
}

/// What the body of `envoy_on_request(h)` says about a request.
fn said(body: &str, pairs: &[(&'static str, &'static str)]) -> Vec<String> {
    let (vm, said) = vm(&format!("function envoy_on_request(h)\n{body}\nend")).unwrap();
    let (step, _) = through(&vm, request(pairs)).unwrap();
    assert!(matches!(step, Step::Done), "{step:?}");
    said.0.take()
}

fn shown(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

fn reply(status: u16, body: &'static str) -> Reply {
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers(&[("a", "1"), ("b", "2")]),
        body: Bytes::from_static(body.as_bytes()),
    }
}

fn dynamic() -> Rc<Dynamic> {
    Rc::default()
}
