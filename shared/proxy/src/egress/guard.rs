//! Holds the first bytes of an opaque connection to its entry, without waiting for them: a server may speak first.

use crate::{
    hello::{HELLO_TIMEOUT, HelloError, HelloStream, Opening, Parsed, opening, read},
    host::HostName,
};
use bytes::BytesMut;
use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What a ClientHello at the start of a connection means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The proxy itself speaks TLS to the server: a client that does too would hide what it says.
    NoTls,
    /// One of these must be its server name.
    Names(Vec<HostName>),
    /// There must be one; with one of these names, if there are any.
    OnlyTls(Vec<HostName>),
    /// Nothing: the entry is an address, and the address is held.
    Nothing,
}

/// Why a connection broke its entry's terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    #[error("a ClientHello to an entry that originates TLS itself")]
    OriginatesTls,
    #[error("no ClientHello where nothing else is taken")]
    NoTls,
    #[error("a ClientHello without a server name")]
    NoName,
    #[error("a ClientHello for {0}")]
    WrongName(HostName),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("an unfinished ClientHello")]
    Unfinished,
}

/// A client's stream that ends with a [`Breach`] before a byte that breaks the terms gets through.
pub struct Guard<S> {
    phase: Phase<S>,
}

enum Phase<S> {
    /// Held until it is clear what they are: at most six bytes, or a whole hello.
    Opening {
        inner: S,
        held: BytesMut,
        wanted: usize,
        hold: Hold,
        deadline: Option<Pin<Box<Sleep>>>,
    },
    Open(HelloStream<S>),
    /// Between two others only.
    Moving,
}

impl<S> Guard<S> {
    pub fn new(inner: S, hold: Hold) -> Self {
        let phase = match hold {
            Hold::Nothing => Phase::Open(HelloStream::plain(inner, BytesMut::new())),
            hold => Phase::Opening { inner, held: BytesMut::new(), wanted: 1, hold, deadline: None },
        };
        Self { phase }
    }

    /// The breach that an error of this stream stands for.
    pub fn breach(error: &io::Error) -> Option<Breach> {
        let inner = error.get_ref()?;
        inner
            .downcast_ref::<Breach>()
            .cloned()
            .or_else(|| inner.downcast_ref::<HelloError>().map(|e| (*e).into()))
    }

    fn open(&mut self) -> Result<(), Breach> {
        let Phase::Opening { inner, held, .. } = std::mem::replace(&mut self.phase, Phase::Moving) else {
            return Ok(());
        };
        self.phase = Phase::Open(match read(&held) {
            Ok(Parsed::Hello(hello)) => HelloStream::watched(inner, held, &hello)?,
            _ => HelloStream::plain(inner, held),
        });
        Ok(())
    }
}

/// Whether what is held may go on, or how many bytes more are needed to tell.
enum Verdict {
    Pass,
    Need(usize),
}

fn judge(held: &[u8], hold: &Hold) -> Result<Verdict, Breach> {
    match (opening(held), hold) {
        (Opening::Undecided, _) => Ok(Verdict::Need(1)),
        (Opening::Other, Hold::OnlyTls(_)) => Err(Breach::NoTls),
        (Opening::Other, _) | (_, Hold::Nothing) => Ok(Verdict::Pass),
        (Opening::Tls, Hold::NoTls) => Err(Breach::OriginatesTls),
        (Opening::Tls, Hold::Names(names) | Hold::OnlyTls(names)) => match read(held)? {
            Parsed::Missing(count) => Ok(Verdict::Need(count)),
            Parsed::Hello(_) if names.is_empty() && matches!(hold, Hold::OnlyTls(_)) => Ok(Verdict::Pass),
            Parsed::Hello(hello) => match hello.server_name {
                None => Err(Breach::NoName),
                Some(name) if names.contains(&name) => Ok(Verdict::Pass),
                Some(name) => Err(Breach::WrongName(name)),
            },
        },
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let broken = |breach: Breach| Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, breach)));
        loop {
            let (inner, held, wanted, hold, deadline) = match &mut this.phase {
                Phase::Open(stream) => return Pin::new(stream).poll_read(cx, out),
                Phase::Opening { inner, held, wanted, hold, deadline } => {
                    (inner, held, wanted, hold, deadline)
                }
                Phase::Moving => return Poll::Ready(Ok(())),
            };
            if held.len() >= *wanted {
                match judge(held, hold) {
                    Err(breach) => return broken(breach),
                    Ok(Verdict::Need(count)) => *wanted = held.len() + count,
                    Ok(Verdict::Pass) => match this.open() {
                        Ok(()) => continue,
                        Err(breach) => return broken(breach),
                    },
                }
            }
            if !held.is_empty() {
                let deadline = deadline.get_or_insert_with(|| Box::pin(sleep(HELLO_TIMEOUT)));
                if deadline.as_mut().poll(cx).is_ready() {
                    return broken(Breach::Unfinished);
                }
            }
            let mut scratch = [0; 4096];
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                // The end: a beginning that might have become a hello is just bytes, a begun hello is none.
                match (opening(held), &hold) {
                    (Opening::Tls, _) => return broken(Breach::Unfinished),
                    (_, Hold::OnlyTls(_)) if !held.is_empty() => return broken(Breach::NoTls),
                    _ => {}
                }
                if let Err(breach) = this.open() {
                    return broken(breach);
                }
                continue;
            }
            held.extend_from_slice(buffer.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> Guard<S> {
    /// The client's own stream: what is written does not depend on what was read.
    fn writer(&mut self) -> io::Result<Pin<&mut S>> {
        match &mut self.phase {
            Phase::Open(stream) => Ok(Pin::new(stream.get_mut())),
            Phase::Opening { inner, .. } => Ok(Pin::new(inner)),
            Phase::Moving => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().writer()?.poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::samples::{Sample, records};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn names() -> Hold {
        Hold::Names(vec![HostName::parse(b"good.example").unwrap()])
    }

    /// What comes through of `sent`, in pieces of `piece` bytes, and how it ends.
    async fn pass(hold: Hold, sent: &[u8], piece: usize) -> (Vec<u8>, Option<Breach>) {
        let (mut client, server) = tokio::io::duplex(piece);
        let sent = sent.to_vec();
        let writer = tokio::spawn(async move { client.write_all(&sent).await });
        let mut guard = Guard::new(server, hold);
        let mut got = Vec::new();
        let end = guard.read_to_end(&mut got).await;
        drop(guard);
        let _ = writer.await;
        (got, end.err().and_then(|error| Guard::<()>::breach(&error)))
    }

    #[tokio::test]
    async fn only_the_entrys_name_passes() {
        for piece in [1, 7, 4096] {
            let good = records(&Sample::named("Good.Example").message(), 50);
            assert_eq!(pass(names(), &good, piece).await, (good, None));
            let wrong = Sample::named("evil.example").bytes();
            let evil = HostName::parse(b"evil.example").unwrap();
            assert_eq!(pass(names(), &wrong, piece).await, (vec![], Some(Breach::WrongName(evil))));
            let (got, breach) = pass(names(), &Sample::default().bytes(), piece).await;
            assert_eq!((got, breach), (vec![], Some(Breach::NoName)));
        }
    }

    #[tokio::test]
    async fn a_hello_to_an_originating_entry_is_refused() {
        let hello = Sample::named("good.example").bytes();
        assert_eq!(pass(Hold::NoTls, &hello, 1).await, (vec![], Some(Breach::OriginatesTls)));
        assert_eq!(pass(Hold::NoTls, b"HELO", 1).await, (b"HELO".to_vec(), None));
    }

    #[tokio::test]
    async fn where_only_tls_is_taken_nothing_else_passes() {
        let only = |names: &[&str]| {
            Hold::OnlyTls(names.iter().map(|name| HostName::parse(name.as_bytes()).unwrap()).collect())
        };
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16", b"\x16\x02ab", b"SSH-2.0-x\r\n"] {
            for hold in [only(&["good.example"]), only(&[])] {
                assert_eq!(pass(hold, bytes, 1).await, (vec![], Some(Breach::NoTls)), "{bytes:?}");
            }
        }
        assert_eq!(pass(only(&[]), b"", 1).await, (vec![], None));
        let [good, evil] = ["good.example", "evil.example"].map(|name| Sample::named(name).bytes());
        let nameless = Sample::default().bytes();
        assert_eq!(pass(only(&["good.example"]), &good, 7).await, (good, None));
        assert!(matches!(pass(only(&["good.example"]), &evil, 7).await.1, Some(Breach::WrongName(_))));
        assert_eq!(pass(only(&["good.example"]), &nameless, 7).await, (vec![], Some(Breach::NoName)));
        // An address is listed: it is held, and whatever name goes with it.
        for hello in [evil, nameless] {
            assert_eq!(pass(only(&[]), &hello, 7).await, (hello, None));
        }
    }

    #[tokio::test]
    async fn other_bytes_pass_unchanged() {
        for bytes in [&b""[..], b"\x16", b"\x16\x03", b"\x16\x02ab", b"SSH-2.0-x\r\n"] {
            assert_eq!(pass(names(), bytes, 1).await, (bytes.to_vec(), None), "{bytes:?}");
        }
        let half = &Sample::named("good.example").bytes()[..30];
        assert_eq!(pass(names(), half, 8).await, (vec![], Some(Breach::Unfinished)));
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_heard() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut guard = Guard::new(server, names());
        guard.write_all(b"220 ready\r\n").await.unwrap();
        let mut got = [0; 11];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"220 ready\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_hello_does_not_wait_for_ever() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        let error = Guard::new(server, names()).read_u8().await.unwrap_err();
        assert_eq!(Guard::<()>::breach(&error), Some(Breach::Unfinished));
    }
}
