//! The producer: cart events, numbered per product, put so that each product's order holds.
//!
//! Kinesis keeps the order of what it accepted, but of one PutRecords call it may accept the second record
//! of a key and refuse the first. So one call is under way at a time, it has at most one record of a
//! product, and what was refused goes first into the next.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use aws_sdk_kinesis::{Client, primitives::Blob, types::PutRecordsRequestEntry};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{BoxError, CartEvent, cloud::failed};

/// Enough for every shard to have some.
const PRODUCTS: usize = 240;
/// 30 records every 100 ms.
const BATCH: usize = 30;
const PERIOD: Duration = Duration::from_millis(100);
/// Most records of one call; AWS allows 500.
const MOST: usize = 300;
/// How long it tries before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A record that Kinesis accepted.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) product: usize,
    pub(crate) number: usize,
    pub(crate) shard: String,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy)]
struct Draft {
    product: usize,
    number: usize,
}

/// Puts records until `stop`, then what is left; returns how many.
pub(crate) async fn run(
    kinesis: Client,
    stream: String,
    told: mpsc::Sender<Vec<Put>>,
    stop: CancellationToken,
) -> Result<usize, BoxError> {
    let mut waiting = VecDeque::new();
    let mut drafts = (0..).map(|n| Draft { product: n % PRODUCTS, number: n / PRODUCTS + 1 });
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0;
    let mut last_success = Instant::now();
    loop {
        period.tick().await;
        if !stop.is_cancelled() && waiting.len() < MOST {
            waiting.extend(drafts.by_ref().take(BATCH));
        }
        if waiting.is_empty() {
            return Ok(count);
        }
        let batch = one_of_each(&mut waiting);
        match put(&kinesis, &stream, &batch).await {
            Ok(accepted) => {
                for (draft, shard) in batch.iter().zip(&accepted).rev() {
                    if shard.is_none() {
                        waiting.push_front(*draft);
                    }
                }
                let at = Instant::now();
                let puts = batch.iter().zip(accepted).filter_map(|(draft, shard)| {
                    Some(Put { product: draft.product, number: draft.number, shard: shard?, at })
                });
                let puts: Vec<Put> = puts.collect();
                if !puts.is_empty() {
                    last_success = at;
                }
                count += puts.len();
                if told.send(puts).await.is_err() {
                    return Ok(count);
                }
            }
            // Perhaps it was accepted all the same: then these records come twice, but in order.
            Err(error) if last_success.elapsed() > PATIENCE => return Err(error),
            Err(_) => batch.into_iter().rev().for_each(|draft| waiting.push_front(draft)),
        }
    }
}

/// The name of a product, also the partition key of its records.
pub(crate) fn product_name(product: usize) -> String {
    format!("product-{product:03}")
}

/// The product with this name.
pub(crate) fn product(name: &str) -> Option<usize> {
    name.strip_prefix("product-")?.parse().ok()
}

/// Takes the oldest records, of each product only the first.
fn one_of_each(waiting: &mut VecDeque<Draft>) -> Vec<Draft> {
    let mut products = BTreeSet::new();
    let (now, later): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|draft| products.insert(draft.product));
    waiting.extend(later);
    now
}

/// Puts one batch; says for each record which shard took it, if one did.
async fn put(client: &Client, stream: &str, batch: &[Draft]) -> Result<Vec<Option<String>>, BoxError> {
    let mut call = client.put_records().stream_name(stream);
    for Draft { product, number } in batch {
        let event =
            CartEvent { number: *number, cart: format!("cart-{}", product * 7 + number), quantity: 1 };
        let entry = PutRecordsRequestEntry::builder()
            .partition_key(product_name(*product))
            .data(Blob::new(serde_json::to_vec(&event)?))
            .build()?;
        call = call.records(entry);
    }
    let answer = call.send().await.map_err(failed("PutRecords"))?;
    Ok(answer.records.into_iter().map(|record| record.shard_id).collect())
}
