//! What is wrong with a route table: where, what, and what to do about it, in English and Chinese.
//!
//! Devices need only the first flaw to refuse a table; whoever writes one is shown them all.

use super::bucket::BASIS_POINTS;
use crate::{Country, OriginId, Timestamp};

/// One thing that is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Where: a JSON pointer, such as `/splits/0/shares/1/origin`; empty for the whole document.
    pub path: String,
    /// Whose it is, such as `the split of US/orders`.
    pub what: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// It cannot be read as a table.
    Unreadable(String),
    /// More than devices accept.
    TooLarge(usize),
    /// A form this version does not know.
    Schema(u64),
    /// For another environment.
    Environment {
        /// What the table says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// An origin that is not in the table.
    UnknownOrigin(OriginId),
    /// A country that is not in the table.
    UnknownCountry(Country),
    /// An origin that may not hold the country's data.
    OutsideResidency(OriginId),
    /// A service's residency is wider than its country's.
    Widens(OriginId),
    /// Nothing may hold the data.
    EmptyResidency,
    /// Shares that do not add up.
    Shares(u64),
    /// Shares of endpoints that do not add up, or are given for some only.
    EndpointShares(u64),
    /// More than everything.
    ShadowShare,
    /// An origin without an endpoint.
    NoEndpoint,
    /// A service without a domain for the rest.
    NoDefaultDomain,
    /// An ID without its kind.
    PinId(String),
    /// Neither a name nor an address.
    NotHost(String),
    /// A port that leads nowhere.
    Port,
    /// It has ended before it began.
    Expired(Timestamp),
    /// A version far above the one in force.
    VersionJump {
        /// The version.
        version: u64,
        /// The version in force.
        in_force: u64,
    },
}

/// The same in both languages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Both {
    /// English.
    pub en: String,
    /// Chinese.
    pub zh: String,
}

fn both(en: impl Into<String>, zh: impl Into<String>) -> Both {
    Both { en: en.into(), zh: zh.into() }
}

impl Flaw {
    /// A flaw at a place.
    pub fn new(path: impl Into<String>, what: impl Into<String>, problem: Problem) -> Self {
        Self { path: path.into(), what: what.into(), problem }
    }
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = self.problem.message().en;
        if self.what.is_empty() { f.write_str(&said) } else { write!(f, "{} {said}", self.what) }
    }
}

impl Problem {
    /// A stable name for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::TooLarge(_) => "too-large",
            Self::Schema(_) => "schema",
            Self::Environment { .. } => "environment",
            Self::UnknownOrigin(_) => "unknown-origin",
            Self::UnknownCountry(_) => "unknown-country",
            Self::OutsideResidency(_) => "outside-residency",
            Self::Widens(_) => "widens-residency",
            Self::EmptyResidency => "empty-residency",
            Self::Shares(_) => "shares",
            Self::EndpointShares(_) => "endpoint-shares",
            Self::ShadowShare => "shadow-share",
            Self::NoEndpoint => "no-endpoint",
            Self::NoDefaultDomain => "no-default-domain",
            Self::PinId(_) => "pin-id",
            Self::NotHost(_) => "not-a-host",
            Self::Port => "port",
            Self::Expired(_) => "expired",
            Self::VersionJump { .. } => "version-jump",
        }
    }

    /// What is wrong; in English it follows the name of the thing.
    #[must_use]
    pub fn message(&self) -> Both {
        match self {
            Self::Unreadable(why) => both(format!("cannot be read: {why}"), format!("无法解析：{why}")),
            Self::TooLarge(bytes) => {
                both(format!("is too large: {bytes} bytes"), format!("过大：{bytes} 字节"))
            }
            Self::Schema(found) => {
                both(format!("has schema {found}, not 1"), format!("schema 为 {found}，应为 1"))
            }
            Self::Environment { found, expected } => both(
                format!("is for environment `{found}`, this fleet is `{expected}`"),
                format!("环境为 `{found}`，本平台为 `{expected}`"),
            ),
            Self::UnknownOrigin(origin) => both(
                format!("names origin {origin}, which is not in the table"),
                format!("引用了表中不存在的源站 {origin}"),
            ),
            Self::UnknownCountry(country) => both(
                format!("names country {country}, which is not in the table"),
                format!("引用了表中不存在的国家 {country}"),
            ),
            Self::OutsideResidency(origin) => both(
                format!("names origin {origin}, which is outside its residency"),
                format!("源站 {origin} 不在该国家的数据驻留范围内"),
            ),
            Self::Widens(origin) => both(
                format!("widens the residency of its country by {origin}"),
                format!("服务的驻留范围超出所属国家：{origin}"),
            ),
            Self::EmptyResidency => both(
                "has an empty residency, so that no order could be sent anywhere",
                "驻留范围为空，订单将无处可发",
            ),
            Self::Shares(total) => both(
                format!("has shares that add up to {total}, not {BASIS_POINTS}"),
                format!("份额合计为 {total}，应为 {BASIS_POINTS}"),
            ),
            Self::EndpointShares(total) => both(
                format!("has endpoints that share {total} basis points, not {BASIS_POINTS}"),
                format!("各接入点份额合计为 {total}，应为 {BASIS_POINTS}"),
            ),
            Self::ShadowShare => both(
                format!("is more than {BASIS_POINTS} basis points"),
                format!("超过 {BASIS_POINTS} 个基点"),
            ),
            Self::NoEndpoint => both("has no endpoint", "没有接入点"),
            Self::NoDefaultDomain => both("has no default domain", "缺少 default 域名"),
            Self::PinId(id) => both(
                format!("names `{id}`, which must begin with store:, device: or user:"),
                format!("`{id}` 必须以 store:、device: 或 user: 开头"),
            ),
            Self::NotHost(text) => both(
                format!("names `{text}`, which is not a host name"),
                format!("`{text}` 不是有效的主机名"),
            ),
            Self::Port => both("has port 0, which leads nowhere", "端口为 0，无法连接"),
            Self::Expired(at) => both(format!("expired at {at}"), format!("已于 {at} 过期")),
            Self::VersionJump { version, in_force } => both(
                format!("has version {version}, far above {in_force}, which is in force"),
                format!("版本 {version} 远高于现行版本 {in_force}"),
            ),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> Both {
        match self {
            Self::Unreadable(_) => both("Correct the JSON at this place.", "请修正此处的 JSON。"),
            Self::TooLarge(_) => both(
                "Devices accept 1 MiB: gather IDs with the same target into one pin.",
                "设备最多接受 1 MiB：请把目标相同的 ID 合并为一条固定规则。",
            ),
            Self::Schema(_) => both("Set schema to 1.", "请将 schema 设为 1。"),
            Self::Environment { expected, .. } => both(
                format!("Set environment to `{expected}`."),
                format!("请将 environment 设为 `{expected}`。"),
            ),
            Self::UnknownOrigin(_) => both(
                "Add it under origins, or name one that is there.",
                "请在 origins 中添加该源站，或改用已有的源站。",
            ),
            Self::UnknownCountry(_) => both(
                "Add it under countries, or remove this rule.",
                "请在 countries 中添加该国家，或删除此规则。",
            ),
            Self::OutsideResidency(origin) | Self::Widens(origin) => both(
                format!(
                    "Add {origin} to the country's residency if its data may be there, or name another origin."
                ),
                format!("如允许数据存放于 {origin}，请加入该国家的 residency；否则请改用其他源站。"),
            ),
            Self::EmptyResidency => {
                both("Name at least one origin that may hold the data.", "请至少指定一个可存放数据的源站。")
            }
            Self::Shares(_) | Self::EndpointShares(_) => both(
                format!("Change the basis points until they add up to {BASIS_POINTS}."),
                format!("请调整 basis_points，使合计为 {BASIS_POINTS}。"),
            ),
            Self::ShadowShare => {
                both(format!("Use 0 to {BASIS_POINTS}."), format!("请使用 0 到 {BASIS_POINTS}。"))
            }
            Self::NoEndpoint => {
                both("Add an endpoint with host and port.", "请添加包含 host 和 port 的接入点。")
            }
            Self::NoDefaultDomain => {
                both("Add a domain under the key `default`.", "请添加键为 `default` 的域名。")
            }
            Self::PinId(_) => both(
                "Write the kind before the ID, such as store:US-0001.",
                "请在 ID 前写明类型，例如 store:US-0001。",
            ),
            Self::NotHost(_) => both(
                "Use a bare name or address, without scheme and path.",
                "请只写主机名或地址，不含协议和路径。",
            ),
            Self::Port => both("Use 1 to 65535.", "请使用 1 到 65535。"),
            Self::Expired(_) => both("Set expires_at to a time to come.", "请将 expires_at 设为将来的时间。"),
            Self::VersionJump { .. } => both(
                "Use the next version: numbers that are used up do not come back.",
                "请使用下一个版本号：用掉的版本号无法收回。",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_told_in_both_languages_with_what_to_do() {
        let origin: OriginId = "apac".parse().unwrap();
        let problems = [
            Problem::Unreadable("x".into()),
            Problem::TooLarge(7),
            Problem::Schema(2),
            Problem::Environment { found: "a".into(), expected: "b".into() },
            Problem::UnknownOrigin(origin.clone()),
            Problem::UnknownCountry("DE".parse().unwrap()),
            Problem::OutsideResidency(origin.clone()),
            Problem::Widens(origin),
            Problem::EmptyResidency,
            Problem::Shares(1),
            Problem::EndpointShares(1),
            Problem::ShadowShare,
            Problem::NoEndpoint,
            Problem::NoDefaultDomain,
            Problem::PinId("x".into()),
            Problem::NotHost("x".into()),
            Problem::Port,
            Problem::Expired(Timestamp::from_millis(0)),
            Problem::VersionJump { version: 2, in_force: 1 },
        ];
        let mut codes: Vec<_> = problems.iter().map(Problem::code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), problems.len());
        for problem in problems {
            for Both { en, zh } in [problem.message(), problem.advice()] {
                assert!(en.is_ascii() && !zh.is_ascii(), "{en} / {zh}");
            }
            assert!(problem.advice().en.ends_with('.') && problem.advice().zh.ends_with('。'));
        }
    }
}
