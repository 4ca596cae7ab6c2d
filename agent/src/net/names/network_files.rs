//! Reads which network the device is in from the system's files (IO; elsewhere than on Linux only the servers are known).

use super::network::{Network, default_route_v4, default_route_v6, is_forwarder, name_servers, neighbour};
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;

/// A router's tables are small; anything longer is cut.
const FILE_MAX: u64 = 256 * 1024;

/// The network as it is now.
pub(super) fn read() -> Network {
    let v4 = default_route_v4(&text("/proc/net/route"));
    let route = v4.or_else(|| default_route_v6(&text("/proc/net/ipv6_route")));
    let (interface, gateway) = route.map_or_else(Default::default, |(name, gateway)| (name, Some(gateway)));
    let gateway_mac = gateway.and_then(|gateway| neighbour(&text("/proc/net/arp"), gateway));
    Network { interface, gateway, gateway_mac, servers: servers() }
}

/// The servers themselves, also when the system puts a forwarder of its own before them.
fn servers() -> Vec<SocketAddr> {
    let listed = name_servers(&text("/etc/resolv.conf"));
    if !is_forwarder(&listed) {
        return listed;
    }
    let behind = name_servers(&text("/run/systemd/resolve/resolv.conf"));
    if behind.is_empty() { listed } else { behind }
}

fn text(path: &str) -> String {
    let mut content = Vec::new();
    // A file that cannot be read says nothing.
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut content));
    if read.is_err() {
        content.clear();
    }
    String::from_utf8_lossy(&content).into_owned()
}
