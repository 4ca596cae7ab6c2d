//! Every word of the console, in English and Chinese. A word that is missing in one language does not compile.

use axum::http::{HeaderMap, header};
use samovar_wire::conditions::Condition;

use crate::auth::extract::cookie;

/// The cookie that remembers the language chosen.
pub(super) const COOKIE: &str = "samovar_lang";

/// A language of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    English,
    Chinese,
}

macro_rules! words {
    ($($name:ident: $en:literal, $zh:literal;)*) => {
        /// The words of one language.
        #[derive(Debug)]
        pub(super) struct Words { $(pub(super) $name: &'static str,)* }

        const ENGLISH: Words = Words { $($name: $en,)* };
        const CHINESE: Words = Words { $($name: $zh,)* };

        #[cfg(test)]
        const ALL: &[(&str, &str, &str)] = &[$((stringify!($name), $en, $zh),)*];
    };
}

words! {
    product: "Samovar fleet", "Samovar 总控台";
    sign_in: "Sign in", "登录";
    sign_out: "Sign out", "退出";
    name: "Name", "用户名";
    password: "Password", "密码";
    wrong_login: "The name or the password is wrong.", "用户名或密码错误。";
    wait_login: "Too many failed attempts. Wait a little and try again.", "失败次数过多，请稍候再试。";
    later: "The server cannot do this now. Try again.", "服务器暂时无法处理，请重试。";
    overview: "Overview", "总览";
    stores: "Stores", "门店";
    devices: "Devices", "设备";
    device: "Device", "设备";
    orders: "Orders", "订单";
    events: "Events", "事件";
    online: "online", "在线";
    offline: "offline", "离线";
    revoked: "revoked", "已吊销";
    never_seen: "never heard of", "从未上线";
    connected: "MQTT connected", "MQTT 已连接";
    disconnected: "MQTT disconnected: what is shown may be old", "MQTT 未连接：显示内容可能已过时";
    no_broker: "no MQTT broker", "未配置 MQTT";
    unserved: "The route table in force has no route for: {}", "现行路由表未包含：{}";
    no_match: "No match.", "无匹配结果。";
    not_heard: "It has not reported anything yet.", "尚未上报任何信息。";
    no_page: "There is no such page.", "没有该页面。";
    search: "Search stores and devices", "搜索门店和设备";
    find: "Search", "搜索";
    endpoints: "Endpoints", "接入点";
    endpoints_about: "DNS and request times of the last seven days (p50 / p95, ms), before and after route table", "最近七天的 DNS 与请求耗时（p50 / p95，毫秒），对比路由表版本";
    endpoint: "Endpoint", "接入点";
    country: "Country", "国家";
    before: "before", "之前";
    after: "after", "之后";
    requests: "requests", "请求数";
    dns_ms: "DNS ms", "DNS 毫秒";
    request_ms: "request ms", "请求毫秒";
    nothing_found: "Nothing here yet.", "暂无内容。";
    no_devices: "No device has been activated in this store.", "该门店尚无已激活设备。";
    next_page: "Next page", "下一页";
    first_page: "First page", "第一页";
    state: "State", "状态";
    version: "Version", "版本";
    origin: "Origin", "源站";
    rule: "Rule", "规则";
    domain: "Domain", "域名";
    line: "Store's line", "门店网络";
    line_up: "up", "正常";
    line_down: "down", "中断";
    unknown: "unknown", "未知";
    health_up: "answers", "可用";
    health_down: "does not answer", "无应答";
    accepted: "accepted", "已接收";
    pending: "pending", "待发送";
    held: "held", "保留";
    quarantined: "quarantined", "隔离";
    settled: "settled", "已结算";
    discarded: "discarded", "已作废";
    recorded_here: "recorded here", "本站已记录";
    conditions: "Conditions", "异常";
    all_well: "Nothing is wrong.", "一切正常。";
    route_table: "Route table", "路由表";
    in_force: "in force", "现行";
    desired: "Desired state", "期望状态";
    revision: "revision", "修订";
    applied: "applied", "已应用";
    last_seen: "Last heard of", "最近通信";
    certificate_ends: "Certificate ends", "证书到期";
    last_match: "Last match of orders", "上次对账一致";
    never_compared: "never compared", "尚未对账";
    differs: "{} missing here, {} unknown to the device", "本站缺 {} 单，设备缺 {} 单";
    run: "Run", "运行次数";
    started: "Started", "启动于";
    origins: "Origins as seen from here", "本机所见源站";
    document: "Everything it reports", "完整上报内容";
    order_no: "Number", "单号";
    sequence: "Seq", "序号";
    udl: "UDL", "UDL";
    accepted_at: "Accepted", "接收时间";
    received_at: "Recorded", "记录时间";
    at: "At", "时间";
    what: "What", "事件";
    detail: "Detail", "详情";
    just_now: "just now", "刚刚";
    seconds_ago: "{} s ago", "{} 秒前";
    minutes_ago: "{} min ago", "{} 分钟前";
    hours_ago: "{} h ago", "{} 小时前";
    days_ago: "{} d ago", "{} 天前";
    live: "live", "实时";
    no_store: "There is no such store.", "没有该门店。";
    no_device: "There is no such device.", "没有该设备。";
    back: "Back to the overview", "返回总览";
}

impl Language {
    /// From the address, else the cookie, else what the browser prefers.
    pub(super) fn choose(query: Option<&str>, headers: &HeaderMap) -> Self {
        let asked = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("lang="));
        let preferred = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        asked
            .or_else(|| cookie(headers, COOKIE))
            .and_then(Self::of_code)
            .unwrap_or_else(|| Self::preferred(preferred.unwrap_or_default()))
    }

    /// The language that was asked for in the address, to be remembered.
    pub(super) fn asked(query: Option<&str>) -> Option<Self> {
        query?.split('&').find_map(|pair| pair.strip_prefix("lang=")).and_then(Self::of_code)
    }

    fn of_code(code: &str) -> Option<Self> {
        match code {
            "en" => Some(Self::English),
            "zh" => Some(Self::Chinese),
            _ => None,
        }
    }

    /// The first of the browser's languages that the console speaks.
    fn preferred(accepted: &str) -> Self {
        let known = accepted.split(',').find_map(|one| Self::of_code(one.trim().get(..2)?));
        known.unwrap_or(Self::English)
    }

    /// For `lang` attributes and the cookie.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }

    pub(super) const fn words(self) -> &'static Words {
        match self {
            Self::English => &ENGLISH,
            Self::Chinese => &CHINESE,
        }
    }

    /// What the catalogue of conditions says to a technician; nothing for a name that this server does not know.
    pub(super) fn condition(self, name: &str) -> Option<&'static str> {
        let known = Condition::ALL.iter().find(|condition| condition.name() == name)?;
        let words = known.describe().technician;
        Some(match self {
            Self::English => words.en,
            Self::Chinese => words.zh,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_there_in_both_languages() {
        for (name, en, zh) in ALL {
            assert!(!en.trim().is_empty() && en.is_ascii(), "{name}: {en}");
            assert!(!zh.trim().is_empty(), "{name}");
            let chinese = zh.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
            assert!(chinese || *name == "udl", "{name}: {zh}");
            assert_eq!(en.contains("{}"), zh.contains("{}"), "{name}: the place of the number");
        }
    }

    #[test]
    fn the_language_is_the_one_asked_for_then_the_one_remembered_then_the_browsers() {
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
        };
        let remembered = with("cookie", "samovar_lang=zh");
        assert_eq!(Language::choose(Some("a=1&lang=en"), &remembered), Language::English);
        assert_eq!(Language::choose(Some("a=1"), &remembered), Language::Chinese);
        assert_eq!(Language::choose(Some("lang=xx"), &HeaderMap::new()), Language::English);
        assert_eq!(
            Language::choose(None, &with("accept-language", "de, zh-CN;q=0.8, en;q=0.5")),
            Language::Chinese
        );
    }

    #[test]
    fn a_condition_is_explained_in_the_language_of_the_page() {
        assert!(Language::English.condition("line-down").unwrap().is_ascii());
        assert!(!Language::Chinese.condition("line-down").unwrap().is_ascii());
        assert_eq!(Language::English.condition("unheard-of"), None);
    }
}
