//! What a request may cost: allocations of both sidecars together, counted and not timed, so that no machine's mood decides.
//!
//! One program holds the pair, a client and an application; these two allocate nothing for a request over HTTP/1.1. Who finds a
//! budget exceeded has made each request dearer: make it cheaper, or say in the budget's line why it is worth that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "engine/world.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod world;

use meridian_proxy_config::Protocol;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use world::{Pair, soon};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Requests before anything is counted: connections are made, buffers have grown.
const WARM: usize = 50;
const COUNTED: usize = 400;

/// A path, its request's body, its answer's body, and how many blocks both sidecars may allocate for one.
const BUDGETS: &[(&str, usize, usize, u64)] = &[
    ("/small", 0, 65, 38),
    ("/bodies", 1 << 10, 1 << 10, 44),
    // Of as many parts as the kernel makes of them.
    ("/large", 64 << 10, 64 << 10, 120),
];

#[tokio::test]
async fn a_request_stays_within_its_budget_of_allocations() {
    let _counts = dhat::Profiler::builder().testing().build();
    for (path, request, answer, budget) in BUDGETS {
        let application = application(*request, *answer).await;
        let pair = Pair::start(Protocol::Http, application).await;
        let mut client = Client::connect(pair.outbound, path, *request, *answer).await;
        client.ask(WARM).await;
        let before = dhat::HeapStats::get().total_blocks;
        client.ask(COUNTED).await;
        let blocks = dhat::HeapStats::get().total_blocks - before;
        let each = blocks.div_ceil(COUNTED as u64);
        assert!(each <= *budget, "{path}: {each} allocations for each request, where {budget} may be");
        // A budget far above what is spent guards nothing.
        assert!(
            each * 2 > *budget,
            "{path}: {each} allocations for each request: lower the budget of {budget}"
        );
    }
}

/// Answers whatever comes with the same bytes, out of buffers that it has.
async fn application(request: usize, answer: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut said = format!("HTTP/1.1 200 OK\r\ncontent-length: {answer}\r\n\r\n").into_bytes();
                said.resize(said.len() + answer, b'x');
                let mut buffer = vec![0; 128 << 10];
                while read_message(&mut stream, &mut buffer, request).await {
                    stream.write_all(&said).await.unwrap();
                }
            });
        }
    });
    address
}

/// Reads a head, and a body of that length. False: there is none.
async fn read_message(stream: &mut TcpStream, buffer: &mut [u8], body: usize) -> bool {
    let mut have = 0;
    loop {
        let read = stream.read(&mut buffer[have..]).await.unwrap_or(0);
        if read == 0 {
            return false;
        }
        have += read;
        let head = buffer[..have].windows(4).position(|window| window == b"\r\n\r\n");
        if head.is_some_and(|end| have >= end + 4 + body) {
            return true;
        }
    }
}

struct Client {
    stream: TcpStream,
    said: Vec<u8>,
    buffer: Vec<u8>,
    answer: usize,
}

impl Client {
    async fn connect(to: SocketAddr, path: &str, body: usize, answer: usize) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let method = if body > 0 { "POST" } else { "GET" };
        let length = if body > 0 { format!("content-length: {body}\r\n") } else { String::new() };
        let mut said = format!("{method} {path} HTTP/1.1\r\nhost: backend.mesh\r\n{length}\r\n").into_bytes();
        said.resize(said.len() + body, b'x');
        Self { stream, said, buffer: vec![0; 128 << 10], answer }
    }

    async fn ask(&mut self, times: usize) {
        for _ in 0..times {
            self.stream.write_all(&self.said).await.unwrap();
            let answered = soon("an answer", read_message(&mut self.stream, &mut self.buffer, self.answer));
            assert!(answered.await);
        }
    }
}
