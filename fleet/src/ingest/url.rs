//! Where the broker is: `mqtt://` or `mqtts://`, user and password inside or beside.

use std::fmt;

/// A broker's address and how to sign in.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// User name and password, if the broker asks for them.
    pub login: Option<(String, String)>,
}

/// A text that is not a broker's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a broker's URL ({0}): write it like mqtts://user:password@broker.example:8883")]
pub struct InvalidBrokerUrl(&'static str);

/// Without the password.
impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl BrokerUrl {
    /// The same broker with this user name and password, unless the URL itself had them or `username` is empty.
    #[must_use]
    pub fn or_login(mut self, username: &str, password: &str) -> Self {
        if self.login.is_none() && !username.is_empty() {
            self.login = Some((username.to_owned(), password.to_owned()));
        }
        self
    }
}

impl std::str::FromStr for BrokerUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(text: &str) -> Result<Self, InvalidBrokerUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidBrokerUrl("no scheme"))?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(InvalidBrokerUrl("the scheme is neither mqtt nor mqtts")),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(read_login(login)?), place),
            None => (None, rest),
        };
        let (host, port) = read_place(place, if tls { 8883 } else { 1883 })?;
        Ok(Self { host, port, tls, login })
    }
}

fn read_login(text: &str) -> Result<(String, String), InvalidBrokerUrl> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok((percent_decoded(user)?, percent_decoded(password)?))
}

fn read_place(text: &str, default_port: u16) -> Result<(String, u16), InvalidBrokerUrl> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(InvalidBrokerUrl("no ] after the address"))?;
        (host, after.strip_prefix(':'))
    } else {
        text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    if host.is_empty() {
        return Err(InvalidBrokerUrl("no host"));
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| InvalidBrokerUrl("the port is not a number"))?,
        None => default_port,
    };
    Ok((host.to_owned(), port))
}

fn percent_decoded(text: &str) -> Result<String, InvalidBrokerUrl> {
    let broken = InvalidBrokerUrl("a % in user or password is not followed by two hexadecimal digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(|| broken.clone());
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| broken.clone())?);
    }
    String::from_utf8(bytes).map_err(|_| InvalidBrokerUrl("user or password is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> BrokerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_url_says_where_the_broker_is_and_who_signs_in() {
        let url = read("mqtts://fleet:p%40ss%3a@broker.example");
        assert_eq!((url.host.as_str(), url.port, url.tls), ("broker.example", 8883, true));
        assert_eq!(url.login, Some(("fleet".into(), "p@ss:".into())));
        assert_eq!(read("mqtt://127.0.0.1:2883/").port, 2883);
        assert_eq!(read("mqtt://[::1]:1884").host, "::1");
        assert_eq!(read("mqtt://h").or_login("u", "p").login, Some(("u".into(), "p".into())));
        assert_eq!(read("mqtt://a:b@h").or_login("u", "p").login, Some(("a".into(), "b".into())));
    }

    #[test]
    fn the_password_is_never_shown() {
        assert_eq!(format!("{0} {0:?}", read("mqtt://u:secret@h:1")), "mqtt://h:1 mqtt://h:1");
    }

    #[test]
    fn what_is_not_a_brokers_url_is_refused() {
        for bad in ["", "h:1883", "http://h", "mqtt://", "mqtt://h:x", "mqtt://[::1", "mqtt://a%2@h"] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }
}
