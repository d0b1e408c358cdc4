//! One client's questions: against embedding and search alone, and with the walk against without.

use super::{Bench, BenchError, Place, TOP, question};
use crate::eval::figures::{Row, Target, between, median};
use crate::store::vector::VectorQuery;

/// Most times that a question takes as long as its raw parts.
const QUERY: f64 = 1.3;
/// Most times that the walk takes as long as no walk.
const WALK: f64 = 2.0;

/// Times of one client's questions at the median, milliseconds.
pub(super) struct Asked {
    pub(super) naive: f64,
    pub(super) mix: f64,
    pub(super) raw: f64,
}

impl Bench<'_> {
    pub(super) async fn question(&mut self) -> Result<Vec<Row>, BenchError> {
        let place = self.shared().await?;
        let Asked { naive, mix, raw } = self.ask(&place, self.plan.questions).await?;
        Ok(vec![
            Row::new(
                "naive question, times embedding and search alone",
                naive / raw,
                "times",
                Target::Most(QUERY),
                vec![naive, raw],
            ),
            Row::new("mix question, times naive", mix / naive, "times", Target::Most(WALK), vec![mix, naive]),
        ])
    }

    /// Asks questions over the API in both modes and of the parts alone, each in turn, none twice.
    pub(super) async fn ask(&mut self, place: &Place, count: usize) -> Result<Asked, BenchError> {
        let corpus = place.indexed().await?;
        let tenant = corpus.partition().tenant();
        let mut times = [const { Vec::new() }; 3];
        for at in 0..count {
            // One question for each way, so that none finds what another has warmed.
            let texts = self.questions(times.len());
            for (turn, text) in texts.into_iter().enumerate() {
                let way = (at + turn) % times.len();
                let begun = self.now();
                if way == 2 {
                    let embedded = self.subject.embedder.embed_question(tenant, vec![text]).await?;
                    let query =
                        VectorQuery { embedding: embedded.into_iter().next(), terms: None, limit: TOP };
                    corpus.vector_search(&query).await?;
                } else {
                    let mode = ["naive", "mix"][way];
                    place.client.post("/query/data", &question(&text, mode)).await?;
                }
                times[way].push(between(begun, self.now()));
            }
        }
        let [naive, mix, raw] = times.map(|times| median(&times));
        Ok(Asked { naive, mix, raw })
    }
}
