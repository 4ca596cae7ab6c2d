//! What differs between two tables, in a few lines for people and the audit log. Pure.

use samovar_wire::route::{Both, Emergency, FallbackMode, OriginState, Shadow, Split, Table};
use std::collections::BTreeMap;

/// Lines at most; what is beyond is counted.
const LINES: usize = 12;

/// What the second table says otherwise; empty when only version and dates differ.
#[must_use]
pub fn lines(before: Option<&Table>, after: &Table) -> Vec<Both> {
    let Some(before) = before else { return vec![first(after)] };
    let mut lines = Vec::new();
    origins(before, after, &mut lines);
    countries(before, after, &mut lines);
    ids(&pinned(before), &pinned(after), &mut lines);
    let key = |split: &Split| format!("{}/{}", split.country, split.service);
    let value = |split: &Split| (split.by, split.salt.clone(), shares(&split.shares));
    keyed(
        ("split", "分流"),
        (&map(&before.splits, key, value), &map(&after.splits, key, value)),
        |(_, _, shares)| shares.clone(),
        &mut lines,
    );
    let key = |one: &Emergency| one.country.to_string();
    let value = |one: &Emergency| (one.origin.clone(), one.services.clone(), one.until);
    keyed(
        ("emergency", "紧急切换"),
        (&map(&before.emergency, key, value), &map(&after.emergency, key, value)),
        |(origin, _, _)| origin.to_string(),
        &mut lines,
    );
    let key = |one: &Shadow| format!("{}/{}", one.country, one.service);
    let value = |one: &Shadow| (one.origin.clone(), one.basis_points);
    keyed(
        ("shadow", "影子流量"),
        (&map(&before.shadow, key, value), &map(&after.shadow, key, value)),
        |(origin, points)| format!("{origin} {points}"),
        &mut lines,
    );
    rest(before, after, &mut lines);
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if more > 0 {
        lines.push(both(format!("and {more} more"), format!("另有 {more} 项")));
    }
    lines
}

/// The lines as one text.
#[must_use]
pub fn summary(before: Option<&Table>, after: &Table) -> Both {
    let lines = lines(before, after);
    if lines.is_empty() {
        return both("no difference but version and dates".into(), "仅版本号与日期不同".into());
    }
    let (en, zh): (Vec<_>, Vec<_>) = lines.into_iter().map(|line| (line.en, line.zh)).unzip();
    both(en.join("; "), zh.join("；"))
}

fn both(en: String, zh: String) -> Both {
    Both { en, zh }
}

fn first(table: &Table) -> Both {
    let (origins, countries, pins) = (table.origins.len(), table.countries.len(), table.pins.len());
    both(
        format!("the first table: {origins} origins, {countries} countries, {pins} pins"),
        format!("首个路由表：{origins} 个源站，{countries} 个国家，{pins} 条固定规则"),
    )
}

fn origins(before: &Table, after: &Table, lines: &mut Vec<Both>) {
    let state = |state: OriginState| format!("{state:?}").to_lowercase();
    for (name, then) in &after.origins {
        match before.origins.get(name) {
            None => lines.push(both(format!("origin {name} added"), format!("新增源站 {name}"))),
            Some(now) if now.state != then.state => {
                let change = format!("{} -> {}", state(now.state), state(then.state));
                lines.push(both(format!("origin {name}: {change}"), format!("源站 {name}：{change}")));
            }
            Some(now) if now != then => lines.push(both(
                format!("origin {name}: endpoints or regions changed"),
                format!("源站 {name}：接入点或区域有变更"),
            )),
            Some(_) => {}
        }
    }
    for name in before.origins.keys().filter(|name| !after.origins.contains_key(*name)) {
        lines.push(both(format!("origin {name} removed"), format!("删除源站 {name}")));
    }
}

fn countries(before: &Table, after: &Table, lines: &mut Vec<Both>) {
    let list = |origins: &[samovar_wire::OriginId]| {
        origins.iter().map(samovar_wire::OriginId::as_str).collect::<Vec<_>>().join(", ")
    };
    for (country, then) in &after.countries {
        let Some(now) = before.countries.get(country) else { continue };
        if now.residency != then.residency {
            let change = format!("{} -> {}", list(&now.residency), list(&then.residency));
            lines.push(both(
                format!("country {country}: residency {change}"),
                format!("国家 {country}：驻留范围 {change}"),
            ));
        }
        if now.services != then.services {
            lines.push(both(
                format!("country {country}: services or domains changed"),
                format!("国家 {country}：服务或域名有变更"),
            ));
        }
    }
    let only = |one: &Table, other: &Table| {
        let missing = one.countries.keys().filter(|country| !other.countries.contains_key(*country));
        missing.map(ToString::to_string).collect::<Vec<_>>()
    };
    for (en, zh, countries) in
        [("added", "新增", only(after, before)), ("removed", "删除", only(before, after))]
    {
        if !countries.is_empty() {
            let told = some(&countries, 8);
            lines.push(both(format!("countries {en}: {told}"), format!("{zh}国家：{told}")));
        }
    }
}

/// The first few of a list, and how many more.
fn some(list: &[String], few: usize) -> String {
    let more = list.len().saturating_sub(few);
    let told = list[..list.len().min(few)].join(", ");
    if more == 0 { told } else { format!("{told} +{more}") }
}

/// IDs with where they are pinned to; more than a few are counted only.
fn pinned(table: &Table) -> BTreeMap<String, String> {
    let ids = table.pins.iter().flat_map(|pin| {
        let to = format!("{} {:?} {:?}", pin.origin, pin.services, pin.until);
        pin.ids.iter().map(move |id| (id.clone(), to.clone()))
    });
    ids.collect()
}

fn ids(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>, lines: &mut Vec<Both>) {
    let added: Vec<String> = after.keys().filter(|id| !before.contains_key(*id)).cloned().collect();
    let removed: Vec<String> = before.keys().filter(|id| !after.contains_key(*id)).cloned().collect();
    let changed: Vec<String> = after
        .iter()
        .filter(|(id, to)| before.get(*id).is_some_and(|was| was != *to))
        .map(|(id, _)| id.clone())
        .collect();
    for (en, zh, ids) in
        [("added", "新增", added), ("removed", "删除", removed), ("changed", "变更", changed)]
    {
        if !ids.is_empty() {
            let told = some(&ids, 3);
            lines.push(both(format!("pins {en}: {told}"), format!("固定规则{zh}：{told}")));
        }
    }
}

fn shares(shares: &[samovar_wire::route::Share]) -> String {
    shares
        .iter()
        .map(|share| format!("{} {}", share.origin, share.basis_points))
        .collect::<Vec<_>>()
        .join(" / ")
}

fn map<T, V>(list: &[T], key: impl Fn(&T) -> String, value: impl Fn(&T) -> V) -> BTreeMap<String, V> {
    list.iter().map(|one| (key(one), value(one))).collect()
}

fn keyed<V: PartialEq>(
    (en, zh): (&str, &str),
    (before, after): (&BTreeMap<String, V>, &BTreeMap<String, V>),
    told: impl Fn(&V) -> String,
    lines: &mut Vec<Both>,
) {
    for (key, then) in after {
        match before.get(key) {
            None => {
                let then = told(then);
                lines.push(both(format!("{en} {key} added: {then}"), format!("新增{zh} {key}：{then}")));
            }
            Some(now) if now != then => {
                let change = format!("{} -> {}", told(now), told(then));
                lines.push(both(format!("{en} {key}: {change}"), format!("{zh} {key}：{change}")));
            }
            Some(_) => {}
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        lines.push(both(format!("{en} {key} removed"), format!("删除{zh} {key}")));
    }
}

fn rest(before: &Table, after: &Table, lines: &mut Vec<Both>) {
    let (now, then) = (&before.fallback, &after.fallback);
    if now != then {
        let told = |fallback: &samovar_wire::route::Fallback| match fallback.mode {
            FallbackMode::Shares => shares(&fallback.shares),
            FallbackMode::Nearest => {
                let names: Vec<_> = fallback.candidates.iter().map(samovar_wire::OriginId::as_str).collect();
                names.join(", ")
            }
        };
        let mode = |fallback: &samovar_wire::route::Fallback| match fallback.mode {
            FallbackMode::Shares => ("shares", "份额"),
            FallbackMode::Nearest => ("nearest of", "就近"),
        };
        let (was, is) = (told(now), told(then));
        let ((was_en, was_zh), (is_en, is_zh)) = (mode(now), mode(then));
        lines.push(both(
            format!("fallback: {was_en} {was} -> {is_en} {is}"),
            format!("兜底：{was_zh} {was} -> {is_zh} {is}"),
        ));
    }
    for (en, zh, differs) in [
        ("activation", "激活域名", before.activation != after.activation),
        ("protected names", "受保护域名", before.protected != after.protected),
        ("host overrides", "主机覆盖开关", before.disable_overrides != after.disable_overrides),
        ("probes", "探测地址", before.probes != after.probes),
        ("dns", "DNS", before.dns != after.dns),
        ("refresh_after_s", "refresh_after_s", before.refresh_after_s != after.refresh_after_s),
    ] {
        if differs {
            lines.push(both(format!("{en} changed"), format!("{zh}有变更")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table(change: impl Fn(&mut serde_json::Value)) -> Table {
        let mut table = json!({
            "schema": 1, "environment": "prod", "version": 7, "issued_at": "2026-01-01T00:00:00.000Z",
            "not_before": "2026-01-01T00:00:00.000Z", "expires_at": "2027-12-31T00:00:00.000Z",
            "origins": {"apac": {"endpoints": [{"host": "apac.example"}]}, "usw": {"endpoints": [{"host": "usw.example"}]}},
            "countries": {"JP": {"residency": ["apac", "usw"], "services": {}}},
            "splits": [{"country": "JP", "service": "orders",
                "shares": [{"origin": "apac", "basis_points": 10000}]}],
            "fallback": {"candidates": ["apac"]},
        });
        change(&mut table);
        serde_json::from_value(table).unwrap()
    }

    #[test]
    fn what_differs_is_named_and_what_does_not_is_not() {
        let before = table(|_| {});
        assert!(lines(Some(&before), &table(|t| t["version"] = json!(8))).is_empty());
        let after = table(|t| {
            t["origins"]["apac"]["state"] = json!("draining");
            t["countries"]["DE"] = json!({"residency": ["usw"], "services": {}});
            t["pins"] = json!([{"ids": ["store:JP-1", "store:JP-2"], "origin": "usw"}]);
            t["splits"][0]["shares"] =
                json!([{"origin": "apac", "basis_points": 5000}, {"origin": "usw", "basis_points": 5000}]);
            t["emergency"] = json!([{"country": "JP", "origin": "usw"}]);
            t["fallback"]["candidates"] = json!(["usw"]);
        });
        assert_eq!(
            lines(Some(&before), &after).into_iter().map(|line| line.en).collect::<Vec<_>>(),
            [
                "origin apac: active -> draining",
                "countries added: DE",
                "pins added: store:JP-1, store:JP-2",
                "split JP/orders: apac 10000 -> apac 5000 / usw 5000",
                "emergency JP added: usw",
                "fallback: nearest of apac -> nearest of usw",
            ]
        );
        assert!(summary(None, &after).en.starts_with("the first table"));
    }
}
