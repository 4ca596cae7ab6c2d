//! Accepts connections and bounds them.
//!
//! At most `max_connections` at a time. When that many are open, the one that has been idle longest makes room for a
//! new one; when none is idle, the new one is told 503 at once. So ten thousand silent connections cannot lock the
//! till out, and neither can a slow one: a head must arrive within ten seconds.

use super::Gate;
use crate::clock::{Mono, mono};
use crate::stop;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt;

/// Longest time for a request's head to arrive, and for a connection to stay open without a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time that open requests are given when the agent stops.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted: a whole store that reconnects at once, with room.
const BACKLOG: u32 = 4_096;
/// A pause after the system refused to give a connection, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens the listening socket.
///
/// # Errors
/// When the address is in use or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted agent takes its port back at once, although old connections still linger.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` becomes true; then lets open requests end for a moment.
pub async fn serve(
    listener: TcpListener,
    router: axum::Router,
    gate: Gate,
    max_connections: usize,
    mut stop: watch::Receiver<bool>,
) {
    let shared = Arc::new(Shared { router, gate, open: Mutex::default() });
    let mut tasks = JoinSet::new();
    let mut next_id = 0_u64;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
            () = stop::asked(&mut stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !shared.make_room(max_connections) {
            refuse(&stream);
            continue;
        }
        next_id += 1;
        let activity = Arc::new(Activity::default());
        let connection =
            connection(Arc::clone(&shared), stream, peer.ip(), Arc::clone(&activity), stop.clone());
        let id = next_id;
        let registered = Registered { shared: Arc::clone(&shared), id };
        // Held until the connection is on the list, so that one that ends at once is taken off after it was put on.
        let mut open = shared.lock();
        let handle = tasks.spawn(async move {
            let _registered = registered;
            connection.await;
        });
        open.insert(id, Open { activity, handle });
    }
    let _ = tokio::time::timeout(STOP_DEADLINE, async { while tasks.join_next().await.is_some() {} }).await;
}

struct Shared {
    router: axum::Router,
    gate: Gate,
    open: Mutex<BTreeMap<u64, Open>>,
}

/// One open connection.
struct Open {
    activity: Arc<Activity>,
    handle: AbortHandle,
}

/// Takes a connection off the list when its task ends, however it ends.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.id);
    }
}

/// Requests under way on a connection, and since when there are none.
#[derive(Default)]
struct Activity {
    requests: AtomicU64,
    idle_since_ms: AtomicU64,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn idle_since(&self) -> Option<Mono> {
        let idle = self.requests.load(Ordering::Relaxed) == 0;
        idle.then(|| Mono(Duration::from_millis(self.idle_since_ms.load(Ordering::Relaxed))))
    }
}

/// Lives as long as a request and its answer, body included.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now = u64::try_from(mono().0.as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since_ms.store(now, Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Open>> {
        // A panic while the map was held cannot leave it half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when one more connection may be opened; ends the one that has been idle longest if need be.
    fn make_room(&self, max_connections: usize) -> bool {
        let mut open = self.lock();
        if open.len() < max_connections {
            return true;
        }
        let idle = open.iter().filter_map(|(id, open)| Some((open.activity.idle_since()?, *id))).min();
        let Some(ended) = idle.and_then(|(_, id)| open.remove(&id)) else { return false };
        // The lock is held by this thread only while `Registered` of the ended task may want it later.
        drop(open);
        ended.handle.abort();
        true
    }
}

/// Tells a connection that there is no room, without waiting for it.
fn refuse(stream: &TcpStream) {
    const FULL: &str = r#"{"type":"urn:samovar:problem:busy","title":"busy","status":503,"detail":"too many connections: repeat with the same key in a second"}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{FULL}",
        FULL.len()
    );
    let _ = stream.try_write(answer.as_bytes());
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: IpAddr,
    activity: Arc<Activity>,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let now = u64::try_from(mono().0.as_millis()).unwrap_or(u64::MAX);
    activity.idle_since_ms.store(now, Ordering::Relaxed);
    let service = hyper::service::service_fn(move |request| {
        let (shared, busy) = (Arc::clone(&shared), activity.begin());
        async move { Ok::<_, Infallible>(respond(&shared, request, peer, busy).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        // Errors here are the other side's: it went away or did not speak HTTP.
        _ = served.as_mut() => return,
        () = stop::asked(&mut stop) => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

async fn respond(shared: &Shared, request: Request<Incoming>, peer: IpAddr, busy: Busy) -> Response {
    let (mut parts, body) = request.into_parts();
    let response = match shared.gate.check(&parts.method, &parts.uri, &parts.headers, peer) {
        Ok(caller) => {
            parts.extensions.insert(caller);
            let request = Request::from_parts(parts, Body::new(body));
            match shared.router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Err(failure) => failure.into_response(),
    };
    // The answer counts as under way until its last byte was taken.
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _busy = &busy;
            frame
        }))
    })
}
