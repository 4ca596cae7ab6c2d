//! What this device itself can see of a line that is down: no link, no route, a gateway that is silent (IO; Linux only,
//! elsewhere nothing is ever seen).
//!
//! It reads what the kernel shows to everybody and sends nothing. It only finds words: whether the line is down is for
//! those to say who tried to use it.

use std::net::Ipv4Addr;

const NO_LINK: &str = "no network cable or Wi-Fi (no link)";

/// What is wrong with the device's own end of the line; `None` when nothing can be seen.
#[must_use]
pub fn trouble() -> Option<&'static str> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    if !cfg!(target_os = "linux") {
        return None;
    }
    let (routes, routes6) = (read("/proc/net/route")?, read("/proc/net/ipv6_route").unwrap_or_default());
    let gateways = gateways(&routes);
    if gateways.is_empty() && !has_default_route6(&routes6) {
        return Some(if has_carrier() {
            "the network gave this device no way out (no default route)"
        } else {
            NO_LINK
        });
    }
    if gateways.is_empty() {
        return None;
    }
    // The kernel keeps the routes of a link whose cable was pulled.
    if gateways
        .iter()
        .all(|(link, _)| is_unplugged(read(&format!("/sys/class/net/{link}/carrier")).as_deref()))
    {
        return Some(NO_LINK);
    }
    let neighbours = read("/proc/net/arp").unwrap_or_default();
    let silent = gateways.iter().all(|(_, gateway)| is_silent(&neighbours, *gateway));
    silent.then_some("the store's router does not answer (no ARP reply from the gateway)")
}

/// Whether a gateway's hardware address is known: it answered lately.
#[must_use]
pub fn router_answered() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (routes, neighbours) = (read("/proc/net/route"), read("/proc/net/arp"));
    gateways(&routes).iter().any(|(_, gateway)| flags_of(&neighbours, *gateway) == Some("0x2"))
}

/// Links and gateways of the default routes, as the kernel writes them: hex, least byte first.
fn gateways(routes: &str) -> Vec<(&str, Ipv4Addr)> {
    let gateway = |line| {
        let mut fields = str::split_ascii_whitespace(line);
        let (link, destination, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let mask = fields.nth(4)?;
        let address = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = destination == "00000000" && mask == "00000000";
        is_default.then(|| (link, Ipv4Addr::from(address.to_le_bytes())))
    };
    routes.lines().skip(1).filter_map(gateway).collect()
}

/// A link says 0 without a cable; one that does not say has its way without.
fn is_unplugged(carrier: Option<&str>) -> bool {
    carrier.is_some_and(|carrier| carrier.trim() == "0")
}

/// A default route that is not the kernel's own "unreachable" (which goes through `lo`).
fn has_default_route6(routes: &str) -> bool {
    routes.lines().any(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        fields.len() > 9 && fields[1] == "00" && fields[0].bytes().all(|b| b == b'0') && fields[9] != "lo"
    })
}

/// Whether the kernel asked for the gateway's hardware address and got no answer. No entry at all says nothing.
fn is_silent(neighbours: &str, gateway: Ipv4Addr) -> bool {
    flags_of(neighbours, gateway) == Some("0x0")
}

fn flags_of(neighbours: &str, gateway: Ipv4Addr) -> Option<&str> {
    let gateway = gateway.to_string();
    neighbours.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        if fields.next() == Some(gateway.as_str()) { fields.nth(1) } else { None }
    })
}

fn has_carrier() -> bool {
    let Ok(links) = std::fs::read_dir("/sys/class/net") else { return false };
    links.flatten().any(|link| {
        let carrier = std::fs::read_to_string(link.path().join("carrier"));
        link.file_name() != "lo" && carrier.is_ok_and(|carrier| carrier.trim() == "1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read_as_it_writes_them() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                      eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(gateways(routes), [("eth0", Ipv4Addr::new(192, 168, 1, 1))]);
        assert_eq!(gateways("Iface\tDestination\n"), []);
        let unplugged = [Some("0\n"), Some("1\n"), None].map(is_unplugged);
        assert_eq!(unplugged, [true, false, false]);
        let own = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                   00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        assert!(!has_default_route6(own) && has_default_route6(&own.replace("lo", "eth0")));
        let neighbours = "IP address       HW type     Flags       HW address            Mask     Device\n\
                          192.168.1.1      0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                          192.168.1.9      0x1         0x2         52:54:00:12:34:56     *        eth0\n";
        let silent = [1, 9, 7].map(|last| is_silent(neighbours, Ipv4Addr::new(192, 168, 1, last)));
        assert_eq!(silent, [true, false, false]);
    }
}
