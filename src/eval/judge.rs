//! Holds what a method found against what a set says it should find.
//!
//! **Invariant:** a passage's rank is that of its best chunk; what is measured is what a caller would get.

use std::collections::{HashMap, HashSet};

use super::dataset::{Answers, Asked, DataSet, Source};
use super::quality::{Covered, Judged, Quality, cover_quality, quality};
use crate::domain::lexical::{LexicalSettings, Lexicon};

/// A chunk that a method found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundChunk {
    /// Its document, as the set's sources name it.
    pub document: String,
    /// Its text.
    pub text: String,
}

/// The judge of one set.
pub struct Judge<'a> {
    set: &'a DataSet,
    sources: HashMap<&'a str, &'a Source>,
    /// Of its own, so that what counts as a word depends on no setting of the server that is measured.
    lexicon: Lexicon,
    seed: u64,
}

/// Ranks of which statements' terms are looked for.
const RANKS: usize = 10;

impl<'a> Judge<'a> {
    /// A judge of a set that was ingested as these documents.
    #[must_use]
    pub fn new(set: &'a DataSet, sources: &'a [Source], seed: u64) -> Self {
        let sources = sources.iter().map(|source| (source.id.as_str(), source)).collect();
        Self { set, sources, lexicon: Lexicon::new(LexicalSettings::default()), seed }
    }

    /// The figures of what was found for each question, best first; `None` when there was no question.
    #[must_use]
    pub fn quality(&self, asked: &[Asked], found: &[Vec<FoundChunk>]) -> Option<Quality> {
        let (mut ranked, mut covered) = (Vec::new(), Vec::new());
        for (question, chunks) in asked.iter().zip(found) {
            match &question.answers {
                Answers::Passages(relevant) => {
                    let judged = Judged { ranked: self.passages(chunks), relevant: relevant.clone() };
                    ranked.push(judged);
                }
                Answers::Statements(statements) => covered.push(self.shares(statements, chunks)),
            }
        }
        quality(&ranked, self.seed).or_else(|| cover_quality(&covered, self.seed))
    }

    /// Each passage once, at its best place.
    fn passages(&self, chunks: &[FoundChunk]) -> Vec<usize> {
        let located = chunks
            .iter()
            .filter_map(|chunk| self.set.locate(self.sources.get(chunk.document.as_str())?, &chunk.text));
        let mut seen = HashSet::new();
        located.filter(|place| seen.insert(*place)).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of terms")]
    fn shares(&self, statements: &[String], chunks: &[FoundChunk]) -> Covered {
        let wanted: Vec<Vec<u32>> =
            statements.iter().map(|statement| self.lexicon.query_terms(statement)).collect();
        let shares = chunks.iter().take(RANKS).map(|chunk| {
            let has: HashSet<u32> = self.lexicon.query_terms(&chunk.text).into_iter().collect();
            let share = |terms: &Vec<u32>| {
                let found = terms.iter().filter(|term| has.contains(term)).count();
                found as f64 / terms.len().max(1) as f64
            };
            wanted.iter().map(share).collect()
        });
        Covered(shares.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::dataset::Passage;
    use super::*;

    fn set(passages: &[&str]) -> DataSet {
        let passages = passages.iter().map(|text| Passage { title: String::new(), text: (*text).to_owned() });
        DataSet { name: "set".to_owned(), passages: passages.collect(), questions: Vec::new() }
    }

    fn chunk(document: &str, text: &str) -> FoundChunk {
        FoundChunk { document: document.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_passage_of_several_chunks_has_the_rank_of_its_best() {
        let set = set(&["Amber floats.", "Zinc sinks."]);
        let sources = set.sources(1);
        let found = [chunk("p1", "Zinc"), chunk("p0", "Amber"), chunk("p1", "sinks."), chunk("gone", "lead")];
        assert_eq!(Judge::new(&set, &sources, 1).passages(&found), [1, 0]);
    }

    #[test]
    fn a_statement_is_held_against_the_words_of_a_chunk_whatever_their_form() {
        let set = set(&["A long text."]);
        let sources = set.sources(1);
        let judge = Judge::new(&set, &sources, 1);
        let statements = ["The lamps were trimmed at dusk.".to_owned()];
        let Covered(shares) =
            judge.shares(&statements, &[chunk("p0", "She trims a lamp."), chunk("p0", "Dusk")]);
        assert!((shares[0][0] - 2.0 / 3.0).abs() < 1e-9, "{shares:?}");
        assert!((shares[1][0] - 1.0 / 3.0).abs() < 1e-9, "{shares:?}");
    }
}
