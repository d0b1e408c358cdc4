//! What row-level security costs a question: with it and without, in turns.
//!
//! Only a build with the feature `laboratory` can switch it off, and the bench switches it on again whatever happens
//! in between.

use super::{Bench, BenchError, PASSAGE, Place, question};
use crate::eval::figures::{Row, Target, between, median};

/// Most times that a question takes as long.
const COST: f64 = 1.1;
/// Chunks that are asked about.
const PASSAGES: usize = 2000;
/// Turns of each kind, the questions of one, and those before that let every connection plan anew.
const TURNS: usize = 6;
const QUESTIONS: usize = 100;
const WARM: usize = 30;

impl Bench<'_> {
    pub(super) async fn row_security(&mut self) -> Result<Vec<Row>, BenchError> {
        if !self.subject.deployment.row_security(true).await? {
            eprintln!("row-level security can only be switched off in a build with the feature laboratory");
            return Ok(Vec::new());
        }
        let mut place = self.place("row-level security").await?;
        let texts = self.texts(PASSAGES, PASSAGE);
        place.ingest(self.subject.clock.as_ref(), &texts).await?;
        place.indexed().await?;
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            on.extend(self.asked_once(&place).await?);
            self.subject.deployment.row_security(false).await?;
            let without = self.asked_once(&place).await;
            self.subject.deployment.row_security(true).await?;
            off.extend(without?);
        }
        let (with, without) = (median(&on), median(&off));
        let what = "naive question with row-level security, times without";
        Ok(vec![Row::new(what, with / without, "times", Target::Most(COST), vec![with, without])])
    }

    async fn asked_once(&mut self, place: &Place) -> Result<Vec<f64>, BenchError> {
        let mut times = Vec::with_capacity(QUESTIONS);
        for (at, text) in self.questions(WARM + QUESTIONS).into_iter().enumerate() {
            let begun = self.now();
            place.client.post("/query/data", &question(&text, "naive")).await?;
            if at >= WARM {
                times.push(between(begun, self.now()));
            }
        }
        Ok(times)
    }
}
