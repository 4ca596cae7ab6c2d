//! Tells that something about the device's network changed: a cable, an address, a route (IO; Linux only).
//!
//! What changed is of no interest, only that it is worth looking whether an origin can be reached again. On other
//! systems, and where the kernel does not let us listen, nothing is ever told; whoever waits has a pace of his own.

use tokio::sync::watch;

/// A number that grows with each change; the task behind it ends with the last receiver. Must be called inside the
/// runtime.
#[must_use]
pub fn changes() -> watch::Receiver<u64> {
    let (told, changes) = watch::channel(0);
    #[cfg(target_os = "linux")]
    match netlink::open() {
        Ok(socket) => drop(tokio::spawn(netlink::listen(socket, told))),
        Err(error) => tracing::info!(%error, "changes of the network cannot be listened to"),
    }
    #[cfg(not(target_os = "linux"))]
    drop(told);
    changes
}

#[cfg(target_os = "linux")]
mod netlink {
    use rustix::io::Errno;
    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    use std::io;
    use std::time::Duration;
    use tokio::net::UnixDatagram;
    use tokio::sync::watch;

    /// Links, and the addresses and routes of both kinds of IP: the groups `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`,
    /// `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR` and `RTMGRP_IPV6_ROUTE` of `linux/rtnetlink.h`.
    const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
    /// Least time between two changes that are told: one cable makes a dozen messages.
    const GAP: Duration = Duration::from_millis(100);

    /// The runtime knows no netlink. What it knows of a local datagram socket (wait until readable, then `recv`) is all
    /// that is needed of one.
    pub(super) fn open() -> io::Result<UnixDatagram> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol means routes.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        UnixDatagram::from_std(socket.into())
    }

    pub(super) async fn listen(socket: UnixDatagram, told: watch::Sender<u64>) {
        let mut message = [0_u8; 8 * 1024];
        loop {
            let received = tokio::select! {
                () = told.closed() => return,
                received = socket.recv(&mut message) => received,
            };
            // Messages that were lost because nobody read them in time are changes too.
            let lost = |error: &io::Error| error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error());
            if let Err(error) = received.as_ref()
                && !lost(error)
            {
                tracing::warn!(%error, "changes of the network are no longer listened to");
                return;
            }
            told.send_modify(|changes| *changes += 1);
            tokio::time::sleep(GAP).await;
            while socket.try_recv(&mut message).is_ok() {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Changing a network needs rights that tests lack; that the kernel lets us listen does not.
    #[tokio::test]
    async fn the_kernel_lets_us_listen_and_the_task_ends_with_its_last_reader() {
        let socket = netlink::open().unwrap();
        let (told, changes) = watch::channel(0);
        let listening = tokio::spawn(netlink::listen(socket, told));
        drop(changes);
        tokio::time::timeout(std::time::Duration::from_secs(5), listening).await.unwrap().unwrap();
    }
}
