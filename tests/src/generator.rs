//! A day of a tea shop, the same for the same seed: rush hours, refunds of earlier sales, guests from abroad, names in
//! several scripts.

use fastrand::Rng;
use samovar_wire::Timestamp;
use serde_json::{Value, json};

/// One order of a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayOrder {
    /// Seconds after midnight.
    pub at_s: u32,
    /// The till's number; its key too.
    pub order_no: String,
    /// The number of the order that must be settled first.
    pub depends_on: Option<String>,
    /// The document, as the till sends it.
    pub body: String,
}

/// How many orders come in an hour, from opening at 8 to closing at 22: breakfast, lunch, after work.
const HOURLY: [(u32, u32); 14] = [
    (8, 210),
    (9, 150),
    (10, 90),
    (11, 110),
    (12, 260),
    (13, 220),
    (14, 110),
    (15, 100),
    (16, 110),
    (17, 140),
    (18, 230),
    (19, 160),
    (20, 80),
    (21, 40),
];

/// Midday, when the shop is fullest: seconds after midnight.
pub const RUSH_HOUR: std::ops::Range<u32> = 12 * 3600..13 * 3600;

/// Opening hours: seconds after midnight.
pub const OPEN: std::ops::Range<u32> = 8 * 3600..22 * 3600;

/// Name, price in cents.
const MENU: [(&str, &str, u32); 12] = [
    ("T01", "Assam, milk", 390),
    ("T02", "茉莉绿茶", 420),
    ("T03", "珍珠奶茶 (大)", 560),
    ("T04", "ほうじ茶ラテ", 540),
    ("T05", "Масала-чай", 480),
    ("T06", "Thé glacé à la pêche", 450),
    ("T07", "Earl Grey \"extra\"", 410),
    ("T08", "芝士葡萄 🍇", 690),
    ("T09", "수정과", 470),
    ("T10", "Mate con limón", 430),
    ("T11", "شاي بالنعناع", 400),
    ("T12", "Oolong \\ cold brew", 520),
];

/// 00:00 UTC of the day that is told.
const MIDNIGHT: &str = "2026-11-20T00:00:00.000Z";

/// The orders of a day by time. About one in forty is a refund, one in sixteen concerns a guest whose data live in Japan.
#[must_use]
pub fn day(seed: u64) -> Vec<DayOrder> {
    let mut rng = Rng::with_seed(seed);
    let mut times: Vec<u32> = HOURLY
        .iter()
        .flat_map(|&(hour, orders)| (0..orders).map(move |_| hour))
        .map(|hour| hour * 3600 + rng.u32(0..3600))
        .collect();
    times.sort_unstable();
    let midnight = MIDNIGHT.parse().unwrap_or(Timestamp::from_millis(0));
    let mut orders: Vec<DayOrder> = Vec::with_capacity(times.len());
    for (index, at_s) in times.into_iter().enumerate() {
        let order_no = format!("US-0001-{:05}", index + 1);
        let placed_at = midnight.plus(std::time::Duration::from_secs(at_s.into())).to_string();
        let sale = (index > 40 && rng.u32(0..40) == 0).then(|| &orders[rng.usize(0..index)]);
        let body = match sale.filter(|sale| sale.depends_on.is_none()) {
            Some(sale) => refund(&order_no, &placed_at, sale),
            None => self::sale(&mut rng, &order_no, &placed_at),
        };
        let depends_on = body.get("depends_on").and_then(Value::as_str).map(ToOwned::to_owned);
        orders.push(DayOrder { at_s, order_no, depends_on, body: body.to_string() });
    }
    orders
}

fn sale(rng: &mut Rng, order_no: &str, placed_at: &str) -> Value {
    let mut total = 0;
    let lines: Vec<_> = (0..rng.u32(1..5))
        .map(|_| {
            let (sku, name, cents) = MENU[rng.usize(0..MENU.len())];
            let quantity = rng.u32(1..4);
            total += cents * quantity;
            json!({ "sku": sku, "name": name, "quantity": quantity, "price": money(cents) })
        })
        .collect();
    let mut order = json!({ "order_no": order_no, "placed_at": placed_at, "kind": "sale", "lines": lines,
        "total": money(total), "currency": "USD", "call_number": rng.u32(1..1000) });
    if rng.u32(0..16) == 0 {
        order["udl"] = json!("JP");
    }
    if rng.u32(0..3) == 0 {
        order["user"] = json!(format!("u-{}", rng.u32(0..500)));
    }
    order
}

fn refund(order_no: &str, placed_at: &str, sale: &DayOrder) -> Value {
    let original: Value = serde_json::from_str(&sale.body).unwrap_or_default();
    let mut order = json!({ "order_no": order_no, "placed_at": placed_at, "kind": "refund",
        "depends_on": sale.order_no, "total": original["total"], "currency": "USD" });
    // A refund follows its sale to the same place.
    for field in ["udl", "user"] {
        if let Some(value) = original.get(field) {
            order[field] = value.clone();
        }
    }
    order
}

fn money(cents: u32) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_tells_the_same_day() {
        assert_eq!(day(7), day(7));
        assert_ne!(day(7), day(8));
    }

    #[test]
    fn a_day_has_about_two_thousand_orders_with_numbers_of_their_own() {
        let orders = day(1);
        assert_eq!(orders.len(), 2010);
        let numbers: BTreeSet<_> = orders.iter().map(|order| &order.order_no).collect();
        assert_eq!(numbers.len(), orders.len());
        assert!(orders.iter().all(|order| OPEN.contains(&order.at_s)));
        assert!(orders.iter().any(|order| !order.body.is_ascii()));
    }

    #[test]
    fn refunds_name_an_earlier_sale() {
        let orders = day(3);
        let refunds: Vec<_> = orders.iter().filter(|order| order.depends_on.is_some()).collect();
        assert!((20..120).contains(&refunds.len()), "{}", refunds.len());
        for refund in refunds {
            let sale =
                orders.iter().find(|order| Some(&order.order_no) == refund.depends_on.as_ref()).unwrap();
            assert!(sale.at_s <= refund.at_s && sale.depends_on.is_none());
        }
    }
}
