//! Retrieval quality of ranked lists against known answers: recall, nDCG, cover of statements, and how sure the figures are.
//!
//! nDCG as in Järvelin and Kekäläinen (2002) with binary relevance; intervals by the percentile bootstrap over questions (Efron 1979).
//!
//! **Invariant:** the same lists and seed give the same figures; a question without a known answer is an error of the data set and is left out, never counted as found.

#![expect(clippy::cast_precision_loss, reason = "counts of questions and ranks")]

use std::collections::HashSet;
use std::hash::Hash;

/// A question's ranked list and its answers.
#[derive(Debug, Clone)]
pub struct Judged<Id> {
    /// Best first, each id once.
    pub ranked: Vec<Id>,
    /// What should be found.
    pub relevant: HashSet<Id>,
}

/// A mean over questions with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean, 0 to 1.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// Figures of one method over one set of questions.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Questions with a known answer.
    pub questions: usize,
    /// Share of the answers among the first 2; of statements, how far they are covered there.
    pub recall_at_2: Estimate,
    /// Share of the answers among the first 5.
    pub recall_at_5: Estimate,
    /// Share of the answers among the first 10.
    pub recall_at_10: Estimate,
    /// Normalised discounted cumulative gain of the first 10; absent where answers are statements.
    pub ndcg_at_10: Option<Estimate>,
}

/// Resamples that an interval is read from.
const RESAMPLES: usize = 1_000;

/// The figures for these lists; `None` when no question has a known answer.
#[must_use]
pub fn quality<Id: Eq + Hash>(judged: &[Judged<Id>], seed: u64) -> Option<Quality> {
    let judged: Vec<&Judged<Id>> = judged.iter().filter(|one| !one.relevant.is_empty()).collect();
    if judged.is_empty() {
        return None;
    }
    let over = |figure: &dyn Fn(&Judged<Id>) -> f64| {
        let values: Vec<f64> = judged.iter().map(|one| figure(one)).collect();
        estimate(&values, seed)
    };
    Some(Quality {
        questions: judged.len(),
        recall_at_2: over(&|one| recall(one, 2)),
        recall_at_5: over(&|one| recall(one, 5)),
        recall_at_10: over(&|one| recall(one, 10)),
        ndcg_at_10: Some(over(&|one| ndcg(one, 10))),
    })
}

/// A question's ranked list against statements: `[rank][statement]`, the share of the statement's terms in the text of that rank.
#[derive(Debug, Clone)]
pub struct Covered(pub Vec<Vec<f64>>);

/// The figures for these lists, each question's statements counting alike; `None` when there is no list.
#[must_use]
pub fn cover_quality(questions: &[Covered], seed: u64) -> Option<Quality> {
    if questions.is_empty() {
        return None;
    }
    let over = |k: usize| {
        let values: Vec<f64> = questions.iter().map(|one| cover(one, k)).collect();
        estimate(&values, seed)
    };
    Some(Quality {
        questions: questions.len(),
        recall_at_2: over(2),
        recall_at_5: over(5),
        recall_at_10: over(10),
        ndcg_at_10: None,
    })
}

/// How far the statements are covered, each by the best of the first `k` texts; 0 without any.
#[must_use]
pub fn cover(Covered(shares): &Covered, k: usize) -> f64 {
    let statements = shares.first().map_or(0, Vec::len);
    let best = |statement: usize| shares.iter().take(k).map(|text| text[statement]).fold(0.0, f64::max);
    (0..statements).map(best).sum::<f64>() / statements.max(1) as f64
}

/// Share of the answers among the first `k`; 0 without answers.
#[must_use]
pub fn recall<Id: Eq + Hash>(judged: &Judged<Id>, k: usize) -> f64 {
    let found = judged.ranked.iter().take(k).filter(|id| judged.relevant.contains(id)).count();
    found as f64 / judged.relevant.len().max(1) as f64
}

/// Discounted gain of the first `k` as a share of the best possible; 0 without answers.
#[must_use]
pub fn ndcg<Id: Eq + Hash>(judged: &Judged<Id>, k: usize) -> f64 {
    let discount = |rank: usize| ((rank + 2) as f64).log2().recip();
    let ranked = judged.ranked.iter().take(k).enumerate();
    let gain: f64 =
        ranked.filter(|(_, id)| judged.relevant.contains(id)).map(|(rank, _)| discount(rank)).sum();
    let best: f64 = (0..k.min(judged.relevant.len())).map(discount).sum();
    if best > 0.0 { gain / best } else { 0.0 }
}

/// The mean of `values` with the interval that holds 95% of the means of its resamples.
#[must_use]
pub fn estimate(values: &[f64], seed: u64) -> Estimate {
    let mean = |sum: f64| sum / values.len().max(1) as f64;
    let mut random = SplitMix(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| mean((0..values.len()).map(|_| values[random.below(values.len())]).sum()))
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let (low, high) = (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40]);
    Estimate { mean: mean(values.iter().sum()), low, high }
}

/// A small generator of repeatable numbers (Steele, Lea and Flood 2014).
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    #[expect(clippy::cast_possible_truncation, reason = "the result is below `n`")]
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(ranked: &[u32], relevant: &[u32]) -> Judged<u32> {
        Judged { ranked: ranked.to_vec(), relevant: relevant.iter().copied().collect() }
    }

    #[test]
    fn recall_counts_the_share_that_was_found() {
        assert!((recall(&judged(&[1, 2, 3], &[3, 9]), 2)).abs() < 1e-9);
        assert!((recall(&judged(&[1, 2, 3], &[3, 9]), 5) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn ndcg_is_one_for_the_best_order_and_falls_with_the_rank() {
        assert!((ndcg(&judged(&[7, 8, 1], &[8, 7]), 10) - 1.0).abs() < 1e-9);
        assert!((ndcg(&judged(&[1, 7], &[7]), 10) - 1.0 / 3_f64.log2()).abs() < 1e-9);
    }

    #[test]
    fn a_statement_is_covered_as_far_as_by_the_best_text_so_far() {
        let covered = Covered(vec![vec![0.5, 0.0], vec![0.25, 0.0], vec![1.0, 0.5]]);
        assert!((cover(&covered, 2) - 0.25).abs() < 1e-9);
        assert!((cover(&covered, 5) - 0.75).abs() < 1e-9);
        assert!(cover(&Covered(vec![]), 5).abs() < 1e-9);
    }

    #[test]
    fn an_interval_holds_its_mean_and_repeats_with_its_seed() {
        let values: Vec<f64> = (0..100).map(|n| f64::from(n % 2)).collect();
        let found = estimate(&values, 7);
        assert!((found.mean - 0.5).abs() < 1e-9);
        assert!(found.low > 0.35 && found.low < 0.45 && found.high > 0.55 && found.high < 0.65, "{found:?}");
        assert_eq!(found, estimate(&values, 7));
    }

    #[test]
    fn questions_without_an_answer_are_left_out() {
        let lists = [judged(&[1], &[1]), judged(&[1], &[])];
        let found = quality(&lists, 1).unwrap();
        assert_eq!(found.questions, 1);
        assert!((found.recall_at_2.mean - 1.0).abs() < 1e-9);
        assert!(quality::<u32>(&[], 1).is_none());
    }
}
