//! A chunk as the graph holds it: hashes of words and names, and a coarse copy of its embedding.
//!
//! **Invariant:** no text. What is here cannot be read back into words without the partition's key.

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::ids::ChunkId;
use crate::domain::names::{NameHasher, NameKey, title_key};
use crate::domain::words::{is_stop, plain, sentences, words};

/// A chunk as read from the store, to be put into a graph.
#[derive(Debug, Clone)]
pub struct GraphChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its document, by any id that no other document of the partition has.
    pub document: String,
    /// The document's title.
    pub title: Option<String>,
    /// The heading above the chunk.
    pub heading: Option<String>,
    /// The chunk's text.
    pub text: String,
    /// Keys of its mentions of kind title and name.
    pub names: Vec<NameKey>,
    /// Keys of its mentions of kind concept.
    pub concepts: Vec<NameKey>,
    /// `[f32; dimension]`, unit length; empty when it is not known.
    pub embedding: Vec<f32>,
}

/// Longest title, words, that is looked for in texts.
pub(super) const MAX_TITLE_WORDS: usize = 16;
/// Ends a sentence in [`Node::words`].
pub(super) const STOP: u32 = 0;

pub(super) struct Node {
    pub chunk: ChunkId,
    /// Key of the document's title among the names.
    pub own: Option<u64>,
    /// The same among the titles.
    pub own_title: Option<u64>,
    /// The groups that it is reached by: its document by its titles, its section by its heading.
    pub groups: Box<[Group]>,
    /// Hashes of its words in order, [`STOP`] between sentences.
    pub words: Box<[u32]>,
    pub names: Box<[u64]>,
    pub concepts: Box<[u64]>,
    pub vector: Quantised,
}

/// Chunks that a title or a heading stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// Hash of the title's or heading's words.
    pub title: u64,
    /// Hash of the words' first, and how many there are, for the search of titles in texts.
    pub first: u32,
    pub length: u8,
    /// Hash of title and document.
    pub id: u64,
}

/// Turns chunks into nodes; hashes each word once.
pub(super) struct Reader<'h> {
    hasher: &'h NameHasher,
    known: HashMap<String, u32>,
}

impl<'h> Reader<'h> {
    pub(super) fn new(hasher: &'h NameHasher) -> Self {
        Self { hasher, known: HashMap::new() }
    }

    pub(super) fn node(&mut self, chunk: &GraphChunk) -> Node {
        let mut sequence = Vec::with_capacity(chunk.text.len() / 5);
        for sentence in sentences(&chunk.text) {
            sequence.extend(self.words(sentence));
            sequence.push(STOP);
        }
        let title = chunk.title.as_deref().unwrap_or_default();
        let own = Some(title_key(title)).filter(|key| !key.is_empty());
        let document = self.hasher.key(&chunk.document).0;
        let mut groups = Vec::new();
        for name in [own.as_deref().unwrap_or_default(), &plain(title)] {
            groups.extend(self.group(name, document, 1));
        }
        if let Some(heading) = &chunk.heading {
            // A heading of one word is too common a word to point anywhere.
            groups.extend(self.group(&plain(heading), document, 2));
        }
        groups.sort_unstable_by_key(|group| group.id);
        groups.dedup_by_key(|group| group.id);
        let keys = |keys: &[NameKey]| {
            let mut keys: Vec<u64> = keys.iter().map(|key| key.0).collect();
            keys.sort_unstable();
            keys.dedup();
            keys.into_boxed_slice()
        };
        Node {
            chunk: chunk.chunk,
            own: own.as_deref().map(|own| self.hasher.key(own).0),
            own_title: own.as_deref().map(|own| self.title_hash(own)),
            groups: groups.into_boxed_slice(),
            words: sequence.into_boxed_slice(),
            names: keys(&chunk.names),
            concepts: keys(&chunk.concepts),
            vector: Quantised::new(&chunk.embedding),
        }
    }

    /// Hashes of the words of `text` in order.
    pub(super) fn words(&mut self, text: &str) -> Vec<u32> {
        words(text).map(|word| self.word(word)).collect()
    }

    fn word(&mut self, word: &str) -> u32 {
        if let Some(&hash) = self.known.get(word) {
            return hash;
        }
        let hash = word_hash(self.hasher, &plain(word));
        self.known.insert(word.to_owned(), hash);
        hash
    }

    fn title_hash(&self, plain: &str) -> u64 {
        plain.split(' ').fold(0, |hash, word| title_hash(hash, word_hash(self.hasher, word)))
    }

    /// The group of a title in its plain form; `None` when it is no title to look for.
    fn group(&self, plain: &str, document: u64, least: usize) -> Option<Group> {
        let length = plain.split(' ').count();
        let single = length > 1 || (plain.chars().nth(3).is_some() && !is_stop(plain));
        let fits = plain.chars().nth(2).is_some() && (least..=MAX_TITLE_WORDS).contains(&length);
        if !single || !fits {
            return None;
        }
        let first = word_hash(self.hasher, plain.split(' ').next()?);
        let title = self.title_hash(plain);
        Some(Group { title, first, length: u8::try_from(length).ok()?, id: mix(document, title) })
    }
}

/// A word's hash under the partition's key, never [`STOP`].
fn word_hash(hasher: &NameHasher, word: &str) -> u32 {
    // 32 of 64 bits: in a text of a million words and titles a false match is rarer than a true but wrong one.
    u32::try_from(hasher.key(word).0 >> 32).unwrap_or(1).max(1)
}

/// The hash of a title that goes on with `word`.
pub(super) fn title_hash(before: u64, word: u32) -> u64 {
    mix(before, u64::from(word))
}

fn mix(a: u64, b: u64) -> u64 {
    let mixed = (a.rotate_left(23) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// A unit vector in 8 bits a dimension: cosines are good to about 0.01.
#[derive(Debug, Clone)]
pub(super) struct Quantised {
    codes: Box<[i8]>,
    scale: f32,
}

impl Quantised {
    #[expect(clippy::cast_possible_truncation, reason = "rounded and within -127 to 127")]
    pub(super) fn new(vector: &[f32]) -> Self {
        let most = vector.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let scale = if most > 0.0 && most.is_finite() { most / 127.0 } else { 1.0 };
        Self { codes: vector.iter().map(|x| (x / scale).round() as i8).collect(), scale }
    }

    /// The cosine of two, cut to 0 to 1; 0 when their dimensions differ.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sum of products of bytes is far below 2^24 a dimension"
    )]
    pub(super) fn cosine(&self, other: &Self) -> f32 {
        if self.codes.len() != other.codes.len() {
            return 0.0;
        }
        let sum: i32 = self.codes.iter().zip(&other.codes).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        (sum as f32 * self.scale * other.scale).clamp(0.0, 1.0)
    }

    pub(super) fn dimension(&self) -> usize {
        self.codes.len()
    }
}

impl Node {
    /// Memory, bytes, nearly.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + 32
            + self.words.len() * 4
            + (self.names.len() + self.concepts.len()) * 8
            + self.groups.len() * size_of::<Group>()
            + self.vector.dimension()
    }
}

/// A node in a version of the graph, with the titles that its text names there.
#[derive(Clone)]
pub(super) struct Slot {
    pub node: Arc<Node>,
    pub named: Arc<[u64]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coarse_cosine_is_near_the_exact_one() {
        let unit = |seed: u32| -> Vec<f32> {
            let raw: Vec<f32> =
                (0..384_u32).map(|n| f32::from(((n * 7 + seed * 13) % 29) as u8) - 14.0).collect();
            let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
            raw.into_iter().map(|x| x / norm).collect()
        };
        let (a, b) = (unit(1), unit(5));
        let exact: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
        let coarse = Quantised::new(&a).cosine(&Quantised::new(&b));
        assert!((coarse - exact.clamp(0.0, 1.0)).abs() < 0.01, "{coarse} {exact}");
        assert!(Quantised::new(&a).cosine(&Quantised::new(&[])) <= 0.0);
    }

    #[test]
    fn a_heading_of_one_word_and_a_title_of_stop_words_point_nowhere() {
        let hasher = NameHasher::new(&[7; 16]);
        let reader = Reader::new(&hasher);
        assert!(reader.group("introduction", 1, 2).is_none());
        assert!(reader.group("which", 1, 1).is_none());
        assert!(reader.group("grey heron", 1, 2).is_some());
        assert_ne!(
            reader.group("grey heron", 1, 1).map(|g| g.id),
            reader.group("grey heron", 2, 1).map(|g| g.id)
        );
    }
}
