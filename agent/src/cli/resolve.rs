//! `samovar-agent resolve`: where a service is now, and every rule that was looked at, in words that a stranger can
//! follow; in Chinese when the terminal is.

use super::AskArgs;
use super::activate::speaks_chinese;
use super::ask::{self, Agent, AskError, segment, text};
use clap::Args;
use samovar_wire::conditions::Words;
use serde_json::{Value, json};
use std::fmt::Write;

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// The service
    #[arg(default_value = "orders")]
    service: String,
    /// The service, by its name
    #[arg(long = "service", value_name = "SERVICE")]
    named: Option<String>,
    /// Country of the person the request concerns
    #[arg(long, value_name = "COUNTRY")]
    udl: Option<String>,
    /// Device class whose domain is wanted
    #[arg(long)]
    class: Option<String>,
    /// Say why: every rule that was looked at, and how each origin is
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) async fn run(args: &ResolveArgs) -> Result<String, AskError> {
    let service = args.named.as_ref().unwrap_or(&args.service);
    let mut path = format!("/v1/resolve?service={}", segment(service));
    for (name, value) in [("udl", &args.udl), ("class", &args.class)] {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = write!(path, "&{name}={}", segment(value));
        }
    }
    let agent = Agent::find(&args.ask.data);
    let mut answer = agent.get(&path).await?;
    if args.explain {
        let status = agent.get("/v1/status").await?;
        answer["overrides"] = overrides_of(&answer, &status);
    }
    let chinese = speaks_chinese(|name| std::env::var(name).ok());
    Ok(if args.ask.json { ask::json(&answer) } else { show(&answer, args.explain, chinese) })
}

/// The overrides that stand for the names of this answer.
fn overrides_of(answer: &Value, status: &Value) -> Value {
    let names = [answer["domain"].as_str(), answer.pointer("/dns/host").and_then(Value::as_str)];
    let is_it = |entry: &&Value| {
        let name = entry["name"].as_str();
        name.is_some_and(|name| names.iter().flatten().any(|known| known.eq_ignore_ascii_case(name)))
    };
    status["overrides"].as_array().into_iter().flatten().filter(is_it).cloned().collect()
}

/// Words of this command that are not from the agent.
const WORDS: &[(&str, Words)] = &[
    ("origin", Words { en: "origin", zh: "源站" }),
    ("address", Words { en: "base URL", zh: "基础网址" }),
    ("dialled", Words { en: "addresses", zh: "地址" }),
    ("found by", Words { en: "found by", zh: "地址来源" }),
    ("table", Words { en: "table", zh: "路由表" }),
    ("override", Words { en: "override", zh: "主机覆盖" }),
    ("none", Words { en: "none", zh: "无" }),
    ("none found", Words { en: "none found", zh: "未找到" }),
    ("version", Words { en: "version", zh: "版本" }),
    ("usable for", Words { en: "usable for", zh: "有效期" }),
    ("stale", Words { en: "stale", zh: "已过期" }),
    ("candidates", Words { en: "Origins that could serve, best first", zh: "可用源站（最优在前）" }),
    ("rules", Words { en: "Rules, in the order in which they were looked at", zh: "规则（按检查顺序）" }),
    ("up", Words { en: "answers", zh: "正常" }),
    ("down", Words { en: "does not answer", zh: "无应答" }),
    ("unknown", Words { en: "not asked yet", zh: "尚未探测" }),
    ("applied", Words { en: "applied", zh: "采用" }),
    ("no-match", Words { en: "no match", zh: "不适用" }),
    ("passed-over", Words { en: "passed over", zh: "跳过" }),
    ("protected", Words { en: "protected name", zh: "受保护域名" }),
    ("emergency", Words { en: "emergency", zh: "紧急切换" }),
    ("user-pin", Words { en: "pin of the person", zh: "用户固定" }),
    ("device-pin", Words { en: "pin of the device", zh: "设备固定" }),
    ("store-pin", Words { en: "pin of the store", zh: "门店固定" }),
    ("split", Words { en: "split by shares", zh: "按比例分流" }),
    ("fallback", Words { en: "fallback", zh: "默认规则" }),
    ("last-good", Words { en: "last good table", zh: "上次有效路由表" }),
    ("compiled-in", Words { en: "compiled in", zh: "内置规则" }),
    ("residency", Words { en: "residency", zh: "数据驻留" }),
    ("health", Words { en: "health", zh: "健康状态" }),
    ("bound", Words { en: "bound before", zh: "已绑定" }),
];

/// A word in the terminal's language; one that is not known stays as the agent said it.
fn word(word: &str, chinese: bool) -> String {
    let found = WORDS.iter().find(|(key, _)| *key == word).map(|(_, words)| *words);
    found.map_or(word, |Words { en, zh }| if chinese { zh } else { en }).to_owned()
}

fn show(answer: &Value, explain: bool, chinese: bool) -> String {
    let say = |key: &str| word(key, chinese);
    let list = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| Some(text(&json!([item.as_str()?]), "/0")))
            .collect()
    };
    let addresses = list(&answer["addresses"]);
    let stale = if answer["stale"] == true { format!(", {}", say("stale")) } else { String::new() };
    let mut facts = vec![
        (say("origin"), text(answer, "/origin")),
        (say("address"), text(answer, "/base_url")),
        (say("dialled"), if addresses.is_empty() { say("none found") } else { addresses.join(", ") }),
        (
            say("table"),
            format!(
                "{} {}{stale}, {} {} s",
                say("version"),
                answer["table_version"],
                say("usable for"),
                answer["valid_for_s"]
            ),
        ),
    ];
    if answer.pointer("/dns/answered_by").is_some() {
        let mut found = format!("{} ({})", text(answer, "/dns/answered_by"), text(answer, "/dns/host"));
        for link in answer["dns"]["chain"].as_array().into_iter().flatten() {
            let ms = link["ms"].as_u64().map(|ms| format!(" {ms} ms")).unwrap_or_default();
            let _ = write!(found, " → {}{ms}", text(link, "/name"));
        }
        facts.insert(3, (say("found by"), found));
    }
    if explain {
        facts.push((say("override"), overrides(answer, chinese)));
    }
    let mut out = format!("{}\n", text(answer, "/service"));
    columns(&mut out, &facts.into_iter().map(|(name, value)| vec![name, value]).collect::<Vec<_>>());
    if explain {
        explained(&mut out, answer, chinese);
    }
    out
}

fn overrides(answer: &Value, chinese: bool) -> String {
    let entries = answer["overrides"].as_array().into_iter().flatten();
    let one = |entry: &Value| format!("{} -> {}", text(entry, "/name"), text(entry, "/address"));
    let all: Vec<_> = entries.map(one).collect();
    if all.is_empty() { word("none", chinese) } else { all.join(", ") }
}

fn explained(out: &mut String, answer: &Value, chinese: bool) {
    let rows = |name: &str, row: &dyn Fn(&Value) -> Vec<String>| -> Vec<Vec<String>> {
        answer[name].as_array().into_iter().flatten().map(row).collect()
    };
    let said = |value: &Value, pointer: &str| word(&text(value, pointer), chinese);
    let _ = writeln!(out, "\n{}", word("candidates", chinese));
    columns(out, &rows("candidates", &|known| vec![text(known, "/origin"), said(known, "/health")]));
    let _ = writeln!(out, "\n{}", word("rules", chinese));
    let rule = |reason: &Value| vec![said(reason, "/rule"), said(reason, "/result"), text(reason, "/detail")];
    columns(out, &rows("reason", &rule));
}

/// Rows with their columns under each other, indented.
fn columns(out: &mut String, rows: &[Vec<String>]) {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: String =
            cells.map(|(cell, wide)| format!("{cell}{}  ", " ".repeat(wide - width(cell)))).collect();
        let _ = writeln!(out, "  {}", line.trim_end());
    }
}

/// Places that a text takes on a terminal, near enough for names: a Chinese character takes two.
fn width(text: &str) -> usize {
    text.chars().map(|c| if ('\u{2e80}'..='\u{ffef}').contains(&c) { 2 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Value {
        json!({
            "service": "orders", "domain": "us.store.example", "base_url": "https://us.store.example",
            "origin": "apac", "addresses": ["203.0.113.1"], "table_version": 7, "stale": false, "valid_for_s": 900,
            "candidates": [{ "origin": "us-west", "health": "down" }, { "origin": "apac", "health": "up" }],
            "reason": [
                { "rule": "protected", "result": "no-match", "detail": "us.store.example is not protected" },
                { "rule": "store-pin", "result": "passed-over", "detail": "x is outside\u{1b}[2J the residency" },
            ],
        })
    }

    #[test]
    fn a_stranger_reads_why_in_columns() {
        let mut answer = answer();
        let status = json!({ "overrides": [
            { "name": "US.store.example", "address": "10.0.0.1" }, { "name": "other", "address": "10.0.0.2" }] });
        answer["overrides"] = overrides_of(&answer, &status);
        let shown = show(&answer, true, false);
        let expected = "orders
  origin     apac
  base URL   https://us.store.example
  addresses  203.0.113.1
  table      version 7, usable for 900 s
  override   US.store.example -> 10.0.0.1

Origins that could serve, best first
  us-west  does not answer
  apac     answers

Rules, in the order in which they were looked at
  protected name    no match     us.store.example is not protected
  pin of the store  passed over  x is outside\u{fffd}[2J the residency
";
        assert_eq!(shown, expected);
        assert!(!show(&answer, false, false).contains("Rules"));
    }

    #[test]
    fn columns_stand_under_each_other_in_chinese_too() {
        let shown = show(&answer(), true, true);
        assert!(
            shown.contains("  受保护域名  不适用  us.store") && shown.contains("  门店固定    跳过    x is"),
            "{shown}"
        );
        assert!(shown.contains("us-west  无应答"), "{shown}");
    }
}
