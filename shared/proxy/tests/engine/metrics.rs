//! What scrapers and collectors get of a sidecar, over real connections.

use crate::{
    apps::{call, http_app},
    page::Page,
    traces::http_collector,
    world::{Pair, Sidecar, address, soon, until},
};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::TokioIo;
use meridian_pki::CertificateFiles;
use meridian_proxy::{
    listener::Accepted,
    metrics::{gather::Own, publish},
};
use meridian_proxy_config::{
    self as config, Protocol,
    metrics::{
        ApplicationMetrics, MetricProfile, Metrics, NameMatch, OpenTelemetry, Prometheus, ScrapeTls,
        SidecarMetrics,
    },
    types,
};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::metric::Data,
};
use prost::Message;
use std::{convert::Infallible, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

pub(crate) fn metrics(at: SocketAddr) -> Metrics {
    let (port, path) = (at.port().try_into().unwrap(), "/metrics".into());
    let prometheus = vec![Prometheus { port, path, tls: ScrapeTls::Off }];
    Metrics {
        address: at.ip(),
        prometheus,
        open_telemetry: vec![],
        sidecar: SidecarMetrics::default(),
        applications: vec![],
    }
}

/// Publishes as the control thread does, of a sidecar that was given no certificate.
fn publish(sidecar: &Sidecar) {
    publish_with(sidecar, None);
}

/// Publishes as the control thread does.
pub(crate) fn publish_with(sidecar: &Sidecar, files: Option<CertificateFiles>) {
    let shared = sidecar.engine.shared().clone();
    let own = {
        let shared = shared.clone();
        move || {
            let mut page = String::new();
            shared.metrics.render(&mut page).unwrap();
            Own { page, draining: false, connected: true, certificate: None }
        }
    };
    tokio::spawn(publish::run(shared, Arc::new(own), files));
}

async fn connection(at: SocketAddr) -> Option<SendRequest<Empty<Bytes>>> {
    connection_over(TcpStream::connect(at).await.ok()?).await
}

pub(crate) async fn connection_over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Option<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// One scrape, whose server waits for so many seconds.
pub(crate) async fn ask(
    sender: &mut SendRequest<Empty<Bytes>>,
    path: &str,
    waits: &str,
) -> Option<(u16, String)> {
    let request = Request::get(path).header("x-prometheus-scrape-timeout-seconds", waits);
    let response = sender.send_request(request.body(Empty::new()).unwrap()).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8(body.to_vec()).unwrap()))
}

/// A scrape once the port is open.
pub(crate) async fn scrape(at: SocketAddr) -> Page {
    let text = until("a page", async || {
        let (status, text) = ask(&mut connection(at).await?, "/metrics", "5").await?;
        (status == 200).then_some(text)
    })
    .await;
    Page::read(&text)
}

pub(crate) async fn is_closed(at: SocketAddr) {
    until("a closed port", async || TcpStream::connect(at).await.is_err().then_some(())).await;
}

/// An application that answers each path with a page.
async fn application(pages: &'static [(&'static str, &'static str, &'static str)]) -> SocketAddr {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let handler = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                let path = request.uri().path_and_query().unwrap().as_str();
                if path == "/hang" {
                    std::future::pending::<()>().await;
                }
                let (status, form, page) = match pages.iter().find(|(known, _, _)| *known == path) {
                    Some((_, form, page)) => (200, *form, (*page).to_owned()),
                    None if path == "/huge" => (200, "text/plain", "a 1\n".repeat(2 << 20)),
                    // A few bytes each, and far more in memory.
                    None if path == "/many" => (200, "text/plain", "a 1\n".repeat(100_000)),
                    None => (500, "text/plain", "a 1\n".to_owned()),
                };
                let response = http::Response::builder().status(status).header("content-type", form);
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(page))).unwrap())
            });
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handler);
            tokio::spawn(serving);
        }
    });
    at
}

#[tokio::test]
async fn a_sidecar_is_scraped_under_its_own_names_and_envoys() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let (web, backend) = (address(), address());
    for (sidecar, at) in [(&pair.web, web), (&pair.backend, backend)] {
        publish(sidecar);
        sidecar.feed(types::METRICS, "self", &metrics(at));
    }
    for path in ["/headers", "/headers", "/status/503"] {
        call(pair.outbound, path).await;
    }
    let page = scrape(web).await;
    let who = ["mesh=\"default\"", "dataplane=\"web-1\"", "kuma_io_service=\"web\"", "kuma_io_zone=\"east\""];
    assert_eq!(page.value("envoy_server_live", &who), Some(1.0));
    let of_backend = [&who[..], &["envoy_cluster_name=\"backend\""]].concat();
    assert_eq!(page.value("envoy_cluster_upstream_rq_total", &of_backend), Some(3.0));
    assert_eq!(page.value("envoy_cluster_membership_total", &of_backend), Some(1.0));
    assert_eq!(page.value("envoy_cluster_upstream_cx_active", &of_backend), Some(1.0));
    let failed = [&of_backend[..], &["envoy_response_code_class=\"5\""]].concat();
    assert_eq!(page.value("envoy_cluster_upstream_rq_xx", &failed), Some(1.0));
    assert_eq!(page.value("envoy_cluster_upstream_rq_time_count", &of_backend), Some(3.0));
    assert_eq!(
        page.value("meridian_proxy_requests_total", &[&who[..], &["class=\"2xx\""]].concat()),
        Some(2.0)
    );
    assert!(!page.has("envoy_cluster_upstream_rq_timeout"), "never counted");

    let local = format!("envoy_cluster_name=\"localhost_{}\"", application.port());
    let page = scrape(backend).await;
    assert_eq!(page.value("envoy_cluster_upstream_rq_total", &[&local]), Some(3.0));
    assert!(!page.has("envoy_cluster_upstream_cx_total"), "nobody counts connections to the application");
}

#[tokio::test]
async fn a_policy_chooses_names() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let at = address();
    publish(&pair.web);
    call(pair.outbound, "/headers").await;
    let mut told = metrics(at);
    told.sidecar = SidecarMetrics {
        include_unused: true,
        profile: MetricProfile::Basic,
        exclude: vec![NameMatch::Prefix("meridian_".into()), NameMatch::Contains("_time".into())],
        include: vec![NameMatch::Exact("envoy_cluster_upstream_rq_timeout".into())],
    };
    pair.web.feed(types::METRICS, "self", &told);
    let page = scrape(at).await;
    assert_eq!(page.value("envoy_cluster_upstream_rq_timeout", &[]), Some(0.0));
    for gone in [
        "envoy_cluster_upstream_rq_time_count",
        "envoy_cluster_manager_active_clusters",
        "meridian_proxy_accepted_total",
    ] {
        assert!(!page.has(gone), "{gone}");
    }
    told.sidecar.profile = MetricProfile::None;
    told.sidecar.include = vec![];
    pair.web.feed(types::METRICS, "self", &told);
    until("an empty page", async || {
        let (_, text) = ask(&mut connection(at).await?, "/metrics", "5").await?;
        text.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_port_follows_its_policy() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    publish(&pair.web);
    let (first, second) = (address(), address());
    let mut told = metrics(first);
    pair.web.feed(types::METRICS, "self", &told);
    scrape(first).await;
    let mut kept = connection(first).await.unwrap();
    assert_eq!(ask(&mut kept, "/metrics", "5").await.unwrap().0, 200);
    assert_eq!(ask(&mut kept, "/other", "5").await.unwrap().0, 404);

    // Another path: the port stays, and its connections.
    told.prometheus[0].path = "/other".into();
    pair.web.feed(types::METRICS, "self", &told);
    until("the path", async || {
        let status = ask(&mut kept, "/other", "5").await.expect("the connection stays").0;
        (status == 200).then_some(())
    })
    .await;
    assert_eq!(ask(&mut kept, "/metrics", "5").await.unwrap().0, 404);

    // Another port: the first closes, with what is open on it.
    pair.web.feed(types::METRICS, "self", &metrics(second));
    scrape(second).await;
    is_closed(first).await;
    until("the end", async || kept.is_closed().then_some(())).await;

    // No policy, or one that can't be understood: no port.
    pair.web.remove(types::METRICS, "self");
    is_closed(second).await;
    pair.web.feed(types::METRICS, "self", &metrics(second));
    scrape(second).await;
    let mut odd = metrics(second);
    odd.sidecar.exclude = vec![NameMatch::Regex("(".into())];
    let rejected = pair.web.engine.apply(&[crate::world::resource(types::METRICS, "self", &odd)], &[]);
    assert_eq!(rejected.len(), 1);
    is_closed(second).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_and_tried_again() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    publish(&pair.backend);
    let problems = || pair.backend.engine.shared().scrapes.problems();
    let taken = TcpListener::bind(address()).await.unwrap();
    let at = taken.local_addr().unwrap();
    pair.backend.feed(types::METRICS, "self", &metrics(at));
    until("the problem", async || {
        problems().iter().any(|it| it.starts_with(&format!("no metrics at {at}"))).then_some(())
    })
    .await;
    drop(taken);
    scrape(at).await;
    until("no problem", async || problems().is_empty().then_some(())).await;

    // The mesh's own traffic goes before.
    pair.backend.feed(types::METRICS, "self", &metrics(pair.inbound));
    until("the problem", async || {
        problems().iter().any(|it| it.ends_with("the inbound main has it")).then_some(())
    })
    .await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
}

#[tokio::test]
async fn applications_are_scraped_with_the_sidecar_and_none_spoils_the_rest() {
    const TEXT: &str = "text/plain; version=0.0.4";
    let (app, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, app).await;
    publish(&pair.web);
    let (at, host) = (address(), application(&[
        ("/metrics?all=1", TEXT, "# TYPE jobs_total counter\njobs_total{queue=\"a\\\"b\"} 3\nmesh_like{mesh=\"mine\"} 1\n# TYPE envoy_server_live histogram\nenvoy_server_live_bucket{le=\"+Inf\"} 1\n"),
        ("/om", "application/openmetrics-text; version=1.0.0", "# TYPE jobs gauge\njobs 1\n# TYPE reads counter\nreads_total 7 # {a=\"b\"} 1\n# EOF\n"),
        ("/typed", TEXT, "# TYPE jobs_total gauge\njobs_total 1\nown 1\nown 2\n# TYPE envoy_server_uptime counter\nenvoy_server_uptime 3\n"),
        ("/html", "text/html", "jobs_total 9\n"),
        ("/broken", TEXT, "jobs_total 9\nwhat is this\n"),
    ])
    .await);
    let named =
        |name: &str, path: &str| ApplicationMetrics { name: name.into(), address: host, path: path.into() };
    let nobody = ApplicationMetrics { name: "nobody".into(), address: address(), path: "/metrics".into() };
    let bad = ["/html", "/broken", "/gone", "/huge", "/many", "/hang", "/hang", "/hang", "/hang", "no path"];
    let mut applications =
        vec![named("good", "/metrics?all=1"), named("om", "/om"), named("typed", "/typed"), nobody];
    applications.extend(bad.iter().enumerate().map(|(i, path)| named(&format!("bad-{i}"), path)));
    pair.web.feed(types::METRICS, "self", &Metrics { applications, ..metrics(at) });
    let text = until("a page", async || {
        let (status, text) = soon("a page", ask(&mut connection(at).await?, "/metrics", "2")).await?;
        (status == 200).then_some(text)
    })
    .await;
    let page = Page::read(&text);
    let up = |name: &str| page.value("meridian_proxy_application_up", &[&format!("application=\"{name}\"")]);
    for good in ["good", "om", "typed"] {
        assert_eq!(up(good), Some(1.0), "{good}");
    }
    assert_eq!(up("nobody"), Some(0.0));
    for (index, path) in bad.iter().enumerate() {
        assert_eq!(up(&format!("bad-{index}")), Some(0.0), "{path}");
    }
    assert_eq!(
        page.value("jobs_total", &["application=\"good\"", "queue=\"a\\\"b\"", "mesh=\"default\""]),
        Some(3.0)
    );
    assert_eq!(page.value("own", &["application=\"typed\""]), Some(1.0), "the first word holds");
    assert_eq!(page.value("jobs_total", &["application=\"typed\""]), None, "of another type");
    assert_eq!(page.value("mesh_like", &["exported_mesh=\"mine\"", ",mesh=\"default\""]), Some(1.0));
    assert_eq!(page.value("reads_total", &["application=\"om\""]), Some(7.0));
    assert_eq!(page.value("envoy_server_live", &[]), Some(1.0), "the sidecar's own goes before");
    assert_eq!(page.value("meridian_proxy_application_left_out", &[]), Some(4.0));
    for first in ["jobs_total counter", "envoy_server_uptime gauge"] {
        assert!(text.contains(&format!("# TYPE {first}\n")), "{first}");
    }
    let told = include_str!("../../../../docs/metrics.md");
    for name in ["meridian_proxy_application_up", "meridian_proxy_application_left_out"] {
        assert!(page.has(name) && told.contains(&format!("`{name}`")), "{name}");
    }
}

#[tokio::test]
async fn a_captured_scraper_is_handed_over() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    publish(&pair.web);
    let at = address();
    pair.web.feed(types::METRICS, "self", &metrics(at));
    scrape(at).await;
    let shared = pair.web.engine.shared();
    assert!(publish::is_scrape(&shared.snapshots.load(), at));
    assert!(!publish::is_scrape(&shared.snapshots.load(), address()));
    // Where the rules of capture lead it: to another port.
    let captured = TcpListener::bind(address()).await.unwrap();
    let asking = tokio::spawn({
        let to = captured.local_addr().unwrap();
        async move { ask(&mut connection(to).await.unwrap(), "/metrics", "5").await }
    });
    let (stream, peer) = captured.accept().await.unwrap();
    shared.scrapes.hand_over(Accepted { stream, peer, original: at });
    let (status, text) = soon("a page", asking).await.unwrap().unwrap();
    assert_eq!(status, 200);
    assert!(Page::read(&text).has("envoy_server_live"));
}

/// Sent to very often.
fn collector(at: SocketAddr, http_path: Option<&str>) -> OpenTelemetry {
    let http_path = http_path.map(str::to_owned);
    OpenTelemetry {
        collector: config::Collector { endpoint: at.to_string(), http_path },
        interval_millis: 50.try_into().unwrap(),
    }
}

struct Collector(mpsc::Sender<ExportMetricsServiceRequest>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).await.map_err(|_| tonic::Status::unavailable("nobody reads"))?;
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Refuses what has a metric of a name.
struct Picky(&'static str, mpsc::Sender<Vec<String>>);

#[tonic::async_trait]
impl MetricsService for Picky {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        let names: Vec<_> = scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name).collect();
        if names.iter().any(|name| name == self.0) {
            return Err(tonic::Status::invalid_argument("a line\nand another"));
        }
        drop(self.1.send(names).await);
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_message_that_is_refused_does_not_keep_the_others_back() {
    let (app, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, app).await;
    publish(&pair.web);
    // As many as a message has: it is one of its own.
    let page: String = (0..2_000).map(|i| format!("bad{{i=\"{i}\"}} 1\n")).collect();
    let page: &'static str = format!("{page}zebra 1\n").leak();
    let host = application(vec![("/metrics", "text/plain", page)].leak()).await;

    let (sending, mut sent) = mpsc::channel(16);
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = MetricsServiceServer::new(Picky("bad", sending));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let collector = collector(at, None);
    let applications =
        vec![ApplicationMetrics { name: "app".into(), address: host, path: "/metrics".into() }];
    let told = Metrics { prometheus: vec![], open_telemetry: vec![collector], applications, ..metrics(at) };
    pair.web.feed(types::METRICS, "self", &told);
    soon("what comes after it", async { while !sent.recv().await.unwrap().contains(&"zebra".to_owned()) {} })
        .await;
    let said = format!("no metrics to {at}: {}", tonic::Code::InvalidArgument.description());
    until("the problem", async || {
        (pair.web.engine.shared().scrapes.problems() == [said.as_str()]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_collector_is_sent_metrics_once_it_is_there() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    publish(&pair.web);
    call(pair.outbound, "/headers").await;
    let at = address();
    let collector = collector(at, None);
    let told = Metrics { prometheus: vec![], open_telemetry: vec![collector], ..metrics(at) };
    pair.web.feed(types::METRICS, "self", &told);
    let problems = || pair.web.engine.shared().scrapes.problems();
    until("the problem", async || {
        problems().iter().any(|it| it.starts_with(&format!("no metrics to {at}"))).then_some(())
    })
    .await;

    let (sending, mut sent) = mpsc::channel(1);
    let listener = TcpListener::bind(at).await.unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = MetricsServiceServer::new(Collector(sending));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let message = soon("a message", sent.recv()).await.unwrap();
    let resource = &message.resource_metrics[0];
    let attributes = format!("{:?}", resource.resource.as_ref().unwrap().attributes);
    assert!(attributes.contains("service.name") && attributes.contains("\"web\""), "{attributes}");
    let metric = |name: &str| {
        let mut all = resource.scope_metrics[0].metrics.iter();
        all.find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}")).data.clone().unwrap()
    };
    let Data::Sum(requests) = metric("envoy_cluster_upstream_rq_total") else { panic!("no counter") };
    assert!(requests.is_monotonic && requests.data_points[0].start_time_unix_nano > 0);
    let Data::Histogram(times) = metric("envoy_cluster_upstream_rq_time") else { panic!("no histogram") };
    assert_eq!((times.data_points[0].count, times.data_points[0].bucket_counts.len()), (1, 17));
    until("no problem", async || {
        // The collector takes one at a time.
        let _ = sent.try_recv();
        problems().is_empty().then_some(())
    })
    .await;

    // Without the policy nothing more comes: the channel's last sender is the server's, so look at what is said.
    pair.web.remove(types::METRICS, "self");
    until("the end", async || {
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(300), sent.recv()).await;
        quiet.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn metrics_go_over_http_where_that_is_asked_for() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    publish(&pair.web);
    call(pair.outbound, "/headers").await;
    let (at, posted) = http_collector().await;
    let told =
        Metrics { prometheus: vec![], open_telemetry: vec![collector(at, Some("/base"))], ..metrics(at) };
    pair.web.feed(types::METRICS, "self", &told);
    let (line, content, body) = until("a message", async || posted.0.lock().unwrap().first().cloned()).await;
    assert_eq!((line.as_str(), content.as_str()), ("POST /base/v1/metrics", "application/x-protobuf"));
    let message = ExportMetricsServiceRequest::decode(body).unwrap();
    let mut all = message.resource_metrics[0].scope_metrics[0].metrics.iter();
    assert!(all.any(|metric| metric.name == "envoy_cluster_upstream_rq_total"));
    let problems = || pair.web.engine.shared().scrapes.problems();
    until("no problem", async || problems().is_empty().then_some(())).await;
}
