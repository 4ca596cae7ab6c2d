//! The operators' API: who may do what, and that all of it is described.

use std::path::Path;

use http::{Method, StatusCode};
use samovar_wire::dsse::{self, Envelope, SigningKey};
use serde_json::{Value, json};

use crate::world::{Backend, Fleet, backends, client, json_body, send};

/// What needs no session.
const OPEN: [&str; 1] = ["/api/v1/login"];

async fn operator(fleet: &Fleet, name: &str, role: &str) -> String {
    let body = json!({"name": name, "password": "a long password", "role": role});
    let made = fleet.post("/api/v1/operators", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    fleet.token(name, "a long password").await
}

fn operations(openapi: &Value) -> Vec<(Method, String)> {
    let mut all = Vec::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            all.push((method.to_uppercase().parse().unwrap(), path.clone()));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_route_of_the_api_exists_and_asks_for_a_session() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let openapi = fleet.api("", Method::GET, "/api/v1/openapi.json", None).await.body;
    let operations = operations(&openapi);
    assert!(operations.len() >= 20, "{operations:?}");
    for (method, path) in operations.iter().filter(|(_, path)| path.starts_with("/api/")) {
        if OPEN.contains(&path.as_str()) {
            continue;
        }
        let concrete = path.replace("{version}", "1").replace("{id}", "x").replace("{name}", "x");
        for token in ["", "wrong-token"] {
            let answer = fleet.api(token, method.clone(), &concrete, None).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(answer.headers["content-type"], "application/problem+json");
        }
    }
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_the_router_is_described() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let openapi = fleet.api("", Method::GET, "/api/v1/openapi.json", None).await.body;
    let schemas = fleet.api("", Method::GET, "/api/v1/schemas", None).await.body;
    assert!(
        schemas["samovar.state.v1"]["$defs"]["DeviceState"].is_object(),
        "what devices send is published"
    );
    let described = operations(&openapi).len();
    let mut annotated = 0;
    let mut undescribed = Vec::new();
    each_source(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut |path, text| {
        annotated += text.matches("#[utoipa::path(").count();
        for line in text.lines().filter(|line| line.contains(".route(\"")) {
            undescribed.push(format!("{}: {}", path.file_name().unwrap().to_string_lossy(), line.trim()));
        }
    });
    assert_eq!(described, annotated, "every handler with a description is routed, and none twice");
    undescribed.retain(|line| !line.contains("console"));
    let known =
        ["\"/api/v1/openapi.json\"", "\"/api/v1/schemas\"", "\"/healthz\"", "\"/readyz\"", "\"/metrics\""];
    assert_eq!(undescribed.len(), known.len(), "{undescribed:#?}");
    assert!(known.iter().all(|path| undescribed.iter().any(|line| line.contains(path))), "{undescribed:#?}");
    fleet.running.stop().await;
}

fn each_source(folder: &Path, found: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            each_source(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_is_its_own_and_nothing_above() {
    for backend in backends() {
        let fleet = Fleet::start(backend, &[]).await;
        fleet.store("US-0001").await;
        let claim = json!({"store": "US-0001", "device": "POS-1"});
        let store = |id: &str| json!({"id": id, "country": "US"});
        let newcomer = |name: &str| json!({"name": name, "password": "a long password", "role": "viewer"});
        for (role, claims, stores, operators) in [
            ("viewer", false, false, false),
            ("support", true, false, false),
            ("netops", true, true, false),
            ("admin", true, true, true),
        ] {
            let token = operator(&fleet, &format!("a-{role}"), role).await;
            let allowed = async |path: &str, body: Value| {
                let answer = fleet.api(&token, Method::POST, path, Some(body)).await;
                assert!(
                    [StatusCode::CREATED, StatusCode::FORBIDDEN].contains(&answer.status),
                    "{role} {path}"
                );
                answer.status == StatusCode::CREATED
            };
            assert_eq!(
                fleet.api(&token, Method::GET, "/api/v1/orders:count", None).await.status,
                StatusCode::OK
            );
            assert_eq!(allowed("/api/v1/claims", claim.clone()).await, claims, "{role} claims");
            assert_eq!(allowed("/api/v1/stores", store(&format!("S-{role}"))).await, stores, "{role} stores");
            assert_eq!(
                allowed("/api/v1/operators", newcomer(&format!("n-{role}"))).await,
                operators,
                "{role} operators"
            );
        }
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_operator_is_out_at_once_and_the_last_admin_stays() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let token = operator(&fleet, "sue", "support").await;
    assert_eq!(fleet.api(&token, Method::GET, "/api/v1/me", None).await.body["name"], "sue");
    let new = json!({"password": "another long one"});
    let own = fleet.api(&token, Method::POST, "/api/v1/operators/sue/password", Some(new.clone())).await;
    assert_eq!(own.status, StatusCode::NO_CONTENT);
    assert_eq!(fleet.api(&token, Method::GET, "/api/v1/me", None).await.status, StatusCode::UNAUTHORIZED);
    let token = fleet.token("sue", "another long one").await;
    let others = fleet.api(&token, Method::POST, "/api/v1/operators/admin/password", Some(new)).await;
    assert_eq!(others.status, StatusCode::FORBIDDEN);
    assert_eq!(fleet.post("/api/v1/operators/sue/disable", json!({})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(fleet.api(&token, Method::GET, "/api/v1/me", None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(fleet.log_in("sue", "another long one").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(fleet.post("/api/v1/operators/admin/disable", json!({})).await.status, StatusCode::CONFLICT);
    let out = fleet.api(&fleet.admin, Method::POST, "/api/v1/logout", None).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    assert_eq!(fleet.get("/api/v1/me").await.status, StatusCode::UNAUTHORIZED);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_passwords_is_slowed_down_even_for_the_right_one() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    for _ in 0..5 {
        assert_eq!(fleet.log_in("admin", "wrong password").await.slug(), "wrong-login");
    }
    let (name, password) = fleet.running.first_admin.clone().unwrap();
    let slowed = fleet.log_in(&name, &password).await;
    assert_eq!(slowed.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(slowed.headers.contains_key("retry-after"));
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_hosts_and_foreign_pages_are_refused() {
    let fleet = Fleet::start(Backend::Sqlite, &["server.hosts=[\"console.example\"]"]).await;
    let http = client(None, None);
    let ask = |name: &'static str, value: &'static str| {
        send(http.get(format!("{}/api/v1/me", fleet.http())).bearer_auth(&fleet.admin).header(name, value))
    };
    assert_eq!(ask("host", "evil.example").await.status, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(ask("host", "console.example").await.status, StatusCode::OK);
    assert_eq!(ask("origin", "https://evil.example").await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask("sec-fetch-site", "cross-site").await.status, StatusCode::FORBIDDEN);
    fleet.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_problems_and_never_a_crash() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    let http = client(None, None);
    let post = |body: String| {
        send(json_body(http.post(format!("{}/api/v1/stores", fleet.http())), body).bearer_auth(&fleet.admin))
    };
    let bad = [
        "",
        "[]",
        "{",
        "{\"id\":\"a b\",\"country\":\"US\"}",
        "{\"id\":\"a\",\"country\":\"usa\"}",
        "{\"id\":\"a\",\"country\":\"US\",\"name\":\"\\u0000\"}",
    ];
    for body in bad {
        let answer = post(body.to_owned()).await;
        assert_eq!((answer.status, answer.slug()), (StatusCode::BAD_REQUEST, "malformed"), "{body}");
    }
    let long = format!("{{\"id\":\"{}\"}}", "x".repeat(3 << 20));
    assert_eq!(post(long).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    for path in ["/api/v1/orders?after=x", "/api/v1/orders?limit=-1", "/api/v1/routes/x"] {
        assert_eq!(fleet.get(path).await.status, StatusCode::BAD_REQUEST, "{path}");
    }
    for path in ["/nothing", "/api/v1/nothing", "/api/v1/stores/none", "/api/v1/routes/99"] {
        let answer = fleet.get(path).await;
        assert_eq!((answer.status, answer.slug()), (StatusCode::NOT_FOUND, "not-found"), "{path}");
    }
    let method = fleet.api(&fleet.admin, Method::DELETE, "/api/v1/stores", None).await;
    assert_eq!((method.status, method.slug()), (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed"));
    fleet.store("US-0001").await;
    let twice = fleet.post("/api/v1/stores", json!({"id": "US-0001", "country": "US"})).await;
    assert_eq!(twice.status, StatusCode::CONFLICT);
    fleet.running.stop().await;
}

fn table(version: u64) -> Vec<u8> {
    json!({
        "schema": 1, "environment": "prod", "version": version, "issued_at": "2026-01-01T00:00:00.000Z",
        "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2027-12-31T00:00:00.000Z",
        "origins": {"apac": {"endpoints": [{"host": "apac.example", "port": 443, "addresses": []}]}},
        "countries": {"JP": {"residency": ["apac"], "services": {"orders": {"domains": {"default": "jp.example"}}}}},
        "fallback": {"mode": "nearest", "candidates": ["apac"], "shares": []},
    })
    .to_string()
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_table_replaces_the_starter_for_good_and_only_a_higher_valid_trusted_one_follows() {
    let key = SigningKey::from_seed("k1", &dsse::new_seed().unwrap()).unwrap();
    let public: String = key.public().into();
    for backend in backends() {
        let fleet = Fleet::start(backend, &[&format!("routes.trusted_keys={{k1=\"{public}\"}}")]).await;
        let http = client(None, None);
        let publish = async |body: Vec<u8>| {
            send(
                json_body(http.post(format!("{}/api/v1/routes", fleet.http())), body)
                    .bearer_auth(&fleet.admin),
            )
            .await
        };
        let signed = |version| {
            serde_json::to_vec(&Envelope::sign(dsse::ROUTE_TABLE, &table(version), &[&key])).unwrap()
        };
        assert_eq!(publish(signed(10)).await.status, StatusCode::CREATED);
        assert_eq!(publish(signed(10)).await.status, StatusCode::OK, "the same bytes again: nothing to do");
        assert_eq!(publish(signed(9)).await.slug(), "version-taken");
        assert_eq!(publish(table(11)).await.status, StatusCode::CREATED, "a plain table is signed here");
        let stranger = SigningKey::from_seed("k2", &dsse::new_seed().unwrap()).unwrap();
        let foreign = Envelope::sign(dsse::ROUTE_TABLE, &table(12), &[&stranger]);
        assert_eq!(publish(serde_json::to_vec(&foreign).unwrap()).await.slug(), "invalid-route-table");
        let nonsense = String::from_utf8(table(12)).unwrap().replace("[\"apac\"]", "[\"nowhere\"]");
        assert_eq!(publish(nonsense.into_bytes()).await.slug(), "invalid-route-table");
        fleet.store("US-0001").await;
        let current = fleet.get("/api/v1/routes/current").await.body;
        assert_eq!((&current["version"], &current["origin"]), (&json!(11), &json!("operator")));
        assert_eq!(current["document"]["countries"].as_object().unwrap().len(), 1, "no starter again");
        fleet.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_answer_without_a_session() {
    let fleet = Fleet::start(Backend::Sqlite, &[]).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(fleet.api("", Method::GET, path, None).await.status, StatusCode::OK);
    }
    let text = client(None, None)
        .get(format!("{}/metrics", fleet.http()))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(text.contains("samovar_fleet_orders_total{status=\"settled\"} 0"), "{text}");
    fleet.running.stop().await;
}
