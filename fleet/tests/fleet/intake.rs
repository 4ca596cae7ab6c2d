//! Order intake: the origin contract.

use std::collections::HashMap;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use crate::world::{Backend, Device, Fleet, backends, batch, client, csr, json_body, order, send, statuses};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_concurrent_retries_of_one_batch_record_each_order_once() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let orders: Vec<Value> =
            (1..=50).map(|n| order(&format!("k{n}"), n, &format!("{{\"total\":{n}}}"))).collect();
        let sent = batch(&orders);
        let origin = fleet.https();
        let answers = join_all((0..20).map(|_| device.send(&origin, &sent))).await;
        let mut settled = 0;
        for answer in &answers {
            assert_eq!(answer.status, StatusCode::OK, "{backend:?} {}", answer.body);
            assert_eq!(answer.body["batch"], sent["batch"]);
            let found = statuses(answer);
            assert!(found.iter().all(|status| status == "settled" || status == "duplicate"), "{found:?}");
            settled += found.iter().filter(|status| *status == "settled").count();
        }
        assert_eq!(settled, 50, "{backend:?}: each order is settled by exactly one of the 20");
        assert_eq!(fleet.count("").await, 50);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_batches_in_different_order_neither_deadlock_nor_double() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let orders: Vec<Value> = (1..=40).map(|n| order(&format!("k{n}"), n, "{}")).collect();
        let reversed: Vec<Value> = orders.iter().rev().cloned().collect();
        let origin = fleet.https();
        let batches: Vec<Value> =
            (0..16).map(|n| batch(if n % 2 == 0 { &orders } else { &reversed })).collect();
        let answers = join_all(batches.iter().map(|sent| device.send(&origin, sent))).await;
        assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "{backend:?}");
        let settled: usize = answers
            .iter()
            .map(|answer| statuses(answer).iter().filter(|status| *status == "settled").count())
            .sum();
        assert_eq!((settled, fleet.count("").await), (40, 40), "{backend:?}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_order_of_a_batch_gets_its_own_result() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let first = device.send(&fleet.https(), &batch(&[order("a", 1, "{\"total\":1}")])).await;
        assert_eq!(statuses(&first), ["settled"]);
        let mut wrong = order("b", 2, "{}");
        wrong["sha256"] = "0".repeat(64).into();
        let nul = order("a\0b", 4, "{}");
        let mixed =
            [order("a", 1, "{\"total\":1}"), order("a", 1, "{\"total\":2}"), wrong, order("c", 3, "{}"), nul];
        let answer = device.send(&fleet.https(), &batch(&mixed)).await;
        assert_eq!(statuses(&answer), ["duplicate", "conflict", "rejected", "settled", "rejected"]);
        assert_eq!(answer.body["results"][2]["code"], "digest-mismatch");
        assert_eq!(fleet.count("?device=POS-US-0001").await, 2);
        let audit = fleet.get("/api/v1/audit").await.body;
        assert!(audit.to_string().contains("order.conflict"), "a conflict is in the audit log");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_an_order_is_rejected_with_a_code_and_the_rest_of_the_batch_settles() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let large = format!("{{\"note\":\"{}\"}}", "x".repeat(256 * 1024));
        let mut wrong = order("wrong", 5, "{}");
        wrong["sha256"] = wrong["sha256"].as_str().unwrap().to_uppercase().into();
        let sent = [
            order("list", 2, "[]"),
            order("number", 3, "7"),
            order("large", 4, &large),
            wrong,
            order("good", 6, "{}"),
        ];
        let codes = ["invalid-order", "invalid-order", "too-large", "digest-mismatch"].map(Some);
        for answer in [
            device.shadow(&fleet.https(), &batch(&sent)).await,
            device.send(&fleet.https(), &batch(&sent)).await,
        ] {
            let expected = ["rejected", "rejected", "rejected", "rejected", "settled"];
            assert_eq!(statuses(&answer), expected, "{backend:?}");
            for (result, code) in answer.body["results"].as_array().unwrap().iter().zip(codes) {
                assert_eq!(result["code"].as_str(), code, "{result}");
                assert!(result["detail"].is_string(), "{result}");
            }
        }
        assert_eq!(fleet.count("").await, 1);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_several_locations_is_refused_as_a_whole_and_its_parts_settle() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let mut abroad = order("b", 2, "{}");
    abroad["udl"] = "JP".into();
    let home = order("a", 1, "{}");
    for mixed in [&[home.clone(), abroad.clone()][..], &[abroad.clone()]] {
        let answer = device.send(&fleet.https(), &batch(mixed)).await;
        assert_eq!((answer.status, answer.slug()), (StatusCode::UNPROCESSABLE_ENTITY, "mixed-udl"));
    }
    assert_eq!(fleet.count("").await, 0);
    assert_eq!(statuses(&device.send(&fleet.https(), &batch(&[home])).await), ["settled"]);
    let url = format!("{}/v1/orders:batch", fleet.https());
    let request = json_body(device.http.post(url), batch(&[abroad]).to_string());
    let alone = send(request.header("samovar-device", &device.id).header("udl", "JP")).await;
    assert_eq!(statuses(&alone), ["settled"]);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_of_two_devices_is_two_orders() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    for id in ["POS-1", "POS-2"] {
        let device = fleet.device("US-0001", id).await;
        assert_eq!(statuses(&device.send(&fleet.https(), &batch(&[order("a", 1, "{}")])).await), ["settled"]);
    }
    assert_eq!(
        (fleet.count("").await, fleet.count("?device=POS-1").await, fleet.count("?store=US-0001").await),
        (2, 1, 2)
    );
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_kept_byte_for_byte() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let body = "{\"b\" : 1.00,\n \"a\":\"\\u00e9\", \"a\": 1e2 }";
        let digest = samovar_wire::encoding::hex(&samovar_wire::encoding::sha256(body.as_bytes()));
        let text = format!(
            "{{\"batch\":\"b1\",\"orders\":[{{\"id\":\"i1\",\"key\":\"k\",\"sha256\":\"{digest}\",\"order_no\":\"k\",\
             \"seq\":1,\"udl\":\"US\",\"accepted_at\":\"2026-11-20T00:00:00.000Z\",\"body\":  {body}  }}]}}"
        );
        let answer = send(device.request(&fleet.https(), &device.id).body(text)).await;
        assert_eq!(statuses(&answer), ["settled"], "{}", answer.body);
        let url = format!("{}/api/v1/orders/i1", fleet.http());
        let kept =
            client(None, None).get(url).bearer_auth(&fleet.admin).send().await.unwrap().text().await.unwrap();
        assert!(kept.contains(body), "{kept}");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_batches_are_taken_and_bombs_are_not() {
    let fleet = Fleet::start(Backend::Sqlite, &["intake.max_body_bytes=100000"]).await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let post = |encoding: &'static str, body: Vec<u8>| {
        send(device.request(&fleet.https(), &device.id).header("content-encoding", encoding).body(body))
    };
    let plain = batch(&[order("a", 1, "{}")]).to_string();
    assert_eq!(statuses(&post("gzip", gzip(plain.as_bytes())).await), ["settled"]);
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    assert_eq!(
        statuses(&post("zstd", ruzstd::encoding::compress_to_vec(plain.as_bytes(), level)).await),
        ["duplicate"]
    );
    assert_eq!(post("br", plain.clone().into_bytes()).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(post("gzip", plain.clone().into_bytes()).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(post("gzip", gzip(&vec![b' '; 1_000_000])).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(post("identity", vec![b' '; 100_001]).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    fleet.running.stop().await;
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_batch_of_this_device_is_refused_with_the_contracts_status() {
    let token = "0123456789abcdef-token";
    let fleet =
        Fleet::start(Backend::Sqlite, &[&format!("intake.tokens=[\"{token}\"]"), "intake.max_orders=2"])
            .await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let good = batch(&[order("a", 1, "{}")]).to_string();
    let https = fleet.https();
    for bad in
        ["", "not json", "{}", "{\"batch\":\"x\",\"orders\":[{}]}", "{\"batch\":\"\",\"orders\":[]}", "[1,2"]
    {
        let answer = send(device.request(&https, &device.id).body(bad)).await;
        assert_eq!((answer.status, answer.slug()), (StatusCode::BAD_REQUEST, "malformed"), "{bad}");
    }
    let other = send(device.request(&https, "POS-US-0002").body(good.clone())).await;
    assert_eq!((other.status, other.slug()), (StatusCode::FORBIDDEN, "device-mismatch"));
    let url = format!("{https}/v1/orders:batch");
    let text = send(device.http.post(&url).header("samovar-device", &device.id).body(good.clone())).await;
    assert_eq!(text.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let nameless = send(json_body(device.http.post(&url), good.clone())).await;
    assert_eq!(nameless.status, StatusCode::BAD_REQUEST);
    let many: Vec<Value> = (0..3).map(|n| order(&format!("k{n}"), n, "{}")).collect();
    assert_eq!(device.send(&https, &batch(&many)).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let stranger = client(Some(&fleet.ca()), None);
    let as_stranger =
        |url: String| json_body(stranger.post(url), good.clone()).header("samovar-device", &device.id);
    assert_eq!(send(as_stranger(url.clone())).await.status, StatusCode::UNAUTHORIZED);
    let plain = format!("{}/v1/orders:batch", fleet.http());
    assert_eq!(send(as_stranger(plain.clone())).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(send(as_stranger(plain.clone()).bearer_auth("wrong")).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(fleet.count("").await, 0, "nothing was recorded so far");
    assert_eq!(statuses(&send(as_stranger(plain).bearer_auth(token)).await), ["settled"]);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_says_which_it_is_and_echoes_the_nonce() {
    let fleet = Fleet::start(Backend::Sqlite, &["intake.origin=apac"]).await;
    let http = client(None, None);
    let health = send(http.get(format!("{}/.samovar/health", fleet.http()))).await;
    assert_eq!(
        (health.status, health.headers["samovar-origin"].to_str().unwrap()),
        (StatusCode::NO_CONTENT, "apac")
    );
    let echo = http.get(format!("{}/.samovar/echo204", fleet.http())).header("samovar-nonce", "n-1");
    let echo = send(echo).await;
    assert_eq!(
        (echo.status, echo.headers["samovar-nonce"].to_str().unwrap()),
        (StatusCode::NO_CONTENT, "n-1")
    );
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_orders_give_each_order_once_and_end() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let orders: Vec<Value> = (1..=25).map(|n| order(&format!("k{n}"), n, "{}")).collect();
        device.send(&fleet.https(), &batch(&orders)).await;
        let (mut seen, mut after) = (HashMap::new(), Value::from(0));
        loop {
            let page =
                fleet.get(&format!("/api/v1/orders?limit=10&device=POS-US-0001&after={after}")).await.body;
            for order in page["orders"].as_array().unwrap() {
                *seen.entry(order["key"].as_str().unwrap().to_owned()).or_insert(0) += 1;
                for field in ["sha256", "device", "seq", "received_at"] {
                    assert!(!order[field].is_null(), "{field}");
                }
            }
            if page["next"].is_null() {
                break;
            }
            after = page["next"].clone();
        }
        assert_eq!(seen.len(), 25);
        assert!(seen.values().all(|times| *times == 1));
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_bodies_and_then_old_keys_are_forgotten() {
    use samovar_fleet::orders::retention::{Cutoffs, forget};
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        let device = fleet.device("US-0001", "POS-US-0001").await;
        let orders: Vec<Value> = (1..=5).map(|n| order(&format!("k{n}"), n, "{}")).collect();
        device.send(&fleet.https(), &batch(&orders)).await;
        let database = &fleet.running.app.database;
        let (past, future) =
            (samovar_wire::Timestamp::from_millis(0), samovar_wire::Timestamp::from_millis(i64::MAX));
        assert_eq!(forget(database, Cutoffs { keys: past, bodies: Some(future) }).await.unwrap(), (0, 5));
        let again = device.send(&fleet.https(), &batch(&orders)).await;
        assert!(statuses(&again).iter().all(|status| status == "duplicate"), "keys outlive bodies");
        assert_eq!(forget(database, Cutoffs { keys: future, bodies: None }).await.unwrap(), (5, 0));
        assert_eq!(fleet.count("").await, 0);
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_of_its_own_takes_orders_of_the_fleets_devices() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let device = fleet.device("US-0001", "POS-US-0001").await;
    let issued = fleet
        .running
        .app
        .authority
        .issue_server(&["localhost".into()], samovar_fleet::clock::now(), 30)
        .unwrap();
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(files.path().join(name), text).unwrap();
        files.path().join(name).display().to_string()
    };
    let settings = [
        format!("tls.cert={}", file("origin.pem", &issued.certificate)),
        format!("tls.key={}", file("origin.key", &issued.key)),
        format!("tls.client_ca={}", file("ca.pem", &fleet.ca())),
        "intake.origin=apac".to_owned(),
    ];
    let origin = Fleet::start(Backend::Sqlite, &settings.each_ref().map(String::as_str)).await;
    let answer = device.send(&origin.https(), &batch(&[order("a", 1, "{}")])).await;
    assert_eq!(statuses(&answer), ["settled"]);
    assert_eq!((origin.count("").await, fleet.count("").await), (1, 0), "business data is isolated");
    let recorded = origin.get("/api/v1/orders").await.body;
    assert_eq!(
        (&recorded["orders"][0]["origin"], &recorded["orders"][0]["store"]),
        (&json!("apac"), &json!("US-0001"))
    );
    let key = rcgen::KeyPair::generate().unwrap();
    let request = samovar_fleet::pki::csr::Request::parse(&csr(&key)).unwrap();
    let who = ("POS-9".parse().unwrap(), "US-0009".parse().unwrap());
    let own =
        origin.running.app.authority.issue_device(&request, (&who.0, &who.1), samovar_fleet::clock::now(), 9);
    let own = json!({"device": "POS-9", "ca": fleet.ca(), "certificate": own.unwrap().pem});
    let own = Device::new(&own, &key);
    assert!(
        own.request(&origin.https(), "POS-9").body("{}").send().await.is_err(),
        "its own authority is not asked"
    );
    origin.running.stop().await;
    fleet.running.stop().await;
}
