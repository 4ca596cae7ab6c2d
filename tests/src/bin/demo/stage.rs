//! The parts of the story: a fleet, two origins that the fleet vouches for, the store's line, three activated devices.

use crate::day::DEVICES;
use crate::screen::Screen;
use anyhow::{Context, Result, ensure};
use samovar_tests::{Agent, Fleet, Proxy};
use serde_json::{Value, json};
use std::time::Duration;

/// The origins, nearest first.
pub(crate) const ORIGINS: [&str; 2] = ["us-west", "apac"];

const STORE: &str = "US-0001";
/// The names that devices use; nothing resolves them, the route table says what is dialled.
const DOMAINS: [(&str, &str); 2] = [("US", "us.store.example"), ("JP", "jp.store.example")];

/// Everything that runs. The agents come first: what is dropped first ends first.
pub(crate) struct Stage {
    /// POS, tea machine, queue screen.
    pub(crate) agents: Vec<Agent>,
    /// Everything between the store and the world.
    line: Line,
    /// The origins of [`ORIGINS`].
    pub(crate) origins: Vec<Fleet>,
    fleet: Fleet,
}

/// The store's line to the world: one proxy for each address outside.
struct Line {
    fleet: Proxy,
    mqtt: Proxy,
    origins: Vec<Proxy>,
}

impl Stage {
    /// Starts everything; the devices are activated and sell as soon as this returns.
    pub(crate) async fn set(screen: &Screen) -> Result<Self> {
        let mut line =
            Line { fleet: Proxy::to_nowhere().await?, mqtt: Proxy::to_nowhere().await?, origins: Vec::new() };
        let fleet = start_fleet(&line).await?;
        line.fleet.lead_to(fleet.https()?);
        line.mqtt.lead_to(fleet.mqtt_address());
        screen.event(&format!("fleet server with its broker: {}", fleet.url()?));
        let mut origins = Vec::new();
        for name in ORIGINS {
            let names: Vec<_> = DOMAINS.iter().map(|(_, domain)| *domain).chain(["localhost"]).collect();
            let certificate = fleet.origin_certificate(name, &names).await?;
            let origin = Fleet::setup()
                .broker("none")
                .set(format!("intake.origin={name}"))
                .certificate(&certificate)
                .start()
                .await
                .with_context(|| format!("origin {name}"))?;
            line.origins.push(Proxy::start(origin.https()?).await?);
            screen.event(&format!("origin {name}: {}", origin.url()?));
            origins.push(origin);
        }
        fleet.add_store(STORE, "US", "Samovar on 5th").await?;
        let table = table(&line, fleet.table_version().await? + 1);
        fleet.publish(&table).await.context("the route table")?;
        screen.event("route table signed and published");
        let agents = activate(&fleet, &line, screen).await?;
        Ok(Self { agents, line, origins, fleet })
    }

    /// Cuts the line: nothing outside the store answers.
    pub(crate) fn cut_line(&self) {
        self.line.each(Proxy::cut);
    }

    /// The line is back.
    pub(crate) fn restore_line(&self) {
        self.line.each(Proxy::restore);
    }

    /// Settled orders of all devices; a device that does not answer counts as before.
    pub(crate) async fn settled(&self) -> u64 {
        let mut settled = 0;
        for origin in &self.origins {
            settled += origin.order_count().await.unwrap_or(0);
        }
        settled
    }

    /// Waits until no device has anything on the way; the verdict tells what is left if that takes too long.
    pub(crate) async fn drain(&self, screen: &Screen, deadline: Duration) {
        let started = samovar_tests::clock::now();
        screen.event("the day is over: what is on the way may arrive");
        while started.elapsed() < deadline {
            let (mut waiting, mut accepted) = (0, 0);
            for agent in &self.agents {
                match agent.api().summary().await {
                    Ok(summary) => {
                        waiting += summary.pending + summary.held;
                        accepted += summary.accepted;
                    }
                    Err(_) => waiting += 1,
                }
            }
            screen.progress("closed", accepted, self.settled().await);
            if waiting == 0 {
                screen.event("everything has arrived");
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        screen.event("something is still on the way");
    }

    /// How many of the devices head office sees.
    pub(crate) async fn seen_online(&self) -> usize {
        let mut seen = 0;
        for (device, _) in DEVICES {
            let known = self.fleet.get(&format!("/api/v1/devices/{device}")).await;
            seen += usize::from(known.is_ok_and(|known| known["online"] == true));
        }
        seen
    }

    /// Where to look around.
    pub(crate) fn print_addresses(&self) -> Result<()> {
        println!("\nfleet console   {}", self.fleet.url()?);
        let admin = self.fleet.data().join("admin.txt");
        println!("  log in with   {}", admin.display());
        for (origin, name) in self.origins.iter().zip(ORIGINS) {
            println!("{:<15} {}", format!("origin {name}"), origin.url()?);
        }
        for (agent, (device, _)) in self.agents.iter().zip(DEVICES) {
            println!("{device:<15} {}", agent.api().base());
        }
        println!();
        Ok(())
    }
}

impl Line {
    fn each(&self, act: impl Fn(&Proxy)) {
        [&self.fleet, &self.mqtt].into_iter().chain(&self.origins).for_each(act);
    }
}

async fn start_fleet(line: &Line) -> Result<Fleet> {
    Fleet::setup()
        .set("server.fleet=USW")
        .set(format!("server.public_port={}", line.fleet.address().port()))
        .set(format!("broker.device_url=mqtts://localhost:{}", line.mqtt.address().port()))
        .start()
        .await
        .context("fleet server")
}

async fn activate(fleet: &Fleet, line: &Line, screen: &Screen) -> Result<Vec<Agent>> {
    let mut agents = Vec::new();
    for (device, class) in DEVICES {
        let mut agent = Agent::setup().to_be_activated().prepare()?;
        let claim = fleet.claim(STORE, device, class).await?;
        let server = format!("https://localhost:{}", line.fleet.address().port());
        let output = agent.activate(&server, &claim, &fleet.ca()).await?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{device} was not activated: {words}");
        agent.start().await.with_context(|| device.to_owned())?;
        screen.event(&format!("{device} activated with {claim}: {}", agent.api().base()));
        agents.push(agent);
    }
    Ok(agents)
}

/// The route table of the story: guests from Japan belong to apac, everybody else to the nearest.
fn table(line: &Line, version: u64) -> Value {
    let origin = |proxy: &Proxy, region: &str| {
        json!({ "endpoints": [ { "host": "127.0.0.1", "port": proxy.address().port(), "addresses": ["127.0.0.1"] } ],
            "regions": [region], "state": "active" })
    };
    let country = |domain: &str, residency: &[&str]| {
        json!({ "residency": residency,
            "services": { "orders": { "domains": { "default": domain }, "overridable": true, "cache": "off" } } })
    };
    let now = samovar_tests::clock::wall();
    json!({ "schema": 1, "environment": "prod", "version": version, "issued_at": now, "not_before": now,
        "expires_at": now.plus(Duration::from_hours(24)), "refresh_after_s": 900,
        "origins": { "us-west": origin(&line.origins[0], "US-W"), "apac": origin(&line.origins[1], "APAC") },
        "countries": { "US": country(DOMAINS[0].1, &["us-west"]), "JP": country(DOMAINS[1].1, &["apac"]) },
        "fallback": { "mode": "nearest", "candidates": ORIGINS } })
}
