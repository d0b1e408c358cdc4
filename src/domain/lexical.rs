//! The lexical half of search: BM25 split into a stored part per chunk and a factor per question.
//!
//! A chunk stores, per term, the part of BM25 that depends on the chunk alone (with a fixed average length); a question multiplies it by the term's inverse document frequency in the partition. So scores are the same on every back end and depend on no neighbour.
//!
//! Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); idf as in Lucene.
//!
//! **Invariant:** a term's id depends on the word and [`LexicalSettings`] alone. Changing either makes stored terms worthless, so the settings belong to the namespace.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts are far below 2^24 and ids below 2^32"
)]

use rust_stemmers::{Algorithm, Stemmer};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::words::{is_stop, push_lower, words};

/// Term ids are below this: the largest prime under 10^9, the most dimensions a `sparsevec` of pgvector holds.
pub const TERM_SPACE: u32 = 999_999_937;

/// The settings that stored terms depend on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LexicalSettings {
    /// Reduce words to their English Snowball stem.
    pub stem: bool,
    /// Leave English stop words out.
    pub stop_words: bool,
    /// Terms of a chunk of usual length, stop words not counted.
    pub average_length: f32,
    /// How soon repeats of a term stop counting.
    pub k1: f32,
    /// How much length matters, 0 to 1.
    pub b: f32,
}

impl Default for LexicalSettings {
    fn default() -> Self {
        Self { stem: true, stop_words: true, average_length: 80.0, k1: 1.2, b: 0.75 }
    }
}

/// Turns texts into terms.
pub struct Lexicon {
    settings: LexicalSettings,
    stemmer: Option<Stemmer>,
}

impl Lexicon {
    /// A lexicon under these settings.
    #[must_use]
    pub fn new(settings: LexicalSettings) -> Self {
        Self { settings, stemmer: settings.stem.then(|| Stemmer::create(Algorithm::English)) }
    }

    /// The stored part of a chunk: `(term id, BM25 term part)` sorted by id, each id once.
    ///
    /// Give it the text that the embedding model sees, title and heading included.
    #[must_use]
    pub fn document_terms(&self, text: &str) -> Vec<(u32, f32)> {
        let mut ids = self.ids(text);
        ids.sort_unstable();
        let LexicalSettings { average_length, k1, b, .. } = self.settings;
        let length = ids.len() as f32;
        let norm = k1 * (1.0 - b + b * length / average_length);
        ids.chunk_by(PartialEq::eq)
            .map(|same| {
                let frequency = same.len() as f32;
                (same[0], frequency * (k1 + 1.0) / (frequency + norm))
            })
            .collect()
    }

    /// The terms of a question, sorted, each once.
    #[must_use]
    pub fn query_terms(&self, text: &str) -> Vec<u32> {
        let mut ids = self.ids(text);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let hasher = SipHasher13::new();
        let mut ids = Vec::with_capacity(text.len() / 6);
        let mut lower = String::new();
        for word in words(text) {
            lower.clear();
            push_lower(&mut lower, word);
            if self.settings.stop_words && is_stop(&lower) {
                continue;
            }
            for piece in pieces(&lower) {
                ids.push(match &self.stemmer {
                    Some(stemmer) => term_id(&hasher, &stemmer.stem(piece)),
                    None => term_id(&hasher, piece),
                });
            }
        }
        ids
    }
}

/// A term's id: SipHash-1-3 under the zero key of its UTF-8 bytes, modulo [`TERM_SPACE`].
fn term_id(hasher: &SipHasher13, term: &str) -> u32 {
    (hasher.hash(term.as_bytes()) % u64::from(TERM_SPACE)) as u32
}

/// A word of a script with spaces is one term; of a script without spaces every character is one.
fn pieces(word: &str) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = if is_ideograph(first) {
            first.len_utf8()
        } else {
            rest.find(is_ideograph).unwrap_or(rest.len())
        };
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        Some(piece)
    })
}

/// Han, Hiragana and Katakana.
fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3134f}')
}

/// Inverse document frequency: `ln(1 + (N - df + 0.5) / (df + 0.5))`, N chunks of which `df` have the term.
///
/// Counts that disagree for a moment (df above N) give 0, not a negative weight.
#[must_use]
pub fn idf(chunks: u64, df: u64) -> f32 {
    let (chunks, df) = (chunks as f64, df as f64);
    (1.0 + ((chunks - df).max(-0.5) + 0.5) / (df + 0.5)).ln() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lexicon(settings: LexicalSettings) -> Lexicon {
        Lexicon::new(settings)
    }

    #[test]
    fn a_terms_id_never_changes() {
        let plain = lexicon(LexicalSettings { stem: false, ..LexicalSettings::default() });
        assert_eq!(plain.query_terms("ship"), [985_242_716]);
    }

    #[test]
    fn terms_are_sorted_once_each_and_fit_a_sparsevec() {
        let terms = lexicon(LexicalSettings::default())
            .document_terms("Ships and a ship: the SHIP’s bell, bell no. 7");
        assert!(terms.is_sorted_by(|a, b| a.0 < b.0));
        assert!(terms.iter().all(|&(id, weight)| id < TERM_SPACE && weight > 0.0));
        assert_eq!(terms.len(), 5, "ship, s, bell, no, 7");
    }

    #[test]
    fn a_query_finds_other_forms_of_its_words_only_with_stems() {
        for (stem, same) in [(true, true), (false, false)] {
            let lexicon = lexicon(LexicalSettings { stem, ..LexicalSettings::default() });
            assert_eq!(
                lexicon.query_terms("inspected ships") == lexicon.query_terms("inspecting a ship"),
                same
            );
        }
    }

    #[test]
    fn repeats_and_length_count_as_bm25_says() {
        let lexicon = lexicon(LexicalSettings { average_length: 2.0, ..LexicalSettings::default() });
        let weight = |text: &str| lexicon.document_terms(text)[0].1;
        assert!((weight("bell bell") - 2.0 * 2.2 / (2.0 + 1.2)).abs() < 1e-6);
        assert!((weight("bell") - 2.2 / (1.0 + 1.2 * (0.25 + 0.375))).abs() < 1e-6);
    }

    #[test]
    fn every_ideograph_is_a_term() {
        assert_eq!(lexicon(LexicalSettings::default()).query_terms("東京 tower").len(), 3);
    }

    #[test]
    fn a_rare_term_weighs_more_and_no_weight_is_negative() {
        assert!((idf(10, 3) - (1.0 + 7.5 / 3.5_f32).ln()).abs() < 1e-6);
        assert!(idf(1000, 1) > idf(1000, 500));
        assert!(idf(1000, 1000) > 0.0 && idf(3, 9) >= 0.0);
    }
}
