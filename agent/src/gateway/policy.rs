//! What is handed on, what is kept, and what an answer means. Pure.

use super::Seen;
use http::{HeaderMap, HeaderName, StatusCode, header};
use samovar_wire::encoding::{hex, sha256};

/// Header in which an origin says who it is.
const ORIGIN_HEADER: &str = "samovar-origin";
/// Headers that concern one connection only (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What a till says to us and to nobody else: secrets, what a browser tells of its page, and the names that only the
/// agent gives a request.
const OURS: &[&str] = &[
    "host",
    "cookie",
    "authorization",
    "origin",
    "referer",
    "expect",
    "udl",
    "forwarded",
    "via",
    "x-real-ip",
];
/// Beginnings of such names.
const OURS_BY_PREFIX: &[&str] = &["samovar-", "sec-", "x-forwarded-", "proxy-"];
/// What an answer may vary by and still be kept: the first two are part of what it is kept under, the others are the
/// same in each request.
const VARIES_KNOWN: &[&str] = &["accept", "accept-language", "accept-encoding", "origin", "cookie", "udl"];

/// Headers of a till's request, as the origin gets them. `whole` is a request whose answer may be kept: it asks for the
/// plain answer, and the conditions are the gateway's own.
pub(super) fn to_origin(till: &HeaderMap, whole: bool) -> HeaderMap {
    let mut headers = without_hop_by_hop(till);
    let names: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in names {
        let ours = OURS.contains(&name.as_str())
            || OURS_BY_PREFIX.iter().any(|prefix| name.as_str().starts_with(prefix));
        let conditional = name.as_str().starts_with("if-") || name == header::ACCEPT_ENCODING;
        if ours || (whole && conditional) {
            headers.remove(name);
        }
    }
    headers
}

/// Headers of an origin's answer, as the till gets them.
pub(super) fn to_till(origin: &HeaderMap) -> HeaderMap {
    let mut headers = without_hop_by_hop(origin);
    headers.remove(header::SET_COOKIE);
    headers
}

fn without_hop_by_hop(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = words(headers, &header::CONNECTION).collect();
    let mut left = headers.clone();
    for name in HOP_BY_HOP.iter().copied().chain(named.iter().map(String::as_str)) {
        left.remove(name);
    }
    left
}

/// The words of a header that is a list, in lower case.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> + 'a {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|word| word.trim().to_ascii_lowercase())
}

/// What an answer is kept under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) service: String,
    pub(super) udl: String,
    /// Path and query.
    pub(super) target: String,
    /// `Accept` of the request.
    pub(super) accept: String,
    /// `Accept-Language` of the request.
    pub(super) language: String,
}

/// By which headers of the request an answer differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vary {
    accept: bool,
    language: bool,
}

impl Vary {
    /// Every kind, the most particular first.
    pub(super) const ALL: [Self; 4] = [
        Self { accept: true, language: true },
        Self { accept: false, language: true },
        Self { accept: true, language: false },
        Self { accept: false, language: false },
    ];
}

impl Key {
    /// The name for all that varies.
    pub(super) fn primary(&self) -> String {
        self.name(Vary::ALL[3])
    }

    /// The name of an answer that varies so.
    pub(super) fn name(&self, vary: Vary) -> String {
        let varied = |by: bool, value: &'_ str| if by { format!("={value}") } else { String::new() };
        let (accept, language) = (varied(vary.accept, &self.accept), varied(vary.language, &self.language));
        let parts = [&self.service, &self.udl, &self.target, &accept, &language].map(String::as_str);
        // No part holds a NUL: two of them are names, three came in a request's head.
        hex(&sha256(parts.join("\0").as_bytes()))
    }
}

/// Whether an answer may be kept, and by what it varies.
pub(super) fn may_keep(status: StatusCode, headers: &HeaderMap) -> Option<Vary> {
    let forbidden = words(headers, &header::CACHE_CONTROL)
        .any(|word| matches!(word.split('=').next(), Some("no-store" | "private")));
    let encoded =
        headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding.as_bytes() != b"identity");
    let varies: Vec<String> = words(headers, &header::VARY).collect();
    if status != StatusCode::OK
        || forbidden
        || encoded
        || varies.iter().any(|name| !name.is_empty() && !VARIES_KNOWN.contains(&name.as_str()))
    {
        return None;
    }
    let by = |name: &str| varies.iter().any(|varied| varied == name);
    Some(Vary { accept: by("accept"), language: by("accept-language") })
}

/// Whether the till has this version of an answer already (`If-None-Match`, compared weakly).
pub(super) fn is_known(till: &HeaderMap, etag: Option<&str>) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let Some(etag) = etag.map(bare) else { return false };
    let values = till.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|tag| tag.trim() == "*" || bare(tag) == etag)
}

/// What the head of an answer says of the origin. A 500 is an answer: one path that fails must not move the store.
pub(super) fn judge(status: StatusCode, headers: &HeaderMap, origin: &str, domain: &str) -> Seen {
    let named = headers.get(ORIGIN_HEADER).map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    if let Some(name) = named.filter(|name| name != origin) {
        let name: String = name.chars().take(64).collect();
        return Seen::NotTheOrigin(format!("`{name}` answered, expected `{origin}`"));
    }
    match status.as_u16() {
        502..=504 => Seen::Failed(format!("HTTP {}", status.as_u16())),
        511 => Seen::NotTheOrigin("HTTP 511: the network wants somebody to sign in".into()),
        301..=303 | 307 | 308 if leads_away(headers, domain) => {
            Seen::NotTheOrigin(format!("HTTP {} to another host", status.as_u16()))
        }
        _ => Seen::Answered,
    }
}

/// Whether a redirect names another host, as a portal's does.
fn leads_away(headers: &HeaderMap, domain: &str) -> bool {
    let place = headers.get(header::LOCATION).and_then(|place| place.to_str().ok());
    let Some(place) = place.and_then(|place| place.parse::<http::Uri>().ok()) else { return false };
    place.host().is_some_and(|host| !host.eq_ignore_ascii_case(domain))
}

/// Calls with which a device hands over its orders: they belong to the ledger alone, or it would no longer be true that
/// an order arrives once.
pub(super) fn is_the_ledgers(path: &str) -> bool {
    let plain = decoded(path);
    ["/v1/orders:batch", "/v1/orders:reconcile"]
        .iter()
        .any(|own| plain.strip_suffix(b"/").unwrap_or(&plain).ends_with(own.as_bytes()))
}

/// A path with its percent signs read, as the origin reads it.
fn decoded(path: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = path.as_bytes();
    let mut plain = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn secrets_and_headers_of_the_connection_stay_here_and_the_rest_goes_on() {
        let till = map(&[
            ("authorization", "Bearer till"),
            ("cookie", "a=b"),
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("samovar-device", "SOMEBODY-ELSE"),
            ("udl", "JP"),
            ("x-forwarded-for", "10.0.0.1"),
            ("accept-encoding", "gzip"),
            ("if-none-match", "\"1\""),
            ("accept", "text/html"),
            ("idempotency-key", "k"),
        ]);
        assert_eq!(
            names(&to_origin(&till, false)),
            ["accept", "accept-encoding", "idempotency-key", "if-none-match"]
        );
        assert_eq!(names(&to_origin(&till, true)), ["accept", "idempotency-key"]);
        let origin = map(&[("set-cookie", "s=1"), ("transfer-encoding", "chunked"), ("etag", "\"1\"")]);
        assert_eq!(names(&to_till(&origin)), ["etag"]);
    }

    #[test]
    fn only_what_may_be_kept_is_kept() {
        let kept =
            |status: u16, headers| may_keep(StatusCode::from_u16(status).unwrap(), &map(headers)).is_some();
        assert!(kept(200, &[]) && kept(200, &[("cache-control", "max-age=0, must-revalidate")]));
        assert!(kept(200, &[("vary", "Accept, accept-language")]));
        for headers in [
            &[("cache-control", "public, No-Store")][..],
            &[("cache-control", "private=\"x\"")],
            &[("vary", "*")],
            &[("vary", "x-till")],
            &[("content-encoding", "gzip")],
        ] {
            assert!(!kept(200, headers), "{headers:?}");
        }
        for status in [201, 203, 204, 206, 301, 404, 500] {
            assert!(!kept(status, &[]), "{status}");
        }
    }

    #[test]
    fn an_answer_is_kept_apart_by_what_it_varies_by_and_by_nothing_else() {
        let key = |language: &str| Key {
            service: "menu".into(),
            udl: "US".into(),
            target: "/m?a=1".into(),
            accept: "*/*".into(),
            language: language.into(),
        };
        let (plain, varied) = (Vary::ALL[3], may_keep(StatusCode::OK, &map(&[("vary", "Accept-Language")])));
        assert_eq!(key("en").name(plain), key("zh").name(plain));
        assert_ne!(key("en").name(varied.unwrap()), key("zh").name(varied.unwrap()));
        assert_ne!(key("en").name(plain), Key { udl: "JP".into(), ..key("en") }.name(plain));
    }

    #[test]
    fn a_version_is_known_by_its_tag_weak_or_strong() {
        let known = |asked: &'static str, tag| is_known(&map(&[("if-none-match", asked)]), tag);
        assert!(known("\"a\", W/\"b\"", Some("\"b\"")) && known("*", Some("\"x\"")));
        assert!(known("\"b\"", Some("W/\"b\"")) && !known("\"a\"", Some("\"b\"")) && !known("*", None));
    }

    #[test]
    fn failures_of_the_origin_and_strangers_are_told_from_answers() {
        let judged = |status: u16, headers| {
            judge(StatusCode::from_u16(status).unwrap(), &map(headers), "apac", "jp.store.example")
        };
        for status in [200, 304, 404, 429, 500, 501] {
            assert_eq!(judged(status, &[]), Seen::Answered, "{status}");
        }
        assert_eq!(judged(302, &[("location", "/elsewhere")]), Seen::Answered);
        assert_eq!(judged(302, &[("location", "https://JP.store.example/x")]), Seen::Answered);
        assert!(matches!(judged(302, &[("location", "http://portal.example/")]), Seen::NotTheOrigin(_)));
        assert!(matches!(judged(200, &[("samovar-origin", "us-west")]), Seen::NotTheOrigin(_)));
        assert!(matches!(judged(511, &[]), Seen::NotTheOrigin(_)));
        for status in [502, 503, 504] {
            assert!(matches!(judged(status, &[("samovar-origin", "apac")]), Seen::Failed(_)), "{status}");
        }
    }

    #[test]
    fn the_ledgers_own_calls_are_known_however_they_are_written() {
        assert!(is_the_ledgers("/v1/orders:batch") && is_the_ledgers("/v1/orders%3Abatch"));
        assert!(is_the_ledgers("/v1/%6Frders%3abatch/") && !is_the_ledgers("/v1/orders%3"));
        assert!(is_the_ledgers("/api/v1/orders:reconcile") && !is_the_ledgers("/v1/orders"));
    }
}
