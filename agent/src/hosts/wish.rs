//! Pure: what may be asked for, and why it may not.

pub(super) use samovar_wire::hosts::{OVERRIDES_MAX, not_unicast};
pub use samovar_wire::hosts::{Refused, TTL_DEFAULT, TTL_MAX, standing};
use samovar_wire::hosts::{name, required, text, ttl, unicast};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

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

impl Wish {
    /// The wish in its exact form: the name in lower case without a last dot, texts trimmed, the address bare.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn checked(mut self) -> Result<Self, Refused> {
        self.name = name(&self.name)?;
        self.address = unicast(self.address)?;
        ttl(self.ttl)?;
        self.reason = required("reason", "say why", &self.reason)?;
        self.owner = required("owner", "say who", &self.owner)?;
        let ticket = self.ticket.as_deref().map(|ticket| text("ticket", ticket)).transpose()?;
        self.ticket = ticket.filter(|ticket| !ticket.is_empty());
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
