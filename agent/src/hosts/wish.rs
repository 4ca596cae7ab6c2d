//! Pure: what may be asked for, and why it may not.

use samovar_wire::route::Table;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// For how long, when nobody says.
pub const TTL_DEFAULT: Duration = Duration::from_secs(4 * 3_600);
/// For how long at most.
pub const TTL_MAX: Duration = Duration::from_secs(72 * 3_600);
/// How many at one time.
pub(super) const OVERRIDES_MAX: usize = 20;
/// Longest reason, owner and ticket, in bytes.
const TEXT_MAX: usize = 500;

/// Who keeps an override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Somebody at the device, or a command.
    Local,
    /// The desired state of the fleet, under this id: it goes when the fleet no longer lists it.
    Fleet(String),
}

/// An override that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The exact name: a domain or an endpoint's host of the route table.
    pub name: String,
    /// Where it shall point.
    pub address: IpAddr,
    /// Who wants it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// The ticket, if there is one.
    pub ticket: Option<String>,
    /// For how long.
    pub ttl: Duration,
    /// Also when the new address does not prove that it is the name, or a line of the hosts file is in the way.
    pub force: bool,
    /// Who keeps it.
    pub source: Source,
}

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

impl Wish {
    /// The wish in its exact form: the name in lower case without a last dot, texts trimmed, the address bare.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn checked(mut self) -> Result<Self, Refused> {
        self.name = name(&self.name)?;
        self.address = self.address.to_canonical();
        if let Some(problem) = not_unicast(self.address) {
            return Err(invalid("address", format!("{} {problem}", self.address)));
        }
        if self.ttl.is_zero() || self.ttl > TTL_MAX {
            return Err(invalid(
                "ttl_s",
                format!("use 1 to {}, {} hours at most", TTL_MAX.as_secs(), TTL_MAX.as_secs() / 3_600),
            ));
        }
        self.reason = text("reason", &self.reason)?;
        if self.reason.is_empty() {
            return Err(invalid("reason", "say why"));
        }
        self.owner = text("owner", &self.owner)?;
        if self.owner.is_empty() {
            return Err(invalid("owner", "say who"));
        }
        let ticket = self.ticket.as_deref().map(|ticket| text("ticket", ticket)).transpose()?;
        self.ticket = ticket.filter(|ticket| !ticket.is_empty());
        Ok(self)
    }
}

/// What stands in a hosts file or in a list must not break its row.
fn text(field: &'static str, given: &str) -> Result<String, Refused> {
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
pub(super) fn name(given: &str) -> Result<String, Refused> {
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

/// What keeps an address from being that of one machine.
pub(super) fn not_unicast(address: IpAddr) -> Option<&'static str> {
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

    fn wish() -> Wish {
        Wish {
            name: "US.Store.Example.".into(),
            address: "203.0.113.10".parse().unwrap(),
            owner: "lin".into(),
            reason: " point\ntest ".into(),
            ticket: Some(" ".into()),
            ttl: TTL_DEFAULT,
            force: false,
            source: Source::Local,
        }
    }

    fn field(change: impl FnOnce(&mut Wish)) -> &'static str {
        let mut wish = wish();
        change(&mut wish);
        match wish.checked() {
            Err(Refused::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wish_is_brought_into_its_exact_form() {
        let mut given = wish();
        given.address = "::ffff:203.0.113.10".parse().unwrap();
        let checked = given.checked().unwrap();
        assert_eq!((checked.name.as_str(), checked.reason.as_str()), ("us.store.example", "point test"));
        assert_eq!((checked.ticket, checked.address), (None, "203.0.113.10".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for name in [
            "",
            "localhost",
            "a.localhost",
            "10.0.0.1",
            "::1",
            "a..b",
            "-a.b",
            "a_b.c d",
            "x.example\n1.1.1.1 y",
        ] {
            assert_eq!(field(|wish| wish.name = name.into()), "name", "{name}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "ff02::1",
            "fe80::1",
            "::ffff:224.0.0.1",
        ] {
            assert_eq!(field(|wish| wish.address = address.parse().unwrap()), "address", "{address}");
        }
        assert_eq!(field(|wish| wish.ttl = Duration::ZERO), "ttl_s");
        assert_eq!(field(|wish| wish.ttl = TTL_MAX + Duration::from_secs(1)), "ttl_s");
        assert_eq!(field(|wish| wish.reason = " ".into()), "reason");
        assert_eq!(field(|wish| wish.reason = "x".repeat(501)), "reason");
        assert_eq!(field(|wish| wish.owner = String::new()), "owner");
    }

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
