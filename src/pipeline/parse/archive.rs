//! Looks a zip container over before a format library unpacks it.
//!
//! Every entry is unpacked once into nothing, so that the sizes are real ones: the directory of a hostile container
//! lies. XML parts are read on the way for their nesting and for entity declarations.
//!
//! **Invariant:** a container passes only if all of it fits the bounds, whatever its directory says.

use std::io::{self, BufReader, Cursor, Read};

use quick_xml::events::Event;
use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::{Bound, Damage, FileType, Found, ParseError, ParseLimits};

/// Below this size the ratio of packed to unpacked does not matter, bytes.
const RATIO_FREE_BYTES: u64 = 16 << 20;

/// Checks the container of a document of type `expected`.
pub(super) fn check(expected: FileType, bytes: &[u8], limits: &ParseLimits) -> Result<(), ParseError> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| refusal(&e))?;
    if archive.len() as u64 > limits.archive_entries {
        return Err(too_large(Bound::Entries, limits.archive_entries));
    }
    let ratio_bound = limits.unpack_ratio.saturating_mul(bytes.len() as u64).max(RATIO_FREE_BYTES);
    let mut unpacked = 0;
    let mut seen = Seen::default();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|e| refusal(&e))?;
        if entry.encrypted() {
            return Err(ParseError::Encrypted);
        }
        if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(ParseError::damaged(Damage::ArchiveMethod));
        }
        let leads_out = entry.enclosed_name().is_none() || entry.name_raw().starts_with(b"/");
        if leads_out || entry.name_raw().contains(&b'\\') {
            return Err(ParseError::damaged(Damage::ArchivePath));
        }
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        drop(entry);
        seen.saw(&name);

        let entry = archive.by_index(index).map_err(|e| refusal(&e))?;
        let mut counted =
            Counted { inner: entry, total: unpacked, bound: limits.unpacked_bytes.min(ratio_bound) };
        let walked =
            if is_xml(&name) { walk_xml(&mut counted, expected, limits.nesting_depth) } else { Ok(()) };
        let drained = io::copy(&mut counted, &mut io::sink());
        if counted.total > limits.unpacked_bytes {
            return Err(too_large(Bound::Unpacked, limits.unpacked_bytes));
        }
        if counted.total > ratio_bound {
            return Err(too_large(Bound::Ratio, limits.unpack_ratio));
        }
        walked?;
        drained.map_err(|_| ParseError::damaged(Damage::Archive))?;
        unpacked = counted.total;
    }
    seen.check(expected)
}

fn too_large(what: Bound, limit: u64) -> ParseError {
    ParseError::TooLarge { what, limit }
}

fn refusal(error: &ZipError) -> ParseError {
    match error {
        ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED) | ZipError::InvalidPassword => {
            ParseError::Encrypted
        }
        ZipError::CompressionMethodNotSupported(_) => ParseError::damaged(Damage::ArchiveMethod),
        _ => ParseError::damaged(Damage::Archive),
    }
}

fn is_xml(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm"]
        .iter()
        .any(|extension| name.ends_with(extension))
}

/// Reads an XML part for its nesting and its entity declarations. A syntax error ends the reading: what a format's
/// own reader makes of such a part is its own matter.
fn walk_xml(part: impl Read, expected: FileType, depth_limit: u32) -> Result<(), ParseError> {
    let mut reader = quick_xml::Reader::from_reader(BufReader::new(part));
    reader.config_mut().check_end_names = false;
    let mut buffer = Vec::new();
    let mut depth = 0_u32;
    loop {
        buffer.clear();
        match reader.read_event_into(&mut buffer) {
            Ok(Event::Start(_)) => {
                depth += 1;
                if depth > depth_limit {
                    return Err(ParseError::TooDeep { limit: depth_limit });
                }
            }
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            // Office Open XML allows no document type at all (ECMA-376 part 2, 8.1.4); in EPUB it is common and
            // harmless without declarations of its own.
            Ok(Event::DocType(doctype)) => {
                let declares = doctype.contains("<!ENTITY");
                if declares || expected != FileType::Epub {
                    return Err(ParseError::damaged(Damage::Entities));
                }
            }
            Ok(Event::Eof) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// A reader that counts on from `total` and stops past `bound`.
struct Counted<R> {
    inner: R,
    total: u64,
    bound: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.total > self.bound {
            return Err(io::Error::other("past the bound on unpacked bytes"));
        }
        let read = self.inner.read(buffer)?;
        self.total += read as u64;
        Ok(read)
    }
}

/// Where a format's parts lie, and what a container that has them is.
const PARTS: [(&str, FileType, Found); 4] = [
    ("word/", FileType::Docx, Found::Word),
    ("ppt/", FileType::Pptx, Found::PowerPoint),
    ("xl/", FileType::Xlsx, Found::Excel),
    ("META-INF/container.xml", FileType::Epub, Found::Epub),
];

/// Which formats' parts were seen, in the order of [`PARTS`].
#[derive(Default)]
struct Seen([bool; PARTS.len()]);

impl Seen {
    fn saw(&mut self, name: &str) {
        for (seen, (place, ..)) in self.0.iter_mut().zip(PARTS) {
            *seen |= name.starts_with(place);
        }
    }

    /// A container with the parts of another format and none of its own is of the wrong type; one with the parts of
    /// no known format lacks what it needs.
    fn check(&self, expected: FileType) -> Result<(), ParseError> {
        let seen = || self.0.iter().zip(PARTS).filter(|(seen, _)| **seen).map(|(_, part)| part);
        if seen().any(|(_, file_type, _)| file_type == expected) {
            return Ok(());
        }
        match seen().next() {
            Some((_, _, found)) => Err(ParseError::WrongType { expected, found }),
            None => Err(ParseError::damaged(Damage::MissingPart)),
        }
    }
}
