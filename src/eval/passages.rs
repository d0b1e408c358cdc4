//! Passages for measuring: sentences in the manner of the demo's documents, from a seed.
//!
//! **Invariant:** the same source and seed give the same passages; no two passages of a run are alike.

use std::collections::BTreeMap;

use super::quality::SplitMix;

/// A generator of passages: a chain of words, each chosen among those that follow the one before in the source.
pub struct Passages {
    follow: BTreeMap<String, Vec<String>>,
    starts: Vec<String>,
    random: SplitMix,
    made: usize,
}

/// Words of a sentence, at most.
const SENTENCE: usize = 24;

impl Passages {
    /// A generator in the manner of `source`; `None` when the source has no sentence.
    #[must_use]
    pub fn new(source: &str, seed: u64) -> Option<Self> {
        let mut follow: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut starts = Vec::new();
        let words: Vec<&str> =
            source.split_whitespace().filter(|word| !word.starts_with(['#', '|', '<', '-'])).collect();
        for pair in words.windows(2) {
            follow.entry(pair[0].to_owned()).or_default().push(pair[1].to_owned());
            if pair[0].ends_with('.') && pair[1].starts_with(char::is_uppercase) {
                starts.push(pair[1].to_owned());
            }
        }
        (!starts.is_empty()).then_some(Self { follow, starts, random: SplitMix(seed), made: 0 })
    }

    /// The next passage, of about so many words. Its first sentence numbers it.
    pub fn next(&mut self, words: usize) -> String {
        self.made += 1;
        let mut passage = format!("This is note {} of the archive.", self.made);
        let mut count = 6;
        while count < words {
            let mut word = self.starts[self.random.below(self.starts.len())].clone();
            for length in 1..=SENTENCE {
                passage.push(' ');
                passage.push_str(&word);
                count += 1;
                let next = self.follow.get(&word).filter(|next| !next.is_empty());
                match next {
                    Some(next) if !word.ends_with('.') && length < SENTENCE => {
                        word = next[self.random.below(next.len())].clone();
                    }
                    _ => break,
                }
            }
            if !passage.ends_with('.') {
                passage.push('.');
            }
        }
        passage
    }

    /// A question in the words of a passage.
    pub fn question(&mut self, passage: &str) -> String {
        let words: Vec<&str> = passage.split_whitespace().skip(6).collect();
        let start = self.random.below(words.len().saturating_sub(9).max(1));
        let words = &words[start.min(words.len())..(start + 9).min(words.len())];
        format!("What is known of {}?", words.join(" ").trim_end_matches(['.', ',', ';']))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "Start. The lamp of the harbour is old. The keeper of the lamp is young. It shines.";

    #[test]
    fn passages_repeat_with_their_seed_and_differ_within_a_run() {
        let mut one = Passages::new(SOURCE, 5).expect("sentences");
        let mut other = Passages::new(SOURCE, 5).expect("sentences");
        let first = one.next(40);
        assert_eq!(first, other.next(40));
        assert_ne!(first, one.next(40));
        assert!(first.split_whitespace().count() >= 40);
        assert!(one.question(&first).starts_with("What is known of "));
        assert!(Passages::new("nothing here", 1).is_none());
    }
}
