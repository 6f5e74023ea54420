//! A request as the caller wrote it, and as the outside is to see it.

use super::{
    Body,
    upstreams::{Place, Sender},
};
use crate::{
    codec::strip_request,
    host::{Asked, HostError},
};
use http::{HeaderValue, Request, Uri, Version, header, uri};
use meridian_proxy_config::Host;
use std::net::IpAddr;

/// What the request names: the one Host, or `:authority`; where there are two, they must agree.
pub(super) fn request_host<B>(request: &Request<B>) -> Result<(Asked, Option<u16>), HostError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(HostError::Invalid);
    }
    let header = header.map(|value| value.to_str().map_err(|_| HostError::Invalid)).transpose()?;
    let authority = request.uri().authority().map(uri::Authority::as_str);
    match (header.map(Asked::from_authority).transpose()?, authority.map(Asked::from_authority).transpose()?)
    {
        (Some(header), Some(authority)) if header != authority => Err(HostError::Invalid),
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => Err(HostError::Empty),
    }
}

/// The request as the outside is to see it.
pub(super) fn rewrite(
    request: Request<Body>,
    asked: &Asked,
    port: Option<u16>,
    sender: &Sender,
    upgrade: bool,
) -> Result<Request<Body>, ::http::Error> {
    let (mut parts, body) = request.into_parts();
    strip_request(&mut parts.headers, upgrade);
    let place = match sender {
        Sender::Http1(_, place) | Sender::Http2(_, place) => place,
    };
    let authority = authority(asked, port, place);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    match sender {
        Sender::Http1(..) => {
            parts.version = Version::HTTP_11;
            parts.uri = Uri::builder().path_and_query(path).build()?;
            parts.headers.insert(header::HOST, HeaderValue::from_str(&authority)?);
        }
        Sender::Http2(..) => {
            parts.version = Version::HTTP_2;
            parts.headers.remove(header::HOST);
            let scheme = if place.tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
            parts.uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()?;
        }
    }
    Ok(Request::from_parts(parts, body))
}

/// What the client asked for; where that is another name than the endpoint's (a name of the mesh, say, that the
/// outside has never heard of), the endpoint's, as Kuma does.
fn authority(asked: &Asked, port: Option<u16>, place: &Place) -> String {
    let (name, port) = match (&place.host, asked) {
        (Host::Name(host), Asked::Name(name)) if !host.eq_ignore_ascii_case(name.as_str()) => {
            let default = if place.tls { 443 } else { 80 };
            (host.clone(), (place.port != default).then_some(place.port))
        }
        (_, Asked::Ip(IpAddr::V6(ip))) => (format!("[{ip}]"), port),
        (_, asked) => (asked.to_string(), port),
    };
    port.map_or(name.clone(), |port| format!("{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(uri: &str, hosts: &[&str]) -> Result<(String, Option<u16>), HostError> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request_host(&request.body(()).unwrap()).map(|(asked, port)| (asked.to_string(), port))
    }

    #[test]
    fn one_host_and_no_other() {
        assert_eq!(host("/", &["A.Example:8080"]), Ok(("a.example".into(), Some(8080))));
        assert_eq!(host("http://a.example/x", &[]), Ok(("a.example".into(), None)));
        assert_eq!(host("http://a.example/x", &["a.example"]), Ok(("a.example".into(), None)));
        assert!(host("http://a.example/x", &["b.example"]).is_err());
        assert!(host("/", &["a.example", "a.example"]).is_err());
        assert!(host("/", &[]).is_err());
        assert!(host("/", &["a.example, b.example"]).is_err());
    }

    #[test]
    fn hop_by_hop_headers_stay_here() {
        let mut headers = ::http::HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("keep-alive", "5"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_request(&mut headers, false);
        assert_eq!(headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn the_outside_hears_its_own_name() {
        let place = |host: Host, port, tls| Place { host, port, tls, retires: None };
        let asked: Asked = "api.extsvc.mesh.local".parse().unwrap();
        let named = Host::Name("api.example.com".into());
        assert_eq!(authority(&asked, Some(80), &place(named.clone(), 443, true)), "api.example.com");
        assert_eq!(authority(&asked, None, &place(named.clone(), 8443, true)), "api.example.com:8443");
        let same: Asked = "api.example.com".parse().unwrap();
        assert_eq!(authority(&same, Some(8443), &place(named, 8443, true)), "api.example.com:8443");
        let ip = Host::Ip("192.0.2.1".parse().unwrap());
        assert_eq!(authority(&same, None, &place(ip, 80, false)), "api.example.com");
    }
}
