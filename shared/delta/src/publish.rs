//! A publisher's stream over tonic: the same for a server's `Pull` and a client's `Push`.

use std::sync::Arc;

use futures::StreamExt;
use meridian_proto::delta as wire;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Response;

use crate::peer::{Node, Peer, PeerStream};
use crate::protocol::{Next, PublisherSession, TooOld};
use crate::stream::{self, End, Inbound, Lost, Opened, Outbound, Sender, now};
use crate::view::View;

/// One end that publishes a view to one peer.
#[derive(Clone)]
pub struct Publisher {
    pub view: Arc<View>,
    /// The types it speaks for: what the peer holds of others stays. Empty: all.
    pub types: Vec<Arc<str>>,
    /// Updates are cut at so many bytes: [`crate::PART`], or [`crate::SMALL_PART`] to many peers that are near.
    pub part: usize,
    /// This process.
    pub node: Node,
    /// Where the peer's state is shown.
    pub peer: Peer,
}

impl Publisher {
    /// Answers a `Pull` that the application has let in. The stream runs in a task of its own until either end leaves or
    /// `closing` is cancelled ([`crate::server::Connection::closing`], or a child of it).
    pub fn answer(
        self,
        opened: Opened<wire::SubscriberMessage>,
        closing: CancellationToken,
    ) -> (Response<Outbound<wire::PublisherMessage>>, JoinHandle<End>) {
        let (sender, receiver) = stream::outbound();
        let task = tokio::spawn(async move {
            Box::pin(publish(&self, opened.inbound, sender, closing, Pace::Beat)).await
        });
        (Response::new(receiver), task)
    }
}

/// When heartbeats are sent: waking costs more than sending, so as many as can be go together.
pub(crate) enum Pace {
    /// Together with those of the process's other streams: many subscribers are connected.
    Beat,
    /// Together with what the other direction of the connection does.
    With(watch::Receiver<()>),
}

/// Never, if there is nobody to say so.
async fn pulsed(pulse: &mut Option<watch::Receiver<()>>) {
    let gone = match pulse {
        Some(pulse) => pulse.changed().await.is_err(),
        None => true,
    };
    if gone {
        *pulse = None;
        std::future::pending().await
    }
}

/// Runs one stream to its end.
pub(crate) async fn publish(
    publisher: &Publisher,
    inbound: Inbound<wire::SubscriberMessage>,
    outbound: Sender<wire::PublisherMessage>,
    closing: CancellationToken,
    pace: Pace,
) -> End {
    let (beat, pulse) = match pace {
        Pace::Beat => (Some(stream::beat()), None),
        Pace::With(pulse) => (None, Some(pulse)),
    };
    let session =
        PublisherSession::new(&publisher.types, publisher.node.clone(), publisher.part, beat, now());
    let changed = publisher.view.watch();
    let peer = publisher.peer.begin();
    let mut stream = Stream {
        view: &publisher.view,
        peer,
        session,
        inbound,
        outbound,
        closing,
        changed,
        pulse,
        idle: false,
    };
    let end = stream.run().await;
    stream.show();
    stream.peer.end(&end, None);
    end
}

struct Stream<'a> {
    view: &'a View,
    peer: PeerStream,
    session: PublisherSession,
    inbound: Inbound<wire::SubscriberMessage>,
    outbound: Sender<wire::PublisherMessage>,
    closing: CancellationToken,
    changed: watch::Receiver<u64>,
    pulse: Option<watch::Receiver<()>>,
    /// The session had nothing to send, and nothing happened since.
    idle: bool,
}

impl Stream<'_> {
    async fn run(&mut self) -> End {
        self.leave_if_retired();
        loop {
            self.show();
            let end = match self.turn().await {
                Ok(()) if self.session.is_closed() => End::Closed,
                Ok(()) => match self.session.peer_left() {
                    Some(reason) => End::Goodbye(reason),
                    None => continue,
                },
                Err(lost) => End::Lost(lost),
            };
            stream::finish(&end, &mut self.outbound, &mut self.inbound).await;
            return end;
        }
    }

    /// One event. Whatever it was, the session is asked again what to send.
    async fn turn(&mut self) -> Result<(), Lost> {
        let busy = !std::mem::take(&mut self.idle);
        // While the transport takes nothing, what is due to be sent can only wait.
        let wake = match busy {
            true => self.session.dead_at(),
            false => self.view.read(|contents| self.session.wake_at(contents)),
        };
        tokio::select! {
            biased;
            () = self.closing.cancelled(), if !self.session.is_closing() => self.session.close("closing"),
            message = self.inbound.next() => {
                let message = message.ok_or(Lost::Ended)?.map_err(|status| Lost::Status(Box::new(status)))?;
                self.view.read(|contents| self.session.on_message(message, contents, now()))?;
            }
            ready = self.outbound.ready(), if busy => {
                ready?;
                match self.view.read(|contents| self.session.poll(contents, now())) {
                    Ok(Next::Send(message)) => self.outbound.send(Ok(message)),
                    Ok(Next::Again) => {}
                    Ok(Next::Idle) => self.idle = true,
                    Err(TooOld) => return Err(Lost::TooOld),
                }
            }
            _ = self.changed.changed() => self.leave_if_retired(),
            () = pulsed(&mut self.pulse) => self.session.nudge(now()),
            () = tokio::time::sleep_until(wake.into()) => {
                if self.session.is_dead(now()) {
                    return Err(Lost::Silent);
                }
            }
        }
        Ok(())
    }

    fn leave_if_retired(&mut self) {
        if self.view.is_retired() && !self.session.is_closing() {
            self.session.close("what it shows is made anew");
        }
    }

    fn show(&mut self) {
        if self.session.has_news() {
            self.peer.update(|state| self.session.show(state));
        }
    }
}
