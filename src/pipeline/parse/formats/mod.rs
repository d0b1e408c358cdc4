//! One file per format; each turns bytes into an [`Outline`](super::outline::Outline).
//!
//! **Invariant:** these run in the worker, except `text`, which runs no library.

mod csv;
mod epub;
mod html;
mod json;
mod markdown;
mod office;
mod pdf;
mod rows;
pub(super) mod text;
mod workbook;

use super::{FileType, ParseError, ParseLimits, Parsed, archive, encoding, outline::Outline, sniff};

/// Parses one document in this process. Only the worker calls this on uploaded bytes.
pub(super) fn parse(file_type: FileType, bytes: Vec<u8>, limits: &ParseLimits) -> Result<Parsed, ParseError> {
    sniff::check(file_type, &bytes)?;
    let mut outline = Outline::bounded(limits.output_bytes);
    let depth = limits.nesting_depth;
    if file_type.is_text() {
        let decoded = match file_type {
            FileType::Html => encoding::decode_html(&bytes)?,
            _ => encoding::decode(&bytes)?,
        };
        drop(bytes);
        if decoded.trim().is_empty() {
            return Err(ParseError::Empty);
        }
        match file_type {
            FileType::Markdown => markdown::read(&decoded, depth, &mut outline)?,
            FileType::Html => html::read(&decoded, depth, &mut outline)?,
            FileType::Json => json::read(&decoded, depth, &mut outline)?,
            FileType::Jsonl => json::read_lines(&decoded, depth, &mut outline)?,
            FileType::Csv => csv::read(&decoded, &mut outline)?,
            _ => text::read(&decoded, &mut outline)?,
        }
        return outline.finish();
    }
    if file_type == FileType::Pdf {
        pdf::read(&bytes, &mut outline)?;
        return outline.finish();
    }
    archive::check(file_type, &bytes, limits)?;
    match file_type {
        FileType::Docx => office::read_docx(bytes, &mut outline)?,
        FileType::Pptx => office::read_pptx(bytes, &mut outline)?,
        FileType::Xlsx => workbook::read(bytes, &mut outline)?,
        _ => epub::read(bytes, depth, &mut outline)?,
    }
    outline.finish()
}
