//! Certificates for registered proxies, and for nobody else.

use super::{Proxies, connection};
use crate::claims::Subject;
use crate::picture::Picture;
use meridian_core::Key;
use meridian_core::duration::GoDuration;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_proto::identity::proxy_identity_server::ProxyIdentity;
use meridian_proto::identity::{Certificate, SignLeafRequest};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl ProxyIdentity for Proxies {
    async fn sign_leaf(&self, request: Request<SignLeafRequest>) -> Result<Response<Certificate>, Status> {
        let subject = self.authenticate(&request)?;
        let connection = connection(&request)?;
        let SignLeafRequest { mesh, csr } = request.into_inner();
        let unknown =
            || Status::failed_precondition("the proxy is not registered (yet); register, then ask again");
        let key = self.caller(&subject, connection.peer).ok_or_else(unknown)?;
        if self.presence().holder(&key) != Some(&subject) {
            return Err(unknown());
        }
        let picture = self.0.seen.picture.load_full();
        let leaf = leaf_spec(&picture, &subject, &key, &mesh)?;
        let now = OffsetDateTime::now_utc();
        let signed = self.0.intermediates.sign(&mesh, &csr, &leaf, now).map_err(|error| {
            tracing::warn!(%key, mesh, %error, "no certificate");
            Status::unavailable(error.to_string())
        })?;
        tracing::info!(%key, mesh, not_after = %signed.not_after, "certificate issued");
        let roots = picture.mesh(&mesh).and_then(|mesh| mesh.bundle.as_ref());
        let roots = roots.iter().flat_map(|bundle| &bundle.spec.roots);
        let roots = roots.flat_map(|pem| meridian_pki::certificates_from_pem(pem)).flatten();
        Ok(Response::new(Certificate {
            chain: signed.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            roots: roots.map(|certificate| certificate.to_vec()).collect(),
        }))
    }
}

/// What the certificate of a registered proxy says.
fn leaf_spec(
    picture: &Picture,
    subject: &Subject,
    key: &Key,
    mesh: &str,
) -> Result<meridian_pki::LeafSpec, Status> {
    let there = picture.mesh(mesh).filter(|it| it.mtls());
    let there = there.ok_or_else(|| Status::failed_precondition(format!("mesh {mesh} has no mTLS (yet)")))?;
    let mut leaf = match key.kind {
        Dataplane::KIND if key.mesh == mesh => {
            let missing = || Status::failed_precondition("the Dataplane is not registered (yet)");
            let dataplane = there.dataplane(key).ok_or_else(missing)?;
            let leaf = subject.leaf(key, &dataplane.spec);
            leaf.map_err(|denied| Status::permission_denied(denied.to_string()))?
        }
        ZoneEgress::KIND => crate::claims::egress_leaf(),
        Dataplane::KIND => {
            return Err(Status::permission_denied(format!("the token is for mesh {}", key.mesh)));
        }
        _ => return Err(Status::permission_denied("an ingress terminates nothing and gets no certificate")),
    };
    let backend = there.spec().and_then(|spec| spec.mtls_backend());
    let expiration =
        backend.and_then(|it| GoDuration::parse(&it.dp_cert.as_ref()?.rotation.as_ref()?.expiration).ok());
    leaf.lifetime =
        expiration.filter(|it| !it.0.is_zero()).and_then(|it| time::Duration::try_from(it.0).ok());
    Ok(leaf)
}
