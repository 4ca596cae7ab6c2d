//! Which network the device is in: its way out and the DNS servers that came with it. Pure; reading the system's files
//! is `network_files`.

use super::servers::DNS_PORT;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Servers of the system that are asked directly; it lists no more either.
const SERVERS_MAX: usize = 3;

/// What tells one network from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// The interface that leads out.
    #[serde(default)]
    pub(super) interface: String,
    /// The router.
    pub(super) gateway: Option<IpAddr>,
    /// The router's hardware address, once it has been heard of.
    pub(super) gateway_mac: Option<String>,
    /// The DNS servers, as the system lists them.
    pub(super) servers: Vec<SocketAddr>,
}

impl Network {
    /// Whether what was proved in one holds in the other: the same router and the same servers. By hardware address when
    /// both are known: every second shop has its router at 192.168.1.1.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same_router = match (&self.gateway_mac, &other.gateway_mac) {
            (Some(mine), Some(other)) => mine == other,
            _ => self.gateway == other.gateway,
        };
        same_router && self.servers == other.servers
    }

    /// Whether connections made before may lead nowhere now.
    pub(super) fn is_another(&self, before: &Self) -> bool {
        !self.is_same(before) || self.interface != before.interface
    }
}

/// The default way out, from `/proc/net/route`.
pub(super) fn default_route_v4(table: &str) -> Option<(String, IpAddr)> {
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [interface, destination, gateway, _, _, _, metric, mask, ..] = fields[..] else { return None };
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = destination == "00000000" && mask == "00000000" && gateway != 0;
        let gateway = Ipv4Addr::from(gateway.to_ne_bytes());
        is_default.then(|| (metric.parse().unwrap_or(u32::MAX), interface.to_owned(), IpAddr::V4(gateway)))
    });
    rows.min_by_key(|(metric, ..)| *metric).map(|(_, interface, gateway)| (interface, gateway))
}

/// The default way out, from `/proc/net/ipv6_route`.
pub(super) fn default_route_v6(table: &str) -> Option<(String, IpAddr)> {
    let rows = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, length, _, _, gateway, metric, .., interface] = fields[..] else { return None };
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        let is_default = length == "00" && destination.chars().all(|c| c == '0') && !gateway.is_unspecified();
        let metric = u32::from_str_radix(metric, 16).unwrap_or(u32::MAX);
        is_default.then(|| (metric, interface.to_owned(), IpAddr::V6(gateway)))
    });
    rows.min_by_key(|(metric, ..)| *metric).map(|(_, interface, gateway)| (interface, gateway))
}

/// The hardware address of a neighbour, from `/proc/net/arp`.
pub(super) fn neighbour(table: &str, address: IpAddr) -> Option<String> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [ip, _, flags, mac, ..] = fields[..] else { return None };
        let known = ip.parse() == Ok(address) && flags != "0x0" && mac != "00:00:00:00:00:00";
        known.then(|| mac.to_owned())
    })
}

/// The servers of a `resolv.conf`.
pub(super) fn name_servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    // A zone (`fe80::1%eth0`) would need the number of the interface; such a server is left to the system.
    let addresses = lines.filter_map(|word| word.parse::<IpAddr>().ok());
    addresses.take(SERVERS_MAX).map(|address| SocketAddr::new(address, DNS_PORT)).collect()
}

/// Whether all the servers are the system's own forwarder: those behind it stand in another file.
pub(super) fn is_forwarder(servers: &[SocketAddr]) -> bool {
    let stub = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
    !servers.is_empty() && servers.iter().all(|server| server.ip() == stub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_way_out_with_the_least_metric_is_found() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_route_v4(table), Some(("eth0".into(), "10.0.0.1".parse().unwrap())));
        assert_eq!(default_route_v4("Iface\nbroken\n"), None);
        let six = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                   fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n\
                   00000000000000000000000000000001 80 00000000000000000000000000000000 00 \
                   00000000000000000000000000000000 00000000 00000002 00000000 80200001       lo\n";
        assert_eq!(default_route_v6(six), Some(("eth0".into(), "fe80::1".parse().unwrap())));
    }

    #[test]
    fn a_routers_hardware_address_counts_once_it_is_known() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.0.0.1         0x1         0x2         02:00:00:00:00:01     *        eth0\n\
                     10.0.0.9         0x1         0x0         00:00:00:00:00:00     *        eth0\n";
        assert_eq!(neighbour(table, "10.0.0.1".parse().unwrap()).as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(neighbour(table, "10.0.0.9".parse().unwrap()), None);
    }

    #[test]
    fn servers_are_read_as_the_system_reads_them() {
        let text = "# nameserver 192.0.2.9\nsearch x\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\nnameserver \
                    fe80::1%eth0\nnameserver nonsense\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        let servers = name_servers(text);
        assert_eq!(
            servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"]
        );
        assert!(is_forwarder(&name_servers("nameserver 127.0.0.53\n")) && !is_forwarder(&servers));
    }

    #[test]
    fn another_interface_is_another_way_but_the_same_network() {
        let cable =
            Network { interface: "eth0".into(), gateway: "10.0.0.1".parse().ok(), ..Network::default() };
        let air = Network { interface: "wlan0".into(), ..cable.clone() };
        assert!(air.is_same(&cable) && air.is_another(&cable) && !cable.is_another(&cable));
        let servers = Network { servers: name_servers("nameserver 192.0.2.1"), ..cable.clone() };
        assert!(servers.is_another(&cable) && !servers.is_same(&cable));
    }
}
