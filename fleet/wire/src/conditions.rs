//! The closed list of conditions: every named thing that can be wrong with a device.
//!
//! The local page, MQTT, the console and support read the same names and the same words. A condition that hides
//! behind another (`depends_on`) is a symptom and is not shown while its cause holds; one that often heals by itself
//! becomes visible only after `visible_after_s`.

use serde::{Deserialize, Serialize};

/// How much a condition matters to the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Somebody should look, the shop goes on.
    Warning,
    /// Sales are stopped or at risk.
    Critical,
}

/// A text in the languages of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// English.
    pub en: &'static str,
    /// Simplified Chinese.
    pub zh: &'static str,
}

/// What the catalogue says of one condition.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// How much it matters.
    pub severity: Severity,
    /// The cause behind which this one hides.
    pub depends_on: Option<Condition>,
    /// Seconds it must have held before anyone is shown it.
    pub visible_after_s: u32,
    /// For the people in the shop: what it means and what to do.
    pub staff: Words,
    /// For the technician: what is wrong and where to look.
    pub technician: Words,
}

macro_rules! conditions {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, $severity:ident, $depends_on:expr, $visible_after_s:literal,
        staff { $staff_en:literal, $staff_zh:literal }, technician { $tech_en:literal, $tech_zh:literal }; )*) => {
        /// A condition, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum Condition { $( $(#[$doc])* #[serde(rename = $name)] $variant, )* }

        impl Condition {
            /// The whole list.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// What the catalogue says of it.
            #[must_use]
            pub const fn describe(self) -> Description {
                match self { $( Self::$variant => Description {
                    severity: Severity::$severity,
                    depends_on: $depends_on,
                    visible_after_s: $visible_after_s,
                    staff: Words { en: $staff_en, zh: $staff_zh },
                    technician: Words { en: $tech_en, zh: $tech_zh },
                }, )* }
            }
        }
    };
}

conditions! {
    /// The ledger cannot be written.
    StorageFailing = "storage-failing", Critical, None, 0,
        staff { "Orders cannot be saved on this device. Use another till and call support.", "本机无法保存订单。请换用其他收银机并联系技术支持。" },
        technician { "The ledger cannot be written: check the disk, its free space and its mount options.", "账本无法写入：请检查磁盘、剩余空间和挂载选项。" };
    /// The ledger has reached its limit.
    LedgerFull = "ledger-full", Critical, None, 0,
        staff { "This device has no room for more orders. Use another till and call support.", "本机已无空间保存新订单。请换用其他收银机并联系技术支持。" },
        technician { "The ledger is at its limit and refuses orders: restore the line or raise orders.max_bytes or orders.max_orders.", "账本已达上限并拒收订单：请恢复网络或提高 orders.max_bytes、orders.max_orders。" };
    /// The ledger is at 80 % of its limit.
    LedgerNearlyFull = "ledger-nearly-full", Warning, Some(Condition::LedgerFull), 0,
        staff { "Many orders are waiting to be sent. Sales go on; check the store's internet line.", "大量订单等待发送。营业不受影响；请检查门店网络。" },
        technician { "The ledger is at 80 % of a limit: find out why orders do not leave.", "账本已用到上限的 80%：请查明订单为何未送出。" };
    /// A damaged ledger was set aside and a new one begun.
    LedgerSetAside = "ledger-set-aside", Critical, None, 0,
        staff { "Part of the order memory was damaged. Sales go on; call support today.", "部分订单记录损坏。营业不受影响；请于当天联系技术支持。" },
        technician { "The ledger was damaged or missing; a new one is in use and orders are being brought over. Leave the old files.", "账本损坏或丢失，现使用新账本，订单正在恢复。请勿移动旧文件。" };
    /// Orders of a damaged ledger could not all be brought over.
    LedgerLosses = "ledger-losses", Critical, None, 0,
        staff { "Some orders of this device were damaged. Sales go on; keep the receipts and call support today.", "本机部分订单损坏。营业不受影响；请保留小票并于当天联系技术支持。" },
        technician { "A damaged ledger was salvaged with losses: compare the places named with head office, then remove the kept file and restart.", "账本恢复后仍有缺失：请将所列序号与总部核对，然后移走保留的文件并重启。" };
    /// Every order of a damaged ledger was brought over.
    LedgerSalvaged = "ledger-salvaged", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "A damaged ledger was salvaged whole: check the disk; the kept file may be removed, then restart.", "损坏的账本已全部恢复：请检查磁盘；可移走保留的文件并重启。" };
    /// The ledger's files were taken away while it was open, and brought back whole.
    LedgerRescued = "ledger-rescued", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "Files of the ledger were removed, moved or replaced while the agent ran; every order was brought back. Find out who did it: sales stood still meanwhile.", "代理运行期间账本文件被删除、移动或替换；所有订单均已恢复。请查明原因：期间无法收单。" };
    /// Orders that were acknowledged may be missing from the ledger.
    LedgerDoubt = "ledger-doubt", Critical, None, 0,
        staff { "Some orders of this device may be missing. Sales go on; keep the receipts and call support today.", "本机部分订单可能缺失。营业不受影响；请保留小票并于当天联系技术支持。" },
        technician { "The ledger's journal is gone, or the ledger is an older copy: orders acknowledged last may be missing. Compare receipts with head office, then remove orders.doubt and restart.", "账本日志丢失，或账本为较早的副本：最后确认的订单可能缺失。请将小票与总部核对，然后删除 orders.doubt 并重启。" };
    /// Orders are kept whose body does not match its digest.
    OrdersDamaged = "orders-damaged", Critical, None, 0,
        staff { "An order was damaged on this device. Keep its receipt and call support with the order number.", "有订单在本机损坏。请保留小票并带订单号联系技术支持。" },
        technician { "The disk damaged orders: hand each in again under a new key from the till's receipt, then discard it; replace the disk.", "磁盘损坏了订单：请据小票以新键重新提交并作废原单；更换磁盘。" };
    /// Orders are kept whose body cannot be opened.
    OrdersUnreadable = "orders-unreadable", Critical, None, 0,
        staff { "Some orders are kept but cannot be opened. Sales go on; call support today.", "部分订单已保存但无法打开。营业不受影响；请于当天联系技术支持。" },
        technician { "The key of these orders is missing: put its file back beside the ledger as ledger.key.old and restart, or retry each.", "缺少这些订单的密钥：请将密钥文件以 ledger.key.old 放回账本旁并重启，或逐一重试。" };
    /// The device has not been activated.
    NotActivated = "not-activated", Critical, None, 0,
        staff { "This device is not set up yet and takes no orders. Call the technician.", "本机尚未激活，不能接收订单。请联系技术人员。" },
        technician { "No identity: activate the device with a claim code.", "没有设备身份：请用激活码激活。" };
    /// No route table verifies.
    RouteTableMissing = "route-table-missing", Critical, Some(Condition::NotActivated), 0,
        staff { "Orders are kept, but cannot be sent yet. Call support.", "订单已保存，但暂时无法发送。请联系技术支持。" },
        technician { "No route table is in force: check routing.table, routing.trusted_keys and routing.environment.", "没有生效的路由表：请检查 routing.table、routing.trusted_keys 和 routing.environment。" };
    /// A route table was offered and refused.
    RouteTableRefused = "route-table-refused", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "A route table was refused, the old one stays in force: read the reason.", "新路由表被拒绝，旧表继续生效：请查看原因。" };
    /// The route table in force is past its end.
    RouteTableExpired = "route-table-expired", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "The route table in force has expired and still routes: the fleet should publish a new one.", "当前路由表已过期但仍在使用：应由总部发布新表。" };
    /// Nothing outside the store answers.
    LineDown = "line-down", Warning, None, 5,
        staff { "The store's internet line is down. Sales go on; check the router and its cables.", "门店网络中断。营业不受影响；请检查路由器和网线。" },
        technician { "No origin answers: look at the link, the gateway and the names, in this order.", "所有源站均无应答：请依次检查链路、网关和域名解析。" };
    /// The chosen origin does not answer.
    OriginUnreachable = "origin-unreachable", Warning, Some(Condition::LineDown), 5,
        staff { "Orders are kept and will be sent later. Nothing to do.", "订单已保存，稍后自动发送。无需处理。" },
        technician { "The origin does not answer: see its last error.", "源站无应答：请查看最近一次错误。" };
    /// Something else answers in the origin's place.
    NotTheOrigin = "not-the-origin", Warning, None, 0,
        staff { "The network asks for a sign-in or changes our traffic. Check whether the Wi-Fi wants a login.", "网络要求登录或篡改了通信。请检查 Wi-Fi 是否需要登录。" },
        technician { "An answer did not come from the origin (captive portal, proxy or wrong route): nothing was settled by it.", "应答并非来自源站（认证门户、代理或路由错误）：该应答未结算任何订单。" };
    /// An origin comes and goes.
    OriginFlapping = "origin-flapping", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "An origin was left three times within an hour; another one serves until it has been steady for an hour.", "某源站一小时内三次失去响应；在其稳定一小时之前由其他源站服务。" };
    /// The origin does not accept this device's identity.
    IdentityRefused = "identity-refused", Critical, None, 0,
        staff { "Orders are kept, but head office does not recognise this device. Call support.", "订单已保存，但总部不认可本机身份。请联系技术支持。" },
        technician { "The origin answers 401 or 403: renew the certificate or check the token.", "源站返回 401 或 403：请续签证书或检查令牌。" };
    /// Orders wait because no allowed origin exists for them.
    ResidencyHold = "residency-hold", Warning, None, 0,
        staff { "Some orders are kept until head office allows a place for them. Nothing to do.", "部分订单等待总部指定存放地。无需处理。" },
        technician { "Orders are held: their country is not in the route table, or none of its origins may take them.", "订单被保留：路由表没有该国家，或其允许的源站均不可用。" };
    /// An origin refused orders for good.
    OrdersQuarantined = "orders-quarantined", Warning, None, 0,
        staff { "An order was refused by head office. Call support with the order number.", "有订单被总部拒绝。请带订单号联系技术支持。" },
        technician { "Orders are in quarantine: read the origin's words, then retry or discard each.", "有订单被隔离：请查看源站说明，再逐一重试或作废。" };
    /// A key came twice with different content.
    KeyConflict = "key-conflict", Warning, None, 0,
        staff { "Two different orders came with one number. Call support with the order number.", "两张不同的订单使用了同一编号。请带订单号联系技术支持。" },
        technician { "A key was reused with other content: the till repeats its numbers; let it send Idempotency-Key.", "同一键对应不同内容：收银软件重复编号，应发送 Idempotency-Key。" };
    /// An origin answers and takes no orders.
    OriginTakesNoOrders = "origin-takes-no-orders", Warning, Some(Condition::OriginUnreachable), 60,
        staff { "Orders are kept and will be sent later. Nothing to do here; head office has been told.", "订单已保存，稍后自动发送。门店无需处理；总部已收到通知。" },
        technician { "The origin is there but answers orders with 429 or 5xx, or not at all: tell the people who run it; orders are tried again by themselves.", "源站可达，但对订单一直应答 429、5xx 或不应答：请通知源站负责人；订单会自动重试。" };
    /// The oldest pending order does not leave.
    OrdersWaiting = "orders-waiting", Warning, Some(Condition::LineDown), 0,
        staff { "Some orders have been waiting for long. Sales go on; head office has been told.", "部分订单等待较久。营业不受影响；总部已收到通知。" },
        technician { "The oldest pending order has not left for 15 minutes: read its last error; if its origin never answers for it, ask there what it does with this order.", "最早的待发订单已 15 分钟未送出：请查看其最近一次错误；若源站始终不应答，请查明源站如何处理该订单。" };
    /// Orders wait for one that was discarded.
    OrdersStranded = "orders-stranded", Warning, None, 0,
        staff { "A refund or change waits because its sale was discarded. Call support with the order number.", "有退款或改单因原单已作废而等待。请带订单号联系技术支持。" },
        technician { "Orders are held for an order that was discarded and will never be settled: retry each with the device's token, or discard it.", "订单等待的原单已作废，不会再结算：请用设备令牌逐一重试或作废。" };
    /// An origin answered both ways for one order.
    OriginContradictsItself = "origin-contradicts-itself", Warning, None, 0,
        staff { "Orders are kept. Nothing to do here; head office has been told.", "订单已保存。门店无需处理；总部已收到通知。" },
        technician { "The origin gave two different answers for one order, so neither counts and the order is sent again: tell the people who run it, with the order's number.", "源站对同一订单给出两种应答，均不作数并将重发：请带订单号通知源站负责人。" };
    /// A shadow origin judges many orders otherwise.
    ShadowsDiffer = "shadows-differ", Info, None, 0,
        staff { "Nothing to do here; orders are sent as usual.", "门店无需处理；订单照常发送。" },
        technician { "A shadow origin judges many orders otherwise than their own: see the examples in the status and do not move stores there before they are explained.", "影子源站对许多订单的判断与原源站不同：请查看状态中的示例，原因查明前勿将门店切换过去。" };
    /// MQTT is not connected.
    RelayDisconnected = "relay-disconnected", Warning, Some(Condition::LineDown), 10,
        staff { "Head office cannot see this device right now. Sales go on.", "总部暂时看不到本机。营业不受影响。" },
        technician { "MQTT is not connected: see the broker's last answer.", "MQTT 未连接：请查看 broker 的最近应答。" };
    /// Events were dropped because nobody acknowledged them.
    OutboxOverflow = "outbox-overflow", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "The event outbox was full and dropped its oldest events.", "事件发件箱已满，最旧的事件被丢弃。" };
    /// The device certificate ends soon and was not renewed.
    CertificateExpiring = "certificate-expiring", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "The device certificate ends soon and could not be renewed: see the reason.", "设备证书即将到期且未能续签：请查看原因。" };
    /// The device certificate has ended.
    CertificateExpired = "certificate-expired", Critical, None, 0,
        staff { "Orders are kept, but this device's pass has ended. Call support.", "订单已保存，但本机证书已过期。请联系技术支持。" },
        technician { "The device certificate has expired: activate the device again, or correct its clock.", "设备证书已过期：请重新激活，或校正时钟。" };
    /// An origin lost orders that it had settled.
    OrdersMissingAtOrigin = "orders-missing-at-origin", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "The origin lacks orders that it had acknowledged; they are sent again where their bodies are kept: see which origin, and ask what it lost.", "源站缺少其已确认的订单；仍保留内容的订单会重新发送：请查看是哪个源站并查明丢失原因。" };
    /// An origin has orders of this device that the device does not know.
    OrdersUnknownToDevice = "orders-unknown-to-device", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "The origin has orders of this ledger that the device does not know (keys in the detail). After a restore from a copy they are sales made before it: they are safe at the origin, do not enter them again. Without a restore, look for a second device with this identity. Nothing is changed.", "源站存有本机账本中不存在的订单（详情列出单号）。若本机由备份恢复，这些是恢复前的销售，源站已保存，请勿重新录入；若未恢复过，请检查是否有另一台设备使用同一身份。系统未做任何改动。" };
    /// Orders cannot be compared with an origin.
    OriginDoesNotReconcile = "origin-does-not-reconcile", Info, None, 0,
        staff { "Nothing to do here; orders are sent as usual.", "门店无需处理；订单照常发送。" },
        technician { "The origin does not answer the comparison of orders: nothing is sent again, and bodies of old orders are kept for longer or go unconfirmed: see why.", "源站不响应订单核对：不会重新发送订单，旧订单内容将延长保留或未经确认即清除：请查看原因。" };
    /// A name points elsewhere by hand.
    OverrideActive = "override-active", Info, None, 0,
        staff { "A technician is testing this device. Nothing to do.", "技术人员正在测试本机。无需处理。" },
        technician { "A name of this device points elsewhere by hand and for a while: see who, why and until when.", "本机有域名被人工临时指向其他地址：请查看由谁设置、原因和到期时间。" };
    /// An override does not do what it should.
    OverrideNotEffective = "override-not-effective", Warning, None, 0,
        staff { "A technician is testing this device, and the test does not work yet. Nothing to do.", "技术人员正在测试本机，测试尚未生效。无需处理。" },
        technician { "A host override does not take effect: see why, then correct or clear it.", "域名改向未生效：请查看原因，然后更正或清除。" };
    /// The hosts file is not as the overrides want it.
    HostsFileConflict = "hosts-file-conflict", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "The hosts file has lines that contradict a host override, or another program changes ours, or ours cannot be taken out: see which.", "hosts 文件中有与域名改向冲突的行，或其他程序改动了我们的行，或我们的行无法移除：请查看详情。" };
    /// A small file was damaged and set aside.
    FileSetAside = "file-set-aside", Warning, None, 0,
        staff { "Nothing to do here; head office has been told.", "门店无需处理；总部已收到通知。" },
        technician { "A file in the data directory was damaged and set aside: see which.", "数据目录中有文件损坏并被移开：请查看是哪个文件。" };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_chinese(text: &str) -> bool {
        text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c))
    }

    #[test]
    fn every_condition_has_words_in_both_languages_for_both_readers() {
        for condition in Condition::ALL {
            let description = condition.describe();
            for words in [description.staff, description.technician] {
                assert!(words.en.is_ascii() && words.en.len() > 10, "{condition:?}");
                assert!(is_chinese(words.zh), "{condition:?}");
            }
        }
    }

    #[test]
    fn names_are_unique_and_the_same_on_the_wire() {
        let mut names: Vec<_> = Condition::ALL.iter().map(|c| c.name()).collect();
        for condition in Condition::ALL {
            let json = serde_json::to_string(condition).unwrap();
            assert_eq!(json, format!("\"{}\"", condition.name()));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Condition::ALL.len());
    }

    #[test]
    fn no_condition_hides_behind_itself() {
        for condition in Condition::ALL {
            let mut seen = vec![*condition];
            let mut cause = condition.describe().depends_on;
            while let Some(next) = cause {
                assert!(!seen.contains(&next), "{condition:?} depends on itself");
                seen.push(next);
                cause = next.describe().depends_on;
            }
        }
    }
}
