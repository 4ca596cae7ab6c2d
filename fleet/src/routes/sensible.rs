//! What this server does not publish although devices would take it: mistakes that cannot be taken back. Pure.
//!
//! The contract's list of what devices accept is theirs and complete; these rules stand only at the door of the fleet.

use samovar_wire::Timestamp;
use samovar_wire::route::{Flaw, Problem, Table};

/// How far a version may be above the one in force: nobody uses up the numbers by a slip of the finger.
const JUMP: u64 = 1_000_000;

/// Why a table is not published; empty when it may be. `highest` is the version in force.
pub(super) fn flaws(table: &Table, highest: u64, now: Timestamp) -> Vec<Flaw> {
    let mut found = Vec::new();
    if table.version > highest.saturating_add(JUMP) {
        let problem = Problem::VersionJump { version: table.version, in_force: highest };
        found.push(Flaw::new("/version", "the table", problem));
    }
    if table.expires_at <= now {
        found.push(Flaw::new("/expires_at", "the table", Problem::Expired(table.expires_at)));
    }
    endpoints(table, &mut found);
    countries(table, &mut found);
    if let Some(activation) = table.activation.as_ref().filter(|activation| !is_domain(&activation.domain)) {
        let problem = Problem::NotHost(activation.domain.clone());
        found.push(Flaw::new("/activation/domain", "activation", problem));
    }
    found
}

fn endpoints(table: &Table, found: &mut Vec<Flaw>) {
    for (origin, entry) in &table.origins {
        for (at, endpoint) in entry.endpoints.iter().enumerate() {
            let (path, what) = (format!("/origins/{origin}/endpoints/{at}"), format!("origin {origin}"));
            if endpoint.port == 0 {
                found.push(Flaw::new(format!("{path}/port"), &*what, Problem::Port));
            }
            if !is_host(&endpoint.host) {
                let problem = Problem::NotHost(endpoint.host.clone());
                found.push(Flaw::new(format!("{path}/host"), &*what, problem));
            }
        }
    }
}

fn countries(table: &Table, found: &mut Vec<Flaw>) {
    for (country, routes) in &table.countries {
        let path = format!("/countries/{country}");
        if routes.residency.is_empty() {
            let what = format!("country {country}");
            found.push(Flaw::new(format!("{path}/residency"), what, Problem::EmptyResidency));
        }
        for (name, service) in &routes.services {
            let (path, what) =
                (format!("{path}/services/{name}"), format!("country {country}, service {name}"));
            if service.residency.as_ref().is_some_and(Vec::is_empty) {
                found.push(Flaw::new(format!("{path}/residency"), &*what, Problem::EmptyResidency));
            }
            for (class, domain) in service.domains.iter().filter(|(_, domain)| !is_domain(domain)) {
                let problem = Problem::NotHost(domain.clone());
                found.push(Flaw::new(format!("{path}/domains/{class}"), &*what, problem));
            }
        }
    }
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
