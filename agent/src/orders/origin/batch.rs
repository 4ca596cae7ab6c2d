//! Batch mode: all orders of a parcel in one request (IO).

use super::{Answer, Parcel, Sender, Way, exchange, headers_of, unsendable};
use crate::orders::outcome::{BatchOutcome, read};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, header};
use samovar_wire::OriginId;
use samovar_wire::encoding::hex;
use samovar_wire::orders::{BatchWriter, OutgoingOrder};
use std::collections::HashSet;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// Smaller batches travel as they are.
const WORTH_COMPRESSING: usize = 1_024;

/// Compression with gzip, but not to origins that said they cannot read it; they are remembered until the agent starts
/// anew.
#[derive(Debug, Clone, Default)]
pub struct Gzip(Arc<Mutex<HashSet<OriginId>>>);

impl Gzip {
    fn is_read_by(&self, origin: &OriginId) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(origin)
    }

    fn is_not_read_by(&self, origin: &OriginId) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(origin.clone()) {
            tracing::info!(%origin, "the origin does not read gzip (415): batches travel uncompressed from now on");
        }
    }
}

/// Sends a parcel as one batch.
pub(super) async fn send(
    sender: &Sender,
    way: &Way,
    parcel: Parcel<'_>,
    gzip: Option<&Gzip>,
) -> BatchOutcome {
    let batch_id = uuid::Uuid::now_v7().to_string();
    let headers = match headers_of(sender, &parcel, &batch_id) {
        Ok(headers) => headers,
        Err(error) => return unsendable(&error),
    };
    let body = Bytes::from(write(&batch_id, &parcel));
    match post(sender, way, headers, body, gzip).await {
        Ok(answer) => {
            let ids: Vec<String> = parcel.orders.iter().map(|order| order.id.clone()).collect();
            read(&answer.raw(), &batch_id, &ids)
        }
        Err(outcome) => outcome,
    }
}

/// Posts a batch, compressed where that is read.
async fn post(
    sender: &Sender,
    way: &Way,
    headers: HeaderMap,
    body: Bytes,
    gzip: Option<&Gzip>,
) -> Result<Answer, BatchOutcome> {
    let url = format!("{}/v1/orders:batch", way.base_url);
    let gzip = gzip.filter(|gzip| body.len() >= WORTH_COMPRESSING && gzip.is_read_by(&way.origin));
    if let Some(gzip) = gzip
        && let Some(small) = compress(body.clone()).await
    {
        let mut headers = headers.clone();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let answer = exchange(sender, way, way.client.post(&url).headers(headers).body(small)).await?;
        if answer.status != 415 {
            return Ok(answer);
        }
        gzip.is_not_read_by(&way.origin);
    }
    exchange(sender, way, way.client.post(&url).headers(headers).body(body)).await
}

/// `None` when nothing is gained. Megabytes take a small processor a while, so not on a thread that serves tills.
async fn compress(body: Bytes) -> Option<Vec<u8>> {
    let compressing = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
        encoder.write_all(&body).ok()?;
        encoder.finish().ok().filter(|small| small.len() < body.len())
    });
    compressing.await.ok().flatten()
}

fn write(batch_id: &str, parcel: &Parcel<'_>) -> Vec<u8> {
    let mut writer = BatchWriter::new(batch_id);
    for order in parcel.orders {
        let sha256 = hex(&order.sha256);
        let outgoing = OutgoingOrder {
            id: &order.id,
            key: &order.key,
            sha256: &sha256,
            order_no: &order.order_no,
            seq: order.seq,
            udl: parcel.udl.as_str(),
            accepted_at: order.accepted_at,
        };
        writer.push(&outgoing, &order.body);
    }
    writer.finish()
}
