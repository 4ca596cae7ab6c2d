//! The origin that orders are drained to, in a process of its own: reads each batch, answers for each order.
//!
//! It does as little as an origin can. `Forgetful` keeps nothing; `Durable` does what the contract asks of every
//! origin: it has the batch on the disk before it answers, with one sync. It says how many orders came, and when.

use crate::disk::{Disk, Place};
use crate::reference;
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use samovar_tests::clock;
use samovar_wire::orders::{BatchAnswer, HEADER_ORIGIN, OrderResult, Outcome};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

/// Its name in the route table.
pub(crate) const NAME: &str = "us-west";

/// What an origin does before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Forgetful,
    /// Writes the batch and syncs.
    Durable,
}

impl Kind {
    /// What the figures of a drain to it are filed under.
    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Forgetful => "drain, origin keeps nothing",
            Self::Durable => "drain, origin syncs each batch",
        }
    }
}

/// What came in so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) orders: usize,
    /// Orders of each batch, in order.
    pub(crate) batches: Vec<usize>,
    /// From the first batch to the last answer.
    pub(crate) time: Duration,
}

/// A running origin; ends with this value.
pub(crate) struct Origin {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Origin {
    pub(crate) fn start(place: &Place, disk: Disk, kind: Kind) -> Result<Self> {
        let mut command = reference::child(place, disk)?;
        command.arg("origin");
        if kind == Kind::Durable {
            let file = place.path("origin");
            reference::preallocate(&file)?;
            command.arg("--file").arg(file);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("the origin has no output")?;
        BufReader::new(out).read_line(&mut line)?;
        let address = line.trim().parse().context("the origin does not say where it listens")?;
        Ok(Self { child, address })
    }

    pub(crate) async fn seen(&self, api: &samovar_tests::LocalApi) -> Result<Seen> {
        Ok(serde_json::from_value(api.get_json("/seen").await?)?)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

struct State {
    file: Option<File>,
    seen: Seen,
    first: Option<Instant>,
}

/// The child: serves until it is killed.
pub(crate) fn serve(file: Option<&PathBuf>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let file = file.map(|path| File::options().write(true).open(path)).transpose()?;
    let state = Rc::new(RefCell::new(State { file, seen: Seen::default(), first: None }));
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let state = Rc::clone(&state);
            let service = service_fn(move |request| answer(Rc::clone(&state), request));
            tokio::task::spawn_local(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    })
}

/// What the origin must read of a batch.
#[derive(Deserialize)]
struct Batch<'a> {
    batch: &'a str,
    #[serde(borrow)]
    orders: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    id: &'a str,
}

async fn answer(state: Rc<RefCell<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_owned();
    let body = match (request.method(), path.as_str()) {
        (&Method::POST, "/v1/orders:batch") => {
            let begun = clock::now();
            let body = request.into_body().collect().await?.to_bytes();
            take(&mut state.borrow_mut(), &body, begun)?
        }
        (&Method::GET, "/seen") => serde_json::to_vec(&state.borrow().seen)?,
        (&Method::GET, "/.samovar/health") => {
            return Ok(Response::builder().status(204).header(HEADER_ORIGIN, NAME).body(Full::default())?);
        }
        _ => return Ok(Response::builder().status(404).body(Full::default())?),
    };
    Ok(Response::builder().header("content-type", "application/json").body(Full::from(body))?)
}

fn take(state: &mut State, body: &[u8], begun: Instant) -> Result<Vec<u8>> {
    let batch: Batch<'_> = serde_json::from_slice(body)?;
    if let Some(file) = &state.file {
        file.write_all_at(body, 0)?;
        file.sync_data()?;
    }
    let result = |order: &Item<'_>| OrderResult {
        id: order.id.to_owned(),
        status: Outcome::Settled,
        code: None,
        detail: None,
        retry_after_s: None,
    };
    let results = batch.orders.iter().map(result).collect();
    let answer = BatchAnswer { batch: batch.batch.to_owned(), server_time: None, results };
    let answer = serde_json::to_vec(&answer)?;
    let first = *state.first.get_or_insert(begun);
    state.seen.orders += batch.orders.len();
    state.seen.batches.push(batch.orders.len());
    state.seen.time = first.elapsed();
    Ok(answer)
}
