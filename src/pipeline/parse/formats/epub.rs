//! EPUB books: the chapters of the spine, each read as a page.
//!
//! **Invariant:** only what the spine lists is read, in its order; nothing is fetched from outside the book.

use std::io::Cursor;

use rbook::{
    Epub,
    ebook::errors::{ArchiveError, EbookError},
};

use crate::pipeline::parse::{Damage, ParseError, outline::Outline};

use super::html;

/// Reads a book.
pub(super) fn read(bytes: Vec<u8>, depth_limit: u32, outline: &mut Outline) -> Result<(), ParseError> {
    // The table of contents repeats the chapters' headings and is often broken in books that are otherwise sound.
    let book = Epub::options().skip_toc(true).read(Cursor::new(bytes)).map_err(|e| refusal(&e))?;
    if let Some(title) = book.metadata().title() {
        outline.title(title.value());
    }
    for chapter in book.reader() {
        let chapter = chapter.map_err(|_| ParseError::damaged(Damage::Epub))?;
        if !outline.is_blank() {
            outline.untitled()?;
        }
        html::read_fragment(chapter.content(), depth_limit, outline)?;
    }
    Ok(())
}

fn refusal(error: &EbookError) -> ParseError {
    match error {
        EbookError::Archive(ArchiveError::InvalidResource { .. }) => ParseError::damaged(Damage::MissingPart),
        _ => ParseError::damaged(Damage::Epub),
    }
}
