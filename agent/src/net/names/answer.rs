//! The words of a look-up: what a source replies, and who gave the answer in the end. Pure.

use serde::{Serialize, Serializer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Who gave the addresses of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The host is an address, such as that of a host override.
    Literal,
    /// The system's resolver.
    System,
    /// A DNS server that was asked directly.
    Direct,
    /// A DNS server that was asked over HTTPS.
    Doh,
    /// Nobody now; the addresses have worked before.
    Stale,
    /// Nobody now; the route table lists the addresses.
    Table,
    /// Somebody whose word alone does not count, and nobody else.
    Unconfirmed,
}

impl By {
    /// As documents write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Literal => "literal",
            Self::System => "system",
            Self::Direct => "direct",
            Self::Doh => "doh",
            Self::Stale => "stale",
            Self::Table => "table",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

impl Serialize for By {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Addresses of a name, as one source gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Never empty.
    pub(super) addresses: Vec<IpAddr>,
    /// The shortest of all records that led here; a source that does not know says `None`.
    pub(super) ttl: Option<Duration>,
    /// The names that the name stands for, in order; the last one has the addresses.
    pub(super) chain: Vec<String>,
}

/// What one source replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// Here they are.
    Found(Answer),
    /// There is no such name.
    NoSuchName,
    /// The name has no address.
    NoAddress,
    /// The source is of no use now.
    Failed(String),
}

/// One word from two replies of one source, for the two kinds of addresses.
pub(super) fn combine(first: Reply, second: Reply) -> Reply {
    match (first, second) {
        (Reply::Found(mut first), Reply::Found(second)) => {
            let more = second.addresses.into_iter().filter(|address| !first.addresses.contains(address));
            first.addresses.extend(more.collect::<Vec<_>>());
            first.ttl = first.ttl.into_iter().chain(second.ttl).min();
            Reply::Found(first)
        }
        (found @ Reply::Found(_), _) | (_, found @ Reply::Found(_)) => found,
        (Reply::NoSuchName, _) | (_, Reply::NoSuchName) => Reply::NoSuchName,
        (failed @ Reply::Failed(_), _) | (_, failed @ Reply::Failed(_)) => failed,
        (Reply::NoAddress, Reply::NoAddress) => Reply::NoAddress,
    }
}

/// Whether anything at all can be behind an address.
pub(super) fn is_dialable(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    }
}

/// Whether an address means something only inside somebody's own network: what a portal or a hijacked router answers.
pub(super) fn is_private(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => is_private_v6(v6),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let carrier_grade = first == 100 && second & 0b1100_0000 == 64;
    first == 0 || carrier_grade || address.is_private() || address.is_loopback() || address.is_link_local()
}

const fn is_private_v6(address: Ipv6Addr) -> bool {
    let first = address.segments()[0];
    address.is_loopback() || first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_somebodys_own_network_are_told_from_public_ones() {
        let private = [
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ];
        for address in private {
            assert!(is_private(&address.parse().unwrap()), "{address}");
        }
        for address in ["203.0.113.10", "100.128.0.1", "172.32.0.1", "2001:db8::1", "::ffff:203.0.113.1"] {
            assert!(!is_private(&address.parse().unwrap()), "{address}");
        }
        for address in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1", "::ffff:0.0.0.0"] {
            assert!(!is_dialable(&address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn two_replies_of_one_source_become_one_word() {
        let found = |address: &str, ttl: u64| {
            Reply::Found(Answer {
                addresses: vec![address.parse().unwrap()],
                ttl: Some(Duration::from_secs(ttl)),
                chain: Vec::new(),
            })
        };
        let Reply::Found(both) = combine(found("203.0.113.1", 60), found("2001:db8::1", 20)) else {
            panic!()
        };
        assert_eq!((both.addresses.len(), both.ttl), (2, Some(Duration::from_secs(20))));
        assert_eq!(combine(Reply::Failed("x".into()), found("203.0.113.1", 60)), found("203.0.113.1", 60));
        assert_eq!(combine(Reply::NoAddress, Reply::NoSuchName), Reply::NoSuchName);
        assert_eq!(combine(Reply::NoAddress, Reply::Failed("x".into())), Reply::Failed("x".into()));
    }
}
