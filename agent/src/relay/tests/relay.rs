//! The whole relay: every promise of the table in `relay/mod.rs`, through outages.

use super::fake::{Fake, within};
use super::mosquitto::{Authority, Fleet, Line, Mosquitto, Traffic, free_port};
use crate::clock::mono;
use crate::relay::{
    BirthFacts, Commands, DesiredState, Login, Outbox, OutboxSettings, Relay, RelayHandle, RelayInputs,
    RelaySettings, ReplyError, StateDocument, Stream,
};
use rumqttc::v5::mqttbytes::v5::Packet;
use samovar_wire::conditions::Condition;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A device with a relay.
struct Device {
    relay: RelayHandle,
    desired: DesiredState,
    commands: Commands,
    outbox: Outbox,
    state: watch::Sender<Arc<StateDocument>>,
    birth: watch::Sender<Arc<BirthFacts>>,
    tls: watch::Sender<Option<Arc<rustls::ClientConfig>>>,
    conditions: Arc<Mutex<BTreeMap<Condition, String>>>,
    dir: tempfile::TempDir,
}

fn settings(url: &str) -> RelaySettings {
    let mut settings = RelaySettings::new(url.parse().unwrap(), "test", "D".parse().unwrap(), 17);
    settings.keep_alive = Duration::from_secs(5);
    settings.connect_timeout = Duration::from_secs(2);
    settings.reconnect_min = Duration::from_millis(20);
    settings.reconnect_max = Duration::from_millis(200);
    settings
}

fn tcp(port: u16) -> RelaySettings {
    settings(&format!("mqtt://127.0.0.1:{port}"))
}

fn document(value: &Value) -> Arc<StateDocument> {
    Arc::new(StateDocument::of(value).unwrap())
}

impl Device {
    fn start(settings: RelaySettings) -> Self {
        Self::start_in(settings, tempfile::tempdir().unwrap(), None)
    }

    fn start_in(
        settings: RelaySettings,
        dir: tempfile::TempDir,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Self {
        let conditions = Arc::new(Mutex::new(BTreeMap::new()));
        let board = Arc::clone(&conditions);
        let set: crate::relay::SetCondition = Arc::new(move |condition, detail| {
            let mut board = board.lock().unwrap();
            match detail {
                Some(detail) => board.insert(condition, detail),
                None => board.remove(&condition),
            };
        });
        let path = dir.path().join("aux.db");
        let outbox =
            Outbox::open(OutboxSettings { path, max_bytes: 16 << 20, conditions: set.clone() }).unwrap();
        let state = watch::Sender::new(document(&json!({"number": 0})));
        let birth = watch::Sender::new(Arc::new(BirthFacts {
            boot_id: "boot".into(),
            version: "1.2.3".into(),
            capabilities: vec!["diagnose".into()],
            route_table: Some(1042),
            config_revision: 7,
        }));
        let tls = watch::Sender::new(tls);
        let inputs = RelayInputs {
            state: state.subscribe(),
            birth: birth.subscribe(),
            tls: tls.subscribe(),
            metrics: Box::new(|| samovar_wire::mqtt::Metrics {
                metrics: BTreeMap::from([("orders_pending".to_owned(), 3.0)]),
                endpoints: Vec::new(),
            }),
            outbox: outbox.clone(),
            conditions: set,
            heartbeat: None,
        };
        let (relay, desired, commands) = Relay::start(settings, inputs);
        Self { relay, desired, commands, outbox, state, birth, tls, conditions, dir }
    }

    fn say(&self, number: u64) {
        self.state.send_replace(document(&json!({"number": number, "text": "x".repeat(2_000)})));
    }

    fn record(&self, count: u64) {
        for number in 0..count {
            self.outbox.record(
                Stream::Events,
                "test.happened",
                &json!({"number": number, "text": "x".repeat(100)}),
            );
        }
    }

    async fn connected(&self) {
        let mut status = self.relay.watch();
        within("a connection", status.wait_for(|status| status.connected && status.subscribed))
            .await
            .unwrap();
    }

    async fn disconnected(&self) {
        let mut status = self.relay.watch();
        within("a disconnection", status.wait_for(|status| !status.connected)).await.unwrap();
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The fleet makes everything durable that follows without a gap, as it comes.
fn acknowledge_everything(fleet: &Fleet) -> tokio::task::JoinHandle<()> {
    let fleet = fleet.clone();
    tokio::spawn(async move {
        let mut said = 0;
        loop {
            let newest = fleet.events("events").into_iter().max().unwrap_or(0);
            if newest > said {
                said = newest;
                fleet.acknowledge("events", newest);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

/// Resident memory of this process in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn state_number(fleet: &Fleet) -> Option<u64> {
    let states = fleet.on("up/state").into_iter().rev();
    states.map(|seen| seen.message["data"]["state"]["number"].clone()).find_map(|number| number.as_u64())
}

#[tokio::test]
async fn a_device_says_who_it_is_how_it_is_and_goes_with_a_word() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let fleet = Fleet::listen(broker.port, "fleet").await;
    let device = Device::start(tcp(broker.port));
    device.connected().await;
    until("a state", || !fleet.on("up/state").is_empty()).await;
    let birth = fleet.on("up/online").remove(0).message;
    assert_eq!(
        birth["data"],
        json!({
            "online": true, "epoch": 17, "boot_id": "boot", "version": "1.2.3", "nonce": device.relay.nonce(),
            "capabilities": ["diagnose"], "route_table": 1042, "config_revision": 7,
            "connected_at": birth["data"]["connected_at"],
        })
    );
    assert!(birth["data"]["connected_at"].as_str() <= birth["at"].as_str());
    assert_eq!(
        (&birth["v"], &birth["epoch"], &birth["type"]),
        (&json!(1), &json!(17), &json!("samovar.online.v1"))
    );
    let state = fleet.on("up/state").remove(0).message;
    assert_eq!(state["data"]["state"], json!({"number": 0}));
    assert!(state["seq"].as_u64() > birth["seq"].as_u64());
    assert!(device.conditions.lock().unwrap().is_empty());
    until("metrics", || !fleet.on("up/metrics").is_empty()).await;
    assert_eq!(fleet.on("up/metrics")[0].message["data"]["metrics"], json!({"orders_pending": 3.0}));

    let used = device.relay.nonce();
    device.relay.rotate_nonce();
    let fresh = device.relay.nonce();
    assert_ne!(used, fresh);
    until("the new nonce", || {
        fleet.on("up/online").iter().any(|seen| seen.message["data"]["nonce"] == fresh)
    })
    .await;
    device.birth.send_modify(|facts| Arc::make_mut(facts).config_revision = 8);
    until("the new revision", || {
        fleet.on("up/online").iter().any(|seen| seen.message["data"]["config_revision"] == 8)
    })
    .await;

    let started = mono();
    device.relay.stop().await;
    assert!(mono().after(started) < Duration::from_secs(1));
    until("the good-bye", || {
        fleet.on("up/online").last().unwrap().message["data"] == json!({"online": false, "epoch": 17})
    })
    .await;
    let later = Fleet::listen(broker.port, "later").await;
    until("what is retained", || later.on("up/online").len() == 1 && later.on("up/state").len() == 1).await;
    assert!(later.on("up/state")[0].retained);
    assert_eq!(later.on("up/online")[0].message["data"]["online"], false);
}

#[tokio::test]
async fn the_will_is_retained_delayed_and_older_than_everything_else() {
    let fake = Fake::bind().await;
    let _device = Device::start(tcp(fake.port));
    let (_peer, connect) = fake.welcome(false, None).await;
    let Packet::Connect(connect, Some(will), _) = connect else { panic!("{connect:?}") };
    assert_eq!(connect.client_id, "D");
    assert_eq!(will.topic, "samovar/v1/test/D/up/online");
    assert!(will.retain);
    assert_eq!(will.qos as u8, 1);
    assert_eq!(will.properties.unwrap().delay_interval, Some(30));
    let message: Value = serde_json::from_slice(&will.message).unwrap();
    assert_eq!((&message["seq"], &message["epoch"]), (&json!(0), &json!(17)));
    assert_eq!(message["data"], json!({"online": false, "epoch": 17}));
}

#[tokio::test]
async fn an_hour_of_changes_without_a_broker_leaves_memory_flat_and_the_relay_working() {
    let Some(mut broker) = Mosquitto::start("").await else { return };
    let device = Device::start(tcp(broker.port));
    device.connected().await;
    device.record(10);
    device.say(1);
    until("the first events", || device.outbox.level().events == 10).await;
    let before = memory();
    broker.kill();
    device.disconnected().await;
    assert!(device.conditions.lock().unwrap().contains_key(&Condition::RelayDisconnected));
    for number in 2..=20_000 {
        device.say(number);
        if number % 4 == 0 {
            device.record(1);
        }
        if number % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    until("the outbox", || device.outbox.level().events == 5_010).await;
    let grown = memory().saturating_sub(before);
    eprintln!("memory grew by {grown} KiB during the outage");
    assert!(grown < 10 * 1024, "{grown} KiB");

    // Everything goes to the broker first, where nobody listens yet: the fleet of this test lives in the process that
    // is measured.
    broker.up().await;
    let acked = device.relay.status().acked;
    device.connected().await;
    until("the broker to have everything", || device.relay.status().acked >= acked + 27).await;
    let grown = memory().saturating_sub(before);
    eprintln!("memory grew by {grown} KiB in all");
    assert!(grown < 10 * 1024, "{grown} KiB");
    assert!(device.relay.status().published < 60, "old states are not sent");

    let fleet = Fleet::listen(broker.port, "fleet").await;
    until("the newest state", || state_number(&fleet) == Some(20_000)).await;
    let before_all = device.outbox.level().last[0] - 5_010;
    fleet.acknowledge("events", before_all);
    let different = || fleet.events("events").into_iter().collect::<BTreeSet<_>>().len();
    until("all events", || different() == 5_010).await;
    fleet.acknowledge("events", before_all + 5_010);
    until("the outbox to be empty", || device.outbox.level().events == 0).await;

    device.say(20_001);
    until("a state after the outage", || state_number(&fleet) == Some(20_001)).await;
    device.record(1);
    until("an event after the outage", || different() == 5_011).await;
    device.relay.reply(&json!({"id": "after"})).unwrap();
    until("a reply after the outage", || !fleet.on("up/reply").is_empty()).await;
    assert!(device.conditions.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_broker_that_is_killed_and_forgets_everything_costs_nothing() {
    let Some(mut broker) = Mosquitto::start("persistence false").await else { return };
    let line = Line::to(broker.port).await;
    let mut device = Device::start(tcp(line.port));
    device.connected().await;
    for round in 1..=3_u64 {
        device.record(200);
        until("the events to be handed over", || device.relay.status().acked > 3 * round).await;
        broker.kill();
        device.disconnected().await;
        device.record(50);
        device.say(round);
        broker.up().await;
        device.connected().await;
    }
    let fleet = Fleet::listen(broker.port, "fleet").await;
    fleet.send("dn/ack", false, r#"{"resync": true}"#);
    until("the state on request", || state_number(&fleet) == Some(3)).await;
    fleet.send("dn/command", false, "a command");
    assert_eq!(within("the command", device.commands.next()).await.unwrap(), "a command");
    // The broker forgot them when it was killed; without an acknowledgement they are still here.
    line.set(Traffic::Cut);
    broker.kill();
    device.disconnected().await;
    broker.up().await;
    let fleet = Fleet::listen(broker.port, "fleet-again").await;
    line.set(Traffic::Flows);
    device.connected().await;
    device.record(1);
    // Three reconnects without an acknowledgement are over: the fleet says where it stands and gets the rest.
    until("the last event", || device.outbox.level().events == 751 && !fleet.events("events").is_empty())
        .await;
    let before_all = device.outbox.level().last[0] - 751;
    fleet.acknowledge("events", before_all);
    until("every event", || fleet.events("events").into_iter().collect::<BTreeSet<_>>().len() == 751).await;
    let _acknowledging = acknowledge_everything(&fleet);
    until("every event to be acknowledged", || device.outbox.level().events == 0).await;
}

#[tokio::test]
async fn events_wait_for_the_fleets_word_across_restarts_of_the_agent() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let device = Device::start(tcp(broker.port));
    device.connected().await;
    device.record(300);
    until("the broker's word", || device.outbox.level().events == 300 && device.relay.status().acked >= 4)
        .await;
    let Device { relay, outbox, dir, .. } = device;
    relay.stop().await;
    outbox.close(Duration::from_secs(5)).await;
    let fleet = Fleet::listen(broker.port, "fleet").await;
    let device = Device::start_in(tcp(broker.port), dir, None);
    device.connected().await;
    until("all events again", || fleet.events("events").len() == 300).await;
    let numbers = fleet.events("events");
    fleet.acknowledge("events", numbers[199]);
    until("the truncation", || device.outbox.level().events == 100).await;
    device.record(1);
    until("a new number", || fleet.events("events").len() == 301).await;
    assert_eq!(fleet.events("events")[300], numbers[299] + 1);
}

#[tokio::test]
async fn a_site_without_a_fleet_hears_each_event_once_in_a_connection() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let fleet = Fleet::listen(broker.port, "listener").await;
    let device = Device::start(tcp(broker.port));
    device.connected().await;
    device.record(1_000);
    until("the events", || fleet.events("events").len() >= 1_000).await;
    let published = device.relay.status().published;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(fleet.events("events").len(), 1_000);
    assert_eq!(device.relay.status().published, published, "nothing spins");
}

#[tokio::test]
async fn replies_survive_a_cut_line_and_more_than_fit_are_refused() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let line = Line::to(broker.port).await;
    let fleet = Fleet::listen(broker.port, "fleet").await;
    let device = Device::start(tcp(line.port));
    device.connected().await;
    line.set(Traffic::Stalls);
    for number in 0..10 {
        device.relay.reply(&json!({"number": number})).unwrap();
    }
    until("the replies to be handed over", || device.relay.status().published >= 13).await;
    line.set(Traffic::Cut);
    device.disconnected().await;
    let mut taken = 10;
    let refused = loop {
        match device.relay.reply(&json!({"number": taken})) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(refused, ReplyError::Busy);
    assert!((26..=42).contains(&taken), "{taken}");
    line.set(Traffic::Flows);
    until("every reply that was taken", || {
        let mut numbers: Vec<_> = fleet
            .on("up/reply")
            .iter()
            .map(|seen| seen.message["data"]["number"].as_u64().unwrap())
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers == (0..taken).collect::<Vec<_>>()
    })
    .await;
    let too_large = device.relay.reply(&"x".repeat(200_000));
    assert!(matches!(too_large, Err(ReplyError::TooLarge(_))));
}

#[tokio::test]
async fn a_stalled_line_is_given_up_and_everything_arrives_on_the_next() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let line = Line::to(broker.port).await;
    let fleet = Fleet::listen(broker.port, "fleet").await;
    let device = Device::start(tcp(line.port));
    device.connected().await;
    line.set(Traffic::Stalls);
    device.record(5_000);
    device.say(5);
    device.disconnected().await;
    line.set(Traffic::Flows);
    device.connected().await;
    let _acknowledging = acknowledge_everything(&fleet);
    until("every event to be acknowledged", || device.outbox.level().events == 0).await;
    until("the state", || state_number(&fleet) == Some(5)).await;
}

#[tokio::test]
async fn commands_that_nobody_reads_are_dropped_and_counted_and_the_newest_desired_state_wins() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let fleet = Fleet::listen(broker.port, "fleet").await;
    for revision in 1..=3 {
        fleet.send("dn/desired", true, format!("revision {revision}"));
    }
    let mut device = Device::start(tcp(broker.port));
    device.connected().await;
    within("the newest desired state", async {
        while device.desired.next().await.unwrap() != "revision 3" {}
    })
    .await;
    let dropped = device.relay.status().dropped;
    for number in 0..30 {
        fleet.send("dn/command", false, format!("command {number}"));
    }
    until("the drops", || device.relay.status().dropped == dropped + 14).await;
    for number in 0..16 {
        assert_eq!(within("a command", device.commands.next()).await.unwrap(), format!("command {number}"));
    }
    let large = vec![b'x'; 256 * 1024];
    fleet.send("dn/desired", true, large.clone());
    assert_eq!(within("a large desired state", device.desired.next()).await.unwrap(), large);
    for nonsense in
        ["", "not json", "[1,2]", r#"{"stream":"events","up_to":99999999999999}"#, r#"{"stream":7}"#]
    {
        fleet.send("dn/ack", false, nonsense);
    }
    fleet.send("dn/unknown", false, "x");
    fleet.send("dn/command", false, "still here");
    assert_eq!(within("a command", device.commands.next()).await.unwrap(), "still here");
}

#[tokio::test]
async fn a_renewed_certificate_makes_a_new_connection_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let Some(broker) = Mosquitto::start(&authority.listener(dir.path())).await else { return };
    let url = format!("mqtts://127.0.0.1:{}", broker.port);
    let device = Device::start(settings(&url));
    let mut status = device.relay.watch();
    within("a reason", status.wait_for(|status| status.last_error.is_some())).await.unwrap();
    assert!(device.relay.status().last_error.unwrap().contains("no TLS configuration"));
    device.tls.send_replace(Some(Authority::new().client()));
    within(
        "a refusal",
        status.wait_for(|s| s.last_error.as_ref().is_some_and(|e| e.contains("certificate"))),
    )
    .await
    .unwrap();
    let first = authority.client();
    device.tls.send_replace(Some(Arc::clone(&first)));
    device.connected().await;
    assert!(Arc::ptr_eq(device.relay.status().connected_with.as_ref().unwrap(), &first));
    let renewed = authority.client();
    device.tls.send_replace(Some(Arc::clone(&renewed)));
    let mut status = device.relay.watch();
    let with_renewed = status.wait_for(|status| {
        status.connected && status.connected_with.as_ref().is_some_and(|config| Arc::ptr_eq(config, &renewed))
    });
    within("a connection with the renewed certificate", with_renewed).await.unwrap();
}

#[tokio::test]
async fn websockets_and_passwords_work() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = dir.path().join("passwords");
    std::fs::write(&passwords, "till:secret\n").unwrap();
    if Command::new("mosquitto_passwd").arg("-U").arg(&passwords).status().is_err() {
        eprintln!("SKIPPED: mosquitto_passwd is not installed (apt-get install mosquitto)");
        return;
    }
    let port = free_port().await;
    let extra = format!(
        "allow_anonymous false\npassword_file {}\nlistener {port} 127.0.0.1\nprotocol websockets",
        passwords.display()
    );
    let Some(_broker) = Mosquitto::start(&extra).await else { return };
    let mut settings = settings(&format!("ws://127.0.0.1:{port}"));
    settings.login = Some(Login { username: "till".into(), password: "wrong".into() });
    let stranger = Device::start(settings.clone());
    let mut status = stranger.relay.watch();
    let refused = status.wait_for(|s| s.last_error.as_ref().is_some_and(|error| error.contains("refused")));
    within("a refusal", refused).await.unwrap();
    settings.login = Some(Login { username: "till".into(), password: "secret".into() });
    Device::start(settings).connected().await;
}

#[tokio::test]
async fn a_broker_that_never_answers_is_a_condition_and_does_not_hold_up_a_stop() {
    let fake = Fake::bind().await;
    let mut settings = tcp(fake.port);
    settings.connect_timeout = Duration::from_secs(1);
    let device = Device::start(settings);
    let _silent = fake.accept().await;
    until("the condition", || device.conditions.lock().unwrap().contains_key(&Condition::RelayDisconnected))
        .await;
    assert!(device.relay.status().last_error.is_some());
    let _silent_too = fake.accept().await;
    let started = mono();
    device.relay.stop().await;
    assert!(mono().after(started) < Duration::from_millis(500));
}

#[tokio::test]
async fn a_broker_that_stops_reading_does_not_hold_up_a_stop() {
    let fake = Fake::bind().await;
    let device = Device::start(tcp(fake.port));
    let (_peer, _) = fake.welcome(false, None).await;
    until("the connection", || device.relay.status().connected).await;
    device.record(5_000);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = mono();
    device.relay.stop().await;
    assert!(mono().after(started) <= Duration::from_millis(1_100), "{:?}", mono().after(started));
}
