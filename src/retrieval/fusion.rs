//! Joins the dense and the lexical ranking of a question.
//!
//! Each list's scores are divided by its best and added with weights: a convex combination, which loses less than reciprocal ranks do (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", 2023; the figures measured here are in docs/decisions).
//!
//! **Invariant:** the order is total: equal scores are ordered by dense score, then by id, so that the same hits in any order give the same ranking.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How the lists are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FusionSettings {
    /// Share of the dense list, 0 to 1; the rest is the lexical list's.
    pub dense: f32,
}

impl Default for FusionSettings {
    fn default() -> Self {
        Self { dense: 0.5 }
    }
}

/// Fuses two lists of `(id, score)`: cosines and BM25 scores, in any order, at best some 200 each.
///
/// Returns every id once, best first, with scores from 0 to 1. Scores that are not finite, or below 0, count as 0.
#[must_use]
pub fn fuse(dense: &[(Uuid, f32)], lexical: &[(Uuid, f32)], settings: &FusionSettings) -> Vec<(Uuid, f32)> {
    let weight = settings.dense.clamp(0.0, 1.0);
    let mut joined: HashMap<Uuid, Joined> = HashMap::with_capacity(dense.len() + lexical.len());
    let (most, least) = (best(dense), best(lexical));
    for &(id, score) in dense {
        let entry = joined.entry(id).or_default();
        entry.dense = entry.dense.max(share(score, most));
        entry.cosine = entry.cosine.max(score);
    }
    for &(id, score) in lexical {
        let entry = joined.entry(id).or_default();
        entry.lexical = entry.lexical.max(share(score, least));
    }
    let mut ranked: Vec<(Uuid, f32, f32)> = joined
        .into_iter()
        .map(|(id, entry)| (id, weight * entry.dense + (1.0 - weight) * entry.lexical, entry.cosine))
        .collect();
    ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(b.2.total_cmp(&a.2)).then(a.0.cmp(&b.0)));
    ranked.into_iter().map(|(id, score, _)| (id, score)).collect()
}

struct Joined {
    dense: f32,
    lexical: f32,
    cosine: f32,
}

impl Default for Joined {
    fn default() -> Self {
        Self { dense: 0.0, lexical: 0.0, cosine: f32::NEG_INFINITY }
    }
}

fn best(list: &[(Uuid, f32)]) -> f32 {
    list.iter().map(|&(_, score)| score).filter(|score| score.is_finite()).fold(0.0, f32::max)
}

fn share(score: f32, best: f32) -> f32 {
    if score.is_finite() && best > 0.0 { (score / best).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn a_hit_of_both_lists_comes_before_the_best_of_one() {
        let fused =
            fuse(&[(id(1), 0.8), (id(2), 0.7)], &[(id(3), 9.0), (id(2), 8.0)], &FusionSettings::default());
        let order: Vec<_> = fused.iter().map(|&(id, _)| id.as_u128()).collect();
        assert_eq!(order, [2, 1, 3]);
    }

    #[test]
    fn one_list_alone_keeps_its_order() {
        let dense = [(id(1), 0.1), (id(2), -0.2), (id(3), -0.1), (id(4), 0.9)];
        let order: Vec<_> =
            fuse(&dense, &[], &FusionSettings::default()).iter().map(|&(id, _)| id.as_u128()).collect();
        assert_eq!(order, [4, 1, 3, 2]);
        assert!(fuse(&[], &[], &FusionSettings::default()).is_empty());
    }

    #[test]
    fn scores_that_are_not_numbers_do_no_harm() {
        let fused =
            fuse(&[(id(1), f32::NAN), (id(2), 0.5)], &[(id(1), f32::INFINITY)], &FusionSettings::default());
        assert_eq!(fused[0], (id(2), 0.5));
        assert_eq!(fused[1].0, id(1));
    }

    proptest! {
        #[test]
        fn the_order_of_the_hits_does_not_matter(
            hits in prop::collection::vec((0_u128..40, -1_i8..5), 0..40),
            lexical in prop::collection::vec((0_u128..40, 0_i8..5), 0..40),
        ) {
            let list = |hits: &[(u128, i8)]| -> Vec<_> { hits.iter().map(|&(n, s)| (id(n), f32::from(s) / 4.0)).collect() };
            let (dense, lexical) = (list(&hits), list(&lexical));
            let fused = fuse(&dense, &lexical, &FusionSettings::default());
            let back = |mut hits: Vec<_>| { hits.reverse(); hits };
            prop_assert_eq!(&fused, &fuse(&back(dense.clone()), &back(lexical.clone()), &FusionSettings::default()));
            let mut ids: Vec<_> = fused.iter().map(|hit| hit.0).collect();
            prop_assert!(fused.is_sorted_by(|a, b| a.1 >= b.1));
            ids.sort_unstable();
            prop_assert!(ids.is_sorted_by(|a, b| a < b));
            prop_assert!(fused.iter().all(|hit| (0.0..=1.0).contains(&hit.1)));
        }
    }
}
