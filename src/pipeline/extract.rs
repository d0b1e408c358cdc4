//! Entities of a chunk, found without a language model.
//!
//! Names are spans of capitals ([`crate::domain::names`]) and are what the graph walk goes along. Concepts are noun phrases by part-of-speech tags, after the rules of `GraphRAG`'s extraction without a model (adjective + noun and noun + noun join, single common nouns are dropped); they can be asked for and looked at, but the walk does not use them.
//!
//! **Invariant:** the number of mentions of a chunk is bounded, and relations are never stored: two entities are related where chunks mention both.

use std::collections::HashMap;
use std::sync::Arc;

use harper_brill::{BrillTagger, FreqDict, Tagger, UPOS, brill_tagger};

use crate::domain::names::{NameKind, names, title_key};
use crate::domain::words::{is_stop, plain, sentences, words};

/// An entity in one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// As first written in the chunk.
    pub name: String,
    /// The comparable form, by which mentions are one entity.
    pub key: String,
    /// What kind of thing it is.
    pub kind: NameKind,
    /// How often the chunk has it; 0 for a title that the text does not repeat.
    pub count: u16,
}

/// How many mentions a chunk keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtractSettings {
    /// Names, in order of appearance.
    pub max_names: usize,
    /// Concepts, most frequent first; 0 for none.
    pub max_concepts: usize,
}

impl Default for ExtractSettings {
    fn default() -> Self {
        Self { max_names: 64, max_concepts: 8 }
    }
}

/// Longest names and phrases, bytes: more is a table or a heading in capitals.
const MAX_NAME_BYTES: usize = 120;
/// Longest concept, words.
const MAX_PHRASE: usize = 4;

/// Finds the entities of chunks. Cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct Extractor {
    tagger: Arc<BrillTagger<FreqDict>>,
    settings: ExtractSettings,
}

impl Extractor {
    /// An extractor; the first of a process reads the tagger's model.
    #[must_use]
    pub fn new(settings: ExtractSettings) -> Self {
        Self { tagger: brill_tagger(), settings }
    }

    /// The entities of a chunk: the document's title when the chunk is its first, then names, then concepts.
    #[must_use]
    pub fn extract(&self, title: Option<&str>, ordinal: u32, text: &str) -> Vec<Mention> {
        let mut found = Found::default();
        let title = title.filter(|_| ordinal == 0).map(|title| (title, title_key(title)));
        if let Some((title, key)) = title.filter(|(_, key)| key.len() > 2 && key.len() <= MAX_NAME_BYTES) {
            found.add(title.split('(').next().unwrap_or(title).trim(), key, NameKind::Title, 0);
        }
        for sentence in sentences(text) {
            for name in names(sentence).filter(|name| name.key.len() <= MAX_NAME_BYTES) {
                found.add(name.name, name.key, NameKind::Name, 1);
            }
        }
        found.mentions.truncate(self.settings.max_names);
        if self.settings.max_concepts > 0 {
            found.mentions.extend(self.concepts(text));
        }
        found.mentions
    }

    fn concepts(&self, text: &str) -> Vec<Mention> {
        let mut found = Found::default();
        for sentence in sentences(text) {
            let tokens: Vec<String> = tokens(sentence).map(str::to_owned).collect();
            let tags = self.tagger.tag_sentence(&tokens);
            let mut phrase = Vec::new();
            for (word, tag) in tokens.iter().zip(tags.into_iter().chain(std::iter::repeat(None))) {
                match tag {
                    Some(tag @ (UPOS::NOUN | UPOS::ADJ)) if is_common(word) => {
                        phrase.push((word.as_str(), tag));
                    }
                    _ => found.add_phrase(&mut phrase),
                }
            }
            found.add_phrase(&mut phrase);
        }
        found.mentions.sort_by_key(|mention| std::cmp::Reverse(mention.count));
        found.mentions.truncate(self.settings.max_concepts);
        found.mentions
    }
}

/// Mentions in order of appearance.
#[derive(Default)]
struct Found {
    mentions: Vec<Mention>,
    at: HashMap<String, usize>,
}

impl Found {
    fn add(&mut self, name: &str, key: String, kind: NameKind, count: u16) {
        if let Some(&at) = self.at.get(&key) {
            let seen = &mut self.mentions[at].count;
            *seen = seen.saturating_add(count);
        } else {
            self.at.insert(key.clone(), self.mentions.len());
            self.mentions.push(Mention { name: name.to_owned(), key, kind, count });
        }
    }

    /// Adds the phrase that ends here, from its first word to its last noun, and empties it.
    fn add_phrase(&mut self, phrase: &mut Vec<(&str, UPOS)>) {
        while phrase.pop_if(|(_, tag)| *tag != UPOS::NOUN).is_some() {}
        if phrase.len() > 1 {
            let from = phrase.len().saturating_sub(MAX_PHRASE);
            let name = phrase[from..].iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" ");
            if name.len() <= MAX_NAME_BYTES {
                let key = plain(&name);
                self.add(&name, key, NameKind::Concept, 1);
            }
        }
        phrase.clear();
    }
}

/// Whether a word can be part of a concept: letters only, no capital, no stop word.
fn is_common(word: &str) -> bool {
    word.len() > 2 && !is_stop(word) && word.chars().all(|c| c.is_alphabetic() && !c.is_uppercase())
}

/// Words and punctuation marks, as the tagger wants them.
fn tokens(sentence: &str) -> impl Iterator<Item = &str> {
    let mut rest = sentence;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let end = match words(rest).next() {
            Some(word) if rest.starts_with(word) => word.len(),
            _ => first.len_utf8(),
        };
        let (token, tail) = rest.split_at(end);
        rest = tail;
        Some(token)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(mentions: &[Mention], kind: NameKind) -> Vec<&str> {
        mentions.iter().filter(|m| m.kind == kind).map(|m| m.key.as_str()).collect()
    }

    #[test]
    fn names_are_counted_and_keep_their_first_form() {
        let found = Extractor::new(ExtractSettings::default()).extract(
            Some("Grey Heron (ship)"),
            0,
            "The Grey Heron left Port Anselm. The GREY HERON came back.",
        );
        let seen: Vec<_> = found.iter().map(|m| (m.name.as_str(), m.kind, m.count)).collect();
        assert_eq!(seen, [("Grey Heron", NameKind::Title, 2), ("Port Anselm", NameKind::Name, 1)]);
    }

    #[test]
    fn a_title_belongs_to_the_first_chunk_alone() {
        let extractor = Extractor::new(ExtractSettings::default());
        assert!(extractor.extract(Some("Grey Heron"), 1, "It left.").is_empty());
        assert_eq!(extractor.extract(Some("Grey Heron"), 0, "It left.")[0].count, 0);
    }

    #[test]
    fn concepts_are_phrases_of_common_words() {
        let found = Extractor::new(ExtractSettings::default()).extract(
            None,
            0,
            "The annual safety inspection found a cracked hull plate in the engine.",
        );
        let concepts = keys(&found, NameKind::Concept);
        assert!(concepts.iter().any(|c| c.ends_with("safety inspection")), "{concepts:?}");
        assert!(concepts.iter().all(|c| c.contains(' ')), "{concepts:?}");
    }

    #[test]
    fn the_number_of_mentions_is_bounded() {
        let settings = ExtractSettings { max_names: 3, max_concepts: 2 };
        let text = "Alpha. Bravo. Charlie. Delta. A deep sea, an old ship, a cold night, a long voyage.";
        let found = Extractor::new(settings).extract(None, 0, text);
        assert_eq!(keys(&found, NameKind::Name), ["alpha", "bravo", "charlie"]);
        assert!(keys(&found, NameKind::Concept).len() <= 2);
    }

    #[test]
    fn any_text_is_survived() {
        let extractor = Extractor::new(ExtractSettings::default());
        for text in ["", "...", "𝔘𝔫𝔦 Ⅷ ﷽ É", "A\u{0}B", &"X ".repeat(9_000)] {
            assert!(extractor.extract(Some(text), 0, text).len() <= 64 + 8);
        }
    }
}
