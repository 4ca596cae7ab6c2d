//! The system's resolver, which respects the hosts file and whatever else the device is set up with (IO).

use super::answer::{Answer, Reply};
use futures_util::future::{BoxFuture, FutureExt};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Look-ups under way at one time. The system cannot be interrupted: those that hang keep their place, and when all
/// places hang the next look-up goes straight to the servers.
const LOOKUPS_MAX: usize = 8;

/// How a name is looked up; tests have systems of their own.
pub(super) type System = Arc<dyn Fn(String) -> BoxFuture<'static, Reply> + Send + Sync>;

/// This system's resolver.
pub(super) fn system() -> System {
    let places = Arc::new(Semaphore::new(LOOKUPS_MAX));
    Arc::new(move |host| look_up(Arc::clone(&places), host).boxed())
}

async fn look_up(places: Arc<Semaphore>, host: String) -> Reply {
    let Ok(place) = places.try_acquire_owned() else {
        return Reply::Failed(format!("{LOOKUPS_MAX} look-ups hang in the system's resolver"));
    };
    // Its own task, because the place is free again when the system returns, not when the caller stops waiting.
    let asked = tokio::spawn(async move {
        let answer = tokio::net::lookup_host((host.as_str(), 0)).await;
        drop(place);
        answer.map(|found| found.map(|socket| socket.ip()).collect::<Vec<IpAddr>>())
    });
    match asked.await {
        Ok(Ok(addresses)) if addresses.is_empty() => Reply::NoAddress,
        Ok(Ok(addresses)) => Reply::Found(Answer { addresses, ttl: None, chain: Vec::new() }),
        // Whether there is no such name or nobody to ask, the system does not tell in a way that can be relied on.
        Ok(Err(error)) => Reply::Failed(format!("the system: {error}")),
        Err(ended) => Reply::Failed(format!("the system: {ended}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn look_ups_that_hang_do_not_pile_up() {
        let places = Arc::new(Semaphore::new(1));
        let hanging = Arc::clone(&places).acquire_owned().await.unwrap();
        let Reply::Failed(why) = look_up(Arc::clone(&places), "localhost".into()).await else { panic!() };
        assert!(why.contains("hang"), "{why}");
        drop(hanging);
        assert!(matches!(look_up(places, "localhost".into()).await, Reply::Found(_)));
    }
}
