//! How DNS servers are written in the configuration and in the route table. Pure.

use serde::Deserialize;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

/// Where DNS servers listen.
pub(super) const DNS_PORT: u16 = 53;
/// Servers that a table or a configuration may name.
const SERVERS_MAX: usize = 4;

/// A DNS server that is asked over HTTPS, at a fixed address, so that no name is needed to find it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub(super) struct DohServer {
    /// Where it is.
    pub(super) address: IpAddr,
    /// What its certificate says.
    pub(super) name: String,
    /// Its port.
    #[serde(default = "https_port")]
    pub(super) port: u16,
    /// Where on the server.
    #[serde(default = "usual_path")]
    pub(super) path: String,
}

const fn https_port() -> u16 {
    443
}

fn usual_path() -> String {
    "/dns-query".to_owned()
}

impl DohServer {
    pub(super) fn url(&self) -> String {
        format!("https://{}:{}{}", self.name, self.port, self.path)
    }
}

/// Reads `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`.
#[must_use]
pub fn server(text: &str) -> Option<SocketAddr> {
    let alone = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT));
    text.parse().ok().or_else(alone)
}

/// The plain servers of a table; what this version cannot read is left out, for a later version may write more.
pub(super) fn plain(listed: &[Value]) -> Vec<SocketAddr> {
    listed.iter().filter_map(|value| server(value.as_str()?)).take(SERVERS_MAX).collect()
}

/// The HTTPS servers of a table: `{ "address", "name", "port"?, "path"? }`.
pub(super) fn doh(listed: &[Value]) -> Vec<DohServer> {
    let read = |value: &Value| {
        let server: DohServer = serde_json::from_value(value.clone()).ok()?;
        let usable = server.path.starts_with('/') && server.url().parse::<http::Uri>().is_ok();
        usable.then_some(server)
    };
    listed.iter().filter_map(read).take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_are_addresses_with_or_without_a_port() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1:53")),
            ("192.0.2.1:5353", Some("192.0.2.1:5353")),
            ("2001:db8::1", Some("[2001:db8::1]:53")),
            ("[2001:db8::1]:5353", Some("[2001:db8::1]:5353")),
            ("dns.example", None),
            ("", None),
        ] {
            assert_eq!(server(text).map(|server| server.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_a_table_says_and_nobody_understands_is_left_out() {
        assert_eq!(plain(&[json!("192.0.2.1"), json!(7), json!({ "x": 1 }), json!("name")]).len(), 1);
        let listed = [
            json!({ "address": "192.0.2.1", "name": "dns.example", "more": true }),
            json!({ "address": "192.0.2.1", "name": "dns.example", "port": 8443, "path": "/q" }),
            json!({ "address": "192.0.2.1", "name": "dns.example", "path": "q" }),
            json!({ "address": "192.0.2.1", "name": "not a name" }),
            json!({ "address": "dns.example", "name": "dns.example" }),
            json!("192.0.2.1"),
        ];
        let urls: Vec<_> = doh(&listed).iter().map(DohServer::url).collect();
        assert_eq!(urls, ["https://dns.example:443/dns-query", "https://dns.example:8443/q"]);
    }
}
