//! What the local API answers to what it must not take; after each, the till can go on selling.

use crate::shop::{SOON, sale, sale_with, settled, shop};
use anyhow::{Context, Result};
use http::Method;
use samovar_tests::Answer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const JSON: (&str, &str) = ("content-type", "application/json");

/// A sale whose body is exactly so many bytes.
fn of_size(bytes: usize) -> String {
    let empty = sale_with("big", &json!({ "note": "" })).to_string().len();
    sale_with("big", &json!({ "note": "x".repeat(bytes - empty) })).to_string()
}

#[tokio::test]
async fn bodies_that_are_no_orders_are_refused_and_leave_nothing_behind() -> Result<()> {
    let shop = shop().await?;
    let api = shop.agent.api();
    let long = sale(&"n".repeat(129)).to_string();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: [(&[u8], &[u16]); 12] = [
        (b"", &[400]),
        (b"not json", &[400]),
        (b"{\"order_no\":\"A\"", &[400]),
        (b"\xff\xfe{}", &[400]),
        (b"[]", &[400, 422]),
        (b"null", &[400, 422]),
        (b"{}", &[400]),
        (br#"{"placed_at":"2026-11-20T08:15:00Z"}"#, &[400]),
        (br#"{"order_no":"","placed_at":"2026-11-20T08:15:00Z"}"#, &[400, 422]),
        (br#"{"order_no":7,"placed_at":"2026-11-20T08:15:00Z"}"#, &[400, 422]),
        (long.as_bytes(), &[400, 422]),
        (deep.as_bytes(), &[400, 413, 422]),
    ];
    for (body, expected) in cases {
        let answer = api.post("/v1/orders", body.to_vec()).await?;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert!(expected.contains(&answer.status), "{shown}: {} {}", answer.status, answer.json());
        assert!(
            !answer.problem().is_empty() && !answer.problem().contains(' '),
            "{shown}: {}",
            answer.problem()
        );
    }
    let summary = api.summary().await?;
    assert_eq!(summary.accepted, 0, "{summary:?}");
    still_sells(&shop).await
}

#[tokio::test]
async fn an_invalid_field_is_named() -> Result<()> {
    let shop = shop().await?;
    let cases = [
        (json!({ "order_no": "A-1" }), "placed_at"),
        (sale_with("A-1", &json!({ "placed_at": "yesterday" })), "placed_at"),
        (sale_with("A-1", &json!({ "udl": "Japan" })), "udl"),
        (sale_with("A-1", &json!({ "udl": 7 })), "udl"),
        (sale_with("A-1", &json!({ "depends_on": 7 })), "depends_on"),
        (sale_with("A-1", &json!({ "kind": [] })), "kind"),
        (sale_with("A-1", &json!({ "user": {} })), "user"),
    ];
    for (order, field) in cases {
        let answer = shop.agent.api().place(&order).await?;
        assert_eq!((answer.status, answer.problem().as_str()), (422, "invalid-order"), "{order}");
        assert!(answer.text("detail").contains(field), "`{field}` is not in: {}", answer.text("detail"));
    }
    still_sells(&shop).await
}

#[tokio::test]
async fn a_body_of_256_kib_is_taken_and_a_larger_one_refused() -> Result<()> {
    let shop = shop().await?;
    let api = shop.agent.api();
    for size in [256 * 1024 + 1, 300 * 1024] {
        let answer = api.post("/v1/orders", of_size(size)).await.with_context(|| format!("{size} bytes"))?;
        assert_eq!((answer.status, answer.problem().as_str()), (413, "too-large"), "{size}");
    }
    // Nobody has to listen to the end of a much larger one: a cut connection will do.
    if let Ok(answer) = api.post("/v1/orders", of_size(4 * 1024 * 1024)).await {
        assert_eq!(answer.status, 413);
    }
    assert_eq!(api.post("/v1/orders", of_size(256 * 1024)).await?.status, 202);
    settled(&shop.agent, 1, SOON).await
}

#[tokio::test]
async fn other_media_types_other_hosts_and_other_sites_are_refused() -> Result<()> {
    let shop = shop().await?;
    let (api, body) = (shop.agent.api(), sale("A-1").to_string());
    let send = async |headers: &[(&str, &str)]| -> Result<Answer> {
        api.send(Method::POST, "/v1/orders", headers, body.clone()).await
    };
    assert_eq!(send(&[]).await?.status, 415, "no content type");
    assert_eq!(send(&[("content-type", "text/plain")]).await?.status, 415);
    assert_eq!(send(&[("content-type", "application/x-www-form-urlencoded")]).await?.status, 415);
    for host in ["evil.example", "evil.example:7780", "127.0.0.1.evil.example", "localhost.evil.example"] {
        assert_eq!(send(&[JSON, ("host", host)]).await?.status, 421, "{host}");
        let read = api.send(Method::GET, "/v1/status", &[("host", host)], "").await?;
        assert_eq!(read.status, 421, "{host}");
    }
    assert_eq!(send(&[JSON, ("origin", "https://evil.example")]).await?.status, 403);
    assert_eq!(send(&[JSON, ("origin", "null")]).await?.status, 403);
    let port = api.base().rsplit(':').next().unwrap_or_default();
    let local = format!("localhost:{port}");
    assert_eq!(api.summary().await?.accepted, 0);
    assert_eq!(
        send(&[("content-type", "application/json; charset=utf-8"), ("host", &local)]).await?.status,
        202
    );
    settled(&shop.agent, 1, SOON).await
}

#[tokio::test]
async fn unknown_paths_and_methods_get_a_problem_document() -> Result<()> {
    let shop = shop().await?;
    let api = shop.agent.api();
    let unknown = api.get("/v1/nothing").await?;
    assert_eq!(unknown.status, 404);
    assert!(!unknown.problem().contains(' '), "{}", unknown.problem());
    let method = api.send(Method::DELETE, "/v1/orders", &[JSON], "{}").await?;
    assert_eq!(method.status, 405);
    assert!(!method.problem().contains(' '), "{}", method.problem());
    Ok(())
}

#[tokio::test]
async fn a_batch_of_more_than_five_hundred_is_refused_whole() -> Result<()> {
    let shop = shop().await?;
    let orders: Vec<_> = (0..501).map(|n| json!({ "order": sale(&format!("B-{n}")) })).collect();
    let answer = shop.agent.api().post("/v1/orders:batch", json!({ "orders": orders }).to_string()).await?;
    assert!(matches!(answer.status, 400 | 413 | 422), "{}", answer.status);
    for body in ["", "[]", "{}", r#"{"orders":7}"#, r#"{"orders":[7]}"#] {
        let answer = shop.agent.api().post("/v1/orders:batch", body).await?;
        assert!(matches!(answer.status, 207 | 400 | 422), "{body}: {}", answer.status);
    }
    assert_eq!(shop.agent.api().summary().await?.accepted, 0);
    still_sells(&shop).await
}

/// What a till without an HTTP library might send, byte for byte; gives everything that is answered until the agent
/// closes, or falls silent after the last answer.
async fn raw(shop: &crate::shop::Shop, parts: &[&[u8]]) -> Result<String> {
    let address = shop.agent.api().base().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).await?;
    for part in parts {
        // An agent that has heard enough may have closed already.
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
    anyhow::ensure!(read.is_ok() || !answer.is_empty(), "neither answered nor closed");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A request by hand that asks to be the last on its connection.
fn by_hand(head: &str, body: &str) -> String {
    format!(
        "POST /v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n{head}\r\n{body}"
    )
}

fn with_length(head: &str, body: &str) -> String {
    by_hand(&format!("Content-Length: {}\r\n{head}", body.len()), body)
}

#[tokio::test]
async fn requests_by_hand_are_served_or_refused_and_never_hang() -> Result<()> {
    let shop = shop().await?;
    let order = |number: &str| sale(number).to_string();
    let (one, two) = (order("H-1"), order("H-2"));
    let chunked = format!("{:x};ext=1\r\n{two}\r\n0\r\nTrailer: x\r\n\r\n", two.len());
    let huge = format!("X-Filler: {}\r\n", "x".repeat(64 * 1024));
    let many: String = (0..300).map(|n| format!("X-{n}: x\r\n")).collect();
    let twice = "Idempotency-Key: a\r\nIdempotency-Key: b\r\n";
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let cases = [
        ("HTTP/1.0", with_length("", &order("H-0")).replace("HTTP/1.1", "HTTP/1.0"), "202"),
        ("a plain one", with_length("", &one), "202"),
        ("chunks", by_hand("Transfer-Encoding: chunked\r\n", &chunked), "202"),
        ("chunks that are none", by_hand("Transfer-Encoding: chunked\r\n", "zz\r\n"), "400"),
        ("two lengths", by_hand("Content-Length: 2\r\nContent-Length: 3\r\n", "{}"), "400"),
        ("a length and chunks", by_hand(both, "0\r\n\r\n"), "4"),
        ("two keys", with_length(twice, &order("H-3")), "400"),
        ("two keys that are one", with_length(&twice.replace('b', "a"), &order("H-3")), "400"),
        ("a huge head", with_length(&huge, &order("H-3")), "431"),
        ("too many headers", with_length(&many, &order("H-3")), "431"),
        ("two hosts", with_length("Host: localhost\r\n", &order("H-3")), "421"),
        ("no HTTP", "HELLO\r\n\r\n".to_owned(), "400"),
        ("a NUL in the path", "GET /v1/orders/\0 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), "400"),
        ("a packed body", with_length("Content-Encoding: gzip\r\n", &order("H-3")), "415"),
    ];
    for (what, request, status) in cases {
        let answer = raw(&shop, &[request.as_bytes()]).await.with_context(|| what.to_owned())?;
        let first = answer.lines().next().unwrap_or_default();
        let given = first.split(' ').nth(1).unwrap_or_default();
        assert!(given.starts_with(status), "{what}: {answer}");
    }
    assert_eq!(shop.agent.api().summary().await?.accepted, 3);
    still_sells_after(&shop, 3).await
}

#[tokio::test]
async fn a_till_that_asks_before_it_sends_and_one_that_does_not_wait_for_answers_are_both_served()
-> Result<()> {
    let shop = shop().await?;
    let asked = with_length("Expect: 100-continue\r\n", &sale("E-1").to_string());
    let answer = raw(&shop, &[asked.as_bytes()]).await?;
    assert!(answer.contains(" 202 "), "{answer}");
    let ahead = with_length("", &sale("P-1").to_string()).replace("Connection: close\r\n", "");
    let pipelined = [ahead.clone(), ahead, with_length("", &sale("P-2").to_string())].concat();
    let answer = raw(&shop, &[pipelined.as_bytes()]).await?;
    let statuses: Vec<_> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["202", "200", "202"], "{answer}");
    still_sells_after(&shop, 3).await
}

#[tokio::test]
async fn odd_json_gets_a_clear_answer() -> Result<()> {
    let shop = shop().await?;
    let head = r#""placed_at":"2026-11-20T08:15:00Z""#;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let cases = [
        (format!(r#"{{"order_no":"A","order_no":"B",{head}}}"#), 422),
        (format!(r#"{{"order_no":12,{head}}}"#), 422),
        (format!(r#"{{"order_no":"\ud800",{head}}}"#), 400),
        (format!(r#"{{"order_no":"a","x":"\ud800",{head}}}"#), 202),
        (format!(r#"{{"order_no":"n\u0000l",{head}}}"#), 202),
        (format!(r#"{{"order_no":"e1","x":1e400,{head}}}"#), 202),
        (format!(r#"{{"order_no":"d100","x":{},{head}}}"#, deep(100)), 202),
        // A till's own fields are its own business, however odd: they are kept as they came.
        (format!(r#"{{"order_no":"d90000","x":{},{head}}}"#, deep(90_000)), 202),
        (format!(r#"{{"order_no":"d9","x":{},{head}}}"#, "[".repeat(90_000)), 400),
    ];
    let mut taken = 0;
    for (body, status) in cases {
        let shown = body.chars().take(80).collect::<String>();
        let answer = shop.agent.api().post("/v1/orders", body).await?;
        assert_eq!(answer.status, status, "{shown}: {}", answer.json());
        taken += u64::from(status == 202);
    }
    for path in [
        "/v1/orders/%",
        "/v1/orders/%ff",
        "/v1/orders/%zz",
        "/v1/orders/%00",
        "/v1/orders/..%2f..",
        "/v1/orders/a%2Fb",
    ] {
        let answer = shop.agent.api().get(path).await?;
        assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
        assert!(!answer.problem().contains(' '), "{path}: {}", answer.problem());
    }
    let named = shop.agent.api().get("/v1/orders/n%00l").await?;
    assert_eq!((named.status, named.text("order_no").as_str()), (200, "n\0l"));
    // What an origin makes of such orders is its own affair; the till goes on selling, and nothing is gone.
    assert_eq!(shop.agent.api().place(&sale("after")).await?.status, 202);
    assert_eq!(shop.agent.api().summary().await?.accepted, taken + 1);
    Ok(())
}

async fn still_sells_after(shop: &crate::shop::Shop, orders: u64) -> Result<()> {
    let answer = shop.agent.api().place(&sale("after")).await?;
    assert_eq!(answer.status, 202, "{}", answer.json());
    settled(&shop.agent, orders + 1, SOON).await
}

async fn still_sells(shop: &crate::shop::Shop) -> Result<()> {
    still_sells_after(shop, 0).await
}
