//! Other programs reach a service through the agent, and keep seeing the last good answer when it cannot be reached.

use crate::shop::SOON;
use anyhow::{Context, Result, ensure};
use http::Method;
use samovar_tests::{Agent, Answer, Origin, Page, TableBuilder, eventually};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

const MENU: &str = "/v1/gateway/menu/today.json";

/// A service whose answers are kept (`menu`) and one whose answers are not (`api`).
fn table(origins: &[&Origin]) -> Result<TableBuilder> {
    let mut table = TableBuilder::new()?;
    for origin in origins {
        table = table.origin(origin.name(), origin.address());
    }
    let service = |cache: &str| json!({ "domains": { "default": "shop.store.example" }, "overridable": true, "cache": cache });
    let services = json!({ "orders": service("off"), "api": service("off"), "menu": service("last-good") });
    table.with("/countries/US/services", services.clone())?.with("/countries/JP/services", services)
}

async fn menu_shop() -> Result<(Origin, Agent)> {
    let origin = Origin::start("us-west").await?;
    origin.serve("/today.json", Page::new("{\"soup\":\"miso\"}").header("etag", "\"v1\""));
    let agent = Agent::setup().table(&table(&[&origin])?).start().await?;
    Ok((origin, agent))
}

fn kept_files(agent: &Agent) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(agent.data().join("gateway"));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn is_stale(answer: &Answer) -> bool {
    answer.header("warning").starts_with("110 ") && answer.header("age").parse::<u64>().is_ok()
}

#[tokio::test]
async fn the_menu_outlives_its_origin_and_a_restart_but_not_a_damaged_copy() -> Result<()> {
    let (mut origin, mut agent) = menu_shop().await?;
    let first = agent.api().get(MENU).await?;
    ensure!((first.status, first.text("soup").as_str()) == (200, "miso"), "{first:?}");
    ensure!(first.header("warning").is_empty() && first.header("etag") == "\"v1\"", "{first:?}");

    origin.stop().await;
    let without = agent.api().get(MENU).await?;
    ensure!(without.status == 200 && is_stale(&without) && without.body == first.body, "{without:?}");
    ensure!(without.header("content-type") == "application/json", "{without:?}");
    let headers = [("if-none-match", "\"v1\"")];
    let known = agent.api().send(Method::GET, MENU, &headers, "").await?;
    ensure!(known.status == 304 && known.body.is_empty() && is_stale(&known), "{known:?}");

    agent.sigkill().await?;
    agent.start().await?;
    let again = agent.api().get(MENU).await?;
    ensure!(again.status == 200 && is_stale(&again) && again.body == first.body, "{again:?}");

    let files = kept_files(&agent);
    ensure!(files.len() == 1, "{files:?}");
    let mut bytes = std::fs::read(&files[0])?;
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&files[0], bytes)?;
    let damaged = agent.api().get(MENU).await?;
    ensure!(damaged.status == 502 && damaged.problem() == "origin-unreachable", "{damaged:?}");
    ensure!(kept_files(&agent).is_empty(), "a damaged copy is kept");

    origin.restart().await?;
    eventually("the menu is back", SOON, async || {
        let answer = agent.api().get(MENU).await.ok()?;
        (answer.status == 200 && !is_stale(&answer)).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_copy_is_confirmed_by_its_tag_and_the_till_is_told_what_it_has_already() -> Result<()> {
    let (origin, agent) = menu_shop().await?;
    agent.api().get(MENU).await?;
    let second = agent.api().get(MENU).await?;
    ensure!(second.status == 200 && second.text("soup") == "miso" && !is_stale(&second), "{second:?}");
    ensure!(origin.visits()[1].header("if-none-match") == "\"v1\"", "{:?}", origin.visits());
    let known = agent.api().send(Method::GET, MENU, &[("if-none-match", "W/\"v1\"")], "").await?;
    ensure!(known.status == 304 && known.header("etag") == "\"v1\"", "{known:?}");
    origin.serve("/today.json", Page::new("{\"soup\":\"leek\"}").header("etag", "\"v2\""));
    let changed = agent.api().send(Method::GET, MENU, &[("if-none-match", "\"v1\"")], "").await?;
    ensure!((changed.status, changed.text("soup").as_str()) == (200, "leek"), "{changed:?}");
    Ok(())
}

#[tokio::test]
async fn what_fails_or_hangs_or_is_not_the_origin_does_not_blank_the_menu() -> Result<()> {
    let (origin, agent) = menu_shop().await?;
    let first = agent.api().get(MENU).await?;
    for page in [
        Page::new("busy").status(503),
        Page::new("gone astray").status(502),
        Page::new("sign in").status(511),
        Page::new("").status(302).header("location", "http://portal.example/"),
        Page::new("{\"soup\":\"foreign\"}").header("samovar-origin", "apac"),
    ] {
        origin.serve("/today.json", page.clone());
        let answer = agent.api().get(MENU).await?;
        ensure!(is_stale(&answer) && answer.body == first.body, "{page:?}: {answer:?}");
    }
    origin.serve("/today.json", Page::default().stalls());
    let started = samovar_tests::clock::now();
    let answer = agent.api().get(MENU).await?;
    let took = started.elapsed();
    ensure!(is_stale(&answer) && answer.body == first.body, "{answer:?}");
    ensure!(took < Duration::from_secs(6), "the menu was blank for {took:?}");
    // Nothing is kept of this one: the origin's own words go on.
    origin.serve("/other", Page::new("busy").status(503));
    let other = agent.api().get("/v1/gateway/menu/other").await?;
    ensure!((other.status, other.body.as_slice()) == (503, &b"busy"[..]), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn a_post_goes_out_once_with_the_devices_identity_and_none_of_the_tills_secrets() -> Result<()> {
    let (mut origin, agent) = menu_shop().await?;
    origin.serve("/loyalty", Page::new("{\"points\":7}").header("set-cookie", "a=b"));
    let token = std::fs::read_to_string(agent.data().join("local.token"))?;
    let bearer = format!("Bearer {}", token.trim());
    let headers = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
        ("cookie", "session=1"),
        ("samovar-device", "SOMEBODY-ELSE"),
        ("udl", "JP"),
        ("x-till", "7"),
    ];
    let path = "/v1/gateway/api/loyalty?card=4";
    let answer = agent.api().send(Method::POST, path, &headers, "{\"a\":1}").await?;
    ensure!((answer.status, answer.text("points").as_str()) == (200, ""), "{answer:?}");
    ensure!(answer.json()["points"] == 7 && answer.header("set-cookie").is_empty(), "{answer:?}");
    let visits = origin.visits();
    let [seen] = visits.as_slice() else { anyhow::bail!("{visits:?}") };
    ensure!(seen.line == "POST /loyalty?card=4" && seen.body == "{\"a\":1}", "{seen:?}");
    let identity = ["samovar-device", "samovar-store", "udl", "x-till"].map(|name| seen.header(name));
    ensure!(identity == ["POS-US-0001", "US-0001", "JP", "7"], "{seen:?}");
    ensure!(seen.header("host").starts_with("shop.store.example"), "{seen:?}");
    ensure!(seen.header("content-length") == "7", "{seen:?}");
    ensure!(seen.header("authorization").is_empty() && seen.header("cookie").is_empty(), "{seen:?}");

    // Failures are handed on as they are; nothing is asked for a second time.
    for status in [500, 502, 503] {
        origin.serve("/loyalty", Page::new("no").status(status));
        let answer = agent.api().send(Method::POST, path, &headers, "{}").await?;
        ensure!((answer.status, answer.body.as_slice()) == (status, &b"no"[..]), "{answer:?}");
    }
    ensure!(origin.visits().len() == 4, "{:?}", origin.visits());
    let batch = agent.api().post("/v1/gateway/api/v1/orders%3Abatch", "{}").await?;
    ensure!(batch.status == 403 && batch.problem() == "not-through-the-gateway", "{batch:?}");
    origin.stop().await;
    let dead = agent.api().send(Method::POST, path, &headers, "{}").await?;
    ensure!(dead.status == 502 && dead.problem() == "origin-unreachable", "{dead:?}");
    ensure!(origin.visits().len() == 4, "{:?}", origin.visits());
    Ok(())
}

#[tokio::test]
async fn what_is_not_to_be_kept_is_not_and_what_is_kept_stays_within_its_bounds() -> Result<()> {
    let mut origin = Origin::start("us-west").await?;
    let bound = 48 * 1024;
    let agent = Agent::setup()
        .table(&table(&[&origin])?)
        .set(&format!("gateway.cache_max_bytes={bound}"))
        .set("gateway.cache_max_answers=8")
        .start()
        .await?;
    origin.serve("/secret", Page::new("1").header("cache-control", "private, max-age=60"));
    origin.serve("/never", Page::new("2").header("cache-control", "no-store"));
    origin.serve("/plain", Page::new("3"));
    for path in ["menu/secret", "menu/never", "api/plain"] {
        ensure!(agent.api().get(&format!("/v1/gateway/{path}")).await?.status == 200, "{path}");
    }
    ensure!(kept_files(&agent).is_empty(), "{:?}", kept_files(&agent));
    for n in 0..20_usize {
        let page = format!("/page-{n}");
        origin.serve(&page, Page::new("x".repeat(if n < 10 { 1_000 } else { 9_000 })));
        ensure!(agent.api().get(&format!("/v1/gateway/menu{page}")).await?.status == 200, "{page}");
        let files = kept_files(&agent);
        let sizes = files.iter().map(|path| path.metadata().map_or(0, |facts| facts.len()));
        ensure!(files.len() <= 8 && sizes.sum::<u64>() <= bound, "{files:?}");
    }
    origin.serve("/large", Page::new(vec![b'l'; 5 * 1024 * 1024]));
    let large = agent.api().get("/v1/gateway/menu/large").await?;
    ensure!(large.body.len() == 5 * 1024 * 1024, "{} bytes came through", large.body.len());
    let mut too_large = vec![b' '; 8 * 1024 * 1024 + 1];
    too_large[0] = b'1';
    let refused = agent.api().post("/v1/gateway/api/plain", too_large).await?;
    ensure!(refused.status == 413 && refused.problem() == "too-large", "{refused:?}");
    origin.stop().await;
    ensure!(is_stale(&agent.api().get("/v1/gateway/menu/page-19").await?));
    for gone in ["menu/page-0", "menu/never", "menu/large", "api/plain"] {
        let answer = agent.api().get(&format!("/v1/gateway/{gone}")).await?;
        ensure!(answer.status == 502, "{gone}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_back_or_served_from_what_is_kept() -> Result<()> {
    let origin = Origin::start("us-west").await?;
    origin.serve("/today.json", Page::new("{\"soup\":\"miso\"}"));
    origin.serve("/slow", Page::default().stalls());
    let setup = Agent::setup().table(&table(&[&origin])?).set("gateway.max_requests=1");
    let agent = setup.start().await?;
    agent.api().get(MENU).await?;
    let api = agent.api().clone();
    let slow = tokio::spawn(async move { api.get("/v1/gateway/api/slow").await });
    eventually("the slow one is under way", SOON, async || {
        origin.visits().iter().any(|visit| visit.line == "GET /slow").then_some(())
    })
    .await?;
    let busy = agent.api().get("/v1/gateway/api/x").await?;
    ensure!((busy.status, busy.header("retry-after")) == (503, "1"), "{busy:?}");
    ensure!(is_stale(&agent.api().get(MENU).await?));
    slow.abort();
    eventually("its place is free again", SOON, async || {
        let answer = agent.api().get(MENU).await.ok()?;
        (!is_stale(&answer)).then_some(())
    })
    .await
}

#[tokio::test]
async fn the_gateway_follows_the_route_and_keeps_answers_of_countries_apart() -> Result<()> {
    let (mut west, apac) = (Origin::start("us-west").await?, Origin::start("apac").await?);
    west.serve("/today.json", Page::new("{\"soup\":\"clam\"}"));
    apac.serve("/today.json", Page::new("{\"soup\":\"miso\"}"));
    let table = table(&[&west, &apac])?.residency("US", &["us-west"]).residency("JP", &["apac"]);
    let agent = Agent::setup().table(&table).start().await?;
    let soup = async |path: &str| agent.api().get(path).await.map(|answer| answer.text("soup"));
    ensure!(soup(MENU).await? == "clam" && soup(&format!("{MENU}?udl=JP")).await? == "miso");
    let seen = apac.visits().pop().context("nothing came to apac")?;
    ensure!(seen.header("udl") == "JP", "{seen:?}");
    west.stop().await;
    ensure!(soup(MENU).await? == "clam");
    let wrong = agent.api().get(&format!("{MENU}?udl=Japan")).await?;
    ensure!(wrong.status == 400, "{wrong:?}");
    let unknown = agent.api().get("/v1/gateway/weather/x").await?;
    ensure!(unknown.status == 404 && unknown.problem() == "no-route", "{unknown:?}");
    Ok(())
}
