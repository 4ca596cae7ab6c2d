//! A real broker that can be stopped, killed and started again, a line to it that can be cut and stalled, and
//! somebody at the other end who plays the fleet.

use super::fake::within;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use samovar_wire::mqtt::{Ack, EventBatch};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where Debian puts it; it is not in every user's path.
const PLACES: [&str; 3] = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];

pub(super) struct Mosquitto {
    binary: &'static str,
    dir: tempfile::TempDir,
    pub(super) port: u16,
    process: Option<Child>,
}

impl Mosquitto {
    /// A running broker; `None`, said loudly, where there is no mosquitto. `extra` is added to its configuration.
    pub(super) async fn start(extra: &str) -> Option<Self> {
        let Some(binary) = PLACES.into_iter().find(|place| Path::new(place).exists()) else {
            eprintln!("SKIPPED: mosquitto is not installed (apt-get install mosquitto)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let port = free_port().await;
        let anonymous = if extra.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        // Messages for a fleet that is slow for a moment are not what is tested.
        let limits = "max_queued_messages 100000\nmax_inflight_messages 1000\n";
        let config = format!("{user}{anonymous}{limits}listener {port} 127.0.0.1\n{extra}\n");
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Self { binary, dir, port, process: None };
        broker.up().await;
        Some(broker)
    }

    /// Starts it again.
    pub(super) async fn up(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let process = Command::new(self.binary)
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        within("mosquitto", async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// SIGKILL: what it had acknowledged is lost.
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on.
pub(super) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// What goes through the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Flows,
    /// Connections stay open and nobody reads.
    Stalls,
    /// Connections end, and new ones are not made.
    Cut,
}

/// A line to the broker.
pub(super) struct Line {
    pub(super) port: u16,
    traffic: watch::Sender<Traffic>,
}

impl Line {
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().port();
        let traffic = watch::Sender::new(Traffic::Flows);
        let subscriber = traffic.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, port, subscriber.subscribe()));
            }
        });
        Self { port: here, traffic }
    }

    pub(super) fn set(&self, traffic: Traffic) {
        self.traffic.send_replace(traffic);
    }
}

async fn carry(mut near: TcpStream, port: u16, mut traffic: watch::Receiver<Traffic>) {
    if *traffic.borrow() == Traffic::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    loop {
        let now = *traffic.borrow_and_update();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far), if now == Traffic::Flows => return,
            changed = traffic.changed() => if changed.is_err() || *traffic.borrow() == Traffic::Cut { return },
        }
    }
}

/// One message as the fleet sees it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) topic: String,
    pub(super) retained: bool,
    pub(super) message: Value,
}

/// A stream, and the numbers of one batch of it.
type Numbers = (String, Vec<u64>);

/// Somebody who hears everything.
#[derive(Clone)]
pub(super) struct Fleet {
    client: AsyncClient,
    seen: Arc<Mutex<Vec<Seen>>>,
    events: Arc<Mutex<Vec<Numbers>>>,
}

impl Fleet {
    pub(super) async fn listen(port: u16, client_id: &str) -> Self {
        let mut options = MqttOptions::new(client_id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5));
        let mut properties = ConnectProperties::new();
        properties.max_packet_size = Some(1 << 20);
        options.set_connect_properties(properties);
        let (client, mut event_loop) = AsyncClient::new(options, 1_000);
        let fleet = Self { client: client.clone(), seen: Arc::default(), events: Arc::default() };
        let listener = fleet.clone();
        let (ready, mut is_ready) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                match event_loop.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        client.try_subscribe("samovar/v1/#", QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        ready.send_replace(true);
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => listener.hear(&publish),
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        within("the fleet's subscription", is_ready.wait_for(|ready| *ready)).await.unwrap();
        fleet
    }

    /// Every message on a channel so far.
    pub(super) fn on(&self, channel: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.topic.ends_with(channel)).cloned().collect()
    }

    /// The numbers of all events of a stream so far, as they came.
    pub(super) fn events(&self, stream: &str) -> Vec<u64> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|(of, _)| of == stream).flat_map(|(_, numbers)| numbers).copied().collect()
    }

    fn hear(&self, publish: &Publish) {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let message: Value = serde_json::from_slice(&publish.payload).unwrap_or(Value::Null);
        // The fleet lives in the process whose memory is measured: of events it keeps the numbers.
        if topic.ends_with("up/events") {
            let batch: EventBatch = serde_json::from_value(message["data"].clone()).unwrap();
            let numbers = batch.events.iter().map(|event| event.seq).collect();
            self.events.lock().unwrap().push((batch.stream, numbers));
        } else {
            self.seen.lock().unwrap().push(Seen { topic, retained: publish.retain, message });
        }
    }

    pub(super) fn send(&self, channel: &str, retained: bool, payload: impl Into<Bytes>) {
        let topic = format!("samovar/v1/test/D/{channel}");
        self.client.try_publish(topic, QoS::AtLeastOnce, retained, payload.into()).unwrap();
    }

    pub(super) fn acknowledge(&self, stream: &str, up_to: u64) {
        let ack = Ack { stream: Some(stream.into()), up_to: Some(up_to), resync: false };
        self.send("dn/ack", false, serde_json::to_vec(&ack).unwrap());
    }
}

/// A certificate authority and what it signs, as files for mosquitto and as configurations for the relay.
pub(super) struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Writes what a TLS listener needs; gives the lines for its configuration.
    pub(super) fn listener(&self, dir: &Path) -> String {
        let (certificate, key) = self.sign("127.0.0.1");
        let write = |name: &str, text: String| -> PathBuf {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = write("ca.pem", self.certificate.pem());
        let certificate = write("server.pem", certificate.pem());
        let key = write("server.key", key.serialize_pem());
        format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true\n",
            ca.display(),
            certificate.display(),
            key.display()
        )
    }

    /// A client that trusts this authority and shows a new certificate of it.
    pub(super) fn client(&self) -> Arc<rustls::ClientConfig> {
        let (certificate, key) = self.sign("D");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }
}
