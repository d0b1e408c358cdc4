//! Sentences with their lengths in tokens, and pieces of sentences that are longer than a chunk.

use icu_segmenter::SentenceSegmenter;
use icu_segmenter::options::SentenceBreakInvariantOptions;
use tokenizers::Tokenizer;

/// A stretch of a section's text that is not cut again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    /// First byte.
    pub start: usize,
    /// Byte behind the last.
    pub end: usize,
    /// Length, tokens.
    pub tokens: usize,
}

impl Unit {
    /// This unit and the text up to the end of a later one, `next` counted on top.
    pub(super) fn to(&self, next: &Self) -> Self {
        Self { start: self.start, end: next.end, tokens: self.tokens + next.tokens }
    }
}

/// The tokenizer's memory is many times its input, so long texts are read in blocks of whole sentences of about this size, bytes.
const BLOCK: usize = 16 * 1024;

/// Units that lie end to end and cover `text`, each of at most `most_tokens` tokens and `most_bytes` bytes.
pub(super) fn units(
    tokenizer: &Tokenizer,
    text: &str,
    most_tokens: usize,
    most_bytes: usize,
) -> Result<Vec<Unit>, tokenizers::Error> {
    let mut units = Vec::new();
    for block in blocks(text) {
        let encoding = tokenizer.encode(&text[block.start..block.end], false)?;
        let tokens: Vec<Token> = tokens(encoding.get_offsets(), block.start);
        let mut next = 0;
        for sentence in &block.sentences {
            let first = next;
            while tokens.get(next).is_some_and(|token| token.start < sentence.1) {
                next += 1;
            }
            split(text, *sentence, &tokens[first..next], (most_tokens, most_bytes), &mut units);
        }
    }
    Ok(units)
}

struct Block {
    start: usize,
    end: usize,
    sentences: Vec<(usize, usize)>,
}

fn blocks(text: &str) -> Vec<Block> {
    let segmenter = SentenceSegmenter::new(SentenceBreakInvariantOptions::default());
    let mut blocks: Vec<Block> = Vec::new();
    let mut from = 0;
    for end in segmenter.segment_str(text).filter(|&end| end > 0) {
        match blocks.last_mut() {
            Some(block) if end - block.start <= BLOCK => {
                block.end = end;
                block.sentences.push((from, end));
            }
            _ => blocks.push(Block { start: from, end, sentences: vec![(from, end)] }),
        }
        from = end;
    }
    blocks
}

/// A token's place, and whether a word begins with it.
struct Token {
    start: usize,
    end: usize,
    opens_word: bool,
}

fn tokens(offsets: &[(usize, usize)], shift: usize) -> Vec<Token> {
    let mut before = usize::MAX;
    offsets
        .iter()
        .map(|&(start, end)| {
            let opens_word = start != before;
            before = end;
            Token { start: start + shift, end: end + shift, opens_word }
        })
        .collect()
}

/// Appends a sentence: whole when it fits, else in pieces that end at words.
fn split(
    text: &str,
    sentence: (usize, usize),
    tokens: &[Token],
    most: (usize, usize),
    units: &mut Vec<Unit>,
) {
    let (mut start, end) = sentence;
    let (most_tokens, most_bytes) = most;
    let mut first = 0;
    let mut word = 0;
    for (n, token) in tokens.iter().enumerate() {
        if token.opens_word {
            word = n;
        }
        if n - first < most_tokens && token.end.saturating_sub(start) <= most_bytes {
            continue;
        }
        // A word longer than a whole unit is cut between its tokens.
        let cut = if word > first { word } else { n };
        let at = text.floor_char_boundary(tokens[cut].start);
        if at > start {
            push(text, Unit { start, end: at, tokens: cut - first }, most, units);
            start = at;
            first = cut;
        }
    }
    push(text, Unit { start, end, tokens: tokens.len() - first }, most, units);
}

/// Appends a unit, cut by bytes when tokens do not bound it: one token may be a very long word, or none a long blank.
fn push(text: &str, unit: Unit, most: (usize, usize), units: &mut Vec<Unit>) {
    let (most_tokens, most_bytes) = most;
    let Unit { mut start, end, mut tokens } = unit;
    while end - start > most_bytes {
        let cut = text.floor_char_boundary(start + most_bytes);
        units.push(Unit { start, end: cut, tokens });
        start = cut;
        // What a piece of a word comes to is not known: never fewer than it has bytes.
        tokens = most_tokens.min(end - start);
    }
    units.push(Unit { start, end, tokens });
}
