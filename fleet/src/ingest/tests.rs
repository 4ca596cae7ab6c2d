//! The flow from end to end: a real broker, a real database, a device that is an MQTT client.
//!
//! Every story is told with the broker inside the fleet and with Mosquitto (skipped, loudly, where there is none), and on
//! PostgreSQL as well when `SAMOVAR_TEST_POSTGRES` names a server.

mod brokers;
mod guarded;

use super::entity::{device_desired, device_event, device_metric, device_status};
use super::*;
use crate::db::entity::{device, route_table};
use crate::pki::secrets::SigningKeys;
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, LastWillProperties, Packet};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use samovar_wire::activation::Role;
use samovar_wire::dsse::{self, Envelope as Signed, SigningKey, new_seed};
use samovar_wire::mqtt::{Ack, Desired, DesiredDocument};
use sea_orm::ActiveValue::Set;
use sea_orm::{ConnectionTrait as _, EntityTrait as _, PaginatorTrait as _};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep};

use guarded::{
    a_revoked_device_is_not_listened_to_and_told_nothing, events_that_overtake_each_other_are_all_stored,
    when_orders_need_the_database_only_last_values_and_every_event_are_stored,
};

const PATIENCE: Duration = Duration::from_secs(20);
const POS: &str = "POS-1";

/// A broker to test with.
enum Broker {
    #[cfg(feature = "embedded-broker")]
    Embedded {
        broker: Box<crate::broker::Running>,
        authority: Box<crate::broker::tests::Authority>,
    },
    Mosquitto(Mosquitto),
}

struct Mosquitto {
    child: Child,
    port: u16,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mosquitto {
    fn path() -> Option<&'static str> {
        let found = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        if found.is_none() {
            eprintln!("SKIPPED: mosquitto is not installed (tests/run installs it)");
        }
        found
    }

    async fn start(program: &str, dir: &Path, port: u16) -> Self {
        let config = dir.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\nuser root\n\
             max_inflight_messages 1000\nmax_queued_messages 20000\nlog_type none\n",
            dir.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let broker = Self { child, port };
        until("mosquitto to listen", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        broker
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl Broker {
    #[cfg(feature = "embedded-broker")]
    async fn embedded(dir: &Path) -> Self {
        use crate::broker::{Broker as Inside, BrokerConfig, tests::Authority};
        let authority = Authority::new("test");
        let broker = Inside::start(BrokerConfig {
            data_dir: dir.join("broker"),
            environment: "prod".to_owned(),
            tls: Some(authority.listener(dir)),
            plain_listen: "127.0.0.1:0".parse().unwrap(),
            admission: None,
        });
        Self::Embedded { broker: Box::new(broker.await.unwrap()), authority: Box::new(authority) }
    }

    fn fleet_url(&self) -> url::BrokerUrl {
        match self {
            #[cfg(feature = "embedded-broker")]
            Self::Embedded { broker, .. } => broker.fleet_url().parse().unwrap(),
            Self::Mosquitto(broker) => format!("mqtt://127.0.0.1:{}", broker.port).parse().unwrap(),
        }
    }

    fn device(&self, name: &str) -> MqttOptions {
        let (port, transport) = match self {
            #[cfg(feature = "embedded-broker")]
            Self::Embedded { broker, authority } => {
                (broker.tls_addr().unwrap().port(), authority.client(authority, name))
            }
            Self::Mosquitto(broker) => (broker.port, Transport::tcp()),
        };
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30)).set_transport(transport);
        options
            .set_clean_start(false)
            .set_session_expiry_interval(Some(3600))
            .set_max_packet_size(Some(300_000));
        options
    }
}

struct World {
    broker: Broker,
    database: Database,
    keys: Arc<SigningKeys>,
    ingest: Ingest,
    tasks: IngestTasks,
    dir: tempfile::TempDir,
    overload: Overload,
}

impl World {
    /// With the broker inside.
    #[cfg(feature = "embedded-broker")]
    async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::embedded(dir.path()).await;
        Self::with(broker, dir).await
    }

    /// With Mosquitto, where there is one.
    async fn mosquitto() -> Option<Self> {
        let program = Mosquitto::path()?;
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::Mosquitto(Mosquitto::start(program, dir.path(), free_port()).await);
        Some(Self::with(broker, dir).await)
    }

    async fn with(broker: Broker, dir: tempfile::TempDir) -> Self {
        let url = format!("sqlite://{}/fleet.db", dir.path().display());
        Self::over(&url, broker, dir).await
    }

    /// Over a new database of the PostgreSQL server that `SAMOVAR_TEST_POSTGRES` names.
    async fn postgres() -> Option<Self> {
        let (program, server) = (Mosquitto::path()?, std::env::var("SAMOVAR_TEST_POSTGRES").ok()?);
        let name = format!("samovar_{}", uuid::Uuid::now_v7().simple());
        let connection = sea_orm::Database::connect(&server).await.unwrap();
        connection.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        connection.close().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::Mosquitto(Mosquitto::start(program, dir.path(), free_port()).await);
        let (base, _) = server.rsplit_once('/').unwrap();
        Some(Self::over(&format!("{base}/{name}"), broker, dir).await)
    }

    async fn over(url: &str, broker: Broker, dir: tempfile::TempDir) -> Self {
        let database = Database::open(url).await.unwrap();
        register(&database, POS, 1).await;
        let key = |name| SigningKey::from_seed(name, &new_seed().unwrap()).unwrap();
        let keys =
            Arc::new(SigningKeys { routes: Some(key("r1")), commands: vec![(Role::Admin, key("c1"))] });
        let overload = Overload::new(2);
        let (ingest, tasks) = Ingest::start(&database, config(&broker, &keys, &overload)).unwrap();
        let world = Self { broker, database, keys, ingest, tasks, dir, overload };
        until("the fleet to be connected", async || world.ingest.is_connected()).await;
        world
    }

    async fn status(&self) -> Option<device_status::Model> {
        device_status::Entity::find_by_id(POS).one(self.database.read()).await.unwrap()
    }

    async fn events(&self) -> u64 {
        device_event::Entity::find().count(self.database.read()).await.unwrap()
    }

    async fn publish_table(&self, version: i64) -> Signed {
        let signed = Signed::sign(
            dsse::ROUTE_TABLE,
            format!("{{\"version\":{version}}}").as_bytes(),
            &[self.keys.routes.as_ref().unwrap()],
        );
        let row = route_table::ActiveModel {
            version: Set(version),
            sha256: Set(samovar_wire::encoding::hex(&signed.payload_sha256().unwrap())),
            envelope: Set(serde_json::to_string(&signed).unwrap()),
            origin: Set("test".to_owned()),
            published_at: Set(1),
            published_by: Set("test".to_owned()),
            ..Default::default()
        };
        let write = self.database.write().await.unwrap();
        route_table::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
        write.commit().await.unwrap();
        self.ingest.route_table_published();
        signed
    }

    fn open(&self, payload: &[u8]) -> Desired {
        let envelope: Signed = serde_json::from_slice(payload).unwrap();
        let trusted = self.keys.commands.iter().map(|(_, key)| (key.key_id.clone(), key.public())).collect();
        serde_json::from_slice(&envelope.open(dsse::DESIRED, &trusted).unwrap().payload).unwrap()
    }
}

fn config(broker: &Broker, keys: &Arc<SigningKeys>, overload: &Overload) -> IngestConfig {
    IngestConfig {
        url: broker.fleet_url(),
        client_id: "fleet.ingest-test".to_owned(),
        tls: None,
        overload: overload.clone(),
        desired: DesiredConfig {
            environment: "prod".to_owned(),
            keys: Arc::clone(keys),
            route_table_url: "https://fleet.example/device/v1/route-table".to_owned(),
        },
    }
}

async fn register(database: &Database, name: &str, activated_at: i64) {
    let row = device::ActiveModel {
        id: Set(name.to_owned()),
        store: Set("US-0001".to_owned()),
        class: Set("pos".to_owned()),
        hardware: Set(None),
        activated_at: Set(activated_at),
        created_at: Set(1),
    };
    let write = database.write().await.unwrap();
    device::Entity::delete_by_id(name).exec(&*write).await.unwrap();
    device::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
    write.commit().await.unwrap();
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A device as a plain MQTT client.
struct Device {
    name: String,
    client: AsyncClient,
    inbox: Receiver<(String, Vec<u8>)>,
    task: JoinHandle<()>,
    epoch: u64,
    seq: u64,
}

impl Device {
    async fn connect(world: &World, name: &str, epoch: u64) -> Self {
        let mut options = world.broker.device(name);
        let will = message("samovar.online.v1", epoch, 0, &json!({ "online": false, "epoch": epoch }));
        let properties = LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        let topic = format!("samovar/v1/prod/{name}/up/online");
        options.set_last_will(LastWill::new(topic, will, QoS::AtLeastOnce, true, Some(properties)));
        let (client, mut events) = AsyncClient::new(options, 200);
        let (again, filter) = (client.clone(), format!("samovar/v1/prod/{name}/dn/+"));
        let (send, inbox) = mpsc::channel(1000);
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        let _ = send.send((topic, publish.payload.to_vec())).await;
                    }
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        again.try_subscribe(&filter, QoS::AtLeastOnce).unwrap();
                    }
                    Ok(_) => {}
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        });
        Self { name: name.to_owned(), client, inbox, task, epoch, seq: 0 }
    }

    async fn send(&mut self, channel: &str, kind: &str, data: Value) {
        self.seq += 1;
        let payload = message(kind, self.epoch, self.seq, &data);
        let retain = matches!(channel, "up/online" | "up/state") && data.get("state").is_some();
        self.raw(channel, retain, payload).await;
    }

    async fn raw(&mut self, channel: &str, retain: bool, payload: Vec<u8>) {
        let topic = format!("samovar/v1/prod/{}/{channel}", self.name);
        self.client.publish(topic, QoS::AtLeastOnce, retain, payload).await.unwrap();
    }

    async fn birth(&mut self, route_table: Option<u64>, revision: u64) {
        let data = json!({ "online": true, "epoch": self.epoch, "boot_id": "b", "version": "0.1.0", "nonce": "n",
                           "capabilities": ["diagnose"], "route_table": route_table, "config_revision": revision });
        self.send("up/online", "samovar.online.v1", data).await;
    }

    async fn state(&mut self, letter: &str) {
        let data = json!({ "sha256": letter.repeat(64), "state": { "version": "0.1.0", "letter": letter } });
        self.send("up/state", "samovar.state.v1", data).await;
    }

    async fn events(&mut self, range: std::ops::RangeInclusive<u64>) {
        let events: Vec<_> = range
            .map(|seq| json!({ "seq": seq, "at": "2026-11-20T00:00:00.000Z", "kind": "test.event", "data": { "n": seq } }))
            .collect();
        self.send("up/events", "samovar.events.v1", json!({ "stream": "events", "events": events })).await;
    }

    async fn events_kept(&mut self, range: std::ops::RangeInclusive<u64>, kept_from: u64) {
        let events: Vec<_> = range
            .map(|seq| json!({ "seq": seq, "at": "2026-11-20T00:00:00.000Z", "kind": "test.event" }))
            .collect();
        let data = json!({ "stream": "events", "events": events, "kept_from": kept_from });
        self.send("up/events", "samovar.events.v1", data).await;
    }

    /// Waits for the next message on a channel, passing over others.
    async fn next(&mut self, channel: &str) -> Vec<u8> {
        loop {
            let (topic, payload) =
                timeout(PATIENCE, self.inbox.recv()).await.expect("a message in time").unwrap();
            if topic.ends_with(channel) {
                return payload;
            }
        }
    }

    /// Waits until the stream is acknowledged so far.
    async fn acknowledged(&mut self, up_to: u64) {
        loop {
            let ack = Ack::parse(&self.next("dn/ack").await).unwrap();
            if ack.up_to == Some(up_to) {
                assert_eq!(ack.stream.as_deref(), Some("events"));
                return;
            }
        }
    }

    /// As if the power were cut.
    async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn message(kind: &str, epoch: u64, seq: u64, data: &Value) -> Vec<u8> {
    let at = crate::clock::now();
    json!({ "v": 1, "id": uuid::Uuid::now_v7(), "at": at, "epoch": epoch, "seq": seq, "type": kind, "data": data })
        .to_string()
        .into_bytes()
}

/// Tells each story with both brokers.
macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        #[cfg(feature = "embedded-broker")]
        mod inside {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::World::embedded().await).await;
            })*
        }
        mod with_mosquitto {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(world) = super::World::mosquitto().await {
                    super::$name(world).await;
                }
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(world) = super::World::postgres().await {
                    super::$name(world).await;
                }
            })*
        }
    };
}

stories! {
    what_a_device_says_is_stored_and_acknowledged,
    a_device_that_dies_is_seen_to_be_gone,
    a_burst_of_events_is_stored_once_and_acknowledged,
    a_beat_of_an_unknown_state_is_answered_with_a_request_for_the_whole,
    nonsense_and_strangers_do_not_stop_the_stream,
    a_device_that_is_behind_is_sent_what_it_should_be,
    a_table_too_large_for_a_message_is_given_by_reference,
    a_device_activated_anew_starts_from_nothing,
    events_that_overtake_each_other_are_all_stored,
    a_revoked_device_is_not_listened_to_and_told_nothing,
    when_orders_need_the_database_only_last_values_and_every_event_are_stored,
}

async fn what_a_device_says_is_stored_and_acknowledged(world: World) {
    let mut changes = world.ingest.changes();
    let mut pos = Device::connect(&world, POS, 7).await;
    pos.birth(None, 0).await;
    pos.state("a").await;
    pos.send("up/metrics", "samovar.metrics.v1", json!({ "metrics": { "rss_bytes": 1.5 } })).await;
    pos.events(1..=3).await;
    pos.acknowledged(3).await;
    assert_eq!(world.events().await, 3);
    until("the state", async || world.status().await.is_some_and(|row| row.state_sha256.is_some())).await;
    let status = world.status().await.unwrap();
    assert!(status.online && status.state.unwrap().contains("\"letter\":\"a\""));
    assert_eq!(
        (status.epoch, status.version.as_deref(), status.nonce.as_deref()),
        (7, Some("0.1.0"), Some("n"))
    );
    assert_eq!(device_metric::Entity::find().count(world.database.read()).await.unwrap(), 1);
    let change = timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    assert_eq!((change.device.as_str(), change.store.as_str()), (POS, "US-0001"));

    let old = json!({ "sha256": "b".repeat(64), "state": { "letter": "b" } });
    pos.raw("up/state", false, message("samovar.state.v1", 6, 99, &old)).await;
    pos.events(4..=4).await;
    pos.acknowledged(4).await;
    assert_eq!(
        world.status().await.unwrap().state_sha256,
        Some("a".repeat(64)),
        "an older run changes nothing"
    );
    pos.die().await;
    world.tasks.stop(PATIENCE).await;
}

async fn a_device_that_dies_is_seen_to_be_gone(world: World) {
    let mut pos = Device::connect(&world, POS, 7).await;
    pos.birth(None, 0).await;
    until("the birth", async || world.status().await.is_some_and(|row| row.online)).await;
    pos.die().await;
    until("the will", async || world.status().await.is_some_and(|row| !row.online)).await;
    let mut back = Device::connect(&world, POS, 8).await;
    back.birth(None, 0).await;
    until("the next birth", async || world.status().await.is_some_and(|row| row.online && row.epoch == 8))
        .await;
    back.raw("up/online", true, message("samovar.online.v1", 7, 0, &json!({ "online": false, "epoch": 7 })))
        .await;
    back.events(1..=1).await;
    back.acknowledged(1).await;
    assert!(world.status().await.unwrap().online, "the will of the run before is ignored");
    back.die().await;
}

async fn a_burst_of_events_is_stored_once_and_acknowledged(world: World) {
    let mut pos = Device::connect(&world, POS, 1).await;
    for batch in 0..40 {
        pos.events(batch * 50 + 1..=batch * 50 + 50).await;
    }
    pos.events(1901..=2000).await;
    pos.acknowledged(2000).await;
    assert_eq!(world.events().await, 2000);
    pos.events(1..=100).await;
    pos.acknowledged(2000).await;
    assert_eq!(world.events().await, 2000, "a repeat is acknowledged and not stored again");
    pos.die().await;
}

async fn a_beat_of_an_unknown_state_is_answered_with_a_request_for_the_whole(world: World) {
    let mut pos = Device::connect(&world, POS, 1).await;
    pos.send("up/state", "samovar.state.v1", json!({ "sha256": "c".repeat(64) })).await;
    let ack = Ack::parse(&pos.next("dn/ack").await).unwrap();
    assert_eq!(ack, Ack { resync: true, ..Ack::default() });
    pos.die().await;
}

async fn nonsense_and_strangers_do_not_stop_the_stream(world: World) {
    let mut stranger = Device::connect(&world, "UNKNOWN-1", 1).await;
    stranger.birth(None, 0).await;
    let mut pos = Device::connect(&world, POS, 1).await;
    for payload in [&b"{"[..], b"[1]", b"{\"v\":9}", &[0xff; 1000], &vec![b'['; 100_000]] {
        pos.raw("up/events", false, payload.to_vec()).await;
    }
    pos.raw("up/state", true, Vec::new()).await;
    pos.events(1..=1).await;
    pos.acknowledged(1).await;
    assert_eq!(world.ingest.counters().refused.load(Ordering::Relaxed), 5);
    until("the stranger", async || world.ingest.counters().strangers.load(Ordering::Relaxed) > 0).await;
    assert_eq!(device_status::Entity::find().count(world.database.read()).await.unwrap(), 1);
    stranger.die().await;
    pos.die().await;
}

async fn a_device_that_is_behind_is_sent_what_it_should_be(world: World) {
    let table = world.publish_table(3).await;
    let mut pos = Device::connect(&world, POS, 1).await;
    let first = world.open(&pos.next("dn/desired").await);
    assert_eq!((first.device.as_str(), first.route_table), (POS, Some(DesiredDocument::Inline(table))));
    pos.birth(Some(2), first.revision).await;
    let again = world.open(&pos.next("dn/desired").await);
    assert_eq!(again.revision, first.revision, "the same, sent again");

    world.publish_table(4).await;
    let second = world.open(&pos.next("dn/desired").await);
    assert!(second.revision > first.revision);
    let row = device_desired::Entity::find_by_id(POS).one(world.database.read()).await.unwrap().unwrap();
    assert_eq!((row.route_table, u64::try_from(row.revision).unwrap()), (Some(4), second.revision));
    pos.die().await;
}

async fn a_table_too_large_for_a_message_is_given_by_reference(world: World) {
    let large = format!("{{\"pad\":\"{}\"}}", "x".repeat(150_000));
    let signed = Signed::sign(dsse::ROUTE_TABLE, large.as_bytes(), &[world.keys.routes.as_ref().unwrap()]);
    let write = world.database.write().await.unwrap();
    let row = route_table::ActiveModel {
        version: Set(9),
        sha256: Set("f".repeat(64)),
        envelope: Set(serde_json::to_string(&signed).unwrap()),
        origin: Set("test".to_owned()),
        published_at: Set(1),
        published_by: Set("test".to_owned()),
        ..Default::default()
    };
    route_table::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
    write.commit().await.unwrap();
    let mut pos = Device::connect(&world, POS, 1).await;
    let desired = world.open(&pos.next("dn/desired").await);
    let expected = DesiredDocument::Reference {
        sha256: "f".repeat(64),
        url: "https://fleet.example/device/v1/route-table".to_owned(),
    };
    assert_eq!(desired.route_table, Some(expected));
    pos.die().await;
}

async fn a_device_activated_anew_starts_from_nothing(world: World) {
    let mut pos = Device::connect(&world, POS, 50).await;
    pos.birth(None, 0).await;
    pos.events(1..=10).await;
    pos.acknowledged(10).await;
    pos.die().await;
    register(&world.database, POS, 2).await;
    let mut new = Device::connect(&world, POS, 1).await;
    new.birth(None, 0).await;
    new.events(1..=2).await;
    new.acknowledged(2).await;
    assert_eq!(world.events().await, 12);
    until("the new run", async || world.status().await.is_some_and(|row| row.online && row.epoch == 1)).await;
    new.die().await;
}
