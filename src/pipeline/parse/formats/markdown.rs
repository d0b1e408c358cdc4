//! Markdown (`CommonMark` with tables, footnotes, task lists and front matter) to plain text.
//!
//! **Invariant:** words are kept, marks go: a link leaves its text, a picture its description.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::pipeline::parse::{ParseError, outline::Outline};

use super::html;

/// Reads Markdown. Front matter's `title`, else a heading of level 1 that opens the text, names the document.
pub(super) fn read(text: &str, depth_limit: u32, outline: &mut Outline) -> Result<(), ParseError> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut page = Page { outline, line: String::new(), lists: Vec::new(), html: String::new(), depth_limit };
    let mut depth = 0_u32;
    for event in Parser::new_ext(text, options) {
        match &event {
            Event::Start(_) => {
                depth += 1;
                if depth > depth_limit {
                    return Err(ParseError::TooDeep { limit: depth_limit });
                }
            }
            Event::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
        page.take(event)?;
    }
    page.flush()
}

struct Page<'a> {
    outline: &'a mut Outline,
    /// Text of the block being read.
    line: String,
    /// Open lists; the next number of an ordered one.
    lists: Vec<Option<u64>>,
    html: String,
    depth_limit: u32,
}

impl Page<'_> {
    fn take(&mut self, event: Event<'_>) -> Result<(), ParseError> {
        match event {
            Event::Start(tag) => self.open(&tag)?,
            Event::End(tag) => self.close(tag)?,
            Event::Text(text) | Event::Code(text) => self.line.push_str(&text),
            Event::Html(text) => self.html.push_str(&text),
            Event::InlineHtml(tag) if tag.starts_with("<br") => self.line.push('\n'),
            Event::SoftBreak | Event::HardBreak => self.line.push('\n'),
            Event::Rule => self.paragraph()?,
            Event::TaskListMarker(done) => self.line.push_str(if done { "[x] " } else { "[ ] " }),
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, tag: &Tag<'_>) -> Result<(), ParseError> {
        match tag {
            Tag::Paragraph | Tag::Heading { .. } | Tag::Table(_) | Tag::HtmlBlock
                if self.lists.is_empty() =>
            {
                self.paragraph()?;
            }
            Tag::CodeBlock(kind) => {
                self.flush()?;
                if let CodeBlockKind::Fenced(language) = kind {
                    // The language is no word of the text, but tells what the code is.
                    self.line.push_str(language);
                    self.flush()?;
                }
            }
            Tag::List(start) => {
                self.flush()?;
                self.lists.push(*start);
            }
            Tag::Item => {
                self.flush()?;
                self.line.push_str(&"  ".repeat(self.lists.len().saturating_sub(1).min(8)));
                match self.lists.last_mut() {
                    Some(Some(number)) => {
                        self.line.push_str(&number.to_string());
                        self.line.push_str(". ");
                        *number += 1;
                    }
                    _ => self.line.push_str("- "),
                }
            }
            Tag::FootnoteDefinition(_) | Tag::BlockQuote(_) => self.paragraph()?,
            Tag::MetadataBlock(_) => {
                self.flush()?;
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, tag: TagEnd) -> Result<(), ParseError> {
        match tag {
            TagEnd::Heading(level) => {
                let heading = std::mem::take(&mut self.line);
                if level == HeadingLevel::H1 && self.outline.is_blank() {
                    self.outline.title(&heading);
                }
                self.outline.heading(level as u8, &heading)?;
            }
            TagEnd::Paragraph if !self.lists.is_empty() => self.flush()?,
            TagEnd::Paragraph
            | TagEnd::CodeBlock
            | TagEnd::Table
            | TagEnd::BlockQuote(_)
            | TagEnd::FootnoteDefinition => {
                self.paragraph()?;
            }
            TagEnd::Item => self.flush()?,
            TagEnd::List(_) => {
                self.flush()?;
                self.lists.pop();
                if self.lists.is_empty() {
                    self.outline.gap();
                }
            }
            TagEnd::TableCell => self.line.push_str(" | "),
            TagEnd::TableHead | TagEnd::TableRow => {
                let row = self.line.trim_end_matches([' ', '|']).to_owned();
                self.line.clear();
                self.outline.line(&row)?;
            }
            TagEnd::HtmlBlock => {
                self.flush()?;
                let block = std::mem::take(&mut self.html);
                html::read_fragment(&block, self.depth_limit, self.outline)?;
            }
            TagEnd::MetadataBlock(_) => {
                let block = std::mem::take(&mut self.line);
                for line in block.lines() {
                    if let Some(title) = line.strip_prefix("title:") {
                        self.outline.title(title.trim().trim_matches(['"', '\'']));
                    }
                }
                self.outline.paragraph(&block)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes the block being read, if any.
    fn flush(&mut self) -> Result<(), ParseError> {
        let block = std::mem::take(&mut self.line);
        let block = block.trim_end();
        if block.trim().is_empty() {
            return Ok(());
        }
        block.lines().try_for_each(|line| self.outline.line(line))
    }

    fn paragraph(&mut self) -> Result<(), ParseError> {
        self.flush()?;
        self.outline.gap();
        Ok(())
    }
}
