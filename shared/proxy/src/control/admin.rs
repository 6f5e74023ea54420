//! What can be asked of a running proxy: on a Unix socket, for whoever may open it.

use super::Control;
use crate::{metrics::gather::Own, worker::OpenConnections};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    fmt::Write,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
};

/// How long a request to the admin socket or to readiness may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    // A socket that an earlier process left is nobody's.
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        drop(fs::remove_file(path));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub(super) async fn serve(control: Arc<Control>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(control.clone(), stream, true))),
            Err(error) => {
                tracing::warn!(%error, "admin socket");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection; `admin` ones see and do everything.
pub(super) async fn connection<S>(control: Arc<Control>, stream: S, admin: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handler = service_fn(move |request| {
        let control = control.clone();
        async move { Ok::<_, Infallible>(answer(&control, &request, admin).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), handler)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection");
    }
}

async fn answer(control: &Control, request: &Request<Incoming>, admin: bool) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path(), admin) {
        (&Method::GET, "/ready", _) => {
            let missing = control.missing();
            let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let text = if missing.is_empty() { "ready\n".to_owned() } else { missing.join("\n") + "\n" };
            reply(status, "text/plain", text)
        }
        (&Method::GET, "/metrics", _) => {
            reply(StatusCode::OK, "text/plain; version=0.0.4", control.metrics())
        }
        (&Method::GET, "/config", true) => json_reply(&control.config()),
        (&Method::GET, "/stats", true) => json_reply(&control.stats().await),
        (&Method::POST, "/drain", true) => {
            control.drain.cancel();
            reply(StatusCode::ACCEPTED, "text/plain", "draining\n".to_owned())
        }
        _ => reply(
            StatusCode::NOT_FOUND,
            "text/plain",
            "GET /ready /metrics; on the admin socket also GET /config /stats, POST /drain\n".to_owned(),
        ),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn json_reply(value: &Value) -> Response<Full<Bytes>> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    reply(StatusCode::OK, "application/json", text)
}

impl Control {
    /// The configuration in force. Private keys (of entries that originate TLS) are left out.
    fn config(&self) -> Value {
        let mut resources = serde_json::Map::new();
        for resource in self.engine.all() {
            let mut body: Value = serde_json::from_slice(&resource.body).unwrap_or_default();
            redact(&mut body);
            let kind = resources.entry(resource.type_.to_string()).or_insert_with(|| json!({}));
            if let Value::Object(kind) = kind {
                kind.insert(resource.name.to_string(), body);
            }
        }
        let refused: Vec<_> = self
            .engine
            .refused()
            .into_iter()
            .map(|(id, reason)| json!({"resource": id.to_string(), "reason": reason}))
            .collect();
        json!({"revision": self.revision(), "resources": resources, "refused": refused})
    }

    async fn stats(&self) -> Value {
        let stream = self.stream.pulled.state();
        let connections = self.engine.connections().await;
        json!({
            "node": self.node.name,
            "missing": self.missing(),
            "control_plane": {
                "connected": stream.connected,
                "revision": self.revision(),
                "behind_millis": stream.behind_millis(Instant::now()),
                "refused": stream.refused,
                "error": stream.error,
            },
            "certificate_errors": self.identity.errors(),
            "certificates": self.status().certificates,
            "connections": connections.iter().map(describe).collect::<Vec<_>>(),
            "denials": self.engine.shared().denials.snapshot(),
        })
    }

    fn revision(&self) -> Option<u64> {
        self.stream.position().map(|position| position.revision.0)
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let written = self.engine.shared().metrics.render(&mut out).and_then(|()| self.gauges(&mut out));
        let written = written.and_then(|()| self.engine.shared().sinks.render(&mut out));
        if let Err(error) = written {
            tracing::error!(%error, "metrics");
        }
        out
    }

    /// For those whom a MeshMetric names.
    pub(super) fn own_metrics(&self) -> Own {
        let identities = &self.engine.shared().tls.identities;
        let ends = identities
            .meshes()
            .into_iter()
            .filter_map(|mesh| Some(identities.of(&mesh).latest()?.not_after()));
        let left = ends.min().map(|end| end - time::OffsetDateTime::now_utc());
        Own {
            page: self.metrics(),
            draining: self.drain.is_cancelled(),
            connected: self.stream.pulled.state().connected,
            certificate: left.map(|left| Duration::try_from(left).unwrap_or_default()),
        }
    }

    fn gauges(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# HELP meridian_proxy_denials_total Refusals by reason.")?;
        writeln!(out, "# TYPE meridian_proxy_denials_total counter")?;
        for (reason, count) in self.engine.shared().denials.by_reason() {
            writeln!(out, "meridian_proxy_denials_total{{reason=\"{reason}\"}} {count}")?;
        }
        let stream = self.stream.pulled.state();
        let age = super::stream::now_millis().saturating_sub(self.stream.applied_at());
        let behind = stream.behind_millis(Instant::now()).unwrap_or(age);
        let values = [
            ("config_revision", "Revision of the configuration.", self.revision().unwrap_or_default() as f64),
            ("config_age_seconds", "Since the configuration last changed.", age as f64 / 1e3),
            ("config_behind_seconds", "Since it last equalled the control plane's.", behind as f64 / 1e3),
            ("control_plane_connected", "1 while connected.", f64::from(u8::from(stream.connected))),
            ("config_refused", "Resources not accepted.", self.engine.refused().len() as f64),
            ("ready", "1 while ready.", f64::from(u8::from(self.missing().is_empty()))),
        ];
        for (name, help, value) in values {
            writeln!(out, "# HELP meridian_proxy_{name} {help}\n# TYPE meridian_proxy_{name} gauge")?;
            writeln!(out, "meridian_proxy_{name} {value}")?;
        }
        let name = "meridian_proxy_certificate_expires_seconds";
        writeln!(out, "# HELP {name} End of the certificate, since 1970.\n# TYPE {name} gauge")?;
        for certificate in self.status().certificates {
            let mesh = &certificate.mesh;
            let identity = self.engine.shared().tls.identities.of(mesh).latest();
            let until = identity.map(|identity| identity.not_after().unix_timestamp()).unwrap_or_default();
            writeln!(out, "{name}{{mesh=\"{mesh}\"}} {until}")?;
        }
        Ok(())
    }
}

fn describe(open: &OpenConnections) -> Value {
    json!({
        "direction": format!("{:?}", open.info.direction).to_lowercase(),
        "name": open.info.name,
        "peer": open.info.peer,
        "count": open.count,
    })
}

/// Takes private keys out of what is shown.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "clientKey" && !field.is_null() {
                    *field = Value::from("(not shown)");
                } else {
                    redact(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_shown() {
        let mut body = json!({"entries": [{"tls": {"clientKey": "SECRET", "clientCertificate": "c"}}]});
        redact(&mut body);
        assert!(!body.to_string().contains("SECRET"));
        assert!(body.to_string().contains("clientCertificate"));
    }
}
