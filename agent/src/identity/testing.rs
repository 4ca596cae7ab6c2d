//! A fleet in the test's own process: its authority, claims and renewals over real TLS on a loopback port, and every
//! way in which its answers can be wrong.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use samovar_wire::activation::{ClaimAnswer, ClaimRequest, RenewalAnswer, RenewalRequest};
use samovar_wire::dsse::{Envelope, ROUTE_TABLE, SigningKey, new_seed};
use samovar_wire::problem::{self, Problem};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// Longest time a test waits for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// The public half of somebody's key, as a signing request carries it.
struct TheirKey(Vec<u8>);

impl PublicKeyData for TheirKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// From when until when, in seconds from now.
pub(super) type Span = (i64, i64);
pub(super) const MONTHS: Span = (-3_600, 90 * 86_400);

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name, (-86_400, 3_650 * 86_400));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A device certificate for the key in a signing request.
    pub(super) fn device(&self, csr: &str, name: &str, span: Span) -> String {
        self.sign_device(&TheirKey(requested_key(csr)), name, span)
    }

    /// A device certificate for a key at hand.
    pub(super) fn sign_device(&self, key: &impl PublicKeyData, name: &str, span: Span) -> String {
        let mut params = params(name, span);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    fn server(&self) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let roots = super::certificate::roots_from(self.pem.as_bytes()).unwrap();
        let provider = super::certificate::provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                super::certificate::read_key(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap()
    }
}

fn params(name: &str, span: Span) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::from_unix_timestamp(crate::clock::wall().millis() / 1000).unwrap();
    params.not_before = now + time::Duration::seconds(span.0);
    params.not_after = now + time::Duration::seconds(span.1);
    params
}

fn requested_key(csr: &str) -> Vec<u8> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).unwrap();
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    request.certification_request_info.subject_pki.subject_public_key.data.to_vec()
}

/// How the fleet answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Manner {
    #[default]
    Honest,
    /// With this status and problem.
    Problem(u16, &'static str),
    /// With this status, type and text, like something that is no fleet.
    Page(u16, &'static str),
    /// Passes the claim on.
    Elsewhere(String),
    /// Grants, and cuts the answer short.
    CutShort,
    /// Grants, for another device.
    OtherDevice,
    /// Certificate for another key.
    OtherKey,
    /// Certificate for another device.
    OtherName,
    /// Certificate of an authority that the answer does not name.
    ForeignAuthority,
    /// Certificate of an authority that the answer names and the server does not believe.
    UnacceptedAuthority,
    /// Certificate that has ended.
    Ended,
    /// Route table that is signed by a key nobody named.
    StrangersTable,
    /// Route table of another environment.
    OtherEnvironment,
    /// Device ID that cannot be one.
    BadId,
    /// MQTT address that cannot be one.
    BadMqtt,
    /// Certificate that is due for renewal and ends in so many seconds.
    NearEnd(i64),
}

#[derive(Default)]
pub(super) struct Heard {
    /// Public keys of the claims that arrived.
    pub claimed: Vec<Vec<u8>>,
    pub hardware: Vec<std::collections::BTreeMap<String, String>>,
    /// Names on the certificates that asked for a renewal.
    pub renewals: Vec<String>,
}

/// The fleet.
pub(super) struct Fleet {
    pub url: String,
    /// The same without TLS.
    pub plain_url: String,
    pub ca_file: PathBuf,
    inner: Arc<Inner>,
    _dir: tempfile::TempDir,
}

struct Inner {
    authority: Authority,
    foreign: Authority,
    signer: SigningKey,
    manner: Mutex<Manner>,
    heard: Mutex<Heard>,
}

impl Fleet {
    pub(super) async fn start() -> Self {
        let authority = Authority::new("test authority");
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        crate::store::replace(&ca_file, authority.pem.as_bytes(), 0o644).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let tls = Arc::new(authority.server());
        let inner = Arc::new(Inner {
            authority,
            foreign: Authority::new("somebody else's authority"),
            signer: SigningKey::from_seed("k1", &new_seed().unwrap()).unwrap(),
            manner: Mutex::default(),
            heard: Mutex::default(),
        });
        tokio::spawn(serve(listener, tls, Arc::clone(&inner)));
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain_url = format!("http://{}", plain.local_addr().unwrap());
        let router = router(Arc::clone(&inner)).layer(Extension(Peer(None)));
        tokio::spawn(axum::serve(plain, router).into_future());
        Self { url, plain_url, ca_file, inner, _dir: dir }
    }

    /// From now on it answers in this manner.
    pub(super) fn answers(&self, manner: Manner) {
        *self.inner.manner.lock().unwrap() = manner;
    }

    pub(super) fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.inner.heard.lock().unwrap())
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.inner.authority
    }

    pub(super) fn signer(&self) -> &SigningKey {
        &self.inner.signer
    }
}

/// A port of this machine on which nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[derive(Clone)]
struct Peer(Option<String>);

fn router(inner: Arc<Inner>) -> Router {
    Router::new().fallback(answer).with_state(inner)
}

async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, inner: Arc<Inner>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let router = router(inner);
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, acceptor.clone(), router.clone()));
    }
}

async fn connection(stream: TcpStream, acceptor: tokio_rustls::TlsAcceptor, router: Router) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = Peer(certificates.and_then(|chain| chain.first()).map(name_of));
    let service = hyper_util::service::TowerToHyperService::new(router.layer(Extension(peer)));
    let io = hyper_util::rt::TokioIo::new(stream);
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}

fn name_of(certificate: &CertificateDer<'_>) -> String {
    super::certificate::facts(certificate).unwrap().common_name
}

async fn answer(
    State(inner): State<Arc<Inner>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let path = request.uri().path().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let manner = inner.manner.lock().unwrap().clone();
    match path.as_str() {
        "/activate/v1/claims" => inner.claim(&serde_json::from_slice(&body).unwrap(), manner),
        "/activate/v1/renewals" => inner.renewal(&serde_json::from_slice(&body).unwrap(), peer, manner),
        "/.samovar/health" => StatusCode::NO_CONTENT.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn problem_answer(status: u16, slug: &str) -> Response {
    let body = serde_json::to_string(&Problem::new(status, slug, format!("the fleet says {slug}"))).unwrap();
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::CONTENT_TYPE, problem::CONTENT_TYPE)], body).into_response()
}

impl Inner {
    fn claim(&self, claim: &ClaimRequest, manner: Manner) -> Response {
        let mut heard = self.heard.lock().unwrap();
        heard.claimed.push(requested_key(&claim.csr));
        heard.hardware.push(claim.hardware.clone());
        drop(heard);
        match manner {
            Manner::Problem(status, slug) => problem_answer(status, slug),
            Manner::Page(status, text) => (StatusCode::from_u16(status).unwrap(), text).into_response(),
            Manner::Elsewhere(url) => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, url)]).into_response()
            }
            Manner::CutShort => {
                let broken: std::io::Result<&'static str> = Err(std::io::ErrorKind::ConnectionReset.into());
                let parts = futures_util::stream::iter([Ok("{\"certificate\":"), broken]);
                (StatusCode::CREATED, Body::from_stream(parts)).into_response()
            }
            manner => (StatusCode::CREATED, self.grant(claim, &manner).to_string()).into_response(),
        }
    }

    fn grant(&self, claim: &ClaimRequest, manner: &Manner) -> serde_json::Value {
        let environment = if *manner == Manner::OtherEnvironment { "test" } else { "prod" };
        let stranger = SigningKey::from_seed("k1", &new_seed().unwrap()).unwrap();
        let signer = if *manner == Manner::StrangersTable { &stranger } else { &self.signer };
        let mut answer = serde_json::to_value(ClaimAnswer {
            certificate: self.certificate(&claim.csr, manner),
            ca: self.ca(manner),
            device: if *manner == Manner::OtherDevice { "POS-US-9999" } else { "POS-US-0001" }
                .parse()
                .unwrap(),
            store: "US-0001".parse().unwrap(),
            country: "US".parse().unwrap(),
            class: "pos".parse().unwrap(),
            environment: "prod".into(),
            trusted_keys: [("k1".to_owned(), self.signer.public())].into(),
            route_table: table(signer, environment),
            fleet_url: String::new(),
            mqtt_url: if *manner == Manner::BadMqtt { "gopher://x" } else { "mqtts://localhost:8883" }.into(),
            commands_keys: [].into(),
        })
        .unwrap();
        if *manner == Manner::BadId {
            answer["device"] = json!("POS/../1");
        }
        answer["a_later_field"] = json!({ "ignored": true });
        answer
    }

    fn certificate(&self, csr: &str, manner: &Manner) -> String {
        let other = matches!(manner, Manner::OtherName | Manner::OtherDevice);
        let name = if other { "POS-US-9999" } else { "POS-US-0001" };
        match manner {
            Manner::OtherKey => self.authority.sign_device(&KeyPair::generate().unwrap(), name, MONTHS),
            Manner::ForeignAuthority | Manner::UnacceptedAuthority => self.foreign.device(csr, name, MONTHS),
            Manner::Ended => self.authority.device(csr, name, (-7_200, -3_600)),
            Manner::NearEnd(seconds) => self.authority.device(csr, name, (-10 * seconds, *seconds)),
            _ => self.authority.device(csr, name, MONTHS),
        }
    }

    fn ca(&self, manner: &Manner) -> String {
        match manner {
            Manner::UnacceptedAuthority => [self.authority.pem.as_str(), self.foreign.pem.as_str()].concat(),
            _ => self.authority.pem.clone(),
        }
    }

    fn renewal(&self, request: &RenewalRequest, peer: Peer, manner: Manner) -> Response {
        let Some(name) = peer.0 else { return problem_answer(401, "certificate-required") };
        self.heard.lock().unwrap().renewals.push(name);
        match manner {
            Manner::Problem(status, slug) => problem_answer(status, slug),
            manner => {
                let certificate = self.certificate(&request.csr, &manner);
                let answer = RenewalAnswer { certificate, ca: self.ca(&manner) };
                (StatusCode::OK, serde_json::to_string(&answer).unwrap()).into_response()
            }
        }
    }
}

/// A signed table with one origin.
fn table(signer: &SigningKey, environment: &str) -> Envelope {
    let table = json!({
        "schema": 1, "environment": environment, "version": 1, "issued_at": "2026-01-01T00:00:00.000Z",
        "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2036-01-01T00:00:00.000Z",
        "origins": { "us-west": { "endpoints": [ { "host": "localhost", "port": 443 } ] } },
        "countries": { "US": { "residency": ["us-west"], "services": { "orders": { "domains": { "default": "localhost" } } } } }
    });
    Envelope::sign(ROUTE_TABLE, table.to_string().as_bytes(), &[signer])
}

/// Waits until something holds, with a deadline.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "in vain: {what}");
}

/// Every file below a directory, but for the lock, which says nothing.
pub(super) fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => open.push(path),
                path if path.ends_with("lock") => {}
                path => found.push(path.strip_prefix(dir).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}
