//! Orders from a till's export: one line per item, lines of one order share a `transaction_id`.
//!
//! `line_id,transaction_id,datetime,shop_id,product_id,quantity,price,cost`, UTF-8 with or without a byte-order mark.
//! Product names come from `products.csv` beside the file when it is there.

use crate::generator::DayOrder;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

#[derive(Debug, Deserialize)]
struct Line {
    line_id: String,
    transaction_id: String,
    datetime: String,
    shop_id: String,
    product_id: String,
    quantity: u32,
    price: String,
}

#[derive(Debug, Deserialize)]
struct Product {
    product_id: String,
    product_name: String,
}

/// Reads the orders of a file in the order in which they first appear.
///
/// # Errors
/// When a file cannot be read or a line does not have the form above.
pub fn read(path: &Path) -> Result<Vec<DayOrder>> {
    let lines: Vec<Line> = rows(path)?;
    let products = path.with_file_name("products.csv");
    let products: Vec<Product> = if products.is_file() { rows(&products)? } else { Vec::new() };
    let names: HashMap<_, _> = products.into_iter().map(|p| (p.product_id, p.product_name)).collect();
    let orders = group(&lines, &names)?;
    ensure!(!orders.is_empty(), "{} holds no orders", path.display());
    Ok(orders)
}

fn rows<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let text = text.trim_start_matches('\u{feff}');
    csv::Reader::from_reader(text.as_bytes())
        .deserialize()
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not in the expected form", path.display()))
}

fn group(lines: &[Line], names: &HashMap<String, String>) -> Result<Vec<DayOrder>> {
    let mut place: HashMap<&str, usize> = HashMap::new();
    let mut orders: Vec<(&Line, Vec<Value>)> = Vec::new();
    for line in lines {
        let at = *place.entry(&line.transaction_id).or_insert_with(|| {
            orders.push((line, Vec::new()));
            orders.len() - 1
        });
        orders[at].1.push(json!({ "line": line.line_id, "sku": line.product_id,
            "name": names.get(&line.product_id), "quantity": line.quantity, "price": line.price }));
    }
    orders.into_iter().map(|(first, items)| order(first, &items)).collect()
}

fn order(first: &Line, items: &[Value]) -> Result<DayOrder> {
    let (date, time) = first.datetime.split_once(' ').context("a `datetime` without a space")?;
    let body = json!({ "order_no": first.transaction_id, "placed_at": format!("{date}T{time}.000Z"),
        "shop": first.shop_id, "lines": items });
    Ok(DayOrder {
        at_s: seconds(time).with_context(|| format!("`{time}` is not a time"))?,
        order_no: first.transaction_id.clone(),
        depends_on: None,
        body: body.to_string(),
    })
}

fn seconds(time: &str) -> Option<u32> {
    let mut parts = time.split(':').map(|part| part.parse::<u32>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_transaction_are_one_order() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sales.csv");
        let text = "\u{feff}line_id,transaction_id,datetime,shop_id,product_id,quantity,price,cost\n\
                    L1,T1,2024-01-01 08:41:30,S1,P1,1,225,90\nL2,T2,2024-01-01 08:50:00,S1,P2,2,125,75\n\
                    L3,T1,2024-01-01 08:41:30,S1,P2,1,125,75\n";
        std::fs::write(&file, text).unwrap();
        std::fs::write(file.with_file_name("products.csv"), "product_id,product_name\nP1,Чай\n").unwrap();
        let orders = read(&file).unwrap();
        assert_eq!(orders.len(), 2);
        assert_eq!(orders[0].order_no, "T1");
        let body: Value = serde_json::from_str(&orders[0].body).unwrap();
        assert_eq!(body["lines"].as_array().unwrap().len(), 2);
        assert_eq!(body["lines"][0]["name"], "Чай");
        assert_eq!(body["placed_at"], "2024-01-01T08:41:30.000Z");
        assert_eq!(orders[0].at_s, 8 * 3600 + 41 * 60 + 30);
    }

    #[test]
    fn a_file_of_another_form_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("other.csv");
        std::fs::write(&file, "a,b\n1,2\n").unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("other.csv"), "{error}");
    }

    #[test]
    fn the_published_sample_has_twenty_thousand_orders() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/orders/sales.csv");
        if sample.is_file() {
            assert_eq!(read(&sample).unwrap().len(), 20_000);
        }
    }
}
