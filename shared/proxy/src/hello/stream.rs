use super::parse::{self, ClientHello, HelloError, Parsed};
use super::watch::Watch;
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// How long a client may take for its hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("no whole ClientHello in time")]
    Timeout,
    #[error("connection closed before its ClientHello was whole")]
    Closed,
    #[error("reading the ClientHello")]
    Io(#[source] io::Error),
}

/// Reads until `buffer` holds a whole hello (it may hold more, and may begin with bytes read before).
pub async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    limit: Duration,
) -> Result<ClientHello, ReadError> {
    let read = async {
        loop {
            let wanted = match parse::read(buffer)? {
                Parsed::Hello(hello) => return Ok(hello),
                Parsed::Missing(count) => buffer.len() + count,
            };
            while buffer.len() < wanted {
                buffer.reserve(4096);
                if stream.read_buf(buffer).await.map_err(ReadError::Io)? == 0 {
                    return Err(ReadError::Closed);
                }
            }
        }
    };
    timeout(limit, read).await.unwrap_or(Err(ReadError::Timeout))
}

/// A client's stream whose first bytes were read: gives them out again, unchanged, and goes on with the rest.
///
/// With a [`Watch`] it holds what follows the first hello to that hello's name. A breach is an
/// [`io::ErrorKind::InvalidData`] with a [`HelloError`] inside, see [`HelloStream::breach`].
#[derive(Debug)]
pub struct HelloStream<S> {
    inner: S,
    ready: BytesMut,
    watch: Option<Box<Watch>>,
}

impl<S> HelloStream<S> {
    /// Gives out `read` first; nothing is watched.
    pub fn plain(inner: S, read: BytesMut) -> Self {
        Self { inner, ready: read, watch: None }
    }

    /// `read` begins with the hello.
    pub fn watched(inner: S, mut read: BytesMut, hello: &ClientHello) -> Result<Self, HelloError> {
        let rest = read.split_off(hello.length.min(read.len()));
        let mut watch = Box::new(Watch::new(hello.server_name.clone(), hello.early_data));
        watch.push(&rest, &mut read)?;
        let watch = (!watch.is_done()).then_some(watch);
        Ok(Self { inner, ready: read, watch })
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Whether an error of this stream means that the client changed the name.
    pub fn breach(error: &io::Error) -> Option<HelloError> {
        error.get_ref().and_then(|inner| inner.downcast_ref::<HelloError>()).copied()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HelloStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(out.remaining());
                out.put_slice(this.ready.get(..count).unwrap_or_default());
                this.ready.advance(count);
                if this.ready.is_empty() {
                    this.ready = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            let Some(watch) = &mut this.watch else {
                return Pin::new(&mut this.inner).poll_read(cx, out);
            };
            let mut scratch = [0; 4096];
            let mut read = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            watch
                .push(read.filled(), &mut this.ready)
                .map_err(|breach| io::Error::new(io::ErrorKind::InvalidData, breach))?;
            if watch.is_done() {
                this.watch = None;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HelloStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Sample, records};
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_hello_in_many_segments_comes_out_unchanged() {
        let (mut client, server) = tokio::io::duplex(16);
        let sent = records(&Sample::named("a.example").message(), 9);
        let mut expected = sent.clone();
        expected.extend(b"\x17\x03\x03\x00\x04rest");
        let writing = expected.clone();
        let writer = tokio::spawn(async move { client.write_all(&writing).await });
        let (mut server, mut buffer) = (server, BytesMut::new());
        let hello = read_hello(&mut server, &mut buffer, HELLO_TIMEOUT).await.unwrap();
        assert_eq!(hello.length, sent.len());
        let mut stream = HelloStream::watched(server, buffer, &hello).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap().unwrap();
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn a_changed_name_is_an_error_of_the_stream() {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(&Sample::named("a.example").bytes()).await.unwrap();
        client.write_all(&Sample::named("b.example").bytes()).await.unwrap();
        let (mut server, mut buffer) = (server, BytesMut::new());
        let hello = read_hello(&mut server, &mut buffer, HELLO_TIMEOUT).await.unwrap();
        let error = match HelloStream::watched(server, buffer, &hello) {
            Err(error) => error,
            Ok(mut stream) => {
                let mut got = Vec::new();
                let error = stream.read_to_end(&mut got).await.unwrap_err();
                assert_eq!(got, Sample::named("a.example").bytes());
                HelloStream::<()>::breach(&error).unwrap()
            }
        };
        assert_eq!(error, HelloError::NameChanged);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_given_up() {
        let (_client, mut server) = tokio::io::duplex(16);
        let error = read_hello(&mut server, &mut BytesMut::new(), HELLO_TIMEOUT).await.unwrap_err();
        assert!(matches!(error, ReadError::Timeout));
    }
}
