//! The comparison of orders (contracts §2), honest until told otherwise.

use super::answers::{MAX_REQUEST, html, json, refusal};
use super::behaviour::Comparison;
use super::store::{Held, Store};
use super::{Body, World};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use samovar_wire::encoding::sha256_from_hex;
use samovar_wire::reconcile::{
    Digest, KeyDigest, LEAF_PLACES, MAX_KEYS, MAX_RANGES, RangeDigest, RangeVerdict, ReconcileAnswer,
    ReconcileRequest,
};
use std::io;

pub(super) async fn reconcile(world: &World, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let body =
        Limited::new(request.into_body(), MAX_REQUEST).collect().await.map_err(io::Error::other)?.to_bytes();
    let request = serde_json::from_slice::<ReconcileRequest>(&body).ok().filter(is_within_limits);
    let Some(request) = request else { return Ok(refusal(400, None)) };
    let (comparison, ranges) = {
        let mut state = world.lock();
        state.comparisons += 1;
        (state.comparison, verdicts(&state.store, &request, state.comparison))
    };
    match comparison {
        Comparison::Absent => Ok(refusal(404, None)),
        Comparison::Status(status) => Ok(refusal(status, None)),
        Comparison::Stall => std::future::pending().await,
        Comparison::Portal => Ok(html()),
        Comparison::Honest | Comparison::WithoutLists | Comparison::AlwaysMissing => {
            let answer = ReconcileAnswer { ranges, server_time: None };
            Ok(json(200, "application/json", serde_json::to_vec(&answer).unwrap_or_default()))
        }
    }
}

fn is_within_limits(request: &ReconcileRequest) -> bool {
    let keys = |range: &RangeDigest| range.keys.as_ref().map_or(0, Vec::len);
    let is_leaf = |range: &RangeDigest| range.to_seq - range.from_seq < LEAF_PLACES;
    request.ranges.len() <= MAX_RANGES
        && request.ranges.iter().map(keys).sum::<usize>() <= MAX_KEYS
        && request.ranges.iter().all(|range| range.from_seq <= range.to_seq)
        && request.ranges.iter().all(|range| range.keys.is_none() || is_leaf(range))
}

fn verdicts(store: &Store, request: &ReconcileRequest, comparison: Comparison) -> Vec<RangeVerdict> {
    let device = request.device.as_str();
    let ours: Vec<(&str, &Held)> = store
        .orders()
        .iter()
        .filter(|((sender, _), held)| sender == device && held.ledger == request.ledger)
        .map(|((_, key), held)| (key.as_str(), held))
        .collect();
    request.ranges.iter().map(|range| verdict(&ours, range, comparison)).collect()
}

fn verdict(ours: &[(&str, &Held)], range: &RangeDigest, comparison: Comparison) -> RangeVerdict {
    let (mut count, mut digest, mut here) = (0, Digest::default(), Vec::new());
    for (key, held) in ours.iter().filter(|(_, held)| (range.from_seq..=range.to_seq).contains(&held.seq)) {
        count += 1;
        digest.add(key, &sha256_from_hex(&held.sha256).unwrap_or_default());
        here.push(KeyDigest { seq: held.seq, key: (*key).to_owned(), sha256: held.sha256.clone() });
    }
    let always_missing = comparison == Comparison::AlwaysMissing;
    let matches = (count, digest) == (range.count, range.digest) && !always_missing;
    let shown = range.keys.as_ref().filter(|_| !matches && comparison != Comparison::WithoutLists);
    let missing = shown.map(|keys| {
        let lacks = |key: &&KeyDigest| always_missing || !here.contains(key);
        keys.iter().filter(lacks).map(|key| key.key.clone()).collect()
    });
    let unknown = shown.map(|keys| {
        let known = |key: &&KeyDigest| !keys.iter().any(|shown| shown.key == key.key);
        here.iter().filter(known).map(|key| key.key.clone()).collect()
    });
    RangeVerdict { from_seq: range.from_seq, to_seq: range.to_seq, matches, missing, unknown }
}
