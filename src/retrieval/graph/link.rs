//! Titles, and where texts name them.
//!
//! **Invariant:** a text names the longest title that begins at a word, and goes on behind it; a title never reaches across the end of a sentence.

use super::node::{Group, MAX_TITLE_WORDS, Node, STOP, title_hash};
use super::postings::{KeyMap, Postings};

/// All titles and headings of a version, as hashes of their words.
#[derive(Clone)]
pub(super) struct Titles {
    /// Groups of a title.
    groups: Postings<u64>,
    /// First words of titles, and the length of the longest that begins so. Never forgets between packings: too long costs time only.
    firsts: KeyMap<u32, u8>,
    /// A bit for each of these words by its lowest bits: most words of a text begin no title, and this is all it costs to know.
    sieve: Vec<u64>,
}

/// Words that the sieve tells apart.
const SIEVE: usize = 1 << 16;

impl Titles {
    pub(super) fn pack(groups: impl Iterator<Item = Group>) -> Self {
        let groups: Vec<Group> = groups.collect();
        let pairs = groups.iter().map(|group| (group.title, group.id)).collect();
        let (firsts, sieve) = (KeyMap::default(), vec![0; SIEVE / 64]);
        let mut titles = Self { groups: Postings::pack(pairs), firsts, sieve };
        for group in &groups {
            titles.learn(group);
        }
        titles
    }

    /// Titles of which these are known, with their groups, and of which others are somewhere else.
    pub(super) fn partial(known: impl Iterator<Item = (u64, Vec<u64>)>) -> Self {
        Self { groups: Postings::partial(known), firsts: KeyMap::default(), sieve: Vec::new() }
    }

    /// Titles that were asked for and are not known.
    pub(super) fn missing(&self) -> Vec<u64> {
        self.groups.missing()
    }

    pub(super) fn has(&self, title: u64) -> bool {
        !self.groups.get(title).is_empty()
    }

    /// What a title stands for; more than one when documents share it.
    pub(super) fn groups(&self, title: u64) -> &[u64] {
        self.groups.get(title)
    }

    pub(super) fn insert(&mut self, group: &Group) {
        self.learn(group);
        self.groups.insert(group.title, group.id);
    }

    fn learn(&mut self, group: &Group) {
        let longest = self.firsts.entry(group.first).or_default();
        *longest = group.length.max(*longest);
        let bit = group.first as usize % SIEVE;
        self.sieve[bit / 64] |= 1 << (bit % 64);
    }

    pub(super) fn remove(&mut self, group: &Group) {
        self.groups.remove(group.title, group.id);
    }

    pub(super) fn bytes(&self) -> usize {
        self.groups.bytes() + self.firsts.capacity() * 9 + SIEVE / 8
    }

    /// The titles that a sequence of words names, from left to right.
    pub(super) fn named<'a>(&'a self, words: &'a [u32]) -> impl Iterator<Item = u64> + 'a {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < words.len() {
                match self.longest(&words[at..]) {
                    Some((title, length)) => {
                        at += length;
                        return Some(title);
                    }
                    None => at += 1,
                }
            }
            None
        })
    }

    /// Whether any title occurs anywhere in the words, also inside another.
    pub(super) fn any_in(&self, words: &[u32]) -> bool {
        (0..words.len()).any(|at| self.longest(&words[at..]).is_some())
    }

    /// The longest title that the words begin with, and its length.
    fn longest(&self, words: &[u32]) -> Option<(u64, usize)> {
        let longest = if self.groups.is_partial() {
            MAX_TITLE_WORDS
        } else {
            let bit = *words.first()? as usize % SIEVE;
            if self.sieve[bit / 64] >> (bit % 64) & 1 == 0 {
                return None;
            }
            usize::from(*self.firsts.get(words.first()?)?)
        };
        let mut found = None;
        let mut hash = 0;
        for (n, &word) in words.iter().take(longest).enumerate() {
            if word == STOP {
                break;
            }
            hash = title_hash(hash, word);
            if self.has(hash) {
                found = Some((hash, n + 1));
            }
        }
        found
    }
}

/// The titles that a chunk's text names, its own left out; sorted.
pub(super) fn link(titles: &Titles, node: &Node) -> Vec<u64> {
    let mut named: Vec<u64> =
        titles.named(&node.words).filter(|title| Some(*title) != node.own_title).collect();
    named.sort_unstable();
    named.dedup();
    named
}
