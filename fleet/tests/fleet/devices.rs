//! A device seen from head office: activation, its own MQTT connection, and what the API and the console show of it.

use std::time::Duration;

use http::{Method, StatusCode, header};
use rcgen::KeyPair;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, LastWill, Packet};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use samovar_fleet::config::Config;
use samovar_wire::dsse::{self, Envelope};
use samovar_wire::mqtt::{Ack, Desired};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::world::{Answer, Fleet, client, send};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its own broker.
async fn fleet() -> Fleet {
    let settings =
        ["server.listen=127.0.0.1:0", "server.https_listen=127.0.0.1:0", "broker.tls_listen=127.0.0.1:0"];
    Fleet::start_with(Config::load(None, &settings.map(str::to_owned)).unwrap()).await
}

/// An activated device with its connection, made from what activation gave it and nothing else.
struct Device {
    activation: Value,
    client: AsyncClient,
    events: EventLoop,
    /// Messages that came while another was waited for.
    inbox: Vec<(Vec<u8>, Vec<u8>)>,
    seq: u64,
}

impl Device {
    async fn activated(fleet: &Fleet, store: &str, device: &str) -> Self {
        if fleet.get(&format!("/api/v1/stores/{store}")).await.status == StatusCode::NOT_FOUND {
            fleet.store(store).await;
        }
        let key = KeyPair::generate().unwrap();
        let activation = fleet.activate(&fleet.claim(store, device, 600).await, &key).await.body;
        let (client, events) = AsyncClient::new(options(&activation, &key), 50);
        Self { activation, client, events, inbox: Vec::new(), seq: 0 }
    }

    async fn send(&mut self, channel: &str, kind: &str, data: Value) {
        self.seq += 1;
        let payload = json!({ "v": 1, "id": uuid::Uuid::now_v7(), "at": samovar_fleet::clock::now(), "epoch": 5,
                              "seq": self.seq, "type": kind, "data": data });
        let topic = format!("samovar/v1/prod/{}/up/{channel}", self.activation["device"].as_str().unwrap());
        self.client.publish(topic, QoS::AtLeastOnce, false, payload.to_string()).await.unwrap();
    }

    async fn subscribe(&self) {
        let topic = format!("samovar/v1/prod/{}/dn/+", self.activation["device"].as_str().unwrap());
        self.client.subscribe(topic, QoS::AtLeastOnce).await.unwrap();
    }

    /// The next message on a channel.
    async fn next(&mut self, channel: &str) -> Vec<u8> {
        loop {
            if let Some(place) = self.inbox.iter().position(|(topic, _)| topic.ends_with(channel.as_bytes()))
            {
                return self.inbox.remove(place).1;
            }
            let event = timeout(PATIENCE, self.events.poll()).await.expect("a message in time").unwrap();
            if let Event::Incoming(Packet::Publish(publish)) = event {
                self.inbox.push((publish.topic.to_vec(), publish.payload.to_vec()));
            }
        }
    }
}

fn options(activation: &Value, key: &KeyPair) -> MqttOptions {
    let text = |field: &str| activation[field].as_str().unwrap();
    let (host, port) = text("mqtt_url").strip_prefix("mqtts://").unwrap().rsplit_once(':').unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(text("ca").as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_slice_iter(text("certificate").as_bytes()).map(Result::unwrap).collect();
    let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
        .unwrap();
    let mut options = MqttOptions::new(text("device"), host, port.parse().unwrap());
    options
        .set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.into())))
        .set_max_packet_size(Some(300_000));
    let will = json!({ "v": 1, "id": uuid::Uuid::now_v7(), "at": samovar_fleet::clock::now(), "epoch": 5, "seq": 0,
                       "type": "samovar.online.v1", "data": { "online": false, "epoch": 5 } });
    let topic = format!("samovar/v1/prod/{}/up/online", text("device"));
    options.set_last_will(LastWill::new(topic, will.to_string(), QoS::AtLeastOnce, true, None));
    options
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "waited in vain for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn state() -> Value {
    json!({ "sha256": "ab".repeat(32), "state": {
        "version": "9.9.9", "epoch": 5, "line": "up", "route_table": { "version": 1 },
        "origin": { "service": "orders", "domain": "us.store.example", "base_url": "x", "origin": "us-west", "rule": "split" },
        "orders": { "pending": 7, "settled": 11 },
        "conditions": [{ "name": "line-down", "severity": "warning", "since": "2026-11-20T00:00:00.000Z",
                         "detail": "<script>alert('x')</script>" }],
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activated_device_is_seen_live_with_what_it_reports() {
    let fleet = fleet().await;
    let mut pos = Device::activated(&fleet, "US-0001", "POS-US-0001").await;
    let before = fleet.get("/api/v1/devices/POS-US-0001").await.body;
    assert_eq!((&before["online"], &before["state"]), (&json!(false), &Value::Null));
    let mut changes = watch(&fleet).await;

    pos.subscribe().await;
    let birth = json!({ "online": true, "epoch": 5, "boot_id": "b", "version": "9.9.9", "nonce": "n1",
                        "capabilities": ["diagnose"], "route_table": 1, "config_revision": 0 });
    pos.send("online", "samovar.online.v1", birth).await;
    pos.send("state", "samovar.state.v1", state()).await;
    let event = json!({ "seq": 1, "at": "2026-11-20T00:00:00.000Z", "kind": "origin.down", "data": { "origin": "apac" } });
    pos.send("events", "samovar.events.v1", json!({ "stream": "events", "events": [event] })).await;
    let desired: Envelope = serde_json::from_slice(&pos.next("dn/desired").await).unwrap();
    let keys = fleet.running.app.keys.commands_keys().into_iter().map(|(id, key)| (id, key.key)).collect();
    let desired: Desired =
        serde_json::from_slice(&desired.open(dsse::DESIRED, &keys).unwrap().payload).unwrap();
    assert!(desired.route_table.is_some());
    while Ack::parse(&pos.next("dn/ack").await).unwrap().up_to != Some(1) {}

    until("the state", async || {
        fleet.get("/api/v1/devices/POS-US-0001").await.body["orders"]["pending"] == 7
    })
    .await;
    let seen = fleet.get("/api/v1/devices/POS-US-0001").await.body;
    assert_eq!(
        (&seen["online"], &seen["version"], &seen["nonce"]),
        (&json!(true), &json!("9.9.9"), &json!("n1"))
    );
    assert_eq!((&seen["origin"]["origin"], &seen["line"]), (&json!("us-west"), &json!("up")));
    assert_eq!((&seen["conditions"][0]["name"], &seen["route_table"]), (&json!("line-down"), &json!(1)));
    assert_eq!(seen["state"]["orders"]["settled"], 11);
    assert_eq!(seen["desired_revision"], desired.revision);
    let list = fleet.get("/api/v1/devices").await.body;
    assert_eq!((&list["devices"][0]["online"], list["devices"][0].get("state")), (&json!(true), None));
    let store = fleet.get("/api/v1/stores/US-0001").await.body;
    assert_eq!(store["devices"][0]["id"], "POS-US-0001");
    let events = fleet.get("/api/v1/devices/POS-US-0001/events").await.body;
    assert_eq!(events["events"][0]["kind"], "origin.down");
    assert!(heard(&mut changes, "event: device").await, "the stream told of the change");

    the_console_shows_it(&fleet).await;
    drop(pos);
    until("the device to be gone", async || {
        fleet.get("/api/v1/devices/POS-US-0001").await.body["online"] == false
    })
    .await;
    fleet.running.stop().await;
}

async fn watch(fleet: &Fleet) -> reqwest::Response {
    let stream = client(None, None)
        .get(format!("{}/api/v1/events?device=POS-US-0001", fleet.http()))
        .bearer_auth(&fleet.admin)
        .send()
        .await
        .unwrap();
    assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
    stream
}

async fn heard(stream: &mut reqwest::Response, word: &str) -> bool {
    let mut text = String::new();
    timeout(PATIENCE, async {
        while let Ok(Some(chunk)) = stream.chunk().await {
            text.push_str(&String::from_utf8_lossy(&chunk));
            if text.contains(word) {
                return true;
            }
        }
        false
    })
    .await
    .unwrap_or(false)
}

/// A browser: keeps its cookie, follows nothing.
struct Browser<'a> {
    fleet: &'a Fleet,
    cookie: String,
}

struct Page {
    status: StatusCode,
    headers: http::HeaderMap,
    html: String,
}

impl Browser<'_> {
    async fn ask(&self, method: Method, path: &str, form: &str) -> Page {
        let mut request = client(None, None)
            .request(method.clone(), format!("{}{path}", self.fleet.http()))
            .header(header::COOKIE, &self.cookie)
            .header(header::ACCEPT_LANGUAGE, "en");
        if method == Method::POST {
            request = request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.to_owned());
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Page { status, headers, html: response.text().await.unwrap() }
    }

    async fn get(&self, path: &str) -> Page {
        self.ask(Method::GET, path, "").await
    }

    async fn signed_in(fleet: &Fleet) -> Browser<'_> {
        let mut browser = Browser { fleet, cookie: String::new() };
        let admin = crate::world::read(fleet.dir.path(), "admin.txt");
        let password = admin.lines().find_map(|line| line.strip_prefix("password: ")).unwrap();
        let form = format!("name=admin&password={password}&next=%2Fconsole%2Fstores%2FUS-0001");
        let answer = browser.ask(Method::POST, "/console/sign-in", &form).await;
        assert_eq!(
            (answer.status, &answer.headers[header::LOCATION]),
            (StatusCode::SEE_OTHER, &"/console/stores/US-0001".parse().unwrap())
        );
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        browser.cookie = cookie.split(';').next().unwrap().to_owned();
        browser
    }
}

async fn the_console_shows_it(fleet: &Fleet) {
    let browser = Browser::signed_in(fleet).await;
    for path in ["/console", "/console/stores/US-0001", "/console/devices/POS-US-0001"] {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        for word in ["POS-US-0001", "online", "us-west", "line-down"] {
            assert!(page.html.contains(word), "{path} does not say {word}");
        }
        assert!(!page.html.contains("<script>"), "{path}: what a device says is not markup");
        let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    }
    let device = browser.get("/console/devices/POS-US-0001?lang=zh").await;
    assert!(device.html.contains("在线") && device.html.contains("&#60;script&#62;"), "{}", device.html);
    assert!(device.headers[header::SET_COOKIE].to_str().unwrap().starts_with("samovar_lang=zh"));
    assert_eq!(browser.get("/console/devices/NONE").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_is_for_those_who_signed_in_and_leaving_needs_the_pages_own_form() {
    let fleet = Fleet::start(crate::world::Backend::Sqlite, &[]).await;
    let stranger = Browser { fleet: &fleet, cookie: String::new() };
    let sent = stranger.get("/console/devices/X?lang=zh").await;
    assert_eq!(sent.status, StatusCode::SEE_OTHER);
    assert_eq!(sent.headers[header::LOCATION], "/console/sign-in?next=%2Fconsole%2Fdevices%2FX%3Flang%3Dzh");
    let wrong = stranger.ask(Method::POST, "/console/sign-in", "name=%3Cb%3E&password=x&next=//evil").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(
        wrong.html.contains("password is wrong")
            && !wrong.html.contains("<b>")
            && !wrong.html.contains("evil")
    );
    for asset in ["console.css", "console.js", "icon.svg"] {
        assert_eq!(stranger.get(&format!("/console/assets/{asset}")).await.status, StatusCode::OK);
    }

    fleet.store("US-0001").await;
    let browser = Browser::signed_in(&fleet).await;
    let nowhere = browser.get("/console/nowhere/at/all").await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert!(nowhere.html.contains("There is no such page."), "{}", nowhere.html);
    assert!(browser.get("/console?q=zzz").await.html.contains("No match."));
    fleet.device("US-0001", "POS-SEARCHED").await;
    assert!(browser.get("/console?q=SEARCHED").await.html.contains("/console/devices/POS-SEARCHED"));
    let unheard = browser.get("/console/devices/POS-SEARCHED").await.html;
    assert!(unheard.contains("not reported anything") && !unheard.contains("Nothing is wrong"), "{unheard}");
    let page = browser.get("/console").await;
    assert!(!page.html.contains("tile critical"), "never heard of is not offline");
    assert!(page.html.contains("no MQTT broker"));
    let forged = browser.ask(Method::POST, "/console/sign-out", "csrf=guess").await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN);
    let csrf = page.html.split("name=\"csrf\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let left = browser.ask(Method::POST, "/console/sign-out", &format!("csrf={csrf}")).await;
    assert_eq!(left.status, StatusCode::SEE_OTHER);
    assert_eq!(browser.get("/console").await.status, StatusCode::SEE_OTHER, "the session has ended");
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_fetches_the_table_in_force_with_its_certificate_and_only_when_it_changed() {
    let fleet = fleet().await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let url = format!("{}{}", fleet.https(), samovar_fleet::ingest::http::ROUTE_TABLE);
    let answer = send(device.http.get(&url)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert!(answer.body["payloadType"].as_str().unwrap().contains("route-table"));
    let tag = answer.headers[header::ETAG].clone();
    assert_eq!(
        send(device.http.get(&url).header(header::IF_NONE_MATCH, tag)).await.status,
        StatusCode::NOT_MODIFIED
    );
    let anonymous = client(Some(&fleet.ca()), None);
    assert_eq!(send(anonymous.get(&url)).await.status, StatusCode::UNAUTHORIZED);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_not_let_in_by_the_broker_either() {
    let fleet = fleet().await;
    let mut pos = Device::activated(&fleet, "US-0001", "POS-US-0001").await;
    let connected = timeout(PATIENCE, pos.events.poll()).await.unwrap();
    assert!(matches!(connected, Ok(Event::Incoming(Packet::ConnAck(_)))), "{connected:?}");
    let birth = json!({ "online": true, "epoch": 5, "boot_id": "b", "version": "9.9.9", "nonce": "n1",
                        "capabilities": [], "route_table": 1, "config_revision": 0 });
    pos.send("online", "samovar.online.v1", birth).await;
    let seen = async || fleet.get("/api/v1/devices/POS-US-0001").await.body;
    let polling = async { while pos.events.poll().await.is_ok() {} };
    let revoking = async {
        until("the birth", async || seen().await["online"] == true).await;
        let revoked: Answer = fleet.post("/api/v1/devices/POS-US-0001/revoke", json!({})).await;
        assert_eq!(revoked.status, StatusCode::OK, "{}", revoked.body);
    };
    let (cut, ()) = tokio::join!(timeout(PATIENCE, polling), revoking);
    assert!(cut.is_ok(), "the connection stands");
    let seen = seen().await;
    assert_eq!((&seen["revoked"], &seen["online"]), (&json!(true), &json!(false)));
    let browser = Browser::signed_in(&fleet).await;
    assert!(browser.get("/console/devices/POS-US-0001").await.html.contains("revoked"));
    pos.events.clean();
    let refused = timeout(PATIENCE, pos.events.poll()).await.unwrap();
    assert!(
        matches!(refused, Err(ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized))),
        "{refused:?}"
    );
    fleet.running.stop().await;
}
