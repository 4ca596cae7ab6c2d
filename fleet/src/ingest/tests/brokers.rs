//! Brokers that go away, forget, refuse, or ask who is there.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_and_comes_back_loses_nothing() {
    let Some(mut world) = World::mosquitto().await else { return };
    let mut pos = Device::connect(&world, POS, 1).await;
    pos.events(1..=100).await;
    pos.acknowledged(100).await;
    let port = world.broker.fleet_url().port;
    world.broker = Broker::Mosquitto(Mosquitto { child: Command::new("true").spawn().unwrap(), port });
    until("the fleet to notice", async || !world.ingest.is_connected()).await;
    pos.events(101..=200).await;
    world.broker =
        Broker::Mosquitto(Mosquitto::start(Mosquitto::path().unwrap(), world.dir.path(), port).await);
    // rumqttc forgets what was queued when the session is gone; a device sends again what is not acknowledged.
    until("the fleet to be back", async || world.ingest.is_connected()).await;
    let mut waited = 0;
    loop {
        pos.events(101..=200).await;
        let ack = timeout(Duration::from_secs(2), pos.next("dn/ack")).await;
        if ack.is_ok_and(|ack| Ack::parse(&ack).unwrap().up_to == Some(200)) {
            break;
        }
        waited += 1;
        assert!(waited < 10, "never acknowledged");
    }
    assert_eq!(world.events().await, 200);
    pos.die().await;
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_starts_again_goes_on_where_it_was() {
    let world = World::embedded().await;
    let mut pos = Device::connect(&world, POS, 1).await;
    pos.events(1..=100).await;
    pos.acknowledged(100).await;
    pos.die().await;
    let World { broker, database, keys, tasks, dir, overload, .. } = world;
    tasks.stop(PATIENCE).await;
    let Broker::Embedded { broker, .. } = broker else { return };
    broker.stop(Duration::from_secs(5)).await.unwrap();
    database.close().await;

    // Another data directory: the broker has forgotten everything, sessions and retained messages included.
    let fresh = tempfile::tempdir().unwrap();
    let broker = Broker::embedded(fresh.path()).await;
    let database = Database::open(&format!("sqlite://{}/fleet.db", dir.path().display())).await.unwrap();
    let (ingest, tasks) = Ingest::start(&database, config(&broker, &keys, &overload)).unwrap();
    let world = World { broker, database, keys, ingest, tasks, dir, overload };
    until("the fleet to be connected", async || world.ingest.is_connected()).await;
    let mut pos = Device::connect(&world, POS, 2).await;
    pos.birth(None, 0).await;
    pos.events(51..=150).await;
    pos.acknowledged(150).await;
    assert_eq!(world.events().await, 150);
    pos.die().await;
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_subscription_is_not_taken_for_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::embedded(dir.path()).await;
    let config = LinkConfig {
        url: broker.fleet_url(),
        client_id: "fleet.test".to_owned(),
        filters: vec!["samovar/v1/another-environment/+/up/+".to_owned()],
        tls: None,
    };
    let (link, _deliveries, _tasks) = Link::start(config).unwrap();
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert!(!link.is_connected());
        sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_asks_for_tls_and_a_password_is_served() {
    let Some(program) = Mosquitto::path() else { return };
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let authority = crate::broker::tests::Authority::new("test");
    let files = authority.listener(dir.path());
    let passwords = dir.path().join("passwords");
    let made =
        Command::new("mosquitto_passwd").args(["-c", "-b"]).arg(&passwords).args(["fleet", "p@ss"]).status();
    assert!(made.unwrap().success());
    let conf = format!(
        "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {}\ncafile {}\ncertfile {}\nkeyfile {}\nuser root\n",
        passwords.display(),
        files.ca.display(),
        files.cert.display(),
        files.key.display()
    );
    std::fs::write(dir.path().join("mosquitto.conf"), conf).unwrap();
    let child =
        Command::new(program).arg("-c").arg(dir.path().join("mosquitto.conf")).stderr(Stdio::null()).spawn();
    let _broker = Mosquitto { child: child.unwrap(), port };
    let link = |login: &str| {
        let config = LinkConfig {
            url: format!("mqtts://{login}@127.0.0.1:{port}").parse().unwrap(),
            client_id: "fleet.test".to_owned(),
            filters: vec![ingest_filter("prod")],
            tls: Some(Arc::new(crate::mqtt::client_tls(&files.ca).unwrap())),
        };
        Link::start(config).unwrap()
    };
    let (wrong, _deliveries, _tasks) = link("fleet:guess");
    let (right, _deliveries_too, _tasks_too) = link("fleet:p%40ss");
    until("the fleet to be connected", async || right.is_connected()).await;
    assert!(!wrong.is_connected());
}
