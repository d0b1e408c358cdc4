//! Entry points of the fuzzers, in laboratory builds alone: what the parsers promise about any bytes.
//!
//! **Invariant:** nothing here is reached by a request.

use std::io::{Cursor, Write as _};

use zip::{ZipWriter, write::SimpleFileOptions};

use super::{FileType, ParseLimits, archive, formats, wire::Header};

/// Bounds small enough that a small input can reach them.
const LIMITS: ParseLimits = ParseLimits {
    memory_bytes: 1 << 30,
    cpu_seconds: 10,
    wall_seconds: 10,
    input_bytes: 1 << 20,
    output_bytes: 64 << 10,
    unpacked_bytes: 1 << 20,
    unpack_ratio: 20,
    archive_entries: 20,
    nesting_depth: 32,
};

const TEXTS: [FileType; 6] =
    [FileType::Txt, FileType::Markdown, FileType::Html, FileType::Json, FileType::Jsonl, FileType::Csv];
const CONTAINERS: [FileType; 4] = [FileType::Docx, FileType::Pptx, FileType::Xlsx, FileType::Epub];

/// The formats of text; the first byte chooses one.
///
/// # Panics
/// When a parsed text is larger than its bound.
pub fn texts(data: &[u8]) {
    let Some((first, document)) = data.split_first() else { return };
    let file_type = TEXTS[usize::from(*first) % TEXTS.len()];
    if let Ok(parsed) = formats::parse(file_type, document.to_vec(), &LIMITS) {
        let headings = parsed.sections.iter().filter_map(|section| section.heading.as_ref());
        let bytes = parsed.sections.iter().map(|section| section.text.len()).sum::<usize>()
            + headings.map(String::len).sum::<usize>();
        assert!(bytes as u64 <= LIMITS.output_bytes, "{bytes} bytes of text");
    }
}

/// The look over a container before its format's library sees it. The first byte chooses the format; then come the
/// entries, separated by zero bytes: name, line feed, content.
///
/// # Panics
/// When a container is accepted that is larger than its bound.
pub fn containers(data: &[u8]) {
    let Some((first, entries)) = data.split_first() else { return };
    let file_type = CONTAINERS[usize::from(*first) % CONTAINERS.len()];
    let Some((container, unpacked)) = packed(entries) else { return };
    if archive::check(file_type, &container, &LIMITS).is_ok() {
        assert!(unpacked <= LIMITS.unpacked_bytes, "{unpacked} bytes unpacked");
    }
}

/// A container of these entries, and how many bytes it holds; `None` when it cannot be written.
fn packed(entries: &[u8]) -> Option<(Vec<u8>, u64)> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let mut unpacked = 0;
    for entry in entries.split(|byte| *byte == 0) {
        let mut parts = entry.splitn(2, |byte| *byte == b'\n');
        let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let content = parts.next().unwrap_or_default();
        archive.start_file(name, SimpleFileOptions::default()).ok()?;
        archive.write_all(content).ok()?;
        unpacked += content.len() as u64;
    }
    Some((archive.finish().ok()?.into_inner(), unpacked))
}

/// What the child reads of its parent.
pub fn requests(data: &[u8]) {
    let mut source = data;
    if let Ok(header) = Header::read(&mut source) {
        let _frame = header.frame();
    }
}
