//! What the local API answers to what it must not take; after each, the till can go on selling.

use crate::shop::{SOON, sale, sale_with, settled, shop};
use anyhow::{Context, Result};
use http::Method;
use samovar_tests::Answer;
use serde_json::json;

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

async fn still_sells(shop: &crate::shop::Shop) -> Result<()> {
    let answer = shop.agent.api().place(&sale("after")).await?;
    assert_eq!(answer.status, 202, "{}", answer.json());
    settled(&shop.agent, 1, SOON).await
}
