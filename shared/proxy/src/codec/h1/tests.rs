//! Client and server at the two ends of a stream, and each with bytes at the other end.

use super::{client::SendError, link::Link, parse::Framing, *};
use crate::{
    codec::{Body, heads::Heads, incoming},
    timer::Timer,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::{convert::Infallible, future::poll_fn, rc::Rc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{LocalSet, spawn_local},
};

/// Room of the streams: what is larger waits to be read.
const ROOM: usize = 1 << 10;

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

type Answered = Result<Response<Body>, Infallible>;

/// A server with such a handler, and the client's end.
fn serving<F>(handler: impl Fn(Request<incoming::Incoming>) -> F + Unpin + 'static) -> DuplexStream
where
    F: Future<Output = Answered> + 'static,
{
    let (near, far) = duplex(ROOM);
    drop(spawn_local(Connection::new(far, Rc::<Heads>::default(), handler)));
    near
}

async fn echo(request: Request<incoming::Incoming>) -> Answered {
    Ok(Response::new(Body::incoming(request.into_body())))
}

async fn said(mut stream: DuplexStream, bytes: &str) -> String {
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut text = String::new();
    let writing = async {
        // What refuses reads no further.
        drop(write.write_all(bytes.as_bytes()).await);
        drop(write.shutdown().await);
    };
    let (_, read) = tokio::join!(writing, read.read_to_string(&mut text));
    drop(read);
    text
}

#[tokio::test]
async fn answers_have_the_form_that_the_client_can_read() {
    local(async {
        let text = |text: &'static str| move |_: Request<incoming::Incoming>| async move {
            Ok(Response::new(Body::full(text)))
        };
        let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(
            said(serving(text("hello")), get).await,
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
        );
        let post = |version: &str, fields: &str| {
            format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n")
        };
        assert_eq!(
            said(serving(echo), &post("1.1", "")).await,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        assert_eq!(
            said(serving(echo), &post("1.1", "TE: trailers\r\nConnection: close\r\n")).await,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n0\r\nx: 1\r\n\r\n"
        );
        // Who knows no chunks is told the end by the connection's.
        let old = |fields: &str| format!("GET / HTTP/1.0\r\n{fields}\r\n");
        let of_unknown_length =
            |_: Request<incoming::Incoming>| async { Ok(Response::new(open_ended("hello").await)) };
        assert_eq!(
            said(serving(of_unknown_length), &old("Connection: keep-alive\r\n")).await,
            "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nhello"
        );
        assert_eq!(
            said(serving(text("a")), &old("Connection: keep-alive\r\n")).await,
            "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\na"
        );
        let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(said(serving(text("hello")), head).await, "HTTP/1.1 200 OK\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn requests_one_behind_the_other_are_answered_in_turn() {
    local(async {
        let path = |request: Request<incoming::Incoming>| async move {
            tokio::task::yield_now().await;
            Ok(Response::new(Body::full(request.uri().path().to_owned())))
        };
        // The second one's body is read by nobody, but is there: the third one follows.
        let mut stream = serving(path);
        stream
            .write_all(
                b"GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzGET /c HTTP/1.1\r\n\r\n",
            )
            .await
            .unwrap();
        for path in ["/a", "/b", "/c"] {
            heard(&mut stream, &format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{path}")).await;
        }
    })
    .await;
}

/// A body that is none ends the connection, also where what is left of it looks like one.
#[tokio::test]
async fn a_malformed_body_is_the_last_one() {
    local(async {
        let reading = |request: Request<incoming::Incoming>| async {
            let mut body = request.into_body();
            let failed = body.frame().await.unwrap().is_err();
            // Kept by who sends it on, while the answer goes out.
            drop(spawn_local(async move {
                let _kept = body;
                std::future::pending::<()>().await;
            }));
            Ok(Response::new(Body::full(if failed { "no" } else { "yes" })))
        };
        let said = said(
            serving(reading),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        )
        .await;
        assert_eq!(said, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
    })
    .await;
}

/// Who leaves before the answer is there, or while it pauses, does not keep it going.
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_its_request() {
    /// A body of which nothing more comes.
    fn pausing() -> Body {
        let (mut kept, far) = duplex(ROOM);
        let link = Link::over(far);
        let serial = link.borrow_mut().begin(Framing::End, false);
        // Open for as long as the test.
        drop(spawn_local(async move { kept.read(&mut [0]).await }));
        Body::incoming(incoming::Incoming::Http1(Incoming::of(&link, serial)))
    }
    local(async {
        for answers in [false, true] {
            let (begun, mut began) = tokio::sync::mpsc::channel::<Rc<()>>(1);
            let handler = move |_: Request<incoming::Incoming>| {
                let begun = begun.clone();
                async move {
                    let here = Rc::new(());
                    begun.send(here.clone()).await.unwrap();
                    match answers {
                        true => Ok(Response::new(pausing())),
                        false => std::future::pending().await,
                    }
                }
            };
            let (mut near, far) = duplex(ROOM);
            let serving = spawn_local(Connection::new(far, Rc::<Heads>::default(), handler));
            near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            drop(began.recv().await.unwrap());
            // What comes behind it is another request, and no end.
            tokio::task::yield_now().await;
            assert!(!serving.is_finished());
            drop(near);
            assert!(matches!(serving.await.unwrap(), Err(Error::Left)), "{answers}");
        }
    })
    .await;
}

/// Who has only ended its side, and no more to say, gets its answer, if there is some progress.
#[tokio::test(start_paused = true)]
async fn a_client_that_has_said_all_is_answered() {
    local(async {
        let slow = |_: Request<incoming::Incoming>| async {
            tokio::time::sleep(server::HALF_CLOSED / 2).await;
            let (mut near, far) = duplex(ROOM);
            let link = Link::over(far);
            let serial = link.borrow_mut().begin(Framing::Length(4), false);
            drop(spawn_local(async move {
                for byte in *b"slow" {
                    tokio::time::sleep(server::HALF_CLOSED * 2 / 3).await;
                    near.write_all(&[byte]).await.unwrap();
                }
            }));
            Ok(Response::new(Body::incoming(incoming::Incoming::Http1(Incoming::of(&link, serial)))))
        };
        let said = said(serving(slow), "GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(said, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow");
    })
    .await;
}

/// Whose rest is not wanted reads why, though he sends on.
#[tokio::test]
async fn a_refused_client_may_finish_its_sentence() {
    local(async {
        let deaf = |_| async { Ok(Response::new(Body::full("no"))) };
        for (head, answer) in [
            (
                "nonsense\r\n\r\n",
                "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n",
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno",
            ),
        ] {
            let mut stream = serving(deaf);
            stream.write_all(head.as_bytes()).await.unwrap();
            heard(&mut stream, answer).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            stream.write_all("x".repeat(300 * ROOM).as_bytes()).await.unwrap();
        }
    })
    .await;
}

/// But not for ever, and not without end.
#[tokio::test(start_paused = true)]
async fn nobody_is_listened_to_for_ever() {
    local(async {
        let mut silent = serving(echo);
        silent.write_all(b"nonsense\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        silent.read_to_end(&mut all).await.unwrap();
        tokio::time::sleep(server::LINGER * 2).await;
        assert!(silent.write_all(b"x").await.is_err());

        let mut flooding = serving(echo);
        flooding.write_all(b"nonsense\r\n\r\n").await.unwrap();
        let part = [0; ROOM];
        let mut taken = 0;
        while flooding.write_all(&part).await.is_ok() {
            taken += part.len();
        }
        assert!(taken <= server::LINGER_BYTES + 2 * ROOM, "{taken}");
    })
    .await;
}

/// A body that nobody has read is no place to look for the next request.
#[tokio::test]
async fn a_body_that_was_not_read_ends_the_connection() {
    local(async {
        let deaf = |_| async { Ok(Response::new(Body::empty())) };
        let said =
            said(serving(deaf), "POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\nGET /b HTTP/1.1\r\n\r\n").await;
        assert_eq!(said, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_a_word_gets_it_once_somebody_wants_the_body() {
    local(async {
        let reading = |request: Request<incoming::Incoming>| async {
            Ok(Response::new(Body::full(request.into_body().collect().await.unwrap().to_bytes())))
        };
        let mut stream = serving(reading);
        stream
            .write_all(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            .await
            .unwrap();
        let word = b"HTTP/1.1 100 Continue\r\n\r\n";
        let mut said = vec![0; word.len()];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(said, word);
        stream.write_all(b"ok").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        // And none if nobody does.
        let deaf = |_| async { Ok(Response::new(Body::empty())) };
        let mut stream = serving(deaf);
        stream
            .write_all(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            .await
            .unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    })
    .await;
}

/// Also where the answer comes at the same time.
#[tokio::test]
async fn a_word_is_said_before_the_answer() {
    local(async {
        let hasty = |request: Request<incoming::Incoming>| async {
            let mut body = request.into_body();
            assert!(futures::poll!(body.frame()).is_pending());
            Ok(Response::new(Body::incoming(body)))
        };
        let mut stream = serving(hasty);
        let head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        stream.write_all(head).await.unwrap();
        heard(&mut stream, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
        stream.write_all(b"ok").await.unwrap();
        heard(&mut stream, "ok").await;
    })
    .await;
}

/// A body whose length nobody knows before its end.
async fn open_ended(text: &'static str) -> Body {
    let (mut near, far) = duplex(ROOM);
    near.write_all(text.as_bytes()).await.unwrap();
    let link = Link::over(far);
    let serial = link.borrow_mut().begin(Framing::End, false);
    Body::incoming(incoming::Incoming::Http1(Incoming::of(&link, serial)))
}

/// A client, and the server's end of its connection.
fn connected() -> (Client, DuplexStream) {
    let (near, far) = duplex(ROOM);
    let (client, watch) = Client::over(near);
    drop(spawn_local(watch));
    (client, far)
}

fn get() -> Request<Body> {
    Request::get("/a?b").header("host", "a").body(Body::empty()).unwrap()
}

async fn heard(stream: &mut DuplexStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

async fn text(response: Response<Incoming>) -> Result<String, BodyError> {
    let body = Body::incoming(incoming::Incoming::Http1(response.into_body()));
    Ok(String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap())
}

async fn sent(client: &Client, request: Request<Body>, waits: bool) -> Result<Response<Incoming>, SendError> {
    client.send(&Timer::default(), Box::new(request), waits).await
}

#[tokio::test]
async fn a_connection_is_used_again_when_both_are_done() {
    local(async {
        let (client, mut server) = connected();
        for (answer, body, again) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", true),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", "ok", false),
        ] {
            let serve = async {
                heard(&mut server, "GET /a?b HTTP/1.1\r\nhost: a\r\n\r\n").await;
                server.write_all(answer.as_bytes()).await.unwrap();
            };
            let (response, ()) = tokio::join!(sent(&client, get(), false), serve);
            assert_eq!(text(response.ok().unwrap()).await.unwrap(), body);
            assert_eq!(client.rest(), again, "{answer}");
            assert!(!again || client.rise());
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_leaves_is_noticed_while_the_connection_rests() {
    local(async {
        for parting in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            let (near, mut server) = duplex(ROOM);
            let (client, watch) = Client::over(near);
            let serve = async {
                heard(&mut server, "GET /a?b HTTP/1.1\r\nhost: a\r\n\r\n").await;
                server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                server
            };
            let (response, mut server) = tokio::join!(sent(&client, get(), false), serve);
            drop(response);
            assert!(client.rest());
            server.write_all(parting.as_bytes()).await.unwrap();
            drop(server);
            watch.await;
            assert!(!client.is_open() && !client.rise());
        }
    })
    .await;
}

#[tokio::test]
async fn what_was_not_answered_can_be_sent_again() {
    local(async {
        let (client, server) = connected();
        drop(server);
        let error = sent(&client, get(), false).await.err().unwrap();
        let request = error.request.unwrap();
        assert_eq!((request.uri().path(), request.headers()["host"].as_bytes()), ("/a", b"a".as_slice()));
        // Read, and not answered: whether it was acted on is anybody's guess.
        let (client, mut server) = connected();
        let serve = async {
            heard(&mut server, "GET").await;
            drop(server);
        };
        let (response, ()) = tokio::join!(sent(&client, get(), false), serve);
        let error = response.err().unwrap();
        assert!(error.sent && matches!(error.error, Error::Unanswered), "{}", error.error);
    })
    .await;
}

/// A long request whose answer came when only its head had gone out: what of it is still to come.
async fn answered_early(answer: &str) -> (Client, DuplexStream, Response<Incoming>, String) {
    let (client, mut server) = connected();
    let long = "x".repeat(300 * ROOM);
    let request = Request::post("/").body(Body::full(long.clone())).unwrap();
    let head = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", long.len());
    let serve = async {
        heard(&mut server, &head).await;
        server.write_all(answer.as_bytes()).await.unwrap();
        server
    };
    let (response, server) = tokio::join!(sent(&client, request, false), serve);
    (client, server, response.ok().unwrap(), long)
}

/// An answer may come before the request's end; what is left of it still goes, also while nobody reads the answer.
#[tokio::test]
async fn the_rest_of_a_request_follows_an_early_answer() {
    local(async {
        let (client, mut server, response, long) =
            answered_early("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await;
        assert!(!client.rest());
        heard(&mut server, &long).await;
        server.write_all(b"ok").await.unwrap();
        assert_eq!(text(response).await.unwrap(), "ok");
        assert!(client.rest());
    })
    .await;
}

/// Also when nobody keeps the connection any more; it ends with the request, then.
#[tokio::test]
async fn the_rest_of_a_request_outlives_its_answer() {
    local(async {
        let (client, mut server, response, long) =
            answered_early("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(text(response).await.unwrap(), "ok");
        assert!(!client.rest());
        client.leave();
        heard(&mut server, &long).await;
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
}

/// But not for ever: a caller may never send what is left.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_request_that_does_not_come_is_given_up() {
    local(async {
        let (source, mut slow) = connected();
        let part = async {
            heard(&mut slow, "GET").await;
            slow.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").await.unwrap();
        };
        let (part, ()) = tokio::join!(sent(&source, get(), false), part);
        let part = Body::incoming(incoming::Incoming::Http1(part.ok().unwrap().into_body()));

        let (client, mut server) = connected();
        let serve = async {
            heard(&mut server, "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab").await;
            server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        };
        let request = Request::post("/").body(part).unwrap();
        let (response, ()) = tokio::join!(sent(&client, request, false), serve);
        assert_eq!(text(response.ok().unwrap()).await.unwrap(), "ok");
        // It waits for the body when it is left.
        tokio::task::yield_now().await;
        client.leave();
        let mut byte = [0];
        let ended = tokio::time::timeout(crate::codec::REST_WAIT * 2, server.read(&mut byte)).await;
        assert_eq!(ended.unwrap().unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_body_waits_for_the_servers_word() {
    local(async {
        let post = || Request::post("/").header("expect", "100-continue").body(Body::full("body")).unwrap();
        let head = "POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
        let (client, mut server) = connected();
        let serve = async {
            heard(&mut server, head).await;
            server.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            heard(&mut server, "body").await;
            server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(sent(&client, post(), true), serve);
        assert_eq!(response.ok().unwrap().status(), StatusCode::OK);
        assert!(client.rest());
        // Refused: the body is never sent, so nothing else can follow.
        let (client, mut server) = connected();
        let serve = async {
            heard(&mut server, head).await;
            server.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(sent(&client, post(), true), serve);
        assert_eq!(response.ok().unwrap().status(), StatusCode::EXPECTATION_FAILED);
        assert!(!client.rest());
        drop(client);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_cut_is_no_whole_one() {
    local(async {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        ] {
            let (client, mut server) = connected();
            server.write_all(answer.as_bytes()).await.unwrap();
            server.shutdown().await.unwrap();
            let response = sent(&client, get(), false).await.ok().unwrap();
            let error = text(response).await.unwrap_err();
            assert!(matches!(error, BodyError::Http1(Error::Cut)), "{error}");
            assert!(!client.rest());
        }
        let (client, mut server) = connected();
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it").await.unwrap();
        server.shutdown().await.unwrap();
        let response = sent(&client, get(), false).await.ok().unwrap();
        assert_eq!(text(response).await.unwrap(), "all of it");
        assert!(!client.rest());
    })
    .await;
}

/// A slow reader of many small parts does not make the rest of them pile up.
#[tokio::test]
async fn what_waits_to_be_written_is_bounded() {
    let (mut writer, mut reader) = duplex(100);
    let mut out = out::Out::default();
    // Without the runtime's own turns: each write takes what there is room for.
    let held = tokio::task::unconstrained(async {
        let mut held = 0;
        for _ in 0..2_000 {
            while out.len() < 1_000 {
                out.push(bytes::Bytes::from_static(&[b'x'; 60]));
            }
            let waits =
                poll_fn(|cx| std::task::Poll::Ready(out.poll_write(&mut writer, cx).is_pending())).await;
            assert!(waits);
            reader.read_exact(&mut [0; 90]).await.unwrap();
            held = held.max(out.held());
        }
        held
    });
    let held = held.await;
    assert!(held < 10_000, "{held}");
}

/// Who reads slowly of a request that was answered meanwhile hears that it broke off, and not that it ended.
#[tokio::test]
async fn a_body_that_is_skipped_is_no_whole_one() {
    local(async {
        let (near, mut far) = duplex(ROOM);
        let link = Link::over(near);
        let serial = link.borrow_mut().begin(Framing::Length(10), false);
        let mut body = Incoming::of(&link, serial);
        far.write_all(b"0123456789").await.unwrap();
        poll_fn(|cx| link.borrow_mut().poll_fill(cx)).await.unwrap();
        assert!(link.borrow_mut().skip());
        assert!(!body.is_end_stream() && body.size_hint().exact().is_none());
        link.borrow_mut().begin(Framing::Length(0), false);
        assert!(matches!(poll_fn(|cx| body.poll(cx)).await, Some(Err(Error::Cut))));
    })
    .await;
}

/// Who writes to a connection that is ended from elsewhere does not wait for ever.
#[tokio::test]
async fn who_writes_hears_of_the_end() {
    local(async {
        let (client, mut server) = connected();
        let request = Request::post("/").body(Body::full("x".repeat(300 * ROOM))).unwrap();
        let serve = async {
            heard(&mut server, "POST /").await;
            server.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(sent(&client, request, false), serve);
        let link = client.link();
        let response = response.ok().unwrap();
        tokio::task::yield_now().await;
        // The answer, the client, and what still sends the request.
        assert!(Rc::strong_count(&link) > 3);
        drop((response, client));
        while Rc::strong_count(&link) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_was_answered_is_not_sent_again() {
    local(async {
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 2"] {
            let (client, mut server) = connected();
            server.write_all(answer.as_bytes()).await.unwrap();
            server.shutdown().await.unwrap();
            assert!(sent(&client, get(), false).await.err().unwrap().request.is_none(), "{answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_is_written_once_and_as_it_is_meant() {
    local(async {
        let (client, mut server) = connected();
        let mut request = Request::get("http://a?b").body(Body::empty()).unwrap();
        for name in ["content-length", "transfer-encoding"] {
            request.headers_mut().append(name, http::HeaderValue::from_static("+0"));
        }
        let serve = async {
            heard(&mut server, "GET /?b HTTP/1.1\r\n\r\n").await;
            server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(sent(&client, request, false), serve);
        assert_eq!(response.ok().unwrap().status(), StatusCode::NO_CONTENT);
    })
    .await;
}

/// What reads of a connection that is ended from elsewhere is told.
#[tokio::test]
async fn who_reads_hears_of_the_end() {
    local(async {
        let (near, mut server) = duplex(ROOM);
        let (client, watch) = Client::over(near);
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok").await.unwrap();
        let response = sent(&client, get(), false).await.ok().unwrap();
        let mut body = response.into_body();
        let first = poll_fn(|cx| body.poll(cx)).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "ok");
        let reading = spawn_local(async move { poll_fn(|cx| body.poll(cx)).await });
        tokio::task::yield_now().await;
        drop(watch);
        assert!(reading.await.unwrap().unwrap().is_err());
    })
    .await;
}

#[tokio::test]
async fn client_and_server_understand_each_other() {
    local(async {
        let (near, far) = duplex(ROOM);
        drop(spawn_local(Connection::new(far, Rc::<Heads>::default(), echo)));
        let (client, watch) = Client::over(near);
        drop(spawn_local(watch));
        for length in [0, 1, 100, 5_000, 200_000] {
            let body = "x".repeat(length);
            let request = Request::post("/").body(Body::full(body.clone())).unwrap();
            let response = sent(&client, request, false).await.ok().unwrap();
            assert_eq!(text(response).await.unwrap(), body);
            assert!(client.rest() && client.rise(), "{length}");
        }
        // In chunks.
        let request = Request::post("/").body(open_ended("in chunks").await).unwrap();
        assert_eq!(text(sent(&client, request, false).await.ok().unwrap()).await.unwrap(), "in chunks");
    })
    .await;
}
