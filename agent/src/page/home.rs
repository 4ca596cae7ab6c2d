//! The page at `/`: how the device is doing, for the people in the store and the technician who stands in it.
//!
//! Server-rendered, in Chinese or English by the browser's language, without a script; it looks again every five
//! seconds. It shows and changes nothing. Whatever comes from outside is escaped on its way into the page.

use super::api::Api;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use samovar_wire::Timestamp;
use samovar_wire::conditions::{Severity, Words};
use samovar_wire::status::{ActiveCondition, DeviceState, Line};
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write;

/// Nothing but our own style sheet may be loaded, and nobody may frame the page.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "\
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}\
body{max-width:44rem;margin:0 auto;padding:1rem}\
h1{font-size:1.4rem;margin:.5rem 0}\
.word{padding:1rem;border-radius:.5rem;border-left:.5rem solid #2a7;background:#2a72}\
.word.warning{border-color:#d90;background:#d902}.word.critical{border-color:#c33;background:#c332}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem}dt{opacity:.75}dd{margin:0;overflow-wrap:anywhere}\
li{margin:.5rem 0}small{opacity:.75}";

macro_rules! words {
    ($($name:ident = $en:literal, $zh:literal;)*) => {
        $(const $name: Words = Words { en: $en, zh: $zh };)*
        #[cfg(test)]
        const ALL: &[Words] = &[$($name),*];
    };
}

words! {
    ALL_WELL = "All is well.", "一切正常。";
    DEVICE = "Device", "设备";
    NOT_ACTIVATED = "not activated", "未激活";
    STORE = "Store", "门店";
    LINE = "Internet line", "门店网络";
    LINE_UP = "up", "正常";
    LINE_DOWN = "down", "中断";
    LINE_UNKNOWN = "not known yet", "尚不清楚";
    ORIGIN = "Origin", "源站";
    NONE = "none", "无";
    HEAD_OFFICE = "Head office", "总部";
    CONNECTED = "connected", "已连接";
    NOT_CONNECTED = "not connected", "未连接";
    WAITING = "Orders waiting", "等待发送的订单";
    SINCE = "since", "自";
    QUARANTINED = "Orders refused", "被拒绝的订单";
    SETTLED = "Orders delivered", "已送达的订单";
    NOTICES = "What is wrong", "存在的问题";
    OVERRIDES = "Names that point elsewhere for a while", "临时指向其他地址的域名";
    SET_BY = "set by", "设置人：";
    BY_FLEET = "from head office", "由总部设置";
    UNTIL = "until", "结束于";
    EFFECTIVE = "takes effect", "已生效";
    NOT_EFFECTIVE = "no effect", "未生效";
    NOT_TRIED = "not tried yet", "尚未验证";
    AGENT_ONLY = "for this agent only", "仅对本代理程序";
    VERSION = "Version", "版本";
    OTHER_LANGUAGE = "中文", "English";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    English,
    Chinese,
}

impl Language {
    const fn of(self, words: Words) -> &'static str {
        match self {
            Self::English => words.en,
            Self::Chinese => words.zh,
        }
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::English => Self::Chinese,
            Self::Chinese => Self::English,
        }
    }

    /// The one asked for in the address, else the browser's, else English.
    fn choose(asked: Option<&str>, headers: &HeaderMap) -> Self {
        let browser = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let first = browser.and_then(|list| list.split([',', ';']).next());
        match asked.or(first) {
            Some(tag) if tag.trim().to_ascii_lowercase().starts_with("zh") => Self::Chinese,
            _ => Self::English,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct PageQuery {
    lang: Option<String>,
}

pub(super) async fn page(
    State(api): State<Api>,
    Query(query): Query<PageQuery>,
    headers: HeaderMap,
) -> Response {
    let state = (api.state)().await;
    let language = Language::choose(query.lang.as_deref(), &headers);
    let html = render(&state, (api.relay)().connected, language);
    let content_type = (header::CONTENT_TYPE, "text/html; charset=utf-8");
    ([content_type, (header::CONTENT_SECURITY_POLICY, POLICY), (header::CACHE_CONTROL, "no-store")], html)
        .into_response()
}

pub(super) async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css"), (header::CACHE_CONTROL, "max-age=3600")], STYLE).into_response()
}

// Writing to a String cannot fail, so the results are not looked at.
fn render(state: &DeviceState, connected: bool, language: Language) -> String {
    let say = |words| language.of(words);
    let who = state.identity.as_ref();
    let device = who.map_or_else(|| say(NOT_ACTIVATED).to_owned(), |who| escape(who.device.as_str()));
    let mut page = format!(
        "<!doctype html><html lang=\"{tag}\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"5\"><title>{device} · Samovar</title>\
         <link rel=\"stylesheet\" href=\"/page.css\"></head><body><h1>{device}</h1>",
        tag = language.tag()
    );
    headline(&mut page, state.conditions.first(), language);
    page.push_str("<dl>");
    let mut fact = |name: Words, value: &str| {
        let _ = write!(page, "<dt>{}</dt><dd>{value}</dd>", say(name));
    };
    fact(DEVICE, &device);
    if let Some(who) = who {
        fact(STORE, &escape(&format!("{}, {}", who.store, who.country)));
    }
    fact(
        LINE,
        say(match state.line {
            Line::Up => LINE_UP,
            Line::Down => LINE_DOWN,
            Line::Unknown => LINE_UNKNOWN,
        }),
    );
    let origin =
        state.origin.as_ref().map(|selected| escape(&format!("{} · {}", selected.origin, selected.domain)));
    fact(ORIGIN, origin.as_deref().unwrap_or(say(NONE)));
    fact(HEAD_OFFICE, say(if connected { CONNECTED } else { NOT_CONNECTED }));
    let waiting_since = state.orders.oldest_pending_at.map(|at| format!(" ({} {})", say(SINCE), moment(at)));
    let oldest = waiting_since.unwrap_or_default();
    fact(WAITING, &format!("{}{oldest}", state.orders.pending + state.orders.held));
    fact(QUARANTINED, &state.orders.quarantined.to_string());
    fact(SETTLED, &state.orders.settled.to_string());
    fact(VERSION, &escape(&state.version));
    page.push_str("</dl>");
    notices(&mut page, &state.conditions, language);
    overrides(&mut page, &state.overrides, language);
    let other = language.other();
    let _ =
        write!(page, "<p><a href=\"/?lang={}\">{}</a></p></body></html>", other.tag(), say(OTHER_LANGUAGE));
    page
}

/// One sentence: what is wrong and what to do, or that all is well.
fn headline(page: &mut String, worst: Option<&ActiveCondition>, language: Language) {
    let (class, words) = match worst {
        None => ("", ALL_WELL),
        Some(condition) => (class(condition.severity), condition.name.describe().staff),
    };
    let _ = write!(page, "<p class=\"word {class}\" role=\"status\">{}</p>", language.of(words));
}

fn notices(page: &mut String, conditions: &[ActiveCondition], language: Language) {
    if conditions.is_empty() {
        return;
    }
    let _ = write!(page, "<h2>{}</h2><ul>", language.of(NOTICES));
    for condition in conditions {
        let _ = write!(
            page,
            "<li>{}<br><small>{} · {} {} · {}</small></li>",
            language.of(condition.name.describe().technician),
            condition.name.name(),
            language.of(SINCE),
            moment(condition.since),
            escape(&condition.detail)
        );
    }
    page.push_str("</ul>");
}

/// Host overrides in force: whose, why, until when, and whether they do something.
fn overrides(page: &mut String, overrides: &[Value], language: Language) {
    if overrides.is_empty() {
        return;
    }
    let say = |words| language.of(words);
    let _ = write!(page, "<h2>{}</h2><ul>", say(OVERRIDES));
    for one in overrides {
        let text = |field: &str| escape(one[field].as_str().unwrap_or_default());
        let until = one["until"].as_str().and_then(|until| until.parse().ok()).map(moment);
        let effect = match one["effective"].as_bool() {
            Some(true) => EFFECTIVE,
            Some(false) => NOT_EFFECTIVE,
            None => NOT_TRIED,
        };
        let ticket = one["ticket"].as_str().map(|ticket| format!(" · {}", escape(ticket)));
        let fleet = (one["source"] == "fleet").then(|| format!(" ({})", say(BY_FLEET)));
        let agent_only = (one["scope"] == "agent").then(|| format!(" · {}", say(AGENT_ONLY)));
        let _ = write!(
            page,
            "<li>{} → {} · {}{}<br><small>{}{} · {} {}{} · {} {}</small></li>",
            text("name"),
            text("address"),
            say(effect),
            agent_only.unwrap_or_default(),
            text("reason"),
            ticket.unwrap_or_default(),
            say(SET_BY),
            text("owner"),
            fleet.unwrap_or_default(),
            say(UNTIL),
            until.unwrap_or_default()
        );
    }
    page.push_str("</ul>");
}

const fn class(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

/// A time as people write it, to the second.
fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    format!("{} UTC", text.get(..19).unwrap_or(&text).replace('T', " "))
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::conditions::Condition;

    fn state() -> DeviceState {
        serde_json::from_value(serde_json::json!({
            "identity": { "device": "POS-1", "store": "S1", "country": "US", "class": "pos" },
            "version": "1", "epoch": 1, "started_at": "2026-11-20T00:00:00.000Z"
        }))
        .unwrap()
    }

    #[test]
    fn every_word_is_there_in_both_languages() {
        let chinese = |text: &str| text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
        for words in ALL {
            assert!(!words.en.is_empty() && !words.zh.is_empty());
            assert!(chinese(words.zh) != chinese(words.en), "{words:?}");
        }
    }

    #[test]
    fn the_browser_chooses_the_language_and_the_address_overrules_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_LANGUAGE, "zh-CN,zh;q=0.9,en;q=0.8".parse().unwrap());
        assert_eq!(Language::choose(None, &headers), Language::Chinese);
        assert_eq!(Language::choose(Some("en"), &headers), Language::English);
        assert_eq!(Language::choose(None, &HeaderMap::new()), Language::English);
    }

    #[test]
    fn what_comes_from_outside_cannot_become_part_of_the_page() {
        let mut state = state();
        assert!(render(&state, true, Language::English).contains("All is well."));
        state.conditions.push(ActiveCondition {
            name: Condition::NotTheOrigin,
            severity: Severity::Warning,
            since: Timestamp::from_millis(0),
            detail: "<script>alert('1')</script>".into(),
        });
        let page = render(&state, true, Language::Chinese);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        assert!(page.contains("网络要求登录"));
    }

    #[test]
    fn overrides_are_shown_with_whose_they_are_why_and_until_when() {
        let mut state = state();
        assert!(!render(&state, true, Language::English).contains("point elsewhere"));
        state.overrides = vec![serde_json::json!({
            "name": "us.store.example", "address": "192.0.2.1", "owner": "lin<", "reason": "moved", "ticket": "T-1",
            "source": "fleet", "until": "2026-11-20T04:00:00.000Z", "effective": false, "scope": "agent"
        })];
        let page = render(&state, true, Language::English);
        for words in ["us.store.example → 192.0.2.1 · no effect · for this agent only", "moved · T-1"] {
            assert!(page.contains(words), "{words}: {page}");
        }
        assert!(page.contains("set by lin&lt; (from head office) · until 2026-11-20 04:00:00 UTC"), "{page}");
        assert!(render(&state, true, Language::Chinese).contains("未生效"));
    }
}
