//! An origin in this process (contracts §2), honest until told otherwise.
//!
//! ```text
//! request ──► behaviour? ──honest──► store (key → sha256, one lock = one transaction) ──► results
//!                 └─► drop, stall, status, portal, wrong batch id, … before or after the store
//! ```
//!
//! It keeps what it was sent after it was stopped, as a database would, and comes back on the same port. The same origin
//! as a process of its own, which can be killed, is in [`crate::soak`].

mod answers;
mod behaviour;
mod ending;
pub mod journal;
mod mischief;
mod pages;
mod reconcile;
mod single;
mod store;

pub use behaviour::{Behaviour, Comparison};
pub use mischief::Mischief;
pub use pages::{Page, Visit};
pub use store::{Defect, Held, Store};

use anyhow::{Context, Result};
use bytes::Bytes;
use ending::Planned;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What an origin has seen; shared by the story and the connections.
pub struct World {
    /// Its name in the route table.
    pub name: String,
    state: Mutex<State>,
    pages: Mutex<pages::Pages>,
    /// Answers wait while this is true.
    answers_wait: watch::Sender<bool>,
}

struct State {
    store: Store,
    /// What came marked as shadow: judged like the rest, but no order of this origin.
    shadows: Store,
    always: Behaviour,
    next: VecDeque<Behaviour>,
    mischief: Option<Mischief>,
    requests: Vec<Seen>,
    /// `None`: it has no health check.
    healthy: Option<bool>,
    comparison: Comparison,
    comparisons: usize,
}

/// One batch request as it came in, whatever became of it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method and path.
    pub line: String,
    /// `Host` of the request.
    pub host: String,
    /// Headers by lower-case name.
    pub headers: Vec<(String, String)>,
    /// Keys in the batch.
    pub keys: Vec<String>,
    /// What the origin did.
    pub behaviour: Behaviour,
    /// When it came.
    pub at: std::time::Instant,
}

impl Seen {
    /// A header; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

impl State {
    /// How the next batch is treated.
    fn choose(&mut self) -> Behaviour {
        let scripted = self.next.pop_front().or_else(|| self.mischief.as_mut().map(Mischief::draw));
        scripted.unwrap_or_else(|| self.always.clone())
    }
}

impl World {
    async fn may_answer(&self) {
        // The sender lives as long as this does.
        let _ = self.answers_wait.subscribe().wait_for(|wait| !wait).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One origin of a story.
pub struct Origin {
    world: Arc<World>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Origin {
    /// Starts an origin on a free port.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_with(name, "127.0.0.1:0".parse()?, Store::default()).await
    }

    /// Starts an origin at this address with what it holds already.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start_with(name: &str, address: SocketAddr, store: Store) -> Result<Self> {
        let state = State {
            store,
            shadows: Store::default(),
            always: Behaviour::Honest,
            next: VecDeque::new(),
            mischief: None,
            requests: Vec::new(),
            healthy: Some(true),
            comparison: Comparison::Honest,
            comparisons: 0,
        };
        let (answers_wait, _) = watch::channel(false);
        let world = Arc::new(World {
            name: name.into(),
            state: Mutex::new(state),
            pages: Mutex::default(),
            answers_wait,
        });
        let listener = TcpListener::bind(address).await.context("the origin's address is taken")?;
        let address = listener.local_addr().context("a listener without an address")?;
        let accepting = Some(tokio::spawn(accept(listener, world.clone())));
        Ok(Self { world, address, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.world.name
    }

    /// Stops answering: connections are cut, the port is closed, the data stay.
    pub async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
    }

    /// Comes back on the same port.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub async fn restart(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await.context("the origin's port was taken")?;
        self.accepting = Some(tokio::spawn(accept(listener, self.world.clone())));
        Ok(())
    }

    /// From now on every batch is treated so.
    pub fn always(&self, behaviour: Behaviour) {
        self.world.lock().always = behaviour;
    }

    /// The next batch is treated so; several queue up.
    pub fn once(&self, behaviour: Behaviour) {
        self.world.lock().next.push_back(behaviour);
    }

    /// From now on batches are treated as a seed says; what [`Self::once`] asked for goes first.
    pub fn misbehave(&self, mischief: Mischief) {
        self.world.lock().mischief = Some(mischief);
    }

    /// From now on batches are treated honestly.
    pub fn behave(&self) {
        let mut state = self.world.lock();
        (state.always, state.mischief) = (Behaviour::Honest, None);
        state.next.clear();
    }

    /// Whether answers to batches, which are recorded at once, wait until they are let go.
    pub fn hold_answers(&self, wait: bool) {
        self.world.answers_wait.send_replace(wait);
    }

    /// Whether the health check says yes.
    pub fn set_healthy(&self, healthy: bool) {
        self.world.lock().healthy = Some(healthy);
    }

    /// It has no health check: 404.
    pub fn without_health_check(&self) {
        self.world.lock().healthy = None;
    }

    /// The batches seen so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        self.world.lock().requests.clone()
    }

    /// How many batches came in so far.
    #[must_use]
    pub fn request_count(&self) -> usize {
        self.world.lock().requests.len()
    }

    /// Looks at what it holds.
    pub fn store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.world.lock().store)
    }

    /// How many orders it holds.
    #[must_use]
    pub fn orders(&self) -> usize {
        self.store(Store::len)
    }

    /// How many orders came marked as shadow and were taken for good.
    #[must_use]
    pub fn shadows(&self) -> usize {
        self.world.lock().shadows.len()
    }

    /// Whether it holds an order of that key.
    #[must_use]
    pub fn holds(&self, key: &str) -> bool {
        self.store(|store| store.get(key).is_some())
    }

    /// From now on every comparison of orders is treated so.
    pub fn compares(&self, comparison: Comparison) {
        self.world.lock().comparison = comparison;
    }

    /// How many comparisons came in so far.
    #[must_use]
    pub fn comparisons(&self) -> usize {
        self.world.lock().comparisons
    }

    /// Forgets the orders of these keys, as a restore from an old copy would.
    pub fn lose(&self, lost: impl Fn(&str) -> bool) {
        self.world.lock().store.lose(lost);
    }

    /// Puts an order with other content under a device's key, as another till's mistake would.
    pub fn occupy(&self, device: &str, key: &str) {
        self.world.lock().store.occupy(device, key);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
    }
}

/// Connections live in this task's set, so that stopping the task cuts them all.
async fn accept(listener: TcpListener, world: Arc<World>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, world.clone()))),
                // Out of descriptors: wait for one to be freed.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, world: Arc<World>) {
    let _ = stream.set_nodelay(true);
    let deaf = world.lock().always == Behaviour::Deaf;
    if deaf {
        std::future::pending::<()>().await;
    }
    let planned = Planned::default();
    let service = {
        let planned = planned.clone();
        service_fn(move |request: Request<Incoming>| {
            let (world, planned) = (world.clone(), planned.clone());
            Box::pin(async move { answers::answer(&world, &planned, request).await })
        })
    };
    let mut connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // An error is a cut connection: scripted, or the agent's own doing. Neither is the origin's business.
    let _ = std::future::poll_fn(|context| connection.poll_without_shutdown(context)).await;
    planned.carry_out(connection.into_parts().io.into_inner()).await;
}

/// The body of an answer.
pub(crate) type Body = http_body_util::Full<Bytes>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalApi;
    use samovar_wire::Timestamp;
    use samovar_wire::encoding::{hex, sha256};
    use samovar_wire::orders::{BatchAnswer, BatchWriter, Outcome, OutgoingOrder};

    fn batch(key: &str, body: &str) -> Vec<u8> {
        let digest = hex(&sha256(body.as_bytes()));
        let accepted_at = Timestamp::from_millis(0);
        let order =
            OutgoingOrder { id: key, key, sha256: &digest, order_no: key, seq: 1, udl: "US", accepted_at };
        let mut writer = BatchWriter::new("b");
        writer.push(&order, body.as_bytes());
        writer.finish()
    }

    #[tokio::test]
    async fn an_order_is_settled_once_then_a_duplicate_and_other_content_a_conflict() {
        let origin = Origin::start("o").await.unwrap();
        let api = LocalApi::new(&format!("http://{}", origin.address())).unwrap();
        for (body, expected) in
            [("{}", Outcome::Settled), ("{}", Outcome::Duplicate), ("{\"n\":1}", Outcome::Conflict)]
        {
            let answer = api.post("/v1/orders:batch", batch("k", body)).await.unwrap();
            let answer: BatchAnswer = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(answer.results[0].status, expected, "{body}");
        }
        assert_eq!((origin.orders(), origin.store(Store::duplicates)), (1, 1));
    }

    #[tokio::test]
    async fn answers_wait_until_they_are_let_go() {
        let origin = Origin::start("o").await.unwrap();
        let api = LocalApi::new(&format!("http://{}", origin.address())).unwrap();
        origin.hold_answers(true);
        let asked = tokio::spawn(async move { api.post("/v1/orders:batch", batch("k", "{}")).await });
        crate::eventually("it is recorded", Duration::from_secs(10), async || {
            origin.holds("k").then_some(())
        })
        .await
        .unwrap();
        assert!(!asked.is_finished());
        origin.hold_answers(false);
        assert_eq!(asked.await.unwrap().unwrap().status, 200);
    }

    #[tokio::test]
    async fn what_was_committed_before_a_cut_stays_over_a_restart() {
        let mut origin = Origin::start("o").await.unwrap();
        let api = LocalApi::new(&format!("http://{}", origin.address())).unwrap();
        origin.once(Behaviour::CommitThenDrop);
        assert!(api.post("/v1/orders:batch", batch("k", "{}")).await.is_err());
        origin.stop().await;
        assert!(api.get("/.samovar/health").await.is_err());
        origin.restart().await.unwrap();
        assert!(origin.holds("k"));
        origin.once(Behaviour::Portal);
        let page = api.post("/v1/orders:batch", batch("l", "{}")).await.unwrap();
        assert_eq!((page.status, page.header("content-type")), (200, "text/html"));
        assert_eq!(origin.orders(), 1);
    }

    /// Each of them as a client sees it: what is recorded, and whether there is an answer that can be used.
    #[tokio::test]
    async fn broken_answers_are_broken_in_their_own_way_and_what_they_recorded_stays() {
        let origin = Origin::start("o").await.unwrap();
        let base = format!("http://{}", origin.address());
        let usable = async |key: &str, behaviour: Behaviour| {
            origin.once(behaviour);
            let api = LocalApi::new(&base).unwrap();
            let answer = api.post("/v1/orders:batch", batch(key, "{}")).await.ok()?;
            serde_json::from_slice::<BatchAnswer>(&answer.body).ok().map(|answer| answer.results.len())
        };
        assert_eq!(usable("reset", Behaviour::CommitThenReset).await, None);
        assert_eq!(usable("half", Behaviour::HalfBody).await, None);
        assert_eq!(usable("chunks", Behaviour::CutChunks).await, None);
        assert_eq!(usable("json", Behaviour::WrongJson).await, None);
        assert_eq!(usable("twice", Behaviour::AnswerTwice).await, Some(1));
        assert_eq!(usable("drip", Behaviour::Drip { pause_ms: 1 }).await, Some(1));
        assert_eq!(usable("repeated", Behaviour::RepeatResults).await, Some(2));
        assert_eq!(usable("contradicted", Behaviour::ContradictItself).await, Some(2));
        assert_eq!(origin.orders(), 8);
        assert_eq!(usable("closed", Behaviour::CloseMidRequest).await, None);
        assert_eq!(usable("refused", Behaviour::StatusForBatchWith("{", 413)).await, None);
        assert_eq!(origin.orders(), 8);
    }
}
