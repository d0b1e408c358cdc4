//! Words and sentences of plain text, as names and lexical search see them.
//!
//! **Invariant:** no allocation per word, no locale, no tables that differ between builds: the same text gives the same words everywhere, since stored terms and entity keys depend on it.

/// English words that carry no topic. Sorted, for [`is_stop`].
const STOP: [&str; 52] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "did", "do", "does", "for", "from", "had", "has",
    "have", "he", "her", "his", "how", "if", "in", "into", "is", "it", "its", "not", "of", "on", "or", "she",
    "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "were", "what",
    "when", "where", "which", "who", "whom", "will", "with",
];

/// Whether a lower-case word is one of the English stop words.
#[must_use]
pub fn is_stop(word: &str) -> bool {
    STOP.binary_search(&word).is_ok()
}

/// Whether a character belongs to a word: a letter, a digit or the underscore.
#[must_use]
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The words of `text` in order, as written.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
}

/// `text` in lower case with single spaces between its words and nothing else: the form in which names are compared.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in words(text) {
        if !out.is_empty() {
            out.push(' ');
        }
        push_lower(&mut out, word);
    }
    out
}

/// Appends `word` in lower case.
pub(crate) fn push_lower(out: &mut String, word: &str) {
    if word.is_ascii() {
        out.push_str(word);
        let start = out.len() - word.len();
        out[start..].make_ascii_lowercase();
    } else {
        out.extend(word.chars().flat_map(char::to_lowercase));
    }
}

/// The sentences of `text`, trimmed and not empty: a sentence ends at `.`, `!` or `?` before white space and a capital, a digit, a quote or a bracket.
///
/// This is the cheap rule that names are found by; chunks are cut by Unicode's (UAX 29).
pub fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let end = sentence_end(rest);
            let (sentence, tail) = rest.split_at(end);
            rest = tail;
            let sentence = sentence.trim();
            if !sentence.is_empty() {
                return Some(sentence);
            }
        }
        None
    })
}

/// Byte offset at which the first sentence of `text` ends.
fn sentence_end(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find(['.', '!', '?']) {
        let after = from + at + 1;
        let tail = &text[after..];
        let next = tail.trim_start();
        let opens =
            next.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "\"'(".contains(c));
        if next.len() < tail.len() && opens {
            return after;
        }
        from = after;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stop_words_are_sorted_for_the_search() {
        assert!(STOP.is_sorted());
        assert!(is_stop("the") && is_stop("with") && !is_stop("ship"));
    }

    #[test]
    fn plain_keeps_words_digits_and_accents_only() {
        assert_eq!(plain("  Élan-Vital’s (1907)\n\"No_1\" "), "élan vital s 1907 no_1");
        assert_eq!(plain(" -- "), "");
    }

    #[test]
    fn sentences_end_before_a_capital_and_not_inside_a_number() {
        let text = "It cost 3.5 pounds. Nobody paid! \"Why?\" asked e.g. the mate.";
        let found: Vec<_> = sentences(text).collect();
        assert_eq!(found, ["It cost 3.5 pounds.", "Nobody paid!", "\"Why?\" asked e.g. the mate."]);
    }
}
