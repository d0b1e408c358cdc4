//! Fusion of two rankings by reciprocal rank.

use std::collections::HashMap;

use uuid::Uuid;

/// How two rankings are fused.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusionSettings {
    /// The constant of reciprocal rank fusion.
    pub k: f32,
}

/// The fused ranking, best first.
#[must_use]
pub fn fuse(dense: &[(Uuid, f32)], lexical: &[(Uuid, f32)], settings: &FusionSettings) -> Vec<(Uuid, f32)> {
    let mut scores: HashMap<Uuid, f32> = HashMap::new();
    for ranking in [dense, lexical] {
        let mut place = settings.k;
        for (chunk, _) in ranking {
            place += 1.0;
            *scores.entry(*chunk).or_default() += 1.0 / place;
        }
    }
    let mut fused: Vec<_> = scores.into_iter().collect();
    fused.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused
}
