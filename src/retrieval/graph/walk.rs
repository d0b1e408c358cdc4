//! The walk: from what a question names and what search found, along titles and shared entities, to chunks that neither named nor found.
//!
//! Activation spreads by maximum, not by sum, so that a chunk is as near as its best path; it is damped by how like the question the chunk is that names. The rules and their figures were tuned by measurement (docs/decisions).
//!
//! **Invariant:** a chunk that is not in this version is never brought in; those of the fused ranking are kept.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Graph;
use super::node::{Quantised, Reader};
use crate::domain::ids::ChunkId;
use crate::domain::names::names;
use crate::domain::words::sentences;

/// The walk's figures. All but the last are strengths relative to a chunk that the question names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalkSettings {
    /// Chunks of the fused ranking that start the walk.
    pub seeds: usize,
    /// How strongly the best of them starts it.
    pub seed_share: f32,
    /// How fast that falls with their score.
    pub seed_power: i32,
    /// A step to a title that is named.
    pub title_step: f32,
    /// The same backwards, to a chunk that names the title, as a share.
    pub back: f32,
    /// A step to a chunk that shares an entity.
    pub entity_step: f32,
    /// The fused ranking's part in the result when the question names a title.
    pub prior: f32,
    /// The same when it names an entity and no title, and links are less to be trusted.
    pub prior_entity: f32,
    /// The same when it names nothing that is known.
    pub prior_nothing: f32,
    /// How fast chunks of a document that is named fall behind its likest.
    pub within_power: i32,
    /// Steps.
    pub hops: usize,
}

impl Default for WalkSettings {
    fn default() -> Self {
        Self {
            seeds: 20,
            seed_share: 0.5,
            seed_power: 3,
            title_step: 1.6,
            back: 0.5,
            entity_step: 1.664,
            prior: 0.6,
            prior_entity: 1.2,
            prior_nothing: 1.5,
            within_power: 4,
            hops: 2,
        }
    }
}

/// An entity in more chunks than these is not rare and links nothing.
pub(super) const RARE: usize = 15;
/// A title of more documents or sections than these points nowhere.
const MAX_GROUPS: usize = 64;
/// A title that more chunks name is not followed backwards.
pub(super) const MAX_NAMERS: usize = 2_000;
/// Activation below this changes no ranking and is not passed on.
const FLOOR: f32 = 0.01;

impl Graph {
    /// Ranks chunks for a question: the fused ranking, and what can be reached from it and from the names in the question.
    ///
    /// `fused` has each chunk once, scores from 0; `embedding` is the question's, unit length. Returns at most `limit`, best first, equal scores by id.
    #[must_use]
    pub fn walk(
        &self,
        question: &str,
        fused: &[(ChunkId, f32)],
        embedding: &[f32],
        settings: &WalkSettings,
        limit: usize,
    ) -> Vec<(ChunkId, f32)> {
        let best = fused.iter().map(|hit| hit.1).fold(0.0, f32::max);
        let fused: Vec<(ChunkId, f32)> = fused
            .iter()
            .map(|&(chunk, score)| (chunk, if best > 0.0 { score.max(0.0) / best } else { 0.0 }))
            .collect();
        let mut state = State::new(self, embedding, settings, self.slots.len());
        let prior = state.seed(question, &fused);
        for _ in 0..settings.hops {
            state.step();
        }
        let mut ranked: Vec<(ChunkId, f32)> = state
            .reached
            .iter()
            .filter_map(|&at| {
                Some((self.chunk_at(at)?, state.total[at as usize] + prior * state.prior[at as usize]))
            })
            .collect();
        // What search found and the graph does not have yet is nobody's neighbour.
        for (rank, &(chunk, score)) in fused.iter().enumerate() {
            if !self.contains(chunk) {
                ranked.push((chunk, state.seed_strength(rank, score) + prior * score));
            }
        }
        let order = |a: &(ChunkId, f32), b: &(ChunkId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if limit < ranked.len() {
            ranked.select_nth_unstable_by(limit, order);
            ranked.truncate(limit);
        }
        ranked.sort_unstable_by(order);
        ranked
    }
}

/// Activation of a walk, by place.
struct State<'g> {
    graph: &'g Graph,
    settings: &'g WalkSettings,
    question: Quantised,
    /// Cosine to the question plus 2; 0 while not computed.
    cosine: Vec<f32>,
    prior: Vec<f32>,
    total: Vec<f32>,
    now: Vec<f32>,
    next: Vec<f32>,
    /// Places with activation in `now` and in `next`.
    active: Vec<u32>,
    coming: Vec<u32>,
    /// Places that are in the result.
    reached: Vec<u32>,
}

impl<'g> State<'g> {
    fn new(graph: &'g Graph, embedding: &[f32], settings: &'g WalkSettings, places: usize) -> Self {
        // Zeroed memory costs next to nothing until it is touched.
        let zeros = || vec![0.0_f32; places];
        Self {
            graph,
            settings,
            question: Quantised::new(embedding),
            cosine: zeros(),
            prior: zeros(),
            total: zeros(),
            now: zeros(),
            next: zeros(),
            active: Vec::new(),
            coming: Vec::new(),
            reached: Vec::new(),
        }
    }

    fn seed_strength(&self, rank: usize, prior: f32) -> f32 {
        if rank < self.settings.seeds {
            self.settings.seed_share * prior.powi(self.settings.seed_power)
        } else {
            0.0
        }
    }

    /// Activates what search found and what the question names; returns the fused ranking's part in the result.
    #[expect(clippy::cast_precision_loss, reason = "counts of at most some thousands")]
    fn seed(&mut self, question: &str, fused: &[(ChunkId, f32)]) -> f32 {
        for (rank, &(chunk, score)) in fused.iter().enumerate() {
            let Some(at) = self.graph.place(chunk) else { continue };
            // Above 0 even for the last, which marks it as reached.
            self.prior[at as usize] = score.max(f32::MIN_POSITIVE);
            self.reached.push(at);
            self.raise(at, self.seed_strength(rank, score));
        }
        let mut reader = Reader::new(&self.graph.hasher);
        let words = reader.words(question);
        let titles: HashSet<u64> = self.graph.titles.named(&words).collect();
        for &title in &titles {
            let groups = self.graph.titles.groups(title);
            if groups.len() <= MAX_GROUPS {
                for &group in groups {
                    self.spread(group, (groups.len() as f32).sqrt().recip());
                }
            }
        }
        let mut prior = self.settings.prior_nothing;
        for name in sentences(question).flat_map(names) {
            let found = self.graph.sharing(self.graph.hasher.key(&name.key).0);
            if (1..=RARE).contains(&found.len()) {
                prior = self.settings.prior_entity;
                for &at in found {
                    self.raise(at, (self.prior[at as usize] / found.len() as f32).sqrt());
                }
            }
        }
        self.turn();
        if titles.is_empty() { prior } else { self.settings.prior }
    }

    /// Passes activation on by one link.
    #[expect(clippy::cast_precision_loss, reason = "counts of at most some thousands")]
    fn step(&mut self) {
        let graph = self.graph;
        let settings = self.settings;
        for place in 0..self.active.len() {
            let at = self.active[place];
            let activation = self.now[at as usize];
            let Some(slot) = graph.slot(at) else { continue };
            let outward = activation * self.like(at);
            for &title in &*slot.named {
                let groups = graph.titles.groups(title);
                let strength = settings.title_step * outward / groups.len() as f32;
                if strength >= FLOOR && groups.len() <= MAX_GROUPS {
                    for &group in groups.iter().filter(|&&group| !graph.is_member(at, group)) {
                        self.spread(group, strength);
                    }
                }
            }
            for group in &slot.node.groups {
                let strength = settings.title_step * settings.back * activation
                    / graph.titles.groups(group.title).len() as f32;
                if strength < FLOOR {
                    continue;
                }
                let namers = graph.namers.get(group.title);
                if namers.len() <= MAX_NAMERS {
                    for &namer in namers.iter().filter(|&&namer| !graph.is_member(namer, group.id)) {
                        let strength = strength * self.like(namer);
                        self.raise(namer, strength);
                    }
                }
            }
            for &entity in slot.node.names.iter().filter(|&&entity| Some(entity) != slot.node.own) {
                let sharing = graph.sharing(entity);
                let strength = settings.entity_step * outward / (sharing.len() as f32).sqrt();
                if strength >= FLOOR && (2..=RARE).contains(&sharing.len()) {
                    for &other in sharing.iter().filter(|&&other| other != at) {
                        if graph.node(other).is_some_and(|node| node.own != Some(entity)) {
                            let strength = strength * (0.5 + 0.5 * self.cosine(other));
                            self.raise(other, strength);
                        }
                    }
                }
            }
        }
        self.turn();
    }

    /// Activates a document or section: fully the chunk that is likest the question, the others as they fall behind it.
    fn spread(&mut self, group: u64, strength: f32) {
        let members = self.graph.members.get(group);
        if let &[only] = members {
            return self.raise(only, strength);
        }
        let most = members.iter().map(|&at| self.cosine(at)).fold(0.0, f32::max);
        for &at in members {
            let share = if most > 0.0 { self.cosine(at) / most } else { 1.0 };
            self.raise(at, strength * share.powi(self.settings.within_power));
        }
    }

    fn raise(&mut self, at: u32, strength: f32) {
        let held = &mut self.next[at as usize];
        if strength > *held {
            if *held <= 0.0 {
                self.coming.push(at);
            }
            *held = strength;
        }
    }

    /// Makes what came the activation to pass on.
    fn turn(&mut self) {
        for at in self.active.drain(..) {
            self.now[at as usize] = 0.0;
        }
        std::mem::swap(&mut self.now, &mut self.next);
        std::mem::swap(&mut self.active, &mut self.coming);
        for &at in &self.active {
            let total = &mut self.total[at as usize];
            if *total <= 0.0 && self.prior[at as usize] <= 0.0 {
                self.reached.push(at);
            }
            *total = total.max(self.now[at as usize]);
        }
    }

    fn like(&mut self, at: u32) -> f32 {
        0.3 + 0.7 * self.cosine(at)
    }

    fn cosine(&mut self, at: u32) -> f32 {
        let known = &mut self.cosine[at as usize];
        if *known <= 0.0 {
            *known = 2.0 + self.graph.node(at).map_or(0.0, |node| node.vector.cosine(&self.question));
        }
        *known - 2.0
    }
}
