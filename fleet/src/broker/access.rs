//! Who may publish and subscribe what. Pure, and deny is the answer to every question not answered here.
//!
//! A device owns `samovar/v1/{env}/{device}/up/…` for publishing and one level below `…/dn/` for subscribing. The fleet
//! owns everything below `samovar/v1/{env}/`. A client ID with a dot belongs to the fleet and can never be a device's,
//! so that no certificate, whatever its name, can take over the fleet's session and what is queued in it.

/// The start of every client ID of the fleet itself.
pub const FLEET_CLIENT_PREFIX: &str = "fleet.";

/// Who is at the other end of a connection, established by certificate or password before any topic is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer<'a> {
    /// A device, by the common name of its certificate.
    Device(&'a str),
    /// The fleet server.
    Fleet,
}

/// The rules of one environment.
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// `samovar/v1/{env}/`
    root: String,
}

impl Access {
    pub(super) fn new(environment: &str) -> Self {
        Self { root: format!("samovar/v1/{environment}/") }
    }

    /// May this peer publish (or leave as its will) a message on `topic`?
    pub(super) fn may_publish(&self, peer: Peer<'_>, topic: &str) -> bool {
        if topic.contains(['+', '#', '\0']) {
            return false;
        }
        let Some(rest) = topic.strip_prefix(&self.root) else { return false };
        match peer {
            Peer::Fleet => !rest.is_empty(),
            Peer::Device(name) => below(rest, name, "up").is_some_and(|channel| !channel.is_empty()),
        }
    }

    /// May this peer subscribe `filter`, where `shared` says that it came as `$share/{group}/{filter}`?
    pub(super) fn may_subscribe(&self, peer: Peer<'_>, filter: &str, shared: bool) -> bool {
        let Some(rest) = filter.strip_prefix(&self.root) else { return false };
        match peer {
            Peer::Fleet => !rest.is_empty(),
            Peer::Device(name) => {
                !shared
                    && below(rest, name, "dn").is_some_and(|channel| {
                        channel == "+" || (!channel.is_empty() && !channel.contains(['/', '+', '#']))
                    })
            }
        }
    }
}

/// A device's name as it may stand in a topic: `[A-Za-z0-9_-]{1,64}`.
pub(super) fn is_device_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What follows `{device}/{direction}/` in `rest`.
fn below<'a>(rest: &'a str, device: &str, direction: &str) -> Option<&'a str> {
    rest.strip_prefix(device)?.strip_prefix('/')?.strip_prefix(direction)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const POS: Peer<'static> = Peer::Device("POS-1");

    #[test]
    fn a_device_publishes_only_below_its_own_up() {
        let access = Access::new("prod");
        for topic in ["samovar/v1/prod/POS-1/up/online", "samovar/v1/prod/POS-1/up/events/audit"] {
            assert!(access.may_publish(POS, topic), "{topic}");
        }
        for topic in [
            "samovar/v1/prod/POS-2/up/online",
            "samovar/v1/prod/POS-10/up/online",
            "samovar/v1/prod/POS-1/dn/ack",
            "samovar/v1/prod/POS-1/up/",
            "samovar/v1/prod/POS-1/up",
            "samovar/v1/test/POS-1/up/online",
            "samovar/v1/prod/POS-1/up/#",
            "samovar/v1/prod/+/up/online",
            "$SYS/x",
            "/samovar/v1/prod/POS-1/up/online",
            "",
        ] {
            assert!(!access.may_publish(POS, topic), "{topic}");
        }
    }

    #[test]
    fn a_device_subscribes_only_one_level_below_its_own_dn() {
        let access = Access::new("prod");
        for filter in ["samovar/v1/prod/POS-1/dn/+", "samovar/v1/prod/POS-1/dn/ack"] {
            assert!(access.may_subscribe(POS, filter, false), "{filter}");
            assert!(!access.may_subscribe(POS, filter, true), "shared {filter}");
        }
        for filter in [
            "#",
            "+/+/+/+/+/+",
            "samovar/v1/prod/+/dn/+",
            "samovar/v1/prod/POS-2/dn/+",
            "samovar/v1/prod/POS-1/dn/#",
            "samovar/v1/prod/POS-1/dn/+/x",
            "samovar/v1/prod/POS-1/up/+",
            "samovar/v1/prod/POS-1/#",
            "samovar/v1/+/POS-1/dn/+",
        ] {
            assert!(!access.may_subscribe(POS, filter, false), "{filter}");
        }
    }

    #[test]
    fn the_fleet_has_its_environment_and_no_other() {
        let access = Access::new("prod");
        assert!(access.may_subscribe(Peer::Fleet, "samovar/v1/prod/+/up/+", true));
        assert!(access.may_subscribe(Peer::Fleet, "samovar/v1/prod/#", false));
        assert!(access.may_publish(Peer::Fleet, "samovar/v1/prod/POS-1/dn/ack"));
        assert!(!access.may_publish(Peer::Fleet, "samovar/v1/test/POS-1/dn/ack"));
        assert!(!access.may_subscribe(Peer::Fleet, "#", false));
        assert!(!access.may_subscribe(Peer::Fleet, "samovar/v1/+/+/up/+", true));
    }

    #[test]
    fn no_device_name_can_be_a_client_id_of_the_fleet() {
        assert!(is_device_name("POS-US-0001"));
        for name in ["", "fleet.ingest", "a/b", "a b", "+", "#", "é", &"x".repeat(65)] {
            assert!(!is_device_name(name), "{name}");
        }
        assert!(!is_device_name(FLEET_CLIENT_PREFIX));
    }
}
