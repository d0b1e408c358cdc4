//! Bytes to text: UTF-8, UTF-16 with a byte order mark, or the encoding that an HTML page declares.
//!
//! **Invariant:** no byte is replaced or dropped in silence; what cannot be decoded is refused with its offset.

use encoding_rs::{DecoderResult, Encoding, UTF_8};

use super::ParseError;

/// How far into a page its declaration of an encoding is looked for, bytes (WHATWG HTML, 13.2.3.2).
const PRESCAN_BYTES: usize = 1024;

/// Decodes text by its byte order mark, else as UTF-8.
pub(super) fn decode(bytes: &[u8]) -> Result<String, ParseError> {
    decode_as(bytes, None)
}

/// Decodes a page by its byte order mark, else by the encoding it declares, else as UTF-8.
pub(super) fn decode_html(bytes: &[u8]) -> Result<String, ParseError> {
    decode_as(bytes, declared_by_html(bytes))
}

fn decode_as(bytes: &[u8], declared: Option<&'static Encoding>) -> Result<String, ParseError> {
    let (encoding, mark) = match Encoding::for_bom(bytes) {
        Some((encoding, mark)) => (encoding, mark),
        None => (declared.unwrap_or(UTF_8), 0),
    };
    let body = &bytes[mark..];
    let text = if encoding == UTF_8 {
        str::from_utf8(body).map_err(|e| undecodable(body, mark, e.valid_up_to()))?.to_owned()
    } else {
        strict(encoding, body).map_err(|at| ParseError::Encoding { offset: (mark + at) as u64 })?
    };
    match text.find('\0') {
        Some(at) if encoding == UTF_8 => Err(ParseError::Binary { offset: (mark + at) as u64 }),
        Some(at) => Err(ParseError::Binary { offset: at as u64 }),
        None => Ok(text),
    }
}

/// A bad byte; where a NUL stands before it, the file is no text at all and that is the better word.
fn undecodable(body: &[u8], mark: usize, at: usize) -> ParseError {
    match body[..at.min(body.len())].iter().position(|byte| *byte == 0) {
        Some(nul) => ParseError::Binary { offset: (mark + nul) as u64 },
        None => ParseError::Encoding { offset: (mark + at) as u64 },
    }
}

/// Decodes without replacement; `Err` holds the offset of the first malformed byte.
fn strict(encoding: &'static Encoding, body: &[u8]) -> Result<String, usize> {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let mut text = String::with_capacity(
        decoder.max_utf8_buffer_length_without_replacement(body.len()).unwrap_or(body.len()),
    );
    let (result, read) = decoder.decode_to_string_without_replacement(body, &mut text, true);
    match result {
        DecoderResult::InputEmpty => Ok(text),
        DecoderResult::Malformed(length, after) => {
            Err(read.saturating_sub(usize::from(length) + usize::from(after)))
        }
        DecoderResult::OutputFull => Err(read),
    }
}

/// The encoding that `<meta charset>`, `http-equiv` or an XML declaration names within the first kilobyte.
fn declared_by_html(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = &bytes[..bytes.len().min(PRESCAN_BYTES)];
    let head: String = head.iter().map(|byte| char::from(*byte).to_ascii_lowercase()).collect();
    let start = head.find("charset=").map(|at| at + "charset=".len()).or_else(|| {
        head.starts_with("<?xml").then(|| head.find("encoding=").map(|at| at + "encoding=".len())).flatten()
    })?;
    let label = head[start..].trim_start_matches(['"', '\'', ' ']);
    let end = label
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':' | '.')))
        .unwrap_or(label.len());
    let encoding = Encoding::for_label(&label.as_bytes()[..end])?;
    // A page whose ASCII declaration could be read is not UTF-16, whatever it says (WHATWG HTML, 13.2.3.3).
    Some(if encoding.is_ascii_compatible() { encoding } else { UTF_8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_and_utf_16_are_read_by_their_marks() {
        assert_eq!(decode("żółw".as_bytes()).unwrap(), "żółw");
        assert_eq!(decode(b"\xef\xbb\xbfabc").unwrap(), "abc");
        assert_eq!(decode(b"\xff\xfea\0b\0").unwrap(), "ab");
        assert_eq!(decode(b"\xfe\xff\0a\0b").unwrap(), "ab");
    }

    #[test]
    fn a_bad_byte_is_refused_with_its_offset() {
        assert!(matches!(decode(b"caf\xe9 au lait"), Err(ParseError::Encoding { offset: 3 })));
        assert!(matches!(decode(b"\xef\xbb\xbfab\xff"), Err(ParseError::Encoding { offset: 5 })));
        assert!(matches!(decode(b"\xff\xfea\0\x00\xd8b\0"), Err(ParseError::Encoding { offset: 4 })));
    }

    #[test]
    fn a_nul_byte_means_that_it_is_no_text() {
        assert!(matches!(decode(b"ab\0cd"), Err(ParseError::Binary { offset: 2 })));
        assert!(matches!(decode(b"a\0\xff"), Err(ParseError::Binary { offset: 1 })));
    }

    #[test]
    fn a_page_is_read_in_the_encoding_it_declares() {
        let page = b"<html><head><meta charset=\"windows-1252\"></head>caf\xe9";
        assert!(decode_html(page).unwrap().ends_with("café"));
        let page = b"<meta http-equiv=Content-Type content='text/html; charset=shift_jis'>\x83e\x83X\x83g";
        assert!(decode_html(page).unwrap().ends_with("テスト"));
        assert!(matches!(decode_html(b"<p>caf\xe9"), Err(ParseError::Encoding { offset: 6 })));
        assert_eq!(decode_html(b"<meta charset=utf-16>ok").unwrap(), "<meta charset=utf-16>ok");
    }
}
