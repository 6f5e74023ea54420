//! Copies of requests, whose answers nobody reads.
//!
//! A copy costs the request nothing but the references to its bytes: it runs by itself, in a bounded time, and there are
//! only so many at once. What it can't have (too many copies, a mirror that is slower than the request) it goes without.

use super::{attempt::Errand, http::how};
use crate::{
    codec::{self as plumbing, Body, CopyFate, CopyFrom, CopyTo, Counted, How, mirrored},
    snapshot::{Cluster, MirrorTo},
    worker::Worker,
};
use http::{Request, header, uri::Authority};
use http_body::Body as _;
use http_body_util::BodyExt;
use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

/// Copies of one worker that may be under way: each holds as much of a body as a mirror may be behind.
const AT_ONCE: usize = 256;
/// How long a copy may take, answer included: nobody waits for it, so that nothing else would end it.
const LONGEST: Duration = Duration::from_secs(15);
/// Bytes of an answer that are read, so that its connection can be used again; beyond, it is cut off.
const READ: usize = 1 << 20;

/// Copies that are under way.
#[derive(Clone, Debug, Default)]
pub struct Mirrors(Rc<Cell<usize>>);

/// One of them.
struct Place(Rc<Cell<usize>>);

impl Mirrors {
    fn take(&self) -> Option<Place> {
        let under_way = self.0.get();
        (under_way < AT_ONCE).then(|| {
            self.0.set(under_way + 1);
            Place(self.0.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Begins the copies of a request that is about to be sent; its body is to be given to what is returned. `request` is as
/// rules and scripts have changed it.
pub(super) fn begin(
    worker: &Rc<Worker>,
    mirrors: &[MirrorTo],
    authority: &Authority,
    request: &Request<Body>,
) -> Vec<CopyTo> {
    // What changes its protocol is no request that could be answered twice.
    if mirrors.is_empty() || plumbing::is_upgrade(request) {
        return Vec::new();
    }
    let chosen = mirrors.iter().filter(|mirror| rand::random_range(0..1_000_000) < mirror.per_million);
    chosen.filter_map(|mirror| begin_one(worker, &mirror.cluster, authority, request)).collect()
}

fn begin_one(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    authority: &Authority,
    request: &Request<Body>,
) -> Option<CopyTo> {
    let cell = cluster.traffic.cell(worker.index);
    let Some(place) = worker.mirrors.take() else {
        cell.mirrors_dropped.inc();
        return None;
    };
    cell.mirrored.inc();
    let mut copy = Request::new(());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    *copy.version_mut() = request.version();
    // Nobody waits for the mirror's word.
    copy.headers_mut().remove(header::EXPECT);
    let (to, from) = if request.body().is_end_stream() {
        (None, None)
    } else {
        let (to, from) = mirrored();
        (Some(to), Some(from))
    };
    // Whom the request is for, whatever its backend is called outside.
    let asked = || plumbing::authority(request).ok().flatten().unwrap_or_else(|| authority.clone());
    let authority = cluster.leaving.as_ref().map_or_else(asked, |leaving| leaving.authority.clone());
    let errand = Copy { worker: worker.clone(), cluster: cluster.clone(), authority };
    worker.spawn(async move {
        let _place = place;
        let fate = from.as_ref().map(CopyFrom::fate);
        let run = async {
            tokio::select! {
                biased;
                // Nobody is told of a part that it was all. First: the request ends with it.
                () = given_up(fate) => false,
                () = errand.run(copy, from) => true,
            }
        };
        if errand.worker.timer.timeout(LONGEST, Box::pin(run)).await != Some(true) {
            errand.cluster.traffic.cell(errand.worker.index).mirrors_dropped.inc();
        }
    });
    to
}

async fn given_up(fate: Option<CopyFate>) {
    match fate {
        Some(fate) => fate.given_up().await,
        None => std::future::pending().await,
    }
}

struct Copy {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    authority: Authority,
}

impl Copy {
    async fn run(&self, copy: Request<()>, body: Option<CopyFrom>) {
        let Self { worker, cluster, authority } = self;
        let upstream = worker.upstreams.of(cluster);
        let Ok(active) = upstream.load.request(&cluster.at_once) else {
            return cluster.traffic.cell(worker.index).mirrors_dropped.inc();
        };
        let how = how(cluster, &copy);
        let counted = Counted { traffic: cluster.traffic.clone(), worker: worker.index, response: false };
        let clock = cluster.streams.begin(&worker.timer, body.is_none(), false);
        let timed = clock.clone();
        let mut request =
            copy.map(|()| body.map_or_else(Body::empty, Body::copy_of).counted(counted).request(timed));
        plumbing::prepare(&mut request, authority, matches!(how, How::Multiplexed { .. }), false);
        let mut response = Errand { worker, cluster, upstream, how, clock, hash: None, exchange: None }
            .answer(Box::new(request), None)
            .await;
        response.body_mut().active(active);
        tracing::debug!(service = %cluster.service, status = %response.status(), "mirrored");
        let mut read = 0;
        while read < READ
            && let Some(Ok(frame)) = response.body_mut().frame().await
        {
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
        }
    }
}
