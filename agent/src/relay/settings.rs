//! What the relay is told at its start, and the broker's address.

use samovar_wire::DeviceId;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a broker is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TCP; for standalone sites that choose so.
    Mqtt,
    /// TLS.
    Mqtts,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }

    /// Whether a TLS configuration is needed.
    #[must_use]
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }
}

/// Address of a broker: `mqtt://`, `mqtts://`, `ws://` or `wss://`, a host, and a port if it is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// How it is reached.
    pub scheme: Scheme,
    /// Name or address, an IPv6 address without its brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path of a WebSocket; empty otherwise.
    pub path: String,
}

/// A text that is not the address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the address of a broker: {rule}")]
pub struct InvalidBrokerUrl {
    text: String,
    rule: &'static str,
}

impl BrokerUrl {
    /// `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.authority(), self.path)
    }
}

impl FromStr for BrokerUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(text: &str) -> Result<Self, InvalidBrokerUrl> {
        let invalid = |rule| InvalidBrokerUrl { text: text.to_owned(), rule };
        let uri: http::Uri =
            text.parse().map_err(|_| invalid("write it like mqtts://broker.example:8883"))?;
        let scheme = match uri.scheme_str() {
            Some("mqtt") => Scheme::Mqtt,
            Some("mqtts") => Scheme::Mqtts,
            Some("ws") => Scheme::Ws,
            Some("wss") => Scheme::Wss,
            _ => return Err(invalid("it begins with mqtt://, mqtts://, ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("user name and password have settings of their own"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") | None => scheme.default_port(),
            Some(_) => {
                authority.port_u16().filter(|port| *port > 0).ok_or_else(|| invalid("its port is not one"))?
            }
        };
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let path = match (scheme, path) {
            (Scheme::Ws | Scheme::Wss, "" | "/") => "/mqtt",
            (Scheme::Ws | Scheme::Wss, path) => path,
            (_, "" | "/") => "",
            _ => return Err(invalid("only ws:// and wss:// have a path")),
        };
        Ok(Self { scheme, host, port, path: path.to_owned() })
    }
}

/// User name and password for the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password; never shown.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How often things are said.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Least time between two whole states.
    pub state: Duration,
    /// A state that did not change is confirmed this often.
    pub beat: Duration,
    /// Metrics are sent this often.
    pub metrics: Duration,
    /// Events that nobody acknowledged are sent again after this long in one connection; doubles up to
    /// [`Self::resend_max`].
    pub resend: Duration,
    /// Longest time between two repeats of unacknowledged events.
    pub resend_max: Duration,
    /// A subscription that was not confirmed is asked for again after this long.
    pub subscribe: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            state: Duration::from_secs(1),
            beat: Duration::from_secs(60),
            metrics: Duration::from_secs(60),
            resend: Duration::from_secs(300),
            resend_max: Duration::from_secs(4 * 3600),
            subscribe: Duration::from_secs(60),
        }
    }
}

/// What the relay is told at its start.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// The broker.
    pub url: BrokerUrl,
    /// Environment of the route table; a level of every topic.
    pub environment: String,
    /// The device; also the MQTT client ID.
    pub device: DeviceId,
    /// Grows at each start of the agent.
    pub epoch: u64,
    /// User name and password, where the broker asks for them.
    pub login: Option<Login>,
    /// Longest silence on a connection; at least 5 s.
    pub keep_alive: Duration,
    /// Limit for name look-up, TCP, TLS and the broker's first answer together.
    pub connect_timeout: Duration,
    /// Shortest wait before a new connection.
    pub reconnect_min: Duration,
    /// Longest wait before a new connection.
    pub reconnect_max: Duration,
    /// How often things are said.
    pub pace: Pace,
}

impl RelaySettings {
    /// The usual settings for one broker and device.
    #[must_use]
    pub fn new(url: BrokerUrl, environment: impl Into<String>, device: DeviceId, epoch: u64) -> Self {
        Self {
            url,
            environment: environment.into(),
            device,
            epoch,
            login: None,
            keep_alive: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(20),
            reconnect_min: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(60),
            pace: Pace::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_their_usual_ports() {
        for (text, full) in [
            ("mqtt://127.0.0.1", "mqtt://127.0.0.1:1883"),
            ("mqtts://broker.example/", "mqtts://broker.example:8883"),
            ("mqtts://[::1]:9000", "mqtts://[::1]:9000"),
            ("ws://broker.example:8080", "ws://broker.example:8080/mqtt"),
            ("wss://broker.example/a/b?c=d", "wss://broker.example:443/a/b?c=d"),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_a_rule() {
        for bad in [
            "",
            "127.0.0.1:1883",
            "http://x",
            "mqtt://",
            "mqtt://u:p@x",
            "mqtt://x/y",
            "mqtt://x:99999",
            "mqtt://x:0",
        ] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let login = Login { username: "u".into(), password: "secret".into() };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
