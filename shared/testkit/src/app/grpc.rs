//! The Echo service, and a client that makes all four kinds of calls.

use super::announce;
use anyhow::{Context, Result, ensure};
use futures::{Stream, StreamExt};
use std::net::SocketAddr;
use std::pin::Pin;
use tonic::{Request, Response, Status, Streaming};

mod wire {
    #![allow(clippy::all, unreachable_pub)]
    tonic::include_proto!("meridian.test.v1");
}

use wire::Message;
use wire::echo_client::EchoClient;
use wire::echo_server::{Echo, EchoServer};

type MessageStream = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

struct Service;

#[tonic::async_trait]
impl Echo for Service {
    type ServerStreamStream = MessageStream;
    type BidirectionalStream = MessageStream;

    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        let message = request.into_inner();
        if message.text == "fail" {
            return Err(Status::failed_precondition("asked to fail"));
        }
        Ok(Response::new(message))
    }

    async fn server_stream(&self, request: Request<Message>) -> Result<Response<MessageStream>, Status> {
        let Message { text, count } = request.into_inner();
        let messages = (0..count).map(move |count| Ok(Message { text: text.clone(), count }));
        Ok(Response::new(Box::pin(futures::stream::iter(messages))))
    }

    async fn client_stream(&self, request: Request<Streaming<Message>>) -> Result<Response<Message>, Status> {
        let mut messages = request.into_inner();
        let mut last = Message::default();
        let mut count = 0;
        while let Some(message) = messages.next().await {
            last = message?;
            count += 1;
        }
        Ok(Response::new(Message { count, ..last }))
    }

    async fn bidirectional(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<MessageStream>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}

pub(super) async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    announce(listen);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    Ok(tonic::transport::Server::builder()
        .add_service(EchoServer::new(Service))
        .serve_with_incoming(incoming)
        .await?)
}

async fn connect(target: &str) -> Result<EchoClient<tonic::transport::Channel>> {
    EchoClient::connect(format!("http://{target}")).await.with_context(|| format!("connecting to {target}"))
}

pub(super) async fn call_all(target: &str) -> Result<()> {
    let mut client = connect(target).await?;
    let message = |text: &str, count| Message { text: text.to_owned(), count };
    let unary = client.unary(message("one", 0)).await?.into_inner();
    ensure!(unary.text == "one", "unary: {unary:?}");
    let failed = client.unary(message("fail", 0)).await.err().context("a failing call succeeded")?;
    ensure!(failed.code() == tonic::Code::FailedPrecondition, "status in trailers: {failed:?}");
    let many: Vec<_> = client.server_stream(message("many", 100)).await?.into_inner().collect().await;
    ensure!(many.len() == 100 && many.iter().all(Result::is_ok), "server stream: {} messages", many.len());
    let sent = futures::stream::iter((0..100).map(|n| Message { text: "in".to_owned(), count: n }));
    let counted = client.client_stream(sent).await?.into_inner();
    ensure!(counted.count == 100, "client stream: {counted:?}");
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let mut answers =
        client.bidirectional(tokio_stream::wrappers::ReceiverStream::new(receive)).await?.into_inner();
    for count in 0..10 {
        send.send(message("ping", count)).await?;
        let answer = answers.next().await.context("the stream ended")??;
        ensure!(answer.count == count, "bidirectional: {answer:?}");
    }
    drop(send);
    ensure!(answers.next().await.is_none(), "the stream goes on after its end");
    println!("unary, server stream, client stream, bidirectional: ok");
    Ok(())
}

/// Everything at once, as `meridian-app grpc-load` says.
pub(super) async fn load(
    target: &str,
    connections: usize,
    streams: usize,
    each: u32,
    streaming: bool,
) -> Result<()> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(connect(target).await?);
    }
    let all =
        clients.iter().flat_map(|client| (0..streams).map(|_| client.clone())).map(|client| async move {
            if streaming { messages(client, each).await } else { calls(client, each).await }
        });
    let answered: u32 = futures::future::try_join_all(all).await?.into_iter().sum();
    println!("{answered} answered");
    Ok(())
}

async fn calls(mut client: EchoClient<tonic::transport::Channel>, each: u32) -> Result<u32> {
    for count in 0..each {
        let answer = client.unary(Message { text: "one".to_owned(), count }).await?.into_inner();
        ensure!(answer.count == count, "unary: {answer:?}");
    }
    Ok(each)
}

async fn messages(mut client: EchoClient<tonic::transport::Channel>, each: u32) -> Result<u32> {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut answers = client.bidirectional(stream).await?.into_inner();
    for count in 0..each {
        send.send(Message { text: "one".to_owned(), count }).await?;
        let answer = answers.next().await.context("the stream ended")??;
        ensure!(answer.count == count, "bidirectional: {answer:?}");
    }
    Ok(each)
}

/// Holds a bidirectional stream open; gives the reason of its end.
pub(super) async fn hold(target: &str, busy: bool) -> Result<String> {
    let mut client = connect(target).await?;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    send.send(Message { text: "first".to_owned(), count: 0 }).await?;
    let mut answers =
        client.bidirectional(tokio_stream::wrappers::ReceiverStream::new(receive)).await?.into_inner();
    answers.next().await.context("the stream ended at once")??;
    println!("open");
    let sender = tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if busy && send.send(Message::default()).await.is_err() {
                return;
            }
        }
    });
    let reason = loop {
        match answers.next().await {
            Some(Ok(_)) => {}
            Some(Err(status)) => break format!("{:?}: {}", status.code(), status.message()),
            None => break "end of stream".to_owned(),
        }
    };
    sender.abort();
    Ok(reason)
}
