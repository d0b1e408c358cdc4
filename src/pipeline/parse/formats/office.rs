//! Word files and presentations.
//!
//! **Invariant:** paragraphs, tables, notes and the words of pictures all appear, in the order of the file.

use undoc::{Block, Document, ListType, Paragraph, Table, docx::DocxParser, pptx::PptxParser};

use crate::pipeline::parse::{
    Damage, ParseError,
    outline::{Outline, one_line},
};

/// Tables nest this deep; what lies deeper is left to its cells' own words.
const TABLE_DEPTH: usize = 16;

/// Reads a Word document: headings by their styles.
pub(super) fn read_docx(bytes: Vec<u8>, outline: &mut Outline) -> Result<(), ParseError> {
    let document =
        DocxParser::from_bytes(bytes).and_then(|mut parser| parser.parse()).map_err(|e| refusal(&e))?;
    write(&document, outline)
}

/// Reads a presentation: each slide a section, under the slide's title if it has one.
pub(super) fn read_pptx(bytes: Vec<u8>, outline: &mut Outline) -> Result<(), ParseError> {
    let document =
        PptxParser::from_bytes(bytes).and_then(|mut parser| parser.parse()).map_err(|e| refusal(&e))?;
    write(&document, outline)
}

fn refusal(error: &undoc::Error) -> ParseError {
    match error {
        undoc::Error::Encrypted => ParseError::Encrypted,
        undoc::Error::ZipArchive(_) => ParseError::damaged(Damage::Archive),
        undoc::Error::MissingComponent(_) => ParseError::damaged(Damage::MissingPart),
        _ => ParseError::damaged(Damage::Office),
    }
}

fn write(document: &Document, outline: &mut Outline) -> Result<(), ParseError> {
    if let Some(title) = &document.metadata.title {
        outline.title(title);
    }
    for section in &document.sections {
        // A slide's name is only its number; its title is a heading like any other.
        outline.untitled()?;
        for paragraph in section.header.iter().flatten() {
            write_paragraph(paragraph, outline)?;
        }
        for block in &section.content {
            write_block(block, outline)?;
        }
        for paragraph in section.footer.iter().chain(&section.notes).flatten() {
            write_paragraph(paragraph, outline)?;
        }
    }
    Ok(())
}

fn write_block(block: &Block, outline: &mut Outline) -> Result<(), ParseError> {
    match block {
        Block::Paragraph(paragraph) => write_paragraph(paragraph, outline),
        Block::Table(table) => {
            outline.gap();
            write_table(table, TABLE_DEPTH, outline)?;
            outline.gap();
            Ok(())
        }
        Block::Note { content, .. } => {
            content.iter().try_for_each(|paragraph| write_paragraph(paragraph, outline))
        }
        Block::Image { alt_text, .. } => outline.paragraph(alt_text.as_deref().unwrap_or_default()),
        Block::PageBreak | Block::SectionBreak => {
            outline.gap();
            Ok(())
        }
    }
}

fn write_paragraph(paragraph: &Paragraph, outline: &mut Outline) -> Result<(), ParseError> {
    let text = words(paragraph);
    let styled_title =
        paragraph.style_name.as_deref().is_some_and(|style| style.eq_ignore_ascii_case("title"));
    if paragraph.is_heading() || styled_title {
        if outline.is_blank() {
            outline.title(&text);
        }
        return outline.heading(paragraph.heading.level().max(1), &text);
    }
    match &paragraph.list_info {
        Some(list) => {
            let indent = "  ".repeat(usize::from(list.level.min(8)));
            let mark = match (list.list_type, list.number) {
                (ListType::Numbered, Some(number)) => format!("{number}. "),
                _ => "- ".to_owned(),
            };
            if text.trim().is_empty() {
                Ok(())
            } else {
                outline.line(&format!("{indent}{mark}{}", text.trim()))
            }
        }
        None => outline.paragraph(&text),
    }
}

/// The words of a paragraph. Deleted text of a tracked change is not part of it.
fn words(paragraph: &Paragraph) -> String {
    let mut text = String::new();
    for run in &paragraph.runs {
        if run.revision == undoc::model::RevisionType::Deleted {
            continue;
        }
        text.push_str(&run.text);
        if run.line_break || run.page_break {
            text.push('\n');
        }
    }
    for image in &paragraph.images {
        if let Some(description) = &image.alt_text {
            text.push(' ');
            text.push_str(description);
        }
    }
    text
}

fn write_table(table: &Table, depth: usize, outline: &mut Outline) -> Result<(), ParseError> {
    for row in &table.rows {
        let cells: Vec<String> = row
            .cells
            .iter()
            .map(|cell| {
                let paragraphs: Vec<String> = cell.content.iter().map(words).collect();
                one_line(&paragraphs.join(" "))
            })
            .filter(|cell| !cell.is_empty())
            .collect();
        if !cells.is_empty() {
            outline.line(&cells.join(" | "))?;
        }
        if depth > 0 {
            for nested in row.cells.iter().flat_map(|cell| &cell.nested_tables) {
                write_table(nested, depth - 1, outline)?;
            }
        }
    }
    Ok(())
}
