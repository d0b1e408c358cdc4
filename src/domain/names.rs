//! Names found in text by their capitals, the form they are compared in, and the keyed hash that stands for them in an index.
//!
//! Passages that share a rare name, or that name another document's title, are what the graph walk goes along; the same rules must hold for passages (at ingestion) and questions (at query time), hence this floor.
//!
//! **Invariant:** an index keeps [`NameKey`]s, never a name's text.

use siphasher::sip::SipHasher24;

use super::words::{is_stop, is_word, plain};

/// What kind of thing a mention is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// The title of the chunk's own document.
    Title,
    /// A span of capitals.
    Name,
    /// A noun phrase without capitals.
    Concept,
}

impl NameKind {
    /// The kind's name in the store and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Name => "name",
            Self::Concept => "concept",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Title, Self::Name, Self::Concept].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A name's stand-in in an index: SipHash-2-4 of its comparable form under the partition's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey(pub u64);

/// Makes the [`NameKey`]s of one partition.
#[derive(Debug, Clone, Copy)]
pub struct NameHasher(SipHasher24);

impl NameHasher {
    /// A hasher under a key that belongs to one partition alone, so that keys of two partitions cannot be compared.
    #[must_use]
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(key))
    }

    /// The key of a name in its comparable form (see [`Mentioned::key`]).
    #[must_use]
    pub fn key(&self, comparable: &str) -> NameKey {
        NameKey(self.0.hash(comparable.as_bytes()))
    }
}

/// A name as found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mentioned<'t> {
    /// The span as written, without leading stop words and trailing punctuation.
    pub name: &'t str,
    /// The comparable form: lower case, words only.
    pub key: String,
}

/// Words that open a sentence with a capital and are no part of a name.
const LEAD: [&str; 13] = [
    "after", "also", "although", "both", "during", "however", "its", "many", "one", "since", "some", "two",
    "while",
];
/// Names that every text shares.
const DATES: [&str; 19] = [
    "april",
    "august",
    "december",
    "february",
    "friday",
    "january",
    "july",
    "june",
    "march",
    "may",
    "monday",
    "november",
    "october",
    "saturday",
    "september",
    "sunday",
    "thursday",
    "tuesday",
    "wednesday",
];
/// Words that may join two capitalised ones.
const JOINS: [&str; 11] = ["of", "the", "de", "and", "von", "van", "der", "la", "du", "for", "in"];

/// The comparable form of a title: without anything in brackets.
#[must_use]
pub fn title_key(title: &str) -> String {
    let mut kept = String::with_capacity(title.len());
    let mut rest = title;
    while let Some(open) = rest.find('(') {
        let Some(close) = rest[open..].find(')') else { break };
        kept.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    kept.push_str(rest);
    plain(&kept)
}

/// The names in one sentence, in order, with repeats.
///
/// A name is a run of words that begin with a capital, which `of`, `the`, `de` and their like may join; leading stop words, dates and names of up to three bytes are left out.
pub fn names(sentence: &str) -> impl Iterator<Item = Mentioned<'_>> {
    spans(sentence).filter_map(mentioned)
}

fn mentioned(span: &str) -> Option<Mentioned<'_>> {
    let mut name = span;
    loop {
        let from = name.find(is_word)?;
        name = &name[from..];
        let end = name.find(|c| !is_word(c)).unwrap_or(name.len());
        let first = plain(&name[..end]);
        if !(is_stop(&first) || LEAD.binary_search(&first.as_str()).is_ok()) {
            break;
        }
        name = &name[end..];
    }
    let name = name.trim_end_matches(|c| !is_word(c));
    let key = plain(name);
    (key.chars().nth(3).is_some() && DATES.binary_search(&key.as_str()).is_err())
        .then_some(Mentioned { name, key })
}

/// Runs of capitalised words.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + next_capital(&text[at..], text[..at].chars().next_back())?;
        let mut end = word_end(text, start);
        while let Some(next) = continuation(text, end) {
            end = word_end(text, next);
        }
        at = end;
        Some(&text[start..end])
    })
}

/// Offset of the first capital that begins a word.
fn next_capital(text: &str, mut before: Option<char>) -> Option<usize> {
    for (at, c) in text.char_indices() {
        if c.is_ascii_uppercase() && !before.is_some_and(is_word) {
            return Some(at);
        }
        before = Some(c);
    }
    None
}

/// Offset behind the word at `start`, whose apostrophes, points and hyphens belong to it.
fn word_end(text: &str, start: usize) -> usize {
    text[start..].find(|c| !(is_word(c) || "'’.-".contains(c))).map_or(text.len(), |n| start + n)
}

/// Offset of the capitalised word that continues the span ending at `end`, directly or behind one joining word.
fn continuation(text: &str, end: usize) -> Option<usize> {
    let next = behind_space(text, end)?;
    if text[next..].starts_with(|c: char| c.is_ascii_uppercase()) {
        return Some(next);
    }
    let join = text[next..].split(char::is_whitespace).next()?;
    if !JOINS.contains(&join) {
        return None;
    }
    let next = behind_space(text, next + join.len())?;
    text[next..].starts_with(|c: char| c.is_ascii_uppercase()).then_some(next)
}

/// Offset behind the white space at `at`; `None` without any.
fn behind_space(text: &str, at: usize) -> Option<usize> {
    let tail = text[at..].trim_start();
    (tail.len() < text.len() - at).then(|| text.len() - tail.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(sentence: &str) -> Vec<String> {
        names(sentence).map(|m| m.key).collect()
    }

    #[test]
    fn names_are_runs_of_capitals_joined_by_small_words() {
        assert_eq!(
            keys("However, the University of Port Anselm and Mara O'Neill met in May."),
            ["university of port anselm and mara o neill"]
        );
        assert_eq!(
            keys("The Tern was refitted by Halvorsen in Port Anselm"),
            ["tern", "halvorsen in port anselm"]
        );
    }

    #[test]
    fn leading_stop_words_dates_and_short_names_are_left_out() {
        assert_eq!(keys("In June it met the MV going East, on Monday, and Ada left"), ["east"]);
        assert_eq!(keys("While The Who"), Vec::<String>::new());
    }

    #[test]
    fn the_display_form_keeps_case_and_loses_trailing_points() {
        let found: Vec<_> = names("It was The Grey Heron.").map(|m| m.name.to_owned()).collect();
        assert_eq!(found, ["Grey Heron"]);
    }

    #[test]
    fn a_title_loses_what_is_in_brackets() {
        assert_eq!(title_key("Tern (1904 ship)"), "tern");
        assert_eq!(title_key("Tern (unclosed"), "tern unclosed");
    }

    #[test]
    fn keys_of_two_partitions_differ() {
        let (a, b) = (NameHasher::new(&[1; 16]), NameHasher::new(&[2; 16]));
        assert_eq!(a.key("grey heron"), a.key("grey heron"));
        assert_ne!(a.key("grey heron"), b.key("grey heron"));
    }
}
