//! Whether a tenant's index finds what exact search finds, however many neighbours it has.
//!
//! **Invariant:** a tenant is measured when its index has everything that it keeps, and not before.

use std::time::Duration;

use super::client::Client;
use super::dataset::{Asked, DataSet};
use super::figures::{Row, Target};
use super::retrieval::{EvalError, INDEX_RECALL, Inside};
use crate::domain::ids::NamespaceName;
use crate::store::vector::VectorQuery;

/// Passages of a neighbour: more than are compared, so that some must be left out.
const PASSAGES: usize = 20;
/// Questions that each tenant is asked.
const QUESTIONS: usize = 5;
/// How often an index is looked at until it has everything.
const LOOKS: usize = 600;
const PAUSE: Duration = Duration::from_millis(100);

/// Has the neighbour with this number keep its share of the set's passages, which go round.
///
/// # Errors
/// As [`Client::post`].
pub async fn settle(client: &Client, set: &DataSet, number: usize) -> Result<(), EvalError> {
    let passages = &set.passages;
    for turn in 0..PASSAGES.min(passages.len()) {
        let at = (number * PASSAGES + turn) % passages.len();
        let title = Some(passages[at].title.trim()).filter(|title| !title.is_empty());
        client.put(&format!("p{at}"), title, &passages[at].text).await?;
    }
    Ok(())
}

/// The recall at 10 of a tenant's index against exact search, over a few of the questions, each tenant its own.
///
/// # Errors
/// `NoIndex` when the index does not have everything in time; else as [`Inside::search`].
pub async fn recall(
    client: &Client,
    inside: &Inside,
    questions: &[Asked],
    number: usize,
) -> Result<f64, EvalError> {
    client.processed(1, |_| ()).await?;
    whole(client, inside).await?;
    let asked: Vec<Asked> =
        (0..QUESTIONS).map(|at| questions[(number * QUESTIONS + at) % questions.len()].clone()).collect();
    let (_, recall) = inside.search(client.namespace(), &asked, || ()).await?;
    Ok(recall)
}

/// The row of all tenants: the least counts.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of tenants")]
pub fn row(set: &str, recalls: &[f64]) -> Row {
    let least = recalls.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = recalls.iter().sum::<f64>() / recalls.len().max(1) as f64;
    let what = format!("{set}: index against exact search, recall at 10, least of {} tenants", recalls.len());
    Row::new(&what, least, "share", Target::Least(INDEX_RECALL), vec![least, mean])
}

/// Waits until the index has everything that was committed.
async fn whole(client: &Client, inside: &Inside) -> Result<(), EvalError> {
    let name = NamespaceName::parse(client.namespace()).map_err(|_| EvalError::NoNamespace)?;
    for _ in 0..LOOKS {
        let corpus = inside.reader.corpus_get(&name).await?.ok_or(EvalError::NoNamespace)?;
        let nearest = VectorQuery { embedding: None, terms: None, limit: 1 };
        let found = corpus.vector_search(&nearest).await?;
        let settled = client.counts().await?;
        if settled.all == settled.processed && found.is_some_and(|found| found.applied >= corpus.seq()) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(EvalError::NoIndex)
}
