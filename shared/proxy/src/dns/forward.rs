//! Queries passed to the host's own servers, in turn.

use super::message::Question;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// For one server; the next is asked after it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The first server's answer that is one, under the client's ID. The transport is the client's own.
pub(super) async fn forward(
    question: &Question,
    query: &[u8],
    servers: &[SocketAddr],
    udp: bool,
) -> io::Result<Vec<u8>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no server to ask");
    for server in servers {
        let asked = async {
            if udp {
                over_udp(question, query, *server).await
            } else {
                over_tcp(question, query, *server).await
            }
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A fresh port and a fresh ID for every query: both must be guessed to forge an answer.
async fn over_udp(question: &Question, query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&with_id(query, id)).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if question.is_answered_by(answer, id) {
            return Ok(with_id(answer, question.id));
        }
    }
}

async fn over_tcp(question: &Question, query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random();
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(with_id(query, id));
    stream.write_all(&frame).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if question.is_answered_by(&answer, id) {
        Ok(with_id(&answer, question.id))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
    }
}

fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend(message.get(2..).unwrap_or_default());
    out
}
