use super::{Batched, Client, Connection, Driven, PING, PING_TIMEOUT, open};
use crate::codec::{Body, BodyError, Error, REST_WAIT};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use std::{
    future::{Future, pending, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::{JoinHandle, LocalSet, spawn_local},
    time::timeout,
};

/// Keeps what each write brought, as long as it may.
#[derive(Default)]
struct Recorder {
    writes: Vec<Vec<u8>>,
    full: bool,
    fails: bool,
}

impl AsyncRead for Recorder {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Recorder {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.full {
            return Poll::Pending;
        }
        if self.fails {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.writes.push(buf.to_vec());
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn lengths(stream: &Batched<Recorder>) -> Vec<usize> {
    stream.stream().writes.iter().map(Vec::len).collect()
}

#[test]
fn small_writes_go_together_and_large_ones_behind_them() {
    let stream = Batched::new(Recorder::default());
    let mut writer = stream.clone();
    let mut driven = Driven::new(pending::<()>(), stream.clone());
    let mut write = |bytes: usize| Pin::new(&mut writer).poll_write(&mut context(), &vec![7; bytes]);
    for _ in 0..5 {
        assert!(matches!(write(1_000), Poll::Ready(Ok(1_000))));
    }
    assert!(lengths(&stream).is_empty());
    assert!(Pin::new(&mut driven).poll(&mut context()).is_pending());
    assert_eq!(lengths(&stream), [5_000]);
    // What has no room with the others makes them go; what is larger than a batch goes by itself.
    for bytes in [10_000, 10_000, 40_000] {
        assert!(matches!(write(bytes), Poll::Ready(Ok(_))));
    }
    assert_eq!(lengths(&stream), [5_000, 10_000, 10_000, 40_000]);
    assert!(Pin::new(&mut driven).poll(&mut context()).is_pending());
    assert_eq!(lengths(&stream).len(), 4, "nothing waits");
}

#[test]
fn a_full_stream_holds_back_and_a_broken_one_is_told_to_the_reader() {
    let stream = Batched::new(Recorder { full: true, ..Recorder::default() });
    let mut writer = stream.clone();
    let mut driven = Driven::new(pending::<()>(), stream.clone());
    assert!(Pin::new(&mut writer).poll_write(&mut context(), &[7; 16_000]).is_ready());
    assert!(Pin::new(&mut writer).poll_write(&mut context(), &[7; 16_000]).is_pending(), "memory is bounded");
    assert!(Pin::new(&mut driven).poll(&mut context()).is_pending());
    stream.stream().full = false;
    stream.stream().fails = true;
    assert!(Pin::new(&mut driven).poll(&mut context()).is_pending());
    let mut space = [0; 8];
    let read = Pin::new(&mut writer).poll_read(&mut context(), &mut ReadBuf::new(&mut space));
    assert!(matches!(read, Poll::Ready(Err(_))), "{read:?}");
}

struct World {
    client: Rc<Client>,
    server: h2::server::Connection<DuplexStream, Bytes>,
    driver: JoinHandle<Result<(), Error>>,
}

async fn world() -> World {
    let (near, far) = duplex(64 << 10);
    let (client, connection) = open(near).await.unwrap();
    let driver = spawn_local(connection);
    let server = h2::server::handshake(far).await.unwrap();
    World { client: Rc::new(client), server, driver }
}

/// In one thread, in a bounded time.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(Duration::from_secs(300), test).await.unwrap() });
}

fn post(body: Body) -> Box<Request<Body>> {
    Box::new(Request::post("http://example.com/").body(body).unwrap())
}

type Answered = Result<(Response<super::Received>, super::Open), super::client::SendError>;

fn send(client: &Rc<Client>, request: Box<Request<Body>>) -> JoinHandle<Answered> {
    let client = client.clone();
    spawn_local(async move {
        let open = client.open();
        client.send(request).await.map(|answer| (answer, open))
    })
}

#[test]
fn an_answer_and_its_trailers_come_whole_and_its_stream_counts_until_then() {
    run(async {
        let mut world = world().await;
        let asked = send(&world.client, post(Body::full("question")));
        let (mut request, mut respond) = world.server.accept().await.unwrap().unwrap();
        assert_eq!(request.headers()["content-length"], "8");
        let server = spawn_local(async move { poll_fn(|cx| world.server.poll_closed(cx)).await });
        let mut came = Vec::new();
        while let Some(data) = request.body_mut().data().await {
            let data = data.unwrap();
            request.body_mut().flow_control().release_capacity(data.len()).unwrap();
            came.extend_from_slice(&data);
        }
        assert_eq!(came, b"question");
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let (answer, open) = asked.await.unwrap().ok().unwrap();
        assert_eq!(world.client.streams(), 1);
        stream.send_data(Bytes::from_static(b"answer"), false).unwrap();
        stream
            .send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect())
            .unwrap();
        let body = Body::incoming(crate::codec::Incoming::Http2(answer.into_body()));
        let whole = body.collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(whole.to_bytes(), "answer");
        drop(open);
        assert_eq!(world.client.streams(), 0);
        // Nobody holds it any more: it closes.
        drop(world.client);
        world.driver.await.unwrap().unwrap();
        drop(server);
    });
}

#[test]
fn what_breaks_off_is_no_answer() {
    run(async {
        for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR, h2::Reason::NO_ERROR] {
            let mut world = world().await;
            let asked = send(&world.client, post(Body::empty()));
            let (_, mut respond) = world.server.accept().await.unwrap().unwrap();
            let _server = spawn_local(async move { poll_fn(|cx| world.server.poll_closed(cx)).await });
            let head = Response::builder().header("content-length", "9").body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data(Bytes::from_static(b"half"), false).unwrap();
            let (answer, _open) = asked.await.unwrap().ok().unwrap();
            let mut body = answer.into_body();
            let data = poll_fn(|cx| body.poll(cx)).await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(data, "half");
            stream.send_reset(reason);
            let end = poll_fn(|cx| body.poll(cx)).await;
            assert!(matches!(end, Some(Err(BodyError::Http2(_)))), "{reason:?}");
        }
    });
}

#[test]
fn a_body_that_fails_cancels_its_stream_and_is_the_clients() {
    run(async {
        let mut world = world().await;
        let (to, from) = crate::codec::mirrored();
        let asked = send(&world.client, post(Body::copy_of(from)));
        let (request, _respond) = world.server.accept().await.unwrap().unwrap();
        let _server = spawn_local(async move { poll_fn(|cx| world.server.poll_closed(cx)).await });
        drop(to);
        let error = asked.await.unwrap().err().unwrap();
        assert!(error.error.is_clients() && error.request.is_none());
        let mut body = request.into_body();
        let broken = body.data().await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(h2::Reason::CANCEL));
    });
}

#[test]
fn a_request_that_nobody_waits_for_is_cancelled() {
    run(async {
        let mut world = world().await;
        let asked = send(&world.client, post(Body::empty()));
        let (_, mut respond) = world.server.accept().await.unwrap().unwrap();
        let _server = spawn_local(async move { poll_fn(|cx| world.server.poll_closed(cx)).await });
        asked.abort();
        let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
        assert_eq!(reason, h2::Reason::CANCEL);
        assert_eq!(world.client.streams(), 0);
    });
}

#[test]
fn what_was_not_sent_comes_back() {
    run(async {
        let mut world = world().await;
        world.server.graceful_shutdown();
        let server = spawn_local(async move { poll_fn(|cx| world.server.poll_closed(cx)).await });
        // Who closes first is open.
        let _ = server.await.unwrap();
        world.driver.await.unwrap().unwrap();
        let error = world.client.send(post(Body::full("kept"))).await.err().unwrap();
        let body = error.request.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "kept");
        assert!(world.client.is_over());
    });
}

#[test]
fn what_was_on_its_way_to_a_server_that_drains_is_served() {
    run(async {
        let (near, far) = duplex(64 << 10);
        let (client, connection) = open(near).await.unwrap();
        let mut connection = Box::pin(connection);
        let mut server = tokio::select! {
            server = h2::server::handshake(far) => server.unwrap(),
            _ = connection.as_mut() => panic!("the connection ended"),
        };
        server.graceful_shutdown();
        let drains = poll_fn(|cx| Poll::Ready(server.poll_accept(cx).is_pending())).await;
        assert!(drains, "it has asked what is still coming, and we have not read it");
        let asked = send(&Rc::new(client), post(Body::empty()));
        tokio::task::yield_now().await;
        let driver = spawn_local(connection);
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        assert!(server.accept().await.is_none(), "it was the last");
        assert!(asked.await.unwrap().is_ok());
        driver.await.unwrap().unwrap();
    });
}

#[test]
fn a_server_that_goes_says_which_requests_it_did_not_touch() {
    run(async {
        let mut world = world().await;
        let served = send(&world.client, post(Body::empty()));
        let (_, respond) = world.server.accept().await.unwrap().unwrap();
        // Its last stream is the first.
        world.server.abrupt_shutdown(h2::Reason::NO_ERROR);
        let late = send(&world.client, post(Body::empty()));
        assert!(poll_fn(|cx| world.server.poll_closed(cx)).await.is_ok());
        drop((world.server, respond));
        assert!(late.await.unwrap().err().unwrap().error.is_refusal());
        assert!(!served.await.unwrap().err().unwrap().error.is_refusal(), "it may have been served");
    });
}

#[test]
fn a_silent_peer_is_given_up_while_it_owes_an_answer_and_only_then() {
    run(async {
        let (near, mut far) = duplex(64 << 10);
        let (client, connection): (Client, Connection<_>) = open(near).await.unwrap();
        let mut connection = Box::pin(connection);
        // A server's empty settings; then never a word.
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let rests = timeout(PING * 10, connection.as_mut()).await;
        assert!(rests.is_err(), "nothing is asked while nothing is open");
        let asked = send(&Rc::new(client), post(Body::empty()));
        let began = tokio::time::Instant::now();
        let ended = connection.as_mut().await;
        drop(connection);
        assert!(matches!(ended, Err(Error::Silent)), "{ended:?}");
        assert!(began.elapsed() >= PING + PING_TIMEOUT);
        assert!(asked.await.unwrap().is_err());
    });
}

#[test]
fn a_rest_that_does_not_come_is_cancelled_once_the_answer_was_taken() {
    run(async {
        let mut world = world().await;
        let (_to, from) = crate::codec::mirrored();
        let asked = send(&world.client, post(Body::copy_of(from)));
        let (request, mut respond) = world.server.accept().await.unwrap().unwrap();
        let _server = spawn_local(async move { poll_fn(|cx| world.server.poll_closed(cx)).await });
        respond.send_response(Response::new(()), true).unwrap();
        let (answer, _open) = asked.await.unwrap().ok().unwrap();
        let mut body = request.into_body();
        assert!(timeout(REST_WAIT * 2, body.data()).await.is_err(), "the answer is still read");
        drop(answer);
        let began = tokio::time::Instant::now();
        let broken = body.data().await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(h2::Reason::CANCEL));
        assert!(began.elapsed() >= REST_WAIT);
    });
}
