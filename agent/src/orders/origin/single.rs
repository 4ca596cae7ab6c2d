//! Single mode: one request per order, to an API that the origin has already (IO).

use super::{Parcel, Sender, Way, exchange, headers_of, unsendable};
use crate::config::{Field, SingleMethod, SingleSection};
use crate::orders::ledger::Outgoing;
use crate::orders::outcome::{BatchOutcome, OrderVerdict, SingleAnswer, combine, read_single};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::Deserialize;

/// Orders on their way to one origin at the same time. The dispatcher hands over no more in this mode, so that nothing
/// is bound to an origin that was not tried there.
pub const AT_ONCE: usize = 4;

/// Sends the orders of a parcel side by side.
pub(super) async fn send(
    sender: &Sender,
    way: &Way,
    parcel: Parcel<'_>,
    rules: &SingleSection,
) -> BatchOutcome {
    combine(join_all(parcel.orders.iter().map(|order| one(sender, way, &parcel, rules, order))).await)
}

async fn one(
    sender: &Sender,
    way: &Way,
    parcel: &Parcel<'_>,
    rules: &SingleSection,
    order: &Outgoing,
) -> Result<OrderVerdict, BatchOutcome> {
    let value = |field| value(field, sender, parcel, order);
    let mut headers = headers_of(sender, parcel, &order.key).map_err(|error| unsendable(&error))?;
    add(&mut headers, rules, &value).map_err(|error| unsendable(&error))?;
    let method = match rules.method {
        SingleMethod::Post => Method::POST,
        SingleMethod::Put => Method::PUT,
    };
    let url = format!("{}{}", way.base_url, rules.path.fill(&value));
    let request = way.client.request(method, url).headers(headers).body(order.body.clone());
    let answer = exchange(sender, way, request).await?;
    let mark = rules.mark().and_then(|(name, _)| answer.headers.get(name)?.to_str().ok()).map(str::trim);
    read_single(rules, &SingleAnswer { raw: answer.raw(), mark })
}

fn add(
    headers: &mut HeaderMap,
    rules: &SingleSection,
    value: &dyn Fn(Field) -> String,
) -> Result<(), header::InvalidHeaderValue> {
    for (name, template) in &rules.headers {
        // Names were checked when the configuration was read.
        let Ok(name) = name.parse::<HeaderName>() else { continue };
        let mut filled = HeaderValue::from_str(&template.fill(value))?;
        filled.set_sensitive(name == header::AUTHORIZATION);
        headers.insert(name, filled);
    }
    Ok(())
}

fn value(field: Field, sender: &Sender, parcel: &Parcel<'_>, order: &Outgoing) -> String {
    match field {
        Field::Id => order.id.clone(),
        Field::Key => order.key.clone(),
        Field::OrderNo => order.order_no.clone(),
        Field::Udl => parcel.udl.as_str().to_owned(),
        Field::Store => sender.store.as_str().to_owned(),
        Field::Device => sender.device.as_str().to_owned(),
        Field::Seq => order.seq.to_string(),
        Field::Kind => kind(&order.body),
    }
}

/// The kind as it was read when the order was accepted.
fn kind(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        kind: Option<String>,
    }
    let kind = serde_json::from_slice::<Envelope>(body).ok().and_then(|envelope| envelope.kind);
    kind.unwrap_or_else(|| "sale".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_does_not_say_is_a_sale() {
        assert_eq!(kind(br#"{"order_no":"A-1"}"#), "sale");
        assert_eq!(kind(br#"{"order_no":"A-1","kind":null}"#), "sale");
        assert_eq!(kind(br#"{"kind":"refund"}"#), "refund");
    }
}
