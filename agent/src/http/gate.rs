//! What a request must look like before any handler sees it. Pure.
//!
//! A page in a browser on this device, or on the store's network, can send requests here as well as the till can. So
//! the name it asks for must be ours (else a foreign name was pointed at us), a request that a browser sends for
//! another site is refused, and a change must come as JSON, which no foreign form can send.

use super::Failure;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use std::net::IpAddr;

/// The rules for one listener.
#[derive(Clone)]
pub struct Gate {
    names: Vec<String>,
    token: String,
}

/// Who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// It showed the token of this device.
    pub trusted: bool,
}

impl Caller {
    /// For calls that change the device.
    ///
    /// # Errors
    /// 401 without the token.
    pub fn require_token(self) -> Result<(), Failure> {
        if self.trusted { Ok(()) } else { Err(unauthorized("this call needs the token of the device")) }
    }
}

fn unauthorized(detail: &str) -> Failure {
    Failure::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        format!("{detail}: send Authorization: Bearer with the content of local.token"),
    )
}

impl Gate {
    /// `names` are host names besides loopback; `token` is the bearer of this device.
    #[must_use]
    pub fn new(names: Vec<String>, token: String) -> Self {
        Self { names, token }
    }

    /// Decides on a request by its head.
    ///
    /// # Errors
    /// 421 for a foreign name, 403 for a foreign site, 401 without or with a wrong token where one is needed, 415 for
    /// a change that is not JSON.
    pub fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<Caller, Failure> {
        let host = self.check_host(uri, headers)?;
        check_site(headers, &host)?;
        let trusted = self.check_token(headers)?;
        if !trusted && !peer.to_canonical().is_loopback() {
            return Err(unauthorized("calls from other machines need the token of the device"));
        }
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        if !reads && !is_json(headers) {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "send Content-Type: application/json",
            ));
        }
        let encoded =
            headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding.as_bytes() != b"identity");
        if encoded {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-encoding",
                "send the body as it is, without Content-Encoding",
            ));
        }
        Ok(Caller { trusted })
    }

    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<String, Failure> {
        let given = match uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => single(headers, &header::HOST),
        };
        let name = given.map(host_of).unwrap_or_default();
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let ours = literal.is_ok_and(|address| address.to_canonical().is_loopback())
            || name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name));
        if ours && !name.is_empty() {
            return Ok(given.unwrap_or_default().to_owned());
        }
        Err(Failure::new(
            StatusCode::MISDIRECTED_REQUEST,
            "misdirected",
            format!("`{name}` is not a name of this device: use a loopback name or one from local_api.names"),
        ))
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<bool, Failure> {
        if !headers.contains_key(header::AUTHORIZATION) {
            return Ok(false);
        }
        let sent = single(headers, &header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        match sent {
            Some((scheme, token))
                if scheme.eq_ignore_ascii_case("bearer") && same(token.trim(), &self.token) =>
            {
                Ok(true)
            }
            _ => Err(unauthorized("the token is not that of this device")),
        }
    }
}

/// A header that stands there once; twice is as bad as not at all.
fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

/// Browsers say for which site a request is sent; other programs do not, and need not.
fn check_site(headers: &HeaderMap, host: &str) -> Result<(), Failure> {
    let foreign_origin = headers.contains_key(header::ORIGIN)
        && single(headers, &header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, site)| site)
            != Some(host);
    let foreign_fetch = headers
        .get("sec-fetch-site")
        .is_some_and(|site| !["same-origin", "none"].iter().any(|own| site.as_bytes() == own.as_bytes()));
    if foreign_origin || foreign_fetch {
        let detail = "requests that a browser sends for another site are not served";
        return Err(Failure::new(StatusCode::FORBIDDEN, "cross-origin", detail));
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    single(headers, &header::CONTENT_TYPE)
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Compares without telling by its time how much was right.
fn same(sent: &str, token: &str) -> bool {
    let mut difference = sent.len() ^ token.len();
    for (a, b) in sent.bytes().zip(token.bytes()) {
        difference |= usize::from(a ^ b);
    }
    difference == 0 && !token.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn check(method: &Method, headers: &[(&str, &str)], peer: IpAddr) -> Result<Caller, u16> {
        let gate = Gate::new(vec!["till-1.store.example".into()], "secret".into());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        gate.check(method, &"/v1/orders".parse().unwrap(), &map, peer)
            .map_err(|failure| failure.problem().status)
    }

    fn get(headers: &[(&str, &str)]) -> Result<Caller, u16> {
        check(&Method::GET, headers, LOOPBACK)
    }

    #[test]
    fn only_our_own_names_are_served() {
        for host in
            ["127.0.0.1", "127.0.0.1:7780", "localhost:1", "LOCALHOST", "[::1]:7780", "Till-1.store.example"]
        {
            assert!(get(&[("host", host)]).is_ok(), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil", "", "[::2]"] {
            assert_eq!(get(&[("host", host)]), Err(421), "{host}");
        }
        assert_eq!(get(&[]), Err(421));
        assert_eq!(get(&[("host", "localhost"), ("host", "evil.example")]), Err(421));
    }

    #[test]
    fn a_request_for_another_site_is_refused() {
        let host = ("host", "localhost:7780");
        assert!(get(&[host, ("origin", "http://localhost:7780")]).is_ok());
        assert!(get(&[host, ("sec-fetch-site", "same-origin")]).is_ok());
        for foreign in ["http://evil.example", "null", "http://localhost:7781", "http://localhost:7780.evil"]
        {
            assert_eq!(get(&[host, ("origin", foreign)]), Err(403), "{foreign}");
        }
        assert_eq!(get(&[host, ("sec-fetch-site", "cross-site")]), Err(403));
    }

    #[test]
    fn a_change_must_be_json() {
        let host = ("host", "localhost");
        let post = |kind| check(&Method::POST, &[host, ("content-type", kind)], LOOPBACK);
        assert!(post("application/json; charset=utf-8").is_ok());
        assert_eq!(post("text/plain"), Err(415));
        assert_eq!(check(&Method::DELETE, &[host], LOOPBACK), Err(415));
    }

    #[test]
    fn the_token_is_needed_from_outside_and_never_half_right() {
        let host = ("host", "localhost");
        let outside = "192.0.2.7".parse().unwrap();
        assert_eq!(check(&Method::GET, &[host], outside), Err(401));
        assert!(check(&Method::GET, &[host, ("authorization", "Bearer secret")], outside).unwrap().trusted);
        assert!(!get(&[host]).unwrap().trusted);
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "Basic secret", "secret"] {
            assert_eq!(get(&[host, ("authorization", wrong)]), Err(401), "{wrong}");
        }
    }
}
