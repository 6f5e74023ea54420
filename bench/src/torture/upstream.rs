//! The application of the cases: reads as strictly as can be, answers as it is asked to, and tells what reached it.

use anyhow::{Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What reached it, over all connections.
pub(super) type Seen = Rc<RefCell<Vec<String>>>;

const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// Fields that frame, or may be taken for one that does.
const FRAMING: [&str; 6] =
    ["content-length", "content_length", "transfer-encoding", "transfer_encoding", "expect", "upgrade"];

/// `answers`: to requests whose path is `/answer/` and an index in it; what has no such path is answered plainly.
pub(super) async fn serve(
    listener: TcpListener,
    answers: &'static [super::Answer],
    seen: Seen,
) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let seen = seen.clone();
        drop(tokio::task::spawn_local(async move {
            let mut connection = Connection { stream, read: BytesMut::new(), answers, seen };
            // The proxy may leave at any time.
            drop(connection.serve().await);
        }));
    }
}

struct Connection {
    stream: TcpStream,
    read: BytesMut,
    answers: &'static [super::Answer],
    seen: Seen,
}

/// A request, told in one line, and its path.
struct Request {
    told: String,
    path: String,
}

impl Connection {
    async fn serve(&mut self) -> Result<()> {
        loop {
            let Some(request) = self.request().await? else { return Ok(()) };
            self.seen.borrow_mut().push(request.told);
            let number =
                request.path.strip_prefix("/answer/").and_then(|number| number.parse::<usize>().ok());
            let Some(answer) = number.and_then(|number| self.answers.get(number)) else {
                self.stream.write_all(PLAIN).await?;
                continue;
            };
            self.stream.write_all(answer.sent.as_bytes()).await?;
            if answer.ends {
                self.stream.shutdown().await?;
                // Until the proxy leaves: a reset could overtake what was sent.
                while self.stream.read_buf(&mut self.read).await? > 0 {}
                return Ok(());
            }
        }
    }

    async fn more(&mut self) -> Result<bool> {
        Ok(self.stream.read_buf(&mut self.read).await? > 0)
    }

    /// `None`: the proxy has ended the connection between two requests.
    async fn request(&mut self) -> Result<Option<Request>> {
        let Some(first) = self.line().await? else { return Ok(None) };
        match self.rest(&first).await {
            Ok(rest) => {
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                let line = first.strip_suffix(" HTTP/1.1").unwrap_or(&first);
                Ok(Some(Request { told: format!("{line}{rest}"), path }))
            }
            Err(error) => {
                self.seen.borrow_mut().push(format!("{first}: {error}"));
                Err(error)
            }
        }
    }

    /// Fields that frame, and the body.
    async fn rest(&mut self, first: &str) -> Result<String> {
        let mut told = String::new();
        let (mut length, mut chunked) = (0, false);
        loop {
            let Some(line) = self.line().await? else { bail!("cut in its head") };
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { bail!("no field: {line:?}") };
            let (name, value) = (name.to_ascii_lowercase(), value.trim());
            if !FRAMING.contains(&name.as_str()) {
                continue;
            }
            told.push_str(&format!(" [{name}: {value}]"));
            match name.as_str() {
                "content-length" => length = value.parse()?,
                "transfer-encoding" => {
                    ensure!(value == "chunked", "another coding");
                    chunked = true;
                }
                _ => {}
            }
        }
        ensure!(!(chunked && length > 0), "its length in two ways");
        ensure!(first.ends_with(" HTTP/1.1"), "another version");
        let body = if chunked { self.chunks().await? } else { self.take(length).await? };
        if !body.is_empty() {
            told.push_str(&format!(" {}", shortened(&body)));
        }
        Ok(told)
    }

    async fn chunks(&mut self) -> Result<Bytes> {
        let mut body = BytesMut::new();
        loop {
            let Some(size) = self.line().await? else { bail!("cut in its body") };
            let size = usize::from_str_radix(&size, 16)?;
            if size == 0 {
                while self.line().await?.is_some_and(|trailer| !trailer.is_empty()) {}
                return Ok(body.freeze());
            }
            body.extend_from_slice(&self.take(size).await?);
            ensure!(self.take(2).await? == "\r\n".as_bytes(), "no end of a chunk");
        }
    }

    async fn take(&mut self, count: usize) -> Result<Bytes> {
        while self.read.len() < count {
            ensure!(self.more().await?, "cut in its body");
        }
        Ok(self.read.split_to(count).freeze())
    }

    /// Without its end, which has both its characters.
    async fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.split_to(end);
                self.read.advance(2);
                ensure!(!line.contains(&b'\n') && !line.contains(&b'\r'), "a bare end of line");
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }
}

/// As much as tells it from others.
fn shortened(body: &[u8]) -> String {
    const SHOWN: usize = 24;
    let text = String::from_utf8_lossy(body).escape_debug().to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}... ({} bytes)", text.get(..end).unwrap_or_default(), body.len()),
        None => text,
    }
}
