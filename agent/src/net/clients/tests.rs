use super::*;
use crate::net::explain;
use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use samovar_wire::route::Rule;
use std::sync::atomic::{AtomicUsize, Ordering};

fn settings(scheme: Scheme) -> ClientSettings {
    ClientSettings {
        scheme,
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(4),
        named: true,
    }
}

fn clients(
    scheme: Scheme,
    tls: Option<Arc<ClientConfig>>,
) -> (Clients, watch::Sender<Option<Arc<ClientConfig>>>) {
    let (sender, receiver) = watch::channel(tls);
    (Clients::new(settings(scheme), receiver, Resolver::default()), sender)
}

fn way(domain: &str, host: &str, port: u16, addresses: &[&str]) -> Decision {
    Decision {
        domain: domain.into(),
        base_url: format!("http://{domain}:{port}"),
        origin: "us-west".parse().unwrap(),
        endpoint: Endpoint {
            host: host.into(),
            port,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            basis_points: None,
        },
        rule: Rule::Fallback,
        candidates: Vec::new(),
        reason: Vec::new(),
    }
}

/// A server on loopback that answers with the `Host` it was asked for.
async fn server() -> u16 {
    let host = |headers: HeaderMap| async move { headers["host"].to_str().unwrap_or_default().to_owned() };
    let redirect = || async { (http::StatusCode::FOUND, [("location", "/host")], "elsewhere") };
    let long = || async { "x".repeat(100_000) };
    let app =
        Router::new().route("/host", get(host)).route("/moved", get(redirect)).route("/long", get(long));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

async fn fetch(clients: &Clients, way: &Decision, path: &str) -> Result<reqwest::Response, String> {
    let client = clients.client(way).map_err(|error| explain(&error))?;
    client.get(format!("{}{path}", way.base_url)).send().await.map_err(|error| explain(&error))
}

#[tokio::test]
async fn the_url_names_the_domain_and_the_endpoint_is_dialled() {
    let port = server().await;
    let (clients, _tls) = clients(Scheme::Http, None);
    let answer = fetch(&clients, &way("us.store.test", "127.0.0.1", port, &[]), "/host").await.unwrap();
    assert_eq!(answer.remote_addr().unwrap().to_string(), format!("127.0.0.1:{port}"));
    assert_eq!(answer.text().await.unwrap(), format!("us.store.test:{port}"));
}

#[tokio::test]
async fn a_host_that_does_not_resolve_is_dialled_at_the_addresses_of_the_table() {
    let port = server().await;
    let (clients, _tls) = clients(Scheme::Http, None);
    let listed = way("us.store.test", "origin.invalid", port, &["127.0.0.1"]);
    assert_eq!(fetch(&clients, &listed, "/host").await.unwrap().status(), 200);
    let error =
        fetch(&clients, &way("us.store.test", "origin.invalid", port, &[]), "/host").await.unwrap_err();
    assert!(error.contains("origin.invalid"), "{error}");
    clients.resolver().remember("origin.invalid", "127.0.0.1".parse().unwrap());
    let known = way("us.store.test", "origin.invalid", port, &[]);
    assert_eq!(fetch(&clients, &known, "/host").await.unwrap().status(), 200);
}

#[tokio::test]
async fn plain_http_reaches_loopback_addresses_only_and_says_so() {
    let (clients, _tls) = clients(Scheme::Http, None);
    for (domain, host, addresses) in [
        ("us.store.test", "192.0.2.1", &[][..]),
        ("us.store.test", "origin.invalid", &["192.0.2.1"]),
        ("192.0.2.1", "192.0.2.1", &[]),
    ] {
        let error = fetch(&clients, &way(domain, host, 9, addresses), "/host").await.unwrap_err();
        assert!(error.contains("192.0.2.1 is not a loopback address: origin.scheme = \"http\""), "{error}");
    }
    // One that is not loopback among those that are is passed over.
    let port = server().await;
    let mixed = way("us.store.test", "127.0.0.1", port, &["192.0.2.1"]);
    assert_eq!(fetch(&clients, &mixed, "/host").await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_domain_that_is_an_address_must_be_the_origins_own() {
    let port = server().await;
    let (clients, _tls) = clients(Scheme::Http, None);
    for (host, addresses) in [("127.0.0.1", &[][..]), ("localhost", &[]), ("origin.invalid", &["127.0.0.1"])]
    {
        assert_eq!(
            fetch(&clients, &way("127.0.0.1", host, port, addresses), "/host").await.unwrap().status(),
            200
        );
    }
    let error = fetch(&clients, &way("127.0.0.1", "127.0.0.2", port, &[]), "/host").await.unwrap_err();
    assert!(error.contains("give the domain a name"), "{error}");
}

#[tokio::test]
async fn https_needs_somebody_to_trust() {
    let (clients, tls) = clients(Scheme::Https, None);
    let way = way("us.store.test", "127.0.0.1", 9, &[]);
    let error = clients.client(&way).unwrap_err().to_string();
    assert_eq!(error, "no certificate authority configured: activate or set origin.tls.ca");
    tls.send_replace(Some(Arc::clone(&TRUSTS_NOBODY)));
    assert!(clients.client(&way).is_ok());
}

#[tokio::test]
async fn redirects_are_not_followed_and_long_answers_are_cut() {
    let port = server().await;
    let (clients, _tls) = clients(Scheme::Http, None);
    let way = way("us.store.test", "127.0.0.1", port, &[]);
    assert_eq!(fetch(&clients, &way, "/moved").await.unwrap().status(), 302);
    let within = Duration::from_secs(4);
    let long = fetch(&clients, &way, "/long").await.unwrap();
    let error = crate::net::read_limited(long, 99_999, within).await.unwrap_err();
    assert_eq!(error.to_string(), "the answer is longer than 99999 bytes");
    let long = fetch(&clients, &way, "/long").await.unwrap();
    assert_eq!(crate::net::read_limited(long, 100_000, within).await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn each_way_and_each_identity_has_its_own_client_and_only_so_many_are_kept() {
    let identity = || Some(Arc::new((**TRUSTS_NOBODY).clone()));
    let (clients, tls) = clients(Scheme::Https, identity());
    let kept = || clients.0.cache.lock().unwrap().len();
    let first = way("us.store.test", "127.0.0.1", 1, &[]);
    clients.client(&first).unwrap();
    clients.client(&first).unwrap();
    assert_eq!(kept(), 1);
    tls.send_replace(identity());
    clients.client(&first).unwrap();
    assert_eq!(kept(), 1, "the client of the old identity is gone");
    let second = Decision { origin: "apac".parse().unwrap(), ..first.clone() };
    clients.client(&second).unwrap();
    assert_eq!(kept(), 2, "the same domain at another origin");
    for port in 100..200 {
        clients.client(&way("us.store.test", "127.0.0.1", port, &[])).unwrap();
        clients.client(&first).unwrap();
    }
    assert_eq!(kept(), CLIENTS_MAX);
    let cache = clients.0.cache.lock().unwrap();
    assert!(cache.iter().any(|cached| cached.key.endpoint.port == 1), "the one in use stays");
}

#[tokio::test]
async fn a_switch_of_the_origin_behind_one_domain_leaves_the_old_connections() {
    let hits: [Arc<AtomicUsize>; 2] = Default::default();
    let mut ports = Vec::new();
    for hit in &hits {
        let hit = Arc::clone(hit);
        let count = move || {
            hit.fetch_add(1, Ordering::SeqCst);
            async { "ok" }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.push(listener.local_addr().unwrap().port());
        let app = Router::new().route("/host", get(count));
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    let (clients, _tls) = clients(Scheme::Http, None);
    // The same domain and even the same port in the URL: what differs is what is dialled.
    for (index, port) in ports.iter().enumerate() {
        let mut way = way("us.store.test", "127.0.0.1", *port, &[]);
        way.origin = format!("origin-{index}").parse().unwrap();
        for _ in 0..3 {
            fetch(&clients, &way, "/host").await.unwrap();
        }
    }
    assert_eq!(hits.map(|hit| hit.load(Ordering::SeqCst)), [3, 3]);
}

/// A certificate authority's certificate and a server that shows one for `name`; tells whom it was asked for.
async fn tls_server(name: &str) -> (rustls::RootCertStore, u16, tokio::sync::mpsc::Receiver<Option<String>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let signed = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(signed.cert.der().clone()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into());
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, asked_for) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            asked.send(stream.get_ref().1.server_name().map(str::to_owned)).await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    (roots, port, asked_for)
}

#[tokio::test]
async fn over_tls_the_domain_is_what_must_be_proven_wherever_it_is_dialled() {
    let (roots, port, mut asked_for) = tls_server("us.store.test").await;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (clients, _tls) = clients(Scheme::Https, Some(Arc::new(config)));
    let secure = |domain: &str| Decision {
        base_url: format!("https://{domain}:{port}"),
        ..way(domain, "127.0.0.1", port, &[])
    };
    assert_eq!(fetch(&clients, &secure("us.store.test"), "/").await.unwrap().status(), 204);
    assert_eq!(asked_for.recv().await.unwrap().as_deref(), Some("us.store.test"));
    let error = fetch(&clients, &secure("jp.store.test"), "/").await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let plain = Decision { base_url: format!("http://us.store.test:{port}"), ..secure("us.store.test") };
    assert!(fetch(&clients, &plain, "/").await.is_err(), "a client for TLS sends nothing in the open");
}

#[tokio::test]
async fn an_address_that_takes_connections_and_then_says_nothing_loses_and_is_not_tried_again() {
    let (roots, port, mut asked_for) = tls_server("us.store.test").await;
    // What a hole in the path looks like: connections are taken, and no handshake gets through.
    let hole = tokio::net::TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let fallen_in = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fallen_in);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = hole.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            kept.push(stream);
        }
    });
    let (clients, _tls) = clients(Scheme::Https, Some(Arc::new(tls_with(roots))));
    let way = Decision {
        base_url: format!("https://us.store.test:{port}"),
        ..way("us.store.test", "127.0.0.2", port, &["127.0.0.1"])
    };
    for _ in 0..2 {
        let answer = fetch(&clients, &way, "/").await.unwrap();
        assert_eq!(answer.remote_addr().unwrap().ip().to_string(), "127.0.0.1");
    }
    assert_eq!(fallen_in.load(Ordering::SeqCst), 1, "the winner of the race is dialled from then on");
    for _ in 0..3 {
        asked_for.recv().await.unwrap();
    }
    assert!(asked_for.try_recv().is_err(), "one handshake for the race, one for each connection");
}

#[tokio::test]
async fn in_another_network_no_connection_of_the_old_one_is_used() {
    let port = server().await;
    let (clients, _tls) = clients(Scheme::Http, None);
    let way = way("us.store.test", "127.0.0.1", port, &[]);
    let local = async || {
        let answer = fetch(&clients, &way, "/host").await.unwrap();
        assert_eq!(answer.status(), 200);
        clients.0.cache.lock().unwrap()[0].network
    };
    let before = local().await;
    assert_eq!(local().await, before);
    clients.client(&Decision { origin: "apac".parse().unwrap(), ..way.clone() }).unwrap();
    clients.resolver().enter_another_network();
    assert_eq!(local().await, before + 1);
    assert_eq!(
        clients.0.cache.lock().unwrap().len(),
        1,
        "all clients of before are gone, and their connections"
    );
}
