//! Whether a file's content is what its name says.
//!
//! **Invariant:** text is never refused because its first letters resemble the mark of a binary format; only an
//! unmistakable mark counts.

use super::{Damage, FileType, Found, ParseError};

/// Where a PDF's mark may stand (ISO 32000-1, appendix H, note 13).
const PDF_MARK_WITHIN: usize = 1024;
/// Mark of the compound file of Office 97 to 2003, also the envelope of encrypted Office Open XML.
const COMPOUND_FILE: &[u8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1";
/// Mark of a zip container's first entry, or of the end record of an empty one.
const ZIP: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];

/// Refuses content that is clearly of another type than `expected`.
pub(super) fn check(expected: FileType, bytes: &[u8]) -> Result<(), ParseError> {
    let wrong = |found| Err(ParseError::WrongType { expected, found });
    match expected {
        FileType::Pdf => {
            let head = &bytes[..bytes.len().min(PDF_MARK_WITHIN)];
            if head.windows(5).any(|window| window == b"%PDF-") {
                return Ok(());
            }
            match found(bytes) {
                Some(found) => wrong(found),
                None => Err(ParseError::damaged(Damage::Pdf)),
            }
        }
        FileType::Docx | FileType::Pptx | FileType::Xlsx | FileType::Epub => {
            if ZIP.iter().any(|mark| bytes.starts_with(mark)) {
                return Ok(());
            }
            if bytes.starts_with(COMPOUND_FILE) {
                return if expected != FileType::Epub && holds_encrypted_package(bytes) {
                    Err(ParseError::Encrypted)
                } else {
                    wrong(Found::OldOffice)
                };
            }
            match found(bytes) {
                Some(found) => wrong(found),
                None => Err(ParseError::damaged(Damage::Archive)),
            }
        }
        _ => {
            if bytes.starts_with(b"%PDF-") {
                return wrong(Found::Pdf);
            }
            if bytes.starts_with(b"{\\rtf") {
                return wrong(Found::RichText);
            }
            // UTF-16 text is full of NUL bytes and says so by its mark.
            let utf_16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            match found(bytes) {
                Some(found) if !utf_16 && bytes.contains(&0) => wrong(found),
                _ => Ok(()),
            }
        }
    }
}

/// The stream name `EncryptedPackage` in a compound file's directory (MS-OFFCRYPTO, 2.3.4.4).
fn holds_encrypted_package(bytes: &[u8]) -> bool {
    let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
    bytes.windows(name.len()).any(|window| window == name)
}

fn found(bytes: &[u8]) -> Option<Found> {
    use infer::MatcherType;
    let kind = infer::get(bytes)?;
    Some(match (kind.matcher_type(), kind.extension()) {
        (_, "pdf") => Found::Pdf,
        (_, "docx") => Found::Word,
        (_, "pptx") => Found::PowerPoint,
        (_, "xlsx") => Found::Excel,
        (_, "epub") => Found::Epub,
        (_, "zip") => Found::Zip,
        (_, "rtf") => Found::RichText,
        (_, "doc" | "xls" | "ppt" | "msi") => Found::OldOffice,
        (MatcherType::App, _) => Found::Program,
        (MatcherType::Archive, _) => Found::Archive,
        (MatcherType::Image, _) => Found::Image,
        (MatcherType::Audio | MatcherType::Video, _) => Found::Media,
        (MatcherType::Text, _) => return None,
        _ => Found::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(expected: FileType, bytes: &[u8]) -> Option<Found> {
        match check(expected, bytes) {
            Err(ParseError::WrongType { found, .. }) => Some(found),
            _ => None,
        }
    }

    #[test]
    fn a_binary_file_under_a_text_name_is_refused() {
        assert_eq!(refused(FileType::Txt, b"%PDF-1.7\n"), Some(Found::Pdf));
        assert_eq!(refused(FileType::Markdown, b"PK\x03\x04\x14\0\0\0\0\0"), Some(Found::Zip));
        assert_eq!(refused(FileType::Csv, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), Some(Found::Image));
        assert_eq!(refused(FileType::Html, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), Some(Found::Program));
    }

    #[test]
    fn text_that_begins_like_a_mark_is_still_text() {
        for text in ["BMW is a maker of cars", "MZ is a rock band", "GIF89a is a format", "II* and MM"] {
            assert!(check(FileType::Txt, text.as_bytes()).is_ok(), "{text}");
        }
        assert!(check(FileType::Txt, b"\xff\xfeB\0M\0").is_ok());
    }

    #[test]
    fn office_and_pdf_names_need_office_and_pdf_content() {
        assert_eq!(refused(FileType::Docx, b"%PDF-1.4"), Some(Found::Pdf));
        assert_eq!(refused(FileType::Xlsx, COMPOUND_FILE), Some(Found::OldOffice));
        assert!(matches!(check(FileType::Pdf, b"hello"), Err(ParseError::Damaged { what: Damage::Pdf })));
        let mut encrypted = COMPOUND_FILE.to_vec();
        encrypted.extend("EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes));
        assert!(matches!(check(FileType::Docx, &encrypted), Err(ParseError::Encrypted)));
    }
}
