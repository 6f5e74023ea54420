//! What is slow, big, malformed or too much is answered or cut.

use crate::harness::Server;
use meridian_api::Role;
use meridian_api::access::Access;
use meridian_api::server::Bounds;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SHORT: Duration = Duration::from_millis(200);

async fn bounded(bounds: Bounds) -> Server {
    Server::with(Role::Global, Access::default(), bounds).await
}

/// Sends bytes, then reads until the server closes; fails after some seconds.
async fn exchange(server: &Server, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the server did not close: {:?}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_slow_head_is_answered() {
    let server = bounded(Bounds { header: SHORT, ..Bounds::default() }).await;
    let start = Instant::now();
    let answer = exchange(&server, b"GET /meshes HTTP/1.1\r\nhost: x\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(start.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_head_that_drips_gets_no_more_time() {
    let server = bounded(Bounds { header: SHORT, ..Bounds::default() }).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let dripping = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SHORT / 4);
        loop {
            ticks.tick().await;
            if writer.write_all(b"a").await.is_err() {
                return;
            }
        }
    });
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(8), reader.read_to_end(&mut answer)).await;
    dripping.abort();
    assert!(read.is_ok(), "the server did not close");
}

#[tokio::test]
async fn who_says_nothing_is_cut() {
    let server = bounded(Bounds { header: SHORT, ..Bounds::default() }).await;
    assert_eq!(exchange(&server, b"").await, "");
    // The first bytes of HTTP/2: nothing that could be answered.
    assert!(!exchange(&server, b"PRI * HTTP/2.0\r\n\r\n").await.contains("408"));
}

#[tokio::test]
async fn a_connection_may_idle_longer_than_a_head_may_take() {
    let server = bounded(Bounds { header: SHORT, idle: Duration::from_secs(60), ..Bounds::default() }).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = b"GET /healthy HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut buffer = vec![0; 4096];
    stream.write_all(request).await.unwrap();
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    // A head that began after this connection fell idle has had its time.
    let late = exchange(&server, b"GET /healthy HTTP/1.1\r\n").await;
    assert!(late.starts_with("HTTP/1.1 408 "), "{late}");
    stream.write_all(request).await.unwrap();
    let read = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&buffer[..read]));
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = bounded(Bounds { idle: SHORT, ..Bounds::default() }).await;
    let answer = exchange(&server, b"GET /healthy HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("408"), "{answer}");
}

#[tokio::test]
async fn a_slow_body_is_answered() {
    let server = bounded(Bounds { read: SHORT, ..Bounds::default() }).await;
    let head = "PUT /meshes/default HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{";
    let answer = exchange(&server, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("took too long"), "{answer}");
}

#[tokio::test]
async fn an_oversized_body_is_answered() {
    let server = Server::start().await;
    let admin = [("authorization", "Bearer admin")];
    let announced = "PUT /meshes/default HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\n";
    let answer = exchange(&server, announced.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let big = "x".repeat((1 << 20) + 1);
    let answer = server.call("PUT", "/meshes/default", &admin, &big).await;
    assert_eq!((answer.status, answer.json()["status"].as_u64()), (413, Some(413)));
    assert_eq!(server.get("/meshes").await.json()["total"], 0);
}

#[tokio::test]
async fn an_oversized_resource_is_a_violation() {
    let server = Server::start().await;
    server.mesh("default").await;
    let data = "A".repeat(700 << 10);
    let body = serde_json::json!({"type": "Secret", "mesh": "default", "name": "s", "data": data});
    let answer = server.put("/meshes/default/secrets/s", body).await;
    assert_eq!((answer.status, answer.invalid().len()), (400, 1), "{}", &answer.text[..300]);
}

#[tokio::test]
async fn an_oversized_head_and_a_malformed_request_are_answered() {
    let server = bounded(Bounds { head: 16 << 10, ..Bounds::default() }).await;
    let big = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(64 << 10));
    let answer = exchange(&server, big.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = exchange(&server, b"NONSENSE\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn too_many_connections_are_refused_and_the_next_ones_are_not() {
    let server =
        bounded(Bounds { connections: 2, header: Duration::from_secs(5), ..Bounds::default() }).await;
    let held = [
        TcpStream::connect(server.address).await.unwrap(),
        TcpStream::connect(server.address).await.unwrap(),
    ];
    let refused = exchange(&server, b"").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    drop(held);
    let answered = async || {
        let stream = TcpStream::connect(server.address).await?;
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(b"GET /healthy HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        reader.read_to_string(&mut text).await?;
        anyhow::ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
        anyhow::Ok(())
    };
    meridian_testkit::wait::until("a free place", Duration::from_secs(8), answered).await.unwrap();
}
