//! The broker from outside: real sockets, real certificates, rumqttc as the client.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, LastWill, Packet, PubAckReason, Publish, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An authority that makes certificates, with its PEM files in a directory.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, common_name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub(crate) fn listener(&self, dir: &Path) -> TlsListen {
        let (cert, key) = self.issue("the broker");
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsListen {
            listen: ANY,
            ca: write("ca.pem", &self.pem),
            cert: write("server.pem", &cert),
            key: write("server.key", &key),
        }
    }

    /// A client's TLS set-up that trusts `self` and shows a certificate issued by `by`.
    pub(crate) fn client(&self, by: &Self, common_name: &str) -> Transport {
        let (cert, key) = by.issue(common_name);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap();
        Transport::Tls(TlsConfiguration::Rustls(Arc::new(config)))
    }
}

struct World {
    authority: Authority,
    broker: Running,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        Self::with(None).await
    }

    async fn with(admission: Option<Admission>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("our authority");
        let tls = Some(authority.listener(dir.path()));
        let config = BrokerConfig {
            data_dir: dir.path().join("broker"),
            environment: "prod".to_owned(),
            tls,
            plain_listen: ANY,
            admission,
        };
        let broker = Broker::start(config).await.unwrap();
        Self { authority, broker, _dir: dir }
    }

    fn device(&self, client_id: &str, common_name: &str) -> MqttOptions {
        let mut options = options(client_id, self.broker.tls_addr().unwrap());
        options.set_transport(self.authority.client(&self.authority, common_name));
        options
    }

    async fn connected(&self, name: &str) -> Client {
        Client::connect(self.device(name, name)).await.unwrap()
    }

    async fn fleet(&self, suffix: &str) -> Client {
        Client::connect(fleet_options(self.broker.plain_addr(), &self.broker.password, suffix)).await.unwrap()
    }
}

fn options(client_id: &str, addr: SocketAddr) -> MqttOptions {
    let mut options = MqttOptions::new(client_id, addr.ip().to_string(), addr.port());
    options.set_keep_alive(Duration::from_secs(30)).set_connection_timeout(5);
    options
}

fn fleet_options(addr: SocketAddr, password: &str, suffix: &str) -> MqttOptions {
    let mut options = options(&format!("{FLEET_CLIENT_PREFIX}{suffix}"), addr);
    options.set_credentials(FLEET_USER, password);
    options
}

/// A client that is driven one question at a time.
struct Client {
    client: AsyncClient,
    events: EventLoop,
    inbox: Vec<Publish>,
    session_present: bool,
}

impl Client {
    async fn connect(options: MqttOptions) -> Result<Self, ConnectionError> {
        let (client, mut events) = AsyncClient::new(options, 100);
        loop {
            let event = timeout(PATIENCE, events.poll()).await.expect("an answer to CONNECT")?;
            if let Event::Incoming(Packet::ConnAck(ack)) = event {
                return Ok(Self { client, events, inbox: Vec::new(), session_present: ack.session_present });
            }
        }
    }

    async fn next(&mut self) -> Result<Packet, ConnectionError> {
        loop {
            match timeout(PATIENCE, self.events.poll()).await.expect("a packet in time")? {
                Event::Incoming(Packet::Publish(publish)) => self.inbox.push(publish.clone()),
                Event::Incoming(packet) => return Ok(packet),
                Event::Outgoing(_) => {}
            }
        }
    }

    async fn publish(&mut self, topic: &str, retain: bool, payload: &str) -> PubAckReason {
        self.client.publish(topic, QoS::AtLeastOnce, retain, payload.to_owned()).await.unwrap();
        loop {
            if let Packet::PubAck(ack) = self.next().await.unwrap() {
                return ack.reason;
            }
        }
    }

    async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        loop {
            if let Packet::SubAck(ack) = self.next().await.unwrap() {
                return ack.return_codes[0];
            }
        }
    }

    /// The next message, as topic and payload.
    async fn message(&mut self) -> (String, String) {
        while self.inbox.is_empty() {
            let event = timeout(PATIENCE, self.events.poll()).await.expect("a message in time").unwrap();
            if let Event::Incoming(Packet::Publish(publish)) = event {
                self.inbox.push(publish);
            }
        }
        let first = self.inbox.remove(0);
        (text(&first.topic), text(&first.payload))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn granted(answer: SubscribeReasonCode) -> bool {
    matches!(answer, SubscribeReasonCode::Success(_))
}

#[tokio::test]
async fn a_device_reaches_its_own_topics_and_nobody_elses() {
    let world = World::start().await;
    let mut pos = world.connected("POS-1").await;
    assert!(granted(pos.subscribe("samovar/v1/prod/POS-1/dn/+").await));
    for filter in
        ["samovar/v1/prod/POS-2/dn/+", "samovar/v1/prod/+/dn/+", "#", "$share/x/samovar/v1/prod/POS-1/dn/+"]
    {
        assert_eq!(pos.subscribe(filter).await, SubscribeReasonCode::NotAuthorized, "{filter}");
    }
    let mut fleet = world.fleet("t").await;
    assert!(granted(fleet.subscribe("samovar/v1/prod/#").await));
    for topic in
        ["samovar/v1/prod/POS-2/up/state", "samovar/v1/prod/POS-1/dn/ack", "samovar/v1/test/POS-1/up/state"]
    {
        assert_eq!(pos.publish(topic, false, "forged").await, PubAckReason::NotAuthorized, "{topic}");
    }
    let own = pos.publish("samovar/v1/prod/POS-1/up/state", false, "mine").await;
    assert!(matches!(own, PubAckReason::Success | PubAckReason::NoMatchingSubscribers));
    assert_eq!(fleet.message().await, ("samovar/v1/prod/POS-1/up/state".to_owned(), "mine".to_owned()));
    fleet.publish("samovar/v1/prod/POS-1/dn/ack", false, "ok").await;
    assert_eq!(pos.message().await.1, "ok");
}

#[tokio::test]
async fn a_client_that_is_not_its_certificate_is_refused() {
    let world = World::start().await;
    for (client, certificate) in
        [("POS-2", "POS-1"), ("fleet.ingest", "POS-1"), ("fleet.ingest", "fleet.ingest")]
    {
        let refused = Client::connect(world.device(client, certificate)).await.err();
        assert!(
            matches!(refused, Some(ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized))),
            "{client} with {certificate}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_certificate_that_is_no_longer_good_is_refused() {
    let (admission, mut questions) = Admission::channel();
    let world = World::with(Some(admission)).await;
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            assert!(!question.serial.is_empty());
            let _ = question.answer.send(question.device == "POS-1");
        }
    });
    world.connected("POS-1").await;
    let refused = Client::connect(world.device("POS-2", "POS-2")).await.err();
    assert!(
        matches!(refused, Some(ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized))),
        "{refused:?}"
    );
    world.fleet("t").await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let world = World::start().await;
    let mut options = options("POS-1", world.broker.tls_addr().unwrap());
    options.set_transport(world.authority.client(&Authority::new("our authority"), "POS-1"));
    let refused = Client::connect(options).await.err();
    assert!(
        matches!(
            refused,
            Some(ConnectionError::Tls(_) | ConnectionError::Io(_) | ConnectionError::MqttState(_))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_will_for_somebody_elses_topic_is_refused() {
    let world = World::start().await;
    let mut options = world.device("POS-1", "POS-1");
    options.set_last_will(LastWill::new(
        "samovar/v1/prod/POS-2/up/online",
        "forged",
        QoS::AtLeastOnce,
        true,
        None,
    ));
    let refused = Client::connect(options).await.err();
    assert!(
        matches!(refused, Some(ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn only_the_password_of_this_start_opens_the_fleets_listener() {
    let world = World::start().await;
    let addr = world.broker.plain_addr();
    let bad = Some(ConnectReturnCode::BadUserNamePassword);
    let code = |result: Result<Client, ConnectionError>| match result {
        Err(ConnectionError::ConnectionRefused(code)) => Some(code),
        _ => None,
    };
    assert_eq!(code(Client::connect(fleet_options(addr, "guess", "t")).await), bad);
    assert_eq!(code(Client::connect(fleet_options(addr, "", "t")).await), bad);
    assert!(code(Client::connect(options("fleet.t", addr)).await).is_some(), "anonymous");
    let mut as_device = options("POS-1", addr);
    as_device.set_credentials(FLEET_USER, &world.broker.password);
    assert_eq!(code(Client::connect(as_device).await), bad, "a device's name on the fleet's listener");
    assert!(Client::connect(fleet_options(addr, &world.broker.password, "t")).await.is_ok());
}

#[tokio::test]
async fn a_stalled_handshake_holds_up_nobody() {
    let world = World::start().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(TcpStream::connect(world.broker.tls_addr().unwrap()).await.unwrap());
    }
    let started = Instant::now();
    world.connected("POS-1").await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn shared_subscribers_each_get_a_part_and_together_everything() {
    let world = World::start().await;
    let (mut one, mut two) = (world.fleet("1").await, world.fleet("2").await);
    for member in [&mut one, &mut two] {
        assert!(granted(member.subscribe("$share/ingest/samovar/v1/prod/+/up/+").await));
    }
    let mut pos = world.connected("POS-1").await;
    for n in 0..20 {
        pos.publish("samovar/v1/prod/POS-1/up/events", false, &n.to_string()).await;
    }
    let mut seen = Vec::new();
    for member in [&mut one, &mut two] {
        for _ in 0..10 {
            seen.push(member.message().await.1.parse::<u32>().unwrap());
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_of_mqtt_3_1_1_is_served_on_the_same_port() {
    use rumqttc::{AsyncClient as Client3, Event as Event3, MqttOptions as Options3, Packet as Packet3};
    let world = World::start().await;
    let mut options = Options3::new("POS-3", "127.0.0.1", world.broker.tls_addr().unwrap().port());
    options.set_transport(world.authority.client(&world.authority, "POS-3"));
    let (client, mut events) = Client3::new(options, 10);
    client.subscribe("samovar/v1/prod/POS-3/dn/+", rumqttc::QoS::AtLeastOnce).await.unwrap();
    client.subscribe("samovar/v1/prod/POS-1/dn/+", rumqttc::QoS::AtLeastOnce).await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        if let Event3::Incoming(Packet3::SubAck(ack)) =
            timeout(PATIENCE, events.poll()).await.unwrap().unwrap()
        {
            answers.extend(ack.return_codes);
        }
    }
    assert_eq!(
        answers,
        [
            rumqttc::SubscribeReasonCode::Success(rumqttc::QoS::AtLeastOnce),
            rumqttc::SubscribeReasonCode::Failure
        ]
    );
    client
        .publish("samovar/v1/prod/POS-1/up/state", rumqttc::QoS::AtLeastOnce, false, "forged")
        .await
        .unwrap();
    let hung_up = timeout(PATIENCE, async { while events.poll().await.is_ok() {} }).await;
    assert!(hung_up.is_ok(), "a refused publish ends a 3.1.1 connection, for it cannot be told otherwise");
}

#[tokio::test]
async fn stop_ends_in_time_frees_the_ports_and_hangs_up() {
    let world = World::start().await;
    let mut pos = world.connected("POS-1").await;
    let _stalled = TcpStream::connect(world.broker.tls_addr().unwrap()).await.unwrap();
    let (plain, tls) = (world.broker.plain_addr(), world.broker.tls_addr().unwrap());
    let started = Instant::now();
    world.broker.stop(Duration::from_secs(5)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(std::net::TcpListener::bind(plain).is_ok() && std::net::TcpListener::bind(tls).is_ok());
    assert!(timeout(PATIENCE, async { while pos.events.poll().await.is_ok() {} }).await.is_ok());
}

#[tokio::test]
async fn the_plain_listener_is_never_reachable_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        data_dir: dir.path().to_owned(),
        environment: "prod".to_owned(),
        tls: None,
        plain_listen: "0.0.0.0:0".parse().unwrap(),
        admission: None,
    };
    assert!(matches!(Broker::start(config).await, Err(BrokerError::PlainNotLoopback(_))));
}

/// The child of [`what_is_retained_and_queued_survives_a_restart`]: a broker that lives until its standard input closes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run as a child process by the restart test"]
async fn broker_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os("SAMOVAR_TEST_BROKER_DIR") else { return };
    let config = BrokerConfig {
        data_dir: dir.into(),
        environment: "prod".to_owned(),
        tls: None,
        plain_listen: ANY,
        admission: None,
    };
    let broker = Broker::start(config).await.unwrap();
    println!("\nBROKER {} {}", broker.plain_addr(), broker.password);
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    broker.stop(Duration::from_secs(5)).await.unwrap();
}

struct ChildBroker {
    child: Child,
    addr: SocketAddr,
    password: String,
    /// Held open, or the child could not print its last words.
    _output: BufReader<ChildStdout>,
}

impl ChildBroker {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "broker::tests::broker_in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env("SAMOVAR_TEST_BROKER_DIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let line = output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("BROKER "))
            .expect("the child's address");
        let mut words = line.split(' ').skip(1);
        let addr = words.next().unwrap().parse().unwrap();
        Self { child, addr, password: words.next().unwrap().to_owned(), _output: output }
    }

    fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    async fn client(&self, suffix: &str, keep: bool) -> Client {
        let mut options = fleet_options(self.addr, &self.password, suffix);
        options.set_clean_start(!keep).set_session_expiry_interval(Some(3600));
        Client::connect(options).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retained_and_queued_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = ChildBroker::start(dir.path());
    {
        let mut away = first.client("away", true).await;
        assert!(granted(away.subscribe("samovar/v1/prod/+/up/events").await));
        away.client.disconnect().await.unwrap();
        let _ = timeout(Duration::from_secs(1), async { while away.events.poll().await.is_ok() {} }).await;
    }
    let mut writer = first.client("writer", false).await;
    writer.publish("samovar/v1/prod/POS-1/up/state", true, "kept").await;
    writer.publish("samovar/v1/prod/POS-1/up/events", false, "queued").await;
    first.stop();

    let second = ChildBroker::start(dir.path());
    let mut reader = second.client("reader", false).await;
    assert!(granted(reader.subscribe("samovar/v1/prod/+/up/state").await));
    assert_eq!(reader.message().await, ("samovar/v1/prod/POS-1/up/state".to_owned(), "kept".to_owned()));
    let mut back = second.client("away", true).await;
    assert!(back.session_present);
    assert_eq!(back.message().await.1, "queued");
    second.stop();
}
