//! Collects sections while a format is read, and stops it at the bound on output.
//!
//! **Invariant:** what leaves here is free of control characters (PostgreSQL takes no NUL) and within the bound.

use super::{Bound, ParseError};
use crate::domain::document::{Parsed, Section};

/// Bytes charged for a section beyond its text, so that empty sections are bounded too.
const SECTION_COST: u64 = 64;
/// Longest title or heading kept, characters; a longer one is body text in disguise.
const HEADING_CHARS: usize = 300;

/// Sections in the making.
pub(super) struct Outline {
    parsed: Parsed,
    open: Section,
    left: u64,
    limit: u64,
}

impl Outline {
    /// An outline that holds at most `limit` bytes of text.
    pub(super) fn bounded(limit: u64) -> Self {
        Self { parsed: Parsed::default(), open: Section::default(), left: limit, limit }
    }

    /// An outline for text whose size was checked elsewhere.
    pub(super) fn unbounded() -> Self {
        Self::bounded(u64::MAX)
    }

    /// Names the document; the first name given wins, a blank one does not count.
    pub(super) fn title(&mut self, title: &str) {
        let title = one_line(title);
        if self.parsed.title.is_none() && !title.is_empty() && title.chars().count() <= HEADING_CHARS {
            self.parsed.title = Some(title);
        }
    }

    /// Opens a section. A heading too long to be one becomes a paragraph.
    pub(super) fn heading(&mut self, level: u8, heading: &str) -> Result<(), ParseError> {
        let heading = one_line(heading);
        if heading.is_empty() {
            return Ok(());
        }
        if heading.chars().count() > HEADING_CHARS {
            return self.paragraph(&heading);
        }
        self.charge(SECTION_COST + heading.len() as u64)?;
        self.close();
        self.open = Section { heading: Some(heading), level: level.clamp(1, 6), text: String::new() };
        Ok(())
    }

    /// Opens a section without a heading.
    pub(super) fn untitled(&mut self) -> Result<(), ParseError> {
        self.charge(SECTION_COST)?;
        self.close();
        Ok(())
    }

    /// Adds one line as it stands.
    pub(super) fn line(&mut self, line: &str) -> Result<(), ParseError> {
        self.charge(line.len() as u64 + 1)?;
        if line.contains(is_unwanted) {
            self.open.text.extend(line.chars().filter(|c| !is_unwanted(*c)));
        } else {
            self.open.text.push_str(line);
        }
        self.open.text.push('\n');
        Ok(())
    }

    /// Adds text of one or more lines with an empty line after it; blank text adds nothing.
    pub(super) fn paragraph(&mut self, text: &str) -> Result<(), ParseError> {
        let text = text.trim_matches('\n').trim_end();
        if text.is_empty() {
            return Ok(());
        }
        for line in text.lines() {
            self.line(line.trim_end())?;
        }
        self.gap();
        Ok(())
    }

    /// Ends a paragraph: the next line stands after an empty one.
    pub(super) fn gap(&mut self) {
        let text = &mut self.open.text;
        if !text.is_empty() && !text.ends_with("\n\n") {
            text.push('\n');
        }
    }

    /// Whether nothing was added yet.
    pub(super) fn is_blank(&self) -> bool {
        self.parsed.sections.is_empty() && self.open.heading.is_none() && self.open.text.trim().is_empty()
    }

    /// Counts a part of the document that could not be read.
    pub(super) fn unread(&mut self) {
        self.parsed.unread = self.parsed.unread.saturating_add(1);
    }

    /// The document, [`ParseError::Empty`] if there is no text in it.
    pub(super) fn finish(self) -> Result<Parsed, ParseError> {
        let parsed = self.into_parsed();
        if parsed.sections.is_empty() {
            return Err(ParseError::Empty);
        }
        Ok(parsed)
    }

    /// The document, also when there is no text in it.
    pub(super) fn into_parsed(mut self) -> Parsed {
        self.close();
        self.parsed
    }

    fn close(&mut self) {
        let mut section = std::mem::take(&mut self.open);
        section.text.truncate(section.text.trim_end().len());
        let blank = section.text.len() - section.text.trim_start_matches(['\n', '\r']).len();
        section.text.drain(..blank);
        if section.heading.is_some() || !section.text.is_empty() {
            self.parsed.sections.push(section);
        }
    }

    fn charge(&mut self, bytes: u64) -> Result<(), ParseError> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or(ParseError::TooLarge { what: Bound::Output, limit: self.limit })?;
        Ok(())
    }
}

fn is_unwanted(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// White space of any kind as single blanks, control characters dropped.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().filter(|c| !is_unwanted(*c)));
    }
    line
}
