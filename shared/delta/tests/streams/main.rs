//! The rules of the protocol over real TLS, one test each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod pki;
mod world;

use std::time::Duration;

use meridian_delta::{Revision, StoreId, View, ViewChange};
use rustls::ClientConfig;
use tokio::io::AsyncReadExt;

use crate::pki::{Ca, client_config, server_config};
use crate::world::{World, eventually, put};

#[tokio::test]
async fn after_a_crash_of_the_publisher_only_the_difference_is_sent() {
    let world = World::new();
    put(&world.called.view, 5, 0..50, "old");
    let server = world.serve().await;
    world.pull(&world.connector());
    world.pulled_all().await;
    let sent = world.called.pulled.state().counters.resources;
    assert_eq!(sent, 50);

    server.kill();
    eventually("the caller notices", || !world.pulled.state().connected).await;
    assert!(world.pulled.state().error.is_some());
    put(&world.called.view, 6, 0..3, "new");
    world.called.view.apply(
        Revision(7),
        world.called.view.list().iter().skip(40).map(|each| ViewChange::Remove(each.id())),
    );
    let _server = world.serve().await;
    world.pulled_all().await;
    assert_eq!(world.called.pulled.state().counters.resources - sent, 3);
    eventually("it is current", || world.pulled.state().behind_millis(std::time::Instant::now()) == Some(0))
        .await;
    assert_eq!(world.pulled.state().revision, Some(Revision(7)));
    assert_eq!(world.pulled.state().error, None);
}

#[tokio::test]
async fn another_store_is_refused_whole_until_it_is_accepted() {
    let mut world = World::new();
    put(&world.called.view, 5, 0..5, "ours");
    let server = world.serve().await;
    world.pull(&world.connector());
    world.pulled_all().await;
    server.kill();

    let other = StoreId([2; 16]);
    world.called.view = View::new(other, Revision(0));
    put(&world.called.view, 1000, 3..8, "theirs");
    let _server = world.serve().await;
    eventually("both ends show it", || {
        world.pulled.state().refused.is_some() && world.called.pulled.state().refused.is_some()
    })
    .await;
    assert_eq!(world.disk.names().len(), 5);
    assert_eq!(world.pulled.state().offered.map(|offered| offered.store), Some(other));

    // Accepting another one than is shown does nothing.
    world.control.accept(StoreId([3; 16]));
    put(&world.called.view, 1001, 8..9, "theirs");
    eventually("the publisher announces it", || world.pulled.state().announced == Some(Revision(1001))).await;
    assert_eq!(world.disk.names().len(), 5);

    world.control.accept(other);
    world.pulled_all().await;
    eventually("both ends show it", || {
        world.pulled.state().refused.is_none() && world.called.pulled.state().refused.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_rejected_resource_stops_no_other_and_is_tried_again() {
    let world = World::new();
    world.disk.rejects.lock().unwrap().push(b"bad".to_vec());
    put(&world.called.view, 1, 0..4, "good");
    put(&world.called.view, 2, 4..5, "bad");
    put(&world.called.view, 3, 5..9, "good");
    let _server = world.serve().await;
    world.pull(&world.connector());
    eventually("the rest arrives", || world.disk.names().len() == 8).await;
    eventually("the publisher knows", || world.called.pulled.state().rejected.len() == 1).await;
    let rejected = world.called.pulled.state().rejected;
    assert_eq!((&*rejected[0].id.name, &*rejected[0].reason), ("thing-004", "not acceptable here"));
    assert_eq!(world.pulled.state().rejected, rejected);

    // The subscriber learns to accept it: the next try, a second later, succeeds.
    world.disk.rejects.lock().unwrap().clear();
    world.pulled_all().await;
    eventually("the publisher knows", || world.called.pulled.state().rejected.is_empty()).await;
}

#[tokio::test]
async fn a_slow_subscriber_gets_the_latest_value_and_holds_up_nobody() {
    let world = World::new();
    put(&world.called.view, 1, 0..10, "first");
    let _server = world.serve().await;
    let connector = world.connector();
    world.pull(&connector);
    world.pulled_all().await;
    let before = world.called.pulled.state().counters;

    // Its sink hangs, while ten thousand changes are made.
    world.disk.open.send_replace(false);
    for revision in 2..10_002 {
        put(
            &world.called.view,
            revision,
            [usize::try_from(revision % 10).unwrap()],
            &format!("at {revision}"),
        );
        if revision % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // The other direction of the same connection goes on.
    world.push(&connector);
    put(&world.view, 1, 0..20, "pushed");
    eventually("the other direction works", || world.called.disk.holds(&world.view)).await;
    let meanwhile = world.called.pulled.state().counters;
    assert!(meanwhile.updates - before.updates <= 1, "more than one update in flight");

    world.disk.open.send_replace(true);
    world.pulled_all().await;
    let after = world.called.pulled.state().counters;
    assert!(after.resources - before.resources <= 20, "{} resources", after.resources - before.resources);
}

#[tokio::test]
async fn more_than_fits_one_message_arrives_in_parts() {
    let world = World::new();
    put(&world.called.view, 1, 0..40, &"x".repeat(400 * 1024));
    let _server = world.serve().await;
    world.pull(&world.connector());
    world.pulled_all().await;
    assert_eq!(world.called.pulled.state().counters.updates, 40);
}

#[tokio::test]
async fn a_client_certificate_is_required_where_the_server_says_so() {
    let (ours, clients, strangers) = (Ca::new(), Ca::new(), Ca::new());
    let world = World::with(server_config(&ours, Some(&clients)), client_config(&ours, None));
    put(&world.called.view, 1, 0..3, "body");
    let _server = world.serve().await;
    world.pull(&world.connector());
    eventually("it is told why", || {
        world.pulled.state().error.is_some_and(|error| error.contains("CertificateRequired"))
    })
    .await;

    // Another CA's: refused as well. Ours: served at the next attempt, without a restart.
    world.client_tls.store(client_config(&ours, Some(&strangers.leaf("east"))));
    eventually("it is told why", || {
        let error = world.pulled.state().error.unwrap_or_default();
        error.contains("UnknownCA") || error.contains("DecryptError") || error.contains("BadCertificate")
    })
    .await;
    assert!(world.called.calls.lock().unwrap().is_empty());
    world.client_tls.store(client_config(&ours, Some(&clients.leaf("east"))));
    world.pulled_all().await;
    assert_eq!(*world.called.calls.lock().unwrap(), [(Some("Bearer secret".to_owned()), 1)]);
}

#[tokio::test]
async fn no_token_is_sent_to_a_server_that_is_not_verified() {
    let (ours, other) = (Ca::new(), Ca::new());
    let world = World::with(server_config(&other, None), client_config(&ours, None));
    put(&world.called.view, 1, 0..3, "body");
    let _server = world.serve().await;
    let connector = world.connector();
    world.pull(&connector);
    world.push(&connector);
    eventually("it is told why", || {
        let told = |error: Option<String>| error.is_some_and(|error| error.contains("could not be verified"));
        told(world.pulled.state().error) && told(world.pushed.state().error)
    })
    .await;
    assert!(connector.channel().await.is_err());
    assert!(world.called.calls.lock().unwrap().is_empty());

    // The server's certificate is exchanged while it runs, and the caller comes by itself.
    world.server_tls.store(server_config(&ours, None));
    world.pulled_all().await;
    assert_eq!(world.called.calls.lock().unwrap()[0].0.as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn certificates_change_under_a_running_stream() {
    let (old, new) = (Ca::new(), Ca::new());
    let world = World::with(server_config(&old, None), client_config(&old, None));
    put(&world.called.view, 1, 0..3, "one");
    let _server = world.serve().await;
    let connector = world.connector();
    world.pull(&connector);
    world.pulled_all().await;

    world.server_tls.store(server_config(&new, None));
    put(&world.called.view, 2, 0..3, "two");
    world.pulled_all().await;
    assert_eq!(world.called.pulled.state().counters.streams, 1);

    // A new connection meets the new certificate, with the trust of that time.
    connector.renew().await;
    assert!(connector.channel().await.is_err());
    world.client_tls.store(client_config(&new, None));
    assert!(connector.channel().await.is_ok());
}

#[tokio::test]
async fn a_drain_says_goodbye_and_the_caller_comes_back() {
    let world = World::new();
    put(&world.called.view, 1, 0..30, "one");
    put(&world.view, 1, 0..30, "one");
    let server = world.serve().await;
    let connector = world.connector();
    world.pull(&connector);
    world.push(&connector);
    world.pulled_all().await;
    eventually("it is pushed", || world.called.disk.holds(&world.view)).await;
    let began = tokio::time::Instant::now();
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(2), "the drain was cut");
    eventually("both streams were closed by the server", || world.called.ended("closed") == 2).await;
    eventually("no error is shown", || {
        !world.pulled.state().connected || world.pulled.state().error.is_none()
    })
    .await;

    put(&world.called.view, 2, 0..2, "two");
    let _server = world.serve().await;
    world.pulled_all().await;
    eventually("both are back", || world.pulled.state().connected && world.pushed.state().connected).await;
    assert_eq!(world.called.pulled.state().counters.resources, 32);
    assert_eq!(world.pushed.state().counters.resources, 30);
}

#[tokio::test]
async fn a_goodbye_differs_from_a_cut() {
    let world = World::new();
    put(&world.view, 1, 0..3, "one");
    let _server = world.serve().await;
    let pushing = world.push(&world.connector());
    eventually("it is pushed", || world.called.disk.holds(&world.view)).await;
    let node = world.called.pushed.state().node.unwrap();
    assert_eq!((node.name.as_str(), node.instance.as_str(), node.epoch), ("caller", "one", 7));
    pushing.abort();
    eventually("the server notices the cut", || world.called.ended("lost") == 1).await;

    let pushing = world.push(&world.connector());
    eventually("it is back", || world.called.pushed.state().connected).await;
    world.closing.cancel();
    pushing.await.unwrap();
    eventually("the server hears the goodbye", || world.called.ended("goodbye") == 1).await;
    assert_eq!(world.called.pushed.state().error, None);
}

#[tokio::test]
async fn an_aged_connection_is_replaced_and_nothing_is_sent_again() {
    let mut world = World::new();
    world.limits.max_age = Duration::from_millis(100);
    put(&world.called.view, 1, 0..30, "one");
    let _server = world.serve().await;
    world.pull(&world.connector());
    eventually("it was replaced a few times", || world.called.pulled.state().counters.streams > 3).await;
    assert!(world.disk.holds(&world.called.view));
    assert_eq!(world.called.pulled.state().counters.resources, 30);
}

#[tokio::test]
async fn one_refused_direction_leaves_the_other() {
    let mut world = World::new();
    world.node.name = "stranger".to_owned();
    put(&world.called.view, 1, 0..3, "one");
    let _server = world.serve().await;
    let connector = world.connector();
    world.pull(&connector);
    world.pulled_all().await;
    world.push(&connector);
    eventually("it is told why", || {
        world.pushed.state().error.is_some_and(|error| error.contains("no stranger may push"))
    })
    .await;
    put(&world.called.view, 2, 3..6, "two");
    world.pulled_all().await;
    assert_eq!(world.called.pulled.state().counters.streams, 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let mut world = World::new();
    world.limits.connections = 1;
    put(&world.called.view, 1, 0..3, "one");
    put(&world.view, 1, 0..3, "one");
    let _server = world.serve().await;
    let pulling = world.pull(&world.connector());
    world.pulled_all().await;
    // A second connection: it is served once the first has gone.
    world.push(&world.connector());
    put(&world.called.view, 2, 0..3, "two");
    world.pulled_all().await;
    assert!(world.called.disk.names().is_empty());
    pulling.abort();
    eventually("the second is served", || world.called.disk.holds(&world.view)).await;
}

#[tokio::test]
async fn a_connection_that_does_nothing_is_closed() {
    let world = World::new();
    let _server = world.serve().await;
    let silent = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let mut config = ClientConfig::clone(&world.client_tls.load_full());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(
            "localhost".try_into().unwrap(),
            tokio::net::TcpStream::connect(world.address).await.unwrap(),
        )
        .await
        .unwrap();
    // The server's limit is 10 s for either.
    let closed =
        tokio::time::timeout(Duration::from_secs(15), async { tokio::join!(drained(silent), drained(tls)) });
    closed.await.expect("both are closed");
}

/// Reads what comes (HTTP/2 settings) until the end.
async fn drained(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}
