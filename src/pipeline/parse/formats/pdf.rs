//! PDF documents.
//!
//! **Invariant:** a page that the library cannot read is counted in [`Parsed::unread`](crate::domain::document::Parsed::unread),
//! never passed over in silence; a document without one readable page is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pdf_extract::{Document, PlainTextOutput, output_doc_page};

use crate::pipeline::parse::{Damage, ParseError, outline::Outline};

/// Reads a document, page by page, as one run of text: sentences do not stop at the foot of a page.
pub(super) fn read(bytes: &[u8], outline: &mut Outline) -> Result<(), ParseError> {
    let damaged = || ParseError::damaged(Damage::Pdf);
    let mut document = Document::load_mem(bytes).map_err(|_| damaged())?;
    // Many documents are encrypted with an empty password, only to carry permissions.
    if document.is_encrypted() && document.decrypt("").is_err() {
        return Err(ParseError::Encrypted);
    }
    if let Some(title) = title(&document) {
        outline.title(&title);
    }
    let pages: Vec<u32> = document.get_pages().into_keys().collect();
    if pages.is_empty() {
        return Err(damaged());
    }
    let mut failed = 0;
    let mut text = String::new();
    for number in &pages {
        if let Some(page) = page(&document, *number) {
            text.push_str(page.trim_matches('\n'));
            // A page break ends a paragraph only after the end of a sentence.
            text.push_str(if page.trim_end().ends_with(['.', '!', '?', ':']) { "\n\n" } else { "\n" });
        } else {
            failed += 1;
            outline.unread();
        }
        // Paragraphs that are complete are written at once, so that the bound on output holds while reading.
        if let Some(end) = text.rfind("\n\n") {
            let rest = text.split_off(end + 2);
            write(&text, outline)?;
            text = rest;
        }
    }
    if failed == pages.len() {
        return Err(damaged());
    }
    write(&text, outline)
}

/// A page's text; `None` if the library refuses it or panics over it.
fn page(document: &Document, number: u32) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| {
        let mut text = String::new();
        let mut output = PlainTextOutput::new(&mut text);
        output_doc_page(document, &mut output, number).ok()?;
        Some(text)
    }))
    .ok()?
}

fn title(document: &Document) -> Option<String> {
    let info = document.trailer.get(b"Info").ok()?;
    let (_, info) = document.dereference(info).ok()?;
    let title = info.as_dict().ok()?.get(b"Title").ok()?;
    let (_, title) = document.dereference(title).ok()?;
    pdf_extract::decode_text_string(title).ok()
}

/// Writes paragraphs, their lines joined: a PDF has no words' order but that of its lines.
fn write(text: &str, outline: &mut Outline) -> Result<(), ParseError> {
    for paragraph in text.split("\n\n") {
        let mut joined = String::with_capacity(paragraph.len());
        for line in paragraph.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if is_broken_word(&joined, line) {
                joined.pop();
            } else if !joined.is_empty() {
                joined.push(' ');
            }
            joined.push_str(line);
        }
        outline.paragraph(&joined)?;
    }
    Ok(())
}

/// Whether a word was divided at the end of a line: a letter and a hyphen, then a small letter.
fn is_broken_word(before: &str, after: &str) -> bool {
    before.strip_suffix('-').is_some_and(|stem| stem.ends_with(char::is_lowercase))
        && after.starts_with(char::is_lowercase)
}
