//! A connection that changes its protocol (WebSocket): the request goes over a connection of its own, and after a 101
//! bytes go both ways until both ends have closed or a change of rules ends it.

use super::{
    Body, Client, Error, Incoming,
    h1::{Upgraded, Upgrading},
    strip_response,
};
use crate::{
    copy::{self, Copied},
    exchange::{Exchange, Flags},
    metrics::{Open, Traffic},
    policy::timeouts::StreamLimits,
    timer::Timer,
    upstream::{Opened, Sending},
    worker::{Tracked, Worker},
};
use http::{Request, Response, StatusCode};
use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// The client's stream behind an upgrade, once it is answered so.
pub(crate) type ToUpgrade = oneshot::Receiver<Upgraded>;

/// Of a request that asks for another protocol.
pub(crate) fn upgrading<B>(request: &mut Request<B>) -> Option<ToUpgrade> {
    request.extensions_mut().remove::<Upgrading>().and_then(|it| it.take())
}

/// Sends an upgrade request (already prepared for HTTP/1.1) and joins both sides if it is granted. `tracked` is the
/// upstream connection's place in the registry. `limits` are held once the protocol has changed; `exchange` ends with
/// the last byte.
///
/// # Errors
/// The upstream side did not answer.
pub async fn upgrade(
    worker: &Rc<Worker>,
    mut request: Request<Body>,
    opened: Opened,
    tracked: Tracked,
    traffic: Arc<Traffic>,
    limits: StreamLimits,
    exchange: Option<Rc<Exchange>>,
) -> Result<Response<Body>, Error> {
    let downstream = upgrading(&mut request);
    let Opened { transport, active, .. } = opened;
    let reset = transport.reset();
    let client = Client::alone(transport);
    let answer = client.send(&worker.timer, Box::new(request), false).await;
    let response = answer.map_err(|error| error.error)?.map(Incoming::Http1);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let mut response = response.map(|body| Body::incoming(body).with(Sending::alone(client)));
        response.body_mut().active(active);
        strip_response(&mut response);
        return Ok(response);
    }
    let upstream = client.into_stream();
    let (idle, max) = limits.tunnel();
    let index = worker.index;
    let timer = worker.timer.clone();
    worker.spawn(async move {
        let _active = active;
        let cell = traffic.cell(index);
        let _open = Open::new(cell);
        let (Some(downstream), Some(mut b)) = (downstream, upstream) else { return };
        let Ok(mut a) = downstream.await else { return };
        let moved = Cell::new(Copied::default());
        tokio::select! {
            _ = copy::bidirectional_counted(&mut a, &mut b, cell, &timer, idle, &moved) => {}
            () = lasting(&timer, max) => reset.arm(),
            _ = tracked.reset() => reset.arm(),
        }
        if let Some(exchange) = exchange {
            exchange.closed(moved.get(), Flags::NONE);
        }
    });
    let mut response = response.map(|_| Body::empty());
    strip_response(&mut response);
    Ok(response)
}

/// Ends when a stream has lasted too long.
async fn lasting(timer: &Timer, max: Option<Duration>) {
    match max {
        Some(max) => timer.sleep(max).await,
        None => std::future::pending().await,
    }
}
