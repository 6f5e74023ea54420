//! A request and its answer on their way through scripts.

use super::{Chain, MAX_HELD, MAX_HOPS, call};
use crate::{
    codec::{self as plumbing, Body, BodyError, Kept, PIECE, Room, Scripted, Wait},
    metrics::Traffic,
    policy::lua::Script,
    worker::Worker,
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, EXPECT, HOST},
    uri::{Authority, PathAndQuery},
};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use meridian_lua::{Answer, Dynamic, Facts, Failure, Head, Phase, Reply, Run, Start, Step, limits::MAX_BODY};
use std::{cell::Cell, fmt::Display, rc::Rc, sync::Arc};

/// What scripts know of one request, and what they share on it.
pub struct Passage {
    worker: Rc<Worker>,
    chain: Chain,
    facts: Rc<Facts>,
    dynamic: Rc<Dynamic>,
    traffic: Arc<Traffic>,
    /// The caller asked for a head only.
    heads: Cell<bool>,
    /// So does the request that goes on: its answer has no body, whatever it says of one.
    bodiless: Cell<bool>,
    /// Calls of scripts that led to the request.
    hops: Cell<u32>,
}

/// Why a request goes no further.
pub enum Stopped {
    /// This is its answer.
    Answered(Box<Response<Body>>),
    /// A script that may answer requests could not be run; by its policy's name.
    Failed(String),
    /// Its body could not be read: the caller has left, or a filter has found something.
    Body(BodyError),
}

/// A message's head and body after a script.
struct Passed {
    head: Head,
    body: Body,
    /// The body is another than what came.
    changed: bool,
    failed: bool,
}

enum Unread {
    TooLong,
    NoRoom,
    Body(BodyError),
}

impl Passage {
    pub fn new(worker: &Rc<Worker>, chain: &Chain, facts: Facts, traffic: &Arc<Traffic>) -> Rc<Self> {
        Rc::new(Self {
            worker: worker.clone(),
            chain: chain.clone(),
            facts: Rc::new(facts),
            dynamic: Rc::default(),
            traffic: traffic.clone(),
            heads: Cell::new(false),
            bodiless: Cell::new(false),
            hops: Cell::new(0),
        })
    }

    /// Takes a request through all scripts; gives back what is sent, and to whom it is addressed.
    ///
    /// # Errors
    /// It is not sent.
    pub async fn request(
        self: &Rc<Self>,
        request: Request<Body>,
        authority: Authority,
    ) -> Result<(Request<Body>, Authority), Stopped> {
        let (mut parts, mut body) = request.into_parts();
        self.heads.set(parts.method == Method::HEAD);
        self.hops.set(call::hops(&parts.headers));
        if self.hops.get() > MAX_HOPS {
            self.failed(0, &"its request comes of too many calls of scripts; one of them may call itself");
            let answer = plumbing::plain(StatusCode::LOOP_DETECTED, "scripts call each other in a circle\n");
            return Err(Stopped::Answered(Box::new(answer)));
        }
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let start = Start::Request { method: parts.method, path, authority: authority.clone() };
        let mut head = Head { start, headers: parts.headers };
        for (position, script) in self.chain.iter().enumerate() {
            let passed = self.run(position, script, Phase::Request, head, body).await?;
            if passed.failed && script.program.decides() {
                return Err(Stopped::Failed(script.policy.clone()));
            }
            (head, body) = (passed.head, passed.body);
            if passed.changed {
                head.headers.remove(CONTENT_LENGTH);
                // It was read: nobody waits for a word any more.
                head.headers.remove(EXPECT);
            }
        }
        let Start::Request { method, path, authority: to } = head.start else {
            return Err(Stopped::Failed("a script".to_owned()));
        };
        self.bodiless.set(method == Method::HEAD);
        parts.headers = head.headers;
        if to != authority
            && let Ok(host) = HeaderValue::from_str(to.as_str())
        {
            parts.headers.insert(HOST, host);
        }
        parts.method = method;
        parts.uri = Uri::from(path);
        Ok((Request::from_parts(parts, body), to))
    }

    /// Takes an answer through all scripts.
    pub async fn response(self: &Rc<Self>, response: Response<Body>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        let (mut parts, mut body) = response.into_parts();
        let start = Start::Response { status: parts.status, reason: None };
        let mut head = Head { start, headers: parts.headers };
        for (position, script) in self.chain.iter().enumerate().rev() {
            let passed = match self.run(position, script, Phase::Response, head, body).await {
                Ok(passed) => passed,
                Err(Stopped::Answered(answer)) => return *answer,
                Err(Stopped::Failed(_) | Stopped::Body(_)) => {
                    return plumbing::plain(StatusCode::BAD_GATEWAY, "the answer could not be read\n");
                }
            };
            (head, body) = (passed.head, passed.body);
            if passed.changed {
                head.headers.remove(CONTENT_LENGTH);
            }
        }
        if let Start::Response { status, reason } = head.start {
            if let Some(phrase) = reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
                parts.extensions.insert(phrase);
            }
            let empty = plumbing::has_no_body(status);
            if empty && status != parts.status {
                body.keep(Kept::new(Bytes::new(), None, self.room()));
                head.headers.remove(CONTENT_LENGTH);
            }
            // A length of what does not come would take the next answer for it.
            if body.is_end_stream() && !self.heads.get() && !empty {
                head.headers.remove(CONTENT_LENGTH);
            }
            parts.status = status;
        }
        parts.headers = head.headers;
        Response::from_parts(parts, body)
    }

    /// One script on one message.
    async fn run(
        self: &Rc<Self>,
        position: usize,
        script: &Script,
        phase: Phase,
        head: Head,
        mut body: Body,
    ) -> Result<Passed, Stopped> {
        let bodiless = phase == Phase::Response && self.bodiless.get();
        let has_body = !body.is_end_stream() && !bodiless;
        let state = match self.worker.scripts.state(script) {
            Ok(state) if state.has(phase) => state,
            Ok(_) => return Ok(Passed { head, body, changed: false, failed: false }),
            Err(failure) => {
                self.failed(position, &failure);
                return Ok(Passed { head, body, changed: false, failed: true });
            }
        };
        let mut run = match state.run(phase, head, has_body, self.facts.clone(), self.dynamic.clone()) {
            Ok(run) => run,
            Err(failed) => {
                let (failure, head) = *failed;
                self.failed(position, &failure);
                return Ok(Passed { head, body, changed: false, failed: true });
            }
        };
        let ended = self.steps(&mut run, phase, &mut body).await?;
        let head = run.take_head().ok_or_else(|| Stopped::Failed(script.policy.clone()))?;
        let mut passed = Passed { head, body, changed: ended.read, failed: false };
        if let Some(bytes) = run.take_body().filter(|_| !bodiless) {
            let mut room = self.room();
            if !room.grow(bytes.len()) {
                return Err(self.no_room());
            }
            passed.body.replace(bytes, room);
            passed.changed = true;
        }
        match ended.how {
            How::Done => {}
            How::Failed(failure) => {
                self.failed(position, &failure);
                passed.failed = true;
            }
            How::Flows(waits) => {
                let passage = self.clone();
                passed.body.scripted(|source| Scripted::new(source, run, waits, position, passage));
            }
        }
        Ok(passed)
    }

    async fn steps(&self, run: &mut Run, phase: Phase, body: &mut Body) -> Result<Ended, Stopped> {
        let mut answer = Answer::Begin;
        let mut read = false;
        loop {
            let step = run.resume(answer);
            self.post(run);
            answer = match step {
                Err(failure) => return Ok(Ended { how: How::Failed(failure), read }),
                Ok(Step::Done) => return Ok(Ended { how: How::Done, read }),
                Ok(Step::Respond(reply)) => {
                    self.traffic.cell(self.worker.index).scripts_answered.inc();
                    return Err(Stopped::Answered(Box::new(answered(reply))));
                }
                Ok(Step::Chunk) => return Ok(Ended { how: How::Flows(Wait::Piece), read }),
                Ok(Step::Trailers) => return Ok(Ended { how: How::Flows(Wait::Trailers), read }),
                Ok(Step::Body) => {
                    read = true;
                    Answer::Body(self.read(body, phase).await?)
                }
                Ok(Step::Call(call)) => Answer::Called(call::call(&self.worker, call, self.hops.get()).await),
            };
        }
    }

    /// The whole body, which then waits to be sent. `None`: there was none.
    async fn read(&self, body: &mut Body, phase: Phase) -> Result<Option<Bytes>, Stopped> {
        let mut room = self.room();
        let (bytes, trailers) = match whole(body, &mut room).await {
            Ok(read) => read,
            Err(Unread::Body(error)) => return Err(Stopped::Body(error)),
            Err(Unread::NoRoom) => return Err(self.no_room()),
            // In Envoy's words.
            Err(Unread::TooLong) => {
                let answer = match phase {
                    Phase::Request => plumbing::plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large\n"),
                    Phase::Response => {
                        plumbing::plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n")
                    }
                };
                return Err(Stopped::Answered(Box::new(answer)));
            }
        };
        body.keep(Kept::new(bytes.clone(), trailers, room));
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn room(&self) -> Room {
        Room::new(&self.worker.scripts.held, MAX_HELD)
    }

    fn no_room(&self) -> Stopped {
        self.traffic.cell(self.worker.index).overflows.inc();
        let text = "scripts hold too many bodies\n";
        Stopped::Answered(Box::new(plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, text)))
    }

    /// Makes the calls that a script does not wait for.
    pub(crate) fn post(&self, run: &Run) {
        for call in run.posts() {
            let (worker, hops) = (self.worker.clone(), self.hops.get());
            self.worker.spawn(async move { drop(call::call(&worker, call, hops).await) });
        }
    }

    /// Counts and tells that a script has ended before its end.
    pub(crate) fn failed(&self, position: usize, why: &dyn Display) {
        self.traffic.cell(self.worker.index).scripts_failed.inc();
        let policy = self.chain.get(position).map_or("", |script| script.policy.as_str());
        if self.worker.scripts.tells() {
            tracing::warn!(%policy, %why, "a script failed");
        }
    }
}

/// What a script has come to with a message.
struct Ended {
    how: How,
    /// It has read the body.
    read: bool,
}

enum How {
    Done,
    Failed(Failure),
    /// The message goes on, and the script with its body.
    Flows(Wait),
}

fn answered(reply: Reply) -> Response<Body> {
    let mut response = Response::new(Body::full(reply.body));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

async fn whole(body: &mut Body, room: &mut Room) -> Result<(Bytes, Option<HeaderMap>), Unread> {
    let limit = MAX_BODY as u64;
    if body.size_hint().lower() > limit {
        return Err(Unread::TooLong);
    }
    let mut pieces: Vec<Bytes> = Vec::new();
    let (mut length, mut trailers) = (0, None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(Unread::Body)?.into_data() {
            Ok(data) => {
                length += data.len();
                if length > MAX_BODY {
                    return Err(Unread::TooLong);
                }
                if !room.grow(data.len() + PIECE) {
                    return Err(Unread::NoRoom);
                }
                pieces.push(data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let bytes = match pieces.as_mut_slice() {
        [only] => std::mem::take(only),
        _ => {
            let mut all = BytesMut::with_capacity(length);
            pieces.iter().for_each(|piece| all.extend_from_slice(piece));
            all.freeze()
        }
    };
    Ok((bytes, trailers))
}
