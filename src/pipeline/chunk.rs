//! Cuts a parsed document into chunks that fit the embedding model.
//!
//! A chunk ends where a sentence (Unicode UAX 29) or a section ends and never holds text of two sections; neighbours in a section share one sentence when it is short. Lengths are counted by the model's own tokenizer, so nothing that a chunk holds is cut off by the model.
//!
//! **Invariant:** every character of the source that is not white space is in at least one chunk, no chunk is blank, and the same input gives the same chunks.

#![expect(clippy::cast_possible_truncation, reason = "a document is far below 2^32 bytes")]

mod units;

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::domain::document::Section;
use units::{Unit, units};

/// How chunks are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSettings {
    /// What the model reads at once, tokens, its special tokens included.
    pub max_tokens: usize,
    /// The longest sentence, tokens, that is repeated at the start of the next chunk; 0 for no overlap.
    pub overlap_tokens: usize,
    /// How much of the title, and of the heading, the model sees before a chunk's text, tokens each.
    pub title_tokens: usize,
}

impl Default for ChunkSettings {
    fn default() -> Self {
        Self { max_tokens: 256, overlap_tokens: 32, title_tokens: 32 }
    }
}

/// Why a document cannot be cut.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The model reads too little at once for a title, special tokens and text.
    #[error("a model that reads {0} tokens at once is too small: {MIN_TOKENS} are needed")]
    ModelTooSmall(usize),
    /// The tokenizer refused a text.
    #[error("the embedding model's tokenizer failed")]
    Tokenizer(#[source] tokenizers::Error),
}

const MIN_TOKENS: usize = 16;
/// White space and words that the tokenizer swallows whole must not grow a chunk without limit.
const MAX_BYTES_PER_TOKEN: usize = 16;

/// A chunk without its identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDraft {
    /// Position in the document, from 0.
    pub ordinal: u32,
    /// Heading of the section that it is from.
    pub heading: Option<String>,
    /// The text as in the source, trimmed. Of a section without text: its heading.
    pub text: String,
    /// Where `text` begins: bytes from the start of all sections' texts laid end to end.
    pub start: usize,
    /// What the model reads for this chunk: special tokens, title, heading and text.
    pub tokens: u32,
}

/// Cuts documents for one embedding model. Cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct Chunker {
    tokenizer: Arc<Tokenizer>,
    settings: ChunkSettings,
    special_tokens: usize,
}

impl Chunker {
    /// A chunker that counts by `tokenizer`, whose own truncation and padding are ignored.
    ///
    /// # Errors
    /// [`ChunkError::ModelTooSmall`] below 16 tokens.
    pub fn new(tokenizer: &Tokenizer, settings: ChunkSettings) -> Result<Self, ChunkError> {
        if settings.max_tokens < MIN_TOKENS {
            return Err(ChunkError::ModelTooSmall(settings.max_tokens));
        }
        let mut tokenizer = tokenizer.clone();
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(ChunkError::Tokenizer)?;
        let special_tokens = tokenizer.encode_fast("", true).map_err(ChunkError::Tokenizer)?.len();
        Ok(Self { tokenizer: Arc::new(tokenizer), settings, special_tokens })
    }

    /// Cuts a document. `title` and headings only take room here; see [`Chunker::lead`].
    ///
    /// # Errors
    /// [`ChunkError::Tokenizer`] when the tokenizer cannot read the text.
    pub fn chunk(&self, title: Option<&str>, sections: &[Section]) -> Result<Vec<ChunkDraft>, ChunkError> {
        let mut drafts = Vec::new();
        let mut start = 0;
        let title = self.shorten(title)?;
        for section in sections {
            let heading = self.shorten(section.heading.as_deref())?;
            let lead = self.special_tokens + title.cost() + heading.cost();
            let (text, offset) = match section.heading.as_deref() {
                Some(heading) if section.text.trim().is_empty() => (heading, None),
                _ => (section.text.as_str(), Some(start)),
            };
            let budget = self.settings.max_tokens - lead;
            let units = units(&self.tokenizer, text, budget, budget * MAX_BYTES_PER_TOKEN)
                .map_err(ChunkError::Tokenizer)?;
            for piece in self.pack(&units, budget) {
                let raw = &text[piece.start..piece.end];
                let trimmed = raw.trim();
                if trimmed.is_empty() {
                    continue;
                }
                let blank = raw.len() - raw.trim_start().len();
                drafts.push(ChunkDraft {
                    ordinal: drafts.len() as u32,
                    heading: section.heading.clone(),
                    text: trimmed.to_owned(),
                    start: offset.map_or(start, |offset| offset + piece.start + blank),
                    tokens: (lead + piece.tokens) as u32,
                });
            }
            start += section.text.len();
        }
        Ok(drafts)
    }

    /// What the model sees before the text of a chunk: title and heading, each cut to the settings' length.
    ///
    /// # Errors
    /// [`ChunkError::Tokenizer`] when the tokenizer cannot read them.
    pub fn lead(&self, title: Option<&str>, heading: Option<&str>) -> Result<String, ChunkError> {
        let (title, heading) = (self.shorten(title)?, self.shorten(heading)?);
        Ok(match (title.text, heading.text) {
            ("", only) | (only, "") => only.to_owned(),
            (title, heading) => format!("{title}. {heading}"),
        })
    }

    /// The start of a title or heading that the model gets to see.
    fn shorten<'t>(&self, name: Option<&'t str>) -> Result<Short<'t>, ChunkError> {
        let name = name.unwrap_or_default().trim();
        if name.is_empty() {
            return Ok(Short { text: "", tokens: 0 });
        }
        // However long titles are, at least half of the model's length stays for the text.
        let most = self.settings.title_tokens.min((self.settings.max_tokens - self.special_tokens) / 4 - 1);
        let head = &name[..name.floor_char_boundary(most * MAX_BYTES_PER_TOKEN)];
        let encoding = self.tokenizer.encode(head, false).map_err(ChunkError::Tokenizer)?;
        let tokens = encoding.len().min(most);
        let end = encoding.get_offsets()[..tokens].last().map_or(0, |&(_, end)| end);
        Ok(Short { text: &name[..name.floor_char_boundary(end)], tokens })
    }

    /// Joins units to chunks of at most `budget` tokens, each beginning with the last unit of the one before where that is short.
    fn pack(&self, units: &[Unit], budget: usize) -> Vec<Unit> {
        let mut pieces: Vec<Unit> = Vec::new();
        let most_bytes = budget * MAX_BYTES_PER_TOKEN;
        let mut last: Option<Unit> = None;
        for unit in units {
            if let (Some(open), Some(before)) = (pieces.last_mut(), last) {
                if open.tokens + unit.tokens <= budget && unit.end - open.start <= most_bytes {
                    *open = open.to(unit);
                } else {
                    let repeat = open.start < before.start
                        && before.tokens <= self.settings.overlap_tokens
                        && before.tokens + unit.tokens <= budget
                        && unit.end - before.start <= most_bytes;
                    pieces.push(if repeat { before.to(unit) } else { *unit });
                }
            } else {
                pieces.push(*unit);
            }
            last = Some(*unit);
        }
        pieces
    }
}

/// The text that the model embeds for a chunk and that lexical search indexes; `lead` as from [`Chunker::lead`].
#[must_use]
pub fn embedding_text(lead: &str, text: &str) -> String {
    if lead.is_empty() { text.to_owned() } else { format!("{lead}. {text}") }
}

/// The start of a title, and its length.
struct Short<'t> {
    text: &'t str,
    tokens: usize,
}

impl Short<'_> {
    /// Tokens that it takes, with the full stop behind it.
    fn cost(&self) -> usize {
        if self.text.is_empty() { 0 } else { self.tokens + 1 }
    }
}

#[cfg(test)]
mod tests;
