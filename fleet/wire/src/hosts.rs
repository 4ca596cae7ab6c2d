//! Pure: which names of a device may be pointed elsewhere, where to and for how long. Agent and fleet ask the same rules:
//! the agent because it obeys, the fleet so that nobody waits for a refusal.

use crate::route::Table;
use std::net::IpAddr;
use std::time::Duration;

/// For how long, when nobody says.
pub const TTL_DEFAULT: Duration = Duration::from_secs(4 * 3_600);
/// For how long at most.
pub const TTL_MAX: Duration = Duration::from_secs(72 * 3_600);
/// How many of one device at one time.
pub const OVERRIDES_MAX: usize = 20;
/// Longest reason, owner and ticket, in bytes.
const TEXT_MAX: usize = 500;

/// Why a name is not pointed elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A field is wrong.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody says which names there are.
    #[error("no route table is in force, so no name is known")]
    NoTable,
    /// Not a name of the table.
    #[error("`{0}` is neither a domain nor an endpoint's host of the route table in force")]
    Unknown(String),
    /// The name keeps the device manageable.
    #[error("`{0}` is protected: nothing may point it elsewhere")]
    Protected(String),
    /// The table forbids it for this service.
    #[error("`{name}` serves `{service}` of {country}, which the route table does not let anybody override")]
    NotOverridable {
        /// The name.
        name: String,
        /// The service.
        service: String,
        /// Its country.
        country: String,
    },
    /// The table forbids it everywhere.
    #[error("the route table in force switches host overrides off")]
    Disabled,
    /// There are as many as there may be.
    #[error("there are {OVERRIDES_MAX} overrides already: clear one first")]
    TooMany,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Refused {
    Refused::Invalid { field, problem: problem.into() }
}

/// A text as it stands in a hosts file or in a list: it must not break its row.
///
/// # Errors
/// When it is too long.
pub fn text(field: &'static str, given: &str) -> Result<String, Refused> {
    let text: String = given.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() > TEXT_MAX {
        return Err(invalid(field, format!("more than {TEXT_MAX} bytes")));
    }
    Ok(text)
}

/// A name as the route table and the hosts file write it.
///
/// # Errors
/// When it is no name.
pub fn name(given: &str) -> Result<String, Refused> {
    let name = given.strip_suffix('.').unwrap_or(given).to_ascii_lowercase();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    let top_is_word = name.rsplit('.').next().is_some_and(|top| !top.bytes().all(|b| b.is_ascii_digit()));
    let good = name.len() <= 253 && name.contains('.') && top_is_word && name.split('.').all(label);
    if good && !name.ends_with(".localhost") {
        return Ok(name);
    }
    let shown: String = given.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(invalid("name", format!("`{shown}` is not a full name, such as us.store.example")))
}

/// A text that must not be empty.
///
/// # Errors
/// When it is, or is too long.
pub fn required(field: &'static str, empty: &'static str, given: &str) -> Result<String, Refused> {
    let text = text(field, given)?;
    if text.is_empty() { Err(invalid(field, empty)) } else { Ok(text) }
}

/// The bare address of one machine.
///
/// # Errors
/// When it is none.
pub fn unicast(given: IpAddr) -> Result<IpAddr, Refused> {
    let address = given.to_canonical();
    match not_unicast(address) {
        Some(problem) => Err(invalid("address", format!("{address} {problem}"))),
        None => Ok(address),
    }
}

/// An address as people write it.
///
/// # Errors
/// When it is none.
pub fn address(given: &str) -> Result<IpAddr, Refused> {
    let wrong = || invalid("address", "use an IPv4 or IPv6 address, such as 203.0.113.10");
    given.trim().parse().map_err(|_| wrong())
}

/// A time that an override may last.
///
/// # Errors
/// When it is nothing or too much.
pub fn ttl(given: Duration) -> Result<Duration, Refused> {
    if given.is_zero() || given > TTL_MAX {
        let (seconds, hours) = (TTL_MAX.as_secs(), TTL_MAX.as_secs() / 3_600);
        return Err(invalid("ttl_s", format!("use 1 to {seconds}, {hours} hours at most")));
    }
    Ok(given)
}

/// What keeps an address from being that of one machine.
#[must_use]
pub fn not_unicast(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() || v4.octets()[0] == 0 => Some("is no machine's address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("is no machine's address"),
        IpAddr::V4(v4) if v4.is_multicast() => Some("is a group's address (multicast)"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("is a group's address (multicast)"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("is reserved or a broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("holds on one link only"),
        _ => None,
    }
}

/// Whether the table lets a name be pointed elsewhere. An endpoint's host stands for every service that may go there.
///
/// # Errors
/// Why not.
pub fn standing(table: &Table, name: &str) -> Result<(), Refused> {
    if table.disable_overrides {
        return Err(Refused::Disabled);
    }
    let is_it = |other: &str| other.eq_ignore_ascii_case(name);
    let activation = table.activation.as_ref().is_some_and(|activation| is_it(&activation.domain));
    if activation || table.protected.iter().any(|protected| is_it(protected)) {
        return Err(Refused::Protected(name.to_owned()));
    }
    let mut known = false;
    for (country, routes) in &table.countries {
        for (service, entry) in &routes.services {
            let residency = entry.residency.as_ref().unwrap_or(&routes.residency);
            let origins = residency.iter().filter_map(|origin| table.origins.get(origin));
            let mut hosts = origins.flat_map(|origin| origin.endpoints.iter().map(|end| end.host.as_str()));
            if !entry.domains.values().any(|domain| is_it(domain)) && !hosts.any(is_it) {
                continue;
            }
            known = true;
            if !entry.overridable {
                let (service, country) = (service.to_string(), country.to_string());
                return Err(Refused::NotOverridable { name: name.to_owned(), service, country });
            }
        }
    }
    if known { Ok(()) } else { Err(Refused::Unknown(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        serde_json::from_value(json!({
            "schema": 1, "environment": "test", "version": 1, "issued_at": "2026-01-02T00:00:00.000Z",
            "not_before": "2026-01-02T00:00:00.000Z", "expires_at": "2999-01-01T00:00:00.000Z",
            "origins": {
                "a": { "endpoints": [{ "host": "a.store.example" }] },
                "b": { "endpoints": [{ "host": "b.store.example" }] },
                "idle": { "endpoints": [{ "host": "idle.store.example" }] } },
            "activation": { "domain": "activate.store.example" },
            "protected": ["Control.store.example"],
            "countries": { "US": { "residency": ["a", "b"], "services": {
                "orders": { "domains": { "default": "us.store.example", "tea": "us-tea.store.example" }, "overridable": true },
                "payment": { "domains": { "default": "pay.store.example" }, "residency": ["b"] } } } }
        }))
        .unwrap()
    }

    #[test]
    fn only_names_of_the_table_that_nothing_protects_are_pointed_elsewhere() {
        let mut table = table();
        for name in ["us.store.example", "us-tea.store.example", "a.store.example"] {
            assert_eq!(standing(&table, name), Ok(()), "{name}");
        }
        for name in ["activate.store.example", "control.store.example"] {
            assert_eq!(standing(&table, name), Err(Refused::Protected(name.into())));
        }
        for name in ["store.example", "x.us.store.example", "idle.store.example"] {
            assert_eq!(standing(&table, name), Err(Refused::Unknown(name.into())));
        }
        // Payment goes to `b` and may not be moved, so neither may its host.
        for name in ["pay.store.example", "b.store.example"] {
            assert!(matches!(standing(&table, name), Err(Refused::NotOverridable { .. })), "{name}");
        }
        table.disable_overrides = true;
        assert_eq!(standing(&table, "us.store.example"), Err(Refused::Disabled));
    }
}
