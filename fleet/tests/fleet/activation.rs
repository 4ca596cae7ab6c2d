//! Activation and renewal.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use rcgen::KeyPair;
use samovar_wire::activation::ClaimAnswer;
use samovar_wire::route;
use serde_json::json;

use crate::world::{Backend, Device, Fleet, backends, batch, client, csr, json_body, order, send, statuses};

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_can_serve_add_a_store_claim_activate_and_order() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        fleet.store("US-0001").await;
        let key = KeyPair::generate().unwrap();
        let answer = fleet.activate(&fleet.claim("US-0001", "POS-US-0001", 600).await, &key).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        let told: ClaimAnswer = serde_json::from_value(answer.body.clone()).unwrap();
        assert_eq!((told.device.as_str(), told.store.as_str()), ("POS-US-0001", "US-0001"));
        assert_eq!((told.country.as_str(), told.class.as_str(), told.mqtt_url.as_str()), ("US", "pos", ""));
        assert_eq!(told.fleet_url, fleet.https());
        assert_eq!(told.commands_keys.len(), 4, "one key for each role that may command");
        let now = Some(samovar_fleet::clock::now());
        let accepted =
            route::accept(&told.route_table, &told.trusted_keys, &told.environment, None, now).unwrap();
        let endpoint = &accepted.table.origins["origin-1"].endpoints[0];
        assert_eq!(
            (endpoint.host.as_str(), endpoint.port),
            ("localhost", fleet.running.app.addresses.https.port())
        );
        assert!(accepted.table.countries.contains_key("US"));
        let device = Device::new(&answer.body, &key);
        let origin = format!("https://{}:{}", endpoint.host, endpoint.port);
        assert_eq!(statuses(&device.send(&origin, &batch(&[order("a", 1, "{}")])).await), ["settled"]);
        let listed = fleet.get("/api/v1/devices").await.body;
        assert_eq!(listed["devices"][0]["id"], "POS-US-0001");
        assert_eq!(fleet.get("/api/v1/devices/POS-US-0001").await.body["country"], "US");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_strands_nobody_and_a_used_code_opens_for_nobody_else() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        fleet.store("US-0001").await;
        let claim = fleet.claim("US-0001", "POS-US-0001", 600).await;
        let (mine, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let first = fleet.activate(&claim, &mine).await;
        let again = fleet.activate(&claim.to_lowercase().replace('-', " "), &mine).await;
        assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED));
        assert_eq!(first.body, again.body, "the same answer");
        let stolen = fleet.activate(&claim, &other).await;
        assert_eq!((stolen.status, stolen.slug()), (StatusCode::CONFLICT, "claim-used"));
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_takes_a_name_over_shuts_out_the_one_before_it() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let old = fleet.device("US-0001", "POS-US-0001").await;
        let new = fleet.device("US-0001", "POS-US-0001").await;
        let refused = old.send(&fleet.https(), &batch(&[order("k1", 1, "{}")])).await;
        assert_eq!((refused.status, refused.slug()), (StatusCode::FORBIDDEN, "certificate-revoked"));
        assert_eq!(statuses(&new.send(&fleet.https(), &batch(&[order("k1", 1, "{}")])).await), ["settled"]);
        assert_eq!(fleet.get("/api/v1/devices/POS-US-0001").await.body["revoked"], false);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_code_gives_no_revoked_certificate() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    fleet.store("US-0001").await;
    let (claim, key) = (fleet.claim("US-0001", "POS-US-0001", 600).await, KeyPair::generate().unwrap());
    assert_eq!(fleet.activate(&claim, &key).await.status, StatusCode::CREATED);
    fleet.post("/api/v1/devices/POS-US-0001/revoke", json!({})).await;
    let again = fleet.activate(&claim, &key).await;
    assert_eq!((again.status, again.slug()), (StatusCode::CONFLICT, "claim-used"));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_machines_with_one_code_exactly_one_is_activated() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        fleet.store("US-0001").await;
        let claim = fleet.claim("US-0001", "POS-US-0001", 600).await;
        let keys: Vec<KeyPair> = (0..10).map(|_| KeyPair::generate().unwrap()).collect();
        let answers = join_all(keys.iter().map(|key| fleet.activate(&claim, key))).await;
        let with = |status| answers.iter().filter(|answer| answer.status == status).count();
        assert_eq!((with(StatusCode::CREATED), with(StatusCode::CONFLICT)), (1, 9), "{backend:?}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_expired_and_foreign_codes_are_told_apart() {
    let fleet = Fleet::start(Backend::Sqlite, &["peers.USW=https://usw.example/"]).await;
    fleet.store("US-0001").await;
    let key = KeyPair::generate().unwrap();
    for unknown in ["HQ-AAAA-AAAA", "XX-AAAA-AAAA", "rubbish", ""] {
        let answer = fleet.activate(unknown, &key).await;
        assert_eq!((answer.status, answer.slug()), (StatusCode::NOT_FOUND, "unknown-claim"), "{unknown}");
    }
    let foreign = fleet.activate("USW-7K2M-9QXD", &key).await;
    assert_eq!(foreign.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(foreign.headers["location"], "https://usw.example/activate/v1/claims");
    let claim = fleet.claim("US-0001", "POS-US-0001", 1).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    // A broken request does not use the code up; it is refused as broken until the code has expired.
    loop {
        let body = json!({"claim": claim, "csr": "not a request"}).to_string();
        let http = client(Some(&fleet.ca()), None);
        let answer = send(json_body(http.post(format!("{}/activate/v1/claims", fleet.https())), body)).await;
        if answer.status == StatusCode::GONE {
            break;
        }
        assert_eq!((answer.status, answer.slug()), (StatusCode::BAD_REQUEST, "malformed"));
        assert!(Instant::now() < deadline, "the code does not expire");
    }
    let late = fleet.activate(&claim, &key).await;
    assert_eq!((late.status, late.slug()), (StatusCode::GONE, "claim-expired"));
    assert_eq!(fleet.get("/api/v1/devices").await.body["devices"], json!([]));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_codes_is_slowed_down() {
    let fleet = Fleet::start(Backend::Sqlite, &["activation.guesses=3"]).await;
    let key = KeyPair::generate().unwrap();
    for _ in 0..3 {
        assert_eq!(fleet.activate("HQ-AAAA-AAAA", &key).await.status, StatusCode::NOT_FOUND);
    }
    let slowed = fleet.activate("HQ-AAAA-AAAA", &key).await;
    assert_eq!(slowed.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(slowed.headers.contains_key("retry-after"));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_by_the_one_it_replaces_and_both_open() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let url = format!("{}/activate/v1/renewals", fleet.https());
        let key = KeyPair::generate().unwrap();
        let body = json!({"csr": csr(&key)}).to_string();
        let renewed = send(json_body(device.http.post(&url), body.clone())).await;
        assert_eq!(renewed.status, StatusCode::CREATED, "{}", renewed.body);
        let fresh = json!({"device": device.id, "ca": renewed.body["ca"], "certificate": renewed.body["certificate"]});
        let fresh = Device::new(&fresh, &key);
        for (one, number) in [(&device, 1), (&fresh, 2)] {
            let sent = batch(&[order(&format!("k{number}"), number, "{}")]);
            assert_eq!(statuses(&one.send(&fleet.https(), &sent).await), ["settled"]);
        }
        let stranger = send(json_body(client(Some(&fleet.ca()), None).post(&url), body.clone())).await;
        assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
        let revoked = fleet.post("/api/v1/devices/POS-US-0001/revoke", json!({})).await;
        assert_eq!(revoked.body["revoked"], 2);
        let refused = send(json_body(fresh.http.post(&url), body)).await;
        assert_eq!((refused.status, refused.slug()), (StatusCode::FORBIDDEN, "certificate-revoked"));
        let orders = fresh.send(&fleet.https(), &batch(&[order("k3", 3, "{}")])).await;
        assert_eq!(orders.status, StatusCode::FORBIDDEN);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_can_ask_for_the_table_in_force() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let url = format!("{}/activate/v1/route-table", fleet.https());
    let table = send(device.http.get(&url)).await;
    assert_eq!(table.status, StatusCode::OK);
    assert!(table.body["payloadType"].as_str().unwrap().contains("route-table"));
    let tag = table.headers["etag"].clone();
    let same = send(device.http.get(&url).header("if-none-match", &tag)).await;
    assert_eq!(same.status, StatusCode::NOT_MODIFIED);
    fleet.post("/api/v1/stores", json!({"id": "JP-0001", "country": "JP"})).await;
    assert_eq!(send(device.http.get(&url).header("if-none-match", &tag)).await.status, StatusCode::OK);
    assert_eq!(send(client(Some(&fleet.ca()), None).get(&url)).await.status, StatusCode::UNAUTHORIZED);
    fleet.running.stop().await;
}
