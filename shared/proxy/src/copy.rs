//! Bytes both ways between two streams, until both directions have ended.
//!
//! Bytes are read into a buffer that all connections of a thread share and written from there at once; only what the
//! other side does not take stays behind, in a buffer of its own. So an idle connection holds no memory. What one
//! read may take grows with what comes (1, 16, 256 KiB): big reads halve the cost of bulk transfer, and small ones
//! bound what a slow reader makes us keep.

use crate::{io::Stream, metrics::TrafficCell, timer::Timer};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::io::ReadBuf;

/// What one read takes at most.
const SIZES: [usize; 3] = [1 << 10, 16 << 10, 256 << 10];
const LARGEST: usize = 256 << 10;

thread_local! {
    /// One a thread, made at its first copy; pages that no read reached are never touched.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub a_to_b: u64,
    pub b_to_a: u64,
}

/// Copies with half-close: the end of one direction shuts down the other side's writing, and the opposite
/// direction goes on. Counts into `cell` as it goes (`a` is downstream: bytes from it are `bytes_in`).
/// Drop the future to cancel it.
///
/// # Errors
/// The first I/O error of either side.
pub async fn bidirectional<A: Stream, B: Stream>(
    a: &mut A,
    b: &mut B,
    cell: &TrafficCell,
) -> io::Result<Copied> {
    let moved = Cell::new(Copied::default());
    copy(a, b, cell, &moved).await?;
    Ok(moved.get())
}

/// As [`bidirectional`], and an error of kind `TimedOut` when nothing moved either way for `idle`. `None`: for ever.
///
/// # Errors
/// The first I/O error of either side, or the time-out.
pub async fn bidirectional_idle<A: Stream, B: Stream>(
    a: &mut A,
    b: &mut B,
    cell: &TrafficCell,
    timer: &Timer,
    idle: Option<Duration>,
) -> io::Result<Copied> {
    let moved = Cell::new(Copied::default());
    bidirectional_counted(a, b, cell, timer, idle, &moved).await.map(|()| moved.get())
}

/// As [`bidirectional_idle`]; `moved` says what went through, also when it ends with an error or is dropped.
///
/// # Errors
/// The first I/O error of either side, or the time-out.
pub async fn bidirectional_counted<A: Stream, B: Stream>(
    a: &mut A,
    b: &mut B,
    cell: &TrafficCell,
    timer: &Timer,
    idle: Option<Duration>,
    moved: &Cell<Copied>,
) -> io::Result<()> {
    let mut copying = pin!(copy(a, b, cell, moved));
    let Some(idle) = idle else {
        return copying.await;
    };
    loop {
        let before = moved.get();
        match timer.timeout(idle, copying.as_mut()).await {
            Some(result) => return result,
            None if moved.get() == before => return Err(io::ErrorKind::TimedOut.into()),
            None => {}
        }
    }
}

async fn copy<A: Stream, B: Stream>(
    a: &mut A,
    b: &mut B,
    cell: &TrafficCell,
    moved: &Cell<Copied>,
) -> io::Result<()> {
    let (mut forth, mut back) = (Half::default(), Half::default());
    poll_fn(|cx| {
        let sent = forth.poll(cx, a, b, &mut |n| {
            cell.bytes_in.add(n);
            let now = moved.get();
            moved.set(Copied { a_to_b: now.a_to_b + n, ..now });
        })?;
        let received = back.poll(cx, b, a, &mut |n| {
            cell.bytes_out.add(n);
            let now = moved.get();
            moved.set(Copied { b_to_a: now.b_to_a + n, ..now });
        })?;
        if sent.is_ready() && received.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read, and not yet taken by the other side.
    left: Vec<u8>,
    written: usize,
    size: usize,
    dirty: bool,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The source has ended.
    Ending,
    Done,
}

impl Half {
    fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &mut impl FnMut(u64),
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(self.drain(cx, to))?;
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Open => {
                    ready!(self.drain(cx, to))?;
                    match self.transfer(cx, from, to, count)? {
                        Poll::Ready(()) => {}
                        Poll::Pending => {
                            if self.dirty {
                                self.dirty = !Pin::new(&mut *to).poll_flush(cx)?.is_ready();
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Writes what an earlier pass had to leave.
    fn drain<W: Stream>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while let Some(rest) = self.left.get(self.written..).filter(|rest| !rest.is_empty()) {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        if self.written > 0 {
            self.left = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// One read, and one attempt to write it.
    fn transfer<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &mut impl FnMut(u64),
    ) -> io::Result<Poll<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.is_empty() {
                scratch.resize(LARGEST, 0);
            }
            let limit = SIZES.get(self.size).copied().unwrap_or(LARGEST);
            let mut buf = ReadBuf::new(scratch.get_mut(..limit).unwrap_or_default());
            if Pin::new(&mut *from).poll_read(cx, &mut buf)?.is_pending() {
                return Ok(Poll::Pending);
            }
            let read = buf.filled();
            if read.is_empty() {
                self.state = State::Ending;
                return Ok(Poll::Ready(()));
            }
            if read.len() == limit {
                self.size = (self.size + 1).min(SIZES.len() - 1);
            }
            count(read.len() as u64);
            self.dirty = true;
            let n = match Pin::new(&mut *to).poll_write(cx, read)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => n,
                Poll::Pending => 0,
            };
            self.left = read.get(n..).unwrap_or_default().to_vec();
            Ok(Poll::Ready(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn one_side_ends_and_the_other_goes_on() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut server) = duplex(64);
        let cell = TrafficCell::default();
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut question = Vec::new();
            server.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"question");
            server.write_all(b"a longer answer").await.unwrap();
            drop(server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"a longer answer");
        };
        let (copied, ()) = tokio::join!(bidirectional(&mut a, &mut b, &cell), talk);
        assert_eq!(copied.unwrap(), Copied { a_to_b: 8, b_to_a: 15 });
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_in_order() {
        let (mut client, mut a) = duplex(1 << 20);
        let (mut b, mut server) = duplex(7);
        let cell = TrafficCell::default();
        let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let talk = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            drop(server);
            received
        };
        let (copied, received) = tokio::join!(bidirectional(&mut a, &mut b, &cell), talk);
        assert!(received == sent, "what came differs from what was sent");
        assert_eq!(copied.unwrap().a_to_b, 300_000);
    }
}
