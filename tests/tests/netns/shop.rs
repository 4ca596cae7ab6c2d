//! The shop of every story: a till that sells once a second, and an eye on everything that is told meanwhile.

use anyhow::{Context, Result, ensure};
use samovar_tests::netns::{Net, Place, is_long};
use samovar_tests::origin::journal::Entry;
use samovar_tests::soak::RoughOrigin;
use samovar_tests::{Agent, TableBuilder, clock, tls};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What takes a second or two on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// What waits for several probes of an origin that was left: half a minute between two, and then some.
pub(crate) const SEVERAL_PROBES: Duration = Duration::from_secs(150);
const SALE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long an origin that returns must prove itself, in seconds: the agent's defaults in the long profile.
#[derive(Clone, Copy)]
pub(crate) struct Hold {
    pub(crate) after: u64,
    pub(crate) spread: u64,
}

impl Hold {
    pub(crate) fn of_profile() -> Self {
        if is_long() { Self { after: 300, spread: 120 } } else { Self { after: 5, spread: 2 } }
    }
}

pub(crate) struct Shop {
    // The processes go before the directory.
    pub(crate) agent: Agent,
    pub(crate) origins: [RoughOrigin; 2],
    _reference: RoughOrigin,
    pub(crate) net: Net,
    directory: TempDir,
    sold: Vec<String>,
    sold_at: Instant,
    /// What `/v1/resolve` said, each time that it said something else.
    pub(crate) told: Vec<(Instant, String)>,
    /// What holds now.
    pub(crate) conditions: BTreeMap<String, String>,
    /// Everything that was ever said of a condition.
    pub(crate) ever: BTreeSet<(String, String)>,
}

impl Shop {
    pub(crate) async fn open(hold: Hold) -> Result<Self> {
        let net = Net::lay()?;
        let directory = TempDir::with_prefix("samovar-netns-").context("cannot make a directory")?;
        let home = directory.path();
        tls::write_certificate(home, &["us.store.example"])?;
        let files = home.to_str().context("a path that is no text")?;
        let start = async |place: Place, port, more: &[&str]| -> Result<RoughOrigin> {
            let address = SocketAddr::new(place.address(), port);
            let mut origin = RoughOrigin::within(place.name(), place.name(), home, address, more);
            origin.start(None).await?;
            Ok(origin)
        };
        let origins = [
            start(Place::UsWest, 443, &["--tls", files]).await?,
            start(Place::Apac, 443, &["--tls", files]).await?,
        ];
        let reference = start(Place::Reference, 80, &[]).await?;
        let table = TableBuilder::new()?
            .origin(origins[0].name(), origins[0].address())
            .origin(origins[1].name(), origins[1].address())
            .with("/probes", json!([format!("http://{}", Place::Reference.address())]))?;
        // `/sys` of a process shows the links of the namespace in which it was mounted: the sandbox's is the store's.
        let agent = Agent::setup()
            .table(&table)
            .tls(&home.join(tls::CERTIFICATE))
            .set(&format!("routing.failback_after_s={}", hold.after))
            .set(&format!("routing.failback_spread_s={}", hold.spread))
            .start()
            .await?;
        let now = clock::now();
        let mut shop = Self {
            agent,
            origins,
            _reference: reference,
            net,
            directory,
            sold: Vec::new(),
            sold_at: now,
            told: Vec::new(),
            conditions: BTreeMap::new(),
            ever: BTreeSet::new(),
        };
        shop.until("both origins are up", SOON, async |shop| {
            let health = shop.health().await.ok()?;
            (health.values().filter(|health| *health == "up").count() == 2).then_some(())
        })
        .await?;
        // Connections are kept alive and everything is in its usual state.
        shop.sell_for(Duration::from_secs(5)).await?;
        ensure!(shop.now_at() == Place::UsWest.name(), "it begins at {}", shop.now_at());
        Ok(shop)
    }

    /// A sign-in page in the router.
    pub(crate) async fn sign_in_page(&self) -> Result<RoughOrigin> {
        let listen = "0.0.0.0:80".parse()?;
        let (router, more) = (self.net.router_name(), ["--sign-in-page", "443"]);
        let mut page = RoughOrigin::within(router, "page", self.directory.path(), listen, &more);
        page.start(None).await?;
        Ok(page)
    }

    /// Health of the origins, as the status shows it.
    pub(crate) async fn health(&self) -> Result<BTreeMap<String, String>> {
        let status = self.agent.api().get_json("/v1/status").await?;
        let origins = status["origins"].as_array().context("the status has no origins")?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(origins.iter().map(|origin| (text(&origin["origin"]), text(&origin["health"]))).collect())
    }

    /// One look at everything; a sale when it is time for one.
    async fn step(&mut self) -> Result<()> {
        if self.sold_at.elapsed() >= SALE_EVERY {
            self.sell().await?;
        }
        let answer = self.agent.api().get_json("/v1/resolve?service=orders").await?;
        let origin = answer["origin"].as_str().context("no origin is told")?;
        if self.told.last().is_none_or(|(_, last)| last != origin) {
            self.told.push((clock::now(), origin.into()));
        }
        self.conditions = self.agent.api().conditions().await?;
        self.ever.extend(self.conditions.clone());
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    /// Sells one; gives its number.
    pub(crate) async fn sell(&mut self) -> Result<String> {
        self.sold_at = clock::now();
        let number = format!("A-{:05}", self.sold.len());
        let order = json!({ "order_no": number, "placed_at": "2026-11-20T08:15:00.000Z", "total": "4.20" });
        let answer = self.agent.api().place(&order).await?;
        ensure!(answer.status == 202, "{} {}", answer.status, answer.json());
        self.sold.push(number.clone());
        Ok(number)
    }

    /// Sells on until something has come about.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut look: impl AsyncFnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let began = clock::now();
        loop {
            self.step().await?;
            if let Some(found) = look(self).await {
                return Ok(found);
            }
            ensure!(
                began.elapsed() < deadline,
                "waited {} s in vain for: {what}; {:?} {:?} {:?}\n{}",
                deadline.as_secs(),
                self.told.iter().map(|(at, origin)| (at.elapsed(), origin)).collect::<Vec<_>>(),
                self.conditions,
                self.health().await,
                self.agent.last_words()
            );
        }
    }

    pub(crate) async fn sell_for(&mut self, time: Duration) -> Result<()> {
        let began = clock::now();
        while began.elapsed() < time {
            self.step().await?;
        }
        Ok(())
    }

    /// Waits until a condition is told.
    pub(crate) async fn condition(&mut self, name: &str, deadline: Duration) -> Result<String> {
        self.until(&format!("condition {name}"), deadline, async |shop| shop.conditions.get(name).cloned())
            .await
    }

    /// Where new orders go now.
    pub(crate) fn now_at(&self) -> &str {
        self.told.last().map_or("", |(_, origin)| origin)
    }

    /// What an origin has recorded, as often as it has.
    pub(crate) fn recorded(&self, origin: usize) -> Result<Vec<String>> {
        let entries = self.origins[origin].journal()?;
        let key = |entry| match entry {
            Entry::Recorded(order) => Some(order.key),
            Entry::Repeated { .. } | Entry::Broken { .. } | Entry::Did { .. } => None,
        };
        Ok(entries.into_iter().filter_map(key).collect())
    }

    pub(crate) fn has(&self, origin: usize, number: &str) -> bool {
        self.recorded(origin).is_ok_and(|keys| keys.iter().any(|key| key == number))
    }

    pub(crate) const fn sold(&self) -> usize {
        self.sold.len()
    }

    /// From now until the first order that is at any origin and was not before.
    pub(crate) async fn first_order_out(&mut self) -> Result<Duration> {
        let (began, before) = (clock::now(), self.recorded(0)?.len() + self.recorded(1)?.len());
        self.sell().await?;
        self.until("an order leaves", SOON, async |shop| {
            let now = shop.recorded(0).ok()?.len() + shop.recorded(1).ok()?.len();
            (now > before).then(|| began.elapsed())
        })
        .await
    }

    /// The end of every story: all that was sold is settled, and recorded once, over both origins.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        let began = clock::now();
        loop {
            let summary = self.agent.api().summary().await?;
            if summary.settled == u64::try_from(self.sold.len())? {
                break;
            }
            ensure!(
                began.elapsed() < SEVERAL_PROBES,
                "{summary:?} of {}\n{}",
                self.sold.len(),
                self.agent.last_words()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut recorded = [self.recorded(0)?, self.recorded(1)?].concat();
        recorded.sort_unstable();
        ensure!(recorded == self.sold, "sold and recorded differ: {recorded:?}");
        Ok(())
    }
}
