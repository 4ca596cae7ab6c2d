//! What this server does not publish although devices would take it: mistakes that cannot be taken back.
//!
//! The contract's list of what devices accept is theirs and complete; these rules stand only at the door of the fleet.

use samovar_wire::Timestamp;
use samovar_wire::route::Table;

/// How far a version may be above the one in force: nobody uses up the numbers by a slip of the finger.
const JUMP: u64 = 1_000_000;

/// Why a table is not published; `None` when it may be. `highest` is the version in force.
pub(super) fn objection(table: &Table, highest: u64, now: Timestamp) -> Option<String> {
    if table.version > highest.saturating_add(JUMP) {
        let version = table.version;
        return Some(format!("version {version} is more than {JUMP} above {highest}, which is in force"));
    }
    if table.expires_at <= now {
        return Some(format!("it expired at {}", table.expires_at));
    }
    endpoints(table).or_else(|| countries(table)).or_else(|| {
        let activation = table.activation.as_ref().filter(|activation| !is_domain(&activation.domain));
        activation.map(|activation| format!("activation: `{}` is not a host name", activation.domain))
    })
}

fn endpoints(table: &Table) -> Option<String> {
    for (origin, entry) in &table.origins {
        for endpoint in &entry.endpoints {
            if endpoint.port == 0 {
                return Some(format!("origin {origin}: port 0 leads nowhere"));
            }
            if !is_host(&endpoint.host) {
                return Some(format!(
                    "origin {origin}: `{}` is neither a host name nor an address",
                    endpoint.host
                ));
            }
        }
    }
    None
}

fn countries(table: &Table) -> Option<String> {
    for (country, routes) in &table.countries {
        if routes.residency.is_empty() {
            return Some(format!(
                "country {country}: residency is empty, so that no order could be sent anywhere"
            ));
        }
        for (name, service) in &routes.services {
            if service.residency.as_ref().is_some_and(Vec::is_empty) {
                return Some(format!("country {country}, service {name}: residency is empty"));
            }
            if let Some(domain) = service.domains.values().find(|domain| !is_domain(domain)) {
                return Some(format!("country {country}, service {name}: `{domain}` is not a host name"));
            }
        }
    }
    None
}

/// A host, with or without a port.
fn is_domain(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => {
            is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
        _ => is_host(text),
    }
}

fn is_host(text: &str) -> bool {
    if text.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    // Digits and dots alone are an address that went wrong.
    (1..=253).contains(&name.len())
        && name.split('.').all(label)
        && name.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in
            ["usw.store.example", "localhost", "127.0.0.1", "::1", "[::1]", "a-b.example.", "xn--fiqs8s"]
        {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a b", "http://x", "x/y", "-a", "a..b", "1.2.3", "999.1.1.1", "x:1", "é.example"] {
            assert!(!is_host(bad), "{bad}");
        }
        assert!(is_domain("us.store.example:8443") && !is_domain("x:0") && !is_domain("x:y"));
    }
}
