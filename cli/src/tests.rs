//! The command line as a user meets it: every command has help, every line of the documents parses, and mistakes are
//! told with the right exit code.

use crate::arguments::Arguments;
use crate::command::{apply, delete, denials, explain, generate, get, inspect, operate};
use crate::failure::{Exit, Result};
use bytes::Bytes;
use clap::{CommandFactory, Parser};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_and_flag_says_what_it_is_for() {
    fn walk(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} says nothing");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {} says nothing", argument.get_id());
        }
        command.get_subcommands().for_each(|sub| walk(sub, &path));
    }
    walk(&Arguments::command(), "");
}

#[test]
fn help_lists_commands_and_exit_codes() {
    let help = Arguments::command().render_long_help().to_string();
    for part in [
        "apply",
        "get",
        "delete",
        "inspect",
        "denials",
        "explain",
        "generate",
        "zone",
        "mesh",
        "config",
        "install",
        "uninstall",
        "global-cp",
        "zone-cp",
        "dataplane",
        "zone-ingress",
        "zone-egress",
        "64  bad flags",
        "77  not authenticated",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
}

#[test]
fn lines_of_the_documents_parse() {
    for line in [
        "apply -f mesh.yaml",
        "apply -f a.yaml -f dir/ -f - --dry-run -m prod --address https://g:5682 --token-file t --ca-cert-file ca.crt",
        "get meshservices",
        "get msvc web -m default -o yaml",
        "get external-services -A -l team=a -o json --size 10 --offset 20",
        "delete externalservice evil",
        "delete meshtrafficpermission web-to-backend --address http://127.0.0.1:5681 --token-file t",
        "delete -f demo/",
        "inspect dataplanes -m default",
        "inspect dataplane web-1 -o yaml",
        "inspect dataplane web-1 --type policies",
        "inspect dataplane web-1 --type config --shadow",
        "explain web backend.mesh:80",
        "explain web-1 http://backend.mesh/users -m default --method POST --header x-canary:yes --header a:b -o json",
        "inspect policy mt quick -m default",
        "inspect zones --ca-fingerprint sha256:ab",
        "denials --zone east --reason not-listed",
        "generate dataplane-token --mesh default --name web-1 --valid-for 24h",
        "generate dataplane-token --tag kuma.io/service=web,web-admin --valid-for 30d",
        "generate zone-token --zone east --scope cp --valid-for 24h",
        "generate zone-token --zone east --scope ingress,egress --valid-for 24h",
        "generate user-token --name ann --group mesh-system:admin --valid-for 8h --signing-key-file k.pem --kid 1",
        "generate signing-key --format pem-base64",
        "generate public-key --signing-key-file k.pem",
        "zone revoke east",
        "zone accept-global",
        "zone confirm-deletions east",
        "apply -f a.yaml -v NAME=web-1 --var ADDRESS=192.0.2.1",
        "mesh rotate-ca default",
        "mesh rotate-ca default --abort",
        "mesh rotate-ca default --status -o json",
        "config control-planes add --name prod --address https://g:5682 --token-file t --ca-cert-file c",
        "config view --client-config /tmp/x",
        "install transparent-proxy --kuma-dp-uid 5678 --redirect-dns",
        "install transparent-proxy --check --check-uid 1000",
        "uninstall transparent-proxy",
        "global-cp --data-dir /tmp/x --tls-san 10.0.0.10",
        "global-cp admin-token --data-dir /tmp/x",
        "global-cp restored --data-dir /tmp/x",
        "global-cp rotate-key --config c.yaml",
        "dataplane --cp-address https://z:5678 --ca-cert-file c --dataplane-token-file t --dataplane-file d.yaml --dataplane-var a=b --data-dir /tmp/x",
        "zone-ingress --cp-address https://z:5678 --ca-cert-file c --token-file t --name ingress --address 10.1.0.20 --port 10001 --advertised-address 192.0.2.1 --data-dir /tmp/x",
        "zone-egress --cp-address https://z:5678 --ca-fingerprint ab --token-file t --name egress --address 10.1.0.30 --data-dir /tmp/x",
        "zone-cp --zone east --global-address https://g:5685 --ca-fingerprint ab --zone-token-file t --take-over",
    ] {
        let words = std::iter::once("meridian").chain(line.split(' '));
        if let Err(error) = Arguments::try_parse_from(words) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn lines_that_mean_nothing_are_refused() {
    for line in [
        "",
        "apply",
        "get",
        "get meshgateways",
        "get dataplanes web -A",
        "delete externalservice",
        "delete externalservice evil -f x.yaml",
        "generate zone-token --zone east",
        "generate zone-token --zone east --scope root --valid-for 1h",
        "generate zone-token --zone east --valid-for soon",
        "generate user-token --name a --valid-for 1h --kid 1",
        "mesh rotate-ca default --abort --status",
        "get zones --ca-cert-file a --ca-fingerprint b",
        "install transparent-proxy --dry-run --check",
        "global-cp --data-dir /tmp/x admin-token",
        "frobnicate",
    ] {
        let words = std::iter::once("meridian").chain(line.split(' ').filter(|word| !word.is_empty()));
        assert!(Arguments::try_parse_from(words).is_err(), "`{line}` was taken");
    }
}

/// A control plane that notes what it is asked and answers as told.
#[derive(Clone)]
struct FakeControlPlane {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Script = fn(&str, &str, &Value) -> (StatusCode, Value);

impl FakeControlPlane {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                let service =
                    hyper::service::service_fn(move |request| answer(request, script, Arc::clone(&notes)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, asked }
    }

    async fn run(&self, line: &str) -> Result<()> {
        use crate::arguments::Command;
        let words = ["meridian"].into_iter().chain(line.split(' ')).chain(["--address", &self.address]);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Apply(apply) => apply::run(apply).await,
            Command::Get(get) => get::run(get).await,
            Command::Delete(delete) => delete::run(delete).await,
            Command::Inspect(inspect) => inspect::run(inspect).await,
            Command::Explain(explain) => explain::run(explain).await,
            Command::Denials(denials) => denials::run(denials).await,
            Command::Generate(generate) => generate::run(generate).await,
            Command::Zone(zone) => operate::zone(zone).await,
            Command::Mesh(mesh) => operate::mesh(mesh).await,
            _ => panic!("{line} does not ask a control plane"),
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn answer(
    request: Request<Incoming>,
    script: Script,
    notes: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().to_string();
    let path = request.uri().to_string();
    let token = request.headers().get("authorization").map(|value| format!(" {}", value.to_str().unwrap()));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    notes.lock().unwrap().push(format!("{method} {path}{}", token.unwrap_or_default()));
    let (status, answer) = script(&method, &path, &body);
    let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
}

fn problem(status: StatusCode, title: &str) -> (StatusCode, Value) {
    let invalid = json!([{"field": "spec.x", "reason": "unknown field", "source": "body"}]);
    (
        status,
        json!({"type": "/std-errors", "status": status.as_u16(), "title": title, "detail": "d", "invalid_parameters": invalid}),
    )
}

fn files(texts: &[&str]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (index, text) in texts.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{index}.yaml")), text).unwrap();
    }
    let path = dir.path().display().to_string();
    (dir, path)
}

#[tokio::test]
async fn nothing_is_written_unless_everything_is_valid() {
    let (_dir, path) = files(&[
        "type: Zone\nname: good\n---\ntype: Zone\nname: bad\n",
        "type: Secret\nname: s\ndata: YQ==\n",
    ]);
    let control_plane = FakeControlPlane::start(|_, path, _| {
        if path.contains("bad") {
            problem(StatusCode::BAD_REQUEST, "Resource is not valid")
        } else {
            (StatusCode::CREATED, json!({}))
        }
    })
    .await;
    let refused = control_plane.run(&format!("apply -f {path}")).await.unwrap_err();
    assert_eq!(refused.exit, Exit::Data);
    let text = refused.to_string();
    for part in
        ["1 of 3 documents", "nothing was changed", "Zone bad", "0.yaml, document 2", "spec.x: unknown field"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let asked = control_plane.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|asked| asked.ends_with("?dryRun=true")), "{asked:?}");
}

#[tokio::test]
async fn valid_documents_are_checked_then_written_in_order() {
    let (_dir, path) = files(&["type: Secret\nmesh: new\nname: s\ndata: YQ==\n", "type: Mesh\nname: new\n"]);
    let control_plane = FakeControlPlane::start(|_, path, _| {
        if path.contains("/meshes/new/secrets") && path.contains("dryRun") {
            problem(StatusCode::NOT_FOUND, "Mesh not found")
        } else {
            (StatusCode::CREATED, json!({"warnings": ["w"]}))
        }
    })
    .await;
    control_plane.run(&format!("apply -f {path}")).await.unwrap();
    let expected = [
        "PUT /meshes/new?dryRun=true",
        "PUT /meshes/new/secrets/s?dryRun=true",
        "PUT /meshes/new",
        "PUT /meshes/new/secrets/s",
    ];
    assert_eq!(control_plane.asked(), expected, "a resource may come with its mesh");
    control_plane.run(&format!("apply -f {path} --dry-run")).await.unwrap();
    assert_eq!(control_plane.asked(), expected[..2]);
}

#[tokio::test]
async fn a_resource_of_a_mesh_that_nobody_makes_is_refused() {
    let (_dir, path) = files(&["type: Secret\nmesh: gone\nname: s\ndata: YQ==\n"]);
    let control_plane =
        FakeControlPlane::start(|_, _, _| problem(StatusCode::NOT_FOUND, "Mesh not found")).await;
    let refused = control_plane.run(&format!("apply -f {path}")).await.unwrap_err();
    assert!(refused.to_string().contains("Mesh not found"), "{refused}");
}

#[tokio::test]
async fn a_write_that_breaks_off_says_what_is_missing() {
    let (_dir, path) = files(&["type: Zone\nname: a\n---\ntype: Zone\nname: b\n---\ntype: Zone\nname: c\n"]);
    let control_plane = FakeControlPlane::start(|_, path, _| {
        if path.ends_with("/zones/b") {
            problem(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable")
        } else {
            (StatusCode::OK, json!({}))
        }
    })
    .await;
    let failed = control_plane.run(&format!("apply -f {path}")).await.unwrap_err();
    assert_eq!(failed.exit, Exit::Unavailable);
    assert!(failed.to_string().contains("1 of 3 were written; not written: Zone b, Zone c"), "{failed}");
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    let control_plane = FakeControlPlane::start(|_, path, _| {
        let items: Vec<Value> = (0..2).map(|i| json!({"type": "Zone", "name": format!("z{i}")})).collect();
        if path.ends_with("offset=4") {
            (StatusCode::OK, json!({"total": 5, "items": [items[0]]}))
        } else {
            (StatusCode::OK, json!({"total": 5, "items": items}))
        }
    })
    .await;
    control_plane.run("get zones").await.unwrap();
    assert_eq!(
        control_plane.asked(),
        [0, 2, 4].map(|offset| format!("GET /zones?size=1000&offset={offset}"))
    );
    control_plane.run("get zones --size 2 --offset 1").await.unwrap();
    assert_eq!(control_plane.asked(), ["GET /zones?size=2&offset=1"]);
    control_plane.run("get external-services -m a/b -l x=y").await.unwrap();
    assert!(
        control_plane.asked()[0]
            .starts_with("GET /meshes/a%2Fb/external-services?filter%5Blabels.x%5D=y&size=")
    );
}

#[tokio::test]
async fn every_verb_goes_to_its_path() {
    let control_plane = FakeControlPlane::start(|_, path, body| match path {
        "/tokens/zone" => {
            assert_eq!(*body, json!({"zone": "east", "scope": ["egress"], "validFor": "24h0m0s"}));
            (StatusCode::OK, json!("the-token"))
        }
        _ => (StatusCode::OK, json!({"total": 0, "items": []})),
    })
    .await;
    for (line, asked) in [
        ("delete externalservice evil", "DELETE /meshes/default/external-services/evil"),
        ("delete zone east --dry-run", "DELETE /zones/east?dryRun=true"),
        ("inspect dataplanes", "GET /dataplanes/_overview?size=1000&offset=0"),
        ("inspect dataplanes -m m", "GET /meshes/m/dataplanes/_overview?size=1000&offset=0"),
        ("inspect dataplane web-1", "GET /meshes/default/dataplanes/web-1/_overview"),
        ("inspect zones", "GET /zones/_overview?size=1000&offset=0"),
        (
            "explain web backend.mesh:80 -m m --path /a?b=c --header k:v --shadow",
            "GET /meshes/m/_explain?source=web&destination=backend.mesh%3A80&path=%2Fa%3Fb%3Dc&header=k%3Av&shadow=true",
        ),
        (
            "inspect policy meshtimeout quick -m m",
            "GET /meshes/m/meshtimeouts/quick/_resources/dataplanes?size=1000&offset=0",
        ),
        ("denials --zone east", "GET /meshes/default/_denials?zone=east"),
        ("generate zone-token --zone east --scope egress --valid-for 24h", "POST /tokens/zone"),
        ("zone revoke east", "POST /zones/east/_revoke"),
        ("zone accept-global", "POST /_accept-global"),
        ("mesh rotate-ca m", "POST /meshes/m/_rotate-ca"),
        ("mesh rotate-ca m --abort", "POST /meshes/m/_rotate-ca?abort=true"),
        ("mesh rotate-ca m --status", "GET /meshes/m/_rotate-ca"),
    ] {
        control_plane.run(line).await.unwrap_or_else(|failure| panic!("{line}: {failure}"));
        assert_eq!(control_plane.asked(), [asked], "{line}");
    }
}

#[tokio::test]
async fn the_token_is_sent_and_refusals_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "abc\n").unwrap();
    let control_plane = FakeControlPlane::start(|_, path, _| match path {
        "/zones/anonymous" => problem(StatusCode::UNAUTHORIZED, "Could not authenticate a user"),
        "/zones/forbidden" => problem(StatusCode::FORBIDDEN, "Access Denied"),
        "/zones/odd" => (StatusCode::BAD_GATEWAY, json!("<html>")),
        _ => problem(StatusCode::NOT_FOUND, "Could not retrieve a resource"),
    })
    .await;
    for (name, exit, said) in [
        ("anonymous", Exit::Permission, "--token-file"),
        ("forbidden", Exit::Permission, "administrator"),
        ("odd", Exit::Unavailable, "502"),
        ("absent", Exit::Failed, "Could not retrieve a resource"),
    ] {
        let refused = control_plane
            .run(&format!("get zones {name} --token-file {}", token.display()))
            .await
            .unwrap_err();
        assert_eq!(refused.exit, exit, "{name}");
        assert!(refused.to_string().contains(said), "{said} in {refused}");
        assert_eq!(control_plane.asked(), [format!("GET /zones/{name} Bearer abc")]);
    }
}

/// One answer over TLS, with a certificate for 127.0.0.1; gives the address and the CA.
async fn https_control_plane() -> (String, meridian_pki::ServerCa) {
    use meridian_pki::{Identity, IdentityHandle, PrivateKey, ServerCa, link};
    let now = time::OffsetDateTime::now_utc();
    let ca = ServerCa::generate("test", now).unwrap();
    let key = PrivateKey::generate().unwrap();
    let identity = IdentityHandle::new();
    identity.set(
        Identity::new(ca.sign_server(&key, &["127.0.0.1".to_owned()], now).unwrap().chain, &key).unwrap(),
    );
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(
        link::server_config(identity, None, &[link::HTTP1]).unwrap(),
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = hyper::service::service_fn(|request| {
                answer(request, |_, _, _| (StatusCode::OK, json!({"total": 0, "items": []})), Arc::default())
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, ca)
}

#[tokio::test]
async fn over_https_the_control_plane_is_proven_by_ca_file_or_fingerprint() {
    let (address, ca) = https_control_plane().await;
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (dir.path().join("ca.crt"), dir.path().join("other.crt"));
    std::fs::write(&own, ca.authority().certificate_pem()).unwrap();
    let stranger = meridian_pki::ServerCa::generate("x", time::OffsetDateTime::now_utc()).unwrap();
    std::fs::write(&other, stranger.authority().certificate_pem()).unwrap();
    let control_plane = FakeControlPlane { address, asked: Arc::default() };
    let fingerprint = meridian_pki::link::Fingerprint::of(ca.authority().certificate());
    control_plane.run(&format!("get zones --ca-cert-file {}", own.display())).await.unwrap();
    control_plane.run(&format!("get zones --ca-fingerprint {fingerprint}")).await.unwrap();
    for flags in
        [format!("--ca-cert-file {}", other.display()), format!("--ca-fingerprint {}", "0".repeat(64))]
    {
        let refused = control_plane.run(&format!("get zones {flags}")).await.unwrap_err();
        assert_eq!(refused.exit, Exit::Unavailable);
        assert!(refused.to_string().contains("can't be verified, so nothing was sent"), "{refused}");
    }
    let refused = control_plane.run("get zones").await.unwrap_err();
    assert_eq!(refused.exit, Exit::Usage);
}

#[tokio::test]
async fn a_sidecars_configuration_is_asked_of_its_zone() {
    let control_plane = FakeControlPlane::start(|_, path, _| {
        let answer = json!({"name": "web-1", "xds": {}, "shadowPolicies": [], "changes": []});
        if path.ends_with("_overview") || path.starts_with("/meshes/default/dataplanes/web-1/_config") {
            (StatusCode::OK, answer)
        } else {
            problem(StatusCode::NOT_FOUND, "Not Found")
        }
    })
    .await;
    for (flags, query) in [("", ""), (" --shadow", "?shadow=true&include=diff")] {
        control_plane.run(&format!("inspect dataplane web-1 --type config{flags}")).await.unwrap();
        let path = "/meshes/default/dataplanes/web-1";
        assert_eq!(
            control_plane.asked(),
            [format!("GET {path}/_overview"), format!("GET {path}/_config{query}")]
        );
    }
    let refused = control_plane.run("inspect dataplane web-1 --shadow").await.unwrap_err();
    assert_eq!(refused.exit, Exit::Usage);
}

#[tokio::test]
async fn what_selects_nothing_is_said_without_asking() {
    let nobody = FakeControlPlane { address: "http://127.0.0.1:1".to_owned(), asked: Arc::default() };
    let refused = nobody.run("inspect policy dataplane web-1").await.unwrap_err();
    assert_eq!(refused.exit, Exit::Usage);
    assert!(refused.to_string().contains("no kind of policy"), "{refused}");
}

#[tokio::test]
async fn nobody_there_says_where_it_looked() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = FakeControlPlane { address: format!("http://{closed}"), asked: Arc::default() };
    let failed = nobody.run("get zones").await.unwrap_err();
    assert_eq!(failed.exit, Exit::Unavailable);
    assert!(failed.to_string().contains(&closed.to_string()), "{failed}");
}
