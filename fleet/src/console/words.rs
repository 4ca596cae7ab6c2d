//! Every word of the console, in English and Chinese. A word that is missing in one language does not compile.

use axum::http::{HeaderMap, header};
use samovar_wire::conditions::Condition;
use samovar_wire::route::Both;

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
    store: "Store", "门店";
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
    routes: "Routes", "路由";
    route_versions: "Published tables", "已发布的路由表";
    route_drafts: "Drafts and proposals", "草稿与待审";
    new_draft: "New draft", "新建草稿";
    title: "Title", "标题";
    begin_from: "Begin from the table in force", "以现行路由表为起点";
    begin_from_this: "Begin a draft from this version", "以此版本新建草稿";
    no_drafts: "No draft is open.", "没有进行中的草稿。";
    no_table: "No route table is in force yet.", "尚无生效的路由表。";
    published_at: "Published", "发布时间";
    published_by: "By", "发布人";
    proposed_by: "Proposed by", "提交人";
    written_by: "Written by", "编写人";
    based_on: "Based on version", "基于版本";
    changed_at: "Changed", "修改时间";
    what_changes: "What changes", "变更内容";
    against_in_force: "against the table in force", "与现行路由表相比";
    against_before: "against the version before", "与上一版本相比";
    no_changes: "Nothing but version and dates.", "仅版本号与日期不同。";
    draft: "Draft", "草稿";
    draft_state_draft: "being written", "编写中";
    draft_state_proposed: "waits for approval", "待审批";
    draft_state_published: "published", "已发布";
    draft_state_discarded: "discarded", "已放弃";
    save: "Save", "保存";
    saved_valid: "The devices would accept this table.", "设备会接受此路由表。";
    flaws: "To be corrected before it can be proposed", "提交前需要修正";
    whole_document: "the whole document", "整个文档";
    propose: "Propose", "提交审批";
    propose_help: "A proposal gets the next version and today's date, and does not change any more.", "提交后将写入下一个版本号和当前日期，内容不再更改。";
    approve: "Approve and publish", "批准并发布";
    withdraw: "Withdraw", "撤回";
    discard: "Discard", "放弃";
    preview: "Preview", "预览影响";
    own_work: "You wrote or proposed this: another operator must approve it.", "您是编写人或提交人，须由另一位操作员审批。";
    sign_elsewhere: "This server signs no tables. Export, sign with the offline key, publish:", "本服务器不签署路由表。请导出后用离线密钥签署并发布：";
    outdated: "Version {} came into force after this draft was begun. See below what the draft would undo.", "此草稿创建后，版本 {} 已生效。请核对下方变更，避免覆盖他人的修改。";
    propose_over: "Propose over version {}", "确认覆盖版本 {} 并提交";
    stale_draft: "Somebody changed this draft in the meantime. Your text is below and not saved: compare, then save again.", "此草稿已被他人修改。您的内容保留在下方但未保存，请核对后再次保存。";
    the_document: "Document", "文档";
    rollback: "Roll back to this version", "回滚到此版本";
    rollback_help: "Its words come back at once under the next version, with new dates.", "将以新的版本号和日期立即重新发布其内容。";
    reason: "Reason", "原因";
    reissue_of: "brings back {}", "恢复自 {}";
    moving: "change origin", "更换源站";
    held_after: "no longer served", "失去服务";
    freed_after: "served again", "恢复服务";
    readdressed: "new address, same origin", "同源站换地址";
    unchanged: "unchanged", "不变";
    no_devices_short: "no device yet", "暂无设备";
    stores_changed: "stores affected", "受影响门店";
    now: "Now", "现在";
    then: "After", "之后";
    held_nowhere: "held (no origin)", "保留（无源站）";
    map_of_countries: "Map of countries", "国家分布图";
    map_help: "Upper strip: now. Body: after. Number: stores. Outlined: something changes.", "上方色条为现在，主体为之后；数字为门店数；描边表示有变化。";
    by_origin: "By origin", "按源站";
    by_country: "By country", "按国家";
    changes: "Changes", "变动明细";
    all_countries: "all countries", "全部国家";
    change: "Change", "变动";
    nothing_moves: "No store and no device changes its way.", "没有门店或设备的去向发生变化。";
    nearest_note: "Where the nearest origin decides, the listed order stands in for what each device measures.", "由就近规则决定时，按列出顺序预估；实际以设备测量为准。";
    ask_one: "Where would one store, device or person go?", "查询单个门店、设备或用户的去向";
    ask: "Ask", "查询";
    user: "Person", "用户";
    at_time: "At (RFC 3339)", "时间 (RFC 3339)";
    down_origins: "Suppose these are down", "假设以下源站故障";
    service: "Service", "服务";
    in_this_table: "In this table", "在此路由表中";
    rule_protected: "protected name", "受保护域名";
    rule_emergency: "emergency", "紧急切换";
    rule_user_pin: "user pin", "用户固定";
    rule_device_pin: "device pin", "设备固定";
    rule_store_pin: "store pin", "门店固定";
    rule_split: "split", "分流";
    rule_fallback: "fallback", "兜底";
    rule_override: "host override", "主机覆盖";
    rule_last_good: "last good", "上次有效";
    rule_compiled_in: "compiled in", "内置";
    rule_residency: "residency", "数据驻留";
    rule_health: "health", "健康";
    rule_bound: "bound", "已绑定";
    result_applied: "decided", "生效";
    result_no_match: "says nothing", "不适用";
    result_passed_over: "passed over", "跳过";
    stragglers: "Stragglers", "落后设备";
    have_it: "have the table in force", "已应用现行路由表";
    not_due: "Published {}. Devices have {} minutes before they count as behind.", "发布于 {}。{} 分钟后仍未应用的设备视为落后。";
    nobody_behind: "Every device has the table in force.", "所有设备均已应用现行路由表。";
    has_version: "Has", "当前版本";
    why: "Why", "原因";
    why_refused: "refused it", "已拒绝";
    why_offline: "offline", "离线";
    why_never_seen: "never heard of", "从未上线";
    why_revoked: "revoked", "已吊销";
    why_not_applied: "told, not applied yet", "已通知，尚未应用";
    why_unknown: "has not said", "未说明";
    not_said: "not said", "未上报";
    starter: "starter", "初始";
    host_overrides: "Host overrides", "主机覆盖";
    override_set: "Point a name elsewhere", "将域名指向其他地址";
    override_do: "Set", "设置";
    override_clear: "Clear", "撤销";
    override_by: "By", "设置人";
    override_force: "Also when the address does not prove that it is the name", "即使该地址未通过域名验证也设置";
    override_help: "The device tries the address before and proves the effect afterwards. It ends by itself, also when the device is offline.", "设备会先验证该地址，之后再确认效果。到期自动结束，设备离线时也是如此。";
    override_effective: "takes effect", "已生效";
    override_idle: "no effect", "未生效";
    override_untried: "not tried yet", "尚未验证";
    override_waiting: "waits for the device", "等待设备确认";
    override_refused: "refused by the device", "设备已拒绝";
    override_ending: "being ended", "正在撤销";
    override_local: "at the device", "在设备上设置";
    scope_device: "for every program", "对所有程序";
    scope_agent: "agent only", "仅限代理程序";
    no_overrides: "No name points elsewhere.", "没有主机覆盖。";
    host_name: "Exact name", "完整域名";
    address: "Address", "地址";
    ticket: "Ticket", "工单";
    hours: "Hours", "时长（小时）";
    left: "Left", "剩余";
    left_hours: "{} h", "{} 小时";
    left_minutes: "{} min", "{} 分钟";
    left_seconds: "{} s", "{} 秒";
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

    /// One of two texts.
    pub(super) fn of(self, text: Both) -> String {
        match self {
            Self::English => text.en,
            Self::Chinese => text.zh,
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
